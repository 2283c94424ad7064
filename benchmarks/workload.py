"""Seeded order flow: the same commands for the same seed, for tests and for benchmarks.

    python -m benchmarks.workload --seed 7 --commands 100000 --points 100

prints the state hash after each hundredth of these commands. Invariant: nothing but the seed and
the shape decides a command (integers all the way, no clock, no float), and the flow opens its own
accounts and markets, so that any engine can take it from sequence 1. Cancels name orders by the ids
that the engine itself gave, so the flow is drawn while a matcher follows it.
"""

import argparse
import sys
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

import numpy as np

from engine.records import (
    COMMAND,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    Command,
    CommandArray,
    CommandKind,
    EventKind,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
    command_array,
    decode_events,
)
from engine.replay import Matcher
from engine.snapshot import state_hash

START_NS: Final = 1_795_219_200_000_000_000
STEP_NS: Final = 1_000
CASH_USDC6: Final = 10**13
BOND_USDC6: Final = 10**12
# Orders whose ids a cancel may name: old ones are mostly gone, and then it is refused.
REMEMBERED_ORDERS: Final = 4096
DRAWN_AT_ONCE: Final = 256
MIDDLE_TICKS: Final = 25_000


class Shape(NamedTuple):
    """How the flow is mixed; what neither cancels nor is immediate rests until it trades."""

    instruments: int = 8
    accounts: int = 64
    cancel_percent: int = 40
    immediate_percent: int = 10


DEFAULT_SHAPE: Final = Shape()


def opening(shape: Shape = DEFAULT_SHAPE) -> list[Command]:
    """List the markets; open accounts 1.. with cash, bond and capacity in every market."""
    commands = [
        Command(
            kind=CommandKind.LIST_MARKET, instrument=k, order_id=k + 1, price_ticks=10, qty_lots=1
        )
        for k in range(shape.instruments)
    ]
    deposits = 0
    for account in range(1, shape.accounts + 1):
        commands.append(
            Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account << 32)
        )
        for purse, amount in ((Purse.CASH, CASH_USDC6), (Purse.BOND, BOND_USDC6)):
            deposits += 1
            commands.append(
                Command(
                    kind=CommandKind.DEPOSIT,
                    account=account,
                    client_id=deposits,
                    price_ticks=amount,
                    side=purse,
                )
            )
        commands += [
            Command(
                kind=CommandKind.DECLARE_CAPACITY,
                account=account,
                instrument=k,
                qty_lots=QTY_LOTS_MAX,
            )
            for k in range(shape.instruments)
        ]
    return commands


class _Draw:
    """Draws commands; holds the middle price of each market and the ids that cancels may name."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self._random = Random(seed)
        self._shape = shape
        self._middles = [MIDDLE_TICKS + 97 * k for k in range(shape.instruments)]
        self._orders: list[tuple[int, int]] = []  # (account, order id)
        self._client_id = 0

    def command(self) -> Command:
        dice = self._random.randrange(100)
        if dice < self._shape.cancel_percent and self._orders:
            account, order_id = self._orders[self._random.randrange(len(self._orders))]
            return Command(kind=CommandKind.CANCEL, account=account, order_id=order_id)
        immediate = dice >= 100 - self._shape.immediate_percent
        return self._order(TimeInForce.IOC if immediate else TimeInForce.GTC)

    def _order(self, time_in_force: TimeInForce) -> Command:
        draw = self._random.randrange
        instrument = draw(self._shape.instruments)
        middle = self._middles[instrument] + draw(-2, 3)
        self._middles[instrument] = middle = min(max(middle, 1000), PRICE_TICKS_MAX - 1000)
        side = Side(draw(2))
        # Mostly a little behind the middle, sometimes far, sometimes through it.
        behind = min(draw(-8, 64), draw(-8, 600))
        self._client_id += 1
        return Command(
            kind=CommandKind.NEW_ORDER,
            client_id=self._client_id,
            account=1 + draw(self._shape.accounts),
            instrument=instrument,
            side=side,
            price_ticks=middle - behind if side is Side.BUY else middle + behind,
            qty_lots=1 + min(draw(100), draw(100)),
            time_in_force=time_in_force,
            self_trade=SelfTrade(draw(4)),
        )

    def remember(self, account: int, order_id: int) -> None:
        if len(self._orders) < REMEMBERED_ORDERS:
            self._orders.append((account, order_id))
        else:
            self._orders[self._random.randrange(REMEMBERED_ORDERS)] = (account, order_id)


def _stamped(commands: list[Command], first_sequence: int) -> CommandArray:
    return command_array(
        command._replace(sequence=sequence, time_ns=START_NS + STEP_NS * sequence)
        for sequence, command in enumerate(commands, first_sequence)
    )


def _parts(matcher: Matcher, seed: int, count: int, shape: Shape) -> Iterator[CommandArray]:
    """The flow in parts, each given when the matcher has matched it."""
    draw = _Draw(seed, shape)
    first = 1
    pending = opening(shape)
    left = count
    while pending:
        part = _stamped(pending, first)
        first += len(part)
        for events in matcher.match(part):
            for event in decode_events(events):
                if event.kind == EventKind.ACCEPTED:
                    draw.remember(event.account, event.order_id)
        yield part
        pending = [draw.command() for _ in range(min(left, DRAWN_AT_ONCE))]
        left -= len(pending)


def order_flow(seed: int, count: int, shape: Shape = DEFAULT_SHAPE) -> CommandArray:
    """The opening and `count` commands after it.

    Shape (len(opening(shape)) + count,), dtype COMMAND, sequences from 1, read-only.
    """
    joined = b"".join(part.tobytes() for part in _parts(Matcher(), seed, count, shape))
    return np.frombuffer(joined, COMMAND)


def flow_hash(seed: int, count: int, shape: Shape = DEFAULT_SHAPE) -> str:
    """The state hash of an engine that took the whole flow."""
    matcher = Matcher()
    for _ in matcher.match(order_flow(seed, count, shape)):
        pass
    return state_hash(matcher.state)


def flow_hashes(seed: int, count: int, points: int, shape: Shape = DEFAULT_SHAPE) -> Iterator[str]:
    """The state hash after each of so many equal parts of the flow, to the precision with which it
    is drawn; the last one is `flow_hash`. Holds no more of the flow than one part."""
    matcher = Matcher()
    whole = len(opening(shape)) + count
    done = given = 0
    for part in _parts(matcher, seed, count, shape):
        done += len(part)
        while given < points and done * points >= (given + 1) * whole:
            given += 1
            yield state_hash(matcher.state)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workload", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--commands", type=int, required=True)
    parser.add_argument("--points", type=int, default=1)
    options = parser.parse_args()
    for found in flow_hashes(options.seed, options.commands, options.points):
        print(found, flush=True)


if __name__ == "__main__":
    sys.exit(main())
