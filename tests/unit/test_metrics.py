"""`/metrics` tells what happened, as Prometheus reads it, and the runbook explains it."""

import re
from itertools import count
from pathlib import Path

import pytest
from compex_client import messages as m
from prometheus_client.parser import text_string_to_metric_families

from engine.clock import ScriptedClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.records import Command, CommandKind
from engine.rejects import Reject
from gateway.counts import BOUNDS_NS, ONE_FRAME_OF, Stage
from gateway.health import Health
from gateway.http import HttpRequest, Routes
from gateway.metrics import STAGES
from tests.exchange import START_NS, TICKER, Exchange, running_exchange

RUNBOOK = Path(__file__).parents[2] / "gateway" / "RUNBOOK.md"
ORDERS = 20
Samples = dict[tuple[str, str], float]


def scrape(routes: Routes) -> tuple[dict[str, str], Samples]:
    """({family: its type}, {(sample, its labels' values): value})."""
    answer = routes.answer(HttpRequest("GET", "/metrics", "", {}), "127.0.0.1")
    assert (answer.status, answer.kind.split(";")[:2]) == (200, ["text/plain", " version=0.0.4"])
    types: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        types[family.name] = family.type
        for sample in family.samples:
            samples[sample.name, ",".join(sample.labels.values())] = sample.value
    return types, samples


