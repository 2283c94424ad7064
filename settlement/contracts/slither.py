"""Static analysis of the contracts: `python -m settlement.contracts.slither`.

Owns which of Slither's detectors are not heard, each with the reason. Invariant: everything else
that it finds in our sources ends this with 1; what is harmless in one place is said so there,
beside a `slither-disable` comment. Slither reads the compiler's own account of the sources, laid
out as Hardhat does. It wants an older web3 than ours, so it runs in an environment of its own,
which uv makes. Run by the checks; needs the dependency group `contracts`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from settlement.contracts.build import DIRECTORY, BuildError, compile_in, standard_input

SECONDS_MAX: Final = 600
SLITHER: Final = "slither-analyzer==0.11.6"
UNHEARD: Final = {
    "assembly": "the layouts of fills and records are read, and roots made, in assembly",
    "naming-convention": "constants and immutables are in capitals, the style of this code",
    "solc-version": "the newest compiler that the build locks, not the one Slither recommends",
    "pragma": "interfaces that others may copy say ^0.8.0",
    "timestamp": "windows are hours and days; a block's time is off by seconds",
    "too-many-digits": "masks of a layout are written out",
    "cyclomatic-complexity": "checks in a row read better in one place",
}
# Nothing is generated: the analysis is of the syntax.
_OUTPUTS: Final[dict[str, Any]] = {"*": {"*": ["abi"], "": ["ast"]}}
_NO_CODE: Final = {"object": "", "sourceMap": ""}


def _lay_out(workplace: Path) -> None:
    """Sources, packages and what the compiler says of them, where Slither looks for them."""
    standard = standard_input(_OUTPUTS)
    output = compile_in(workplace, standard)
    (workplace / "@openzeppelin").symlink_to(workplace / "node_modules" / "@openzeppelin")
    for name, source in standard["sources"].items():
        (workplace / name).write_text(source["content"], "utf-8")
    for contracts in output["contracts"].values():
        for contract in contracts.values():
            contract["evm"] = {"bytecode": _NO_CODE, "deployedBytecode": _NO_CODE}
    info = workplace / "artifacts" / "build-info"
    info.mkdir(parents=True)
    (workplace / "hardhat.config.js").write_text("module.exports = {};\n", "utf-8")
    version = output["compiler"].split("+")[0]
    build = {"solcVersion": version, "input": standard, "output": output}
    (info / "build.json").write_text(json.dumps(build), "utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        workplace = Path(name).resolve()
        try:
            _lay_out(workplace)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
        command = [
            "uv", "tool", "run", "--from", SLITHER, "slither", ".",
            "--compile-force-framework", "hardhat",
            "--hardhat-ignore-compile", "--hardhat-artifacts-directory", "artifacts",
            "--filter-paths", "openzeppelin", "--exclude", ",".join(UNHEARD),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=workplace, timeout=SECONDS_MAX, check=False)
    if done.returncode == 0:
        print(f"Slither has nothing to say of {DIRECTORY.name}")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
