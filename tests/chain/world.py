"""A fresh embedded chain with the contracts on it, wallets that call them, and a clock to turn."""

from typing import Any, cast

from eth_account import Account
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import ContractLogicError

from benchmarks.vault import Fill, pack
from settlement.abi import Interface, rejection
from settlement.chain import Chain, Funding, Receipt, address_of, checksum
from settlement.devchain import EmbeddedChain
from settlement.vault import Call

START_S = 1_796_000_000
DOLLAR = 1_000_000
TOKEN, VAULT, ORACLE = Interface("TestUSDC"), Interface("VaultV2"), Interface("PriceOracle")


def wallet_key(number: int) -> bytes:
    return (0xC0FFEE00 + number).to_bytes(32, "big")


class Clock:
    """ns since the epoch; stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> int:
        return self.now_s * 1_000_000_000


class World:
    """Wallets 1, 2, ... have the vault accounts 1, 2, ..."""

    def __init__(self, node: EmbeddedChain, chain: Chain, clock: Clock) -> None:
        self.node = node
        self.chain = chain
        self.clock = clock
        self.w3: AsyncWeb3[Any] = AsyncWeb3(node.provider, middleware=[])

    @classmethod
    async def open(cls) -> "World":
        clock = Clock()
        node = await EmbeddedChain.open(None, clock)
        chain = await Chain.connect(node.provider, node.keys)
        assert await chain.deploy_or_load(None)
        return cls(node, chain, clock)

    async def fund(self, count: int, cash: int, bond: int = 0) -> None:
        """Open the next `count` accounts."""
        first = (await self.chain.vault_state(await self.chain.final_block())).accounts + 1
        keys = [wallet_key(first + i) for i in range(count)]
        opened = await self.chain.fund([Funding(key, cash, bond) for key in keys])
        assert opened == list(range(first, first + count))

    async def call(
        self, key: bytes, to: bytes, interface: Interface, function: str, *arguments: object
    ) -> tuple[Any, ...]:
        """Without effect. Raises ContractRejected."""
        fields: Any = {
            "from": checksum(address_of(key)),
            "to": checksum(to),
            "data": interface.encode(function, *arguments),
        }
        try:
            return interface.decode(function, await self.w3.eth.call(fields))
        except ContractLogicError as error:
            raise rejection(bytes.fromhex(cast(str, error.data)[2:])) from error

    async def transact(
        self, key: bytes, to: bytes, interface: Interface, function: str, *arguments: object
    ) -> Receipt:
        """Signed by the wallet and mined, whatever comes of it."""
        address = checksum(address_of(key))
        fields: dict[str, Any] = {
            "chainId": self.chain.chain_id,
            "nonce": await self.w3.eth.get_transaction_count(address),
            "gas": 500_000,
            "gasPrice": await self.w3.eth.gas_price,
            "to": checksum(to),
            "value": 0,
            "data": interface.encode(function, *arguments),
        }
        raw = Account.sign_transaction(fields, key).raw_transaction
        return await self.chain.wait(await self.w3.eth.send_raw_transaction(HexBytes(raw)))

    async def settle(self, batch_id: int, fills: list[Fill]) -> Receipt:
        """Signed by the settler and mined, whatever comes of it."""
        return await self.tell(self.chain.settle_call(batch_id, pack(fills)))

    async def withdraw(self, withdrawal_id: int, account: int, amount: int) -> Receipt:
        return await self.tell(self.chain.withdraw_call(withdrawal_id, account, amount))

    async def tell(self, call: Call) -> Receipt:
        """Signed by the settler and mined, whatever comes of it."""
        signed = await self.chain.sign(call, await self.chain.settler_nonce())
        await self.chain.send(signed)
        return await self.chain.wait(signed.hash)

    async def money(self) -> list[tuple[int, int, int]]:
        """(free, locked, bond) of account 1, 2, ..."""
        accounts = await self.chain.vault_accounts(await self.chain.final_block())
        return [(a.free_usdc6, a.locked_usdc6, a.bond_usdc6) for a in accounts[1:]]
