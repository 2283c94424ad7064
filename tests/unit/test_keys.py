"""Session keys and sub-accounts, as somebody attacks them who holds what he should not."""

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from itertools import count
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from compex_client import messages as m
from compex_client.messages import CloseCode, Scope
from compex_client.wallet import (
    EVERY_KEY,
    Domain,
    SessionKey,
    Wallet,
    login_digest,
    session_key_digest,
)

from engine.rejects import Reject
from gateway import auth, keys
from gateway.audit import AUDIT_FILE
from gateway.keys import Keys, KeysError
from gateway.limits import ADDRESSES_MAX, DEFAULT_LIMITS, AddressBuckets
from tests.exchange import (
    ADMINISTRATOR,
    DOMAIN,
    START_NS,
    SYMBOL,
    TICKER,
    Conversation,
    Exchange,
    running_exchange,
    wallet,
)

NOW_S: Final = START_NS // 10**9
OWNER, OTHER = wallet(101), wallet(102)
BOT, STRANGER = wallet(7), wallet(8)
ELSEWHERE: Final = SYMBOL.replace("us-e", "eu-n")
HOURS: Final = [SYMBOL.replace("SPOT", f"H|2026-12-01T{hour}") for hour in (14, 15)]
ALL: Final = Scope.READ | Scope.TRADE | Scope.WITHDRAW
_nonces = count(1)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncGenerator[Exchange]:
    """Four markets, two accounts that have money, bond and capacity."""
    async with running_exchange(tmp_path) as running:
        for symbol in (SYMBOL, ELSEWHERE, *HOURS):
            instrument = await running.list_market(symbol)
            for account in (1, 2):
                if instrument == 1:
                    await running.open_account(account, cash_usdc6=10**9, bond_usdc6=10**9)
                await running.declare(account, instrument, 100_000)
        yield running


def terms_of(owner: Wallet = OWNER, key: Wallet = BOT, **given: Any) -> SessionKey:
    terms = SessionKey(
        owner.address_bytes, key.address_bytes, int(ALL), (), 0, NOW_S + 3_600, next(_nonces)
    )
    return terms._replace(**given)


def signed(
    terms: SessionKey, signer: Wallet = OWNER, domain: Domain = DOMAIN, signature: str = ""
) -> m.Authorise:
    return m.Authorise(
        3,
        "0x" + terms.wallet.hex(),
        "0x" + terms.key.hex(),
        terms.scopes,
        terms.valid_until_s,
        terms.nonce,
        signature or signer.sign_session_key(domain, terms).hex(),
        terms.valid_from_s,
        list(terms.markets),
    )


def authorised(exchange: Exchange, **given: Any) -> SessionKey:
    """OWNER lets BOT act, as told by nobody in particular."""
    terms = terms_of(**given)
    assert acked(exchange.converse().say(signed(terms))).level == "durable"
    return terms


def revoked(owner: Wallet = OWNER, key: bytes = EVERY_KEY, nonce: int = 0) -> m.Revoke:
    name = "" if key == EVERY_KEY else "0x" + key.hex()
    if not nonce:
        return m.Revoke(4, name)
    return m.Revoke(4, name, owner.address, nonce, owner.sign_revocation(DOMAIN, key, nonce).hex())


def acked(replies: list[m.ServerMessage]) -> m.Ack:
    [reply] = replies
    assert isinstance(reply, m.Ack), reply
    return reply


def refused(replies: list[m.ServerMessage]) -> m.Reject:
    [reply] = replies
    assert isinstance(reply, m.Reject), reply
    return reply


def login(
    conversation: Conversation, by: Wallet = BOT, owner: Wallet = OWNER, **given: Any
) -> list[m.ServerMessage]:
    nonce = given.pop("nonce", conversation.hello.nonce)
    signature = by.sign_login(DOMAIN, bytes.fromhex(nonce[2:]), owner.address_bytes).hex()
    request = m.Login(1, owner.address, nonce, signature, key=by.address)
    return conversation.say(msgspec.structs.replace(request, **given))


def bot(exchange: Exchange, **given: Any) -> Conversation:
    """A connection that BOT logged in for OWNER."""
    authorised(exchange, **given)
    conversation = exchange.converse()
    acked(login(conversation, session=3))
    return conversation


async def outcome(exchange: Exchange, who: Conversation, request: m.ClientMessage) -> int:
    """The number of the reject; 0 for an ack."""
    replies = who.say(request)
    await exchange.port.settled()
    replies += who.heard()
    answers = m.Ack | m.Reject | m.Pong | m.ReplaceAck | m.BatchAck
    async with asyncio.timeout(10):
        while not (found := [x for x in replies if isinstance(x, answers)]):
            await asyncio.sleep(0.01)  # it waits for a disk
            replies += who.heard()
    [reply] = found
    return reply.code if isinstance(reply, m.Reject) else 0


# --- what a key may do -------------------------------------------------------------------------
async def test_a_key_trades_for_the_wallet_that_authorised_it(exchange: Exchange) -> None:
    terms = authorised(exchange)
    trader = exchange.converse()
    ack = acked(login(trader))
    assert (ack.account, ack.wallet) == (1, OWNER.address)
    assert ack.keys is not None and [key.nonce for key in ack.keys] == [terms.nonce]
    assert await outcome(exchange, trader, m.New(2, TICKER, "buy", "1", "4")) == 0
    assert len(exchange.desk.feed.open_orders(1)) == 1


