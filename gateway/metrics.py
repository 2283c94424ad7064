"""What `/metrics` tells of a node, in the text format that Prometheus reads.

Invariant: only sums that grow and present values are told, so that whoever reads them may miss
readings; nothing is global, and reading changes nothing. `gateway.http` exports it; what is told
was counted by `gateway.counts`, the engine's door and the transport.
"""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from compex_client.reads import Settling
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from engine.port import Port
from engine.rejects import Reject
from gateway.counts import BOUNDS_NS, Counts, Stage, Traffic
from gateway.documents import tag_of

NS_PER_S: Final = 1_000_000_000
STAGES: Final = {
    "decode": "bytes to a typed request (sampled)",
    "sequence": "a typed request until its command is in the order, or it is answered (sampled)",
    "commit": "from submitting until durable and matched, the oldest command of each group",
    "engine": "matching a group of commands, and telling everybody of it",
    "encode": "one reply to a frame (sampled)",
    "write": "what a connection is told in one turn of the loop, until the system has it",
}


class Waiting(Protocol):
    """Requests that wait for the engine."""

    def __len__(self) -> int: ...


class Metrics(Collector):
    """`text` is all of it as Prometheus reads it."""

    def __init__(
        self,
        counts: Counts,
        port: Port,
        pending: Waiting,
        build: str,
        settling: Callable[[], Settling] = Settling,
    ) -> None:
        self._counts = counts
        self._port = port
        self._pending = pending
        self._build = build
        self._settling = settling
        self.traffic: Callable[[], Traffic] = Traffic  # until there is a transport
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # CPU, memory, open files

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("compex_build", "Of this node.", {"build": self._build})
        yield from self._of_messages()
        yield from self._of_connections()
        yield from self._of_engine()
        yield from self._of_settlement()
        yield self._stages()

    def _of_messages(self) -> Iterator[Metric]:
        counts = self._counts
        for name, words, by_type in (
            ("received", "Requests that decoded, by type.", counts.received),
            ("sent", "Messages given to connections, by type.", counts.sent),
        ):
            family = CounterMetricFamily(f"compex_messages_{name}", words, labels=["type"])
            for kind, number in by_type.items():
                family.add_metric([tag_of(kind)], number)
            yield family
        family = CounterMetricFamily(
            "compex_rejects", "Requests refused, by number and name.", labels=["code", "reason"]
        )
        for code, number in counts.rejects.items():
            family.add_metric([str(code), Reject(code).name], number)
        yield family
        family = CounterMetricFamily(
            "compex_http_answers", "Plain HTTP requests answered, by status.", labels=["status"]
        )
        for status, number in counts.answered.items():
            family.add_metric([str(status)], number)
        yield family

    def _of_connections(self) -> Iterator[Metric]:
        traffic = self.traffic()
        family = GaugeMetricFamily("compex_connections", "Open now, by kind.", labels=["kind"])
        family.add_metric(["websocket"], traffic.websockets)
        family.add_metric(["plain"], traffic.plain_connections)
        yield family
        for name, words, number in (
            ("received_bytes", "Read from connections.", traffic.bytes_received),
            ("sent_bytes", "Written to connections.", traffic.bytes_sent),
            (
                "slow_readers_closed",
                "Connections closed with 4001, too far behind.",
                traffic.slow_readers_closed,
            ),
        ):
            yield CounterMetricFamily(f"compex_{name}", words, number)

    def _of_engine(self) -> Iterator[Metric]:
        ready = self._port.ready()
        behind = ready.last_sequence - ready.durable_sequence
        for name, words, number in (
            ("requests_waiting", "For the engine's answer.", len(self._pending)),
            ("commands_in_flight", "Sequenced, not yet durable and told: the lag.", behind),
            ("sequence", "Last one given out.", ready.last_sequence),
            ("durable_sequence", "Last one that is durable and told.", ready.durable_sequence),
            ("event_number", "Last one told.", ready.event_number),
            ("journal_free_bytes", "On the journal's disk.", ready.journal_bytes_free),
            ("stopped", "1 once nothing is taken any more.", int(bool(ready.stopped))),
        ):
            yield GaugeMetricFamily(f"compex_{name}", words, number)
        yield CounterMetricFamily("compex_commands", "Committed.", self._counts.commands)

    def _of_settlement(self) -> Iterator[Metric]:
        settling = self._settling()
        for name, words, number in (
            ("halted", "1 once nothing more is settled.", int(bool(settling.halted))),
            ("waiting", "1 while nothing is sent to the vault.", int(bool(settling.waiting))),
            ("unbooked_events", "Told by the engine, not yet booked.", settling.unbooked_events),
        ):
            yield GaugeMetricFamily(f"compex_settlement_{name}", words, number)

    def _stages(self) -> Metric:
        words = "How long each part of an order's way takes."
        family = HistogramMetricFamily("compex_stage_seconds", words, labels=["stage"])
        for name in STAGES:
            stage: Stage = getattr(self._counts, name)
            total, buckets = 0, list[tuple[str, float]]()
            for bound, count in zip((*BOUNDS_NS, None), stage.counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound is None else str(bound / NS_PER_S), total))
            family.add_metric([name], buckets, stage.sum_ns / NS_PER_S)
        return family
