"""Challenges of the second vault: nobody is settled into what they have not signed.

Each attack is settled by the settler itself, as a settler who cheats would, and has to end with the
fill void and the settler's bond smaller; each honest settler has to get away with an answer.
"""

from functools import cache
from typing import Any

import pytest

from benchmarks.machine import Machine, Mark, Outcome
from benchmarks.vault import (
    DAY_S,
    DOLLAR,
    HOUR_S,
    HOURLY,
    OWN,
    SETTLER,
    WATCHER,
    Authority,
    Batch,
    Fill,
    Vault,
    domain,
    key,
    order_of,
    record,
    signed,
    signed_root,
    wallet,
    window,
)
from settlement.chain import address_of
from settlement.errors import ContractRejected
from tests.chain.test_vault_v2 import refused, solvent

START_S = 1_796_000_400
HOUR = window(HOURLY, START_S - START_S % HOUR_S)
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SESSION = key(77)
TRADE, READ = 2, 1


@cache
def _built() -> tuple[Vault, Mark]:
    vault = Vault(Machine(START_S))
    for number in (1, 2, 3):
        vault.fund(number, 1_000 * DOLLAR, 100 * DOLLAR)
    vault.mint(WATCHER, 1_000 * DOLLAR)
    return vault, vault.machine.mark()


@pytest.fixture
def vault() -> Vault:
    vault, mark = _built()
    vault.machine.reset(mark)
    vault.head = vault.releases = 0
    return vault


def fill(**changed: Any) -> Fill:
    base = Fill(1, 2, 24_150, 160, 7, HOUR, 11, 22, 500, 200)
    return base._replace(**changed)


def orders(vault: Vault, made: Fill, **changed: Any) -> list[Any]:
    """What both parties have signed, each with its wallet."""
    return [
        signed(order_of(made, is_buy, **changed), key(account), vault.domain)
        for is_buy, account in ((True, made.buyer), (False, made.seller))
    ]


def ask(vault: Vault, batch: Batch, index: int = 0, earlier: list[Any] | None = None) -> Outcome:
    return vault.do(WATCHER, "challenge", batch.place(index), earlier or [])


def answer(vault: Vault, batch: Batch, buy: Any, sell: Any, index: int = 0) -> Outcome:
    qty = batch.fills[index].qty
    return vault.do(SETTLER, "answer", batch.place(index), qty, qty, buy, sell)


