"""A private message made of its record is what its event says, for every kind of event."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast, get_args

import msgspec
import numpy as np
import pytest
from compex_client import messages as m
from compex_client.units import price_text, qty_text, usdc_text
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import Catalog
from engine.port import Batch, Subscriber
from engine.records import (
    EVENT,
    Balances,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Side,
    command_array,
    fee_usdc6,
)
from engine.reference import Reference
from engine.rejects import WORDS, Reject
from gateway import facts, feed, history
from gateway.facts import FACT, LEASE_STATES, Fact, aseq_of, last_of_client, time_ns_of
from gateway.feed import Feed
from gateway.history import History, Resume
from gateway.hub import Topic
from gateway.leases import Bought
from gateway.mirror import OpenOrder
from gateway.private import Private
from gateway.wire import MSGPACK
from tests.frames import frames_in
from tests.model.flow import Flow

SEED = 8
LISTENED = 8  # accounts from 1
EPISODES = 16
STEPS = 600
ALL = 1 << 20  # more than any account has
SEEN = set(CancelReason) - {CancelReason.EFFECTS_LIMIT}  # takes too many events
EVERYTHING = {
    *((m.Order, x) for x in ("open", "open AMENDED", "open CONCEALED", "open REFRESHED")),
    *((m.Order, x) for x in ("open WAITING", "open TRIGGERED", "open SELF_TRADE")),
    *((m.Order, f"cancelled {reason.name}") for reason in SEEN),
    *((m.Fill, x) for x in ("maker", "taker")),
    *((m.Transfer, x) for x in get_args(m.TransferKind)),
    *((m.Lease, f"{x} {state}") for x in ("buyer", "operator") for state in LEASE_STATES),
    (m.Lease, "reseller pending"),
    *((m.OrderRejected, x) for x in set(facts.REQUESTS.values())),
    (m.CancelledAll, "whole"),
    *((m.OrderInfo, x) for x in ("filled", "cancelled")),
}
_decode = msgspec.msgpack.Decoder(m.ServerMessage).decode


class AnyCatalog:
    """Names whatever is listed."""

    def ticker(self, product: int) -> str:
        return f"M{product}"

    def symbol(self, product: int) -> str:
        return f"class{product}|us-e|B|SPOT"


class Played:
    """A source of events: the specification, given commands of every kind."""

    def __init__(self) -> None:
        self.reference = Reference()
        self.sequence = self.events = 0
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber, *_: object, **__: object) -> None:
        self._subscribers.append(subscriber)

    def balances(self, account: int) -> Balances:
        return Balances(*(account,) * 8)

    def play(self, step: tuple[Command, ...]) -> list[Event]:
        stamped = [x._replace(sequence=self.sequence + i) for i, x in enumerate(step, 1)]
        self.sequence += len(step)
        events = self.reference.apply_all(stamped)
        array = np.frombuffer(b"".join(event.pack() for event in events), EVENT)
        batch = Batch(self.events + 1, array, events, True, command_array(stamped))
        self.events += len(events)
        for subscriber in self._subscribers:
            subscriber(batch)
        return events


class Spelled(Private):
    """Beside what is told of an event, the message that is meant, field by field."""

    meant: dict[int, list[m.Numbered]]
    closed: dict[tuple[int, int], m.OrderInfo]  # by account and client id
    named: Counter[tuple[int, int]]  # so many orders: here nobody sees to it that it is one

    def mean(self, account: int, make: Callable[..., m.Numbered], **fields: Any) -> None:
        told = self.meant.setdefault(account, [])
        told.append(make(aseq=len(told) + 1, **fields))

    def order(self, order: OpenOrder, event: Event, reason: int = 0) -> None:
        why = "" if event.kind == EventKind.ACCEPTED else EventKind(event.kind).name
        if event.kind == EventKind.CANCELLED:
            why = CancelReason(event.reason).name
        elif event.kind == EventKind.DECREMENTED:
            why = "SELF_TRADE"
        self.mean(
            order.account,
            m.Order,
            order_id=order.order_id,
            client_id=order.client_id,
            market=f"M{self._mirror.markets[order.instrument].product}",
            side="sell" if order.side == Side.SELL else "buy",
            price=price_text(order.price_ticks),
            qty=qty_text(order.qty_lots),
            left=qty_text(order.left_lots),
            state=order.state,
            reason=why,
            shown=order.shown(),
            stop=order.stop(),
            waiting=order.waits,
            sequence=event.sequence,
            time_us=event.time_ns // 1_000,
            expires_s=order.expires_s,
            session=order.session,
        )
        if event.kind == EventKind.ACCEPTED:
            self.named[order.account, order.client_id] += 1
        self._close(order)
        super().order(order, event, reason)

    def _close(self, order: OpenOrder) -> None:
        if order.client_id and order.state != "open":
            self.closed[order.account, order.client_id] = self._mirror.order_info(order)

    def fill(self, maker: OpenOrder, taker: OpenOrder, event: Event) -> None:
        for order, ppm in ((maker, event.maker_fee_ppm), (taker, event.taker_fee_ppm)):
            fee = fee_usdc6(event.price_ticks * event.qty_lots, ppm)
            self.mean(
                order.account,
                m.Fill,
                trade_id=self.event_number,
                order_id=order.order_id,
                client_id=order.client_id,
                market=f"M{self._mirror.markets[event.instrument].product}",
                side="sell" if order.side == Side.SELL else "buy",
                price=price_text(event.price_ticks),
                qty=qty_text(event.qty_lots),
                left=qty_text(order.left_lots),
                liquidity="maker" if order is maker else "taker",
                sequence=event.sequence,
                time_us=event.time_ns // 1_000,
                fee=usdc_text(fee) if ppm else "",
            )
            self._close(order)
        super().fill(maker, taker, event)

    def _lease(
        self,
        buyer: int,
        lease: Bought,
        event: Event,
        state: m.LeaseState,
        batch: int = 0,
        assumed: bool = False,
    ) -> None:
        seller = "reseller" if lease.is_resold else "operator"
        for account, role in ((buyer, "buyer"), (lease.seller, seller)):
            self.mean(
                account,
                m.Lease,
                lease_id=lease.lease_id,
                market=f"M{self._mirror.markets[lease.instrument].product}",
                role=role,
                qty=qty_text(lease.qty_lots),
                price=price_text(lease.price_ticks),
                state=state,
                sequence=event.sequence,
                time_us=event.time_ns // 1_000,
                batch=batch,
                assumed=assumed,
            )
        super()._lease(buyer, lease, event, state, batch, assumed)

    def rejected(self, event: Event, command: Command) -> None:
        if command.kind in facts.REQUESTS and event.account in self._mirror.accounts:
            names_one = command.kind in (CommandKind.CANCEL, CommandKind.AMEND)
            self.mean(
                event.account,
                m.OrderRejected,
                request=facts.REQUESTS[command.kind],
                code=event.reason,
                reason=Reject(event.reason).name,
                message=WORDS[Reject(event.reason)],
                sequence=event.sequence,
                time_us=event.time_ns // 1_000,
                client_id=command.client_id,
                order_id=command.order_id if names_one else 0,
            )
        super().rejected(event, command)

    def cancelled_all(self, event: Event, command: Command) -> None:
        cause = {1: "disconnect", 2: "dead_man"}.get(command.price_ticks, "request")
        if event.account in self._mirror.accounts:
            self.mean(
                event.account,
                m.CancelledAll,
                cause=cause,
                count=event.qty_lots,
                sequence=event.sequence,
                time_us=event.time_ns // 1_000,
                session=command.session,
                partial=event.reason == CancelReason.EFFECTS_LIMIT,
            )
        super().cancelled_all(event, command)

    def transfer(self, event: Event, kind: m.TransferKind, account: int, amount_usdc6: int) -> None:
        self.mean(
            account,
            m.Transfer,
            kind=kind,
            amount=usdc_text(amount_usdc6),
            reference=event.reference,
            sequence=event.sequence,
            time_us=event.time_ns // 1_000,
        )
        super().transfer(event, kind, account, amount_usdc6)


class Ear:
    """A listener who keeps what it is told, and always has room for more."""

    has_room = True
    codec = MSGPACK

    def __init__(self) -> None:
        self.heard: list[m.ServerMessage] = []

    def send(self, frames: bytes) -> None:
        self.heard += [_decode(payload) for _, payload in frames_in(frames)]

    @property
    def numbered(self) -> list[m.Numbered]:
        return [x for x in self.heard if isinstance(x, m.NUMBERED)]


async def everything_from(history: History, account: int, aseq: int) -> list[m.Numbered]:
    ear, arrived = Ear(), asyncio.Event()
    history.resume(Resume(ear, account, 1, lambda: aseq, arrived.set))
    await arrived.wait()
    return ear.numbered


async def fate(history: History, account: int, client_id: int) -> m.OrderInfo | None:
    told: asyncio.Future[m.OrderInfo | None] = asyncio.get_running_loop().create_future()
    assert history.ask_order(account, client_id, told.set_result)
    return await told


async def test_told_at_once_or_later_a_message_is_what_its_event_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(feed, "Private", Spelled)
    monkeypatch.setattr(history, "GROUP_RECORDS", 300)  # some are in the file, others not yet
    seen: Counter[tuple[type, str]] = Counter()
    for episode in range(EPISODES):
        kept = History(tmp_path / f"{episode}.sqlite3")
        played = Played()
        Spelled.meant, Spelled.closed, Spelled.named = {}, {}, Counter()
        told = Feed(played, cast("Catalog", AnyCatalog()), lambda _: None, lambda: None, kept)
        played.subscribe(kept.on_batch)
        ears = {account: Ear() for account in range(1, LISTENED + 1)}
        for account, ear in ears.items():
            told.subscribe(ear, Topic("account", account))
        flow = Flow(Random(SEED * 1_000 + episode), played.reference)
        for _ in range(STEPS):
            flow.observe(played.play(flow.next()))
        for account, meant in Spelled.meant.items():
            assert ears[account].numbered == meant, f"episode {episode}"
            assert await everything_from(kept, account, len(meant)) == meant
            fills = [x for x in meant if isinstance(x, m.Fill)]
            leases = [x for x in meant if isinstance(x, m.Lease)]
            assert kept.fills(account, 0, ALL) == fills
            assert kept.leases(account, 0, ALL) == leases
            seen.update((type(x), _what(x)) for x in meant)
        for (account, client_id), order in Spelled.closed.items():
            if Spelled.named[account, client_id] == 1:
                assert await fate(kept, account, client_id) == order
                seen[type(order), order.state] += 1
        await kept.close()
    assert seen.keys() >= EVERYTHING, EVERYTHING - seen.keys()


def _what(message: m.Numbered) -> str:
    match message:
        case m.Order():
            return f"{message.state} {message.reason}".strip()
        case m.Fill():
            return message.liquidity
        case m.Transfer():
            return message.kind
        case m.Lease():
            return f"{message.role} {message.state}"
        case m.OrderRejected():
            return message.request
        case m.CancelledAll():
            return "partial" if message.partial else "whole"


@given(st.data())
def test_a_record_has_every_field_whatever_its_number(data: st.DataObject) -> None:
    fields = {name: data.draw(st.integers(*_range(name)), name) for name in Fact._fields}
    record = Fact(**fields).pack()
    [row] = np.frombuffer(record, FACT)
    assert {name: int(row[name]) for name in Fact._fields} == fields
    assert (aseq_of(record), time_ns_of(record)) == (fields["aseq"], fields["time_ns"])


def _range(name: str) -> tuple[int, int]:
    info = np.iinfo(FACT[name])
    return int(info.min), int(info.max)


def test_the_last_record_of_a_client_id_is_found_and_no_refusal_or_other_number() -> None:
    kinds = (facts.ORDER, facts.FILL, facts.REJECTED, facts.ORDER)
    records = [Fact(aseq=i, client_id=7 + i // 3, kind=kind).pack() for i, kind in enumerate(kinds)]
    together = b"".join(records)
    assert last_of_client(together, 7) == records[1]
    assert last_of_client(together, 8) == records[3]
    assert last_of_client(together, 9) is None
