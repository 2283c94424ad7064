"""The vault on a machine: fills, proofs and signatures as whoever uses it makes them.

Owns the Python side of the layouts in Fills.sol, Orders.sol and Releases.sol. Invariant: nothing
here asks the vault what it should be; roots, digests and sums are computed from the documented
layout, so that a vault which does it otherwise is found out. Tests and benchmarks of the contracts
call it.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from coincurve import PrivateKey
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from benchmarks.machine import Log, Machine, Outcome
from settlement.abi import Interface
from settlement.chain import address_of
from settlement.evm import CHAIN_ID

VAULT, DISPUTES = Interface("VaultV2"), Interface("Disputes")
DISPUTED: Final = frozenset({
    "stop", "reportNonDelivery", "challenge", "answer", "voidUnanswered", "voidFlawed",
    "undoRelease", "claim", "slash",
})  # fmt: skip
PPM: Final = 1_000_000
FILL_BYTES: Final = 30
RECORD_BYTES: Final = 21
CHUNK_RECORDS: Final = 32
DOLLAR: Final = 1_000_000
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
SETTLER_BOND_MIN: Final = 10_000 * DOLLAR
SPOT, HOURLY, DAILY, WEEKLY = range(4)
_ZERO: Final = bytes(32)


def key(number: int) -> bytes:
    """The private key of a wallet."""
    return (0xC0FFEE00 + number).to_bytes(32, "big")


def wallet(number: int) -> bytes:
    return address_of(key(number))


ADMIN, SETTLER, ARBITER, PAUSER, WATCHER = (wallet(9_000 + i) for i in range(5))


class Fill(NamedTuple):
    """As Fills.sol has it: orders by number, fees in parts per million."""

    buyer: int
    seller: int
    price: int
    qty: int
    series: int = 1
    window: int = 0
    buyer_order: int = 1
    seller_order: int = 1
    buyer_fee: int = 0
    seller_fee: int = 0

    @property
    def packed(self) -> int:
        widths = (24, 24, 24, 32, 16, 24, 32, 32, 16, 16)
        word = 0
        for value, bits in zip(self, widths, strict=True):
            assert 0 <= value < 1 << bits
            word = word << bits | value
        return word

    @property
    def notional(self) -> int:
        return self.price * self.qty

    @property
    def cost(self) -> int:
        return self.notional + self.notional * self.buyer_fee // PPM

    def divide(self, paid: int) -> tuple[int, int, int]:
        """(to the seller, back to the buyer, fees)."""
        seller_fee, buyer_fee = paid * self.seller_fee // PPM, paid * self.buyer_fee // PPM
        return paid - seller_fee, self.cost - paid - buyer_fee, seller_fee + buyer_fee

    def span(self, posted_at: int = 0) -> tuple[int, int]:
        """When delivery begins and ends; of spot hours that depends on when they were posted."""
        kind, start = self.window >> 21, (self.window & 0x1FFFFF) * HOUR_S
        if kind == SPOT:
            return posted_at, posted_at + min(36 * self.qty, 60 * DAY_S)
        hours = {HOURLY: 1, DAILY: 24, WEEKLY: 168}.get(kind, 24 * (24 + kind))
        return start, start + hours * HOUR_S

    def due(self, until: int, posted_at: int = 0) -> int:
        start, end = self.span(posted_at)
        return self.notional * max(0, min(until, end) - start) // (end - start)


def window(kind: int, start_s: int) -> int:
    assert start_s % HOUR_S == 0
    return kind << 21 | start_s // HOUR_S


def pack(fills: Sequence[Fill]) -> bytes:
    return b"".join(fill.packed.to_bytes(FILL_BYTES, "big") for fill in fills)


# --- roots and paths ------------------------------------------------------------------------


def levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """From the leaves to the root; a lone node on the right is hashed with zero."""
    found = [list(leaves)]
    while len(found[-1]) > 1:
        row = [*found[-1], _ZERO]
        found.append([keccak(row[i] + row[i + 1]) for i in range(0, len(row) - 1, 2)])
    return found


def path_of(tree: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    path: list[bytes] = []
    for row in tree[:-1]:
        sibling = index ^ 1
        path.append(row[sibling] if sibling < len(row) else _ZERO)
        index >>= 1
    return path


class Batch:
    """A batch with its tree."""

    def __init__(self, number: int, fills: Sequence[Fill]) -> None:
        self.number = number
        self.fills = list(fills)
        self.tree = levels(
            [keccak((i << 240 | f.packed).to_bytes(32, "big")) for i, f in enumerate(fills)]
        )

    @property
    def root(self) -> bytes:
        return self.tree[-1][0]

    def place(self, index: int) -> tuple[int, int, int, list[bytes]]:
        """A fill with its path, as the vault takes it."""
        return self.number, index, self.fills[index].packed, path_of(self.tree, index)


# --- releases -------------------------------------------------------------------------------


class Record(NamedTuple):
    lease: int  # its index in the batch
    buyer: int
    seller: int
    cost: int
    to_seller: int
    to_buyer: int


def record(index: int, fill: Fill, paid: int | None = None) -> Record:
    to_seller, to_buyer, _ = fill.divide(fill.notional if paid is None else paid)
    return Record(index, fill.buyer, fill.seller, fill.cost, to_seller, to_buyer)


class Release:
    """Records of one batch with their accounts, and the tree over their chunks."""

    def __init__(self, number: int, batch: int, records: Sequence[Record]) -> None:
        self.number = number
        self.batch = batch
        self.all = list(records)
        known = sorted({account for r in records for account in (r.buyer, r.seller)})
        places = {account: i for i, account in enumerate(known)}
        self.accounts = b"".join(account.to_bytes(3, "big") for account in known)
        self.records = b"".join(
            r.lease.to_bytes(2, "big")
            + bytes([places[r.buyer], places[r.seller]])
            + r.to_seller.to_bytes(6, "big")
            + r.to_buyer.to_bytes(6, "big")
            + (r.cost - r.to_seller - r.to_buyer).to_bytes(5, "big")
            for r in records
        )
        step = CHUNK_RECORDS * RECORD_BYTES
        self.chunks = [self.records[i : i + step] for i in range(0, len(self.records), step)]
        self.tree = levels([keccak(chunk) for chunk in self.chunks])

    @property
    def call(self) -> tuple[int, int, bytes, bytes]:
        return self.number, self.batch, self.accounts, self.records

    def proof(self, place: int) -> tuple[int, int, bytes, bytes, int, list[bytes], int]:
        chunk = place // CHUNK_RECORDS
        return (
            self.number, self.batch, self.accounts, self.chunks[chunk], chunk,
            path_of(self.tree, chunk), place % CHUNK_RECORDS,
        )  # fmt: skip


# --- signatures -----------------------------------------------------------------------------


def domain(vault: bytes, chain_id: int = CHAIN_ID) -> bytes:
    kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    return keccak(
        encode(
            ["bytes32", "bytes32", "bytes32", "uint256", "address"],
            [keccak(kind), keccak(b"compex"), keccak(b"1"), chain_id, vault],
        )
    )


def sign(secret: bytes, separator: bytes, struct: bytes) -> bytes:
    """65 bytes: r, s, v."""
    digest = keccak(b"\x19\x01" + separator + struct)
    raw = PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return raw[:64] + bytes([27 + raw[64]])


class Order(NamedTuple):
    account: int
    is_buy: bool
    series: int
    window: int
    price: int
    qty: int
    number: int
    fee_max: int = 50_000
    valid_until: int = 2**63

    @property
    def hash(self) -> bytes:
        kind = (
            b"Order(uint32 account,bool is_buy,uint16 series,uint32 window,uint32 price_ticks,"
            b"uint32 qty_lots,uint32 number,uint16 fee_ppm_max,uint64 valid_until_s)"
        )
        types = ["bytes32", "uint256", "bool", *["uint256"] * 7]
        return keccak(encode(types, [keccak(kind), *self]))


def order_of(fill: Fill, is_buy: bool, **changed: Any) -> Order:
    """The order that the fill says its party has placed, for exactly that."""
    account, number = (fill.buyer, fill.buyer_order) if is_buy else (fill.seller, fill.seller_order)
    order = Order(account, is_buy, fill.series, fill.window, fill.price, fill.qty, number)
    return order._replace(**changed)


class Authority(NamedTuple):
    """A session key; without a signature it is the wallet's own, or the vault was told."""

    key: bytes = bytes(20)
    scopes: int = 0
    markets_hash: bytes = keccak(b"")
    valid_from: int = 0
    valid_until: int = 0
    nonce: int = 0
    signature: bytes = b""

    def signed(self, secret: bytes, separator: bytes) -> "Authority":
        """By the wallet of this secret."""
        kind = (
            b"SessionKey(address wallet,address key,uint8 scopes,string[] markets,"
            b"uint64 valid_from_s,uint64 valid_until_s,uint64 nonce)"
        )
        types = ["bytes32", "address", "address", "uint256", "bytes32", *["uint256"] * 3]
        struct = keccak(encode(types, [keccak(kind), address_of(secret), *self[:-1]]))
        return self._replace(signature=sign(secret, separator, struct))


