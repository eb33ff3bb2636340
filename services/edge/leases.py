"""Credit on loan from billing, held in memory: admitting a request needs no I/O.

A *lease* is a short loan of an account's balance to this edge. A *hold* is what one request takes
from leases before it starts; closing it returns what was not charged. Every lease is closed at
billing, with the count and sum of what was charged to it, once it is dead and nothing holds it.

Invariants, per lease: granted = left + held + charged (but for charges above their hold, which are
never refused); nothing is taken from a lease past its time; after quiescence held = 0.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from bourse.rpc import RpcError, StatusCode
from bourse.v1.billing_pb2 import (
    CloseLeaseRequest,
    CloseLeaseResponse,
    LeaseGrant,
    LeaseRequest,
    LeaseResponse,
    LeaseWant,
    ReturnLeaseRequest,
    ReturnLeaseResponse,
)
from bourse.v1.events_pb2 import AccountState, LeaseSpend
from services.edge.holds import BillingUnreachable, Hold, InsufficientCredit, Lease

log = logging.getLogger(__name__)

SWEEP_S = 0.25
CLOSE_BACKOFF_S = (0.25, 5.0)
CLOSES_AT_ONCE = 16
ASKS_PER_HOLD = 32
REFUSAL_FROZEN = "frozen"


class BillingClient(Protocol):
    """The part of billing that lends."""

    async def Lease(self, request: LeaseRequest, *, timeout: float) -> LeaseResponse: ...

    async def ReturnLease(
        self, request: ReturnLeaseRequest, *, timeout: float
    ) -> ReturnLeaseResponse: ...

    async def CloseLease(
        self, request: CloseLeaseRequest, *, timeout: float
    ) -> CloseLeaseResponse: ...


class _Credit:
    """What this edge knows of one account's credit."""

    __slots__ = (
        "available_nano", "epoch", "leases", "refusal", "refused_until", "taken_nano",
        "taken_since", "told_at",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.leases: list[Lease] = []
        self.available_nano = 0
        """What billing said it could still lend, when it last spoke."""
        self.epoch = 0
        self.refusal = ""
        self.refused_until = 0.0
        self.taken_nano = 0
        self.taken_since = now
        self.told_at = -math.inf
        """When billing last spoke: what it could lend then is not believed for long."""

    def left_nano(self, now: float) -> int:
        return sum(one.left_nano for one in self.leases if now < one.expires_at)


class LeasePool:
    """All leases of this edge."""

    def __init__(
        self,
        billing: BillingClient,
        edge: str,
        *,
        lease_deadline_s: float = 2.0,
        refusal_remembered_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._billing = billing
        self._edge = edge
        self._lease_deadline_s = lease_deadline_s
        self._refusal_remembered_s = refusal_remembered_s
        self._clock = clock
        self._credits: dict[str, _Credit] = {}
        self._frozen: set[str] = set()
        self._expiries: list[tuple[float, int, Lease]] = []
        self._numbers = itertools.count()
        self._wanted: dict[str, tuple[int, int]] = {}  # account → (largest, sum) of what is asked
        self._answers: dict[str, asyncio.Future[None]] = {}
        self._asked: frozenset[str] = frozenset()  # accounts of the call under way
        self._calling = False
        self._closing: dict[str, Lease] = {}
        self.held_nano = 0
        """What running requests hold now, of all accounts."""
        self._tasks: set[asyncio.Task[None]] = set()

    # -- admission -------------------------------------------------------------------------

    def take(self, account: str, want_nano: int, full_nano: int) -> Hold | None:
        """Hold `want_nano` at once, or return None when that needs thought or a call.

        `full_nano` is the most the request could cost: if credit covers that, nothing is clamped.
        """
        credit = self._credits.get(account)
        if credit is None or account in self._frozen:
            return None
        now = self._clock()
        left = total = 0
        found: Lease | None = None
        renew = True
        for lease in credit.leases:
            if now < lease.expires_at:
                left += lease.left_nano
                total += lease.granted_nano
                if now < lease.renew_at:
                    renew = False
                if found is None and lease.left_nano >= want_nano:
                    found = lease
        if found is None or left + credit.available_nano < full_nano:
            return None
        found.left_nano -= want_nano
        found.held_nano += want_nano
        self.held_nano += want_nano
        found.holds += 1
        credit.taken_nano += want_nano
        if (renew or (left - want_nano) * 2 < total) and credit.available_nano > 0:
            self._refill(account, credit, want_nano, now)
        return Hold(self, account, 0, (found, want_nano))

    def free(self, account: str) -> Hold:
        """Return an empty hold for a request that cannot cost anything.

        Raises InsufficientCredit for a frozen account: its balance is below zero.
        """
        if account in self._frozen:
            raise InsufficientCredit(0, REFUSAL_FROZEN)
        return Hold(self, account, 0)

    async def hold(self, account: str, *, floor_nano: int, want_nano: int, full_nano: int) -> Hold:
        """Hold `want_nano`, or what credit there is if that covers `floor_nano`.

        Raises InsufficientCredit, or BillingUnreachable when billing cannot be asked.
        """
        hold = self.take(account, want_nano, full_nano)
        if hold is not None:
            return hold
        if account in self._frozen:
            raise InsufficientCredit(0, REFUSAL_FROZEN)
        unreachable: BillingUnreachable | None = None
        for _ in range(ASKS_PER_HOLD):
            credit = self._credit(account)
            now = self._clock()
            short = want_nano - credit.left_nano(now)
            if now < credit.refused_until:
                short = min(short, credit.available_nano)
            if short <= 0:
                known = credit.left_nano(now) + credit.available_nano
                if known >= full_nano or now - credit.told_at < self._refusal_remembered_s:
                    break
                short = 1  # enough for now, but before anything is clamped, what is there?
            try:
                await self._ask(account, short)
            except BillingUnreachable as error:
                unreachable = error
                break
        credit = self._credit(account)
        left = credit.left_nano(self._clock())
        if left < floor_nano:
            if unreachable is not None:
                raise unreachable
            raise InsufficientCredit(
                left + credit.available_nano, credit.refusal or "insufficient_credits"
            )
        spendable = left + credit.available_nano
        hold = Hold(self, account, spendable if spendable < full_nano else 0)
        self._take_parts(credit, hold, min(want_nano, left))
        return hold

    async def grow(self, hold: Hold, nano: int) -> list[LeaseSpend]:
        """Add up to `nano` to a running hold; an empty list when there is no more to be had."""
        credit = self._credit(hold.account)
        now = self._clock()
        if credit.left_nano(now) < nano and hold.account not in self._frozen:
            refused = now < credit.refused_until and credit.available_nano <= 0
            if not refused:
                with contextlib.suppress(BillingUnreachable):
                    await self._ask(hold.account, nano - credit.left_nano(now))
                credit = self._credit(hold.account)
        if hold.account in self._frozen:
            return []
        taken = self._take_parts(credit, hold, min(nano, credit.left_nano(self._clock())))
        return [LeaseSpend(lease=lease.id, amount_nano=part) for lease, part in taken]

    def account_changed(self, state: AccountState) -> None:
        """Follow billing's word on an account: frozen or not, credited, leases recalled."""
        if state.frozen:
            self._frozen.add(state.account)
        else:
            self._frozen.discard(state.account)
        credit = self._credits.get(state.account)
        if credit is None:
            return
        if state.credit_epoch > credit.epoch:  # a remembered refusal is stale
            credit.epoch = state.credit_epoch
            credit.refused_until = 0.0
            credit.told_at = -math.inf
            credit.refusal = ""
        for lease in list(credit.leases):
            if lease.id in state.recalled_leases:
                self._end(lease)

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """End leases at their time, and close at billing what is dead and quiet. Never ends."""
        backoff = 0.0
        while True:
            await asyncio.sleep(max(SWEEP_S, backoff))
            self._sweep()
            if self._closing and not await self._close_all(list(self._closing.values())):
                backoff = min(max(2 * backoff, CLOSE_BACKOFF_S[0]), CLOSE_BACKOFF_S[1])
            else:
                backoff = 0.0

    async def shutdown(self) -> None:
        """End and close every lease that nothing holds; one try each."""
        for credit in list(self._credits.values()):
            for lease in list(credit.leases):
                self._end(lease)
        await self._close_all(list(self._closing.values()))
        for task in tuple(self._tasks):
            task.cancel()

    def leases_of(self, account: str) -> list[Lease]:
        credit = self._credits.get(account)
        return list(credit.leases) if credit else []

    def _credit(self, account: str) -> _Credit:
        credit = self._credits.get(account)
        if credit is None:
            credit = self._credits[account] = _Credit(self._clock())
        return credit

    def _take_parts(self, credit: _Credit, hold: Hold, nano: int) -> list[tuple[Lease, int]]:
        now = self._clock()
        taken = []
        for lease in credit.leases:
            part = min(lease.left_nano, nano)
            if part <= 0 or now >= lease.expires_at:
                continue
            lease.left_nano -= part
            lease.held_nano += part
            self.held_nano += part
            lease.holds += 1
            credit.taken_nano += part
            nano -= part
            taken.append((lease, part))
        hold.parts += taken
        return taken

    def settle(self, parts: list[tuple[Lease, int]], charged: tuple[int, ...]) -> None:
        counted: list[Lease] = []
        for index, (lease, nano) in enumerate(parts):
            spent = charged[index] if index < len(charged) else 0
            self.held_nano -= nano
            lease.held_nano -= nano
            lease.holds -= 1
            lease.charged_nano += spent
            if spent and lease not in counted:  # two quanta of one lease are one attempt
                counted.append(lease)
                lease.charged_attempts += 1
            rest = nano - spent
            if lease.dead:
                if rest > 0 and lease.holds:
                    self._give_back(lease, rest)
            else:
                lease.left_nano += rest
            if lease.dead and not lease.holds:
                self._closing[lease.id] = lease

    def _sweep(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            self._end(heapq.heappop(self._expiries)[2])

    def _end(self, lease: Lease) -> None:
        """No new holds from now on; what is held stays held."""
        if lease.dead:
            return
        lease.dead = True
        credit = self._credits.get(lease.account)
        if credit is not None:
            credit.leases.remove(lease)
            if not credit.leases and self._clock() >= credit.refused_until:
                del self._credits[lease.account]  # memory follows the accounts in use
        if not lease.holds:
            self._closing[lease.id] = lease
        elif lease.left_nano > 0:
            self._give_back(lease, lease.left_nano)
            lease.left_nano = 0

    # -- calls to billing ------------------------------------------------------------------

    def _refill(self, account: str, credit: _Credit, nano: int, now: float) -> None:
        if account in self._answers or account in self._asked or now < credit.refused_until:
            return
        answer = self._enqueue(account, nano)
        answer.add_done_callback(_seen)

    async def _ask(self, account: str, nano: int) -> None:
        """Wait for one answer of billing. Raises BillingUnreachable."""
        await asyncio.shield(self._enqueue(account, nano))

    def _enqueue(self, account: str, nano: int) -> asyncio.Future[None]:
        largest, total = self._wanted.get(account, (0, 0))
        self._wanted[account] = (max(largest, nano), total + nano)
        answer = self._answers.get(account)
        if answer is None:
            answer = self._answers[account] = asyncio.get_running_loop().create_future()
        if not self._calling:
            self._calling = True
            self._spawn(self._call())
        return answer

    async def _call(self) -> None:
        """Ask for all accounts that want credit, one call after the other, until none does."""
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                answers, self._answers = self._answers, {}
                self._asked = frozenset(wanted)
                try:
                    await self._lease(wanted)
                except RpcError as error:
                    log.warning("no lease: %s", error)
                    for answer in answers.values():
                        if not answer.done():
                            answer.set_exception(BillingUnreachable())
                            answer.add_done_callback(_seen)
                else:
                    for answer in answers.values():
                        if not answer.done():
                            answer.set_result(None)
                finally:
                    for answer in answers.values():
                        answer.cancel()
        finally:
            self._asked = frozenset()
            self._calling = False

    async def _lease(self, wanted: dict[str, tuple[int, int]]) -> None:
        self._sweep()
        due = [lease for lease in self._closing.values() if lease.account in wanted]
        if due:  # what they did not use is free for the next loan
            await self._close_all(due)
        now = self._clock()
        wants = []
        for account, (largest, total) in wanted.items():
            credit = self._credit(account)
            recent = credit.taken_nano / max(now - credit.taken_since, 1.0)
            credit.taken_nano, credit.taken_since = 0, now
            wants.append(
                LeaseWant(
                    account=account,
                    estimate_nano=largest,
                    burn_nano_per_s=int(recent) + (total if total > largest else 0),
                )
            )
        response = await self._billing.Lease(
            LeaseRequest(edge=self._edge, wants=wants), timeout=self._lease_deadline_s
        )
        for grant in response.grants:
            self._granted(grant)

    def _granted(self, grant: LeaseGrant) -> None:
        now = self._clock()
        credit = self._credit(grant.account)
        stale = grant.credit_epoch < credit.epoch
        credit.epoch = max(credit.epoch, grant.credit_epoch)
        credit.available_nano = max(grant.available_nano, 0)
        credit.told_at = -math.inf if stale else now
        if grant.lease:
            lease = Lease(grant.account, grant, now)
            credit.leases.append(lease)
            credit.refusal, credit.refused_until = "", 0.0
            heapq.heappush(self._expiries, (lease.expires_at, next(self._numbers), lease))
        elif not stale:
            credit.refusal = grant.refusal or "insufficient_credits"
            credit.refused_until = now + self._refusal_remembered_s

    def _give_back(self, lease: Lease, nano: int) -> None:
        """Return part of a lease that something still holds; its closing follows."""

        async def give_back() -> None:
            with contextlib.suppress(RpcError):  # closing the lease returns it in any case
                await self._billing.ReturnLease(
                    ReturnLeaseRequest(edge=self._edge, lease=lease.id, amount_nano=nano),
                    timeout=self._lease_deadline_s,
                )

        self._spawn(give_back())

    async def _close_all(self, leases: list[Lease]) -> bool:
        """Close leases at billing; return whether all are closed now."""
        for start in range(0, len(leases), CLOSES_AT_ONCE):
            closed = await asyncio.gather(
                *(self._close(lease) for lease in leases[start : start + CLOSES_AT_ONCE])
            )
            if not all(closed):
                return False
        return True

    async def _close(self, lease: Lease) -> bool:
        request = CloseLeaseRequest(
            edge=self._edge,
            lease=lease.id,
            charged_attempts=lease.charged_attempts,
            charged_nano=lease.charged_nano,
            in_doubt=lease.in_doubt,
        )
        try:
            await self._billing.CloseLease(request, timeout=self._lease_deadline_s)
        except RpcError as error:
            if error.code is not StatusCode.NOT_FOUND:
                log.warning("lease %s is not closed yet: %s", lease.id, error)
                return False
            log.error("billing does not know lease %s of this edge", lease.id)
        self._closing.pop(lease.id, None)
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _seen(answer: asyncio.Future[None]) -> None:
    """Take note of an outcome that nobody waits for."""
    if not answer.cancelled():
        answer.exception()
