"""Snapshots of a node, made beside it: a process of its own reads the journal and writes them.

So the node's event loop never waits for one, and what is kept is what the journal says, not what a
running process believes. Invariant: nothing is removed that a start could still need. The node
runs `Snapshots`; the command runs `take`, also while no node is running.
"""

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Final

from engine import snapshot
from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.index import SpotIndex
from engine.journal import SystemDisk
from engine.pipeline import Pipeline
from engine.rejects import CompexError
from engine.replica import Replica, retain, take_snapshot
from engine.snapshot import Snapshot
from gateway.feed import Feed
from gateway.settings import JournalSettings

LOOK_SECONDS: Final = 1.0  # between two looks at how much has been sequenced

log = logging.getLogger("compex.snapshots")


def take(journal: Path) -> Snapshot | None:
    """A snapshot of what is durable; None if there is nothing new to keep. Blocks.

    Raises JournalError, SnapshotError.
    """
    catalog = load_catalog()
    replica = Replica(SystemClock())
    index = SpotIndex(catalog)
    Feed(replica, catalog, answer=lambda _event: None, done=lambda: None)
    replica.subscribe(index.on_batch, keeper=index)
    return take_snapshot(journal, SystemDisk(), replica)


class Snapshots:
    """Has one made whenever enough was sequenced, and throws away what is no longer wanted."""

    def __init__(self, journal: Path, settings: JournalSettings, engine: Pipeline) -> None:
        self._journal = journal
        self._settings = settings
        self._engine = engine
        newest = snapshot.paths(journal)[:1]
        self._last_sequence = snapshot.sequence_of(newest[0]) if newest else 0

    async def run(self) -> None:
        """Until cancelled. What fails is logged, and tried again when as much more has come."""
        while self._settings.snapshot_commands:
            durable = self._engine.ready().durable_sequence
            if durable - self._last_sequence >= self._settings.snapshot_commands:
                self._last_sequence = durable
                await self._make()
            await asyncio.sleep(LOOK_SECONDS)

    async def _make(self) -> None:
        words = [sys.executable, "-m", "gateway.cli", "snapshot", "--background"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await asyncio.create_subprocess_exec(
            *words,
            str(self._journal),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        try:
            said, _ = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode:
            log.error("no snapshot was made: %s", said.decode(errors="replace").strip())
            return
        try:
            await asyncio.to_thread(
                retain,
                self._journal,
                self._settings.snapshots_kept,
                self._engine.heard(),
                history=self._settings.history,
            )
        except (CompexError, OSError) as error:
            log.error("old snapshots stay: %s", error)