OWN: Final = Authority()
Signed = tuple[int, int, int, int, list[bytes], bytes, Authority]


def signed(order: Order, secret: bytes, separator: bytes, authority: Authority = OWN) -> Signed:
    """One order, one signature."""
    signature = sign(secret, separator, order.hash)
    return (
        order.price, order.qty, order.fee_max, order.valid_until, [], signature, authority,
    )  # fmt: skip


def sorted_levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """As OpenZeppelin's proofs have it: each pair in ascending order, a lone node goes up."""
    found = [list(leaves)]
    while len(found[-1]) > 1:
        row = found[-1]
        pairs = [sorted(row[i : i + 2]) for i in range(0, len(row), 2)]
        found.append([keccak(b"".join(pair)) if len(pair) == 2 else pair[0] for pair in pairs])
    return found


def signed_root(
    orders: Sequence[Order], secret: bytes, separator: bytes, authority: Authority = OWN
) -> list[Signed]:
    """All orders of one account under one signature."""
    tree = sorted_levels([order.hash for order in orders])
    kind = keccak(b"OrderRoot(uint32 account,bytes32 root)")
    struct = keccak(
        encode(["bytes32", "uint256", "bytes32"], [kind, orders[0].account, tree[-1][0]])
    )
    signature = sign(secret, separator, struct)
    found: list[Signed] = []
    for place, order in enumerate(orders):
        path: list[bytes] = []
        index = place
        for row in tree[:-1]:
            if index ^ 1 < len(row):
                path.append(row[index ^ 1])
            index >>= 1
        found.append((order.price, order.qty, order.fee_max, order.valid_until, path, signature,
                      authority))  # fmt: skip
    return found


