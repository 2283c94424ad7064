"""Gas per fill, withdrawal, deposit and price on the embedded chain.

Run `python -m benchmarks.bench_settle_gas`. The figures are those of Prague's rules and the same
on every machine; a slot's first use costs 17,100 gas more than later ones, so each row is measured
after the slots it touches are in use.
"""

import asyncio
import time
from typing import Final

from benchmarks.vault import Fill, pack
from settlement.chain import Chain, Funding, PricePoint
from settlement.devchain import EmbeddedChain

# (fills, distinct buyers) of a batch
BATCHES: Final = ((100, 20), (1_000, 100), (2_000, 100), (2_000, 200), (200, 200))
PRICES: Final = (4, 16, 40, 100)
CASH_USDC6: Final = 10**12
ROUNDS_KEPT: Final = 64


async def settle(chain: Chain, batch_id: int, fills: list[Fill]) -> int:
    """Gas used by the batch."""
    call = chain.settle_call(batch_id, pack(sorted(fills)))
    signed = await chain.sign(call, await chain.settler_nonce())
    await chain.send(signed)
    receipt = await chain.wait(signed.hash)
    assert receipt.succeeded
    return receipt.gas_used


async def withdraw(chain: Chain, withdrawal_id: int) -> int:
    call = chain.withdraw_call(withdrawal_id, 1, 10**6)
    signed = await chain.sign(call, await chain.settler_nonce())
    await chain.send(signed)
    return (await chain.wait(signed.hash)).gas_used


async def main() -> None:
    node = await EmbeddedChain.open(None, time.time_ns)
    chain = await Chain.connect(node.provider, node.keys)
    await chain.deploy_or_load(None)
    wallets = [(0xBEEF00 + i).to_bytes(32, "big") for i in range(200)]
    await chain.fund([Funding(key, CASH_USDC6, 10**6) for key in wallets])
    print("fills  buyers  gas per fill")
    for batch_id, (count, buyers) in enumerate(BATCHES, 1):
        fills = [
            Fill(
                buyer=1 + i % buyers,
                seller=1 + (i * 7) % 200,
                price=20_000 + i % 1_000,
                qty=100,
                series=1 + i % 30,
                buyer_order=10**6 + i,
                seller_order=10**6 + i,
                buyer_fee=500,
                seller_fee=200,
            )
            for i in range(count)
        ]
        gas = await settle(chain, batch_id, fills)
        print(f"{count:5}  {buyers:6}  {gas / count:12.0f}")
    await withdraw(chain, 1)
    print(f"withdrawal: {await withdraw(chain, 2)} gas")
    print("prices in a round  gas per price")
    now_s = time.time_ns() // 10**9
    for count in PRICES:
        gas = 0
        for number in range(ROUNDS_KEPT + 1):  # once around, so that every slot is in use
            window_end_s = now_s - 10_000 + number
            points = [
                PricePoint(count * 1_000 + i, 241_500_000, window_end_s) for i in range(count)
            ]
            gas = (await chain.publish(points)).gas_used
        print(f"{count:17}  {gas / count:13.0f}")
    await node.close()


if __name__ == "__main__":
    asyncio.run(main())
