"""The gateway's benchmark counts what it says: every section runs, a wrong answer is noticed."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.gateway import SECTIONS, main
from benchmarks.load import Generator, Plan
from benchmarks.table import Rounds, Row
from benchmarks.targets import Target

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the generator is in C++")


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    return Generator(tmp_path)


@pytest.fixture
def echo() -> Iterator[Target]:
    with Target.module("benchmarks.peers", "websockets") as target:
        yield target


@needs_compiler
@pytest.mark.parametrize("name", ["websockets", "framing"])
def test_every_answer_is_counted_once(generator: Generator, name: str) -> None:
    """Frames of all lengths that have headers of their own, each connection its own frames."""
    frames = [[bytes([97 + k]) * size for size in (1, 125, 126, 4_000)] for k in range(3)]
    with Target.module("benchmarks.peers", name) as target:
        found = generator.run(target, Plan("talk", 3, 40, 7, warm_up=20), frames)
    headers = {1: 2, 125: 2, 126: 4, 4_000: 4}
    assert found.messages == 3 * 40 - 20
    assert found.bytes == 3 * 10 * sum(size + header for size, header in headers.items())
    assert 0 < found.p50_us <= found.p99_us
    assert found.cpu_us > 0 and found.own_cpu_share > 0


@needs_compiler
def test_an_answer_that_does_not_begin_as_it_should_is_noticed(
    generator: Generator, echo: Target
) -> None:
    right = Plan("talk", 2, 3, counts='{"t":"ack"')
    assert generator.run(echo, right, [[b'{"t":"ack","id":1}']]).messages == 6
    with pytest.raises(AssertionError, match="1 messages were wrong"):
        generator.run(
            echo, right, [[b'{"t":"ack"}'] * 3, [b'{"t":"ack"}', b'{"t":"reject"}', b'{"t":"ack"}']]
        )


@needs_compiler
def test_a_server_that_is_gone_is_noticed(generator: Generator, echo: Target) -> None:
    with echo:
        pass
    with pytest.raises(AssertionError):
        generator.run(echo, Plan("talk", 1, 1), [[b"{}"]])


@needs_compiler
def test_held_connections_answer_and_published_updates_come_to_all(
    generator: Generator, echo: Target
) -> None:
    grown: list[int] = []
    held = generator.run(
        echo, Plan("hold", 30, 0), when_open=lambda: grown.append(echo.resident_bytes())
    )
    assert held.messages == 30 and grown[0] > 0
    begun: list[int] = []

    def publish() -> None:
        begun.append(echo.tell("publish", {"count": 4, "text": "u" * 300}))

    heard = generator.run(echo, Plan("listen", 30, 4), when_begun=publish)
    assert heard.messages == 120 and heard.bytes == 120 * 304
    assert heard.end_ns > begun[0]


def test_rows_say_whether_their_target_is_met() -> None:
    rounds = Rounds()
    for ours, theirs in ((1.0, 2.0), (3.0, 1.0), (4.0, 2.0)):
        rounds.add("ours", ours)
        rounds.add("theirs", theirs)
    row = rounds.row("x", "/s", "ours", "theirs", at_least=2)
    assert (row.ratio, row.ratio_min, row.ratio_max, row.within) == (2, 0.5, 3, True)
    assert (row.measured, row.bare) == (3, 2)
    assert rounds.row("x", "/s", "ours", "theirs", at_least=2.1).within is False
    assert rounds.row("x", "/s", "ours", "theirs", at_most=1.9).within is False
    assert rounds.row("x", "/s", "ours", "theirs", at_most=2).within is True
    assert rounds.row("x", "/s", "ours", "theirs").within is None
    assert row.cpu_ratio is None
    rounds.add("ours", 1, cpu_us=2)
    rounds.add("theirs", 1, cpu_us=5)
    assert rounds.row("x", "/s", "ours", "theirs").cpu_ratio == 2.5


@needs_compiler
@pytest.mark.timeout(600)
def test_every_section_gives_figures_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Acks, updates and answers are counted inside, so that a wrong one fails here."""
    found, picture, disk = tmp_path / "found.json", tmp_path / "found.svg", tmp_path / "disk"
    disk.mkdir()
    words = ["--quick", "--runs", "1", "--dir", disk, "--json", found, "--plot", picture]
    assert main([str(word) for word in words]) == 0
    measured = json.loads(found.read_text("utf-8"))
    rows = [Row(**row) for row in measured["rows"]]
    assert len(SECTIONS) == 5 and len(rows) == 14
    assert len({row.name for row in rows}) == len(rows)
    shown = capsys.readouterr().out
    drawn = "".join(ElementTree.parse(picture).getroot().itertext())
    for row in rows:
        if row.skipped:  # a quick run installs nothing, and a busy machine may have no answer
            assert row.within is None and "SKIPPED" in shown
        else:
            assert row.bare is not None and row.ratio is not None
            assert row.ratio <= 0 or row.name.strip() in drawn
    counts = Counter(run["mode"] for run in measured["measured"])
    assert counts["http"] == 4 and counts["hold"] == 2 and counts["listen"] == 3
    assert counts["talk"] in {9, 10}, "with node's or without"
    assert all(run["messages"] > 0 for run in measured["measured"])
    assert list(disk.iterdir()) == []
