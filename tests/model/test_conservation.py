"""Money and capacity are conserved at every event, by sums that only events go into."""

from random import Random
from typing import Final

import pytest

from engine.records import Balances, Command, CommandKind, Purse, command_array, decode_events
from engine.reference import Reference
from engine.replay import Matcher
from tests.model.auditor import Auditor
from tests.model.flow import Flow
from tests.promises import Trial, tries

SEED: Final = 20_261_121
EPISODE_STEPS: Final = 2_500


class Audited:
    """The kernel with the auditor behind it."""

    def __init__(self) -> None:
        self.matcher = Matcher()
        self.auditor = Auditor()
        self.events = 0
        self._sequence = 0

    def apply(self, step: tuple[Command, ...]) -> list[Command]:
        """One command with the records that belong to it, as they were sequenced."""
        stamped = [record._replace(sequence=self._sequence + i) for i, record in enumerate(step, 1)]
        self._sequence += len(stamped)
        resales = {record.sequence for record in stamped if record.resale}
        for part in self.matcher.match(command_array(stamped)):
            for event in decode_events(part):
                self.auditor.hear(event, event.sequence in resales)
                self.events += 1
        self.auditor.compare(self.matcher.state)
        return stamped


@tries("conserved")
def test_money_and_capacity_are_conserved_at_every_event(trial: Trial) -> None:
    events = 0
    steps = trial.each(range(trial.budget))
    for episode in range(-(-trial.budget // EPISODE_STEPS)):
        audited, reference = Audited(), Reference()
        flow = Flow(Random(f"{SEED}-{episode}"), reference)
        for _, _ in zip(range(EPISODE_STEPS), steps, strict=False):
            stamped = audited.apply(flow.next())
            flow.observe(reference.apply_all(stamped))
        audited.auditor.compare_capacities(audited.matcher.state)
        events += audited.events
    assert next(steps, None) is None
    trial.note = f"money and capacity summed up after each of {events:,} events"


def opened() -> Audited:
    audited = Audited()
    audited.apply((Command(kind=CommandKind.OPEN_ACCOUNT, account=1, order_id=1),))
    for number, purse in enumerate(Purse, 1):
        deposit = Command(
            kind=CommandKind.DEPOSIT, account=1, client_id=number, price_ticks=100, side=purse
        )
        audited.apply((deposit,))
    return audited


@pytest.mark.parametrize("column", range(len(Balances._fields)))
def test_the_auditor_finds_a_unit_that_no_event_explains(column: int) -> None:
    audited = opened()
    audited.auditor.compare(audited.matcher.state)
    audited.matcher.state["balances"][0, 1, column] += 1
    with pytest.raises(AssertionError):
        audited.auditor.compare(audited.matcher.state)


def test_the_auditor_finds_a_withdrawal_beyond_what_is_there() -> None:
    audited = opened()
    withdrawn = Command(sequence=4, kind=CommandKind.WITHDRAW, account=1, price_ticks=100)
    [part] = audited.matcher.match(command_array([withdrawn]))
    [event] = decode_events(part)
    with pytest.raises(AssertionError, match="spent more than it has"):
        audited.auditor.hear(event._replace(price_ticks=101), resale=False)
