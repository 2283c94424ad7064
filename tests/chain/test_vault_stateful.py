"""The second vault and the plain account of it, driven side by side by random calls.

After each call both have taken it or both have refused it, every account is the same to the unit,
and the token says what the model holds. Hypothesis prints the steps that lead to a difference.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from benchmarks.machine import Machine, Mark
from benchmarks.vault import (
    ADMIN,
    ARBITER,
    DAILY,
    DAY_S,
    DOLLAR,
    HOUR_S,
    HOURLY,
    PAUSER,
    SETTLER,
    WATCHER,
    WEEKLY,
    Batch,
    Fill,
    Release,
    Vault,
    key,
    order_of,
    record,
    signed,
    wallet,
    window,
)
from settlement.errors import ContractRejected
from tests.chain.vault_model import Lease, Model

START_S: Final = 1_796_000_400
WALLETS: Final = 4
CALLS_MIN: Final = 10_000  # of the long profile
NUMBER = st.integers(1, WALLETS)
ANY = st.integers(0, 2**16)
KINDS = st.sampled_from((0, HOURLY, HOURLY, DAILY, WEEKLY, 4))
FILL = st.tuples(NUMBER, NUMBER, st.integers(1, 60_000), st.integers(1, 900), KINDS,
                 st.integers(-30, 40), st.sampled_from((0, 1, 500, 50_000)),
                 st.sampled_from((0, 199, 50_000)))  # fmt: skip


@cache
def _built() -> tuple[Vault, Mark]:
    vault = Vault(Machine(START_S))
    for number in range(1, WALLETS + 1):
        vault.fund(number, 100 * DOLLAR, 20 * DOLLAR)
        vault.mint(wallet(number), 10**12)
    vault.mint(WATCHER, 10**12)
    return vault, vault.machine.mark()


class VaultEqualsModel(RuleBasedStateMachine):
    calls = 0  # of all examples

    def __init__(self) -> None:
        super().__init__()
        self.vault, mark = _built()
        self.vault.machine.reset(mark)
        self.vault.head = self.vault.releases = 0
        self.model = Model(self.vault.machine.now_s, WALLETS)
        for account in self.model.accounts[1:]:
            account.free, account.bond = 100 * DOLLAR, 20 * DOLLAR
        self.batches: list[Batch] = []
        self.released: list[Release] = []
        self.questions: list[tuple[int, int, int, int]] = []
        self.withdrawals = 0

    # --- both at once -------------------------------------------------------------------------
    def both(self, is_taken: bool, call: Callable[[], Any]) -> bool:
        """The model has decided; the vault must do the same."""
        type(self).calls += 1
        refusal = ""
        try:
            call()
        except ContractRejected as error:
            refusal = str(error)
        assert is_taken == (not refusal), f"the model says {is_taken}, the vault: {refusal}"
        self.compare()
        return is_taken

    def compare(self) -> None:
        epoch = self.model.epoch
        for number, (seen, account) in enumerate(
            zip(self.vault.accounts(), self.model.accounts, strict=True)
        ):
            matured = account.matured(epoch)
            assert seen == {
                "free": account.free,
                "locked": account.locked,
                "bond": account.bond,
                "matured": matured,
                "pending": sum(amount for _, amount in account.credits) - matured,
                "exit_at": account.exit_at,
                "bond_at": account.bond_at,
            }, f"account {number}"
        assert self.vault.tokens_of(self.vault.address) == self.model.held
        assert self.vault.settler_bond() == self.model.settler_bond

    def simple(self, sender: bytes, function: str, *arguments: object, taken: bool) -> bool:
        return self.both(taken, lambda: self.vault.do(sender, function, *arguments))

    def pick(self, choice: int) -> tuple[Batch, int, Lease]:
        batch = self.batches[choice % len(self.batches)]
        index = (choice >> 6) % len(batch.fills)
        return batch, index, self.model.batches[batch.number - 1][index]

    # --- time and money -------------------------------------------------------------------------
    @rule(seconds=st.sampled_from((60, HOUR_S, DAY_S // 2, DAY_S, DAY_S, 3 * DAY_S, 7 * DAY_S)))
    def wait(self, seconds: int) -> None:
        self.vault.machine.wait(seconds)
        self.model.now += seconds
        self.compare()

    @rule(number=NUMBER, dollars=st.integers(1, 50), is_bond=st.booleans())
    def deposit(self, number: int, dollars: int, is_bond: bool) -> None:
        amount = dollars * DOLLAR + number
        taken = self.model.deposit(number, amount, is_bond)
        self.simple(wallet(number), "deposit", amount, is_bond, taken=taken)

    @rule(number=NUMBER, share=st.integers(0, 5))
    def withdraw(self, number: int, share: int) -> None:
        amount = self.model.accounts[number].free * share // 4
        self.withdrawals += 1
        taken = self.model.withdraw(number, amount)
        self.simple(SETTLER, "withdraw", self.withdrawals, number, amount, taken=taken)

    @rule(number=NUMBER, step=st.sampled_from(("request_exit", "cancel_exit", "finish_exit")))
    def leave(self, number: int, step: str) -> None:
        name = {"request_exit": "requestExit", "cancel_exit": "cancelExit"}.get(step, "finishExit")
        self.simple(wallet(number), name, taken=getattr(self.model, step)(number))

    @rule(number=NUMBER, step=st.sampled_from(("request_bond", "finish_bond")), rare=ANY)
    def leave_bond(self, number: int, step: str, rare: int) -> None:
        if step == "request_bond" and rare % 4:
            return
        if step == "finish_bond" and rare % 8 == 0 and self.model.accounts[number].bond_at:
            self.wait(100 * DAY_S)
        name = {"request_bond": "requestBond"}.get(step, "finishBond")
        self.simple(wallet(number), name, taken=getattr(self.model, step)(number))

    @rule(number=NUMBER)
    def collect(self, number: int) -> None:
        self.simple(WATCHER, "collect", number, taken=self.model.collect(number))

    @rule()
    def take(self) -> None:
        self.simple(ADMIN, "takeFees", ADMIN, taken=self.model.take_fees())
        self.simple(WATCHER, "takeOwed", taken=self.model.take_owed())

    @rule(rare=st.integers(0, 9))
    def end(self, rare: int) -> None:
        """A pause now and then, and a freeze once the settler was silent."""
        if self.model.is_paused or rare == 0:
            paused = not self.model.is_paused
            self.simple(PAUSER, "setPaused", paused, taken=self.model.set_paused(paused))
        if rare > 7:
            self.simple(WATCHER, "freeze", taken=self.model.freeze())
            number = 1 + rare % WALLETS
            self.simple(wallet(number), "escape", taken=self.model.escape(number))

    # --- batches and releases -------------------------------------------------------------------
    @rule(rows=st.lists(FILL, min_size=1, max_size=6))
    def settle(self, rows: list[tuple[int, ...]]) -> None:
        day_s = self.model.now - self.model.now % HOUR_S
        fills = [
            Fill(buyer, seller, price, qty, 1, window(kind, day_s + hours * HOUR_S),
                 buyer_fee=buyer_fee, seller_fee=seller_fee)
            for buyer, seller, price, qty, kind, hours, buyer_fee, seller_fee in rows
        ]  # fmt: skip
        taken = self.model.settle(fills)
        self.both(taken, lambda: self.batches.append(self.vault.settle(fills)))

    @precondition(lambda self: self.batches)
    @rule(choice=ANY, lies=st.lists(st.integers(0, 11), min_size=6, max_size=6), unit=ANY)
    def release(self, choice: int, lies: list[int], unit: int) -> None:
        """Some of a batch; most records lawful as far as the time is, some false."""
        batch, _, _ = self.pick(choice)
        records = [
            self._record(batch, index, lies[index], unit)
            for index in range(len(batch.fills))
            if lies[index] != 11
        ]
        if choice % 7 == 0:
            records.append(record(len(batch.fills), batch.fills[0]))  # of no lease at all
        if not records:
            return
        taken = self.model.release(batch.number - 1, records)
        self.both(taken, lambda: self.released.append(self.vault.release(batch, records)))

    def _record(self, batch: Batch, index: int, lie: int, unit: int) -> Any:
        made, lease = batch.fills[index], self.model.batches[batch.number - 1][index]
        due = lease.due(min(self.model.now, lease.stopped_at or self.model.now))
        true = record(index, made, made.notional if made.window >> 21 == 0 else due)
        if lie == 0:
            return true._replace(to_seller=max(0, true.to_seller - 1))
        if lie == 1:
            return record(index, made, unit % (made.notional + 1))
        if lie == 2:
            return true._replace(buyer=1 + unit % WALLETS)
        if lie == 3:
            return true._replace(seller=1 + unit % WALLETS)
        if lie == 4:
            return true._replace(cost=true.cost + 1)
        return true

    @precondition(lambda self: self.released)
    @rule(choice=ANY, is_other=st.booleans())
    def undo(self, choice: int, is_other: bool) -> None:
        number = choice % len(self.released)
        release = self.released[number]
        place = (choice >> 6) % len(release.all)
        batch = self.batches[release.batch - 1]
        index = min(release.all[place].lease, len(batch.fills) - 1)
        if is_other and index > 0 and release.all[place].lease >= len(batch.fills):
            at, taken = batch.place(index - 1), False  # not the last one
        else:
            at, taken = batch.place(index), self.model.undo(number, place)
        self.simple(WATCHER, "undoRelease", release.proof(place), at, taken=taken)

    @precondition(lambda self: self.batches)
    @rule(choice=ANY)
    def claim(self, choice: int) -> None:
        batch, index, lease = self.pick(choice)
        self.simple(WATCHER, "claim", batch.place(index), taken=self.model.claim(lease))

    # --- buyers, watchers, the arbiter ------------------------------------------------------------
    @precondition(lambda self: self.batches)
    @rule(choice=ANY, is_stop=st.booleans(), other=st.sampled_from((0, 0, 0, 1)))
    def say(self, choice: int, is_stop: bool, other: int) -> None:
        batch, index, lease = self.pick(choice)
        number = 1 + (lease.fill.buyer - 1 + other) % WALLETS
        name, step = (
            ("stop", self.model.stop) if is_stop else ("reportNonDelivery", self.model.report)
        )
        self.simple(wallet(number), name, batch.place(index), taken=step(lease, number))

    @precondition(lambda self: self.batches)
    @rule(choice=ANY, with_first=st.booleans())
    def challenge(self, choice: int, with_first: bool) -> None:
        batch, index, lease = self.pick(choice)
        bought = sold = lease.fill.qty
        earlier: list[Any] = []
        is_fair = True
        if with_first and index:
            first = self.model.batches[batch.number - 1][0]
            made, other = lease.fill, first.fill
            bought += other.qty * (other.buyer == made.buyer)
            sold += other.qty * (other.seller == made.seller)
            is_same = other.window == made.window and (bought, sold) != (made.qty, made.qty)
            is_fair = is_same and not first.is_void
            earlier = [batch.place(0)]
        question = (batch.number, index, bought, sold)
        taken = self.model.challenge(lease, question, is_fair)
        if self.simple(WATCHER, "challenge", batch.place(index), earlier, taken=taken):
            self.questions.append(question)

    @precondition(lambda self: self.questions)
    @rule(choice=ANY, is_answer=st.booleans())
    def decide(self, choice: int, is_answer: bool) -> None:
        number, index, bought, sold = question = self.questions[choice % len(self.questions)]
        batch = self.batches[number - 1]
        lease = self.model.batches[number - 1][index]
        made, domain = lease.fill, self.vault.domain
        call = (batch.place(index), bought, sold)
        if is_answer:
            both = (
                signed(order_of(made, True, qty=bought), key(made.buyer), domain),
                signed(order_of(made, False, qty=sold), key(made.seller), domain),
            )
            taken = self.model.answer(lease, question)
            self.simple(SETTLER, "answer", *call, *both, taken=taken)
        else:
            taken = self.model.void(lease, question)
            self.simple(WATCHER, "voidUnanswered", *call, taken=taken)

    @precondition(lambda self: self.batches)
    @rule(choice=ANY)
    def void_flawed(self, choice: int) -> None:
        batch, index, lease = self.pick(choice)
        taken = self.model.void_flawed(lease)
        self.simple(WATCHER, "voidFlawed", batch.place(index), taken=taken)

    @precondition(lambda self: self.batches)
    @rule(choice=ANY, eighths=st.integers(0, 17))
    def slash(self, choice: int, eighths: int) -> None:
        batch, index, lease = self.pick(choice)
        amount = lease.fill.notional * eighths // 8
        taken = self.model.slash(lease, amount)
        self.simple(ARBITER, "slash", batch.place(index), amount, taken=taken)

    @precondition(lambda self: self.model.settler_bond < 10_000 * DOLLAR)
    @rule()
    def add_settler_bond(self) -> None:
        self.model.settler_bond += 1_000 * DOLLAR
        self.simple(WATCHER, "addSettlerBond", 1_000 * DOLLAR, taken=True)


def run(examples: int, steps: int) -> int:
    """How many calls were compared."""
    VaultEqualsModel.calls = 0
    run_state_machine_as_test(
        VaultEqualsModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    return VaultEqualsModel.calls


def test_the_vault_does_what_the_model_says() -> None:
    assert run(examples=8, steps=30) > 0


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_the_vault_does_what_the_model_says_for_ten_thousand_calls() -> None:
    calls = 0
    while calls < CALLS_MIN:
        calls += run(examples=100, steps=60)
    print(f"{calls} calls compared")
