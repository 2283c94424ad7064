"""Whether a settled batch is covered by what its parties have signed: for anybody who asks.

Nothing of the exchange's is trusted but the contract: fills come from the calldata of `settle`,
owners, keys, cancellations and void fills from the vault's logs, and every signature is recovered
again. Invariant: a fill passes exactly if neither order had been cancelled, and the vault would
take the two orders shown for it as the answer to a challenge that names all their earlier fills.
`History` reads the chain, `check` is pure; the command `compex verify` puts them together.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from settlement import batch
from settlement.answers import Fill, outside, read_fill
from settlement.chain import Chain
from settlement.errors import UnknownBatch
from settlement.evidence import Evidence, Party
from settlement.orders import Signed, may_trade, separator, signer_of
from settlement.signatures import GRACE_S
from settlement.vault import ROOT_BYTES, VaultLog


class Posted(NamedTuple):
    """A batch as it was settled."""

    id: int
    packed: bytes  # the calldata's
    root: bytes  # as the vault keeps it
    posted_at_s: int

    @property
    def is_kept(self) -> bool:
        """Whether the vault's root is that of the calldata."""
        return batch.root_of(self.packed)[:ROOT_BYTES] == self.root

    def fills(self) -> Iterator[Fill]:
        for at in range(0, len(self.packed), batch.FILL_BYTES):
            yield read_fill(int.from_bytes(self.packed[at : at + batch.FILL_BYTES], "big"))


class NamedKey(NamedTuple):
    """A key that a wallet told the vault of, Unix seconds; 0: never."""

    valid_until_s: int = 0
    revoked_at_s: int = 0


@dataclass
class History:
    """What the vault says, up to one final block: of all batches up to one."""

    domain: bytes
    batches: list[Posted] = field(default_factory=list[Posted])  # 1, 2, ...
    owners: dict[int, bytes] = field(default_factory=dict[int, bytes])
    keys: dict[tuple[bytes, bytes], NamedKey] = field(
        default_factory=dict[tuple[bytes, bytes], NamedKey]
    )  # by owner and key
    cancelled: list[tuple[int, int, int]] = field(
        default_factory=list[tuple[int, int, int]]
    )  # account, numbers below, in batches since
    void: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # batch, place

    @classmethod
    async def read(cls, chain: Chain, batch_id: int) -> "History":
        """Raises UnknownBatch, ChainMismatch, ChainUnavailable. O(all logs and batches up to it):
        an order may have been filled in any of them."""
        block = await chain.final_block()
        history = cls(separator(chain.chain_id, chain.vault))
        posted: dict[int, VaultLog] = {}
        for log in await chain.vault_logs(0, block):
            if log.name == "Batch":
                posted[log.fields["id"]] = log
            else:
                history.hear(log.name, log.fields)
        if batch_id not in posted:
            raise UnknownBatch(f"the vault has settled no batch {batch_id} by block {block}")
        for number in range(1, batch_id + 1):
            log = posted[number]
            packed = await chain.settled_fills(number, log.transaction_hash)
            root = await chain.batch_root(number, block)
            time_s = await chain.block_time_s(log.block_number)
            history.batches.append(Posted(number, packed, root, time_s))
        return history

    def hear(self, name: str, fields: Mapping[str, Any]) -> None:
        """One log of the vault's."""
        if name == "AccountOpened":
            self.owners[fields["account"]] = _address(fields["owner"])
        elif name == "CancelledBelow":
            self.cancelled.append((fields["account"], fields["below"], fields["since"]))
        elif name == "Voided":
            self.void.add((fields["batch"], fields["index"]))
        elif name in {"KeyAuthorised", "KeyRevoked"}:
            place = _address(fields["owner"]), _address(fields["key"])
            known = self.keys.get(place, NamedKey())
            if name == "KeyAuthorised":
                self.keys[place] = known._replace(valid_until_s=fields["validUntil"])
            else:
                self.keys[place] = known._replace(revoked_at_s=fields["revokedAt"])

    def parties(self) -> list[Party]:
        """Whose orders the last batch names."""
        sides = ((fill, is_buy) for fill in self.batches[-1].fills() for is_buy in (True, False))
        return sorted({fill.party(is_buy) for fill, is_buy in sides})

    def is_cancelled(self, party: Party, posted_at_s: int) -> bool:
        account, number = party
        return any(
            account == who and number < below and posted_at_s >= since
            for who, below, since in self.cancelled
        )


