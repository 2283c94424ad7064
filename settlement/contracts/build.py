"""Compile the contracts: `python -m settlement.contracts.build [--check]`.

Owns the one way from `src/*.sol` to `artifacts/*.json`. Invariant: the same sources, settings and
locked packages give the same bytes, on any machine; `--check` compiles and compares instead of
writing, and exits 1 when a committed artifact differs. Run by whoever changes a contract, and by
the checks; never by the exchange. Needs the dependency group `contracts` (node and npm as a wheel).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from settlement.contracts import CONTRACTS, source_hash

DIRECTORY: Final = Path(__file__).parent
ARTIFACTS: Final = DIRECTORY / "artifacts"
# What npm and the compiler need; copied out, so that a check leaves nothing in the source tree.
INPUTS: Final = ("package.json", "package-lock.json", ".npmrc", "compile.mjs")
BUILD_SECONDS_MAX: Final = 300
# "Transient storage can break composability", said of OpenZeppelin's reentrancy guard, which
# clears it at the end of the call: the use that the warning itself calls safe.
WARNINGS_UNDERSTOOD: Final = frozenset({"2394"})


class BuildError(Exception):
    """The contracts do not compile, or npm cannot install what they are compiled with."""


def _run(command: list[str], directory: Path, text: str | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        input=text,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def standard_input(outputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the compiler is given; with other `outputs` than the settings' if there are any."""
    sources = {
        path.name: {"content": path.read_text("utf-8")}
        for path in sorted((DIRECTORY / "src").glob("*.sol"))
    }
    settings = json.loads((DIRECTORY / "settings.json").read_text("utf-8"))
    if outputs is not None:
        settings["outputSelection"] = outputs
    return {"language": "Solidity", "sources": sources, "settings": settings}


def compile_in(workplace: Path, standard: Mapping[str, Any]) -> dict[str, Any]:
    """What the compiler says, its packages being installed in `workplace`. Raises BuildError."""
    for entry in INPUTS:
        (workplace / entry).write_bytes((DIRECTORY / entry).read_bytes())
    binaries = Path(sys.executable).parent  # where the wheel puts node and npm
    _run([str(binaries / "npm"), "ci", "--ignore-scripts"], workplace)
    output = json.loads(
        _run([str(binaries / "node"), "compile.mjs"], workplace, json.dumps(standard))
    )
    complaints = [
        entry["formattedMessage"]
        for entry in output.get("errors", ())
        if entry["errorCode"] not in WARNINGS_UNDERSTOOD
    ]
    if complaints:  # warnings too
        raise BuildError("\n".join(complaints))
    return output


def _artifact_text(output: dict[str, Any], name: str, sources: str) -> str:
    contract = output["contracts"][f"{name}.sol"][name]
    runtime = contract["evm"]["deployedBytecode"]
    immutables = sorted(
        [place["start"], place["length"]]
        for places in runtime.get("immutableReferences", {}).values()
        for place in places
    )
    fields = {
        "abi": contract["abi"],
        "bytecode": "0x" + contract["evm"]["bytecode"]["object"],
        "compiler": f"solc {output['compiler']}",
        "immutables": immutables,
        "runtime": "0x" + runtime["object"],
        "source_hash": sources,
    }
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"


def build() -> dict[str, str]:
    """The text of every artifact, by file name. Raises BuildError."""
    with tempfile.TemporaryDirectory() as name:
        output = compile_in(Path(name), standard_input())
    sources = source_hash()
    return {f"{name}.json": _artifact_text(output, name, sources) for name in CONTRACTS}


def _differences(built: dict[str, str]) -> list[str]:
    """One line for each committed file that is not what was built."""
    found: list[str] = []
    committed = {path.name: path.read_text("utf-8") for path in ARTIFACTS.glob("*.json")}
    for name in sorted(built.keys() | committed.keys()):
        if name not in committed:
            found.append(f"{name}: not committed")
        elif name not in built:
            found.append(f"{name}: committed, but nothing compiles to it")
        elif built[name] != committed[name]:
            old, new = json.loads(committed[name]), json.loads(built[name])
            keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            found.append(f"{name}: {', '.join(keys) or 'formatting'} differ")
    return found


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m settlement.contracts.build [--check]", file=sys.stderr)
        return 2
    try:
        built = build()
    except (BuildError, OSError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments:
        differences = _differences(built)
        print("\n".join(differences) or "the artifacts are what the sources compile to")
        return 1 if differences else 0
    ARTIFACTS.mkdir(exist_ok=True)
    for name, text in built.items():
        (ARTIFACTS / name).write_text(text, "utf-8")
        runtime = len(json.loads(text)["runtime"]) // 2 - 1
        print(f"{name}: {runtime} bytes at run time")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
