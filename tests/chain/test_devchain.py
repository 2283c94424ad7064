"""The embedded chain: what survives a kill, what a damaged log is answered with, what RPC says."""

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from eth_account import Account

from benchmarks.vault import Fill, pack
from settlement.chain import Chain, Funding, Options, checksum
from settlement.devchain import (
    BATCH_REQUESTS_MAX,
    BODY_BYTES_MAX,
    KEYS,
    LOG_NAME,
    EmbeddedChain,
    address_of,
)
from settlement.errors import ChainUnavailable, DamagedLog, DevchainInUse, DevchainStopped
from settlement.evm import CHAIN_ID, RpcError
from tests.chain.world import DOLLAR, START_S, Clock, wallet_key

TARGET = "0x" + "11" * 20


def transfer(nonce: int, value: int = 1, key: bytes = KEYS.deployer, **changed: object) -> str:
    fields: dict[str, Any] = {
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 21_000,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 1,
        "to": TARGET,
        "value": value,
        **changed,
    }
    return "0x" + bytes(Account.sign_transaction(fields, key).raw_transaction).hex()


async def send(node: EmbeddedChain, raw: str) -> None:
    await node.request("eth_sendRawTransaction", [raw])


async def snapshot(node: EmbeddedChain) -> list[Any]:
    """Every block, and the state root with it."""
    return [
        await node.request("eth_getBlockByNumber", [hex(n), True]) for n in range(node.height + 1)
    ]


async def busy_chain(directory: Path) -> tuple[list[Any], list[Any]]:
    """Contracts, wallets, a batch and a refused one; what was there before it was closed."""
    clock = Clock()
    node = await EmbeddedChain.open(directory, clock)
    chain = await Chain.connect(node.provider, node.keys)
    await chain.deploy_or_load(directory)
    await chain.fund([Funding(wallet_key(i), 50 * DOLLAR, DOLLAR) for i in range(1, 4)])
    clock.now_s += 10_000
    call = chain.settle_call(1, pack([Fill(1, 2, 10_000, 100)]))
    for nonce in range(2):  # the second one reverts, and is a transaction all the same
        signed = await chain.sign(call, nonce)
        await chain.send(signed)
    blocks = await snapshot(node)
    accounts = await chain.vault_accounts(node.height)
    await node.close()
    return blocks, accounts


async def test_a_reopened_chain_has_the_same_blocks_state_and_receipts(tmp_path: Path) -> None:
    blocks, accounts = await busy_chain(tmp_path)
    node = await EmbeddedChain.open(tmp_path, Clock())
    assert await snapshot(node) == blocks
    chain = await Chain.connect(node.provider, node.keys)
    assert not await chain.deploy_or_load(tmp_path)
    assert await chain.vault_accounts(node.height) == accounts
    last = cast("dict[str, Any]", blocks[-1])["transactions"][0]["hash"]
    receipt = await chain.receipt(bytes.fromhex(last[2:]))
    assert receipt is not None
    assert not receipt.succeeded
    await node.close()


async def test_addresses_are_the_same_on_every_fresh_chain(tmp_path: Path) -> None:
    found: set[tuple[bytes, bytes, bytes]] = set()
    for _ in range(2):
        node = await EmbeddedChain.open(None, Clock())
        chain = await Chain.connect(node.provider, node.keys)
        await chain.deploy_or_load(None)
        found.add((chain.token, chain.vault, chain.oracle))
        await node.close()
    assert len(found) == 1


async def small_log(directory: Path) -> tuple[bytes, list[Any], list[int]]:
    """The bytes of a log of three blocks, the blocks, and where each record ends."""
    node = await EmbeddedChain.open(directory, Clock())
    path = directory / LOG_NAME
    ends = [path.stat().st_size]
    for nonce in range(3):
        await send(node, transfer(nonce))
        ends.append(path.stat().st_size)
    blocks = await snapshot(node)
    await node.close()
    return path.read_bytes(), blocks, ends


async def test_a_log_cut_anywhere_keeps_every_whole_block(tmp_path: Path) -> None:
    data, blocks, ends = await small_log(tmp_path)
    path = tmp_path / LOG_NAME
    cuts = sorted({*range(ends[2] - 2, len(data), 7), *ends, len(data) - 1})
    for cut in cuts:
        path.write_bytes(data[:cut])
        node = await EmbeddedChain.open(tmp_path, Clock())
        whole = max(i for i, end in enumerate(ends) if end <= cut)
        assert await snapshot(node) == blocks[: whole + 1], f"cut at {cut}"
        await send(node, transfer(whole))  # and it goes on from there
        await node.close()
        assert len(path.read_bytes()) > ends[whole]


