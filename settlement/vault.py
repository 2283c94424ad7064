"""What the vault says and is told: its logs, accounts and calls as values, without a node.

Owns the meaning of what `VaultV2` and its other half `Disputes` log and take. Invariant: every log
of either is read, in the order in which it happened, and nothing is left out or guessed at;
amounts are integers of µUSDC, addresses 20 bytes. Pure: `chain` asks the node, and whoever follows
the vault or tells it something names it in these terms.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from engine.records import Purse
from settlement import batch, releases
from settlement.abi import Interface

VAULT: Final = Interface("VaultV2")
DISPUTES: Final = Interface("Disputes")
VERSION: Final = 2  # of the interface: a vault that answers otherwise is another one's
EXCHANGE: Final = 0  # the account that earns the fees
ROOT_BYTES: Final = 27  # of a batch's root: so much of it the vault keeps
NO_ROOT: Final = bytes(ROOT_BYTES)

# The contract's windows, in seconds: nobody can change them.
CHALLENGE_SECONDS: Final = 86_400  # a batch's fills may be challenged; then its leases released
HORIZON_SECONDS: Final = 60 * 86_400  # what ends later after its batch, anybody may void
EPOCH_SECONDS: Final = 86_400  # what is earned in one matures two later
SILENCE_SECONDS: Final = 14 * 86_400  # of the settler: then anybody may freeze the vault
BOND_SECONDS: Final = 100 * 86_400  # from asking for a bond until it may be taken
STAKE_USDC6: Final = 20_000_000  # what a question costs who asks it
PENALTY_USDC6: Final = 500_000_000  # what a wrong fill or release costs the settler
SETTLER_BOND_MIN_USDC6: Final = 10_000_000_000  # of the vaults deployed here


class VaultLog(NamedTuple):
    """One log of the vault, its fields by the names in the ABI."""

    block_number: int
    log_index: int  # among all logs of its block
    transaction_hash: bytes
    name: str
    fields: Mapping[str, Any]


class Deposit(NamedTuple):
    """One deposit as logged by the vault; `number` counts 1, 2, 3, ... vault-wide."""

    number: int
    account: int
    owner: bytes  # 20-byte wallet address of the account
    amount_usdc6: int
    purse: Purse
    block_number: int


class VaultAccount(NamedTuple):
    """One account in the vault; account 0 is the exchange, which has earnings alone."""

    account: int
    owner: bytes  # 20 bytes
    free_usdc6: int
    locked_usdc6: int
    bond_usdc6: int
    exit_at_s: int  # Unix seconds from which the owner may take the free funds; 0: no exit asked
    matured_usdc6: int = 0  # earnings that anybody may make free, by `collect`
    earning_usdc6: int = 0  # earnings that a false release would take back yet
    bond_at_s: int = 0  # Unix seconds from which the owner may take the bond; 0: not asked for

    @property
    def total_usdc6(self) -> int:
        return (
            self.free_usdc6
            + self.locked_usdc6
            + self.bond_usdc6
            + self.matured_usdc6
            + self.earning_usdc6
        )


class VaultState(NamedTuple):
    """The vault's counters at one block."""

    block_number: int
    head: int  # id of the last settled batch; 0: none
    head_root: bytes  # the first ROOT_BYTES of its root; zeros if there is none
    deposits: int  # number of the last deposit
    accounts: int  # index of the last account
    last_withdrawal: int  # id of the last withdrawal executed
    exits: int  # number of the last step of an exit
    releases: int  # id of the last release
    settler_bond_usdc6: int
    last_heard_s: int  # Unix seconds of the settler's last sign of life; once frozen, of that
    is_paused: bool
    is_frozen: bool
    token_balance_usdc6: int  # token.balanceOf(vault)


class Call(NamedTuple):
    """What a transaction does, whichever nonce and fees it is signed with."""

    to: bytes  # 20-byte address
    data: bytes
    gas: int  # limit that suffices


class Place(NamedTuple):
    """A fill of a batch and its way to the batch's root."""

    batch: int
    place: int  # in the batch
    fill: int  # its 30 bytes as one number
    path: Sequence[bytes]


