"""The state as bytes: what two engines must agree on to the last bit.

Invariant: the hash covers every part of the state that commands ever touched, and nothing of the
machine it runs on. Read-only; `pipeline`, `replay` and tests call.
"""

import hashlib

import numpy as np

from engine.book import STATE, StateArray


def used_parts(state: StateArray) -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.void]]"]:
    """The touched prefix of each array of the state, by name; capacities in table order."""
    s = state[0]
    accounts = int(s["account_high"]) + 1
    leaves = int(s["leaf_high"]) + 1
    orders = int(s["order_high"]) + 1
    capacities = s["capacities"]
    return {
        "books": s["books"][: int(s["instrument_high"])],
        "markets": s["markets"][: int(s["instrument_high"])],
        "balances": s["balances"][:accounts],
        "identities": s["identities"][:accounts],
        "resting": s["resting"][:accounts],
        "capacities": capacities[capacities["key"] != 0],
        "nodes": s["nodes"][: int(s["node_high"]) + 1],
        "leaves": s["leaves"][:leaves],
        "levels": s["levels"][: leaves * 64],
        "orders": s["orders"][:orders],
        "quoting": s["quoting"][:accounts],
        "sheets": s["sheets"][: int(s["sheet_high"]) + 1],
    }


def state_hash(state: StateArray) -> str:
    """32 hex digits over the header and every touched record. O(state in use)."""
    assert STATE.fields is not None
    header_bytes = STATE.fields["books"][1]
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(state.view(np.uint8)[:header_bytes].tobytes())
    for name, part in used_parts(state).items():
        hasher.update(name.encode())
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(np.ascontiguousarray(part).tobytes())
    return hasher.hexdigest()
