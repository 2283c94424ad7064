"""Our login signature is what any EIP-712 wallet makes."""

import contextlib

import pytest
from compex_client.errors import WalletError
from compex_client.wallet import (
    Domain,
    Wallet,
    address_text,
    keccak256,
    login_digest,
    parse_hex,
    recover,
)
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

secrets = st.integers(1, 2**256 - 2**130).map(lambda n: n.to_bytes(32, "big"))
DIGEST = keccak256(b"anything")


def typed_data(domain: Domain, wallet: str, nonce: bytes) -> dict[str, object]:
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Login": [
                {"name": "wallet", "type": "address"},
                {"name": "nonce", "type": "bytes32"},
            ],
        },
        "primaryType": "Login",
        "domain": {
            "name": "compex",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": address_text(domain.vault),
        },
        "message": {"wallet": wallet, "nonce": nonce},
    }


@given(secrets, st.integers(1, 2**64), st.binary(min_size=20, max_size=20), st.binary(
    min_size=32, max_size=32))  # fmt: skip
def test_the_signature_is_the_one_eth_account_makes(
    secret: bytes, chain_id: int, vault: bytes, nonce: bytes
) -> None:
    ours, theirs = Wallet(secret), Account.from_key(secret)
    domain = Domain(chain_id, vault)
    assert ours.address == theirs.address
    message = encode_typed_data(full_message=typed_data(domain, ours.address, nonce))
    signature = theirs.sign_message(message).signature
    assert ours.sign_login(domain, nonce) == bytes(signature)
    digest = login_digest(domain, ours.address_bytes, nonce)
    assert recover(digest, bytes(signature)) == ours.address_bytes


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
