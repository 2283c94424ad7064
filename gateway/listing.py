"""What a market is listed with: the terms that its message leaves out, and which windows it may be.

Invariant: nobody trades hours whose delivery has begun, or that end so far ahead that the vault
voids whatever is settled of them. The administrator's session lists with it, and the node what its
settings name.
"""

from typing import Final

from compex_client import messages as m

from engine.catalog import Catalog
from engine.records import Command
from engine.rejects import Reject
from gateway import translate
from gateway.wire import BadRequest

DAY_S: Final = 86_400


def list_market(
    catalog: Catalog, message: m.Market, product: int, instrument: int, now_s: int, ahead_s: int = 0
) -> Command:
    """The command: bond and lot as the catalog has them, the gate where delivery begins.

    `ahead_s`: within so many seconds from now delivery has to end; 0 for no such limit. Raises
    BadRequest.
    """
    starts_s, ends_s = catalog.window_s(product)
    if starts_s:
        if starts_s <= now_s:
            raise BadRequest(Reject.INVALID_LISTING, "market", "its window has begun")
        if ahead_s and ends_s > now_s + ahead_s:
            words = f"its window ends more than {ahead_s // DAY_S} days ahead"
            raise BadRequest(Reject.INVALID_LISTING, "market", words)
        if message.closes_s > starts_s:
            raise BadRequest(Reject.INVALID_LISTING, "closes_s", "its window begins before")
    return translate.list_market(
        message,
        instrument,
        product,
        catalog.bond_usdc6_per_lot(product),
        catalog.lot_multiple(product),
        message.closes_s or starts_s,
    )
