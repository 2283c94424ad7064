"""The comparison of engine, ledger and vault: any one unit anywhere is a gap with a name."""

from dataclasses import dataclass
from typing import Any

import pytest

from engine.records import Balances
from settlement.follow import Credit
from settlement.ledger import Holdings, Trial
from settlement.outgoing import Payment
from settlement.postings import Bucket
from settlement.reconcile import Sides, compare
from settlement.vault import VaultAccount, VaultState

OWNER = bytes(20)
ENGINE = {
    1: Balances(500, 300, 120, 80, 40, 0, 0, 0),
    2: Balances(0, 0, 0, 0, 0, 60, 30, 10),
}
LEDGER = {1: Holdings(800, 120, 80, 40, 0), 2: Holdings(0, 0, 0, 0, 100)}
# Of 80 in escrow 50 were released: 40 to account 2, which has collected 3 of them, and 10 in fees;
# account 2 had 107 of a bond once and was slashed by 7, all of which the engine knows of.
VAULT = {
    0: VaultAccount(0, OWNER, 0, 0, 0, 0, 4, 6),
    1: VaultAccount(1, OWNER, 960, 30, 0, 0),
    2: VaultAccount(2, OWNER, 0, 0, 93, 0, 30, 7),
}
MOVED: dict[tuple[int, Bucket], int] = {
    (1, "escrow"): -50, (2, "earnings"): 37, (0, "earnings"): 10, (2, "bond"): -7,
    (0, "settler_bond"): 500, (0, "stakes"): 12, (0, "owed"): 8,
}  # fmt: skip
OWNED = 960 + 30 + 93 + 37
TOKENS = OWNED + 10 + 500 + 20
STATE = VaultState(7, 3, bytes(27), 2, 2, 9, 0, 1, 500, 0, False, False, TOKENS)
SOUND = Sides(42, ENGINE, LEDGER, Trial(0, 0, 0), VAULT, STATE, MOVED, (), (), ())


def test_sides_that_agree_are_reconciled() -> None:
    report = compare(SOUND)
    assert report.reconciled
    assert report.ledger_usdc6 == report.vault_usdc6 == OWNED
    assert (report.fees_usdc6, report.settler_bond_usdc6, report.challengers_usdc6) == (10, 500, 20)
    assert report.tokens_usdc6 == report.owned_usdc6 == TOKENS
    assert (report.event_number, report.block_number, report.accounts) == (42, 7, 2)


@dataclass(frozen=True)
class Case:
    """One field of one account, one unit more, and the gap it must make."""

    side: str
    account: int
    field: str
    what: str


