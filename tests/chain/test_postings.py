"""The vault's own doings in the ledger: after every log both say the same of everybody's money."""

from typing import Any

import numpy as np
import pytest

from benchmarks.machine import Machine, Outcome
from benchmarks.vault import (
    ADMIN,
    ARBITER,
    DAY_S,
    DOLLAR,
    HOUR_S,
    HOURLY,
    SETTLER,
    SETTLER_BOND_MIN,
    WATCHER,
    Batch,
    Fill,
    Record,
    Release,
    Vault,
    key,
    order_of,
    record,
    signed,
    wallet,
    window,
)
from engine.records import Event, EventKind, Purse, Side
from settlement import database as db
from settlement import postings
from settlement.errors import LedgerOutOfStep, PostingRefused
from settlement.ledger import Ledger, Log
from settlement.postings import Line
from settlement.releases import RECORD, Records
from tests.chain.test_ledger import deposit, event, numbered

START_S = 1_796_000_400
BUYER, SELLER = 1, 2
STAKE, PENALTY = 20 * DOLLAR, 500 * DOLLAR
CASH, BOND = 1_000 * DOLLAR, 900 * DOLLAR
LEASE = Fill(
    BUYER, SELLER, 20_000, 1_000, window=window(HOURLY, START_S // HOUR_S * HOUR_S),
    buyer_fee=500, seller_fee=200,
)  # fmt: skip


def rows(made: list[Record]) -> Records:
    return np.array(
        [(r.lease, r.buyer, r.seller, r.to_seller, r.to_buyer, r.cost - r.to_seller - r.to_buyer)
         for r in made],
        RECORD,
    )  # fmt: skip


class Exchange:
    """A vault, and a ledger that hears of it: engine events by `book`, logs by `log`."""

    def __init__(self, vault: Vault, ledger: Ledger, database: db.Database) -> None:
        self.vault = vault
        self.ledger = ledger
        self._database = database
        self._deposits = 0
        self._block = 0

    @classmethod
    async def begin(cls, database: db.Database) -> "Exchange":
        vault = Vault(Machine(START_S))
        self = cls(vault, await Ledger.open(database), database)
        vault.fund(BUYER, CASH)
        vault.fund(SELLER, 0, BOND)
        vault.mint(WATCHER, 100 * DOLLAR)
        await self.book(event(0, EventKind.ACCOUNT_OPENED, BUYER))
        await self.book(event(0, EventKind.ACCOUNT_OPENED, SELLER))
        await self.credit(BUYER, CASH)
        await self.credit(SELLER, BOND, Purse.BOND)
        await self.log(postings.pledged(SETTLER_BOND_MIN))
        await self.same()
        return self

    async def book(self, happened: Event) -> None:
        number = self.ledger.watermark.event_number + 1
        await self.ledger.post(numbered([happened._replace(sequence=number)], number))

    async def credit(self, account: int, amount: int, purse: Purse = Purse.CASH) -> None:
        self._deposits += 1
        await self.book(deposit(0, account, amount, self._deposits, purse))

    async def log(self, *lines: list[Line]) -> None:
        self._block += 1
        logs = [Log(self._block, i, 0, found) for i, found in enumerate(lines)]
        assert await self.ledger.post_logs(logs) == len(lines)
        assert await self.ledger.post_logs(logs) == 0, "each once"

    async def settle(self, fills: list[Fill]) -> Batch:
        """And the engine hears that it is final."""
        batch = self.vault.settle(fills)
        for fill in fills:
            filled = event(
                0, EventKind.FILL, fill.buyer, fill.price, qty_lots=fill.qty, side=Side.BUY,
                counter_account=fill.seller, taker_fee_ppm=fill.buyer_fee,
                maker_fee_ppm=fill.seller_fee,
            )  # fmt: skip
            await self.book(filled)
        cost = sum(fill.cost for fill in fills)
        await self.book(
            event(0, EventKind.ESCROW_CONFIRMED, BUYER, cost, reference=batch.number)
        )  # fmt: skip
        await self.same()
        return batch

    def said(self, done: Outcome, what: str) -> dict[str, Any]:
        [fields] = self.vault.logged(done.logs, what)
        return fields

    async def same(self) -> None:
        """Ledger and vault have the same, to the unit, of every account and of the settler."""
        found = await self._database.rows(
            "SELECT account, bucket, balance_usdc6 FROM ledger_account ORDER BY account, bucket"
        )
        held = {(row["account"], row["bucket"]): row["balance_usdc6"] for row in found}
        for account, has in enumerate(self.vault.accounts()):
            assert held[account, "earnings"] == has["matured"] + has["pending"], account
            if account:
                free = sum(held[account, bucket] for bucket in ("cash", "pending", "leaving"))
                assert (free, held[account, "escrow"], held[account, "bond"]) == (
                    has["free"], has["locked"], has["bond"],
                )  # fmt: skip
        assert held[0, "settler_bond"] == self.vault.settler_bond()
        assert held[0, "owed"] == self.vault.ask("owed", WATCHER)[0]
        assert -held[0, "vault"] == self.vault.tokens_of(self.vault.address)
        assert sum(held.values()) == 0
        for row in await self._database.rows("SELECT * FROM audit"):
            assert row["contradicting"] == 0, row["claim"]
        assert (await self.ledger.trial_balance()) == (0, 0, 0)


@pytest.fixture
async def exchange(database: db.Database) -> Exchange:
    return await Exchange.begin(database)


async def test_a_release_pays_seller_buyer_and_exchange_out_of_escrow_in_one_transaction(
    exchange: Exchange, database: db.Database
) -> None:
    batch = await exchange.settle([LEASE, LEASE._replace(qty=500)])
    exchange.vault.do(wallet(BUYER), "stop", batch.place(1))
    exchange.vault.machine.wait(DAY_S)
    time_s = exchange.vault.ask("lease", 1, 1)[1][0]
    made = [record(0, batch.fills[0]), record(1, batch.fills[1], batch.fills[1].due(time_s))]
    exchange.vault.release(batch, made)
    await exchange.log(postings.released(1, rows(made)))
    await exchange.same()
    lines = await database.rows(
        "SELECT line, to_account, to_bucket FROM transfer WHERE kind = 'release' ORDER BY line"
    )
    assert [tuple(row.values()) for row in lines] == [
        (0, 0, "earnings"), (1, BUYER, "earnings"), (2, SELLER, "earnings"),
    ]  # fmt: skip
    engine = await exchange.ledger.balances()
    assert engine[BUYER].escrow_usdc6 == sum(fill.cost for fill in batch.fills), "as it knows it"
    moved = await exchange.ledger.moved_by_vault()
    assert moved[BUYER, "escrow"] == -engine[BUYER].escrow_usdc6
    for account in (BUYER, SELLER):
        exchange.vault.machine.wait(2 * DAY_S)
        done = exchange.vault.do(WATCHER, "collect", account)
        amount = exchange.said(done, "Collected")["amount"]
        await exchange.log(postings.collected(account, amount))
        await exchange.credit(account, amount)
        await exchange.same()
    fees = exchange.vault.accounts()[0]["matured"]
    exchange.vault.do(ADMIN, "takeFees", ADMIN)
    await exchange.log(postings.fees_taken(fees))
    await exchange.same()


async def test_a_release_that_was_false_is_undone_and_the_settler_pays(exchange: Exchange) -> None:
    batch = await exchange.settle([LEASE, LEASE])
    exchange.vault.machine.wait(DAY_S)
    made = [record(0, LEASE), record(1, LEASE, LEASE.notional // 3)]
    release: Release = exchange.vault.release(batch, made)
    await exchange.log(postings.released(1, rows(made)))
    await exchange.same()
    done = exchange.vault.do(WATCHER, "undoRelease", release.proof(1), batch.place(1))
    taken = exchange.said(done, "SettlerBondTaken")["amount"]
    assert taken == PENALTY
    lease = postings.lease_of(1, 1)
    await exchange.log(postings.undone(1, rows(made[1:])), postings.punished(lease, taken))
    await exchange.credit(BUYER, taken // 4)
    await exchange.credit(SELLER, taken // 4)
    await exchange.same()
    exchange.vault.machine.wait(8 * DAY_S)
    claimed = exchange.said(exchange.vault.do(WATCHER, "claim", batch.place(1)), "Claimed")
    freed = claimed["toSeller"] + claimed["toBuyer"]
    await exchange.log(postings.claimed(lease, BUYER, freed, LEASE.cost - freed))
    await exchange.credit(SELLER, claimed["toSeller"])
    if claimed["toBuyer"]:
        await exchange.credit(BUYER, claimed["toBuyer"])
    await exchange.same()


async def test_a_fill_that_was_asked_about_is_answered_or_void(exchange: Exchange) -> None:
    batch = await exchange.settle([LEASE, LEASE._replace(buyer_order=2, seller_order=2)])
    first, second = postings.lease_of(1, 0), postings.lease_of(1, 1)
    for index, lease in ((0, first), (1, second)):
        exchange.vault.do(WATCHER, "challenge", batch.place(index), [])
        await exchange.log(postings.challenged(lease, STAKE))
        await exchange.same()
    both = [
        signed(order_of(LEASE, is_buy), key(who), exchange.vault.domain)
        for is_buy, who in ((True, BUYER), (False, SELLER))
    ]
    exchange.vault.do(SETTLER, "answer", batch.place(0), LEASE.qty, LEASE.qty, *both)
    await exchange.log(postings.answered(first, STAKE))
    await exchange.same()
    exchange.vault.machine.wait(DAY_S)
    done = exchange.vault.do(
        WATCHER, "voidUnanswered", batch.place(1), LEASE.qty, LEASE.qty
    )  # fmt: skip
    taken = exchange.said(done, "SettlerBondTaken")["amount"]
    await exchange.log(
        postings.refunded(second, STAKE),
        postings.annulled(second, BUYER, LEASE.cost),
        postings.punished(second, taken),
    )
    await exchange.credit(BUYER, LEASE.cost)
    await exchange.credit(BUYER, taken // 4)
    await exchange.credit(SELLER, taken // 4)
    await exchange.same()
    exchange.vault.do(WATCHER, "takeOwed")
    await exchange.log(postings.rewarded(STAKE + taken - 2 * (taken // 4)))
    await exchange.same()


async def test_bonds_are_slashed_taken_back_and_pledged(exchange: Exchange) -> None:
    batch = await exchange.settle([LEASE])
    exchange.vault.do(wallet(BUYER), "reportNonDelivery", batch.place(0))
    done = exchange.vault.do(ARBITER, "slash", batch.place(0), 5 * DOLLAR)
    amount = exchange.said(done, "Slashed")["amount"]
    await exchange.log(postings.slashed(postings.lease_of(1, 0), SELLER, amount))
    await exchange.credit(BUYER, amount)
    await exchange.same()
    exchange.vault.do(wallet(SELLER), "requestBond")
    exchange.vault.do(ADMIN, "requestSettlerBond", DOLLAR)
    exchange.vault.machine.wait(100 * DAY_S)
    rest = exchange.said(exchange.vault.do(wallet(SELLER), "finishBond"), "BondTaken")["amount"]
    await exchange.log(postings.unbonded(SELLER, rest))
    await exchange.same()
    exchange.vault.do(ADMIN, "finishSettlerBond", ADMIN)
    await exchange.log(postings.unpledged(DOLLAR))
    await exchange.same()


@pytest.mark.fault("bond-before-credit")
async def test_a_bond_may_lack_what_is_on_its_way_to_it_and_no_more(
    exchange: Exchange, database: db.Database
) -> None:
    """Two deposits of which the engine has not heard, when all of the bond is taken back."""
    exchange.vault.do(wallet(SELLER), "requestBond")
    exchange.vault.machine.wait(100 * DAY_S)
    exchange.vault.fund(SELLER, 0, 3 * DOLLAR)
    exchange.vault.fund(SELLER, 0, 4 * DOLLAR)
    await database.execute("INSERT INTO vault_owner VALUES ($1, $2)", SELLER, bytes(20))
    for i, amount in enumerate((3 * DOLLAR, 4 * DOLLAR), 1):
        await database.execute(
            "INSERT INTO vault_credit VALUES (2 + $1::bigint, 'deposit', $2, true, $3, $1, 1)",
            *(i, SELLER, amount),
        )
    rest = exchange.said(exchange.vault.do(wallet(SELLER), "finishBond"), "BondTaken")["amount"]
    assert rest == BOND + 7 * DOLLAR
    with pytest.raises(PostingRefused, match="is_negative"):
        await exchange.ledger.post_logs([Log(90, 0, 0, postings.unbonded(SELLER, rest + 1))])
    await exchange.log(postings.unbonded(SELLER, rest))
    assert (await database.rows("SELECT * FROM audit WHERE contradicting > 0")) == []
    assert await exchange.ledger.trial_balance() == (0, 0, 0)
    number = exchange.ledger.watermark.event_number
    both = [
        deposit(number + i, SELLER, amount, 2 + i, Purse.BOND)
        for i, amount in enumerate((3 * DOLLAR, 4 * DOLLAR), 1)
    ]
    await exchange.ledger.post(numbered(both, number + 1))
    await exchange.same()


# --- what cannot be booked ----------------------------------------------------------------------

UNBEARABLE = [
    ("more than is there", "is_negative", Line("release", 9, 1, "escrow", 2, "earnings", 10**9)),
    ("more than a bond", "is_negative", Line("slash", 9, 2, "bond", 0, "vault", BOND + 1)),
    ("from nobody", "no_such_account", Line("release", 9, 7, "escrow", 2, "earnings", 1)),
    ("to nobody", "no_such_account", Line("release", 9, 1, "escrow", 7, "earnings", 1)),
    ("escrow that is cash", "two_ends", Line("release", 9, 1, "escrow", 2, "cash", 1)),
    ("earnings that are cash", "two_ends", Line("collect", 9, 1, "earnings", 1, "cash", 1)),
    ("a bond to another", "two_ends", Line("slash", 9, 2, "bond", 1, "cash", 1)),
    ("the engine's business", "two_ends", Line("deposit", 9, 0, "vault", 1, "cash", 1)),
    ("fees of a trader", "fees_are", Line("fees", 9, 2, "earnings", 0, "vault", 1)),
    ("the exchange collects", "fees_are", Line("collect", 9, 0, "earnings", 0, "vault", 1)),
    ("a claim earned", "fees_are", Line("claim", 9, 1, "escrow", 2, "earnings", 1)),
    ("nothing", "amount_usdc6_check", Line("release", 9, 1, "escrow", 2, "earnings", 0)),
    ("backwards", "amount_usdc6_check", Line("release", 9, 1, "escrow", 2, "earnings", -1)),
    ("a stake of nobody's", "is_negative", Line("answer", 9, 0, "stakes", 0, "settler_bond", 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "line"), [case[1:] for case in UNBEARABLE], ids=[case[0] for case in UNBEARABLE]
)
async def test_a_log_the_books_cannot_bear_is_refused_with_its_neighbours(
    exchange: Exchange, database: db.Database, why: str, line: Line
) -> None:
    await exchange.settle([LEASE])
    good = Line("release", 9, BUYER, "escrow", SELLER, "earnings", 30)
    for lines in ([good, line], [line, good]):
        with pytest.raises(PostingRefused, match=why):
            await exchange.ledger.post_logs([Log(90, 0, 0, lines)])
    assert await exchange.ledger.moved_by_vault() == {
        (0, "vault"): -SETTLER_BOND_MIN, (0, "settler_bond"): SETTLER_BOND_MIN,
    }  # fmt: skip
    await exchange.same()
    assert await exchange.ledger.post_logs([Log(90, 0, 0, [good])]) == 1, "and it can go on"
    assert (await Ledger.open(database)).watermark == exchange.ledger.watermark


async def test_nothing_is_below_zero_between_two_lines_of_one_log_either(
    exchange: Exchange,
) -> None:
    await exchange.settle([LEASE])
    pay = Line("release", 9, BUYER, "escrow", SELLER, "earnings", 30)
    spend = Line("collect", 9, SELLER, "earnings", 0, "vault", 30)
    with pytest.raises(PostingRefused, match="not between two lines"):
        await exchange.ledger.post_logs([Log(90, 0, 0, [spend, pay])])
    assert await exchange.ledger.post_logs([Log(90, 0, 0, [pay, spend])]) == 1


async def test_logs_come_in_the_order_of_the_chain(exchange: Exchange) -> None:
    await exchange.settle([LEASE])
    pay = [Line("release", 9, BUYER, "escrow", SELLER, "earnings", 30)]
    for places in ([(90, 1), (90, 0)], [(90, 1), (89, 5)], [(90, 1), (90, 1)]):
        with pytest.raises(LedgerOutOfStep):
            await exchange.ledger.post_logs([Log(*place, 0, pay) for place in places])
    assert await exchange.ledger.post_logs([Log(90, 1, 0, pay), Log(92, 0, 0, pay)]) == 2
    assert await exchange.ledger.post_logs([Log(91, 7, 0, pay)]) == 0, "that one is past"
