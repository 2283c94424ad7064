"""The contracts: their sources, and the compiled artifacts that everything else loads.

Owns `artifacts/*.json`. Invariant: each artifact names the hash of the sources and settings it was
compiled from, and `build` reproduces it byte for byte; so nobody who runs the exchange needs a
compiler. Settlement loads artifacts here; only `build` writes them.
"""

import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

from settlement.errors import ArtifactError

CONTRACTS: Final = (
    "TestUSDC", "PriceOracle", "PriceFeed", "AggregatorV3Interface",
    "VaultV2", "Disputes", "ParameterTimelock", "TestToken", "NaiveEscrow",
)  # fmt: skip
# What others are made of: no code of their own, no artifact.
PARTS: Final = ("Accounts", "Leases", "Fills", "Orders", "Releases", "IERC3009")


class Artifact(NamedTuple):
    """One compiled contract. An interface has neither bytecode nor runtime."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes  # what deploys it, without constructor arguments
    runtime: bytes  # what is then at its address, immutables being zero
    immutables: tuple[tuple[int, int], ...]  # (start, length) of each of them in the runtime
    source_hash: str
    compiler: str

    def is_runtime(self, code: bytes) -> bool:
        """Whether `code`, found at an address, is this contract, whatever its immutables."""
        if len(code) != len(self.runtime):
            return False
        masked = bytearray(code)
        for start, length in self.immutables:
            masked[start : start + length] = bytes(length)
        return bytes(masked) == self.runtime


def source_hash() -> str:
    """SHA-256, hex, over everything the bytecode depends on: sources, settings, locked packages."""
    directory = resources.files(__name__)
    sources = sorted(
        (entry for entry in directory.joinpath("src").iterdir() if entry.name.endswith(".sol")),
        key=lambda entry: entry.name,
    )
    settings = [directory.joinpath(name) for name in ("settings.json", "package-lock.json")]
    digest = hashlib.sha256()
    for entry in (*sources, *settings):
        content = entry.read_bytes()
        digest.update(f"{entry.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def artifact(name: str) -> Artifact:
    """The committed artifact. Raises ArtifactError when it is missing or not of our making."""
    try:
        text = resources.files(__name__).joinpath("artifacts", f"{name}.json").read_text("utf-8")
        fields = json.loads(text)
        return Artifact(
            name=name,
            abi=fields["abi"],
            bytecode=bytes.fromhex(fields["bytecode"].removeprefix("0x")),
            runtime=bytes.fromhex(fields["runtime"].removeprefix("0x")),
            immutables=tuple((start, length) for start, length in fields["immutables"]),
            source_hash=fields["source_hash"],
            compiler=fields["compiler"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the artifact of {name} cannot be read: {error}") from error
