"""The demonstration's script: a pure function of its seed that everybody in it can afford."""

from collections import defaultdict

import pytest

from engine.catalog import load_catalog
from engine.records import cost_usdc6
from gateway.demo.prices import load_quotes
from gateway.demo.script import (
    HOUR_NS,
    OPENING_NS,
    START_NS,
    TAKER_FEE_PPM,
    Script,
    write_script,
)


@pytest.fixture(scope="module")
def script() -> Script:
    return write_script(7, load_quotes()[0])


def test_the_same_seed_writes_the_same_script(script: Script) -> None:
    assert write_script(7, load_quotes()[0]) == script


def test_another_seed_writes_another(script: Script) -> None:
    assert write_script(8, load_quotes()[0]).steps != script.steps


def test_every_provider_with_a_quote_is_an_operator(script: Script) -> None:
    operators = {actor.name for actor in script.actors if actor.role == "operator"}
    assert operators == {quote.provider for quote in load_quotes()[0]}


def test_every_ask_is_covered_by_capacity_and_bond(script: Script) -> None:
    catalog = load_catalog()
    declared = {(s.actor, s.market): s.qty_lots for s in script.steps if s.kind == "capacity"}
    offered: dict[tuple[int, str], int] = defaultdict(int)
    worst_bond: dict[int, int] = defaultdict(int)
    for step in script.steps:
        key = (step.actor, step.market)
        if step.kind == "place" and step.side == "sell":  # what is sold of it stays sold
            offered[key] += step.qty_lots
            assert offered[key] <= declared[key]
    for (actor, market), lots in declared.items():
        worst_bond[actor] += lots * catalog.bond_usdc6_per_lot(catalog.parse(market))
    for actor, bond_usdc6 in worst_bond.items():
        assert bond_usdc6 <= script.actors[actor].bond_usdc6


def test_no_buyer_can_run_out_of_money(script: Script) -> None:
    spent: dict[int, int] = defaultdict(int)
    for step in script.steps:
        if step.side == "buy":
            spent[step.actor] += cost_usdc6(step.price_ticks, step.qty_lots, TAKER_FEE_PPM)
    for actor, spent_usdc6 in spent.items():
        assert spent_usdc6 <= script.actors[actor].cash_usdc6


def test_quantities_are_multiples_of_their_markets_lots(script: Script) -> None:
    catalog = load_catalog()
    for step in script.steps:
        if step.kind == "place":
            assert step.qty_lots % catalog.lot_multiple(catalog.parse(step.market)) == 0


def test_client_ids_are_unique_per_actor(script: Script) -> None:
    placed = [(s.actor, s.client_id) for s in script.steps if s.kind == "place"]
    assert len(placed) == len(set(placed))


def test_steps_are_in_order_of_time_within_one_hour_asks_first(script: Script) -> None:
    times = [step.at_ns for step in script.steps]
    assert times == sorted(times)
    assert times[0] >= START_NS
    assert times[-1] < START_NS + HOUR_NS
    assert min(s.at_ns for s in script.steps if s.side == "buy") >= START_NS + OPENING_NS