def void(vault: Vault, batch: Batch, index: int = 0, bought: int = 0, sold: int = 0) -> None:
    """Nobody answers: everything that must follow does."""
    made = batch.fills[index]
    call = (batch.place(index), bought or made.qty, sold or made.qty)
    with refused("WindowOpen"):
        vault.do(WATCHER, "voidUnanswered", *call)
    vault.machine.wait(DAY_S // 2)
    before, bond = vault.accounts(), vault.settler_bond()
    vault.do(WATCHER, "voidUnanswered", *call)
    after = vault.accounts()
    part = 125 * DOLLAR
    assert after[made.buyer]["free"] == before[made.buyer]["free"] + made.cost + part
    assert after[made.buyer]["locked"] == before[made.buyer]["locked"] - made.cost
    assert after[made.seller]["free"] == before[made.seller]["free"] + part
    assert bond - vault.settler_bond() == 500 * DOLLAR
    assert vault.ask("owed", WATCHER) == (270 * DOLLAR,)
    with refused("NoSuchDispute"):
        vault.do(WATCHER, "voidUnanswered", *call)
    with refused("LeaseClosed", batch.number, index):
        ask(vault, batch, index)
    vault.machine.wait(DAY_S)
    with refused("LeaseClosed", batch.number, index):
        vault.release(batch, [record(index, made)])
    vault.machine.wait(30 * DAY_S)
    with refused("LeaseClosed", batch.number, index):
        vault.do(WATCHER, "claim", batch.place(index))
    solvent(vault, owed=270 * DOLLAR)
    vault.do(WATCHER, "takeOwed")
    solvent(vault)


# --- the game -------------------------------------------------------------------------------


def test_a_fill_that_nobody_ordered_is_void_and_the_bond_pays(vault: Vault) -> None:
    batch = vault.settle([fill(), fill(buyer=3)])
    ask(vault, batch)
    assert vault.tokens_of(WATCHER) == 980 * DOLLAR
    solvent(vault, stakes=20 * DOLLAR)
    void(vault, batch)


def test_a_fill_that_both_ordered_stands_and_the_stake_is_the_settlers(vault: Vault) -> None:
    batch = vault.settle([fill(), fill(buyer=3)])
    before, bond = vault.accounts(), vault.settler_bond()
    ask(vault, batch)
    with refused("AlreadyAsked"):
        ask(vault, batch)
    answer(vault, batch, *orders(vault, fill()))
    assert vault.settler_bond() == bond + 20 * DOLLAR
    assert vault.accounts() == before
    with refused("AlreadyAsked"):  # what was answered is answered
        ask(vault, batch)
    for call in (
        lambda: answer(vault, batch, *orders(vault, fill())),
        lambda: vault.do(WATCHER, "voidUnanswered", batch.place(0), 160, 160),
    ):
        with refused("NoSuchDispute"):
            call()
    vault.machine.wait(DAY_S)
    vault.release(batch, [record(0, fill()), record(1, fill(buyer=3))])
    solvent(vault)


def test_a_question_waits_for_nothing_but_its_window(vault: Vault) -> None:
    batch = vault.settle([fill()])
    vault.machine.wait(DAY_S - 1)
    mark = vault.machine.mark()
    ask(vault, batch)
    vault.machine.wait(1)
    with refused("LeaseClosed", 1, 0):  # an open question stops its own lease alone
        vault.release(batch, [record(0, fill())])
    answer(vault, batch, *orders(vault, fill()))
    vault.release(batch, [record(0, fill())])
    vault.machine.reset(mark)
    vault.machine.wait(1)
    with refused("WindowOver"):
        ask(vault, batch)


def test_a_late_answer_counts_until_somebody_voids(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    vault.machine.wait(DAY_S)
    answer(vault, batch, *orders(vault, fill()))
    assert not vault.ask("lease", 1, 0)[0]


def test_a_challenger_puts_the_stake_down(vault: Vault) -> None:
    batch = vault.settle([fill()])
    with pytest.raises(ContractRejected, match="ERC20InsufficientAllowance"):
        vault.do(wallet(8), "challenge", batch.place(0), [])


def test_a_stake_that_does_not_arrive_whole_is_none() -> None:
    vault = Vault(Machine(START_S), "TestToken")
    for number in (1, 2):
        vault.fund(number, 1_000 * DOLLAR)
    batch = vault.settle([fill()])
    vault.mint(WATCHER, 100 * DOLLAR)
    vault.do_token(WATCHER, "setFee", 10_000)
    with refused("DepositOutOfRange"):
        ask(vault, batch)
    solvent(vault)


def test_what_was_not_asked_is_not_answered(vault: Vault) -> None:
    batch = vault.settle([fill()])
    with refused("NoSuchDispute"):
        answer(vault, batch, *orders(vault, fill()))
    with refused("NoSuchDispute"):
        vault.do(WATCHER, "voidUnanswered", batch.place(0), 160, 160)


def test_a_buyer_may_stop_what_is_asked_about_and_not_what_is_void(vault: Vault) -> None:
    first = vault.settle([fill()])
    second = vault.settle([fill(qty=1)])
    ask(vault, second)
    vault.do(wallet(1), "stop", second.place(0))
    ask(vault, second, 0, [first.place(0)])
    vault.machine.wait(DAY_S // 2)
    vault.do(WATCHER, "voidUnanswered", second.place(0), 1, 1)
    with refused("LeaseClosed", 2, 0):
        vault.do(wallet(1), "reportNonDelivery", second.place(0))


@pytest.mark.parametrize(
    "change", [{"qty": 159}, {"price": 24_151}, {"buyer": 3}, {"seller": 3}, {"buyer_order": 12}]
)
def test_a_fill_that_is_not_in_the_batch_cannot_be_asked_about(
    vault: Vault, change: dict[str, int]
) -> None:
    batch = vault.settle([fill(), fill(qty=5), fill(qty=6)])
    number, index, _, path = batch.place(1)
    for place in (
        (number, index, fill(qty=5)._replace(**change).packed, path),
        (number, 0, batch.fills[1].packed, path),
        (number, index + 4, batch.fills[1].packed, path),
        (number + 1, index, batch.fills[1].packed, path),
        (number, index, batch.fills[1].packed, path[:1]),
        (number, index, batch.fills[1].packed, [*path, bytes(32)]),
    ):
        with refused("WrongProof"):
            vault.do(WATCHER, "challenge", place, [])


@pytest.mark.fault("second-preimage")
def test_a_node_of_the_tree_is_no_leaf(vault: Vault) -> None:
    batch = vault.settle([fill(), fill(qty=5), fill(qty=6), fill(qty=7)])
    node = int.from_bytes(batch.tree[1][0], "big")
    with refused("WrongProof"):
        vault.do(WATCHER, "challenge", (1, node >> 240, node % 2**240, [batch.tree[1][1]]), [])


# --- what an answer must show ----------------------------------------------------------------


BAD_ORDERS: list[tuple[str, dict[str, Any]]] = [
    ("NotSigned|KeyNotAllowed", {"account": 3}),
    ("NotSigned|KeyNotAllowed", {"series": 8}),
    ("NotSigned|KeyNotAllowed", {"window": HOUR + 1}),
    ("NotSigned|KeyNotAllowed", {"number": 13}),
    ("OutsideOrder", {"qty": 159}),
    ("OutsideOrder", {"fee_max": 199}),
    ("OutsideOrder", {"valid_until": START_S - DAY_S}),
]


@pytest.mark.parametrize(("said", "change"), BAD_ORDERS)
@pytest.mark.parametrize("is_buy", [True, False])
def test_another_order_is_no_answer(
    vault: Vault, said: str, change: dict[str, Any], is_buy: bool
) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    both = orders(vault, fill())
    account = 1 if is_buy else 2
    both[0 if is_buy else 1] = signed(
        order_of(fill(), is_buy, **change), key(account), vault.domain
    )
    with pytest.raises(ContractRejected, match=said):
        answer(vault, batch, *both)
    void(vault, batch)


def test_a_limit_binds_its_own_side(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    good = orders(vault, fill())
    for is_buy, price in ((True, 24_149), (False, 24_151)):
        both = list(good)
        both[not is_buy] = signed(
            order_of(fill(), is_buy, price=price), key(1 if is_buy else 2), vault.domain
        )
        with refused("OutsideOrder", is_buy):
            answer(vault, batch, *both)
    buy = signed(order_of(fill(), True, price=2**24, qty=2**32 - 1), key(1), vault.domain)
    sell = signed(order_of(fill(), False, price=1, fee_max=200), key(2), vault.domain)
    answer(vault, batch, buy, sell)


def test_the_same_order_of_the_other_side_is_no_answer(vault: Vault) -> None:
    batch = vault.settle([fill(seller=1, seller_order=11, seller_fee=0, buyer_fee=0)])
    ask(vault, batch)
    buy = orders(vault, batch.fills[0])[0]
    with refused("KeyNotAllowed", False):
        answer(vault, batch, buy, buy)


@pytest.mark.fault("high-s")
def test_signatures_that_are_not_exactly_one_are_none(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    buy, sell = orders(vault, fill())
    signature = buy[5]
    high = N - int.from_bytes(signature[32:64], "big")
    flipped = signature[:32] + high.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    for wrong in (flipped, signature[:64], b"", signature[:64] + b"\x1d", bytes(65)):
        with refused("NotSigned", True):
            answer(vault, batch, (*buy[:5], wrong, OWN), sell)
    answer(vault, batch, buy, sell)


@pytest.mark.fault("wrong-chain", "cross-contract-replay")
def test_orders_for_another_chain_or_vault_are_none_here(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    _, sell = orders(vault, fill())
    for separator in (domain(vault.address, 1), domain(vault.token)):
        buy = signed(order_of(fill(), True), key(1), separator)
        with refused("KeyNotAllowed", True):
            answer(vault, batch, buy, sell)
    void(vault, batch)


def test_one_signature_stands_for_a_thousand_orders_and_not_for_one_more(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    wanted = order_of(fill(), True)
    many = [wanted._replace(number=5_000 + i) for i in range(999)]
    many.insert(700, wanted)
    under = signed_root(many, key(1), vault.domain)
    _, sell = orders(vault, fill())
    with refused("KeyNotAllowed", True):  # another order's path
        answer(vault, batch, (*under[700][:4], under[701][4], *under[700][5:]), sell)
    with refused("KeyNotAllowed", True):  # a path to what was not signed as a root
        answer(vault, batch, (*under[700][:4], [], *under[700][5:]), sell)
    assert len(under[700][4]) == 10
    answer(vault, batch, under[700], sell)


# --- session keys ---------------------------------------------------------------------------


def authority(vault: Vault, number: int = 1, **changed: Any) -> Authority:
    terms = Authority(
        key=address_of(SESSION), scopes=TRADE, valid_from=START_S - 5, valid_until=START_S + DAY_S
    )
    return terms._replace(**changed).signed(key(number), vault.domain)


def keyed(vault: Vault, terms: Authority) -> Any:
    return signed(order_of(fill(), True), SESSION, vault.domain, terms)


def test_a_session_key_signs_for_its_wallet(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    mark = vault.machine.mark()
    _, sell = orders(vault, fill())
    answer(vault, batch, keyed(vault, authority(vault)), sell)
    vault.machine.reset(mark)
    under = signed_root(
        [order_of(fill(), True, number=i) for i in (9, 11)], SESSION, vault.domain,
        authority(vault, markets_hash=b"\7" * 32, nonce=9),
    )  # fmt: skip
    answer(vault, batch, under[1], sell)


def test_a_key_that_may_not_trade_signs_nothing(vault: Vault) -> None:
    batch = vault.settle([fill()])
    ask(vault, batch)
    _, sell = orders(vault, fill())
    good = authority(vault)
    for wrong in (
        authority(vault, scopes=READ),
        authority(vault, valid_from=START_S + DAY_S),
        authority(vault, valid_until=START_S - DAY_S),
        authority(vault, number=3),
        authority(vault, key=address_of(key(78))),
        good._replace(valid_until=2**60),
        OWN,
    ):
        with refused("KeyNotAllowed", True):
            answer(vault, batch, keyed(vault, wrong), sell)
    answer(vault, batch, keyed(vault, good), sell)


def test_a_key_named_on_chain_signs_until_it_is_taken_back(vault: Vault) -> None:
    session = address_of(SESSION)
    vault.do(wallet(1), "authoriseKey", session, START_S + 90 * DAY_S)
    with refused("TooEarly"):  # what fills rely on is not shortened behind them
        vault.do(wallet(1), "authoriseKey", session, START_S + DAY_S)
    _, sell = orders(vault, fill())
    by_key = keyed(vault, OWN._replace(key=session))
    first = vault.settle([fill()])
    ask(vault, first)
    vault.do(wallet(1), "revokeKey", session)
    answer(vault, first, by_key, sell)
    vault.machine.wait(DAY_S - 1)
    second = vault.settle([fill()])  # matched before: a day is given for it
    ask(vault, second)
    vault.machine.wait(1)
    third = vault.settle([fill()])
    ask(vault, third)
    answer(vault, second, by_key, sell)
    with refused("KeyNotAllowed", True):
        answer(vault, third, by_key, sell)
    with refused("KeyNotAllowed", True):  # nor by what the wallet has signed for it
        answer(vault, third, keyed(vault, authority(vault, valid_until=2**40)), sell)
    for function, arguments in (("revokeKey", ()), ("authoriseKey", (2**40,))):
        with refused("KeyIsRevoked"):
            vault.do(wallet(1), function, session, *arguments)
    void(vault, third)


def test_a_key_named_on_chain_ends_by_itself(vault: Vault) -> None:
    session = address_of(SESSION)
    vault.do(wallet(1), "authoriseKey", session, START_S + DAY_S)
    _, sell = orders(vault, fill())
    vault.machine.wait(2 * DAY_S + 60)
    batch = vault.settle([fill()])
    ask(vault, batch)
    with refused("KeyNotAllowed", True):
        answer(vault, batch, keyed(vault, OWN._replace(key=session)), sell)


# --- more than was ordered ------------------------------------------------------------------


@pytest.mark.fault("overfill-across-batches")
@pytest.mark.parametrize("is_buy", [True, False])
def test_an_order_filled_beyond_its_quantity_in_another_batch_is_void(
    vault: Vault, is_buy: bool
) -> None:
    own = {"buyer_order": 11} if is_buy else {"seller_order": 22}
    other = {"seller_order": 33} if is_buy else {"buyer_order": 33}
    first = vault.settle([fill(qty=100, **own), fill(qty=1)])
    second = vault.settle([fill(qty=5), fill(qty=60, **own, **other)])
    over = second.fills[1]
    earlier = [first.place(0), first.place(1), second.place(0)]
    vault.do(WATCHER, "challenge", second.place(1), earlier)
    bought, sold = (166, 60) if is_buy else (60, 166)
    both = [
        signed(order_of(over, True, qty=bought - is_buy), key(1), vault.domain),
        signed(order_of(over, False, qty=sold - (not is_buy)), key(2), vault.domain),
    ]
    with refused("OutsideOrder", is_buy):
        vault.do(SETTLER, "answer", second.place(1), bought, sold, *both)
    mark = vault.machine.mark()
    enough = [
        signed(order_of(over, True, qty=166), key(1), vault.domain),
        signed(order_of(over, False, qty=166), key(2), vault.domain),
    ]
    vault.do(SETTLER, "answer", second.place(1), bought, sold, *enough)
    vault.machine.reset(mark)
    void(vault, second, 1, bought, sold)


def test_evidence_is_earlier_of_the_same_order_and_counts_once(vault: Vault) -> None:
    first = vault.settle([fill(), fill(buyer=3, seller=3), fill(series=8), fill(window=HOUR + 1)])
    second = vault.settle([fill(), fill(qty=1), fill(qty=2)])
    for earlier in (
        [second.place(1)],  # itself
        [second.place(2)],  # a later one
        [second.place(0), first.place(0)],
        [first.place(0), first.place(0)],
    ):
        with refused("EvidenceOutOfOrder"):
            ask(vault, second, 1, earlier)
    for index in (1, 2, 3):
        with refused("NotEvidence", 0):
            ask(vault, second, 1, [first.place(index)])
    wrong = (1, 0, fill(qty=9).packed, first.place(0)[3])
    with refused("WrongProof", 1, 0):
        ask(vault, second, 1, [wrong])
    ask(vault, first)
    mark = vault.machine.mark()
    ask(vault, second, 1, [first.place(0)])  # also while it is asked about itself
    vault.machine.reset(mark)
    vault.machine.wait(DAY_S // 2)
    vault.do(WATCHER, "voidUnanswered", first.place(0), 160, 160)
    with refused("NotEvidence", 0):  # and when it is void
        ask(vault, second, 1, [first.place(0)])
    ask(vault, second, 1, [second.place(0)])


def test_questions_about_one_fill_do_not_stand_in_each_others_way(vault: Vault) -> None:
    first = vault.settle([fill()])
    second = vault.settle([fill(qty=1)])
    ask(vault, second)
    ask(vault, second, 0, [first.place(0)])
    assert vault.ask("lease", 2, 0)[1][2] == 2
    answer(vault, second, *orders(vault, fill(qty=1)))
    assert vault.ask("lease", 2, 0)[0], "one question is still open"
    void(vault, second, 0, 161, 161)


def test_who_asked_of_a_fill_that_is_void_already_gets_the_stake_back(vault: Vault) -> None:
    first = vault.settle([fill()])
    second = vault.settle([fill(qty=1)])
    ask(vault, second)
    ask(vault, second, 0, [first.place(0)])
    vault.machine.wait(DAY_S // 2)
    vault.do(WATCHER, "voidUnanswered", second.place(0), 1, 1)
    with refused("LeaseClosed", 2, 0):
        vault.do(SETTLER, "answer", second.place(0), 161, 161, *orders(vault, fill(qty=161)))
    bond = vault.settler_bond()
    vault.do(WATCHER, "voidUnanswered", second.place(0), 161, 161)
    assert vault.settler_bond() == bond
    assert vault.ask("owed", WATCHER) == (290 * DOLLAR,)
    solvent(vault, owed=290 * DOLLAR)


# --- flaws that need no answer ----------------------------------------------------------------


def flawed(vault: Vault, made: Fill) -> None:
    batch = vault.settle([made])
    before, bond = vault.accounts(), vault.settler_bond()
    vault.do(WATCHER, "voidFlawed", batch.place(0))
    after = vault.accounts()
    assert bond - vault.settler_bond() == 500 * DOLLAR
    assert after[made.buyer]["locked"] == before[made.buyer]["locked"] - made.cost
    with refused("LeaseClosed"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))
    vault.machine.wait(DAY_S)
    with refused("LeaseClosed"):
        vault.release(batch, [record(0, made)])
    solvent(vault, owed=250 * DOLLAR)


@pytest.mark.fault("cancelled-order-settled")
@pytest.mark.parametrize("number", [1, 2])
def test_a_cancelled_order_that_is_settled_is_void(vault: Vault, number: int) -> None:
    limit = 12 if number == 1 else 23
    vault.do(wallet(number), "cancelBelow", limit)
    with refused("NotBelow", limit):
        vault.do(wallet(number), "cancelBelow", limit)
    with refused("TooEarly"):
        vault.do(wallet(number), "cancelBelow", limit + 1)
    vault.machine.wait(DAY_S - 1)
    batch = vault.settle([fill()])  # matched before: a day is given for it
    vault.machine.wait(1)
    with refused("NothingWrong"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))
    mark = vault.machine.mark()
    vault.settle([fill(buyer_order=limit, seller_order=limit)])
    vault.machine.reset(mark)
    vault.head = 1
    vault.do(wallet(number), "cancelBelow", limit + 100)  # the limit before still counts
    flawed(vault, fill())


def test_an_order_above_the_limit_is_not_cancelled(vault: Vault) -> None:
    vault.do(wallet(1), "cancelBelow", 11)
    vault.machine.wait(2 * DAY_S)
    batch = vault.settle([fill()])
    with refused("NothingWrong"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))
    vault.machine.wait(DAY_S)
    with refused("WindowOver"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))


def test_a_seller_who_has_left_sells_nothing(vault: Vault) -> None:
    vault.do(wallet(2), "requestExit")
    vault.machine.wait(7 * DAY_S)
    flawed(vault, fill())


def test_a_seller_whose_bond_goes_sells_nothing(vault: Vault) -> None:
    vault.do(wallet(2), "requestBond")
    batch = vault.settle([fill()])
    with refused("NothingWrong"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))
    vault.machine.wait(DAY_S)
    flawed(vault, fill())


def test_delivery_beyond_the_horizon_is_not_settled(vault: Vault) -> None:
    end_s = START_S - START_S % HOUR_S + 60 * DAY_S
    batch = vault.settle([fill(window=window(HOURLY, end_s - HOUR_S))])
    with refused("NothingWrong"):
        vault.do(WATCHER, "voidFlawed", batch.place(0))
    flawed(vault, fill(window=window(HOURLY, end_s)))


def test_a_settler_without_a_bond_is_punished_as_far_as_it_goes(vault: Vault) -> None:
    fills = [fill(qty=1 + i, window=HOUR + 60 * 24) for i in range(21)]
    batch = vault.settle(fills)
    for index in range(20):
        vault.do(WATCHER, "voidFlawed", batch.place(index))
    assert vault.settler_bond() == 0
    vault.do(WATCHER, "voidFlawed", batch.place(20))
    assert vault.accounts()[1]["locked"] == 0
    assert vault.ask("owed", WATCHER) == (5_000 * DOLLAR,)
    with refused("BondTooLow", 0):
        vault.settle([fill()])
    solvent(vault, owed=5_000 * DOLLAR)


def test_an_answer_that_both_wallets_signed_costs_less_than_eighty_thousand_gas(
    vault: Vault,
) -> None:
    fills = [fill(qty=1 + i % 50, buyer_order=i, seller_order=i) for i in range(1, 5_001)]
    for number in (1, 2):
        vault.mint(wallet(number), 10**12)
        vault.do(wallet(number), "deposit", 10**12, False)
    batch = vault.settle(fills)
    assert len(batch.tree) == 14
    place = 2_345
    vault.do(WATCHER, "challenge", batch.place(place), [])
    made = fills[place]
    both: list[Any] = [
        signed(order_of(made, is_buy), key(number), vault.domain)
        for is_buy, number in ((True, 1), (False, 2))
    ]
    qty = made.qty
    done = vault.do(SETTLER, "answer", batch.place(place), qty, qty, *both)
    assert done.gas <= 80_000
