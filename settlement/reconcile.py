"""Engine = ledger = vault, per account and bucket, to the last µUSDC. Pure comparison.

    free   = cash + pending + leaving + what is not credited yet - what is not confirmed yet
             + what was confirmed of later blocks
    locked = escrow - what was released, claimed or void, and the engine has not heard of yet
    bond   = bond - what was slashed or taken back
    earned = what was released - what was collected

Owns what must equal what. Invariant: the three sides are taken at named points (the engine's and
the ledger's at one event number, the vault's at one block), and what is between those points, a
deposit not credited yet, a batch or an exit not confirmed yet, is counted, not excused: a gap of
one unit is a gap. Settlement's service gathers the sides and calls `compare`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from engine.records import Balances
from settlement.follow import Credit
from settlement.ledger import Holdings, Trial
from settlement.outgoing import Payment
from settlement.postings import EXCHANGE, Bucket
from settlement.vault import VaultAccount, VaultState

ALL_ACCOUNTS: Final = 0  # in a gap: of the whole exchange

_CHALLENGERS: Final[tuple[Bucket, ...]] = ("stakes", "owed")
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
    ledger_usdc6: int  # everything users own, by the ledger and what the vault has since moved
    vault_usdc6: int  # everything the vault says they own
    fees_usdc6: int  # the exchange's, in the vault
    settler_bond_usdc6: int
    challengers_usdc6: int  # stakes of open questions, and what is owed for answered ones
    tokens_usdc6: int  # token.balanceOf(vault)
    gaps: tuple[Gap, ...]

    @property
    def reconciled(self) -> bool:
        return self.engine_compared and not self.gaps

    @property
    def surplus_usdc6(self) -> int:
        """Tokens sent to the vault without a deposit: anybody can, they are nobody's, no gap."""
        return self.tokens_usdc6 - self.owned_usdc6

    @property
    def owned_usdc6(self) -> int:
        """All parts that are somebody's."""
        return self.vault_usdc6 + self.fees_usdc6 + self.settler_bond_usdc6 + self.challengers_usdc6


class Sides(NamedTuple):
    """Everything that is compared."""

    event_number: int
    engine: Mapping[int, Balances] | None  # by account; None: not readable at this event number
    ledger: Mapping[int, Holdings]
    trial: Trial
    vault: Mapping[int, VaultAccount]
    state: VaultState
    moved: Mapping[tuple[int, Bucket], int]  # by the vault up to the block, not by the engine
    uncredited: Sequence[Credit]  # in the vault at the block, not in the ledger
    unconfirmed: Sequence[Payment]  # executed by the vault at the block, not in the ledger
    ahead: Sequence[Payment]  # in the ledger, executed by the vault only after the block


def compare(sides: Sides) -> Report:
    gaps: list[Gap] = []
    users = sorted((set(sides.ledger) | set(sides.vault) | set(sides.engine or ())) - {EXCHANGE})
    expected = _expected_in_vault(sides, [EXCHANGE, *users])
    for account in users:
        ledger = sides.ledger.get(account, _NOTHING)
        if sides.engine is not None:
            engine = _as_holdings(sides.engine[account])
            for bucket, a, b in zip(Holdings._fields, engine, ledger, strict=True):
                _note(gaps, account, bucket.removesuffix("_usdc6"), ("engine", a), ("ledger", b))
    for account in (EXCHANGE, *users):
        held = _held(sides.vault.get(account))
        for name, a, b in zip(_Held._fields, expected[account], held, strict=True):
            _note(gaps, account, name.removesuffix("_usdc6"), ("ledger", a), ("vault", b))
    state, moved, trial = sides.state, sides.moved, sides.trial
    bond = ("ledger", moved.get((EXCHANGE, "settler_bond"), 0)), ("vault", state.settler_bond_usdc6)
    _note(gaps, ALL_ACCOUNTS, "settler's bond", *bond)
    report = Report(
        event_number=sides.event_number,
        block_number=state.block_number,
        engine_compared=sides.engine is not None,
        accounts=len(users),
        ledger_usdc6=sum(sum(expected[account]) for account in users) - _on_the_way(sides),
        vault_usdc6=sum(v.total_usdc6 for v in sides.vault.values() if v.account != EXCHANGE),
        fees_usdc6=sum(expected[EXCHANGE]),
        settler_bond_usdc6=state.settler_bond_usdc6,
        challengers_usdc6=sum(moved.get((EXCHANGE, of), 0) for of in _CHALLENGERS),
        tokens_usdc6=state.token_balance_usdc6,
        gaps=(),
    )
    if report.surplus_usdc6 < 0:
        owned = ("vault", report.owned_usdc6)
        _note(gaps, ALL_ACCOUNTS, "tokens", owned, ("token", report.tokens_usdc6))
    _note(gaps, ALL_ACCOUNTS, "balances", ("ledger", trial.balances_usdc6), ("zero", 0))
    _note(gaps, ALL_ACCOUNTS, "postings", ("ledger", trial.postings_usdc6), ("zero", 0))
    different = ("differing accounts", trial.differing_accounts)
    _note(gaps, ALL_ACCOUNTS, "balances and postings", different, ("none", 0))
    return report._replace(gaps=tuple(gaps))


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


class _Held(NamedTuple):
    """One account in the vault, µUSDC."""

    free_usdc6: int
    locked_usdc6: int
    bond_usdc6: int
    earned_usdc6: int


def _held(slots: VaultAccount | None) -> _Held:
    if slots is None:
        return _Held(0, 0, 0, 0)
    earned_usdc6 = slots.matured_usdc6 + slots.earning_usdc6
    return _Held(slots.free_usdc6, slots.locked_usdc6, slots.bond_usdc6, earned_usdc6)


def _expected_in_vault(sides: Sides, accounts: Sequence[int]) -> Mapping[int, _Held]:
    """By account: the ledger, what the vault has moved since, what is between the two."""
    free: Counter[int] = Counter()
    locked: Counter[int] = Counter()
    bond: Counter[int] = Counter()
    for account, h in sides.ledger.items():
        free[account] += h.cash_usdc6 + h.pending_usdc6 + h.leaving_usdc6
        locked[account] += h.escrow_usdc6
        bond[account] += h.bond_usdc6
    for due in sides.uncredited:
        (bond if due.is_bond else free)[due.account] += due.amount_usdc6
    for payments, sign in ((sides.unconfirmed, 1), (sides.ahead, -1)):
        for payment in payments:
            free[payment.account] -= sign * payment.amount_usdc6
            if payment.kind == "settle":
                locked[payment.account] += sign * payment.amount_usdc6
    moved = sides.moved
    return {
        account: _Held(
            free[account],
            locked[account] + moved.get((account, "escrow"), 0),
            bond[account] + moved.get((account, "bond"), 0),
            moved.get((account, "earnings"), 0),
        )
        for account in accounts
    }


def _on_the_way(sides: Sides) -> int:
    """What the vault has done and the ledger does not know of yet, less the other way round."""
    came = sum(due.amount_usdc6 for due in sides.uncredited)
    came -= sum(p.amount_usdc6 for p in sides.unconfirmed if p.kind != "settle")
    return came + sum(p.amount_usdc6 for p in sides.ahead if p.kind != "settle")
