"""What traders sign, as the vault reads it: orders, roots over orders, session keys.

Owns the Python side of Orders.sol: struct hashes, the tree of sorted pairs, digests, recovery, and
a signed order in the shape that the vault's `answer` takes. Invariant: whatever is accepted here
the vault accepts as well, byte for byte; nothing is accepted that it would not recover. Pure.
Whoever checks, keeps or shows signatures calls it.

Sources: EIP-712 (typed data), EIP-2 (low s), OpenZeppelin's MerkleProof (sorted pairs).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from coincurve import PublicKey
from eth_utils.crypto import keccak
from numpy.typing import NDArray

SIGNATURE_BYTES: Final = 65
SCOPE_TRADE: Final = 2  # of a session key, as Disputes.sol has it
HASH_BYTES: Final = 32
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

DOMAIN_TYPE: Final = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
ORDER_TYPE: Final = keccak(
    b"Order(uint32 account,bool is_buy,uint16 series,uint32 window,uint32 price_ticks,"
    b"uint32 qty_lots,uint32 number,uint16 fee_ppm_max,uint64 valid_until_s)"
)
ROOT_TYPE: Final = keccak(b"OrderRoot(uint32 account,bytes32 root)")
SESSION_KEY_TYPE: Final = keccak(
    b"SessionKey(address wallet,address key,uint8 scopes,string[] markets,"
    b"uint64 valid_from_s,uint64 valid_until_s,uint64 nonce)"
)
_NAME: Final = keccak(b"compex")
_VERSION: Final = keccak(b"1")


class Order(NamedTuple):
    """The signed struct, in its order. A buyer pays at most the price, a seller takes at least it;
    all fills of the order together are at most the quantity."""

    account: int
    is_buy: bool
    series: int
    window: int
    price_ticks: int
    qty_lots: int
    number: int
    fee_ppm_max: int
    valid_until_s: int


class Authority(NamedTuple):
    """A session key as its wallet has signed for it. Without a signature it is the wallet's own
    key, or one that the vault was told of, and nothing but the address counts."""

    key: bytes  # 20 bytes
    scopes: int = 0
    markets_hash: bytes = keccak(b"")
    valid_from_s: int = 0
    valid_until_s: int = 0
    nonce: int = 0
    signature: bytes = b""


class Signed(NamedTuple):
    """An order with its proof: its own signature, or its path to a root and the root's."""

    order: Order
    path: list[bytes]
    signature: bytes
    authority: Authority

    def argument(self) -> tuple[Any, ...]:
        """As the vault's functions take it (Orders.Signed)."""
        order = self.order
        return (
            order.price_ticks, order.qty_lots, order.fee_ppm_max, order.valid_until_s, self.path,
            self.signature, tuple(self.authority),
        )  # fmt: skip


# --- hashes -----------------------------------------------------------------------------------
def _word(number: int) -> bytes:
    return number.to_bytes(HASH_BYTES, "big")


def separator(chain_id: int, vault: bytes) -> bytes:
    """The domain of everything signed for this vault; `vault` is 20 bytes."""
    return keccak(DOMAIN_TYPE + _NAME + _VERSION + _word(chain_id) + vault.rjust(32, b"\0"))


def order_hashes(orders: Sequence[Order]) -> list[bytes]:
    """The struct hash of each: the leaves of a root. All words are laid out at once."""
    words: NDArray[np.uint64] = np.zeros((len(orders), 1 + len(Order._fields), 4), ">u8")
    words[:, 0] = np.frombuffer(ORDER_TYPE, ">u8")
    # A row of Python integers each; every field has at most 64 bits, the last of a word's four.
    words[:, 1:, 3] = np.array(orders, np.uint64).reshape(len(orders), len(Order._fields))
    packed, size = words.tobytes(), words.shape[1] * HASH_BYTES
    return [keccak(packed[i : i + size]) for i in range(0, len(packed), size)]


def root_hash(account: int, root: bytes) -> bytes:
    return keccak(ROOT_TYPE + _word(account) + root)


def markets_hash(markets: Iterable[str]) -> bytes:
    """As EIP-712 hashes a list of strings."""
    return keccak(b"".join(keccak(market.encode()) for market in markets))


def authority_hash(wallet: bytes, authority: Authority) -> bytes:
    return keccak(
        SESSION_KEY_TYPE
        + wallet.rjust(32, b"\0")
        + authority.key.rjust(32, b"\0")
        + _word(authority.scopes)
        + authority.markets_hash
        + _word(authority.valid_from_s)
        + _word(authority.valid_until_s)
        + _word(authority.nonce)
    )


def digest(domain: bytes, struct: bytes) -> bytes:
    """What is signed: of a struct hash in a domain."""
    return keccak(b"\x19\x01" + domain + struct)


# --- roots ------------------------------------------------------------------------------------
def tree(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """From the leaves to the root. Each pair is hashed in ascending order, a lone node goes up as
    it is. O(n)."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        row = levels[-1]
        above = [
            keccak(a + b if a < b else b + a) for a, b in zip(row[::2], row[1::2], strict=False)
        ]
        levels.append(above + row[len(row) & ~1 :])
    return levels


def path_of(levels: Sequence[Sequence[bytes]], place: int) -> list[bytes]:
    """From the leaf at this place to the root. O(log n)."""
    path: list[bytes] = []
    for row in levels[:-1]:
        if place ^ 1 < len(row):
            path.append(row[place ^ 1])
        place >>= 1
    return path


def signed_hash(account: int, leaves: Sequence[bytes]) -> bytes:
    """The struct that one signature over these orders is of: the order itself if there is just
    one, for the vault takes an empty path as that; else the root."""
    return leaves[0] if len(leaves) == 1 else root_hash(account, tree(leaves)[-1][0])


# --- signatures -------------------------------------------------------------------------------
def recover(hashed: bytes, signature: bytes) -> bytes:
    """Whose key made it: 20 bytes, or none if it is not one that the vault takes."""
    if len(signature) != SIGNATURE_BYTES or signature[64] not in {27, 28}:
        return b""
    if int.from_bytes(signature[32:64], "big") > _CURVE_ORDER // 2:
        return b""
    raw = signature[:64] + bytes([signature[64] - 27])
    try:
        key = PublicKey.from_signature_and_message(raw, hashed, hasher=None)
    except ValueError:
        return b""
    return keccak(key.format(compressed=False)[1:])[12:]


def as_vault_takes(signature: bytes) -> bytes:
    """The same with the last byte 27 or 28, where a wallet has said 0 or 1."""
    low = len(signature) == SIGNATURE_BYTES and signature[64] < 2
    return signature[:64] + bytes([27 + signature[64]]) if low else signature


def may_trade(authority: Authority, owner: bytes, domain: bytes) -> bool:
    """Whether the wallet has signed that the key may trade for it. When is for the caller."""
    if authority.key == owner:
        return True
    signed = digest(domain, authority_hash(owner, authority))
    return bool(authority.scopes & SCOPE_TRADE) and recover(signed, authority.signature) == owner


def signer_of(signed: Signed, domain: bytes) -> bytes:
    """Who has signed the order, or the root above it: as Orders.signer finds it."""
    [node] = order_hashes([signed.order])
    for sibling in signed.path:
        node = keccak(node + sibling if node < sibling else sibling + node)
    struct = root_hash(signed.order.account, node) if signed.path else node
    return recover(digest(domain, struct), signed.signature)