async def test_bytes_that_never_arrived_are_dropped(tmp_path: Path) -> None:
    data, blocks, _ = await small_log(tmp_path)
    (tmp_path / LOG_NAME).write_bytes(data + bytes(4_096))
    node = await EmbeddedChain.open(tmp_path, Clock())
    assert await snapshot(node) == blocks
    await node.close()
    assert (tmp_path / LOG_NAME).read_bytes() == data


async def test_a_damaged_byte_before_the_last_block_is_refused(tmp_path: Path) -> None:
    data, _, ends = await small_log(tmp_path)
    path = tmp_path / LOG_NAME
    for place in range(0, ends[2], 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DamagedLog, match=r"at byte \d+"):
            await EmbeddedChain.open(tmp_path, Clock())
        assert path.read_bytes() == damaged, "what is refused is left as it is"


async def test_two_processes_never_share_a_log(tmp_path: Path) -> None:
    node = await EmbeddedChain.open(tmp_path, Clock())
    with pytest.raises(DevchainInUse):
        await EmbeddedChain.open(tmp_path, Clock())
    await node.close()
    again = await EmbeddedChain.open(tmp_path, Clock())
    await again.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from settlement.devchain import EmbeddedChain
from tests.chain.test_devchain import transfer
from tests.chain.world import Clock

async def main():
    node = await EmbeddedChain.open(Path(sys.argv[1]), Clock())
    print("open", flush=True)
    for nonce in range(100_000):
        await node.request("eth_sendRawTransaction", [transfer(nonce)])
        print(nonce, flush=True)

