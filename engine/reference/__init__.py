"""The rules of the exchange, said slowly and plainly: the executable specification.

Invariant: on any sequence of commands it gives the same events, number for number, as the kernel
in `match`. Nothing in the product calls it; model tests drive it beside the kernel.
"""

from engine.reference.auctions import Auctions
from engine.reference.compound import Compound
from engine.reference.markets import Markets
from engine.reference.money import Money
from engine.reference.quotes import Quotes
from engine.reference.waiting import Waiting


class Reference(Quotes, Compound, Waiting, Money, Markets, Auctions):
    """One shard. `apply` takes commands in sequence order, each with its parts, and returns its
    events; `apply_all` finds which records belong together."""
