"""The whole engine behind its door: submit, sequence, journal on this disk, match, publish.

    uv run pytest benchmarks/bench_pipeline.py --benchmark-enable --benchmark-only -n 0

Throughput with many commands in flight, and the time one command takes alone. With benchmarks
disabled each runs once, as a test.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workload import order_flow
from engine.clock import SystemClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import QUEUE_COMMANDS_MAX, Pipeline
from engine.port import Batch
from engine.records import Command, CommandKind, decode_commands

COMMANDS = 20_000
ALONE = 100
ROUNDS = 5
SUBMITTED_AT_ONCE = 2_000
assert SUBMITTED_AT_ONCE < QUEUE_COMMANDS_MAX


class Node:
    """One pipeline on a fresh journal, with one subscriber that counts."""

    def __init__(self, directory: Path) -> None:
        self.runner = asyncio.Runner()
        self.events = 0
        self.pipeline = self.runner.run(self._start(directory))

    async def _start(self, directory: Path) -> Pipeline:
        pipeline = Pipeline(Journal(directory, SystemDisk()), SystemClock())
        pipeline.subscribe(self._count)
        await pipeline.start()
        return pipeline

    def _count(self, batch: Batch) -> None:
        self.events += len(batch.events)

    async def _flood(self, commands: list[Command]) -> None:
        for start in range(0, len(commands), SUBMITTED_AT_ONCE):
            for command in commands[start : start + SUBMITTED_AT_ONCE]:
                self.pipeline.submit(command)
            await asyncio.sleep(0)
        await self.pipeline.settled()

    def flood(self, commands: list[Command]) -> None:
        self.runner.run(self._flood(commands))

    async def _one_by_one(self, commands: list[Command]) -> None:
        for command in commands:
            self.pipeline.submit(command)
            await self.pipeline.settled()

    def one_by_one(self, commands: list[Command]) -> None:
        self.runner.run(self._one_by_one(commands))

    def close(self) -> None:
        self.runner.run(self.pipeline.close())
        self.runner.close()


def test_a_flood_of_commands_is_published(
    benchmark: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flow = list(decode_commands(order_flow(3, COMMANDS)))
    nodes: list[Node] = []

    def fresh() -> tuple[tuple[Node], dict[str, Any]]:
        nodes.append(Node(tmp_path_factory.mktemp("node")))
        return (nodes[-1],), {}

    def flood(node: Node) -> None:
        node.flood(flow)

    benchmark.pedantic(flood, setup=fresh, rounds=ROUNDS, iterations=1)
    benchmark.extra_info["commands"] = len(flow)
    hashes = {node.pipeline.state_hash() for node in nodes}
    for node in nodes:
        assert node.pipeline.ready().durable_sequence == len(flow)
        assert node.events >= len(flow)
        node.close()
    assert hashes, "at least one round"


def test_one_command_alone_is_durable_and_published(benchmark: Any, tmp_path: Path) -> None:
    node = Node(tmp_path)
    cancels = [Command(kind=CommandKind.CANCEL, account=1, order_id=1)] * ALONE
    benchmark.pedantic(node.one_by_one, args=(cancels,), rounds=ROUNDS, iterations=1)
    benchmark.extra_info["commands"] = ALONE
    assert node.events >= ALONE
    node.close()
