"""How a board counts. Pure. Source of the formulas: docs/rankings.md."""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_USED = "most_used"
MOST_USED_VERSION = "most_used/1"
WINDOW_DAYS = (1, 7, 30)
ROWS_MAX = 50


@dataclass(frozen=True, slots=True)
class Volume:
    """A model's use in one window. Tokens are as each provider counts them."""

    model: str
    prompt_tokens: int
    completion_tokens: int
    requests: int
    accounts: int
    largest_account_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Publication:
    """When a cell may be shown: enough accounts, and none of them nearly all of it."""

    min_accounts: int
    max_account_share: float

    def allows(self, volume: Volume) -> bool:
        if volume.accounts < self.min_accounts:
            return False
        return volume.largest_account_tokens <= self.max_account_share * volume.tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a board. `rank` 0 and no model: `other`, whose accounts are not known here."""

    rank: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    requests: int
    share: float
    accounts: int


@dataclass(frozen=True, slots=True)
class Window:
    """Whole UTC days since 1970, half-open; `partial`: its last day is still running."""

    first_day: int
    end_day: int
    partial: bool


def window(days: int, today: int, running: bool) -> Window:
    """Return the last `days` complete days, or with `running` those that end with today."""
    end_day = today + 1 if running else today
    return Window(end_day - days, end_day, partial=running)


def most_used(volumes: Sequence[Volume], publication: Publication, limit: int) -> list[Row]:
    """Rank models by prompt + completion tokens; what is not shown is in one last row `other`.

    A cell that may not be published is never alone in `other`: the smallest published cell joins
    it, and where there is none, neither is shown.
    """
    used = [volume for volume in volumes if volume.tokens > 0]
    used.sort(key=lambda volume: (-volume.tokens, volume.model))
    shown = [volume for volume in used if publication.allows(volume)]
    suppressed = [volume for volume in used if not publication.allows(volume)]
    beyond = shown[limit:]
    shown = shown[:limit]
    if len(suppressed) == 1 and not beyond:
        if not shown:
            return []
        beyond = [shown.pop()]
    total = sum(volume.tokens for volume in used)
    rows = [_row(rank, volume.model, [volume], total) for rank, volume in enumerate(shown, start=1)]
    rest = beyond + suppressed
    if rest:
        rows.append(_row(0, "", rest, total))
    return rows


def _row(rank: int, model: str, volumes: Sequence[Volume], total: int) -> Row:
    tokens = sum(volume.tokens for volume in volumes)
    return Row(
        rank=rank,
        model=model,
        prompt_tokens=sum(volume.prompt_tokens for volume in volumes),
        completion_tokens=sum(volume.completion_tokens for volume in volumes),
        requests=sum(volume.requests for volume in volumes),
        share=tokens / total,
        accounts=volumes[0].accounts if rank else 0,
    )
