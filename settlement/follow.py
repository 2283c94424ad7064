"""The vault's own words, written down once each: what of final blocks its logs say.

    Deposited, Collected, Claimed, Voided, Slashed ─▶ vault_credit ─▶ the engine, as deposits
    Release, ReleaseUndone, BondTaken, ...         ─▶ lines of the ledger, its vault's shard
    Exit..., BondRequested                         ─▶ vault_exit, bond_request ─▶ exits
    CancelledBelow, KeyRevoked                     ─▶ cancelled_below, revoked_key ─▶ sealing
    Batch, Stopped, NonDelivery, Challenged, ...   ─▶ lease, challenge ─▶ releases, answers

Owns the tables vault_seen, vault_owner, vault_credit, vault_exit, bond_request, cancelled_below,
revoked_key and challenge. Invariant: the logs of a range of blocks and how far they are read are
written in one database transaction, so each log counts once whatever crashes; what the vault
numbers is missing nowhere, and a batch or release that was not made here halts. Only settlement's
service calls it.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from settlement import leases, postings, releases
from settlement.batch import FILL_BYTES, Fills, costs_usdc6, root_of, unpack
from settlement.chain import Chain
from settlement.database import Database
from settlement.errors import ChainMismatch, SettlementHalted
from settlement.fence import Fence
from settlement.ledger import Ledger, Log
from settlement.postings import EXCHANGE, Line
from settlement.releases import Records
from settlement.signatures import GRACE_S, POSTING_S
from settlement.vault import (
    BOND_SECONDS,
    CHALLENGE_SECONDS,
    STAKE_USDC6,
    VaultLog,
    deposit_of,
)

BLOCKS_PER_READ: Final = 5_000
_EXIT_STEPS: Final = {
    "ExitRequested": "requested",
    "ExitCancelled": "cancelled",
    "Exited": "finished",
}
# A lease whose buyer pays nothing more is released as soon as its batch cannot be challenged.
_DUE_AT_ONCE: Final = (
    f"due_at_s = CASE WHEN due_at_s = {leases.NEVER_S} THEN due_at_s"
    f" ELSE least(due_at_s, greatest($3, posted_at_s + {CHALLENGE_SECONDS})) END"
)


class Credit(NamedTuple):
    """Money that became free, or a bond, in the vault; the engine takes it as a deposit."""

    number: int  # 1, 2, 3, ... of all credits
    account: int
    owner: bytes
    amount_usdc6: int
    is_bond: bool


class Marks(NamedTuple):
    credit: int
    deposit: int
    exit: int


class Follower:
    """`read` up to a final block; what it found is in the tables."""

    def __init__(self, database: Database, fence: Fence, ledger: Ledger, chain: Chain) -> None:
        self._database = database
        self._fence = fence
        self._ledger = ledger
        self._chain = chain

    async def seen(self) -> int:
        """The block up to which the logs are written down."""
        return await self._database.value("SELECT block_number FROM vault_seen")

    async def read(self, final_block: int) -> int:
        """Write down what was logged after `seen` up to this block, which is returned."""
        seen = await self.seen()
        first = max(seen + 1, self._chain.deploy_block)
        for start in range(first, final_block + 1, BLOCKS_PER_READ):
            last = min(start + BLOCKS_PER_READ - 1, final_block)
            logs = await self._chain.vault_logs(start, last)
            blocks = {log.block_number for log in logs}
            times = {block: await self._chain.block_time_s(block) for block in blocks}
            async with self._fence.transaction():
                reading = _Reading(self._database, times)
                await reading.store(logs)
                await self._ledger.post_logs(reading.booked)
                await self._database.execute("UPDATE vault_seen SET block_number = $1", last)
        return final_block

    async def credits(self, after_number: int, limit: int) -> list[Credit]:
        """Those after this one, in order."""
        rows = await self._database.rows(
            "SELECT number, account, owner, amount_usdc6, is_bond FROM vault_credit"
            " JOIN vault_owner USING (account) WHERE number > $1 ORDER BY number LIMIT $2",
            *(after_number, limit),
        )
        return [Credit(*row.values()) for row in rows]

    async def marks(self) -> Marks:
        """How far everything that is numbered has come, as of what was read."""
        row = await self._database.row(
            "SELECT coalesce(max(number), 0), coalesce(max(deposit), 0),"
            " (SELECT coalesce(max(number), 0) FROM vault_exit) FROM vault_credit"
        )
        assert row is not None
        return Marks(*row.values())


class _Punished(NamedTuple):
    """What a penalty is for, and to whom a part of it goes."""

    transaction_hash: bytes
    lease: int
    parties: tuple[int, int]


def _address(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _lease(log: VaultLog) -> int:
    return postings.lease_of(log.fields["batch"], log.fields["index"])


class _Reading:
    """One range of blocks, log after log."""

    def __init__(self, database: Database, times_s: Mapping[int, int]) -> None:
        self._database = database
        self._times_s = times_s
        self.booked: list[Log] = []  # for the ledger
        self._credits: list[tuple[object, ...]] = []
        self._exits: list[tuple[object, ...]] = []
        self._owners: list[tuple[int, bytes]] = []
        self._punished: _Punished | None = None

    async def store(self, logs: Sequence[VaultLog]) -> None:
        value = self._database.value
        self._last_credit = await value("SELECT coalesce(max(number), 0) FROM vault_credit")
        self._last_deposit = await value("SELECT coalesce(max(deposit), 0) FROM vault_credit")
        self._last_exit = await value("SELECT coalesce(max(number), 0) FROM vault_exit")
        for log in logs:
            await self._read(log)
        copy = self._database.copy
        await copy("vault_owner", ("account", "owner"), self._owners)
        await copy(
            "vault_credit",
            ("number", "kind", "account", "is_bond", "amount_usdc6", "deposit", "block_number"),
            self._credits,
        )
        await copy(
            "vault_exit",
            ("number", "account", "step", "amount_usdc6", "block_number", "post_until_s"),
            self._exits,
        )

    async def _read(self, log: VaultLog) -> None:
        fields = log.fields
        match log.name:
            case "AccountOpened":
                self._owners.append((fields["account"], _address(fields["owner"])))
            case "Deposited":
                self._deposited(log)
            case "ExitRequested" | "ExitCancelled" | "Exited":
                self._exit(log)
            case "Collected":
                self._credit(log, "collected", fields["account"], fields["amount"])
                self._book(log, postings.collected(fields["account"], fields["amount"]))
            case "FeesTaken":
                self._book(log, postings.fees_taken(fields["amount"]))
            case "BondRequested":
                # What is posted within the grace from when it was asked for is still backed.
                unbacked_at_s = fields["bondAt"] - BOND_SECONDS + GRACE_S
                await self._database.execute(
                    "INSERT INTO bond_request VALUES ($1, $2, $3)"
                    " ON CONFLICT (account) DO UPDATE SET bond_at_s = $2, post_until_s = $3",
                    *(fields["account"], fields["bondAt"], unbacked_at_s - POSTING_S),
                )
            case "BondTaken":
                self._book(log, postings.unbonded(fields["account"], fields["amount"]))
            case "CancelledBelow":
                await self._database.execute(
                    "INSERT INTO cancelled_below VALUES ($1, $2, $3)",
                    *(fields["account"], fields["below"], fields["since"] - POSTING_S),
                )
            case "KeyRevoked":
                await self._database.execute(
                    "INSERT INTO revoked_key VALUES ($1, $2, $3)",
                    *(_address(fields["owner"]), _address(fields["key"])),
                    fields["revokedAt"] - POSTING_S,
                )
            case "SettlerBondAdded":
                self._book(log, postings.pledged(fields["amount"]))
            case "SettlerBondTaken":
                self._settler_bond_taken(log)
            case "OwedTaken":
                await self._owed_taken(log)
            case _:
                await self._read_of_leases(log)

    async def _read_of_leases(self, log: VaultLog) -> None:
        match log.name:
            case "Batch":
                await self._batch(log)
            case "Release":
                await self._release(log)
            case "ReleaseUndone":
                await self._release_undone(log)
            case "Stopped":
                await self._mark(log, f"stopped_at_s = $3, {_DUE_AT_ONCE}", log.fields["time"])
            case "NonDelivery":
                await self._mark(log, f"reported_at_s = $3, {_DUE_AT_ONCE}", log.fields["time"])
            case "Challenged":
                await self._challenged(log)
            case "Answered":
                await self._answered(log)
            case "Voided":
                await self._voided(log)
            case "Claimed":
                await self._claimed(log)
            case "Slashed":
                buyer, _ = await self._parties(log)
                amount_usdc6 = log.fields["amount"]
                self._credit(log, "slashed", buyer, amount_usdc6)
                seller: int = log.fields["seller"]
                self._book(log, postings.slashed(_lease(log), seller, amount_usdc6))
            case _:
                pass  # moves no money: roles, the pause, a key that may trade

    # --- what every log comes to ---
    def _credit(
        self, log: VaultLog, kind: str, account: int, amount_usdc6: int, *, is_bond: bool = False
    ) -> None:
        if amount_usdc6 == 0:
            return
        self._last_credit += 1
        deposit = self._last_deposit if kind == "deposit" else None
        self._credits.append(
            (self._last_credit, kind, account, is_bond, amount_usdc6, deposit, log.block_number)
        )

    def _book(self, log: VaultLog, lines: Sequence[Line]) -> None:
        if lines:
            time_ns = self._times_s[log.block_number] * 1_000_000_000
            self.booked.append(Log(log.block_number, log.log_index, time_ns, lines))

    def _deposited(self, log: VaultLog) -> None:
        deposit = deposit_of(log)
        if deposit.number != self._last_deposit + 1:
            raise ChainMismatch(f"deposit {self._last_deposit + 1} is missing")
        self._last_deposit = deposit.number
        self._credit(
            log, "deposit", deposit.account, deposit.amount_usdc6, is_bond=bool(deposit.purse)
        )

    def _exit(self, log: VaultLog) -> None:
        number = log.fields["number"]
        if number != self._last_exit + 1:
            raise ChainMismatch(f"exit {self._last_exit + 1} is missing")
        self._last_exit = number
        due_at_s = log.fields.get("exitAt")
        self._exits.append((
            number, log.fields["account"], _EXIT_STEPS[log.name], log.fields.get("amount", 0),
            log.block_number, None if due_at_s is None else due_at_s - POSTING_S,
        ))  # fmt: skip

    # --- the settler's bond ---
    def _settler_bond_taken(self, log: VaultLog) -> None:
        """Of a penalty, which follows what it is for in the same transaction, each party gets a
        quarter and whoever showed it the rest; else the administrator has taken it."""
        taken_usdc6 = log.fields["amount"]
        punished, self._punished = self._punished, None
        if punished is None or punished.transaction_hash != log.transaction_hash:
            self._book(log, postings.unpledged(taken_usdc6))
            return
        for account in punished.parties:
            self._credit(log, "penalty", account, taken_usdc6 // 4)
        self._book(log, postings.punished(punished.lease, taken_usdc6))

    async def _owed_taken(self, log: VaultLog) -> None:
        """A stake becomes what is owed when its question is voided, without a log of its own: so
        much as was taken beyond what is booked as owed was a stake before."""
        amount_usdc6 = log.fields["amount"]
        owed_usdc6: int = await self._database.value(
            "SELECT balance_usdc6 FROM ledger_account WHERE account = 0 AND bucket = 'owed'"
        )
        for booked in self.booked:
            for line in booked.lines:
                owed_usdc6 += line.amount_usdc6 * (line.to_bucket == "owed")
                owed_usdc6 -= line.amount_usdc6 * (line.from_bucket == "owed")
        refunded = postings.refunded(EXCHANGE, max(0, amount_usdc6 - owed_usdc6))
        self._book(log, [*refunded, *postings.rewarded(amount_usdc6)])

    # --- leases ---
    async def _batch(self, log: VaultLog) -> None:
        batch_id = log.fields["id"]
        packed: bytes | None = await self._database.value(
            "SELECT packed FROM batch WHERE id = $1", batch_id
        )
        if packed is None or root_of(packed) != log.fields["root"]:
            raise SettlementHalted(f"the vault's batch {batch_id} is not the one sealed here")
        posted_at_s = self._times_s[log.block_number]
        due = leases.due_at_s(unpack(packed), posted_at_s).tolist()
        rows = await self._database.rows(
            "SELECT buyer, seller, instrument, qty_lots, amount_usdc6, resold FROM fill"
            " WHERE batch_id = $1 ORDER BY buyer, event_number",
            batch_id,
        )
        fills = [tuple(row.values()) for row in rows]
        if len(fills) < len(due):  # a period of theirs was taken out already
            fills = [(None,) * 6] * len(due)
        await self._database.copy(
            "lease",
            (
                "batch_id", "place", "posted_at_s", "due_at_s", "buyer", "seller", "instrument",
                "qty_lots", "cost_usdc6", "resold",
            ),
            [
                (batch_id, place, posted_at_s, due_at_s, *fill)
                for place, (due_at_s, fill) in enumerate(zip(due, fills, strict=True))
            ],
        )  # fmt: skip

    async def _mark(self, log: VaultLog, change: str, *values: object) -> None:
        """Change the one lease that a log is about."""
        changed = await self._database.execute(
            f"UPDATE lease SET {change} WHERE batch_id = $1 AND place = $2",
            *(log.fields["batch"], log.fields["index"], *values),
        )
        if changed != 1:
            raise SettlementHalted(f"{log.name} of a lease that is not known: {dict(log.fields)}")

    async def _fill(self, log: VaultLog) -> Fills:
        """The one that a log is about."""
        packed: bytes = await self._database.value(
            f"SELECT substring(packed FROM $2 * {FILL_BYTES} + 1 FOR {FILL_BYTES}) FROM batch"
            " WHERE id = $1",
            *(log.fields["batch"], log.fields["index"]),
        )
        return unpack(packed)

    async def _parties(self, log: VaultLog) -> tuple[int, int]:
        """(buyer, seller) of the lease that a log is about."""
        fill = await self._fill(log)
        return int(fill["buyer"][0]), int(fill["seller"][0])

    async def _challenged(self, log: VaultLog) -> None:
        fields = log.fields
        self._book(log, postings.challenged(_lease(log), STAKE_USDC6))
        await self._mark(log, "disputes = disputes + 1")
        await self._database.execute(
            "INSERT INTO challenge (id, batch_id, place, bought, sold, asked_at_s)"
            " SELECT coalesce(max(id), 0) + 1, $1, $2, $3, $4, $5 FROM challenge",
            *(fields["batch"], fields["index"], fields["bought"], fields["sold"]),
            self._times_s[log.block_number],
        )

    async def _answered(self, log: VaultLog) -> None:
        fields = log.fields
        self._book(log, postings.answered(_lease(log), STAKE_USDC6))
        await self._mark(log, "disputes = disputes - 1")
        await self._database.execute(
            "UPDATE challenge SET answered = true"
            " WHERE batch_id = $1 AND place = $2 AND bought = $3 AND sold = $4",
            *(fields["batch"], fields["index"], fields["bought"], fields["sold"]),
        )

    async def _voided(self, log: VaultLog) -> None:
        buyer, seller = await self._parties(log)
        await self._mark(log, "ended = 'void', ended_at_s = $3", self._times_s[log.block_number])
        self._credit(log, "voided", buyer, log.fields["cost"])
        self._book(log, postings.annulled(_lease(log), buyer, log.fields["cost"]))
        self._punished = _Punished(log.transaction_hash, _lease(log), (buyer, seller))

    async def _claimed(self, log: VaultLog) -> None:
        fill = await self._fill(log)
        to_seller, to_buyer = log.fields["toSeller"], log.fields["toBuyer"]
        time_s = self._times_s[log.block_number]
        await self._mark(log, "ended = 'claimed', ended_at_s = $3", time_s)
        buyer, seller = await self._parties(log)
        self._credit(log, "claimed", seller, to_seller)
        self._credit(log, "claimed", buyer, to_buyer)
        cost_usdc6 = int(costs_usdc6(fill)[0])
        fees_usdc6 = cost_usdc6 - to_seller - to_buyer
        freed_usdc6 = to_seller + to_buyer
        self._book(log, postings.claimed(_lease(log), buyer, freed_usdc6, fees_usdc6))

    async def _release(self, log: VaultLog) -> None:
        release_id = log.fields["id"]
        batch_id, records = await self._records(release_id)
        lines = postings.released(release_id, records)
        total_usdc6 = sum(line.amount_usdc6 for line in lines)
        said = (log.fields["batch"], log.fields["leases"], log.fields["total"])
        if said != (batch_id, len(records), total_usdc6):
            raise SettlementHalted(f"the vault's release {release_id} is not the one built here")
        self._book(log, lines)
        await self._database.execute(
            "UPDATE lease SET ended = 'released', ended_at_s = $2 WHERE release_id = $1",
            *(release_id, self._times_s[log.block_number]),
        )

    async def _release_undone(self, log: VaultLog) -> None:
        """One record is taken back: its lease is open again, and is released anew."""
        batch_id, records = await self._records(log.fields["id"])
        place = log.fields["record"]
        record = records[place : place + 1]
        self._book(log, postings.undone(log.fields["id"], record))
        await self._database.execute(
            "UPDATE lease SET ended = NULL, ended_at_s = NULL, release_id = NULL"
            " WHERE batch_id = $1 AND place = $2",
            *(batch_id, int(record["index"][0])),
        )
        parties = int(record["buyer"][0]), int(record["seller"][0])
        lease = postings.lease_of(batch_id, int(record["index"][0]))
        self._punished = _Punished(log.transaction_hash, lease, parties)

    async def _records(self, release_id: int) -> tuple[int, Records]:
        """(batch, records) of a release that the vault has executed."""
        row = await self._database.row(
            "SELECT batch_id, accounts, records FROM release WHERE id = $1", release_id
        )
        if row is None:
            raise SettlementHalted(f"the vault's release {release_id} was not built here")
        return row["batch_id"], releases.unpack(row["accounts"], row["records"])