REQUESTS: Final[dict[type[m.ClientMessage], tuple[m.ClientMessage, Scope | None]]] = {
    type(request): (request, scope)
    for request, scope in [
        (m.Ping(9), Scope(0)),
        (m.Login(9, OWNER.address, "0x" + "00" * 32, "00"), Scope(0)),
        (m.Authorise(9, OWNER.address, BOT.address, 1, NOW_S + 1, 1, "00"), Scope(0)),
        (m.Revoke(9, BOT.address, OWNER.address, 1, "00"), Scope(0)),
        (m.Subscribe(9, "account"), Scope.READ),
        (m.Unsubscribe(9, "account"), Scope(0)),
        (m.Query(9, "orders"), Scope.READ),
        (m.New(9, TICKER, "buy", "1", "1"), Scope.TRADE),
        (m.Quote(9, TICKER, [("1", "1")]), Scope.TRADE),
        (m.Block(9, HOURS[0], 2, "1", "1"), Scope.TRADE),
        (m.Exclusive(9, [m.Leg(TICKER, "1", "1")]), Scope.TRADE),
        (m.Basket(9, [m.Leg(TICKER, "1", "1")]), Scope.TRADE),
        (m.Amend(9, 1, qty="1"), Scope.TRADE),
        (m.Cancel(9, 1), Scope.TRADE),
        (m.Replace(9, TICKER, "buy", "1", "1", old_order_id=1), Scope.TRADE),
        (m.Batch(9, [m.New(10, TICKER, "buy", "1", "1"), m.Cancel(11, 1)]), Scope.TRADE),
        (m.SignOrders(9, [(1, 1, TICKER, "buy", "1", "1", 0, 1)], "0x" + "00" * 65), Scope.TRADE),
        (m.CancelOnDisconnect(9, 1_000, "account"), Scope.TRADE),
        (m.DeadMan(9, 1_000, "account"), Scope.TRADE),
        (m.Token(9, 60), Scope.READ),
        (m.CancelAll(9), Scope.TRADE),
        (m.Capacity(9, TICKER, "1000"), Scope.TRADE),
        (m.Withdraw(9, "1"), Scope.WITHDRAW),
        (m.Market(9, "halt", TICKER), None),
        (m.FeeTier(9, OWNER.address, 1), None),
    ]
}


def test_every_request_is_in_the_table_of_scopes() -> None:
    assert set(get_args(m.ClientMessage)) == set(auth.SCOPE_OF) == set(REQUESTS)
    assert {kind: scope for kind, (_, scope) in REQUESTS.items()} == auth.SCOPE_OF


@pytest.mark.parametrize("scopes", [Scope(n) for n in range(1, 8)], ids=str)
async def test_a_key_does_what_it_has_the_scope_for_and_nothing_else(
    exchange: Exchange, scopes: Scope
) -> None:
    trader = bot(exchange, scopes=int(scopes))
    for kind, (request, needed) in REQUESTS.items():
        before = exchange.port.ready().last_sequence
        code = await outcome(exchange, trader, request)
        allowed = needed is not None and not needed & ~scopes
        assert (code != Reject.OUT_OF_SCOPE) == allowed, kind
        if not allowed:
            assert exchange.port.ready().last_sequence == before, kind


@pytest.mark.parametrize("what", ["orders", "order", "balances", "keys", "accounts"])
async def test_a_key_that_trades_only_reads_nothing_of_the_account(
    exchange: Exchange, what: m.What
) -> None:
    trader = bot(exchange, scopes=int(Scope.TRADE))
    assert refused(trader.say(m.Query(2, what, order_id=1))).code == Reject.OUT_OF_SCOPE
    assert acked(trader.say(m.Query(3, "markets"))).markets
    assert refused(trader.say(m.Subscribe(4, "account"))).code == Reject.OUT_OF_SCOPE
    assert isinstance(trader.say(m.Subscribe(5, "book", TICKER))[0], m.Ack)


async def test_a_reading_key_is_a_drop_copy(exchange: Exchange) -> None:
    reader = bot(exchange, scopes=int(Scope.READ))
    ack, snapshot = reader.say(m.Subscribe(2, "account"))
    assert isinstance(ack, m.Ack) and isinstance(snapshot, m.AccountSnapshot)
    trader = exchange.converse(OWNER)
    assert await outcome(exchange, trader, m.New(2, TICKER, "buy", "1", "4")) == 0
    assert [x.state for x in reader.heard() if isinstance(x, m.Order)] == ["open"]


async def test_the_administrators_key_administers_nothing(exchange: Exchange) -> None:
    await exchange.open_account(3)
    terms = terms_of(ADMINISTRATOR)
    exchange.desk.keys.authorise(terms, b"\0" * 65, START_NS, lambda _: None)
    trader = exchange.converse()
    acked(login(trader, owner=ADMINISTRATOR))
    assert refused(trader.say(m.Market(2, "halt", TICKER))).code == Reject.OUT_OF_SCOPE


# --- markets -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("patterns", "inside"),
    [
        ([TICKER], {SYMBOL}),
        ([ELSEWHERE], {ELSEWHERE}),
        (["nv.h100-sxm-80g.x8.ib|*|*|SPOT"], {SYMBOL, ELSEWHERE}),
        (["*|us-e|*|*"], {SYMBOL, *HOURS}),
        (["*|*|*|H|*"], {*HOURS}),
        (["*|*|*|*|2026-12-01T15"], {HOURS[1]}),
        (["*|*|*|H"], set[str]()),
        (["*|*|A|*"], set[str]()),
        (["nv.h100|*|*|*"], set[str]()),
        (["*|*|*|*"], {SYMBOL, ELSEWHERE, *HOURS}),
        ([TICKER, HOURS[0]], {SYMBOL, HOURS[0]}),
    ],
    ids=lambda x: " ".join(sorted(x)) or "none",
)
async def test_a_pattern_means_whole_fields(
    exchange: Exchange, patterns: list[str], inside: set[str]
) -> None:
    trader = bot(exchange, markets=tuple(patterns))
    for symbol in (SYMBOL, ELSEWHERE, *HOURS):
        code = await outcome(exchange, trader, m.New(2, symbol, "buy", "1", "1"))
        assert code == (0 if symbol in inside else Reject.MARKET_OUT_OF_SCOPE), symbol


