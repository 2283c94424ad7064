"""The total order: consecutive, never back in time, and a client id places one command for good."""

import pytest

from engine.clock import ScriptedClock
from engine.records import (
    CLIENT_ID_MAX,
    PARTS_MAX,
    Command,
    CommandKind,
    Event,
    EventKind,
    command_array,
)
from engine.rejects import Refused, Reject
from engine.sequence import Sequencer
from tests.exchange import unpack_command

START_NS = 1_795_219_200_000_000_000
ORDER = Command(kind=CommandKind.NEW_ORDER, account=1, client_id=5, price_ticks=7, qty_lots=9)
CANCEL = Command(kind=CommandKind.CANCEL, account=1, client_id=6, order_id=3)
CANCEL_ALL = Command(kind=CommandKind.CANCEL_ALL, account=1, client_id=7)


class JumpingClock:
    """Says the times it was given, one after the other."""

    def __init__(self, *times_ns: int) -> None:
        self._times = list(times_ns)

    def now_ns(self) -> int:
        return self._times.pop(0)


@pytest.fixture
def sequencer() -> Sequencer:
    return Sequencer(ScriptedClock(START_NS))


def event(sequence: int, kind: EventKind, order_id: int = 0) -> Event:
    return Event(sequence, START_NS, order_id, 5, 7, 9, 0, 0, 1, 0, 0, kind, 0, 0)


def refusal(sequencer: Sequencer, command: Command) -> Reject:
    before = sequencer.last_sequence
    with pytest.raises(Refused) as caught:
        sequencer.sequence(command)
    assert sequencer.last_sequence == before, "a refused command takes no place"
    return caught.value.reject


def test_commands_are_numbered_from_one_and_stamped_with_the_time(sequencer: Sequencer) -> None:
    for expected in (1, 2, 3):
        sequenced, data = sequencer.sequence(ORDER._replace(client_id=0, sequence=99, time_ns=99))
        assert sequenced == (expected, False, None)
        stamped = ORDER._replace(client_id=0, sequence=expected, time_ns=START_NS)
        assert unpack_command(data) == stamped


def test_time_stands_still_while_the_clock_runs_back() -> None:
    sequencer = Sequencer(JumpingClock(START_NS, START_NS - 3600 * 10**9, START_NS + 1, 0))
    times = [
        unpack_command(sequencer.sequence(Command(kind=CommandKind.CANCEL))[1]).time_ns
        for _ in range(4)
    ]
    assert times == [START_NS, START_NS, START_NS + 1, START_NS + 1]


def test_time_goes_on_from_the_journals_last_when_the_clock_was_set_back() -> None:
    sequencer = Sequencer(ScriptedClock(START_NS))
    late = START_NS + 10**12
    sequencer.resume(command_array([CANCEL._replace(sequence=1, time_ns=late)]))
    [sequenced, data] = sequencer.sequence(ORDER)
    assert (sequenced.sequence, unpack_command(data).time_ns) == (2, late)


def test_the_same_body_again_is_a_duplicate_without_a_place(sequencer: Sequencer) -> None:
    sequencer.sequence(ORDER)
    assert sequencer.sequence(ORDER) == ((1, True, None), b"")
    answer = event(1, EventKind.ACCEPTED, order_id=44)
    sequencer.answered([answer])
    assert sequencer.sequence(ORDER) == ((1, True, answer), b"")
    assert sequencer.last_sequence == 1


def test_the_same_order_from_another_session_is_a_duplicate(sequencer: Sequencer) -> None:
    """Whoever was cut off asks again on a new connection, with a number of its own or without."""
    sequencer.sequence(ORDER._replace(session=1))
    assert sequencer.sequence(ORDER._replace(session=2)) == ((1, True, None), b"")
    sequencer.sequence(BASKET._replace(session=3), PARTS)
    assert sequencer.sequence(BASKET, PARTS) == ((2, True, None), b"")


def test_whose_session_a_cancel_all_means_is_part_of_it(sequencer: Sequencer) -> None:
    cancel = Command(kind=CommandKind.CANCEL_ALL, account=1, client_id=9, session=1)
    sequencer.sequence(cancel)
    assert refusal(sequencer, cancel._replace(session=2)) == Reject.CLIENT_ID_REUSED


def test_another_body_under_a_used_id_is_refused(sequencer: Sequencer) -> None:
    sequencer.sequence(ORDER)
    for change in (
        {"price_ticks": 8},
        {"qty_lots": 8},
        {"side": 1},
        {"instrument": 1},
        {"flags": 1},
        {"kind": CommandKind.CANCEL},
    ):
        assert refusal(sequencer, ORDER._replace(**change)) == Reject.CLIENT_ID_REUSED
    sequencer.answered([event(1, EventKind.ACCEPTED)])
    assert refusal(sequencer, ORDER._replace(price_ticks=8)) == Reject.CLIENT_ID_REUSED