# --- the vault ------------------------------------------------------------------------------


class Vault:
    """Wallets 1, 2, ... have the accounts 1, 2, ..."""

    def __init__(self, machine: Machine, token: str = "TestUSDC") -> None:
        self.machine = machine
        self.token_interface = Interface(token)
        self.token = machine.create(ADMIN, token)
        self.address = machine.create(
            ADMIN, "VaultV2", self.token, ADMIN, SETTLER, ARBITER, PAUSER, SETTLER_BOND_MIN
        )
        self.domain = domain(self.address)
        self.head = 0
        self.releases = 0
        self.mint(SETTLER, SETTLER_BOND_MIN)
        self.do(SETTLER, "addSettlerBond", SETTLER_BOND_MIN)

    def do(self, sender: bytes, function: str, *arguments: object) -> Outcome:
        """Raises ContractRejected."""
        interface = DISPUTES if function in DISPUTED else VAULT
        data = interface.encode(function, *arguments)
        return self.machine.transact(sender, self.address, data)

    def ask(self, function: str, *arguments: object) -> tuple[Any, ...]:
        answer = self.machine.look(ADMIN, self.address, VAULT.encode(function, *arguments))
        return VAULT.decode(function, answer)

    def do_token(self, sender: bytes, function: str, *arguments: object) -> Outcome:
        data = self.token_interface.encode(function, *arguments)
        return self.machine.transact(sender, self.token, data)

    def tokens_of(self, address: bytes) -> int:
        data = self.token_interface.encode("balanceOf", address)
        answer = self.machine.look(ADMIN, self.token, data)
        return self.token_interface.decode("balanceOf", answer)[0]

    def mint(self, to: bytes, amount: int) -> None:
        """And let the vault take it."""
        self.do_token(to, "mint", to, amount)
        self.do_token(to, "approve", self.address, 2**255)

    def fund(self, number: int, cash: int, bond: int = 0) -> None:
        self.mint(wallet(number), cash + bond)
        for amount, is_bond in ((cash, False), (bond, True)):
            if amount:
                self.do(wallet(number), "deposit", amount, is_bond)

    def settle(self, fills: Sequence[Fill]) -> Batch:
        batch = Batch(self.head + 1, fills)
        self.do(SETTLER, "settle", batch.number, pack(fills))
        self.head += 1
        return batch

    def release(self, batch: Batch, records: Sequence[Record]) -> Release:
        release = Release(self.releases + 1, batch.number, records)
        self.do(SETTLER, "release", *release.call)
        self.releases += 1
        return release

    def accounts(self) -> list[dict[str, int]]:
        """Account 0 is the exchange."""
        (views,) = self.ask("accountsFrom", 0, 2**20)
        names = ("free", "locked", "bond", "matured", "pending", "exit_at", "bond_at")
        return [dict(zip(names, view[1:], strict=True)) for view in views]

    def settler_bond(self) -> int:
        return self.ask("state")[0][2]

    def logged(self, logs: Sequence[Log], event: str) -> list[dict[str, Any]]:
        """The events of this name."""
        interface = VAULT
        try:
            interface.topic(event)
        except KeyError:
            interface = DISPUTES
        found = [interface.decode_log(event, log.topics, log.data) for log in logs]
        return [dict(fields) for fields in found if fields is not None]