@pytest.mark.parametrize(
    "pattern",
    ["", "h100", "nv.h100*|*|*|SPOT", "*", "*|*|*", "*|*|*|H|*|*", "a b|*|*|*", "µ|*|*|*"],
)
def test_what_is_no_pattern_is_refused_before_anybody_relies_on_it(pattern: str) -> None:
    identity = auth.Identity(DOMAIN, Keys(), lambda n: b"\1" * n, lambda: START_NS)
    with pytest.raises(auth.BadRequest) as caught:
        identity.authorisation(signed(terms_of(markets=(pattern,))))
    assert (caught.value.reject, caught.value.field) == (Reject.INVALID_FIELD, "markets")


@pytest.mark.parametrize(
    "request_",
    [
        m.New(9, ELSEWHERE, "buy", "1", "1"),
        m.New(9, ELSEWHERE, "buy", "1", "1", 77),
        m.New(9, ELSEWHERE, "buy", qty="1", type="stop", stop="2", protection="1", tif="ioc"),
        m.Quote(9, ELSEWHERE, [("1", "1")]),
        m.Quote(9, ELSEWHERE),
        m.Block(9, HOURS[0], 2, "1", "1"),
        m.Exclusive(9, [m.Leg(ELSEWHERE, "1", "1")]),
        m.Exclusive(9, [m.Leg(TICKER, "1", "1"), m.Leg(ELSEWHERE, "1", "1")]),
        m.Exclusive(9, [m.Leg(SYMBOL.replace("us-e", "any"), "1", "1")]),
        m.Basket(9, [m.Leg(TICKER, "1", "1"), m.Leg(ELSEWHERE, "1", "1", "sell")]),
        m.Amend(9, client_id=77, qty="1"),
        m.Cancel(9, client_id=77),
        m.CancelAll(9, ELSEWHERE),
        m.CancelAll(9),
        m.CancelAll(9, session=3),
        m.DeadMan(9, 1_000, "account"),
        m.DeadMan(9, 1_000),
        m.DeadMan(9, 0),
        m.CancelOnDisconnect(9, 1_000, "account"),
        m.CancelOnDisconnect(9, 1_000),
        m.CancelOnDisconnect(9, off=True),
        m.Capacity(9, ELSEWHERE, "1"),
    ],
    ids=lambda r: type(r).__name__,
)
async def test_no_road_leads_to_a_market_out_of_scope(
    exchange: Exchange, request_: m.ClientMessage
) -> None:
    owner = exchange.converse(OWNER)
    placed = m.New(2, ELSEWHERE, "buy", "1", "1", 77)
    assert await outcome(exchange, owner, placed) == 0
    trader = bot(exchange, markets=(TICKER, HOURS[0]))
    before = exchange.port.state_hash(), exchange.port.ready().last_sequence
    assert await outcome(exchange, trader, request_) == Reject.MARKET_OUT_OF_SCOPE
    assert (exchange.port.state_hash(), exchange.port.ready().last_sequence) == before
    assert exchange.desk.absence.armed(1, 3) == []


async def test_within_its_markets_a_key_does_everything(exchange: Exchange) -> None:
    trader = bot(exchange, markets=(TICKER, *HOURS))
    for request in (
        m.New(2, TICKER, "buy", "1", "2", 77),
        m.Amend(3, client_id=77, qty="1"),
        m.Cancel(4, client_id=77),
        m.Quote(5, TICKER, [("1", "1")]),
        m.CancelAll(6, TICKER),
        m.Capacity(7, TICKER, "1000"),
        m.Withdraw(8, "1"),
    ):
        assert await outcome(exchange, trader, request) == 0, request
    seller = exchange.converse(OTHER)
    for symbol in HOURS:
        assert await outcome(exchange, seller, m.New(2, symbol, "sell", "1", "1")) == 0
    assert await outcome(exchange, trader, m.Block(9, HOURS[0], 2, "1", "1")) == 0


async def test_an_order_id_that_is_only_guessed_is_not_cancelled(exchange: Exchange) -> None:
    """It may be that of an order in another market, accepted and not told yet."""
    trader, owner = bot(exchange, markets=(TICKER,)), exchange.converse(OWNER)
    assert owner.say(m.New(2, ELSEWHERE, "buy", "1", "1")) == []
    codes = [refused(trader.say(m.Cancel(9, order_id))).code for order_id in range(1, 50)]
    assert set(codes) == {Reject.UNKNOWN_ORDER}
    await exchange.port.settled()
    assert len(exchange.desk.feed.open_orders(1)) == 1