def test_accounts_do_not_share_client_ids(sequencer: Sequencer) -> None:
    sequencer.sequence(ORDER)
    assert sequencer.sequence(ORDER._replace(account=2, price_ticks=8))[0].sequence == 2


def test_a_rejected_order_frees_its_id_for_any_body(sequencer: Sequencer) -> None:
    sequencer.sequence(ORDER)
    sequencer.answered([event(1, EventKind.REJECTED)])
    assert sequencer.sequence(ORDER._replace(price_ticks=8))[0] == (2, False, None)


def test_what_happens_to_an_order_later_does_not_change_its_answer(sequencer: Sequencer) -> None:
    sequencer.sequence(ORDER)
    accepted = event(1, EventKind.ACCEPTED, order_id=44)
    sequencer.answered([accepted, event(1, EventKind.FILL), event(1, EventKind.CANCELLED)])
    sequencer.answered([event(2, EventKind.CANCELLED, order_id=44)])
    assert sequencer.sequence(ORDER)[0].answer == accepted


def test_cancels_are_answered_by_their_terminal_event(sequencer: Sequencer) -> None:
    sequencer.sequence(CANCEL)
    sequencer.sequence(CANCEL_ALL)
    cancelled = event(1, EventKind.CANCELLED)
    done = event(2, EventKind.CANCEL_ALL_DONE)
    sequencer.answered([cancelled, event(2, EventKind.CANCELLED)])
    assert sequencer.sequence(CANCEL_ALL)[0].answer is None, "its orders' events do not answer it"
    sequencer.answered([done])
    assert sequencer.sequence(CANCEL)[0].answer == cancelled
    assert sequencer.sequence(CANCEL_ALL)[0].answer == done


def test_settlements_references_are_not_client_ids(sequencer: Sequencer) -> None:
    deposit = Command(kind=CommandKind.DEPOSIT, account=1, client_id=1, price_ticks=5)
    assert sequencer.sequence(deposit)[0].sequence == 1
    assert sequencer.sequence(deposit)[0] == (2, False, None)


@pytest.mark.parametrize("client_id", [CLIENT_ID_MAX + 1, (1 << 64) - 1])
def test_a_client_id_beyond_every_readers_exactness_is_refused(
    sequencer: Sequencer, client_id: int
) -> None:
    refused = refusal(sequencer, ORDER._replace(client_id=client_id))
    assert refused == Reject.CLIENT_ID_OUT_OF_RANGE


@pytest.mark.parametrize(
    "wrong",
    [
        {"account": -1},
        {"account": 1 << 32},
        {"instrument": 1 << 32},
        {"price_ticks": 1 << 63},
        {"qty_lots": -(1 << 63) - 1},
        {"side": 256},
        {"order_id": -1},
        {"client_id": -1},
        {"client_id": 1 << 64},
    ],
)
@pytest.mark.parametrize("client_id", [0, 5])
def test_a_number_its_field_cannot_hold_is_refused_without_a_gap(
    sequencer: Sequencer, wrong: dict[str, int], client_id: int
) -> None:
    fields = {"client_id": client_id} | wrong
    assert refusal(sequencer, ORDER._replace(**fields)) == Reject.INVALID_FIELD
    assert sequencer.sequence(ORDER)[0] == (1, False, None)


def test_a_resumed_sequencer_goes_on_and_knows_what_was_in_flight(sequencer: Sequencer) -> None:
    stamped = [
        unpack_command(sequencer.sequence(command)[1]) for command in (ORDER, CANCEL, CANCEL_ALL)
    ]
    accepted = event(1, EventKind.ACCEPTED, order_id=44)
    resumed = Sequencer(ScriptedClock(0))
    resumed.resume(command_array(stamped[:2]))
    resumed.answered([accepted, event(2, EventKind.REJECTED)])
    resumed.resume(command_array(stamped[2:]))
    assert resumed.last_sequence == 3
    assert resumed.sequence(ORDER)[0] == (1, True, accepted)
    assert resumed.sequence(CANCEL_ALL)[0] == (3, True, None)
    assert resumed.sequence(CANCEL._replace(order_id=4))[0] == (4, False, None)


def test_a_gap_in_what_is_resumed_is_a_broken_invariant(sequencer: Sequencer) -> None:
    with pytest.raises(AssertionError, match="no gaps"):
        sequencer.resume(command_array([ORDER._replace(sequence=2)]))


