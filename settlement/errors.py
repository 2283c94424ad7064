"""Every error that settlement raises at a caller, as one tree; nothing else crosses its door.

Invariant: a wrong amount is never papered over, so whatever is not foreseen here is a bug and
crashes. Anybody may import this module.
"""

from typing import Final, NamedTuple


class SettlementError(Exception):
    """Root of everything settlement raises at a caller.

    SettlementError
    ├── ChainError                  the chain, a contract or a transaction
    │   ├── ChainUnavailable        the node does not answer; retry later, the outcome is unknown
    │   ├── ChainMismatch           another chain, or other contracts, than the ones on file
    │   │   └── VaultOutdated       a vault of an earlier version, which a person has to leave
    │   ├── ArtifactError           a committed contract artifact is missing or damaged
    │   ├── TransactionRefused      the node did not take the transaction; nothing changed
    │   │   ├── NonceUsed           its nonce is not the sender's next one
    │   │   └── Underpriced         its fees are below the block's, or those of what it replaces
    │   ├── TransactionNotMined     no receipt in time; the outcome is unknown
    │   ├── TransactionReverted     mined, but without effect
    │   └── ContractRejected        a call or a simulation reverted, with the contract's reason
    │       ├── PartRejected        ... because of one part, which can be left out
    │       │   ├── AccountRejected of one account, in `.account`
    │       │   │   ├── UnknownAccount
    │       │   │   ├── InsufficientFree
    │       │   │   ├── InsufficientLocked
    │       │   │   ├── AccountExiting
    │       │   │   └── TransferRefused the token does not pay the account's owner
    │       │   ├── LeaseClosed     nothing more is paid out of a lease: `.batch` and `.index`
    │       │   ├── NothingToTake   nothing has matured, or somebody else was quicker
    │       │   └── AnswerRejected  a question is over, or what is shown does not answer it
    │       ├── NotNow              ... but later it may not
    │       │   ├── VaultPaused
    │       │   ├── BondTooLow      there is too little behind the settler's word to settle
    │       │   ├── WindowOpen      a batch may still be challenged
    │       │   └── WindowNotOver   no block has come since the end of what a price is of
    │       ├── VaultFrozen         for good: owners leave by themselves
    │       ├── IdOutOfOrder        the vault takes another id first, in `.expected`
    │       │   ├── BatchOutOfOrder the id is not the vault's head + 1
    │       │   └── ReleaseOutOfOrder  the id is not that of the last release + 1
    │       ├── WithdrawalOutOfOrder
    │       ├── NotPermitted        the sender lacks the role
    │       ├── RoundOutOfOrder     the product has a round of this window or a later one
    │       └── NoData              the feed has no such round
    ├── DevchainError               the embedded chain
    │   ├── DevchainInUse           another process has its log open
    │   ├── DamagedLog              bytes in the middle of its log are not what was written
    │   └── DevchainStopped         it was closed, or its log could not be written
    ├── DatabaseError               PostgreSQL
    │   ├── DatabaseUnavailable     it does not answer, or the connection was lost; open again
    │   ├── DatabaseInUse           another process settles into it, or runs its server
    │   │   └── FencedOff           another one has begun to, though we had thought we had the lock
    │   └── SchemaMismatch          its tables are not the ones this version made
    ├── LedgerError                 what the ledger was asked to book; nothing was
    │   ├── PostingRefused          a constraint refused it, such as a negative balance
    │   └── LedgerOutOfStep         the engine's events do not continue the ones booked
    ├── VerifyError                 a settled batch cannot be checked
    │   ├── UnknownBatch            the vault has not settled it
    │   └── DamagedEvidence         a file of signed orders is not one
    └── SettlementHalted            money does not add up, or only a person can go on; `.reason`
    """


class ChainError(SettlementError):
    pass


class ChainUnavailable(ChainError):
    pass


class ChainMismatch(ChainError):
    pass


class VaultOutdated(ChainMismatch):
    pass


class ArtifactError(ChainError):
    pass


class TransactionRefused(ChainError):
    pass


class NonceUsed(TransactionRefused):
    pass


class Underpriced(TransactionRefused):
    pass


class TransactionNotMined(ChainError):
    pass


class TransactionReverted(ChainError):
    pass


class ContractError(NamedTuple):
    """A contract's custom error as it was raised: its name and its arguments by name."""

    name: str
    arguments: dict[str, object]


class ContractRejected(ChainError):
    """A call or a simulation reverted. `reason` is the contract's custom error."""

    def __init__(self, reason: ContractError) -> None:
        said = ", ".join(f"{key}={value}" for key, value in reason.arguments.items())
        super().__init__(f"{reason.name}({said})")
        self.reason = reason


class PartRejected(ContractRejected):
    """One part of it is why it reverted: leave that out and try again."""


class AccountRejected(PartRejected):
    """One account is why it reverted."""

    def __init__(self, reason: ContractError) -> None:
        super().__init__(reason)
        account = reason.arguments["account"]
        assert isinstance(account, int)
        self.account: Final = account


class UnknownAccount(AccountRejected):
    pass


class InsufficientFree(AccountRejected):
    pass


class InsufficientLocked(AccountRejected):
    pass


class AccountExiting(AccountRejected):
    pass


class TransferRefused(AccountRejected):
    pass


class IdOutOfOrder(ContractRejected):
    """Ids of the kind follow each other without a gap, and this is not the next."""

    def __init__(self, reason: ContractError) -> None:
        super().__init__(reason)
        expected = reason.arguments["expected"]
        assert isinstance(expected, int)
        self.expected: Final = expected


class BatchOutOfOrder(IdOutOfOrder):
    pass


class ReleaseOutOfOrder(IdOutOfOrder):
    pass


class WithdrawalOutOfOrder(ContractRejected):
    pass


class NotNow(ContractRejected):
    """Nothing is wrong with what was asked; it may be asked again."""


class VaultPaused(NotNow):
    pass


class BondTooLow(NotNow):
    pass


class WindowOpen(NotNow):
    pass


class WindowNotOver(NotNow):
    pass


class VaultFrozen(ContractRejected):
    pass


class LeaseClosed(PartRejected):
    def __init__(self, reason: ContractError) -> None:
        super().__init__(reason)
        batch, index = reason.arguments["batch"], reason.arguments["index"]
        assert isinstance(batch, int) and isinstance(index, int)
        self.batch: Final = batch
        self.index: Final = index


class NothingToTake(PartRejected):
    pass


class AnswerRejected(PartRejected):
    """Whoever asked may answer, too, and be quicker."""


class NotPermitted(ContractRejected):
    pass


class RoundOutOfOrder(ContractRejected):
    pass


class NoData(ContractRejected):
    pass


class DevchainError(SettlementError):
    pass


class DevchainInUse(DevchainError):
    pass


class DamagedLog(DevchainError):
    pass


class DevchainStopped(DevchainError):
    pass


class DatabaseError(SettlementError):
    pass


class DatabaseUnavailable(DatabaseError):
    pass


class DatabaseInUse(DatabaseError):
    pass


class FencedOff(DatabaseInUse):
    pass


class SchemaMismatch(DatabaseError):
    pass


class LedgerError(SettlementError):
    pass


class PostingRefused(LedgerError):
    pass


class LedgerOutOfStep(LedgerError):
    pass


class VerifyError(SettlementError):
    pass


class UnknownBatch(VerifyError):
    pass


class DamagedEvidence(VerifyError):
    pass


class SettlementHalted(SettlementError):
    """Nothing more is settled until a person has looked; the engine trades on."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"settlement is halted: {reason}")
        self.reason: Final = reason
