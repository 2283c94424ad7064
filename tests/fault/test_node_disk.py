"""A real node whose disk takes no more, in the middle of a write: what everybody is told, how the
process ends, and what is there after the next start."""

import signal

import pytest
from compex_client import Disconnected, Rejected, connect
from compex_client.messages import CloseCode

from engine import journal
from engine.rejects import Reject
from gateway.ending import Ending
from tests.passable import passable_directory
from tests.running import SYMBOL, Running, running_node, write_settings

TORN_BYTES = 100  # of the frame that the disk did not take whole


async def fills_up_under_a_client(node: Running) -> None:
    url = await node.websocket()
    administrator = node.administrator()
    async with await connect(url, administrator) as client:
        assert (await client.halt_market(SYMBOL)).sequence
        node.cut_off(TORN_BYTES)
        with pytest.raises(Disconnected) as ended:  # which means unknown: neither done nor refused
            await client.resume_market(SYMBOL)
    assert ended.value.code == CloseCode.INTERNAL_ERROR
    assert "the exchange has stopped: the journal's disk failed" in ended.value.reason
    status, said = await node.ready()
    assert (status, said["ready"]) == (503, False)
    assert "disk failed, nothing more is taken" in said["stopped"]
    assert "File too large" in said["stopped"]
    assert said["durable_sequence"] == said["last_sequence"] - 1
    async with await connect(url, administrator) as client:
        with pytest.raises(Rejected) as refused:
            await client.resume_market(SYMBOL)
    assert refused.value.code == Reject.STOPPED


async def goes_on(node: Running) -> None:
    url = await node.websocket()
    async with await connect(url, node.administrator()) as client:
        [market] = [x for x in await client.markets() if x.symbol == SYMBOL]
        assert market.status == "halted", "what was acknowledged is there, what was torn is not"
        await client.resume_market(SYMBOL)


async def test_a_node_whose_disk_is_full_says_so_and_ends_with_its_own_status() -> None:
    with passable_directory() as directory:
        settings = directory / "compex.toml"
        write_settings(settings)
        home = directory / "node"
        async with running_node(home, "--settings", str(settings)) as node:
            await fills_up_under_a_client(node)
            assert await node.ended() == Ending.DISK_FAILED, node.said()
            assert "compex: the journal's disk failed" in node.said()
        *_, last = journal.scan(home / "journal")
        assert 0 < last.torn_bytes <= TORN_BYTES, "the write was cut short"
        async with running_node(home, "--settings", str(settings)) as node:
            await goes_on(node)
            node.process.send_signal(signal.SIGUSR1)
            assert await node.stop() == Ending.DONE
            assert "most recent call first" in node.said(), "where its threads stood"
