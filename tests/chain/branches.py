"""Which branches of the second vault its tests take: `python -m tests.chain.branches`.

Compiles the sources once more with their source maps, which must give the committed code, runs the
vault's tests in this process, and watches every conditional jump of the vault's two halves. A
branch is one way out of an `if`, a loop, a ternary or a half of `&&` and `||` in our sources, as
the compiler's map places its jumps; what the optimiser has merged counts where the map puts it.
Prints the branches that were not taken and how many of all were. Not a test: a measurement, for
whoever changes a contract or its tests.
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import pytest
from eth.vm.forks.prague.computation import PragueComputation

from settlement.contracts import artifact
from settlement.contracts.build import DIRECTORY, compile_in, standard_input

HALVES: Final = ("VaultV2", "Disputes")
TESTS: Final = ("test_vault_v2.py", "test_vault_disputes.py", "test_vault_stateful.py")
JUMPI: Final = 0x57
_PUSH0: Final = 0x5F
_PUSH32: Final = 0x7F
CONDITIONS: Final = frozenset({
    "IfStatement", "ForStatement", "WhileStatement", "Conditional", "YulIf", "YulForLoop",
})  # fmt: skip

Place = tuple[str, int, int]  # source, start, length


def _compiled() -> dict[str, Any]:
    code = ["evm.deployedBytecode.object", "evm.deployedBytecode.sourceMap"]
    outputs: dict[str, Any] = {f"{name}.sol": {name: code} for name in HALVES}
    outputs["*"] = {"": ["ast"]}
    with tempfile.TemporaryDirectory() as name:
        return compile_in(Path(name), standard_input(outputs))


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "nodeType" in node:
            yield cast(dict[str, Any], node)
        for value in cast(dict[str, Any], node).values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in cast(list[Any], node):
            yield from _nodes(value)


def _branching(output: dict[str, Any]) -> set[Place]:
    """Where our sources branch: each condition, and the statement that it belongs to."""
    found: set[Place] = set()
    for name, source in output["sources"].items():
        if "/" in name:
            continue
        for node in _nodes(source["ast"]):
            is_either = node["nodeType"] == "BinaryOperation" and node["operator"] in ("&&", "||")
            if node["nodeType"] in CONDITIONS or is_either:
                for part in (node, node.get("condition"), node.get("leftExpression")):
                    if part:
                        start, length, _ = map(int, part["src"].split(":"))
                        found.add((name, start, length))
    return found


def _jumps(code: bytes, source_map: str, names: dict[int, str]) -> dict[int, Place]:
    """Conditional jumps by their place in the code, with what they are of."""
    places: list[tuple[int, int, int]] = []
    last = (0, 0, -1)
    for entry in source_map.split(";"):
        parts = [*entry.split(":"), "", "", ""]
        start, length, file = (
            int(new) if new else old for new, old in zip(parts, last, strict=False)
        )
        last = (start, length, file)
        places.append(last)
    found: dict[int, Place] = {}
    at = number = 0
    while at < len(code) and number < len(places):
        start, length, file = places[number]
        if code[at] == JUMPI and file in names:
            found[at] = (names[file], start, length)
        at += code[at] - _PUSH0 + 1 if _PUSH0 < code[at] <= _PUSH32 else 1
        number += 1
    return found


class Watch:
    """Which way each conditional jump went."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, dict[int, set[bool]]] = defaultdict(
            lambda: defaultdict(set[bool])
        )
        self._jump: Any = PragueComputation.opcodes[JUMPI]

    def __enter__(self) -> "Watch":
        opcodes: Any = PragueComputation.opcodes
        opcodes[JUMPI] = self._watched
        return self

    def __exit__(self, *_: object) -> None:
        opcodes: Any = PragueComputation.opcodes
        opcodes[JUMPI] = self._jump

    def _watched(self, computation: Any) -> Any:
        code = computation.code
        at = code.program_counter - 1
        result = self._jump(computation)
        name = _half(computation.msg.code)
        if name:
            self.seen[name][at].add(code.program_counter != at + 1)
        return result


@cache
def _half(code: bytes) -> str:
    return next((name for name in HALVES if artifact(name).is_runtime(code)), "")


def _line(name: str, start: int) -> int:
    return (DIRECTORY / "src" / name).read_bytes()[:start].count(b"\n") + 1


def main() -> int:
    output = _compiled()
    names = {source["id"]: name for name, source in output["sources"].items() if "/" not in name}
    branching = _branching(output)
    with Watch() as watch:
        tests = [str(Path(__file__).parent / name) for name in TESTS]
        failed = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *tests])
    if failed:
        return 1
    ways: defaultdict[Place, set[bool]] = defaultdict(set[bool])
    for half in HALVES:
        compiled = output["contracts"][f"{half}.sol"][half]["evm"]["deployedBytecode"]
        code = bytes.fromhex(compiled["object"])
        assert artifact(half).is_runtime(code), f"{half} is not what its sources compile to"
        for at, place in _jumps(code, compiled["sourceMap"], names).items():
            if place in branching:
                ways[place] |= watch.seen[half][at]
    missing = sorted((name, _line(name, start), len(taken)) for (name, start, _), taken in
                     ways.items() if len(taken) < 2)  # fmt: skip
    for name, line, taken in missing:
        print(f"{name}:{line}: {'one way' if taken else 'neither way'} taken")
    taken = sum(len(taken) for taken in ways.values())
    print(f"{taken} branches taken of {2 * len(ways)}, {100 * taken // (2 * len(ways))} per cent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
