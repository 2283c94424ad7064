"""anvil, the node on which blocks are reorganised and transactions dropped: found, started, told.

Owns one process a test. It is found as COMPEX_ANVIL, on the path, or installed from npm once for a
run; where none of these gives one, the tests that want it are skipped, and say so.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hexbytes import HexBytes
from web3 import AsyncHTTPProvider

from settlement.chain import address_of, checksum
from settlement.devchain import KEYS

PACKAGE: Final = "@foundry-rs/anvil@1.7.1"
INSTALL_S: Final = 180
START_S: Final = 30
OVERLOOKED_S: Final = 0.5
ETHER_WEI: Final = 10**18
HISTORY_BLOCKS: Final = 64


def find_anvil(directory: Path) -> str:
    """The program; `directory` is where npm may put it. Skips the test where there is none."""
    found = os.environ.get("COMPEX_ANVIL") or shutil.which("anvil")
    if found:
        return found
    npm = shutil.which("npm", path=str(Path(sys.executable).parent)) or shutil.which("npm")
    if npm is None:
        pytest.skip("NO ANVIL AND NO NPM: reorganisations are not tested")
    done = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-save", "--prefix", str(directory), PACKAGE],
        cwd=directory, capture_output=True, text=True, timeout=INSTALL_S, check=False,
    )  # fmt: skip
    programs = list(directory.glob("node_modules/@foundry-rs/anvil-*/bin/anvil*"))
    if done.returncode or not programs:
        pytest.skip(f"NO ANVIL: reorganisations are not tested\n{done.stderr}")
    return str(programs[0])


class Anvil:
    """A running one; its JSON-RPC under names."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._provider = AsyncHTTPProvider(url)
        self._automines = True

    async def rpc(self, method: str, *parameters: object) -> Any:
        answer: Any = await self._provider.make_request(method, list(parameters))  # pyright: ignore[reportArgumentType]
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def close(self) -> None:
        await self._provider.disconnect()

    async def mine(self, blocks: int = 1) -> None:
        await self.rpc("anvil_mine", hex(blocks))

    async def automine(self, on: bool) -> None:
        await self.quiet()
        self._automines = on
        await self.rpc("evm_setAutomine", on)

    async def quiet(self) -> None:
        """Return when what was sent to be mined at once is mined, a moment after it was taken."""
        while self._automines and await self._ready():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)

    async def keep_mining(self) -> None:
        """On a busy machine it may overlook one of several that come together, until the next."""
        overlooked = 0
        while True:
            await asyncio.sleep(OVERLOOKED_S)
            overlooked = overlooked + 1 if self._automines and await self._ready() else 0
            if overlooked > 1:
                await self.mine()

    async def _ready(self) -> bool:
        return (await self.rpc("txpool_status"))["pending"] != "0x0"

    async def reorganise(self, depth: int, raws: tuple[bytes, ...] = ()) -> None:
        """The newest `depth` blocks are others, with nothing but `raws` in the first of them. What
        was in them does not go back to the pool."""
        pairs = [["0x" + raw.hex(), 0] for raw in raws]
        await self.rpc("anvil_reorg", depth, pairs)

    async def drop(self, transaction_hash: bytes) -> None:
        assert await self.rpc("anvil_dropTransaction", "0x" + transaction_hash.hex())

    async def send(self, raw: bytes) -> bytes:
        return bytes(HexBytes(await self.rpc("eth_sendRawTransaction", "0x" + raw.hex())))

    async def base_fee(self, wei: int) -> None:
        """Of the next block."""
        await self.rpc("anvil_setNextBlockBaseFeePerGas", hex(wei))

    async def pool(self) -> int:
        """How many transactions wait, those behind a gap too."""
        status = await self.rpc("txpool_status")
        return int(status["pending"], 16) + int(status["queued"], 16)

    async def sent_by(self, sender: bytes, to: bytes, data: bytes) -> None:
        """A transaction of anybody, without a signature; it waits for a block like any other."""
        await self.rpc("anvil_impersonateAccount", checksum(sender))
        call = {"from": checksum(sender), "to": checksum(to), "data": "0x" + data.hex()}
        await self.rpc("eth_sendTransaction", call)

    async def wait_seconds(self, seconds: int) -> None:
        await self.quiet()
        await self.rpc("evm_increaseTime", hex(seconds))
        await self.mine()


@asynccontextmanager
async def running_anvil(program: str, *options: str) -> AsyncGenerator[Anvil]:
    """With ether for the keys of the embedded chain's roles."""
    process = await asyncio.create_subprocess_exec(
        program, "--port", "0", "--hardfork", "prague", "--max-persisted-states",
        str(HISTORY_BLOCKS), *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        anvil = Anvil(await asyncio.wait_for(_listening(process), START_S))
        behind = [asyncio.create_task(_drain(process)), asyncio.create_task(anvil.keep_mining())]
        for key in KEYS:
            address = checksum(address_of(key))
            await anvil.rpc("anvil_setBalance", address, hex(10_000 * ETHER_WEI))
        try:
            yield anvil
        finally:
            for task in behind:
                task.cancel()
            await asyncio.gather(*behind, return_exceptions=True)
            await anvil.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listening(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said = b""
    while line := await process.stdout.readline():
        said += line
        if found := re.search(rb"Listening on (127\.0\.0\.1:\d+)", line):
            return f"http://{found[1].decode()}"
    raise AssertionError(f"anvil did not start: {said.decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Or it would stop at a full pipe."""
    assert process.stdout is not None
    while await process.stdout.readline():
        pass
