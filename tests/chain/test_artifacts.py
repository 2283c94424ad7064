"""The committed artifacts belong to the committed sources. Rebuilding them is for the checks."""

import json
import re
from importlib import resources
from typing import cast

import pytest

from settlement import contracts
from settlement.abi import rejection
from settlement.contracts import CONTRACTS, PARTS, artifact, source_hash
from settlement.errors import ArtifactError


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_artifact_was_compiled_from_these_sources(name: str) -> None:
    assert artifact(name).source_hash == source_hash(), (
        "run `uv run python -m settlement.contracts.build` and commit the artifacts"
    )


def test_there_is_an_artifact_for_every_contract_and_no_other() -> None:
    files = resources.files(contracts)
    sources = {e.name.removesuffix(".sol") for e in files.joinpath("src").iterdir()}
    artifacts = {e.name.removesuffix(".json") for e in files.joinpath("artifacts").iterdir()}
    assert artifacts == set(CONTRACTS)
    assert sources == artifacts | set(PARTS)
    assert not artifacts & set(PARTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_fits_the_code_size_limit_of_ethereum(name: str) -> None:
    assert len(artifact(name).runtime) <= 24_576
    assert len(artifact(name).bytecode) <= 49_152


def test_code_is_recognised_whatever_its_immutables_and_nothing_else_is() -> None:
    vault = artifact("VaultV2")
    (start, length), *_ = vault.immutables
    filled = bytearray(vault.runtime)
    filled[start : start + length] = b"\xaa" * length
    assert vault.is_runtime(bytes(filled))
    for other in (b"", vault.runtime + b"\x00", artifact("PriceOracle").runtime):
        assert not vault.is_runtime(other)
    before = start - 1
    filled[before] ^= 1
    assert not vault.is_runtime(bytes(filled))


def test_the_audit_says_of_every_call_who_may_make_it_and_of_no_other() -> None:
    audit = resources.files(contracts).joinpath("audit.md").read_text("utf-8")
    [table] = re.findall(r"^## Who may call what\n(.*?)^## ", audit, re.DOTALL | re.MULTILINE)
    named = [
        name
        for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    ]
    callable_ = {
        cast(str, entry["name"])
        for half in ("VaultV2", "Disputes")
        for entry in artifact(half).abi
        if entry["type"] == "function" and entry["stateMutability"] not in ("view", "pure")
    }
    assert sorted(named) == sorted(callable_)


def test_an_unknown_artifact_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="NoSuch"):
        artifact("NoSuch")


def test_the_lock_names_no_registry() -> None:
    lock = json.loads(resources.files(contracts).joinpath("package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all("integrity" in entry for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "Unknown(data=0x)"),
        ("deadbeef01", "Unknown(data=0xdeadbeef01)"),
        ("4e487b71" + "11".rjust(64, "0"), "Panic(code=17)"),
        ("4e487b71", "Unknown(data=0x4e487b71)"),
    ],
)
def test_a_reason_that_is_not_ours_is_passed_on(data: str, said: str) -> None:
    assert str(rejection(bytes.fromhex(data))) == said
