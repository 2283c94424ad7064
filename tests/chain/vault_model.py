"""The second vault said slowly, in Python: what each call does, or that it is refused.

Owns a plain account of everybody's money. Invariant: money comes and goes with deposits and
payments alone, so `held` is what the token must say. It knows none of the vault's layouts; only
`test_vault_stateful.py` drives it, beside the vault itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.vault import DAY_S, DOLLAR, SETTLER_BOND_MIN, SPOT, Fill, Record

EXIT_DELAY_S: Final = 7 * DAY_S
BOND_DELAY_S: Final = 100 * DAY_S
SILENCE_S: Final = 14 * DAY_S
STAKE: Final = 20 * DOLLAR
PENALTY: Final = 500 * DOLLAR


@dataclass
class Account:
    free: int = 0
    locked: int = 0
    bond: int = 0
    exit_at: int = 0
    bond_at: int = 0
    credits: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (epoch, amount)

    def matured(self, epoch: int) -> int:
        return sum(amount for when, amount in self.credits if when + 2 <= epoch)

    def take_matured(self, epoch: int) -> int:
        amount = self.matured(epoch)
        self.credits = [entry for entry in self.credits if entry[0] + 2 > epoch]
        return amount


@dataclass
class Lease:
    fill: Fill
    posted_at: int
    is_closed: bool = False
    is_void: bool = False
    is_slashed: bool = False
    stopped_at: int = 0
    reported_at: int = 0
    open_disputes: int = 0

    @property
    def start(self) -> int:
        return self.fill.span(self.posted_at)[0]

    @property
    def end(self) -> int:
        return self.fill.span(self.posted_at)[1]

    def due(self, until: int) -> int:
        return self.fill.due(until, self.posted_at)

    def is_lawful(self, record: Record, at: int) -> bool:
        """Tries every amount that may have been paid, near the one that the refund implies."""
        made = self.fill
        if (record.buyer, record.seller, record.cost) != (made.buyer, made.seller, made.cost):
            return False
        about = (made.cost - record.to_buyer) * 1_000_000 // (1_000_000 + made.buyer_fee)
        for paid in range(max(0, about - 2), min(made.notional, about + 2) + 1):
            if made.divide(paid)[:2] == (record.to_seller, record.to_buyer):
                return self._is_due(paid, at)
        return False

    def _is_due(self, paid: int, at: int) -> bool:
        metered = self.stopped_at or self.reported_at
        if self.fill.window >> 21 == SPOT:
            return bool(metered) or paid == self.fill.notional
        due = self.due(min(at, self.stopped_at or at))
        if self.reported_at:
            return paid <= due
        return paid == due and (self.stopped_at > 0 or at >= self.end)


@dataclass
class Released:
    at: int
    leases: list[Lease | None]
    records: list[Record]
    undone: set[int] = field(default_factory=set[int])


@dataclass
class Dispute:
    deadline: int
    is_over: bool = False


class Model:
    """Each call: whether the vault takes it. Refused, nothing changes."""

    def __init__(self, now_s: int, accounts: int) -> None:
        self.now = now_s
        self.heard = now_s
        self.accounts = [Account() for _ in range(accounts + 1)]
        self.batches: list[list[Lease]] = []
        self.releases: list[Released] = []
        self.disputes: dict[tuple[int, int, int, int], Dispute] = {}
        self.settler_bond = SETTLER_BOND_MIN
        self.stakes = 0
        self.owed = 0
        self.is_paused = False
        self.is_frozen = False

    @property
    def epoch(self) -> int:
        return self.now // DAY_S

    @property
    def held(self) -> int:
        users = sum(
            a.free + a.locked + a.bond + sum(amount for _, amount in a.credits)
            for a in self.accounts
        )
        return users + self.settler_bond + self.stakes + self.owed

    @property
    def works(self) -> bool:
        return not self.is_paused and not self.is_frozen

    # --- money in and out ---------------------------------------------------------------------
    def deposit(self, number: int, amount: int, is_bond: bool) -> bool:
        account = self.accounts[number]
        if not self.works or account.exit_at:
            return False
        if is_bond:
            account.bond += amount
        else:
            account.free += amount
        return True

    def withdraw(self, number: int, amount: int) -> bool:
        account = self.accounts[number]
        if self.is_frozen or not 0 < amount <= account.free:
            return False
        account.free -= amount
        self.heard = self.now
        return True

    def request_exit(self, number: int) -> bool:
        account = self.accounts[number]
        if account.exit_at:
            return False
        account.exit_at = self.now + EXIT_DELAY_S
        return True

    def cancel_exit(self, number: int) -> bool:
        account = self.accounts[number]
        done, account.exit_at = bool(account.exit_at), 0
        return done

    def finish_exit(self, number: int) -> bool:
        account = self.accounts[number]
        if not account.exit_at or self.now < account.exit_at:
            return False
        self._pay_out(account)
        return True

    def escape(self, number: int) -> bool:
        if self.is_frozen:
            self._pay_out(self.accounts[number])
        return self.is_frozen

    def _pay_out(self, account: Account) -> None:
        account.take_matured(self.epoch)
        account.free = account.exit_at = 0

    def request_bond(self, number: int) -> bool:
        self.accounts[number].bond_at = self.now + BOND_DELAY_S
        return True

    def finish_bond(self, number: int) -> bool:
        account = self.accounts[number]
        if not account.bond or not account.bond_at or self.now < account.bond_at:
            return False
        account.bond = account.bond_at = 0
        return True

    def collect(self, number: int) -> bool:
        account = self.accounts[number]
        amount = account.take_matured(self.epoch)
        account.free += amount
        return amount > 0

    def take_fees(self) -> bool:
        return self.accounts[0].take_matured(self.epoch) > 0

    def take_owed(self) -> bool:
        done, self.owed = self.owed > 0, 0
        return done

    def set_paused(self, paused: bool) -> bool:
        self.is_paused = paused
        return True

    def freeze(self) -> bool:
        if self.is_frozen or self.now < self.heard + SILENCE_S:
            return False
        self.is_frozen, self.heard = True, self.now
        return True

    # --- batches and releases -----------------------------------------------------------------
    def settle(self, fills: Sequence[Fill]) -> bool:
        if not self.works or self.settler_bond < SETTLER_BOND_MIN:
            return False
        needed: dict[int, int] = {}
        for made in fills:
            needed[made.buyer] = needed.get(made.buyer, 0) + made.cost
        for number, amount in needed.items():
            account = self.accounts[number]
            if account.free < amount or 0 < account.exit_at <= self.now:
                return False
        for number, amount in needed.items():
            self.accounts[number].free -= amount
            self.accounts[number].locked += amount
        self.batches.append([Lease(made, self.now) for made in fills])
        self.heard = self.now
        return True

    def release(self, batch: int, records: Sequence[Record]) -> bool:
        leases = self.batches[batch]
        if not self.works or self.now < leases[0].posted_at + DAY_S:
            return False
        chosen = [leases[r.lease] if r.lease < len(leases) else None for r in records]
        if any(lease is not None and lease.is_closed for lease in chosen):
            return False
        needed: dict[int, int] = {}
        for r in records:
            needed[r.buyer] = needed.get(r.buyer, 0) + r.cost
            if r.to_buyer + r.to_seller > r.cost:
                return False
        if any(self.accounts[number].locked < amount for number, amount in needed.items()):
            return False
        for lease, r in zip(chosen, records, strict=True):
            if lease is not None:
                lease.is_closed = True
            self.accounts[r.buyer].locked -= r.cost
            for number, amount in self._parts(r):
                self.accounts[number].credits.append((self.epoch, amount))
        self.releases.append(Released(self.now, chosen, list(records)))
        self.heard = self.now
        return True

    @staticmethod
    def _parts(r: Record) -> list[tuple[int, int]]:
        rest = r.cost - r.to_seller - r.to_buyer
        return [(r.seller, r.to_seller), (r.buyer, r.to_buyer), (0, rest)]

    def undo(self, release: int, place: int) -> bool:
        of = self.releases[release]
        record, lease = of.records[place], of.leases[place]
        if place in of.undone or self.epoch > of.at // DAY_S + 1:
            return False
        if lease is not None and lease.is_lawful(record, of.at):
            return False
        of.undone.add(place)
        if lease is not None:
            lease.is_closed = False
        self.accounts[record.buyer].locked += record.cost
        for number, amount in self._parts(record):
            self.accounts[number].credits.remove((of.at // DAY_S, amount))
        self._punish(record.buyer, record.seller)
        return True

    def claim(self, lease: Lease) -> bool:
        start = lease.posted_at + DAY_S
        if not self.is_frozen:
            start = max(start, lease.end + 7 * DAY_S)
        if self.now < start or lease.is_closed:
            return False
        made = lease.fill
        said = [at for at in (lease.stopped_at, lease.reported_at) if at]
        said += [self.heard] if self.is_frozen else []
        paid = lease.due(min(said)) if said else made.notional
        to_seller, to_buyer, fees = made.divide(paid)
        if self.accounts[made.buyer].locked < made.cost:
            return False
        lease.is_closed = True
        self.accounts[made.buyer].locked -= made.cost
        self.accounts[made.buyer].free += to_buyer
        self.accounts[made.seller].free += to_seller
        self.accounts[0].credits.append((self.epoch, fees))
        return True

    # --- buyers and watchers --------------------------------------------------------------------
    def _is_own_open(self, lease: Lease, number: int) -> bool:
        is_disputed = lease.open_disputes > 0 and not lease.is_void
        return lease.fill.buyer == number and (is_disputed or not lease.is_closed)

    def stop(self, lease: Lease, number: int) -> bool:
        if not self._is_own_open(lease, number) or lease.stopped_at or self.now >= lease.end:
            return False
        lease.stopped_at = self.now
        return True

    def report(self, lease: Lease, number: int) -> bool:
        if not self._is_own_open(lease, number) or lease.reported_at or self.now < lease.start:
            return False
        lease.reported_at = self.now
        return True

    def challenge(self, lease: Lease, key: tuple[int, int, int, int], fair: bool) -> bool:
        if self.now >= lease.posted_at + DAY_S or lease.is_void or key in self.disputes or not fair:
            return False
        self.disputes[key] = Dispute(self.now + DAY_S // 2)
        lease.open_disputes += 1
        lease.is_closed = True
        self.stakes += STAKE
        return True

    def answer(self, lease: Lease, key: tuple[int, int, int, int]) -> bool:
        dispute = self.disputes.get(key)
        if dispute is None or dispute.is_over or lease.is_void:
            return False
        dispute.is_over = True
        lease.open_disputes -= 1
        lease.is_closed = lease.open_disputes > 0
        self.stakes -= STAKE
        self.settler_bond += STAKE
        return True

    def void(self, lease: Lease, key: tuple[int, int, int, int]) -> bool:
        dispute = self.disputes.get(key)
        if dispute is None or dispute.is_over or self.now < dispute.deadline:
            return False
        if not lease.is_void and not self._void(lease):
            return False
        dispute.is_over = True
        lease.open_disputes -= 1
        self.stakes -= STAKE
        self.owed += STAKE
        return True

    def void_flawed(self, lease: Lease) -> bool:
        seller = self.accounts[lease.fill.seller]
        is_flawed = (
            0 < seller.exit_at <= lease.posted_at
            or 0 < seller.bond_at <= lease.posted_at + BOND_DELAY_S - DAY_S
            or lease.end > lease.posted_at + 60 * DAY_S
        )
        if self.now >= lease.posted_at + DAY_S or lease.is_void or not is_flawed:
            return False
        return self._void(lease)

    def _void(self, lease: Lease) -> bool:
        buyer = self.accounts[lease.fill.buyer]
        if buyer.locked < lease.fill.cost:
            return False
        lease.is_closed = lease.is_void = True
        buyer.locked -= lease.fill.cost
        buyer.free += lease.fill.cost
        self._punish(lease.fill.buyer, lease.fill.seller)
        return True

    def _punish(self, buyer: int, seller: int) -> None:
        amount = min(PENALTY, self.settler_bond)
        self.settler_bond -= amount
        self.accounts[buyer].free += amount // 4
        self.accounts[seller].free += amount // 4
        self.owed += amount - amount // 4 * 2

    def slash(self, lease: Lease, amount: int) -> bool:
        made = lease.fill
        if not lease.reported_at or lease.is_slashed or lease.is_void:
            return False
        most = 2 * (made.notional - lease.due(lease.reported_at))
        if self.now >= lease.end + 30 * DAY_S or amount > most:
            return False
        lease.is_slashed = True
        seller = self.accounts[made.seller]
        taken = min(amount, seller.bond)
        seller.bond -= taken
        self.accounts[made.buyer].free += taken
        return True