async def test_an_amendment_that_waited_for_its_order_is_held_to_the_markets(
    exchange: Exchange,
) -> None:
    trader, owner = bot(exchange, markets=(TICKER,)), exchange.converse(OWNER)
    assert owner.say(m.New(2, ELSEWHERE, "buy", "1", "2", 77)) == []
    assert trader.say(m.Amend(9, client_id=77, qty="1")) == []
    inside = m.New(3, TICKER, "buy", "1", "2", 78)
    assert owner.say(inside) == trader.say(m.Amend(10, client_id=78, qty="1")) == []
    await exchange.port.settled()
    await exchange.port.settled()  # of what was submitted when the order was known
    outside, done = trader.heard()
    assert isinstance(outside, m.Reject) and outside.code == Reject.MARKET_OUT_OF_SCOPE
    assert isinstance(done, m.Ack) and (done.id, done.market) == (10, TICKER)
    assert [x.left for x in exchange.desk.feed.open_orders(1)] == ["2", "1"]


# --- signatures --------------------------------------------------------------------------------
async def test_a_key_that_nobody_authorised_logs_nobody_in(exchange: Exchange) -> None:
    thief = exchange.converse()
    reject = refused(login(thief, STRANGER))
    assert (reject.code, reject.recovered) == (Reject.KEY_NOT_AUTHORISED, STRANGER.address)
    nonce = bytes.fromhex(thief.hello.nonce[2:])
    assert reject.digest == "0x" + login_digest(DOMAIN, OWNER.address_bytes, nonce).hex()
    assert reject.nonce != thief.hello.nonce
    assert refused(thief.say(m.Query(5, "balances"))).code == Reject.NOT_LOGGED_IN


async def test_a_key_of_one_wallet_is_no_key_of_another(exchange: Exchange) -> None:
    authorised(exchange)
    assert refused(login(exchange.converse(), owner=OTHER)).code == Reject.KEY_NOT_AUTHORISED
    authorised(exchange, key=STRANGER)
    mixed = refused(login(exchange.converse(), STRANGER, key=BOT.address))
    assert (mixed.code, mixed.recovered) == (Reject.WRONG_WALLET, STRANGER.address)
    # What BOT signed to log in for OWNER does not log it in for OTHER, who authorised it, too.
    exchange.converse().say(signed(terms_of(OTHER), OTHER))
    assert refused(login(exchange.converse(), wallet=OTHER.address)).code == Reject.WRONG_WALLET


async def test_the_wallet_itself_is_none_of_its_keys(exchange: Exchange) -> None:
    reject = refused(exchange.converse().say(signed(terms_of(key=OWNER))))
    assert (reject.code, reject.field) == (Reject.INVALID_FIELD, "key")
    assert refused(login(exchange.converse(), OWNER)).field == "key"
    assert refused(exchange.converse().say(signed(terms_of()._replace(key=EVERY_KEY)))).field


async def test_the_nonce_of_another_connection_logs_no_key_in(exchange: Exchange) -> None:
    authorised(exchange)
    first, second = exchange.converse(), exchange.converse()
    assert refused(login(second, nonce=first.hello.nonce)).code == Reject.NONCE_REPLAYED
    acked(login(first))
    assert refused(login(exchange.converse(), nonce=first.hello.nonce)).code == (
        Reject.NONCE_REPLAYED
    )


@pytest.mark.parametrize(
    "domain", [DOMAIN._replace(chain_id=1), DOMAIN._replace(vault=b"\1" * 20)], ids=str
)
async def test_an_authorisation_for_another_chain_or_vault_is_nobodys(
    exchange: Exchange, domain: Domain
) -> None:
    terms = terms_of()
    reject = refused(exchange.converse().say(signed(terms, domain=domain)))
    assert (reject.code, reject.field) == (Reject.WRONG_WALLET, "signature")
    assert reject.digest == "0x" + session_key_digest(DOMAIN, terms).hex()
    assert reject.recovered not in {"", OWNER.address}


async def test_a_key_cannot_authorise_itself_or_another(exchange: Exchange) -> None:
    for key in (BOT, STRANGER):
        reject = refused(bot(exchange).say(signed(terms_of(key=key), BOT)))
        assert (reject.code, reject.recovered) == (Reject.WRONG_WALLET, BOT.address)


@pytest.mark.parametrize(
    "changed",
    [
        {"scopes": 7}, {"markets": ("*|*|*|*",)}, {"valid_until_s": NOW_S + 9_999},
        {"valid_from_s": 1}, {"nonce": 10**9}, {"key": STRANGER.address_bytes},
        {"wallet": OTHER.address_bytes},
    ],
    ids=str,
)  # fmt: skip
async def test_what_was_signed_cannot_be_changed(
    exchange: Exchange, changed: dict[str, Any]
) -> None:
    terms = terms_of(scopes=1, markets=(TICKER,))
    signature = OWNER.sign_session_key(DOMAIN, terms).hex()
    reject = refused(
        exchange.converse().say(signed(terms._replace(**changed), signature=signature))
    )
    assert reject.code == Reject.WRONG_WALLET
    assert not exchange.desk.keys.of_wallet(OWNER.address_bytes, NOW_S)


ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


SPOILT: Final[dict[str, Callable[[bytes], bytes]]] = {
    "high s": high_s,
    "64 bytes": lambda raw: raw[:64],
    "v 2": lambda raw: raw[:64] + b"\x02",
    "v 29": lambda raw: raw[:64] + b"\x1d",
    "v 37": lambda raw: raw[:64] + b"\x25",
    "66 bytes": lambda raw: raw + b"\0",
    "r 0": lambda raw: bytes(32) + raw[32:],
    "r too large": lambda raw: b"\xff" * 32 + raw[32:],
}


