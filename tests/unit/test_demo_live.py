"""The crowd of the demonstration goes on, whatever its requests are answered."""

import asyncio
import contextlib
import random
from types import SimpleNamespace
from typing import Any

import pytest
from compex_client import Rejected

from engine.rejects import WORDS, Reject
from gateway.demo import live
from gateway.demo.script import Step

CAPACITY = Step(1, 0, "capacity", "H", qty_lots=300)
LOOKS = 8  # at the only offer; three of them find it sold or refused
OFFER = Step(2, 0, "place", "H", "sell", 20_000, 300, client_id=2)


def refusal(reject: Reject) -> Rejected:
    return Rejected(reject.value, reject.name, WORDS[reject])


class Exchange:
    """One operator's orders by client id; it refuses what it is told to."""

    def __init__(self) -> None:
        self.orders: dict[int, Any] = {}
        self.capacity_lots = 0
        self.refuses = 0
        self.asked = 0
        self.clients = [self]
        self.actors = [SimpleNamespace(key="0x01")]
        self.funded: list[Any] = []
        self.chain = self

    async def fund(self, fundings: list[Any]) -> None:
        self.funded += fundings

    async def order(self, client_id: int) -> Any:
        self.asked += 1
        if client_id not in self.orders:
            raise refusal(Reject.UNKNOWN_ORDER)
        return self.orders[client_id]

    async def perform(self, step: Step) -> None:
        if step.kind == "capacity":
            self.capacity_lots = step.qty_lots
        elif self.refuses:
            self.refuses -= 1
            raise refusal(Reject.INSUFFICIENT_BOND)
        else:
            assert step.client_id not in self.orders
            self.orders[step.client_id] = SimpleNamespace(state="open")


async def test_what_is_sold_is_offered_again_also_after_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "OFFERS_PER_SECOND", 10_000.0)
    exchange: Any = Exchange()
    crowd = live.Crowd(exchange, exchange, [CAPACITY, OFFER], random.Random(1))
    await exchange.perform(OFFER)
    exchange.orders[2].state, exchange.refuses = "filled", 2
    task = asyncio.create_task(crowd.offer_forever())
    async with asyncio.timeout(10):
        while exchange.asked < LOOKS and not task.done():  # noqa: ASYNC110 nobody tells
            await asyncio.sleep(0.001)
    assert not task.done(), task.result()
    assert crowd.refused == len(exchange.funded) == 2, "short of a bond, it brings more"
    assert exchange.capacity_lots == 600, "once for what was sold, however often it was refused"
    assert list(exchange.orders) == [2, 3], "and then it rests"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
