"""Commands that come when they come, whoever is ready for them: an open loop.

    python -m benchmarks.arrivals FD FIRST_NS GAP_NS COMMANDS SEED

writes one byte to the pipe FD for each command that is due, as its time comes. Times are a pure
function of the seed, so that who reads the pipe knows them too, and counts a delay from the time a
command was meant to be sent: a slow answer then also delays what waits behind it, and nothing is
left out. A process of its own: one that is measured cannot be trusted with the stopwatch. `acks`
starts it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
HEAD_START_NS: Final = 300_000_000  # the process needs so long until it can send


class Schedule(NamedTuple):
    """When commands are due, by the monotonic clock that all processes share."""

    first_ns: int
    gap_ns: int  # the mean; gaps are drawn evenly from 0 to twice that
    commands: int
    seed: int

    def times_ns(self) -> list[int]:
        draw = Random(self.seed).randrange
        times = [self.first_ns]
        for _ in range(self.commands - 1):
            times.append(times[-1] + draw(2 * self.gap_ns + 1))
        return times


@contextmanager
def arrivals(gap_ns: int, commands: int, seed: int) -> Generator[tuple[int, list[int]]]:
    """The pipe to read from and when each byte in it was due."""
    reader, writer = os.pipe()
    schedule = Schedule(time.monotonic_ns() + HEAD_START_NS, gap_ns, commands, seed)
    words = [str(word) for word in (writer, *schedule)]
    sender = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.arrivals", *words], cwd=ROOT, pass_fds=(writer,)
    )
    os.close(writer)
    try:
        yield reader, schedule.times_ns()
    finally:
        os.close(reader)
        sender.wait()


def send(fd: int, times_ns: Iterable[int]) -> None:
    """One byte at each time, and as many as are due where the system slept for longer."""
    waiting = 0
    for due_ns in times_ns:
        early_ns = due_ns - time.monotonic_ns()
        if early_ns > 0:
            os.write(fd, bytes(waiting))
            waiting = 0
            time.sleep(early_ns / 1e9)
        waiting += 1
    os.write(fd, bytes(waiting))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arrivals")
    for name in ("fd", *Schedule._fields):
        parser.add_argument(name, type=int)
    options = vars(parser.parse_args())
    send(options.pop("fd"), Schedule(**options).times_ns())


if __name__ == "__main__":
    sys.exit(main())
