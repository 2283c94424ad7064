"""What settling on chain costs: the vault, one escrow a fill, and what nobody can beat.

    python -m benchmarks.gas [--json PATH] [--quick] [SECTION ...]

Figures are gas by Prague's rules, the same on every machine: nothing is timed, one run suffices.
Every slot that is written was used before but for those of the batch itself, so that a row is what
an exchange pays day by day. Gas never fails the command, a wrong balance does.

settle, release: batches of so many fills among so many accounts, six tenths of them buyers, at
prices, quantities and order numbers as they come. Naive is one ERC-20 transfer and one record of
three slots a fill. The limit is what the bytes cost by themselves (EIP-7623's floor, or 16 and 4 a
byte and one slot read and written for each account that changes, and the batch's own slot).
dispute: the longest path of the largest batch, both orders signed.
wallet: what users pay themselves.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.machine import Machine
from benchmarks.table import TABLE_COLUMNS, Row, show
from benchmarks.vault import (
    DAY_S,
    DOLLAR,
    HOUR_S,
    HOURLY,
    SETTLER,
    VAULT,
    WATCHER,
    Authority,
    Fill,
    Release,
    Vault,
    key,
    order_of,
    pack,
    record,
    signed,
    signed_root,
    wallet,
    window,
)
from settlement.abi import Interface
from settlement.chain import address_of

START_S: Final = 1_796_000_400
SEED: Final = 7
# (fills, accounts) and the most gas a fill.
SETTLED: Final = ((100, 20, 2_000), (1_000, 100, 1_150), (5_000, 200, 950))
RELEASED: Final = ((100, 20, None), (1_000, 100, None), (5_000, 200, 900))
DISPUTED_MAX: Final = 80_000
ROOT_ORDERS: Final = 1_024
QUICK_FILLS: Final = 1_000
TRANSACTION_GAS: Final = 21_000
SLOT_GAS: Final = 5_000  # read cold and changed
NEW_SLOT_GAS: Final = 22_100
NAIVE: Final = Interface("NaiveEscrow")


def flow(fills: int, accounts: int, seed: int) -> list[Fill]:
    """Sorted by buyer, as the batcher does."""
    chance = random.Random(seed)
    buyers = accounts * 6 // 10
    found = [
        Fill(
            buyer=chance.randint(1, buyers),
            seller=chance.randint(buyers + 1, accounts),
            price=chance.randint(15_000, 60_000),
            qty=chance.choice((100, 200, 400, 800, 1_600, 6_400)),
            series=chance.randint(1, 2_000),
            window=window(HOURLY, (START_S // HOUR_S + chance.randint(0, 200)) * HOUR_S),
            buyer_order=chance.randint(1, 200_000),
            seller_order=chance.randint(1, 200_000),
            buyer_fee=500,
            seller_fee=200,
        )
        for _ in range(fills)
    ]
    return sorted(found)


@cache
def exchange(accounts: int) -> Vault:
    """With every account funded, and paid before."""
    vault = Vault(Machine(START_S))
    for number in range(1, accounts + 1):
        vault.fund(number, 10**6 * DOLLAR, DOLLAR)
    vault.mint(WATCHER, 10**3 * DOLLAR)
    buyers = accounts * 6 // 10
    made = [
        Fill(1 + i % buyers, number, 20_000, 100, 1, window(HOURLY, START_S // HOUR_S * HOUR_S))
        for i, number in enumerate(range(buyers + 1, accounts + 1))
    ]
    made = [f._replace(buyer_fee=500) for f in made]
    batch = vault.settle(made)
    vault.machine.wait(DAY_S)
    vault.release(batch, [record(i, f) for i, f in enumerate(made)])
    return vault


def bytes_gas(data: bytes) -> tuple[int, int]:
    """(the floor, as ordinary calldata)."""
    zeros = data.count(0)
    others = len(data) - zeros
    return TRANSACTION_GAS + 10 * (zeros + 4 * others), TRANSACTION_GAS + 4 * zeros + 16 * others


def limit(data: bytes, changed: int) -> int:
    floor, ordinary = bytes_gas(data)
    return max(floor, ordinary + SLOT_GAS * (changed + 1) + NEW_SLOT_GAS)


@cache
def naive() -> tuple[int, int]:
    """(open, release) of one fill."""
    machine = Machine(START_S)
    token, erc20 = machine.create(SETTLER, "TestUSDC"), Interface("TestUSDC")
    escrow = machine.create(SETTLER, "NaiveEscrow", token)
    for number in (1, 2):
        machine.transact(wallet(1), token, erc20.encode("mint", wallet(number), 10**6 * DOLLAR))
    machine.transact(wallet(1), token, erc20.encode("approve", escrow, 2**255))
    gas = [0, 0]
    for deal in (1, 2):  # the second finds every balance in use
        terms = (wallet(1), 38_640_000, wallet(2), START_S, START_S + HOUR_S, 2**200)
        gas[0] = machine.transact(SETTLER, escrow, NAIVE.encode("open", deal, terms)).gas
        if deal == 1:
            continue
        gas[1] = machine.transact(SETTLER, escrow, NAIVE.encode("release", deal)).gas
    return gas[0], gas[1]


def settle_rows(is_quick: bool) -> list[Row]:
    rows: list[Row] = []
    for count, accounts, most in SETTLED:
        if is_quick and count > QUICK_FILLS:
            continue
        vault = exchange(accounts)
        mark, head = vault.machine.mark(), vault.head
        fills = flow(count, accounts, SEED)
        data = VAULT.encode("settle", head + 1, pack(fills))
        done = vault.do(SETTLER, "settle", head + 1, pack(fills))
        locked = sum(account["locked"] for account in vault.accounts())
        assert locked == sum(fill.cost for fill in fills), "what was locked is what was traded"
        vault.machine.reset(mark)
        gas = done.gas / count
        least = limit(data, len({fill.buyer for fill in fills})) / count
        name = f"settle {count:,} fills, {accounts} accounts"
        rows.append(Row(name, gas, "gas/fill", least, gas / least, f"at most {most:,}",
                        gas <= most))  # fmt: skip
        rows.append(Row("  naive", naive()[0], "gas/fill", least, naive()[0] / least))
    return rows


def release_rows(is_quick: bool) -> list[Row]:
    rows: list[Row] = []
    for count, accounts, most in RELEASED:
        if is_quick and count > QUICK_FILLS:
            continue
        vault = exchange(accounts)
        mark, counts = vault.machine.mark(), (vault.head, vault.releases)
        fills = flow(count, accounts, SEED + 1)
        batch = vault.settle(fills)
        vault.machine.wait(10 * DAY_S)
        release = Release(
            vault.releases + 1, batch.number, [record(i, f) for i, f in enumerate(fills)]
        )
        data = VAULT.encode("release", *release.call)
        done = vault.do(SETTLER, "release", *release.call)
        assert not any(account["locked"] for account in vault.accounts()), "all is released"
        vault.machine.reset(mark)
        vault.head, vault.releases = counts
        gas = done.gas / count
        words = -(-count // 256)
        changed = len({a for f in fills for a in (f.buyer, f.seller)}) + 1
        least = (limit(data, changed) + NEW_SLOT_GAS * words) / count
        name = f"release {count:,} leases, {accounts} accounts"
        target, within = (f"at most {most:,}", gas <= most) if most else ("", None)
        rows.append(Row(name, gas, "gas/lease", least, gas / least, target, within))
        rows.append(Row("  naive", naive()[1], "gas/lease", least, naive()[1] / least))
    return rows


def _by_session_key(vault: Vault, made: Fill, is_buy: bool) -> Any:
    """The order as one of many under one signature of a key that the wallet signed for."""
    session = key(7_777)
    terms = Authority(address_of(session), scopes=2, valid_until=2**40)
    number = made.buyer if is_buy else made.seller
    order = order_of(made, is_buy)
    many = [order._replace(number=2**30 + i) for i in range(ROOT_ORDERS - 1)]
    authority = terms.signed(key(number), vault.domain)
    return signed_root([*many, order], session, vault.domain, authority)[-1]


def dispute_rows(is_quick: bool) -> list[Row]:
    count = QUICK_FILLS if is_quick else 5_000
    vault = exchange(200)
    mark, head = vault.machine.mark(), vault.head
    fills = flow(count, 200, SEED + 2)
    batch = vault.settle(fills)
    place, made = batch.place(count // 3), fills[count // 3]
    asked = vault.do(WATCHER, "challenge", place, [])
    both: list[Any] = [
        signed(order_of(made, is_buy), key(number), vault.domain)
        for is_buy, number in ((True, made.buyer), (False, made.seller))
    ]
    before = vault.machine.mark()
    answered = vault.do(SETTLER, "answer", place, made.qty, made.qty, *both)
    vault.machine.reset(before)
    keyed = [_by_session_key(vault, made, is_buy) for is_buy in (True, False)]
    longest = vault.do(SETTLER, "answer", place, made.qty, made.qty, *keyed)
    vault.machine.reset(before)
    vault.machine.wait(DAY_S)
    voided = vault.do(WATCHER, "voidUnanswered", place, made.qty, made.qty)
    vault.machine.reset(mark)
    vault.head = head
    steps = len(place[3])
    return [
        Row(f"challenge, {steps} steps to the root", asked.gas, "gas"),
        Row("answer: path and both signatures", answered.gas, "gas", None, None,
            f"at most {DISPUTED_MAX:,}", answered.gas <= DISPUTED_MAX),
        Row(f"answer: session keys, roots of {ROOT_ORDERS:,} orders", longest.gas, "gas"),
        Row("void what nobody answered", voided.gas, "gas"),
    ]  # fmt: skip


def wallet_rows(is_quick: bool) -> list[Row]:
    del is_quick  # there is nothing to leave out
    vault = exchange(20)
    mark = vault.machine.mark()
    vault.mint(wallet(1), 10 * DOLLAR)
    deposit = vault.do(wallet(1), "deposit", DOLLAR, False)
    pay = vault.do(SETTLER, "withdraw", 1, 1, DOLLAR)
    ask = vault.do(wallet(1), "requestExit")
    vault.machine.wait(7 * DAY_S)
    leave = vault.do(wallet(1), "finishExit")
    vault.machine.reset(mark)
    found = {"deposit": deposit, "withdrawal": pay, "ask for an exit": ask, "exit": leave}
    return [Row(name, done.gas, "gas") for name, done in found.items()]


SECTIONS: Final = {
    "settle": settle_rows,
    "release": release_rows,
    "dispute": dispute_rows,
    "wallet": wallet_rows,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gas")
    parser.add_argument("sections", nargs="*", metavar="SECTION",
                        help=f"of {', '.join(SECTIONS)}; all if none is named")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured")
    parser.add_argument("--quick", action="store_true", help="leave the largest batches out")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section is named {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    for name in options.sections or SECTIONS:
        rows += SECTIONS[name](options.quick)
    console = Console(width=TABLE_COLUMNS + 20, highlight=False)
    console.print("gas by Prague's rules; bare: what the bytes and slots cost by themselves\n")
    show(console, rows)
    if options.json is not None:
        measured = {
            "quick": options.quick,
            "rows": [row._asdict() for row in rows],
            "within": all(row.within is not False for row in rows),
        }
        options.json.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