@pytest.mark.parametrize("name", SPOILT)
async def test_what_is_no_canonical_signature_is_refused_everywhere(
    exchange: Exchange, name: str
) -> None:
    spoil = SPOILT[name]
    authorised(exchange)
    first = exchange.converse()
    raw = BOT.sign_login(DOMAIN, bytes.fromhex(first.hello.nonce[2:]), OWNER.address_bytes)
    assert refused(login(first, signature=spoil(raw).hex())).code == Reject.BAD_SIGNATURE
    terms = terms_of()
    spoilt = spoil(OWNER.sign_session_key(DOMAIN, terms)).hex()
    reject = refused(exchange.converse().say(signed(terms, signature=spoilt)))
    assert (reject.code, reject.field) == (Reject.BAD_SIGNATURE, "signature")
    request = revoked(nonce=10**9)
    request.signature = spoil(bytes.fromhex(request.signature)).hex()
    assert refused(exchange.converse().say(request)).code == Reject.BAD_SIGNATURE
    assert exchange.desk.keys.of_wallet(OWNER.address_bytes, NOW_S)


async def test_a_wrong_v_is_the_signature_of_somebody_else(exchange: Exchange) -> None:
    terms = terms_of()
    raw = OWNER.sign_session_key(DOMAIN, terms)
    other = raw[:64] + bytes([55 - raw[64]])
    reject = refused(exchange.converse().say(signed(terms, signature=other.hex())))
    assert reject.code in {Reject.WRONG_WALLET, Reject.BAD_SIGNATURE}


async def test_a_wallet_that_has_deposited_nothing_has_no_keys(exchange: Exchange) -> None:
    reject = refused(exchange.converse().say(signed(terms_of(STRANGER), STRANGER)))
    assert (reject.code, reject.field) == (Reject.NO_ACCOUNT, "wallet")


# --- time --------------------------------------------------------------------------------------
@pytest.mark.parametrize("times", [(0, NOW_S), (0, NOW_S - 1)], ids=str)
async def test_an_authorisation_that_is_over_is_refused(
    exchange: Exchange, times: tuple[int, int]
) -> None:
    terms = terms_of(valid_from_s=times[0], valid_until_s=times[1])
    assert refused(exchange.converse().say(signed(terms))).code == Reject.KEY_EXPIRED


async def test_an_authorisation_that_ends_before_it_begins_is_refused(exchange: Exchange) -> None:
    terms = terms_of(valid_from_s=NOW_S + 9, valid_until_s=NOW_S + 9)
    assert refused(exchange.converse().say(signed(terms))).field == "valid_until_s"


async def test_a_key_is_good_from_its_first_second_until_before_its_last(
    exchange: Exchange,
) -> None:
    authorised(exchange, valid_from_s=NOW_S + 10, valid_until_s=NOW_S + 20)
    assert refused(login(exchange.converse())).code == Reject.KEY_EXPIRED
    exchange.clock.advance_to((NOW_S + 10) * 10**9)
    acked(login(exchange.converse()))
    exchange.clock.advance_to((NOW_S + 20) * 10**9)
    assert refused(login(exchange.converse())).code == Reject.KEY_EXPIRED


@pytest.mark.parametrize("idle", [False, True])
async def test_the_end_of_its_time_ends_an_open_connection(exchange: Exchange, idle: bool) -> None:
    trader = bot(exchange, valid_until_s=NOW_S + 60)
    trader.say(m.Subscribe(2, "account"))
    exchange.clock.advance_to((NOW_S + 60) * 10**9)
    if idle:
        trader.session.heartbeat()
        assert trader.heard() == []
    else:
        reject = refused(trader.say(m.New(3, TICKER, "buy", "1", "1")))
        assert reject.code == Reject.KEY_EXPIRED
    [(code, why)] = trader.closed
    assert code == CloseCode.KEY_EXPIRED and why
    assert trader.say(m.New(4, TICKER, "buy", "1", "1")) == []
    owner = exchange.converse(OWNER)
    assert await outcome(exchange, owner, m.New(2, TICKER, "buy", "1", "1")) == 0
    assert trader.heard() == [], "its stream has ended, too"
    assert len(exchange.desk.feed.open_orders(1)) == 1


# --- nonces and revocation ---------------------------------------------------------------------
async def test_a_nonce_is_used_once_and_never_goes_back(exchange: Exchange) -> None:
    first, second = terms_of(), terms_of()
    anybody = exchange.converse()
    acked(anybody.say(signed(second)))
    for terms in (first, second):
        reject = refused(anybody.say(signed(terms)))
        assert (reject.code, reject.field) == (Reject.NONCE_REPLAYED, "nonce")
    acked(anybody.say(signed(terms_of(key=STRANGER, nonce=first.nonce))))  # it is per key


@pytest.mark.parametrize("key", [EVERY_KEY, BOT.address_bytes], ids=["all", "one"])
@pytest.mark.parametrize("by_signature", [False, True])
async def test_a_revoked_key_is_out_at_once_and_its_authorisation_never_comes_back(
    exchange: Exchange, key: bytes, by_signature: bool
) -> None:
    terms = authorised(exchange)
    trader, reader = exchange.converse(), exchange.converse(OTHER)
    acked(login(trader))
    who = exchange.converse() if by_signature else exchange.converse(OWNER)
    ack = acked(who.say(revoked(key=key, nonce=terms.nonce if by_signature else 0)))
    assert (ack.count, ack.level) == (1, "durable")
    assert [code for code, _ in trader.closed] == [CloseCode.KEY_REVOKED]
    assert trader.say(m.New(2, TICKER, "buy", "1", "1")) == []
    assert refused(login(exchange.converse())).code == Reject.KEY_REVOKED
    assert refused(who.say(signed(terms))).code == Reject.NONCE_REPLAYED
    assert not reader.closed
    authorised(exchange)  # a new one, with a greater nonce
    acked(login(exchange.converse()))
    # ... which the revocation, sent again by whoever saw it, does not revoke.
    if by_signature:
        again = refused(exchange.converse().say(revoked(key=key, nonce=terms.nonce)))
        assert again.code == Reject.NONCE_REPLAYED
        acked(login(exchange.converse()))


