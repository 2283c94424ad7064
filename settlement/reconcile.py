"""Engine = ledger = vault, per account and bucket, to the last µUSDC. Pure comparison.

Owns what must equal what. Invariant: the three sides are taken at named points (the engine's and
the ledger's at one event number, the vault's at one block), and what is between those points, a
deposit not credited yet, a batch or an exit not confirmed yet, is counted, not excused: a gap of
one unit is a gap. Settlement's service gathers the sides and calls `compare`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from engine.records import Balances, Purse
from settlement.chain import Deposit, VaultAccount, VaultState
from settlement.ledger import Holdings, Trial
from settlement.outgoing import Payment

ALL_ACCOUNTS: Final = 0  # in a gap: of the whole exchange

_NOTHING: Final = Holdings(0, 0, 0, 0, 0)


class Gap(NamedTuple):
    """One figure that differs between two sides."""

    account: int  # ALL_ACCOUNTS for a total
    what: str  # the bucket, or the check, in words
    left: str  # which side
    left_usdc6: int
    right: str
    right_usdc6: int

    def __str__(self) -> str:
        whose = f"account {self.account}" if self.account else "all accounts"
        return (
            f"{whose}, {self.what}: {self.left} has {self.left_usdc6} µUSDC,"
            f" {self.right} {self.right_usdc6}"
        )


class Report(NamedTuple):
    """What was compared and what differs."""

    event_number: int  # the ledger's, and the engine's
    block_number: int
    engine_compared: bool  # false if the engine was never quiet long enough to be read
    accounts: int
    ledger_usdc6: int  # everything users own
    vault_usdc6: int  # everything the vault says they own
    tokens_usdc6: int  # token.balanceOf(vault)
    gaps: tuple[Gap, ...]

    @property
    def reconciled(self) -> bool:
        return self.engine_compared and not self.gaps

    @property
    def surplus_usdc6(self) -> int:
        """Tokens sent to the vault without a deposit: anybody can, they are nobody's, no gap."""
        return self.tokens_usdc6 - self.vault_usdc6


class Sides(NamedTuple):
    """Everything that is compared."""

    event_number: int
    engine: Mapping[int, Balances] | None  # by account; None: not readable at this event number
    ledger: Mapping[int, Holdings]
    trial: Trial
    vault: Mapping[int, VaultAccount]
    state: VaultState
    uncredited: Sequence[Deposit]  # in the vault at the block, not in the ledger
    unconfirmed: Sequence[Payment]  # executed by the vault at the block, not in the ledger


def compare(sides: Sides) -> Report:
    gaps: list[Gap] = []
    accounts = sorted(set(sides.ledger) | set(sides.vault) | set(sides.engine or ()))
    expected = _expected_in_vault(sides)
    for account in accounts:
        ledger = sides.ledger.get(account, _NOTHING)
        if sides.engine is not None:
            engine = _as_holdings(sides.engine[account])
            for bucket, a, b in zip(Holdings._fields, engine, ledger, strict=True):
                _note(gaps, account, bucket.removesuffix("_usdc6"), ("engine", a), ("ledger", b))
        slots = sides.vault.get(account)
        held = (slots.free_usdc6, slots.locked_usdc6, slots.bond_usdc6) if slots else (0, 0, 0)
        for name, a, b in zip(("free", "locked", "bond"), expected[account], held, strict=True):
            _note(gaps, account, name, ("ledger", a), ("vault", b))
    ledger_total = sum(sum(holdings) for holdings in sides.ledger.values())
    vault_total = sum(v.free_usdc6 + v.locked_usdc6 + v.bond_usdc6 for v in sides.vault.values())
    tokens = sides.state.token_balance_usdc6
    if tokens < vault_total:
        _note(gaps, ALL_ACCOUNTS, "tokens", ("vault", vault_total), ("token", tokens))
    trial = sides.trial
    _note(gaps, ALL_ACCOUNTS, "balances", ("ledger", trial.balances_usdc6), ("zero", 0))
    _note(gaps, ALL_ACCOUNTS, "postings", ("ledger", trial.postings_usdc6), ("zero", 0))
    different = ("differing accounts", trial.differing_accounts)
    _note(gaps, ALL_ACCOUNTS, "balances and postings", different, ("none", 0))
    return Report(
        sides.event_number,
        sides.state.block_number,
        sides.engine is not None,
        len(accounts),
        ledger_total,
        vault_total,
        tokens,
        tuple(gaps),
    )


def _note(
    gaps: list[Gap], account: int, what: str, left: tuple[str, int], right: tuple[str, int]
) -> None:
    if left[1] != right[1]:
        gaps.append(Gap(account, what, *left, *right))


def _as_holdings(b: Balances) -> Holdings:
    return Holdings(
        cash_usdc6=b.free_usdc6 + b.held_usdc6,
        pending_usdc6=b.pending_usdc6,
        escrow_usdc6=b.escrow_usdc6,
        leaving_usdc6=b.leaving_usdc6,
        bond_usdc6=b.bond_free_usdc6 + b.bond_held_usdc6 + b.bond_locked_usdc6,
    )


def _expected_in_vault(sides: Sides) -> Mapping[int, tuple[int, int, int]]:
    """(free, locked, bond) by account: the ledger and what is on its way between the two."""
    free: Counter[int] = Counter()
    locked: Counter[int] = Counter()
    bond: Counter[int] = Counter()
    for account, h in sides.ledger.items():
        free[account] += h.cash_usdc6 + h.pending_usdc6 + h.leaving_usdc6
        locked[account] += h.escrow_usdc6
        bond[account] += h.bond_usdc6
    for deposit in sides.uncredited:
        purse = bond if deposit.purse == Purse.BOND else free
        purse[deposit.account] += deposit.amount_usdc6
    for payment in sides.unconfirmed:
        free[payment.account] -= payment.amount_usdc6
        if payment.kind == "settle":
            locked[payment.account] += payment.amount_usdc6
    accounts = set(free) | set(sides.vault) | set(sides.engine or ())
    return {account: (free[account], locked[account], bond[account]) for account in accounts}