class Authority(NamedTuple):
    """A session key and how its wallet named it; without a signature it is the wallet's own."""

    key: bytes = bytes(20)
    scopes: int = 0
    markets_hash: bytes = bytes(32)
    valid_from_s: int = 0
    valid_until_s: int = 0
    nonce: int = 0
    signature: bytes = b""


class SignedOrder(NamedTuple):
    """What a fill does not say of the order behind it, and the signatures."""

    price_ticks: int
    qty_lots: int
    fee_ppm_max: int
    valid_until_s: int
    path: Sequence[bytes]  # to the signed root; empty: the order itself is signed
    signature: bytes
    authority: Authority = Authority()


# --- logs -----------------------------------------------------------------------------------


def _topics() -> dict[bytes, tuple[Interface, str]]:
    """Both halves log at one address; what both have is the same in both."""
    return {
        interface.topic(event): (interface, event)
        for interface in (DISPUTES, VAULT)
        for event in interface.events
    }


_TOPICS: Final = _topics()


def read_log(log: Mapping[str, Any]) -> VaultLog | None:
    """A log as a node tells it; None for one that is not of the vault's own making."""
    topics = [bytes(topic) for topic in log["topics"]]
    if not topics or topics[0] not in _TOPICS:
        return None
    interface, event = _TOPICS[topics[0]]
    fields = interface.decode_log(event, topics, bytes(log["data"]))
    assert fields is not None, "it was found by its topic"
    return VaultLog(
        log["blockNumber"], log["logIndex"], bytes(log["transactionHash"]), event, fields
    )


def deposit_of(log: VaultLog) -> Deposit:
    """Of a log named Deposited."""
    fields = log.fields
    return Deposit(
        number=fields["number"],
        account=fields["account"],
        owner=bytes.fromhex(fields["owner"].removeprefix("0x")),
        amount_usdc6=fields["amount"],
        purse=Purse.BOND if fields["isBond"] else Purse.CASH,
        block_number=log.block_number,
    )


# --- calls ----------------------------------------------------------------------------------
# `to` is the vault. Each limit is above what the call may use, whatever slots it is the first to
# touch; what is not used costs nothing.


def settle(to: bytes, batch_id: int, packed: bytes) -> Call:
    return Call(to, VAULT.encode("settle", batch_id, packed), batch.settle_gas(packed))


def withdraw(to: bytes, withdrawal_id: int, account: int, amount_usdc6: int) -> Call:
    return Call(to, VAULT.encode("withdraw", withdrawal_id, account, amount_usdc6), 200_000)


def release(to: bytes, release_id: int, batch_id: int, accounts: bytes, records: bytes) -> Call:
    """Per record its calldata, per account a slot of locked money and one of earnings, which may be
    new, per page of 256 leases their bits."""
    pages = len(set(records[:: releases.RECORD_BYTES]))
    gas = 150_000 + 600 * (len(records) // releases.RECORD_BYTES) + 23_000 * pages
    gas += 34_000 * (len(accounts) // releases.ACCOUNT_BYTES + 1)  # and the exchange's fees
    data = VAULT.encode("release", release_id, batch_id, accounts, records)
    return Call(to, data, min(gas, batch.TRANSACTION_GAS_MAX))


def collect(to: bytes, account: int) -> Call:
    return Call(to, VAULT.encode("collect", account), 100_000)


def heartbeat(to: bytes) -> Call:
    return Call(to, VAULT.encode("heartbeat"), 60_000)


def add_settler_bond(to: bytes, amount_usdc6: int) -> Call:
    return Call(to, VAULT.encode("addSettlerBond", amount_usdc6), 150_000)


def challenge(to: bytes, place: Place, earlier: Sequence[Place]) -> Call:
    """Ask for the orders behind a fill; `earlier` fills count towards the same orders."""
    gas = 300_000 + 40_000 * len(earlier)
    return Call(to, DISPUTES.encode("challenge", place, earlier), gas)


def answer(
    to: bytes, place: Place, bought: int, sold: int, buy: SignedOrder, sell: SignedOrder
) -> Call:
    """Show both orders; `bought` and `sold` are the lots that the question was about."""
    paths = sum(len(path) for path in (place.path, buy.path, sell.path))
    data = DISPUTES.encode("answer", place, bought, sold, buy, sell)
    return Call(to, data, 300_000 + 3_000 * paths)