CASES = [
    *(Case("engine", 1, f"{f}_usdc6", "cash") for f in ("free", "held")),
    *(Case("engine", 1, f"{f}_usdc6", f) for f in ("pending", "escrow", "leaving")),
    *(Case("engine", 2, f"bond_{f}_usdc6", "bond") for f in ("free", "held", "locked")),
    *(Case("ledger", 1, f"{f}_usdc6", f) for f in ("cash", "pending", "escrow", "leaving")),
    Case("ledger", 2, "bond_usdc6", "bond"),
    *(Case("vault", 1, f"{f}_usdc6", f) for f in ("free", "locked")),
    Case("vault", 2, "bond_usdc6", "bond"),
    *(Case("vault", who, f"{f}_usdc6", "earned") for f in ("matured", "earning") for who in (0, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.side} {c.field}")
@pytest.mark.parametrize("change", [1, -1])
def test_one_unit_anywhere_is_a_gap_of_that_account(case: Case, change: int) -> None:
    side: dict[int, Any] = dict(getattr(SOUND, case.side))
    row = side[case.account]
    side[case.account] = row._replace(**{case.field: getattr(row, case.field) + change})
    report = compare(SOUND._replace(**{case.side: side}))
    assert not report.reconciled
    named = [(gap.account, gap.what) for gap in report.gaps]
    assert (case.account, case.what) in named
    assert all(abs(gap.left_usdc6 - gap.right_usdc6) == 1 for gap in report.gaps)
    assert {account for account, _ in named} <= {case.account, 0}


def test_a_missing_account_is_a_gap_on_every_side() -> None:
    for side in ("ledger", "vault"):
        without = {who: row for who, row in getattr(SOUND, side).items() if who != 1}
        report = compare(SOUND._replace(**{side: without}))
        assert {gap.account for gap in report.gaps} >= {1}, side


def test_tokens_below_what_the_vault_owes_are_a_gap_and_above_it_a_surplus() -> None:
    short = compare(SOUND._replace(state=STATE._replace(token_balance_usdc6=TOKENS - 1)))
    assert [gap.what for gap in short.gaps] == ["tokens"]
    rich = compare(SOUND._replace(state=STATE._replace(token_balance_usdc6=TOKENS + 3)))
    assert rich.reconciled and rich.surplus_usdc6 == 3


@pytest.mark.parametrize("place", [*MOVED, (2, "escrow"), (1, "earnings"), (1, "bond")])
@pytest.mark.parametrize("change", [1, -1])
def test_one_unit_that_moved_otherwise_than_the_logs_say_is_a_gap(
    place: tuple[int, Bucket], change: int
) -> None:
    report = compare(SOUND._replace(moved={**MOVED, place: MOVED.get(place, 0) + change}))
    if place[1] in {"stakes", "owed"}:  # which the vault does not tell: only what is missing shows
        assert bool(report.gaps) == (change > 0)
        return
    assert report.gaps


@pytest.mark.parametrize("trial", [Trial(1, 0, 0), Trial(0, -1, 0), Trial(0, 0, 1)])
def test_books_that_do_not_sum_to_zero_are_a_gap(trial: Trial) -> None:
    assert [gap.account for gap in compare(SOUND._replace(trial=trial)).gaps] == [0]


def test_an_engine_that_could_not_be_read_is_not_reconciled_though_nothing_differs() -> None:
    report = compare(SOUND._replace(engine=None))
    assert not report.gaps and not report.reconciled


def test_what_is_on_its_way_is_counted_to_the_unit() -> None:
    """A deposit not credited (5 cash, 6 bond), a batch and a withdrawal not confirmed (7 and 8)."""
    vault = {
        0: VAULT[0],
        1: VaultAccount(1, OWNER, 960 + 5 - 7 - 8, 30 + 7, 0, 0),
        2: VaultAccount(2, OWNER, 0, 0, 93 + 6, 0, 30, 7),
    }
    on_its_way = SOUND._replace(
        vault=vault,
        state=STATE._replace(token_balance_usdc6=TOKENS + 5 + 6 - 8),
        uncredited=(Credit(3, 1, OWNER, 5, False), Credit(4, 2, OWNER, 6, True)),
        unconfirmed=(Payment("settle", 3, 1, 7), Payment("withdraw", 9, 1, 8)),
    )
    assert compare(on_its_way).reconciled
    assert not compare(on_its_way._replace(uncredited=())).reconciled
    assert not compare(on_its_way._replace(unconfirmed=())).reconciled


def test_what_was_confirmed_of_later_blocks_is_counted_to_the_unit() -> None:
    """A batch and a withdrawal (7 and 8) that the vault had not executed at the block."""
    before = SOUND._replace(
        vault=VAULT | {1: VaultAccount(1, OWNER, 960 + 7 + 8, 30 - 7, 0, 0)},
        state=STATE._replace(token_balance_usdc6=TOKENS + 8),
        ahead=(Payment("settle", 3, 1, 7), Payment("withdraw", 9, 1, 8)),
    )
    assert compare(before).reconciled
    assert not compare(before._replace(ahead=before.ahead[:1])).reconciled
    assert not compare(before._replace(ahead=before.ahead[1:])).reconciled
