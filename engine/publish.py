"""What has been published: the only state of the engine that others may see.

The matcher runs ahead of the disk by one group of commands; this view moves only when a group is
durable. Invariant: it is exactly the state after the last published group, so nobody can act on
an order that a power cut would undo. `pipeline` writes it, the port reads it.
"""

import msgspec
import numpy as np

from engine.book import StateArray
from engine.port import Market, Rates
from engine.records import (
    ACCOUNTS_MAX,
    FEE_TIERS,
    Balances,
    Event,
    EventArray,
    EventKind,
    MarketStatus,
)

NO_OWNER = bytes(20)
NO_BALANCES = Balances(*(0,) * len(Balances._fields))


class _Saved(msgspec.Struct, array_like=True):
    owners: dict[int, bytes]
    markets: list[Market]
    rates: list[Rates]


class Published:
    def __init__(self) -> None:
        self._balances = np.zeros((ACCOUNTS_MAX, len(Balances._fields)), np.int64)
        self._owners: dict[int, bytes] = {}
        self._accounts: dict[bytes, int] = {}
        self._markets: dict[int, Market] = {}
        self._rates = [Rates(0, 0)] * FEE_TIERS

    def apply(self, state: StateArray, array: EventArray, events: list[Event]) -> None:
        """Take over what these events touched. The state may be ahead only within their group."""
        touched = np.union1d(array["account"], array["counter_account"])
        touched = touched[touched < ACCOUNTS_MAX]
        self._balances[touched] = state["balances"][0, touched]
        for event in events:
            if event.kind < EventKind.ACCOUNT_OPENED:
                continue  # the many
            if event.kind == EventKind.ACCOUNT_OPENED:
                self._owners[event.account] = event.owner
                self._accounts[event.owner] = event.account
            elif event.kind == EventKind.MARKET_LISTED:
                self._markets[event.instrument] = Market(
                    event.instrument,
                    event.product,
                    MarketStatus.CALL if event.reason else MarketStatus.OPEN,
                    event.lot_multiple,
                    event.bond_usdc6_per_lot,
                )
            elif event.kind == EventKind.FEES_SET:
                self._rates[event.side] = Rates(event.maker_fee_ppm, event.taker_fee_ppm)
            elif event.kind == EventKind.MARKET_HALTED:
                self._set_status(event.instrument, MarketStatus.HALTED)
            elif event.kind == EventKind.MARKET_RESUMED:
                called = MarketStatus.CALL if event.reason else MarketStatus.OPEN
                self._set_status(event.instrument, called)
            elif event.kind in (EventKind.MARKET_CALLED, EventKind.VOLATILITY_CALL):
                self._set_status(event.instrument, MarketStatus.CALL)
            elif event.kind == EventKind.MARKET_UNCROSSED and not event.reason:
                self._set_status(event.instrument, MarketStatus.OPEN)
            elif event.kind == EventKind.MARKET_CLOSED:
                self._set_status(event.instrument, MarketStatus.CLOSED)

    def _set_status(self, instrument: int, status: MarketStatus) -> None:
        self._markets[instrument] = self._markets[instrument]._replace(status=status)

    def balances(self, account: int) -> Balances:
        if account not in self._owners:
            return NO_BALANCES
        return Balances(*self._balances[account].tolist())

    def account_of(self, owner: bytes) -> int:
        return self._accounts.get(owner, 0)

    def owner_of(self, account: int) -> bytes:
        return self._owners.get(account, NO_OWNER)

    def markets(self) -> list[Market]:
        return list(self._markets.values())

    def rates(self, fee_tier: int) -> Rates:
        return self._rates[fee_tier]

    def save(self) -> bytes:
        """For a snapshot: what is not in the state, or not as quickly read."""
        return msgspec.msgpack.encode(_Saved(self._owners, self.markets(), self._rates))

    def load(self, saved: bytes, state: StateArray) -> None:
        """What `save` gave, into a new view, and balances as the state has them.

        Raises msgspec.MsgspecError.
        """
        found = msgspec.msgpack.decode(saved, type=_Saved)
        self._owners = found.owners
        self._accounts = {owner: account for account, owner in found.owners.items()}
        self._markets = {market.instrument: market for market in found.markets}
        self._rates = found.rates
        used = int(state["account_high"][0]) + 1
        self._balances[:used] = state["balances"][0, :used]
