"""Every reason to refuse, numbered. Append-only: a number is never reused and never changes.

1xxx the frame or the session, 2xxx the order, 3xxx money and capacity, 4xxx the market,
5xxx settlement and administration, 6xxx the node. Anybody may import this module.
"""

from enum import IntEnum
from typing import Final


class Reject(IntEnum):
    # 1xxx: said by the gateway, before anything is sequenced
    MALFORMED_FRAME = 1001
    UNKNOWN_MESSAGE = 1002
    INVALID_FIELD = 1003
    NOT_LOGGED_IN = 1004
    ALREADY_LOGGED_IN = 1005
    BAD_SIGNATURE = 1006
    NONCE_REPLAYED = 1007
    WRONG_WALLET = 1008
    NO_ACCOUNT = 1009
    NOT_ADMINISTRATOR = 1010
    RATE_LIMITED = 1011
    TOO_MANY_SUBSCRIPTIONS = 1012
    UNKNOWN_CHANNEL = 1013
    KEY_NOT_AUTHORISED = 1014
    KEY_EXPIRED = 1015
    KEY_REVOKED = 1016
    OUT_OF_SCOPE = 1017
    MARKET_OUT_OF_SCOPE = 1018
    TOO_MANY_KEYS = 1019
    HISTORY_GONE = 1020
    ORDERS_UNSIGNED = 1021
    ACCOUNT_SUSPENDED = 1022
    # 2xxx: the order
    PRICE_OUT_OF_RANGE = 2001
    PRICE_NOT_ON_TICK = 2002
    QTY_OUT_OF_RANGE = 2003
    QTY_NOT_A_MULTIPLE = 2004
    CLIENT_ID_REUSED = 2005
    UNKNOWN_ORDER = 2006
    POST_ONLY_WOULD_TRADE = 2007
    FOK_NOT_FILLABLE = 2008
    UNKNOWN_COMMAND = 2009
    CONFLICTING_FLAGS = 2010
    CLIENT_ID_OUT_OF_RANGE = 2011
    INVALID_TERMS = 2012
    NOTHING_TO_TRADE_WITH = 2013
    MINIMUM_NOT_FILLABLE = 2014
    ACCOUNT_ORDERS_FULL = 2015
    WAITING_NOT_AMENDABLE = 2016
    TOO_MANY_LEGS = 2017
    INVALID_LEGS = 2018
    LEGS_NOT_FILLABLE = 2019
    TOO_DEEP = 2020
    QUOTED_MARKETS_FULL = 2021
    # 3xxx: money and capacity
    UNKNOWN_ACCOUNT = 3001
    INSUFFICIENT_BALANCE = 3002
    INSUFFICIENT_BOND = 3003
    INSUFFICIENT_CAPACITY = 3004
    AMOUNT_OUT_OF_RANGE = 3005
    CAPACITY_IN_USE = 3006
    ACCOUNT_CLOSED = 3007
    # 4xxx: the market
    UNKNOWN_INSTRUMENT = 4001
    MARKET_HALTED = 4002
    ALREADY_LISTED = 4003
    NOT_HALTED = 4004
    NOT_OPEN = 4005
    INVALID_LISTING = 4006
    MARKET_CLOSED = 4007
    NOT_IN_A_CALL = 4008
    OUTSIDE_BAND = 4009
    NO_CALL = 4010
    UNCROSSING = 4011
    INVALID_BANDS = 4012
    # 5xxx: settlement and administration
    ACCOUNT_EXISTS = 5001
    DEPOSIT_OUT_OF_ORDER = 5002
    ESCROW_OUT_OF_ORDER = 5003
    ESCROW_EXCEEDS_PENDING = 5004
    WITHDRAWAL_OUT_OF_ORDER = 5005
    WITHDRAWAL_EXCEEDS_LEAVING = 5006
    VOID_OUT_OF_ORDER = 5007
    VOID_EXCEEDS_FILLS = 5008
    EXIT_OUT_OF_ORDER = 5009
    EXIT_EXCEEDS_FREE = 5010
    INVALID_FEES = 5011
    END_OUT_OF_ORDER = 5012
    END_EXCEEDS_LEASES = 5013
    # 6xxx: the node
    TOO_MANY_OPEN_ORDERS = 6001
    BUSY = 6002
    STOPPED = 6003
    TOO_MANY_ACCOUNTS = 6004
    TOO_MANY_INSTRUMENTS = 6005
    TOO_MANY_CAPACITIES = 6006
    BOOK_FULL = 6007
    TOO_MANY_QUOTERS = 6008
    DISK_NEARLY_FULL = 6009
    DRAINING = 6010


