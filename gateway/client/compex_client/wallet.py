"""A wallet: its key, its address, and the EIP-712 signatures that log in to the exchange and let
other keys do so.

The digests are defined here once, for both ends: domain {name: "compex", version: "1", chainId,
verifyingContract: the vault}, and the primary types Login {address wallet, bytes32 nonce},
SessionKey {address wallet, address key, uint8 scopes, string[] markets, uint64 valid_from_s,
uint64 valid_until_s, uint64 nonce} and Revocation {address wallet, address key, uint64 nonce};
`orders` has those of orders.
Invariant: a secret never appears in a repr or an error.

Sources: EIP-712 (typed data), EIP-55 (address checksum), SEC 1 §4.1.6 (public key recovery).
"""

import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak

from compex_client.errors import WalletError

ADDRESS_BYTES: Final = 20
NONCE_BYTES: Final = 32
SECRET_BYTES: Final = 32
SIGNATURE_BYTES: Final = 65
EVERY_KEY: Final = bytes(ADDRESS_BYTES)  # the `key` of a revocation of them all
_SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash, 32 bytes (the padding differs from SHA3-256)."""
    return keccak.new(data=data, digest_bits=256).digest()


DOMAIN_NAME: Final = "compex"
DOMAIN_VERSION: Final = "1"
DOMAIN_FORM: Final = (
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
LOGIN_FORM: Final = "Login(address wallet,bytes32 nonce)"
SESSION_KEY_FORM: Final = (
    "SessionKey(address wallet,address key,uint8 scopes,string[] markets,"
    "uint64 valid_from_s,uint64 valid_until_s,uint64 nonce)"
)
REVOCATION_FORM: Final = "Revocation(address wallet,address key,uint64 nonce)"
ORDER_FORM: Final = (
    "Order(uint32 account,bool is_buy,uint16 series,uint32 window,uint32 price_ticks,"
    "uint32 qty_lots,uint32 number,uint16 fee_ppm_max,uint64 valid_until_s)"
)
ORDER_ROOT_FORM: Final = "OrderRoot(uint32 account,bytes32 root)"
# Of everything that a wallet signs.
FORMS: Final = (LOGIN_FORM, SESSION_KEY_FORM, REVOCATION_FORM, ORDER_FORM, ORDER_ROOT_FORM)
_DOMAIN_TYPE: Final = keccak256(DOMAIN_FORM.encode())
_LOGIN_TYPE: Final = keccak256(LOGIN_FORM.encode())
_SESSION_KEY_TYPE: Final = keccak256(SESSION_KEY_FORM.encode())
_REVOCATION_TYPE: Final = keccak256(REVOCATION_FORM.encode())
_NAME: Final = keccak256(DOMAIN_NAME.encode())
_VERSION: Final = keccak256(DOMAIN_VERSION.encode())


class Domain(NamedTuple):
    """What a signature is for: one vault on one chain, and nothing else anywhere."""

    chain_id: int
    vault: bytes  # 20 bytes

    def separator(self) -> bytes:
        return keccak256(
            _DOMAIN_TYPE
            + _NAME
            + _VERSION
            + self.chain_id.to_bytes(32, "big")
            + self.vault.rjust(32, b"\0")
        )


class SessionKey(NamedTuple):
    """What a wallet signs to let a key act for it; `messages.Authorise` tells what it means."""

    wallet: bytes  # 20 bytes
    key: bytes  # 20 bytes: the address of the key
    scopes: int
    markets: tuple[str, ...]
    valid_from_s: int
    valid_until_s: int
    nonce: int


def _address_word(address: bytes) -> bytes:
    assert len(address) == ADDRESS_BYTES
    return address.rjust(32, b"\0")


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _typed_digest(domain: Domain, struct: bytes) -> bytes:
    return keccak256(b"\x19\x01" + domain.separator() + keccak256(struct))


def login_digest(domain: Domain, wallet: bytes, nonce: bytes) -> bytes:
    """The 32 bytes to sign: `wallet` is 20 bytes, `nonce` 32."""
    assert len(nonce) == NONCE_BYTES
    return _typed_digest(domain, _LOGIN_TYPE + _address_word(wallet) + nonce)


def session_key_digest(domain: Domain, terms: SessionKey) -> bytes:
    """The 32 bytes that the wallet signs. The markets must be valid text."""
    markets = keccak256(b"".join(keccak256(market.encode()) for market in terms.markets))
    return _typed_digest(
        domain,
        _SESSION_KEY_TYPE
        + _address_word(terms.wallet)
        + _address_word(terms.key)
        + _word(terms.scopes)
        + markets
        + _word(terms.valid_from_s)
        + _word(terms.valid_until_s)
        + _word(terms.nonce),
    )


def revocation_digest(domain: Domain, wallet: bytes, key: bytes, nonce: int) -> bytes:
    """The 32 bytes that the wallet signs; `key` may be EVERY_KEY."""
    return _typed_digest(
        domain, _REVOCATION_TYPE + _address_word(wallet) + _address_word(key) + _word(nonce)
    )


def recover(digest: bytes, signature: bytes) -> bytes:
    """The 20-byte address whose key made the signature r | s | v over a 32-byte digest.

    `v` may be 0, 1, 27 or 28. Raises WalletError if no key can have made it, and for an `s` in the
    upper half, which no wallet makes (EIP-2): so nobody can turn one signature into another.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise WalletError(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    parity = signature[64] - 27 if signature[64] >= 27 else signature[64]
    if parity not in {0, 1}:
        raise WalletError("the last byte of a signature is 0, 1, 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _SECP256K1_ORDER // 2:
        raise WalletError("the s of a signature is in the lower half (EIP-2)")
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([parity]), digest, hasher=None
        )
    except ValueError as error:
        raise WalletError("no key can have made this signature") from error
    return _address_of(key)


def _address_of(key: PublicKey) -> bytes:
    return keccak256(key.format(compressed=False)[1:])[12:]


def address_text(address: bytes) -> str:
    """20 bytes → 0x and 40 hex digits, upper and lower case as EIP-55 checks them."""
    assert len(address) == ADDRESS_BYTES
    digits = address.hex()
    mask = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        c.upper() if int(m, 16) >= 8 else c for c, m in zip(digits, mask, strict=False)
    )