async def trade(exchange: Exchange) -> None:
    """A login, a subscription, `ORDERS` orders and three refusals of two kinds."""
    await exchange.list_market()
    buyer = exchange.converse(await exchange.open_account(2, cash_usdc6=10**9))
    buyer.say(m.Subscribe(2, "account"))
    for number in range(ORDERS):
        buyer.say(m.New(10 + number, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    for request in (m.New(50, TICKER, "buy", "0", "1"), m.Cancel(51, 4242), m.Cancel(52, 4242)):
        buyer.say(request)
    buyer.say_raw("{")
    await exchange.port.settled()


async def test_what_happened_is_counted(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        routes = Routes(exchange.desk, Health(exchange.port))
        scrape(routes)
        await trade(exchange)
        _, samples = scrape(routes)
        assert samples["compex_messages_received_total", "new"] == ORDERS + 1
        assert samples["compex_messages_received_total", "cancel"] == 2
        assert samples["compex_messages_sent_total", "ack"] == ORDERS + 2
        assert samples["compex_messages_sent_total", "order"] == ORDERS
        assert samples["compex_messages_sent_total", "reject"] == 4
        assert samples["compex_rejects_total", "2006,UNKNOWN_ORDER"] == 2
        assert samples["compex_rejects_total", "2001,PRICE_OUT_OF_RANGE"] == 1
        assert samples["compex_rejects_total", "1001,MALFORMED_FRAME"] == 1
        ready = exchange.port.ready()
        assert samples["compex_commands_total", ""] == ready.last_sequence
        assert samples["compex_sequence", ""] == samples["compex_durable_sequence", ""]
        assert samples["compex_event_number", ""] == ready.event_number
        assert samples["compex_http_answers_total", "200"] == 1
        assert samples["compex_stopped", ""] == samples["compex_commands_in_flight", ""] == 0
        buckets = [n for (name, _), n in samples.items() if name == "compex_stage_seconds_bucket"]
        assert len(buckets) == len(STAGES) * (len(BOUNDS_NS) + 1)
        of_stage = {name: samples["compex_stage_seconds_count", name] for name in STAGES}
        assert of_stage["commit"] == of_stage["engine"] > 0
        timed = sum(of_stage[name] for name in ("decode", "encode"))
        frames = 1 + (1 + 1 + ORDERS + 3 + 1) * 2  # hello; then each frame, and its reply
        assert frames / ONE_FRAME_OF - 1 <= timed <= frames / ONE_FRAME_OF + 1
        await exchange.stop()
        assert scrape(routes)[1]["compex_stopped", ""] == 1


async def test_what_waits_for_the_disk_is_told(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        routes = Routes(exchange.desk, Health(exchange.port))
        await trade(exchange)
        buyer = exchange.converse(await exchange.open_account(3, cash_usdc6=10**9))
        buyer.say(m.New(2, TICKER, "buy", "1", "1"))  # nothing of it is on the disk yet
        samples = scrape(routes)[1]
        assert samples["compex_commands_in_flight", ""] == 1
        assert samples["compex_requests_waiting", ""] == 1


async def test_reading_changes_nothing_and_two_nodes_share_nothing(tmp_path: Path) -> None:
    async with (
        running_exchange(tmp_path / "one") as exchange,
        running_exchange(tmp_path / "two") as other,
    ):
        routes = Routes(exchange.desk, Health(exchange.port))
        await trade(exchange)
        first, second = scrape(routes)[1], scrape(routes)[1]
        changed = {name for name, _ in second if not name.startswith("process_")}
        changed = {x for x in changed if {k: v for k, v in first.items() if k[0] == x} != {
            k: v for k, v in second.items() if k[0] == x}}  # fmt: skip
        assert changed <= {"compex_http_answers_total", "compex_journal_free_bytes"}
        apart = scrape(Routes(other.desk, Health(other.port)))[1]
        assert not [value for (name, _), value in apart.items() if "messages" in name and value]


async def test_the_runbook_explains_every_metric_and_no_other(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        await trade(exchange)
        types, samples = scrape(Routes(exchange.desk, Health(exchange.port)))
    text = RUNBOOK.read_text("utf-8")
    told = dict(re.findall(r"^\| `(compex_\w+)`(?: by [^|]*)? \| (\w+) \|", text, re.M))
    exported = {
        name + "_total" if kind == "counter" else name: kind for name, kind in types.items()
    }
    ours = {name: kind for name, kind in exported.items() if name.startswith("compex_")}
    assert told == ours
    assert {name: words for name, words in re.findall(
        r"^\| `(\w+)` \| (?!\w+ \|)(.*) \|$", text, re.M) if name in STAGES} == STAGES  # fmt: skip
    for reject in (Reject.UNKNOWN_ORDER, Reject.PRICE_OUT_OF_RANGE):
        assert ("compex_rejects_total", f"{reject.value},{reject.name}") in samples


@pytest.mark.parametrize(
    ("ns", "bucket"),
    [(0, 0), (1_000, 0), (1_001, 1), (2_000, 1), (5_000_000_000, len(BOUNDS_NS) - 1),
     (5_000_000_001, len(BOUNDS_NS)), (1 << 62, len(BOUNDS_NS))],
)  # fmt: skip
def test_a_time_falls_into_the_bucket_that_its_bound_says(ns: int, bucket: int) -> None:
    stage = Stage()
    stage.took(ns)
    assert (stage.counts.index(1), sum(stage.counts), stage.sum_ns) == (bucket, 1, ns)
    assert list(BOUNDS_NS) == sorted(set(BOUNDS_NS))


async def test_a_groups_times_are_those_of_its_oldest_command(tmp_path: Path) -> None:
    ticks = count(0, 10)  # each look at the clock is ten later than the one before
    heard: list[tuple[int, int, int, int]] = []
    journal = Journal(tmp_path / "journal", SystemDisk())
    pipeline = Pipeline(journal, ScriptedClock(START_NS), quick_ns=0, steady_ns=lambda: next(ticks))

    def hear(commands: int, commit_ns: int, match_ns: int, publish_ns: int, /) -> None:
        heard.append((commands, commit_ns, match_ns, publish_ns))

    pipeline.when_committed(hear)
    await pipeline.start()
    for account in (1, 2, 3):
        pipeline.submit(Command(kind=CommandKind.OPEN_ACCOUNT, account=account))
    await pipeline.settled()
    await pipeline.close()
    # One look when the first of them came, two around matching, one when durable, two around
    # publishing: nothing looks at the clock for the second and the third.
    assert heard == [(3, 30, 10, 10)]