@pytest.mark.parametrize("key", [EVERY_KEY, BOT.address_bytes], ids=["all", "one"])
async def test_a_revocation_puts_out_what_was_signed_and_not_shown_yet(
    exchange: Exchange, key: bytes
) -> None:
    kept_back = terms_of()
    acked(exchange.converse(OWNER).say(m.Revoke(
        4, "" if key == EVERY_KEY else BOT.address, nonce=kept_back.nonce
    )))  # fmt: skip
    assert refused(exchange.converse().say(signed(kept_back))).code == Reject.NONCE_REPLAYED
    authorised(exchange)


async def test_a_revocation_that_would_leave_a_key_in_force_is_refused(exchange: Exchange) -> None:
    terms = authorised(exchange)
    for key in (EVERY_KEY, BOT.address_bytes):
        reject = refused(exchange.converse().say(revoked(key=key, nonce=terms.nonce - 1)))
        assert (reject.code, reject.field) == (Reject.NONCE_REPLAYED, "nonce")
    acked(login(exchange.converse()))


@pytest.mark.parametrize("nonce", [0, 1])
async def test_the_wallet_itself_puts_out_keys_whatever_their_nonces_are(
    exchange: Exchange, nonce: int
) -> None:
    authorised(exchange, nonce=m.ID_MAX - 1)
    owner = exchange.converse(OWNER)
    assert acked(owner.say(m.Revoke(4, BOT.address, nonce=nonce))).count == 1
    assert refused(login(exchange.converse())).code == Reject.KEY_REVOKED


async def test_nobody_revokes_the_keys_of_another(exchange: Exchange) -> None:
    authorised(exchange)
    trader = exchange.converse()
    acked(login(trader))
    forged = revoked(nonce=10**9)
    forged.signature = OTHER.sign_revocation(DOMAIN, EVERY_KEY, 10**9).hex()
    assert refused(exchange.converse().say(forged)).code == Reject.WRONG_WALLET
    named = m.Revoke(4, BOT.address, OWNER.address)
    assert refused(exchange.converse(OTHER).say(named)).code == Reject.WRONG_WALLET
    assert refused(exchange.converse().say(m.Revoke(4))).code == Reject.NOT_LOGGED_IN
    assert refused(trader.say(m.Revoke(4))).code == Reject.OUT_OF_SCOPE
    unknown = exchange.converse(OTHER).say(m.Revoke(4, BOT.address))
    assert refused(unknown).code == Reject.KEY_NOT_AUTHORISED
    assert not trader.closed


async def test_what_a_key_is_let_do_anew_holds_at_once_and_less_ends_its_connections(
    exchange: Exchange,
) -> None:
    trader = bot(exchange, scopes=int(Scope.READ), valid_until_s=NOW_S + 60)
    authorised(exchange, scopes=int(Scope.READ | Scope.TRADE))
    exchange.clock.advance_to((NOW_S + 60) * 10**9)
    assert await outcome(exchange, trader, m.New(2, TICKER, "buy", "1", "1")) == 0
    authorised(exchange, scopes=int(Scope.TRADE))
    assert [code for code, _ in trader.closed] == [CloseCode.KEY_REVOKED]


async def test_a_wallet_has_so_many_keys_and_not_one_more(exchange: Exchange) -> None:
    anybody = exchange.converse()
    names = [wallet(1_000 + n) for n in range(keys.KEYS_PER_WALLET_MAX)]
    for key in names:
        acked(anybody.say(signed(terms_of(key=key, valid_until_s=NOW_S + 60))))
    assert refused(anybody.say(signed(terms_of()))).code == Reject.TOO_MANY_KEYS
    acked(anybody.say(signed(terms_of(key=names[0]))))  # in place of its former one
    acked(anybody.say(revoked(key=names[1].address_bytes, nonce=next(_nonces))))
    acked(anybody.say(signed(terms_of())))
    assert refused(anybody.say(signed(terms_of(key=STRANGER)))).code == Reject.TOO_MANY_KEYS
    exchange.clock.advance_to((NOW_S + 60) * 10**9)
    acked(anybody.say(signed(terms_of(key=STRANGER))))
    owner = exchange.converse(OWNER)
    listed = acked(owner.say(m.Query(5, "keys"))).keys or []
    assert {x.key for x in listed} == {k.address for k in (names[0], BOT, STRANGER)}
    assert acked(owner.say(m.Revoke(6))).count == 3


async def test_what_is_kept_for_good_is_limited_and_revoking_is_not(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "STATEMENTS_PER_WALLET_MAX", 2)
    for _ in range(2):
        authorised(exchange)
    anybody = exchange.converse()
    assert refused(anybody.say(signed(terms_of()))).code == Reject.TOO_MANY_KEYS
    never = revoked(key=STRANGER.address_bytes, nonce=9)
    assert refused(anybody.say(never)).code == Reject.TOO_MANY_KEYS
    assert acked(anybody.say(revoked(key=BOT.address_bytes, nonce=next(_nonces)))).count == 1
    acked(anybody.say(revoked(nonce=next(_nonces))))