class Objection(NamedTuple):
    """Why one side of a fill is not covered."""

    place: int  # of the fill in its batch
    is_buy: bool
    account: int
    number: int
    why: str

    def __str__(self) -> str:
        side = "buyer" if self.is_buy else "seller"
        return f"fill {self.place}: its {side}, account {self.account}, {self.why}"


class Report(NamedTuple):
    batch_id: int
    fills: int
    void: int  # of them, which are undone and not looked at
    false_roots: list[int]  # batches, up to this one, whose calldata is not what the vault keeps
    objections: list[Objection]

    @property
    def is_covered(self) -> bool:
        return not self.false_roots and not self.objections


_UNSIGNED: Final = "has signed no order {}"


def check(history: History, evidence: Evidence) -> Report:
    """Every fill of the last batch against the orders that are shown for it."""
    last = history.batches[-1]
    asked = set(history.parties())
    filled: Counter[tuple[Party, bool, int, int]] = Counter()
    objections: list[Objection] = []
    count = 0
    for posted in history.batches:
        for place, fill in enumerate(posted.fills()):
            count += posted is last
            if (posted.id, place) in history.void:
                continue
            for is_buy in (True, False):
                party = fill.party(is_buy)
                if party not in asked:
                    continue
                order = party, is_buy, fill.series, fill.window
                filled[order] += fill.qty_lots
                if posted is not last:
                    continue
                why = _objection(history, evidence, fill, is_buy, filled[order])
                if why:
                    objections.append(Objection(place, is_buy, *party, why))
    void = sum(batch_id == last.id for batch_id, _ in history.void)
    false_roots = [posted.id for posted in history.batches if not posted.is_kept]
    return Report(last.id, count, void, false_roots, objections)


def _objection(history: History, evidence: Evidence, fill: Fill, is_buy: bool, lots: int) -> str:
    """ "" if any of the orders shown covers the side of the fill, else what the last one lacks."""
    party = fill.party(is_buy)
    posted_at_s = history.batches[-1].posted_at_s
    if history.is_cancelled(party, posted_at_s):
        return f"had cancelled order {party[1]}"
    why = _UNSIGNED.format(party[1])
    for signed in evidence.get(party, ()):
        lacking = outside(signed.order, fill, is_buy, lots, posted_at_s)
        lacking = lacking or _key_objection(history, signed, posted_at_s)
        if not lacking:
            return ""
        why = f"has signed order {party[1]} {lacking}"
    return why


def _key_objection(history: History, signed: Signed, posted_at_s: int) -> str:
    """Whether the key was the owner's or might trade for it when the batch was posted: by what the
    wallet told the vault, or by what it signed. As Disputes.sol asks it."""
    owner = history.owners.get(signed.order.account, b"")
    key = signer_of(signed, history.domain)
    if not key:
        return "with no signature of it"
    if key == owner:
        return ""
    told, shown = history.keys.get((owner, key), NamedKey()), signed.authority
    if told.revoked_at_s and posted_at_s >= told.revoked_at_s:
        return "with a key that was taken back"
    if told.valid_until_s and posted_at_s <= told.valid_until_s + GRACE_S:
        return ""
    if shown.key != key or not may_trade(shown, owner, history.domain):
        return "with a key that may not trade for it"
    if not shown.valid_from_s <= posted_at_s <= shown.valid_until_s + GRACE_S:
        return "with a key whose time was over, or not begun"
    return ""


def _address(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
