"""The command refuses what it should not do, in words and with a status, and does nothing."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from engine.journal import Journal, SystemDisk
from engine.kernel import build_hash
from engine.rejects import (
    CompexError,
    DamagedJournal,
    DiskFailed,
    EngineBroken,
    JournalError,
    OtherBuild,
)
from engine.replay import verify
from gateway.cli import DEMO_MARK, command_line, main, owning
from gateway.ending import WORDS, Ending, ending_of
from tests.disks import numbered

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("once", [[], ["--once"]])
def test_a_demonstration_never_erases_what_another_run_left(
    tmp_path: Path, once: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "administrator.key"
    key.write_text("precious")
    assert main(["demo", *once, "--dir", str(tmp_path)]) == 1
    assert key.read_text() == "precious"
    assert "nothing was erased" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / DEMO_MARK).exists()


def test_json_without_once_is_refused(tmp_path: Path) -> None:
    assert main(["demo", "--json", str(tmp_path / "x.json"), "--dir", str(tmp_path / "d")]) == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["replay"],
        ["replay", "--verify"],
        ["snapshot"],
        ["journal", "inspect"],
        ["journal", "adopt"],
    ],
)
def test_a_command_on_no_journal_fails_and_makes_none(tmp_path: Path, command: list[str]) -> None:
    assert main([*command, str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["", "journal"])
def test_replay_prints_how_far_how_much_and_to_which_state(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "journal", SystemDisk(), 1 << 16)
    assert list(journal.recover()) == []
    journal.append(numbered(1, 7))
    journal.close()
    assert main(["replay", str(tmp_path / where), "--verify"]) == 0
    said = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert [name.strip() for name in said] == [
        "sequence", "events", "state hash", "invariants", "snapshots", "seconds",
    ]  # fmt: skip
    assert said["sequence  "] == said["events    "] == "7"
    assert said["state hash"] == verify(tmp_path / "journal").state_hash
    assert float(said["seconds   "]) >= 0


def test_a_snapshot_is_made_by_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "journal", SystemDisk(), 1 << 16)
    assert list(journal.recover()) == []
    journal.append(numbered(1, 7))
    journal.append(numbered(8, 2))
    assert main(["snapshot", str(tmp_path)]) == 0, "also while somebody writes"
    said = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["sequence  "] == said["events    "] == "7", "the last frame may not be durable yet"
    assert main(["snapshot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing new since the last snapshot\n"
    journal.close()
    assert main(["replay", str(tmp_path), "--verify"]) == 0
    assert "snapshots   1 agree" in capsys.readouterr().out


def test_another_builds_journal_is_adopted_by_the_command_that_its_refusal_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "journal"
    with closing(Journal(directory, SystemDisk(), 1 << 16, "ab" * 8)) as journal:
        assert list(journal.recover()) == []
        journal.append(numbered(1, 7))
    with (
        closing(Journal(directory, SystemDisk())) as journal,
        pytest.raises(JournalError) as refused,
    ):
        list(journal.recover())
    program, *words = shlex.split(str(refused.value).rpartition(": ")[2])
    assert program == "compex"
    assert main(words) == 0
    said = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["sequence  "] == "7"
    assert said["state hash"] == verify(directory).state_hash
    assert (said["old build "], said["new build "]) == ("ab" * 8, build_hash())
    with closing(Journal(directory, SystemDisk())) as journal:
        assert [frame.first_sequence for frame in journal.recover()] == [1]


def test_fund_deploys_nothing_where_no_node_has(tmp_path: Path) -> None:
    assert main(["fund", "--dir", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [["--cash", "-5"], ["--cash", "0"], ["--key", "0x12"]])
def test_fund_refuses_what_is_no_amount_or_no_key(tmp_path: Path, wrong: list[str]) -> None:
    (tmp_path / "contracts.json").write_text("{}")
    assert main(["fund", "--dir", str(tmp_path), *wrong]) == 1


def test_an_unknown_setting_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = tmp_path / "compex.toml"
    settings.write_text("[gateway]\nprot = 1\n")
    assert main(["up", "--dir", str(tmp_path / "d"), "--settings", str(settings)]) == 1
    assert not (tmp_path / "d").exists()


# --- how a command ends -------------------------------------------------------------------------


def test_help_and_readme_list_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--help"])
    helped = capsys.readouterr().out
    for ending, words in WORDS.items():
        assert f"{ending.value:>3}  {words}\n" in helped
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README.read_text("utf-8"), re.MULTILINE)
    assert rows == [(str(ending.value), words) for ending, words in WORDS.items()]


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in cast(dict[str, argparse.ArgumentParser], action.choices).values():
                yield from commands_of(command)


def test_help_says_what_each_option_is_and_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    options = 0
    for parser in commands_of(command_line()):
        helped = " ".join(parser.format_help().split())
        for action in parser._actions:
            if isinstance(action.choices, dict):
                continue  # commands, each with its own
            options += 1
            assert action.help, f"{parser.prog} says nothing of {action.dest}"
            if action.default not in (None, False, argparse.SUPPRESS):
                assert f"(default: {action.default})" in helped, (parser.prog, action.dest)
        assert "default: None" not in helped and "default: False" not in helped
    assert options > 40


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (DiskFailed("x"), Ending.DISK_FAILED),
        (DamagedJournal("x"), Ending.DAMAGED),
        (OtherBuild("x"), Ending.OTHER_BUILD),
        (EngineBroken("x"), Ending.BROKEN),
        (JournalError("x"), Ending.FAILED),
        (CompexError("x"), Ending.FAILED),
        (OSError("x"), Ending.FAILED),
    ],
)
def test_what_stopped_a_command_decides_its_exit_status(error: Exception, ending: Ending) -> None:
    assert ending_of(error) is ending


def test_a_log_on_a_full_disk_does_not_change_the_exit_status(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, SystemDisk(), 1 << 16)) as journal:
        assert list(journal.recover()) == []
        journal.append(numbered(1, 7))
    [segment] = tmp_path.glob("*.cxj")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:20] + b"\xff" + whole[21:])
    command = [sys.executable, "-m", "gateway.cli", "journal", "inspect", str(tmp_path)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command, cwd=README.parent, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (ended.returncode, ended.stderr) == (Ending.DAMAGED, b"")


def test_a_second_run_in_a_directory_is_told_whose_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with owning(tmp_path / "node"):
        assert (tmp_path / "node.lock").read_text("ascii") == f"{os.getpid()}\n"
        assert main(["up", "--dir", str(tmp_path / "node")]) == Ending.FAILED
    assert f"another process, {os.getpid()}, runs in" in capsys.readouterr().out
    assert (tmp_path / "node.lock").read_text("ascii") == f"{os.getpid()}\n"