# --- commands of several records -----------------------------------------------------------------

BASKET = Command(kind=CommandKind.BASKET, account=1, client_id=8)
PARTS = [Command(kind=CommandKind.PART, instrument=i, price_ticks=5, qty_lots=1) for i in range(3)]


def unpack_all(data: bytes) -> list[Command]:
    return [unpack_command(data[i : i + 64]) for i in range(0, len(data), 64)]


def test_each_record_of_a_command_has_its_place_and_all_have_one_time() -> None:
    sequencer = Sequencer(JumpingClock(START_NS, START_NS + 5))
    sequenced, data = sequencer.sequence(BASKET, PARTS)
    assert sequenced == (1, False, None)
    records = unpack_all(data)
    assert [(r.sequence, r.time_ns) for r in records] == [(n, START_NS) for n in (1, 2, 3, 4)]
    assert records[0].parts == 3
    assert [r.instrument for r in records[1:]] == [0, 1, 2]
    assert sequencer.last_sequence == 4
    assert sequencer.sequence(ORDER)[0].sequence == 5


def test_a_client_id_names_head_and_parts_together(sequencer: Sequencer) -> None:
    sequencer.sequence(BASKET, PARTS)
    assert sequencer.sequence(BASKET, PARTS) == ((1, True, None), b"")
    sequencer.answered([event(1, EventKind.LEGS_FILLED), event(2, EventKind.ACCEPTED)])
    assert sequencer.sequence(BASKET, PARTS)[0].answer == event(1, EventKind.LEGS_FILLED)
    for other in (PARTS[:2], [], [*PARTS[:2], PARTS[2]._replace(price_ticks=6)], PARTS[::-1]):
        with pytest.raises(Refused) as caught:
            sequencer.sequence(BASKET, other)
        assert caught.value.reject == Reject.CLIENT_ID_REUSED
    assert sequencer.last_sequence == 4


def test_a_rejected_command_of_several_frees_its_id(sequencer: Sequencer) -> None:
    sequencer.sequence(BASKET, PARTS)
    sequencer.answered([event(1, EventKind.REJECTED)])
    assert sequencer.sequence(BASKET, PARTS[:1])[0] == (5, False, None)


@pytest.mark.parametrize(
    ("head", "parts", "reject"),
    [
        (PARTS[0], [], Reject.UNKNOWN_COMMAND),
        (PARTS[0], PARTS, Reject.UNKNOWN_COMMAND),
        (BASKET, [PARTS[0]] * (PARTS_MAX + 1), Reject.TOO_MANY_LEGS),
        (BASKET, [PARTS[0], ORDER], Reject.INVALID_LEGS),
        (BASKET, [PARTS[0]._replace(parts=1)], Reject.INVALID_LEGS),
        (BASKET._replace(parts=2), PARTS, Reject.INVALID_LEGS),
        (BASKET._replace(parts=2), [], Reject.INVALID_LEGS),
        (ORDER, PARTS, Reject.INVALID_LEGS),
        (ORDER._replace(parts=1), [], Reject.INVALID_LEGS),
        (BASKET, [PARTS[0]._replace(client_id=CLIENT_ID_MAX + 1)], Reject.CLIENT_ID_OUT_OF_RANGE),
        (BASKET, [PARTS[0], PARTS[1]._replace(instrument=1 << 32)], Reject.INVALID_FIELD),
    ],
)
def test_records_that_are_no_head_and_its_parts_are_refused_without_a_gap(
    sequencer: Sequencer, head: Command, parts: list[Command], reject: Reject
) -> None:
    with pytest.raises(Refused) as caught:
        sequencer.sequence(head, parts)
    assert caught.value.reject == reject
    assert sequencer.sequence(BASKET, PARTS)[0] == (1, False, None)


def test_a_resumed_sequencer_knows_commands_of_several_records(sequencer: Sequencer) -> None:
    stamped = b"".join(
        sequencer.sequence(head, parts)[1]
        for head, parts in ((ORDER, ()), (BASKET, PARTS), (CANCEL, ()))
    )
    resumed = Sequencer(ScriptedClock(0))
    resumed.resume(command_array(unpack_all(stamped)))
    answer = event(2, EventKind.LEGS_FILLED)
    resumed.answered([answer, event(3, EventKind.ACCEPTED), event(6, EventKind.CANCELLED)])
    assert resumed.last_sequence == 6
    assert resumed.sequence(BASKET, PARTS)[0] == (2, True, answer)
    with pytest.raises(Refused):
        resumed.sequence(BASKET, PARTS[:2])
