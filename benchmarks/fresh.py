"""What only a fresh process can show: the memory a shard takes, and how long the kernel takes.

    python -m benchmarks.fresh kernel           seconds to import and compile or load the kernel
    python -m benchmarks.fresh books COUNT      bytes that COUNT listed markets without orders take
    python -m benchmarks.fresh orders FILE COUNT   bytes that the FILE's first COUNT orders take

Prints one line of JSON. Memory is the growth of the resident set; whatever numpy and the machine
code need is there before the first look at it. `match_all` starts this and reads the answer.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import psutil


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def kernel() -> dict[str, float]:
    begin = time.perf_counter()
    from engine.replay import warm_up

    warm_up()
    return {"seconds": round(time.perf_counter() - begin, 3)}


def books(count: int) -> dict[str, int]:
    """Growth from before there was a shard to when all markets are listed."""
    from engine.records import Command, CommandKind, command_array
    from engine.replay import Matcher, warm_up

    commands = command_array(
        Command(
            kind=CommandKind.LIST_MARKET,
            sequence=k + 1,
            instrument=k,
            order_id=k + 1,
            qty_lots=1,
            price_ticks=1,
        )
        for k in range(count)
    )
    warm_up()
    before = _resident_bytes()
    matcher = Matcher()
    listed = sum(len(events) for events in matcher.match(commands))
    assert listed == count == int(matcher.state["instrument_high"][0])
    return {"bytes": _resident_bytes() - before, "count": count}


def orders(path: Path, count: int) -> dict[str, int]:
    """Growth from before there was a shard to when all orders rest: accounts, money and all."""
    import numpy as np

    from benchmarks.match import RECORD, Replay

    records = np.fromfile(path, RECORD, count)
    Replay(records[:1]).run(0, 1, keep=False)
    before = _resident_bytes()
    replay = Replay(records)
    replay.run(0, count, keep=False)
    resting = int(replay.state["open_orders"][0])
    return {"bytes": _resident_bytes() - before, "count": resting}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fresh")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("kernel")
    what.add_parser("books").add_argument("count", type=int)
    of_orders = what.add_parser("orders")
    of_orders.add_argument("path", type=Path)
    of_orders.add_argument("count", type=int)
    options = parser.parse_args(arguments)
    if options.what == "kernel":
        answer = kernel()
    elif options.what == "books":
        answer = books(options.count)
    else:
        answer = orders(options.path, options.count)
    print(json.dumps(answer))


if __name__ == "__main__":
    sys.exit(main())