# --- sub-accounts ------------------------------------------------------------------------------
async def test_a_master_wallet_acts_for_its_sub_accounts_and_they_not_for_it(
    exchange: Exchange,
) -> None:
    terms = terms_of(OTHER, OWNER)
    acked(exchange.converse().say(signed(terms, OTHER)))
    master = exchange.converse()
    assert acked(login(master, OWNER, OTHER)).account == 2
    assert await outcome(exchange, master, m.New(2, TICKER, "buy", "1", "4")) == 0
    assert [len(exchange.desk.feed.open_orders(n)) for n in (1, 2)] == [0, 1]
    assert refused(login(exchange.converse(), OTHER, OWNER)).code == Reject.KEY_NOT_AUTHORISED
    for who in (master, exchange.converse(OWNER)):
        listed = acked(who.say(m.Query(3, "accounts"))).accounts or []
        assert [(x.wallet, x.account) for x in listed] == [(OTHER.address, 2)]
    assert not acked(exchange.converse(OTHER).say(m.Query(3, "accounts"))).accounts


async def test_a_masters_key_is_no_key_of_its_sub_accounts(exchange: Exchange) -> None:
    acked(exchange.converse().say(signed(terms_of(OTHER, OWNER), OTHER)))
    authorised(exchange)  # BOT for OWNER
    assert refused(login(exchange.converse(), owner=OTHER)).code == Reject.KEY_NOT_AUTHORISED


# --- the file ----------------------------------------------------------------------------------
class Told:
    """What became of commits, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Reject | None]] = []
        self._more = asyncio.Event()

    def of(self, name: str) -> Any:
        def done(failure: Reject | None, _keys: int = 0) -> None:
            self.said.append((name, failure))
            self._more.set()

        return done

    async def all(self, many: int) -> None:
        async with asyncio.timeout(30):
            while len(self.said) < many:
                self._more.clear()
                await self._more.wait()


SIGNATURE: Final = bytes(range(65))


async def test_what_was_told_is_there_after_a_start_and_what_was_revoked_stays_out(
    tmp_path: Path,
) -> None:
    path, told = tmp_path / keys.KEYS_FILE, Told()
    store = Keys(path)
    kept, gone = terms_of(markets=(TICKER, "*|*|*|SPOT")), terms_of(key=STRANGER)
    others = terms_of(OTHER, OWNER)
    for terms in (terms_of(key=STRANGER, nonce=gone.nonce - 5), kept, gone, others):
        store.authorise(terms, SIGNATURE, START_NS, told.of("authorised"))
    store.revoke(
        keys.Revocation(OWNER.address_bytes, STRANGER.address_bytes, 0, b""),
        START_NS,
        told.of("revoked"),
    )
    store.revoke(
        keys.Revocation(OTHER.address_bytes, EVERY_KEY, others.nonce, SIGNATURE),
        START_NS,
        told.of("revoked"),
    )
    assert told.said == [], "nobody is told before it is on the disk"
    with pytest.raises(auth.BadRequest):
        store.in_force(kept.wallet, kept.key, NOW_S)
    await told.all(6)
    assert [name for name, failure in told.said if failure is None] == (
        ["authorised"] * 4 + ["revoked"] * 2
    )
    assert store.in_force(kept.wallet, kept.key, NOW_S) == kept
    await store.close()
    store = Keys(path)
    assert store.in_force(kept.wallet, kept.key, NOW_S) == kept
    assert store.of_wallet(OWNER.address_bytes, NOW_S) == [kept]
    assert store.of_signer(OWNER.address_bytes, NOW_S) == []
    for terms in (gone, others):
        with pytest.raises(auth.BadRequest, match="KEY_REVOKED"):
            store.in_force(terms.wallet, terms.key, NOW_S)
    for terms in (kept, gone, others):
        with pytest.raises(auth.BadRequest, match="NONCE_REPLAYED"):
            store.authorise(terms, SIGNATURE, START_NS, told.of("again"))
    await store.close()
    [(signature, scopes)] = sqlite3.connect(path).execute(
        "SELECT signature, scopes FROM authorisations WHERE key = ?", (kept.key,)
    )
    assert (signature, scopes) == (SIGNATURE, kept.scopes), "as it was signed"


AUTHORISE_AND_DIE: Final = """
import asyncio, os, signal, sys
from pathlib import Path
from compex_client.wallet import SessionKey
from gateway.keys import Keys

async def main():
    store, many = Keys(Path(sys.argv[1])), int(sys.argv[2])
    acked = []
    def done(failure):
        acked.append(failure)
        if len(acked) == many:
            os.kill(os.getpid(), signal.SIGKILL)
    for nonce in range(1, many + 9):
        terms = SessionKey(b"o" * 20, b"k" * 20, 7, (), 0, 2**32 - 1, nonce)
        store.authorise(terms, bytes(65), 1, done)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("many", [1, 7])
async def test_what_was_acked_is_there_after_a_kill(tmp_path: Path, many: int) -> None:
    path = tmp_path / keys.KEYS_FILE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AUTHORISE_AND_DIE, str(path), str(many)
    )
    assert await process.wait() == -signal.SIGKILL
    store = Keys(path)
    assert store.in_force(b"o" * 20, b"k" * 20, NOW_S).nonce >= many
    await store.close()


async def test_a_key_revoked_while_it_is_on_its_way_to_the_disk_never_counts(
    tmp_path: Path,
) -> None:
    path, told, terms = tmp_path / keys.KEYS_FILE, Told(), terms_of()
    for store in (Keys(path), Keys(path)):
        if not told.said:
            store.authorise(terms, SIGNATURE, START_NS, told.of("authorised"))
            revocation = keys.Revocation(terms.wallet, EVERY_KEY, 0, b"")
            store.revoke(revocation, START_NS, told.of("revoked"))
            await told.all(2)
        await store.close()
    store = Keys(path)
    with pytest.raises(auth.BadRequest, match="KEY_REVOKED"):
        store.in_force(terms.wallet, terms.key, NOW_S)
    await store.close()


