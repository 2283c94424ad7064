"""The load generator, `load.cpp`, built with the system's compiler and run against a server.

What it sends is drawn here, before the clock starts; what must be known of a connection to draw
it, the nonce that a login signs, it hands over while connections are opened. Invariant: the
clock starts when all are open, and a frame that is neither an answer nor expected is an error.
`gateway` calls.
"""

import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

from benchmarks.targets import Target, cores
from benchmarks.yardstick import build

SOURCE: Final = Path(__file__).parent / "load.cpp"
SECONDS_MAX: Final = 300
SATURATED_SHARE: Final = 0.95  # of a core: more, and the generator is what was measured
_NUMBER: Final = struct.Struct("<I")

Mode = Literal["talk", "listen", "hold", "http"]
Frames = Sequence[Sequence[bytes]]  # of each connection; they are used again if there are fewer


class Plan(NamedTuple):
    """What the generator does; `load.cpp` says how."""

    mode: Mode
    connections: int
    messages: int  # on each connection
    in_flight: int = 1
    path: str = "/"
    counts: str = ""  # how the frames begin that are counted
    ignores: str = ""
    warm_up: int = 0  # messages of all connections together


class Found(NamedTuple):
    """`cpu_us` is the server's, of all its threads, for each message; `own_cpu_share` is how much
    of the time the generator's one thread ran."""

    messages: int
    seconds: float
    p50_us: float
    p99_us: float
    own_cpu_share: float
    cpu_us: float
    bytes: int
    end_ns: int

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds


class Opening:
    """Answers a connection's first frame with the frames it begins with, each answered by one."""

    asks: int = 0

    def frames(self, number: int, hello: bytes) -> Sequence[bytes]:
        """`number` counts connections from 0."""
        del number, hello
        return ()

    def answered(self, answer: bytes) -> None:
        """Each of those frames is."""
        del answer


class Generator:
    """Built into `directory`, where it also finds its frames."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "load"
        self._frames = directory / "frames"
        build(SOURCE, self._program)

    def run(
        self,
        target: Target,
        plan: Plan,
        frames: Frames = (),
        opening: Opening | None = None,
        when_open: Callable[[], None] = lambda: None,
        when_begun: Callable[[], None] = lambda: None,
    ) -> Found:
        """`when_open` is called before the clock starts, `when_begun` just after.

        Raises AssertionError if a message is wrong or missing.
        """
        with self._frames.open("wb") as file:
            _write_frames(file, frames)
        words = {
            **plan._asdict(),
            "port": target.port,
            "pid": target.pid,
            "frames": self._frames,
            "hello": int(opening is not None),
            "asks": opening.asks if opening is not None else 0,
            "seconds_max": SECONDS_MAX,
        }
        command = [self._program, plan.mode, *(f"{name}={word}" for name, word in words.items())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            chosen = cores()
            if chosen is not None:
                os.sched_setaffinity(process.pid, {chosen[1]})
            with contextlib.suppress(BrokenPipeError):  # it says itself what went wrong
                if opening is not None:
                    _open(process.stdout, process.stdin, plan.connections, opening)
                assert _get(process.stdout) == b"ready"
                when_open()
                _put(process.stdin, b"go")
                when_begun()
            said = _get(process.stdout)
        assert process.returncode == 0, f"load {plan.mode}: ended with {process.returncode}"
        found = json.loads(said)
        assert found["wrong"] == 0, f"{found['wrong']} messages were wrong"
        count = plan.connections * (1 if plan.mode == "hold" else plan.messages)
        assert found["messages"] == count - plan.warm_up, "every message is counted once"
        return Found(
            messages=found["messages"],
            seconds=found["seconds"],
            p50_us=found["p50_us"],
            p99_us=found["p99_us"],
            own_cpu_share=found["own_cpu_share"],
            cpu_us=found["server_cpu_s"] * 1e6 / found["messages"],
            bytes=found["bytes"],
            end_ns=found["end_ns"],
        )


def _write_frames(file: IO[bytes], frames: Frames) -> None:
    file.write(_NUMBER.pack(len(frames)))
    file.write(_NUMBER.pack(len(frames[0]) if frames else 0))
    for script in frames:
        assert len(script) == len(frames[0])
        for frame in script:
            file.write(_NUMBER.pack(len(frame)) + frame)


def _open(heard: IO[bytes], told: IO[bytes], connections: int, opening: Opening) -> None:
    for number in range(connections):
        frames = opening.frames(number, _get(heard))
        assert len(frames) == opening.asks
        for frame in frames:
            _put(told, frame)
            opening.answered(_get(heard))


def _put(pipe: IO[bytes], block: bytes) -> None:
    pipe.write(_NUMBER.pack(len(block)) + block)
    pipe.flush()


def _get(pipe: IO[bytes]) -> bytes:
    """Empty when the generator has ended."""
    head = pipe.read(_NUMBER.size)
    return pipe.read(_NUMBER.unpack(head)[0]) if head else b""
