"""Orders signed for tests, really: whatever they are for, at any price, for any quantity, by their
account's own key, and handed in as the gateway hands them in."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from coincurve import PrivateKey

from engine.records import PRICE_TICKS_MAX, QTY_LOTS_MAX
from settlement import orders
from settlement.chain import address_of
from settlement.products import settled
from settlement.signatures import Handed, Signatures

DOMAIN: Final = orders.separator(61_337, b"\x11" * 20)
VALID_UNTIL_S: Final = (1 << 32) - 1


class Placed(NamedTuple):
    """An order of the engine's, and the number to sign it under; 0: the next."""

    account: int
    order_id: int
    is_buy: bool
    instrument: int
    product: int
    number: int = 0


def sign(domain: bytes, secret: bytes, account: int, handed: Sequence[Handed]) -> bytes:
    """65 bytes: of the order, or of the root over all of them."""
    signed = [
        orders.Order(
            account, x.is_buy, *settled(x.product), x.price_ticks, x.qty_lots, x.number,
            x.fee_ppm_max, x.valid_until_s,
        )
        for x in handed
    ]  # fmt: skip
    struct = orders.signed_hash(account, orders.order_hashes(signed))
    return made(domain, secret, struct)


def made(domain: bytes, secret: bytes, struct: bytes) -> bytes:
    raw = PrivateKey(secret).sign_recoverable(orders.digest(domain, struct), hasher=None)
    return raw[:64] + bytes([27 + raw[64]])


async def sign_all(
    database_url: str, domain: bytes, keys: Mapping[int, bytes], placed: Sequence[Placed]
) -> None:
    """`keys` are the accounts'."""
    signatures = Signatures(
        database_url, domain, lambda account: address_of(keys[account]), lambda: 0
    )
    try:
        for account in sorted({x.account for x in placed}):
            number = await signatures.last_number(account)
            handed: list[Handed] = []
            for x in placed:
                if x.account == account:
                    number = x.number or number + 1
                    price_ticks = PRICE_TICKS_MAX if x.is_buy else 1
                    handed.append(
                        Handed(x.order_id, number, x.product, x.instrument, x.is_buy, price_ticks,
                               QTY_LOTS_MAX, 50_000, VALID_UNTIL_S)
                    )  # fmt: skip
            signature = sign(domain, keys[account], account, handed)
            outcome = await signatures.hand_in(account, handed, signature)
            assert outcome.reject is None, outcome
    finally:
        await signatures.close()