WORDS: Final[dict[Reject, str]] = {
    Reject.MALFORMED_FRAME: "the frame is not a valid message",
    Reject.UNKNOWN_MESSAGE: "no message has this type",
    Reject.INVALID_FIELD: "a field is missing, of the wrong type or out of its range",
    Reject.NOT_LOGGED_IN: "log in first",
    Reject.ALREADY_LOGGED_IN: "this connection is logged in already",
    Reject.BAD_SIGNATURE: "the signature is not one of 65 bytes that recovers a wallet",
    Reject.NONCE_REPLAYED: "the nonce is not the one this connection was given, or was used",
    Reject.WRONG_WALLET: "the signature recovers another wallet than the one claimed",
    Reject.NO_ACCOUNT: "this wallet has no account; deposit into the vault to open one",
    Reject.NOT_ADMINISTRATOR: "only the administrator's wallet may do this",
    Reject.RATE_LIMITED: "too many requests; retry after retry_ms",
    Reject.TOO_MANY_SUBSCRIPTIONS: "this connection has as many subscriptions as it may",
    Reject.UNKNOWN_CHANNEL: "no channel has this name",
    Reject.KEY_NOT_AUTHORISED: "the wallet has not authorised the key that signed",
    Reject.KEY_EXPIRED: "the session key's time is over, or not yet begun",
    Reject.KEY_REVOKED: "the session key was revoked, or replaced by a later authorisation",
    Reject.OUT_OF_SCOPE: "the session key has not the scope that this needs",
    Reject.MARKET_OUT_OF_SCOPE: "the session key is not for this market",
    Reject.TOO_MANY_KEYS: "this wallet has as many session keys as it may",
    Reject.HISTORY_GONE: "the account's stream is not kept as far back as that",
    Reject.ORDERS_UNSIGNED: "orders of this account wait for their signatures: sign them first",
    Reject.ACCOUNT_SUSPENDED: "fills were undone as this account did not sign: it waits a while",
    Reject.PRICE_OUT_OF_RANGE: "the price must be above zero and at most 1677.7214",
    Reject.PRICE_NOT_ON_TICK: "the price is not a multiple of 0.0001",
    Reject.QTY_OUT_OF_RANGE: "the quantity must be above zero and at most 10000000",
    Reject.QTY_NOT_A_MULTIPLE: "the quantity is not a multiple of the market's lot",
    Reject.CLIENT_ID_REUSED: "this client id was used for another order",
    Reject.UNKNOWN_ORDER: "no open order of this account has this id",
    Reject.POST_ONLY_WOULD_TRADE: "a post-only order would have traded",
    Reject.FOK_NOT_FILLABLE: "a fill-or-kill order could not be filled whole",
    Reject.UNKNOWN_COMMAND: "no command has this kind",
    Reject.CONFLICTING_FLAGS: "post-only has to rest and a market order must not",
    Reject.CLIENT_ID_OUT_OF_RANGE: "a client id is a whole number from 1 to 2^53 - 1",
    Reject.INVALID_TERMS: "the order's terms contradict each other or its quantity",
    Reject.NOTHING_TO_TRADE_WITH: "a market order found nobody on the other side",
    Reject.MINIMUM_NOT_FILLABLE: "the order's minimum quantity could not be filled at once",
    Reject.ACCOUNT_ORDERS_FULL: "this account has as many open orders as one account may",
    Reject.WAITING_NOT_AMENDABLE: "an order that waits for its condition cannot be amended",
    Reject.TOO_MANY_LEGS: "the command has more legs than one may have",
    Reject.INVALID_LEGS: "the legs do not fit each other or what the command means",
    Reject.LEGS_NOT_FILLABLE: "the legs cannot be filled at once within their limits",
    Reject.TOO_DEEP: "more resting orders stand within the limits than one command looks at",
    Reject.QUOTED_MARKETS_FULL: "this account quotes in as many markets as one account may",
    Reject.UNKNOWN_ACCOUNT: "no such account",
    Reject.INSUFFICIENT_BALANCE: "the free balance does not cover this",
    Reject.INSUFFICIENT_BOND: "the free bond does not cover this ask",
    Reject.INSUFFICIENT_CAPACITY: "the declared capacity does not cover this ask",
    Reject.AMOUNT_OUT_OF_RANGE: "the amount must be above zero and within the limit",
    Reject.CAPACITY_IN_USE: "open asks or sold hours need more than this capacity",
    Reject.ACCOUNT_CLOSED: "this wallet is leaving the vault; it may only withdraw",
    Reject.UNKNOWN_INSTRUMENT: "no such market",
    Reject.MARKET_HALTED: "the market is halted; orders may only be cancelled",
    Reject.ALREADY_LISTED: "this market is listed already",
    Reject.NOT_HALTED: "the market is not halted",
    Reject.NOT_OPEN: "the market is not open",
    Reject.INVALID_LISTING: "a listing needs a product, a lot multiple, a bond and a later gate",
    Reject.MARKET_CLOSED: "the market is closed for good",
    Reject.NOT_IN_A_CALL: "this kind of order cannot be entered during an auction call",
    Reject.OUTSIDE_BAND: "the limit is beyond the market's price band around its reference price",
    Reject.NO_CALL: "the market is not in an auction call",
    Reject.UNCROSSING: "the market is being uncrossed; orders may only be cancelled",
    Reject.INVALID_BANDS: "bands are up to 1000000 ppm; a dynamic one calls for 1 to 86400 seconds",
    Reject.ACCOUNT_EXISTS: "this account is open already",
    Reject.DEPOSIT_OUT_OF_ORDER: "deposits are credited once each, in the vault's order",
    Reject.ESCROW_OUT_OF_ORDER: "this account's batch was confirmed already",
    Reject.ESCROW_EXCEEDS_PENDING: "more escrow confirmed than fills are pending",
    Reject.WITHDRAWAL_OUT_OF_ORDER: "withdrawals are confirmed or cancelled once each, in order",
    Reject.WITHDRAWAL_EXCEEDS_LEAVING: "more withdrawn than was on its way",
    Reject.VOID_OUT_OF_ORDER: "fills are voided once each, in order",
    Reject.VOID_EXCEEDS_FILLS: "more voided than the two accounts have filled and not settled",
    Reject.EXIT_OUT_OF_ORDER: "an account's exits are confirmed once each, in order",
    Reject.EXIT_EXCEEDS_FREE: "more left with the exit than is free",
    Reject.END_OUT_OF_ORDER: "leases are ended once each, in order",
    Reject.END_EXCEEDS_LEASES: "more ended than the account has in leases",
    Reject.INVALID_FEES: "no such tier, or its rates are not maker <= taker <= 50000",
    Reject.TOO_MANY_OPEN_ORDERS: "the exchange holds as many open orders as it can",
    Reject.BUSY: "the exchange has as much work queued as it takes; nothing was sequenced",
    Reject.STOPPED: "the exchange has stopped taking commands",
    Reject.TOO_MANY_ACCOUNTS: "the exchange holds as many accounts as it can",
    Reject.TOO_MANY_INSTRUMENTS: "the exchange lists as many markets as it can",
    Reject.TOO_MANY_CAPACITIES: "the exchange holds as many declared capacities as it can",
    Reject.BOOK_FULL: "the exchange holds as many price levels as it can",
    Reject.TOO_MANY_QUOTERS: "the exchange holds the quotes of as many accounts as it can",
    Reject.DISK_NEARLY_FULL: "the journal's disk is nearly full; only cancels are taken",
    Reject.DRAINING: "the node is shutting down; connect again after retry_ms",
}
assert set(WORDS) == set(Reject), "every number has its words"


class CompexError(Exception):
    """Root of everything the engine raises at a caller.

    CompexError
    ├── Refused             a command was not sequenced; nothing changed
    ├── JournalError        the journal cannot be read or written
    │   ├── DamagedJournal  bytes in the middle are not what was written
    │   ├── DiskFailed      its disk failed or is full; it is not asked again
    │   ├── OtherBuild      it is another build's and must be adopted first
    │   └── EngineBroken    something broke behind it; nothing after that can be trusted
    ├── SnapshotError       a snapshot cannot be written, or not be gone on from
    └── CatalogError        the catalog or a symbol is not valid
    """


class Refused(CompexError):
    """A command refused before sequencing, with its number."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(f"{reject.value} {reject.name}: {WORDS[reject]}")
        self.reject = reject


class JournalError(CompexError):
    pass


class DamagedJournal(JournalError):
    pass


class DiskFailed(JournalError):
    """A retry would lie: a disk that failed to sync may have forgotten what it was given."""


class OtherBuild(JournalError):
    """Nothing was written."""


class EngineBroken(JournalError):
    """The journal has everything before it."""


class SnapshotError(CompexError):
    """A start does without it, or takes an older one."""


class CatalogError(CompexError):
    pass
