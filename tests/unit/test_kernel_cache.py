"""Machine code is kept per kernel source: a changed rule never runs as it was compiled before."""

import ast
import re
import shutil
from pathlib import Path

import pytest

import engine.kernel
from engine.kernel import SOURCES, build_hash, cache_directory

ENGINE = Path(engine.kernel.__file__).parent


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in SOURCES:
        shutil.copy(ENGINE / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SOURCES)
def test_a_changed_kernel_source_gives_another_cache_directory(sources: Path, name: str) -> None:
    assert cache_directory(sources) == cache_directory()
    with (sources / name).open("a") as file:
        file.write("\n")
    assert cache_directory(sources) != cache_directory()


def test_text_that_moves_from_one_source_to_the_next_is_a_change(sources: Path) -> None:
    first, second = sources / SOURCES[0], sources / SOURCES[1]
    moved = first.read_bytes() + second.read_bytes()
    before = build_hash(sources)
    first.write_bytes(moved[:-1])
    second.write_bytes(moved[-1:])
    assert build_hash(sources) != before


def test_the_cache_is_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "compex" / f"kernel-{build_hash()}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory().parent == tmp_path / ".cache" / "compex"


def test_numba_keeps_its_code_there() -> None:
    assert vars(engine.kernel.config)["CACHE_DIR"] == str(cache_directory())


def imported(name: str) -> set[str]:
    """The engine's modules that this one imports, as file names."""
    tree = ast.parse((ENGINE / name).read_text())
    return {
        f"{node.module.removeprefix('engine.')}.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine.")
        if node.module is not None
    }


def test_the_hash_covers_everything_that_decides_what_a_command_does() -> None:
    """All that the kernel imports, directly or not, and every module that compiles anything but
    what only reads the state: numba sees by itself when that file changes."""
    needed = {"match.py"}
    while more := {name for known in needed for name in imported(known)} - needed:
        needed |= more
    needed |= {
        path.name
        for path in ENGINE.glob("*.py")
        if {"\n@kernel\n", "\n@inlined\n"} & set(re.findall(r"\n@\w+\n", path.read_text()))
    } - {"invariants.py", "snapshot.py"}  # fmt: skip
    assert needed == set(SOURCES)
