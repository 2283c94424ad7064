"""Our login signature is what any EIP-712 wallet makes."""

import contextlib

import pytest
from compex_client.errors import WalletError
from compex_client.wallet import (
    Domain,
    SessionKey,
    Wallet,
    address_text,
    keccak256,
    login_digest,
    parse_hex,
    recover,
    session_key_digest,
)
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

secrets = st.integers(1, 2**256 - 2**130).map(lambda n: n.to_bytes(32, "big"))
DIGEST = keccak256(b"anything")


TYPES = {
    "Login": [("wallet", "address"), ("nonce", "bytes32")],
    "SessionKey": [
        ("wallet", "address"), ("key", "address"), ("scopes", "uint8"), ("markets", "string[]"),
        ("valid_from_s", "uint64"), ("valid_until_s", "uint64"), ("nonce", "uint64"),
    ],
    "Revocation": [("wallet", "address"), ("key", "address"), ("nonce", "uint64")],
}  # fmt: skip


def sign_elsewhere(
    secret: bytes, domain: Domain, kind: str, message: dict[str, object]
) -> tuple[bytes, str]:
    """(signature, address), by the other implementation."""
    account = Account.from_key(secret)
    typed_data: dict[str, object] = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            kind: [{"name": name, "type": its_type} for name, its_type in TYPES[kind]],
        },
        "primaryType": kind,
        "domain": {
            "name": "compex",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": address_text(domain.vault),
        },
        "message": message,
    }
    signed = account.sign_message(encode_typed_data(full_message=typed_data))
    return bytes(signed.signature), account.address


addresses = st.binary(min_size=20, max_size=20)
domains = st.builds(Domain, st.integers(1, 2**64), addresses)


@given(secrets, domains, st.binary(min_size=32, max_size=32))
def test_the_signature_is_the_one_eth_account_makes(
    secret: bytes, domain: Domain, nonce: bytes
) -> None:
    ours = Wallet(secret)
    message: dict[str, object] = {"wallet": ours.address, "nonce": nonce}
    signature, address = sign_elsewhere(secret, domain, "Login", message)
    assert ours.address == address
    assert ours.sign_login(domain, nonce) == signature
    assert recover(login_digest(domain, ours.address_bytes, nonce), signature) == ours.address_bytes


@given(
    secrets,
    domains,
    addresses,
    st.integers(0, 7),
    st.lists(st.sampled_from(["H100SXM8IBUSEB", "a.b-c.x8|*|*|SPOT", "", "µ"]), max_size=4),
    st.tuples(*[st.integers(0, 2**63 - 1)] * 3),
)
def test_an_authorisation_is_signed_as_eth_account_signs_it(
    secret: bytes,
    domain: Domain,
    key: bytes,
    scopes: int,
    markets: list[str],
    numbers: tuple[int, int, int],
) -> None:
    ours = Wallet(secret)
    terms = SessionKey(ours.address_bytes, key, scopes, tuple(markets), *numbers)
    message: dict[str, object] = {
        **terms._asdict(), "wallet": ours.address, "key": address_text(key), "markets": markets,
    }  # fmt: skip
    signature, _ = sign_elsewhere(secret, domain, "SessionKey", message)
    assert ours.sign_session_key(domain, terms) == signature
    assert recover(session_key_digest(domain, terms), signature) == ours.address_bytes


@given(secrets, domains, addresses, st.integers(0, 2**63 - 1))
def test_a_revocation_is_signed_as_eth_account_signs_it(
    secret: bytes, domain: Domain, key: bytes, nonce: int
) -> None:
    ours = Wallet(secret)
    message: dict[str, object] = {
        "wallet": ours.address, "key": address_text(key), "nonce": nonce,
    }  # fmt: skip
    signature, _ = sign_elsewhere(secret, domain, "Revocation", message)
    assert ours.sign_revocation(domain, key, nonce) == signature


@given(secrets, st.binary(min_size=32, max_size=32))
def test_nobody_makes_another_signature_of_one(secret: bytes, digest: bytes) -> None:
    """(r, n - s) with the other v recovers the same key; it is refused, as chains refuse it."""
    signature = Wallet(secret).sign_digest(digest)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])
    with pytest.raises(WalletError, match="lower half"):
        recover(digest, twin)


def test_v_may_be_0_or_1_as_some_hardware_wallets_give_it() -> None:
    wallet = Wallet(b"\7" * 32)
    signature = wallet.sign_digest(DIGEST)
    assert recover(DIGEST, signature[:64] + bytes([signature[64] - 27])) == wallet.address_bytes


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), bytes(65), bytes(66), b"\xff" * 64 + b"\0", b"\1" * 64 + b"\2",
     b"\1" * 64 + b"\x1d", bytes(32) + b"\1" * 32 + b"\0", b"\1" * 32 + bytes(32) + b"\1"],
)  # fmt: skip
def test_what_is_not_a_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(WalletError):
        recover(DIGEST, signature)


@given(st.binary(min_size=65, max_size=65))
def test_any_65_bytes_recover_some_wallet_or_are_refused(signature: bytes) -> None:
    with contextlib.suppress(WalletError):
        assert len(recover(DIGEST, signature)) == 20


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\xff" * 32, b"\1" * 31, "0x12", "zz" * 32])
def test_what_is_not_a_secret_is_refused(secret: bytes | str) -> None:
    with pytest.raises(WalletError):
        Wallet(secret)


def test_a_new_wallet_comes_from_the_randomness_given_and_skips_what_is_no_key() -> None:
    draws = iter([bytes(32), b"\xff" * 32, b"\5" * 32])
    assert Wallet.create(lambda n: next(draws)).address == Wallet(b"\5" * 32).address


def test_a_secret_is_exported_on_request_only() -> None:
    wallet = Wallet(b"\5" * 32)
    assert wallet.export_secret() == "0x" + "05" * 32
    assert Wallet(wallet.export_secret()).address == wallet.address
    assert "0505" not in repr(wallet) and wallet.address in repr(wallet)


@pytest.mark.parametrize("text", ["", "0x", "0x1", "12 4", "0x0x", "éé", "1_"])
def test_what_is_not_hex_of_that_size_is_refused(text: str) -> None:
    with pytest.raises(WalletError):
        parse_hex(text, 2)
