"""One customer's money in four numbers: given, used, on loan, and so what is available."""

from dataclasses import dataclass


@dataclass(slots=True)
class Account:
    """An account's row while its transaction holds the row's lock. Amounts in nano-USD."""

    id: str
    granted_nano: int = 0
    used_nano: int = 0
    reserved_nano: int = 0
    credit_epoch: int = 0
    refused: bool = False
    frozen: bool = False
    told: bool = True
    """False: edges must hear of this account's new state (the `accounts` topic)."""

    @property
    def posted_nano(self) -> int:
        return self.granted_nano - self.used_nano

    @property
    def available_nano(self) -> int:
        """What may be lent; below zero while the account is overdrawn."""
        return self.posted_nano - self.reserved_nano

    def release(self, amount_nano: int) -> None:
        """Credit comes back from a loan unspent: an edge that was refused may ask again."""
        self.reserved_nano -= amount_nano
        if amount_nano and self.refused:
            self.credited()

    def credited(self) -> None:
        """There is more credit than there was: whatever an edge remembers is stale."""
        self.credit_epoch += 1
        self.refused = False
        self.told = False
