"""Which contracts a node settles on: the file `contracts.json` in its directory.

Owns that file. Invariant: it is there whole or not at all, and names contracts of one chain whose
vault is of the version that this program speaks to; money in a vault that is forgotten or taken
for another kind would be lost to the exchange. Only `chain` reads and writes it.
"""

import json
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from eth_utils.address import to_checksum_address

from settlement.errors import ChainMismatch, VaultOutdated
from settlement.vault import VERSION

CONTRACTS_FILE: Final = "contracts.json"
_CONTRACTS: Final = ("token", "timelock", "vault", "oracle")


class Addresses(NamedTuple):
    """20 bytes each."""

    token: bytes = bytes(20)
    timelock: bytes = bytes(20)  # the vault's administrator
    vault: bytes = bytes(20)
    oracle: bytes = bytes(20)
    deploy_block: int = 0  # of the vault: no log of it is older
    is_test_token: bool = False


def load(path: Path, chain_id: int) -> Addresses:
    """Raises ChainMismatch, or VaultOutdated when it names an earlier version of the vault."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        about, version = fields["chain_id"], int(fields.get("vault_version", 1))
        if version != VERSION:
            raise VaultOutdated(
                f"{path} names a vault of version {version}; this program settles on version"
                f" {VERSION} alone, and moves no money between them. gateway/RUNBOOK.md says what"
                ' to do, under "The vault is of an earlier version"'
            )
        token, timelock, vault, oracle = (
            bytes.fromhex(fields[name].removeprefix("0x")) for name in _CONTRACTS
        )
        addresses = Addresses(
            token, timelock, vault, oracle, int(fields["deploy_block"]), bool(fields["test_token"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChainMismatch(f"{path} is not a list of contracts: {error!r}") from error
    if about != chain_id:
        raise ChainMismatch(f"{path} is about chain {about}; this is {chain_id}")
    return addresses


def save(path: Path, chain_id: int, addresses: Addresses) -> None:
    """All or nothing: a half-written file would cost the contracts' money."""
    fields: dict[str, object] = {
        "chain_id": chain_id,
        "deploy_block": addresses.deploy_block,
        "test_token": addresses.is_test_token,
        "vault_version": VERSION,
    }
    for name in _CONTRACTS:
        fields[name] = to_checksum_address(getattr(addresses, name))
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(dict(sorted(fields.items())), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
