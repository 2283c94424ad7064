"""Kernel = specification over random episodes, event for event, every invariant at each step.

The default run takes a few episodes and replays the corpus: one file for each sequence that once
failed, and some picked by hand. The long profile takes a million steps:

    COMPEX_SEED=7 uv run pytest -m long -n 0 tests/model

says its seed and its time in the summary, and writes what fails into the corpus.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

import engine.kernel
from engine.kernel import SOURCES
from engine.records import (
    CancelReason,
    CommandKind,
    EventKind,
    Side,
)
from engine.reference import Reference
from engine.reference.state import Order
from engine.rejects import Reject
from tests.model.episodes import (
    CORPUS,
    EPISODE_STEPS,
    EpisodeError,
    Tally,
    read_steps,
    replay,
    run_episodes,
    write_steps,
)
from tests.model.flow import Flow
from tests.model.pair import Pair

SEED: Final = 7
EPISODES: Final = 8
LONG_EPISODES: Final = 400
assert LONG_EPISODES * EPISODE_STEPS == 1_000_000
FILES: Final = sorted(CORPUS.glob("*.txt"))
# A planted fault is one rule changed; so few steps tell of it, opening the exchange included.
STEPS_LEFT_MOST: Final = 16

NEVER_SEEN: Final = {
    Reject.ACCOUNT_ORDERS_FULL: "65,536 open orders of one account",
    Reject.TOO_MANY_OPEN_ORDERS: "four million open orders",
    Reject.TOO_MANY_CAPACITIES: "half a million declared capacities",
    Reject.BOOK_FULL: "a million price levels",
    Reject.QUOTED_MARKETS_FULL: "512 markets that one account quotes in",
    Reject.TOO_MANY_QUOTERS: "65,535 pairs of accounts and markets",
}


def spoken_by_the_kernel() -> set[Reject]:
    folder = Path(engine.kernel.__file__).parent
    text = "".join((folder / name).read_text("utf-8") for name in SOURCES if name != "rejects.py")
    return {Reject[name] for name in re.findall(r"\bReject\.([A-Z_]+)", text)}


def run_all(seed: int, episodes: int, record_property: Callable[[str, object], None]) -> Tally:
    tally = Tally()
    begin = time.perf_counter()
    run_episodes(seed, range(episodes), tally)
    seconds = time.perf_counter() - begin
    said = f"seed {seed}: {tally.steps} steps, {tally.events.total()} events"
    record_property("profile", f"{said}, in {seconds:.0f} s, {tally.steps / seconds:.0f} steps/s")
    return tally


def test_episodes_of_every_command_give_the_specification_s_events_and_every_outcome(
    record_property: Callable[[str, object], None],
) -> None:
    """The outcomes keep the flow honest: a command, event or reject that is new needs a maker in
    `flow.MAKERS` that brings it about."""
    tally = run_all(SEED, EPISODES, record_property)
    for path in FILES:
        replay(read_steps(path.read_text("utf-8")), tally)
    assert tally.commands.keys() == set(CommandKind)
    assert tally.events.keys() == set(EventKind)
    assert tally.cancels.keys() == set(CancelReason)
    spoken = spoken_by_the_kernel()
    assert spoken >= NEVER_SEEN.keys(), "these are said by nobody"
    assert tally.rejects.keys() == spoken - NEVER_SEEN.keys()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_million_steps_give_the_specification_s_events(
    record_property: Callable[[str, object], None],
) -> None:
    seed = int(os.environ.get("COMPEX_SEED", str(SEED)))
    tally = run_all(seed, LONG_EPISODES, record_property)
    assert tally.steps == LONG_EPISODES * EPISODE_STEPS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sequence_of_the_corpus_does_what_it_is_kept_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# "), "say what it guards"
    tally = Tally()
    replay(read_steps(text), tally)
    seen = {what.name for counter in tally.outcomes for what in counter}
    for line in re.findall(r"^# produces: (.*)$", text, re.MULTILINE):
        assert seen >= set(line.split()), "it no longer gets to what it is kept for"


# --- the driver itself can fail ------------------------------------------------------------------


def an_iceberg_keeps_its_place(reference: Any, maker: Order, qty: int) -> None:
    """Its next clip is shown where the last one stood."""
    maker.qty_lots -= qty
    if maker.qty_lots:
        return
    if not maker.hidden_lots:
        reference._unlink(maker)
        return
    maker.qty_lots = min(maker.hidden_lots, maker.display_lots)
    maker.hidden_lots -= maker.qty_lots
    reference._emit_of(EventKind.REFRESHED, maker, maker.qty_lots, 0)


def an_order_lives_through_its_last_second(order: Order, time_ns: int) -> bool:
    return order.expiry_s != 0 and order.expiry_s * 1_000_000_000 < time_ns


def a_post_only_order_may_touch(_reference: Any, book: Any, side: Side, limit: int) -> bool:
    best = book.best(Side(1 - side))
    return best is not None and (best < limit if side is Side.BUY else best > limit)


FAULTS: Final[tuple[tuple[type, str, Callable[..., object]], ...]] = (
    (Reference, "_reduce", an_iceberg_keeps_its_place),
    (Reference, "_crosses", a_post_only_order_may_touch),
    (Order, "is_expired", an_order_lives_through_its_last_second),
)


@pytest.mark.parametrize(("owner", "rule", "fault"), FAULTS, ids=[f[2].__name__ for f in FAULTS])
def test_a_planted_fault_is_found_shrunk_and_kept(
    owner: type,
    rule: str,
    fault: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    said: list[str] = []
    with monkeypatch.context() as planted:
        planted.setattr(owner, rule, fault)
        with pytest.raises(EpisodeError):
            run_episodes(SEED, range(EPISODES), Tally(), tmp_path, said.append)
        [path] = tmp_path.iterdir()
        text = path.read_text("utf-8")
        assert text in said[0] and f"uv run python -m tests.model.episodes {SEED} " in said[1]
        steps = read_steps(text)
        assert len(steps) <= STEPS_LEFT_MOST, text
        with pytest.raises(AssertionError):
            replay(steps, Tally())
        for left_out in range(len(steps)):
            replay(steps[:left_out], Tally())
    replay(steps, Tally())


def test_the_same_seed_gives_the_same_commands_and_another_one_others() -> None:
    def commands(seed: int) -> list[Any]:
        pair = Pair()
        flow = Flow(Random(seed), pair.reference)
        drawn: list[Any] = []
        for _ in range(300):
            drawn.append(flow.next())
            flow.observe(pair.apply(drawn[-1]))
        return drawn

    assert commands(1) == commands(1) != commands(2)
    assert read_steps(write_steps(commands(1))) == commands(1)


SPOILT: Final = (
    ("last_deposit", None, 1),
    ("last_withdrawal", None, 1),
    ("last_void", None, 1),
    ("last_end", None, 1),
    ("identities", "exits", 1),
    ("identities", "last_batch", 1),
    ("identities", "opened", 1),
    ("books", "product", 1),
    ("books", "status", 1),
    ("markets", "uncross_s", 1),
    ("markets", "call_seconds", 1),
    ("orders", "client_id", 1),
    ("orders", "display_lots", 1),
    ("orders", "expiry_s", 1),
    ("orders", "generation", 1),
)


@pytest.mark.parametrize(("array", "name", "more"), SPOILT)
def test_what_no_invariant_sees_is_compared(array: str, name: str | None, more: int) -> None:
    pair = Pair()
    flow = Flow(Random(3), pair.reference)
    while not pair.reference.orders:
        pair.apply(flow.next())
    pair.compare_all()
    slot = min(pair.reference.orders) & 0xFFFFFF
    index = {"identities": 1, "books": 0, "markets": 0, "orders": slot}.get(array)
    place = pair.state[0] if index is None else pair.state[array][0]
    if name is None:
        place[array] += more
    else:
        place[name][index] += more
    with pytest.raises(AssertionError):
        pair.compare_all()
