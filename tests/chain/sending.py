"""The machine that sends, by itself: a real database, real contracts, no engine.

`Sender` owes wallets withdrawals, has them sent, and knows what was paid. What it talks to is the
embedded chain or anvil; a test may stand in between.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, cast

from eth_account import Account

from settlement import database as db
from settlement.abi import Interface
from settlement.attempts import Attempt
from settlement.chain import Chain, Funding, SignedTransaction, address_of, checksum
from settlement.fees import FeePolicy, Fees
from settlement.fence import Fence
from settlement.outgoing import Outbox, Payment
from settlement.withdrawals import Withdrawals

VAULT: Final = "VaultV2"
DOLLAR: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000
CASH_USDC6: Final = 100 * DOLLAR


def wallet(number: int) -> bytes:
    return (0xFA017 + number).to_bytes(32, "big")


class Sender:
    """Wallets 1, 2, ... have the vault accounts 1, 2, ... with a hundred dollars each."""

    def __init__(self, chain: Chain, database: db.Database, policy: FeePolicy) -> None:
        self.chain = chain
        self.database = database
        self.policy = policy
        self.now_ns = SECOND_NS
        self.outbox: Outbox
        self._last = 0
        # Of each wallet: it has minted, approved and deposited.
        self._nonces: Counter[int] = Counter(dict.fromkeys(range(1, 100), 3))

    @classmethod
    async def open(
        cls, chain: Chain, database_url: str, accounts: int = 3, policy: FeePolicy | None = None
    ) -> "Sender":
        await chain.deploy_or_load(None)
        await chain.fund([Funding(wallet(n), CASH_USDC6, 0) for n in range(1, accounts + 1)])
        sender = cls(chain, await db.connect(database_url), policy or FeePolicy())
        await sender.restart()
        return sender

    async def restart(self, chain: object | None = None) -> None:
        """As after a crash: nothing is known but what is stored. Through `chain`, if given."""
        through = self.chain if chain is None else cast("Chain", chain)
        self.outbox = Outbox(
            self.database,
            await Fence.take(self.database),
            through,
            lambda: self.now_ns,
            {"withdraw": Withdrawals(self.database, through)},
            self.policy,
        )

    async def close(self) -> None:
        await self.database.close()

    async def owe(self, account: int, amount_usdc6: int) -> int:
        """A withdrawal that the engine has reserved; its id."""
        self._last += 1
        await self.database.execute(
            "INSERT INTO withdrawal (id, account, amount_usdc6) VALUES ($1, $2, $3)",
            *(self._last, account, amount_usdc6),
        )
        await self.database.execute(
            "INSERT INTO outgoing (kind, id) VALUES ('withdraw', $1)", self._last
        )
        return self._last

    async def states(self) -> list[str]:
        rows = await self.database.rows("SELECT state FROM outgoing ORDER BY kind, id")
        return [row["state"] for row in rows]

    async def attempts(self) -> list[Attempt]:
        rows = await self.database.rows(
            "SELECT kind, id, nonce, fee_cap_wei, tip_wei, raw, tx_hash, signed_ns FROM attempt"
            " ORDER BY nonce, fee_cap_wei"
        )
        return [Attempt._make(row.values()) for row in rows]

    async def outcomes(self) -> list[str]:
        rows = await self.database.rows("SELECT outcome FROM attempt ORDER BY nonce, fee_cap_wei")
        return [row["outcome"] for row in rows]

    async def foreign_nonces(self) -> list[int]:
        rows = await self.database.rows("SELECT nonce FROM foreign_nonce ORDER BY nonce")
        return [row["nonce"] for row in rows]

    async def paid(self, account: int) -> int:
        """What the account's wallet holds, µUSDC."""
        return await self.chain.token_balance_usdc6(address_of(wallet(account)))

    async def confirmations(self) -> Sequence[Payment]:
        return await self.outbox.confirmations(await self.chain.final_block())

    async def by_wallet(self, account: int, function: str, tip_wei: int = 10**9) -> None:
        """Signed by an account's owner and sent."""
        await self._send(account, self.chain.vault, Interface(VAULT).encode(function), tip_wei)

    async def deposit(self, account: int, amount_usdc6: int) -> None:
        vault, owner = self.chain.vault, address_of(wallet(account))
        token = Interface("TestUSDC")
        await self._send(account, self.chain.token, token.encode("mint", owner, amount_usdc6))
        await self._send(account, self.chain.token, token.encode("approve", vault, amount_usdc6))
        deposit = Interface(VAULT).encode("deposit", amount_usdc6, False)
        await self._send(account, vault, deposit)

    async def _send(self, account: int, to: bytes, data: bytes, tip_wei: int = 10**9) -> None:
        market = await self.chain.market()
        fields = {
            "chainId": self.chain.chain_id, "nonce": self._nonces[account], "gas": 200_000,
            "maxFeePerGas": 2 * market.base_fee_wei + tip_wei, "maxPriorityFeePerGas": tip_wei,
            "to": checksum(to), "value": 0, "data": data,
        }  # fmt: skip
        signed = Account.sign_transaction(fields, wallet(account))
        raw, digest = bytes(signed.raw_transaction), bytes(signed.hash)
        await self.chain.send(SignedTransaction(self._nonces[account], raw, digest))
        self._nonces[account] += 1

    async def foreign(self, nonce: int) -> SignedTransaction:
        """Somebody else's transaction with the settler's key: it does nothing that matters."""
        market = await self.chain.market()
        fees = Fees(4 * market.base_fee_wei + 10**10, 10**10)
        harmless = self.chain.withdraw_call(1, 1, 0)._replace(data=b"", to=bytes(19) + b"\x01")
        return await self.chain.sign(harmless, nonce, fees)


class Through:
    """A chain of which a test replaces what it names, by functions of the real one."""

    def __init__(self, chain: Chain, **replaced: Any) -> None:
        self._chain = chain
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name, getattr(self._chain, name))
