"""Commands that come when they come, whoever is ready for them: an open loop.

    python -m benchmarks.arrivals FD GAP_NS COMMANDS SEED

writes eight bytes to the pipe FD for each command as its time comes: when it was sent, in ns of the
monotonic clock that all processes share. The pipe holds them all, so that nothing sent ever waits
for who reads: a slow answer also delays what comes behind it, and nothing is left out. Counted is
from when a command was sent, not from when it was due: how late the system wakes this process is
no matter of what is measured. A process of its own: one that is measured cannot be trusted with
the stopwatch. `acks` starts it.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

ROOT: Final = Path(__file__).parent.parent
STAMP_BYTES: Final = 8
PIPE_BYTES: Final = 1 << 20  # as much as a system gives anybody
COMMANDS_MAX: Final = PIPE_BYTES // STAMP_BYTES


@contextmanager
def arrivals(gap_ns: int, commands: int, seed: int) -> Generator[int]:
    """The pipe to read from; gaps are drawn evenly from 0 to twice `gap_ns`."""
    assert commands <= COMMANDS_MAX
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    words = [str(word) for word in (writer, gap_ns, commands, seed)]
    sender = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.arrivals", *words], cwd=ROOT, pass_fds=(writer,)
    )
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
        sender.wait()


def received(pipe: int) -> "array[int]":
    """When each command was sent that came since; empty after the last. Waits for one."""
    return array("q", os.read(pipe, PIPE_BYTES))


def send(fd: int, gap_ns: int, commands: int, seed: int) -> None:
    """One at each time, and as many as are due where the system slept for longer."""
    draw = Random(seed).randrange
    due_ns = time.monotonic_ns()
    waiting = 0
    for _ in range(commands):
        due_ns += draw(2 * gap_ns + 1)
        early_ns = due_ns - time.monotonic_ns()
        if early_ns > 0:
            _send_now(fd, waiting)
            waiting = 0
            time.sleep(early_ns / 1e9)
        waiting += 1
    _send_now(fd, waiting)


def _send_now(fd: int, commands: int) -> None:
    os.write(fd, array("q", [time.monotonic_ns()] * commands).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arrivals")
    for name in ("fd", "gap_ns", "commands", "seed"):
        parser.add_argument(name, type=int)
    send(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
