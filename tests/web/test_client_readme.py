"""The example of the client's README runs as it is printed."""

import asyncio
import re
import sys
from pathlib import Path

from tests.exchange import TICKER, running_exchange, running_server, wallet

README = Path(__file__).parents[2] / "gateway" / "client" / "README.md"
RUN_S = 60.0


async def test_the_readmes_example_trades(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    script = tmp_path / "first.py"
    script.write_text(example, "utf-8")
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        await exchange.open_account(1, bond_usdc6=10**9)
        buyer = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 1_000)
        seller = exchange.converse(wallet(101))
        seller.session.receive(
            f'{{"t":"new","id":2,"market":"{TICKER}","side":"sell","price":"2.5","qty":"1"}}'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            url,
            buyer.export_secret(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(RUN_S):
            said, _ = await process.communicate()
        lines = said.decode().splitlines()
        assert process.returncode == 0, said.decode()
        assert lines[0].startswith("resting as order")
        assert "(500, 1)" in lines[1]
        assert "price='2.5000'" in lines[2] and "liquidity='taker'" in lines[2]
        assert lines[3].startswith("2001 PRICE_OUT_OF_RANGE")
        assert lines[4] == "cancelled 1"
