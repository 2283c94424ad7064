"""Trade on a compex exchange from Python: connect, quote, hit, cancel, watch.

`connect` opens a connection; `Client` has the requests and the typed streams; `Wallet` signs the
login; `errors` is the tree of everything raised; `messages` is the wire, field by field.
"""

from compex_client.book import Book
from compex_client.client import Client, ClockOffset, connect
from compex_client.errors import CompexClientError, Disconnected, Rejected, StreamOverflow
from compex_client.messages import Amend, Cancel, Leg, New, Quote, Replace, Scope
from compex_client.order_book import OrderBook
from compex_client.resuming import Resuming
from compex_client.signing import Terms
from compex_client.streams import BookStream, Stream
from compex_client.wallet import Wallet

__all__ = [
    "Amend",
    "Book",
    "BookStream",
    "Cancel",
    "Client",
    "ClockOffset",
    "CompexClientError",
    "Disconnected",
    "Leg",
    "New",
    "OrderBook",
    "Quote",
    "Rejected",
    "Replace",
    "Resuming",
    "Scope",
    "Stream",
    "StreamOverflow",
    "Terms",
    "Wallet",
    "connect",
]