def parse_hex(text: str, size_bytes: int) -> bytes:
    """Hex digits, with or without 0x → exactly that many bytes. Raises WalletError."""
    digits = text.removeprefix("0x")
    # bytes.fromhex would let spaces pass; isascii and isalnum together shut them out.
    if len(digits) != 2 * size_bytes or not (digits.isascii() and digits.isalnum()):
        raise WalletError(f"{size_bytes} bytes in hex are expected")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise WalletError(f"{size_bytes} bytes in hex are expected") from None


class Wallet:
    """One key. `secret` is 32 bytes, or their hex; raises WalletError if they are no key."""

    def __init__(self, secret: bytes | str) -> None:
        raw = parse_hex(secret, SECRET_BYTES) if isinstance(secret, str) else secret
        if len(raw) != SECRET_BYTES or not 0 < int.from_bytes(raw, "big") < _SECP256K1_ORDER:
            raise WalletError("a secret is 32 bytes, above zero and below the order of secp256k1")
        self._key = PrivateKey(raw)
        self.address_bytes: Final = _address_of(self._key.public_key)
        self.address: Final = address_text(self.address_bytes)

    @classmethod
    def create(cls, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> "Wallet":
        """A new key. `random_bytes(n)` gives n bytes; the default is the system's."""
        while True:
            raw = random_bytes(SECRET_BYTES)
            if 0 < int.from_bytes(raw, "big") < _SECP256K1_ORDER:
                return cls(raw)

    def export_secret(self) -> str:
        """0x and 64 hex digits: whoever has them has the money."""
        return "0x" + self._key.secret.hex()

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes r | s | v with v 27 or 28; deterministic (RFC 6979)."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return raw[:64] + bytes([27 + raw[64]])

    def sign_login(self, domain: Domain, nonce: bytes, wallet: bytes = b"") -> bytes:
        """For this wallet or, as a key that it authorised, for another."""
        return self.sign_digest(login_digest(domain, wallet or self.address_bytes, nonce))

    def sign_session_key(self, domain: Domain, terms: SessionKey) -> bytes:
        return self.sign_digest(session_key_digest(domain, terms))

    def sign_revocation(self, domain: Domain, key: bytes, nonce: int) -> bytes:
        return self.sign_digest(revocation_digest(domain, self.address_bytes, key, nonce))

    def __repr__(self) -> str:
        return f"Wallet({self.address})"