async def test_what_the_disk_does_not_take_is_not_acked(tmp_path: Path) -> None:
    path, told = tmp_path / keys.KEYS_FILE, Told()
    store, terms = Keys(path), terms_of()
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE authorisations")
    other.close()
    store.authorise(terms, SIGNATURE, START_NS, told.of("authorised"))
    await told.all(1)
    assert told.said == [("authorised", Reject.STOPPED)]
    with pytest.raises(auth.BadRequest, match="KEY_NOT_AUTHORISED"):
        store.in_force(terms.wallet, terms.key, NOW_S)
    await store.close()


async def test_the_wait_for_the_disk_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "COMMITS_WAITING_MAX", 2)
    store, told = Keys(tmp_path / keys.KEYS_FILE), Told()
    for owner in (OWNER, OTHER):
        store.authorise(terms_of(owner), SIGNATURE, START_NS, told.of("authorised"))
    with pytest.raises(auth.BadRequest, match="BUSY"):
        store.authorise(terms_of(STRANGER), SIGNATURE, START_NS, told.of("refused"))
    await told.all(2)
    store.authorise(terms_of(), SIGNATURE, START_NS, told.of("authorised"))
    await told.all(3)
    await store.close()


async def test_one_wallet_keeps_no_other_from_revoking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "COMMITS_WAITING_MAX", 4)
    monkeypatch.setattr(keys, "COMMITS_OF_WALLET_MAX", 2)
    store, told = Keys(tmp_path / keys.KEYS_FILE), Told()

    def revoke(owner: Wallet) -> None:
        revocation = keys.Revocation(owner.address_bytes, EVERY_KEY, next(_nonces), b"")
        store.revoke(revocation, START_NS, told.of(owner.address))

    for _ in range(2):
        revoke(OWNER)
    with pytest.raises(auth.BadRequest, match="BUSY"):
        revoke(OWNER)
    revoke(OTHER)
    await told.all(3)
    assert [failure for _, failure in told.said] == [None] * 3
    assert not store.owes_replies
    revoke(OWNER)
    await told.all(4)
    await store.close()


def test_a_file_of_a_later_build_or_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / keys.KEYS_FILE
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(keys.MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(KeysError, match="later build"):
        Keys(path)
    path.write_bytes(b"not a database" * 1_000)
    with pytest.raises(KeysError, match=keys.KEYS_FILE):
        Keys(path)


# --- floods ------------------------------------------------------------------------------------
async def test_a_flood_of_logins_is_limited_for_its_address_alone(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, logins_per_s=1, logins_burst=5)
    now = [0]
    async with running_exchange(tmp_path, limits, lambda: now[0]) as exchange:
        await exchange.open_account(1)
        guesses = exchange.converse()
        codes = [refused(login(guesses, STRANGER)).code for _ in range(20)]
        assert codes.count(Reject.RATE_LIMITED) == 15
        limited = refused(login(exchange.converse()))  # another connection of the same address
        assert (limited.code, limited.retry_ms) == (Reject.RATE_LIMITED, 1_000)
        assert refused(guesses.say(signed(terms_of()))).code == Reject.RATE_LIMITED
        assert refused(guesses.say(revoked(nonce=9))).code == Reject.RATE_LIMITED
        now[0] = 10**9
        late = exchange.converse()
        assert late.login(OWNER).account == 1


async def test_a_flood_without_signatures_is_limited_too_and_leaves_no_more_lines(
    tmp_path: Path,
) -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, logins_per_s=1, logins_burst=7)
    async with running_exchange(tmp_path, limits, lambda: 0) as exchange:
        await exchange.open_account(1)
        watcher = bot(exchange, scopes=int(Scope.READ))
        owner, stranger = exchange.converse(OWNER), exchange.converse(STRANGER)
        nobody = exchange.converse()
        flood = (
            m.Login(2, OWNER.address, nobody.hello.nonce, ""),
            msgspec.structs.replace(signed(terms_of()), signature=""),
            m.Revoke(4),
        )
        codes = [refused(nobody.say(request)).code for _ in range(10) for request in flood]
        assert Reject.RATE_LIMITED not in codes[:3]
        assert codes[3:] == [Reject.RATE_LIMITED] * 27
        assert refused(stranger.say(m.Revoke(5))).code == Reject.RATE_LIMITED, "it has no account"
        assert refused(watcher.say(m.Revoke(5))).code == Reject.RATE_LIMITED, "it is not the wallet"
        assert len((tmp_path / AUDIT_FILE).read_bytes().splitlines()) == 7
        assert acked(owner.say(m.Revoke(6))).count == 1, "its keys can be put out all the same"


def test_each_address_has_its_own_bucket_and_a_network_of_ipv6_one_together() -> None:
    buckets = AddressBuckets(1, 1, lambda: 0)
    addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "", "somewhere"]
    assert [buckets.take(address) for address in addresses] == [0] * len(addresses)
    spent = ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::2", "2001:db8:0:1:ffff::", "", "somewhere"]
    assert all(buckets.take(address) for address in spent)


def test_the_longest_silent_address_is_forgotten_first() -> None:
    buckets = AddressBuckets(1, 1, lambda: 0)
    for n in range(ADDRESSES_MAX):
        assert not buckets.take(f"x{n}")
    assert buckets.take("x0") and not buckets.take("y")
    assert buckets.take("x0") and not buckets.take("x1")
