"""The bare ladder, or another program with its command line, built and run beside the core.

`YARDSTICK FILE PRELOAD` replays a stream, times all but its first PRELOAD records, and prints JSON
with `ns_op` and, if compiled with -DVERIFY, the `hash` of its fills. Each source is built twice, so
that hashing is never timed. Called by `match_all`; `load` builds by `build`, too.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from benchmarks.streams import Stream

LADDER: Final = Path(__file__).parent / "ladder.cpp"
COMPILER: Final = "g++"
FLAGS: Final = ("-O3", "-march=native", "-DNDEBUG", "-std=c++20")


def compiler() -> str:
    """The first line of what the compiler says of itself; empty where there is none."""
    if shutil.which(COMPILER) is None:
        return ""
    said = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0]


def build(source: Path, program: Path, *flags: str) -> None:
    """Raises subprocess.CalledProcessError when the source does not compile."""
    subprocess.run([COMPILER, *FLAGS, *flags, source, "-o", program], check=True)


class Yardstick:
    """Raises subprocess.CalledProcessError when the source does not compile or run."""

    def __init__(self, source: Path, directory: Path) -> None:
        self._timed = directory / "timed"
        self._verifying = directory / "verifying"
        build(source, self._timed)
        build(source, self._verifying, "-DVERIFY")

    def ns_per_operation(self, stream: Stream) -> float:
        return float(_replay(self._timed, stream)["ns_op"])

    def fill_hash(self, stream: Stream) -> str:
        return str(_replay(self._verifying, stream)["hash"])


def _replay(program: Path, stream: Stream) -> dict[str, Any]:
    run = subprocess.run(
        [program, stream.path, str(stream.preload)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)