asyncio.run(main())
"""


async def test_every_transaction_that_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    expected = 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    while expected < 40:
        expected = int(await process.stdout.readline()) + 1
    os.kill(process.pid, signal.SIGKILL)
    rest = (await process.stdout.read()).split(b"\n")
    await process.wait()
    expected = max([expected, *(int(line) + 1 for line in rest if line.strip())])
    node = await EmbeddedChain.open(tmp_path, Clock())
    count = await node.request("eth_getTransactionCount", [checksum(address_of(KEYS.deployer))])
    # One more may have become durable without anybody being told.
    assert int(str(count), 16) in (expected, expected + 1)
    await node.close()


async def test_a_log_that_cannot_be_written_stops_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await EmbeddedChain.open(tmp_path, Clock())
    await send(node, transfer(0))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(DevchainStopped, match="No space left"):
        await send(node, transfer(1))
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(DevchainStopped):
            await send(node, transfer(1))
        with pytest.raises(DevchainStopped):
            await node.request("eth_getBalance", [TARGET])
    chain_response = await node.respond("eth_blockNumber", [], 1)
    assert "could not be written" in chain_response["error"]["message"]
    await node.close()


async def test_block_times_follow_the_clock_and_always_increase() -> None:
    clock = Clock()
    node = await EmbeddedChain.open(None, clock)
    await send(node, transfer(0))
    await send(node, transfer(1))
    clock.now_s += 1_000
    await send(node, transfer(2))
    clock.now_s -= 5_000
    await send(node, transfer(3))
    times = [int(block["timestamp"], 16) - START_S for block in await snapshot(node)]
    assert times == [0, 1, 2, 1_000, 1_001]
    await node.close()


async def test_transactions_that_wait_together_share_a_block() -> None:
    node = await EmbeddedChain.open(None, Clock())
    await asyncio.gather(*(send(node, transfer(nonce)) for nonce in range(20)))
    assert node.height < 20
    mined = [entry for block in await snapshot(node) for entry in block["transactions"]]
    assert [int(entry["nonce"], 16) for entry in mined] == list(range(20))
    await node.close()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (transfer(1), "nonce too high"),
        (transfer(0, key=wallet_key(1)), "insufficient funds"),
        (transfer(0, value=10**30), "insufficient funds"),
        (transfer(0, gas=20_999), "intrinsic gas too low: 21000"),
        (transfer(0, gas=21_399, data=b"\x01" * 10), "intrinsic gas too low: 21400"),
        (transfer(0, gas=(1 << 24) + 1), "gas limit too high"),
        (transfer(0, maxFeePerGas=1), "less than block base fee"),
        (transfer(0, maxPriorityFeePerGas=10**11), "priority fee per gas higher"),
        (transfer(0, chainId=1), "invalid chain id"),
        (transfer(0, to=b"", gas=10**7, data=bytes(49_153)), "EIP-3860"),
        ("0x02", "invalid transaction"),
        ("0x" + "ff" * 40, "invalid transaction"),
        ("0x", "invalid transaction"),
        ("0xzz", "hexadecimal"),
        (7, "hexadecimal"),
        ("0x" + "00" * (128 * 1024 + 1), "oversized"),
    ],
)
async def test_a_transaction_that_cannot_be_mined_is_refused_without_a_trace(
    tmp_path: Path, raw: object, said: str
) -> None:
    node = await EmbeddedChain.open(tmp_path, Clock())
    with pytest.raises(RpcError, match=said):
        await node.request("eth_sendRawTransaction", [raw])
    assert node.height == 0
    refused, taken = await asyncio.gather(
        node.request("eth_sendRawTransaction", [raw]),
        node.request("eth_sendRawTransaction", [transfer(0)]),
        return_exceptions=True,
    )
    assert isinstance(refused, RpcError)
    assert isinstance(taken, str)
    with pytest.raises(RpcError, match="already known"):
        await send(node, transfer(0))
    with pytest.raises(RpcError, match="nonce too low"):
        await send(node, transfer(0, value=2))
    blocks = await snapshot(node)
    await node.close()
    again = await EmbeddedChain.open(tmp_path, Clock())
    assert await snapshot(again) == blocks
    await again.close()


# --- over HTTP ----------------------------------------------------------------------------------


async def test_the_same_contracts_are_reached_over_http(tmp_path: Path) -> None:
    node = await EmbeddedChain.open(None, Clock())
    inside = await Chain.connect(node.provider, node.keys)
    await inside.deploy_or_load(tmp_path)
    outside = await Chain.connect(await node.serve_rpc(), node.keys)
    assert not await outside.deploy_or_load(tmp_path)
    assert await outside.fund([Funding(wallet_key(1), 9 * DOLLAR, DOLLAR)]) == [1]
    block = await outside.final_block()
    assert await outside.vault_accounts(block) == await inside.vault_accounts(block)
    assert await outside.vault_logs(0, block) == await inside.vault_logs(0, block) != []
    await outside.close()
    await node.close()


async def test_bad_requests_get_an_error_and_the_server_goes_on() -> None:
    node = await EmbeddedChain.open(None, Clock())
    url = await node.serve_rpc()
    assert url.startswith("http://127.0.0.1:")
    headers = {"content-type": "application/json"}
    good: dict[str, object] = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    cases: list[tuple[object, int]] = [
        ({**good, "method": "eth_accounts"}, -32601),
        ({**good, "method": "debug_traceTransaction"}, -32601),
        ({**good, "method": 5}, -32600),
        ({**good, "params": {}}, -32602),
        ({**good, "method": "eth_getBalance"}, -32602),
        ({**good, "method": "eth_getBalance", "params": ["0x12"]}, -32602),
        ({**good, "method": "eth_call", "params": [5]}, -32602),
        ({**good, "method": "eth_getStorageAt", "params": [TARGET, "0x" + "f" * 65]}, -32602),
        ({**good, "method": "eth_getLogs", "params": [[]]}, -32602),
        ({**good, "method": "eth_getBalance", "params": [TARGET, "0xffff"]}, -32000),
        (5, -32600),
        ([], -32600),
        ([good] * (BATCH_REQUESTS_MAX + 1), -32600),
    ]
    async with aiohttp.ClientSession() as session:
        for body, code in cases:
            async with session.post(url, data=json.dumps(body), headers=headers) as answer:
                assert answer.status == 200
                assert (await answer.json())["error"]["code"] == code, body
        async with session.post(url, data="{", headers=headers) as answer:
            assert (await answer.json())["error"]["code"] == -32700
        async with session.post(url, data=json.dumps(good)) as answer:
            assert answer.status == 415
        huge = io.BytesIO(b" " * (BODY_BYTES_MAX + 1))
        async with session.post(url, data=huge, headers=headers) as answer:
            assert answer.status == 413
        async with session.post(url, data=json.dumps([good, good]), headers=headers) as answer:
            assert [entry["result"] for entry in await answer.json()] == [hex(CHAIN_ID)] * 2
    await node.close()


async def test_a_node_that_is_gone_is_unavailable_and_not_failed() -> None:
    node = await EmbeddedChain.open(None, Clock())
    url = await node.serve_rpc()
    chain = await Chain.connect(url, node.keys, Options(request_seconds=5.0))
    await node.close()
    with pytest.raises(ChainUnavailable):
        await chain.final_block()
    await chain.close()
    inside = Chain.connect(node.provider, node.keys)
    with pytest.raises(ChainUnavailable, match="closed"):
        await inside
