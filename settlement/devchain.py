"""The embedded chain: one process's own Ethereum node, kept in one file, for demos and tests.

Owns the worker thread that everything on the chain happens in, the block log and the optional
JSON-RPC server on the loopback. Invariant: what a caller was told (a transaction accepted, a
balance read) is there again after a kill -9, because a block is durable before anybody hears of
it and replaying the log gives the same blocks, hash for hash. Transactions that wait together
share a block; it is mined at once. The node and tests open it; `chain.Chain` talks to its
`provider` as to any other node. Its role keys are public knowledge: never use them elsewhere.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from eth.abc import SignedTransactionAPI
from eth_utils.crypto import keccak
from web3._utils.encoding import FriendlyJsonSerde, Web3JsonEncoder
from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from settlement.blocklog import BlockLog, LoggedBlock
from settlement.chain import Keys, address_of
from settlement.errors import DamagedLog, DevchainStopped
from settlement.evm import BLOCK_GAS_MAX, Evm, RpcError

LOG_NAME: Final = "chain.log"
BLOCK_TRANSACTIONS_MAX: Final = 256
WAITING_MAX: Final = 4_096  # requests that wait for the worker; the next one is refused
BODY_BYTES_MAX: Final = 1 << 20  # of an HTTP request: a full transaction in hex, with room
BATCH_REQUESTS_MAX: Final = 100
RPC_HOST: Final = "127.0.0.1"

KEYS: Final = Keys(
    *(keccak(b"compex embedded chain " + role) for role in (b"deployer", b"settler", b"publisher"))
)
_SEND: Final = "eth_sendRawTransaction"
_UNWRITABLE: Final = "the embedded chain's log could not be written"


class EmbeddedProvider(AsyncBaseProvider):
    """web3's view of the chain: the same JSON as over HTTP, without the socket."""

    def __init__(self, chain: "EmbeddedChain") -> None:
        super().__init__()
        self._chain = chain

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        plain = json.loads(FriendlyJsonSerde().json_encode({"p": params}, cls=Web3JsonEncoder))
        return cast(RPCResponse, await self._chain.respond(method, plain["p"], 0))

    async def is_connected(self, show_traceback: bool = False) -> bool:  # noqa: ARG002
        return self._chain.running


class EmbeddedChain:
    """Open with `await EmbeddedChain.open(...)`; ends with `await close()`."""

    def __init__(self, evm: Evm, log: BlockLog | None, clock: Callable[[], int]) -> None:
        self.keys = KEYS
        self.provider = EmbeddedProvider(self)
        self.running = True
        self._evm = evm
        self._log = log
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, "embedded-chain")
        self._unmined: deque[tuple[bytes, Future[str]]] = deque()
        self._waiting = 0
        self._failed = False  # set and read in the worker
        self._server: web.AppRunner | None = None

    @classmethod
    async def open(
        cls,
        directory: Path | None,
        clock: Callable[[], int],
        progress: Callable[[int, int], None] | None = None,
    ) -> "EmbeddedChain":
        """Replay the log in `directory`, or begin a chain there; None keeps it in memory only.

        `clock` gives ns since the Unix epoch; a block's time is that, in seconds, but always
        later than the block before. `progress(done, total)` counts replayed bytes; it is called
        from another thread. Raises DevchainInUse, DamagedLog, OSError.
        """
        return await asyncio.to_thread(cls._open, directory, clock, progress)

    @classmethod
    def _open(
        cls,
        directory: Path | None,
        clock: Callable[[], int],
        progress: Callable[[int, int], None] | None,
    ) -> "EmbeddedChain":
        funded = [address_of(key) for key in KEYS]
        now_s = clock() // 1_000_000_000
        if directory is None:
            return cls(Evm(now_s, funded), None, clock)
        directory.mkdir(parents=True, exist_ok=True)
        log = BlockLog(directory / LOG_NAME, now_s)
        try:
            evm = Evm(log.genesis_time_s, funded)
            for block in log.blocks():
                _replay(evm, block, directory / LOG_NAME)
                if progress is not None:
                    progress(log.position, log.size)
        except BaseException:
            log.close()
            raise
        return cls(evm, log, clock)

    async def close(self) -> None:
        """Finish what waits, then stop. Idempotent."""
        if not self.running:
            return
        self.running = False
        if self._server is not None:
            await self._server.cleanup()
        await asyncio.to_thread(self._worker.shutdown)
        if self._log is not None:
            self._log.close()

    @property
    def height(self) -> int:
        """Number of the newest block."""
        return self._evm.height

    # --- requests -----------------------------------------------------------------------------

    async def request(self, method: str, parameters: Sequence[object]) -> object:
        """The `result` of one JSON-RPC request. Raises RpcError, DevchainStopped."""
        if not self.running:
            raise DevchainStopped("the embedded chain is closed")
        if self._waiting >= WAITING_MAX:
            raise RpcError(-32005, f"{WAITING_MAX} requests wait already")
        self._waiting += 1
        try:
            if method == _SEND:
                return await self._send(parameters)
            answered = self._worker.submit(self._answer, method, parameters)
            return await asyncio.wrap_future(answered)
        finally:
            self._waiting -= 1

    async def respond(self, method: str, parameters: object, request_id: object) -> dict[str, Any]:
        """The whole JSON-RPC response; every error is in its `error` field."""
        response: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id}
        try:
            if not isinstance(parameters, list):
                raise RpcError(-32602, "params: an array expected")
            response["result"] = await self.request(method, cast(list[object], parameters))
        except RpcError as error:
            response["error"] = {"code": error.code, "message": error.message}
            if error.data is not None:
                response["error"]["data"] = error.data
        except DevchainStopped as error:
            response["error"] = {"code": -32000, "message": str(error)}
        return response

    async def _send(self, parameters: Sequence[object]) -> str:
        raw = parameters[0] if parameters else None
        if not isinstance(raw, str) or not raw.startswith("0x"):
            raise RpcError(-32602, "a raw transaction in hexadecimal expected")
        try:
            decoded = bytes.fromhex(raw[2:])
        except ValueError:
            raise RpcError(-32602, "a raw transaction in hexadecimal expected") from None
        mined: Future[str] = Future()
        self._unmined.append((decoded, mined))
        # One turn of the worker mines all that wait by then; a turn with nothing left is free.
        self._worker.submit(self._mine)
        return await asyncio.wrap_future(mined)

    # --- in the worker ------------------------------------------------------------------------

    def _take_block(self) -> list[tuple[bytes, SignedTransactionAPI, Future[str]]]:
        """Waiting transactions that fit one block, in their order of arrival."""
        taken: list[tuple[bytes, SignedTransactionAPI, Future[str]]] = []
        hashes: set[bytes] = set()
        gas = 0
        while self._unmined and len(taken) < BLOCK_TRANSACTIONS_MAX:
            raw, mined = self._unmined[0]
            try:
                transaction = self._evm.decode(raw)
                if transaction.hash in hashes:
                    raise RpcError(-32000, "already known")
            except RpcError as error:
                self._unmined.popleft()
                if mined.set_running_or_notify_cancel():
                    mined.set_exception(error)
                continue
            gas += transaction.gas
            if gas > BLOCK_GAS_MAX:
                break
            self._unmined.popleft()
            if mined.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                hashes.add(transaction.hash)
                taken.append((raw, transaction, mined))
        return taken

    def _answer(self, method: str, parameters: Sequence[object]) -> object:
        if self._failed:
            raise DevchainStopped(_UNWRITABLE)
        return self._evm.answer(method, parameters, self._clock() // 1_000_000_000)

    def _mine(self) -> None:
        while not self._failed and (taken := self._take_block()):
            try:
                self._mine_block(taken)
            except BaseException as error:  # noqa: BLE001 whatever it is, the waiting must hear it
                # The block exists in memory alone: nobody may read it, so the chain ends here.
                self._failed = True
                for _, _, mined in taken:
                    mined.set_exception(error)
        while self._failed and self._unmined:
            _, mined = self._unmined.popleft()
            if mined.set_running_or_notify_cancel():
                mined.set_exception(DevchainStopped(_UNWRITABLE))

    def _mine_block(self, taken: list[tuple[bytes, SignedTransactionAPI, Future[str]]]) -> None:
        time_s = max(self._clock() // 1_000_000_000, self._evm.time_s + 1)
        height = self._evm.height
        outcome = self._evm.mine(time_s, [transaction for _, transaction, _ in taken])
        if self._log is not None and self._evm.height > height:
            included = [
                raw for (raw, _, _), mined in zip(taken, outcome, strict=True) if not mined.refusal
            ]
            self._log.append(time_s, self._evm.block_hash(self._evm.height), included)
        for (_, _, future), mined in zip(taken, outcome, strict=True):
            if mined.refusal:
                future.set_exception(RpcError(-32000, mined.refusal))
            else:
                future.set_result("0x" + mined.hash.hex())

    # --- over HTTP ----------------------------------------------------------------------------

    async def serve_rpc(self, port: int = 0) -> str:
        """JSON-RPC for wallets and tools on 127.0.0.1; 0 picks a port. Returns the URL."""
        assert self._server is None, "it serves already"
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_post("/", self._http)
        self._server = web.AppRunner(application, access_log=None)
        await self._server.setup()
        await web.TCPSite(self._server, RPC_HOST, port).start()
        return f"http://{RPC_HOST}:{self._server.addresses[0][1]}"

    async def _http(self, request: web.Request) -> web.Response:
        # A page of another origin can post plain text without asking, but not this type.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="application/json expected")
        try:
            body: object = json.loads(await request.read())
        except (ValueError, RecursionError):
            return _json(_invalid(-32700, "the body is not JSON"))
        if not isinstance(body, list):
            return _json(await self._one(body))
        many = cast(list[object], body)
        if not 0 < len(many) <= BATCH_REQUESTS_MAX:
            return _json(_invalid(-32600, f"1 to {BATCH_REQUESTS_MAX} requests in one batch"))
        return _json([await self._one(entry) for entry in many])

    async def _one(self, body: object) -> dict[str, Any]:
        if not isinstance(body, dict):
            return _invalid(-32600, "a request is an object")
        fields = cast(dict[str, object], body)
        method = fields.get("method")
        if not isinstance(method, str):
            return _invalid(-32600, "a request names its method")
        return await self.respond(method, fields.get("params", []), fields.get("id"))


def _replay(evm: Evm, block: LoggedBlock, path: Path) -> None:
    number = evm.height + 1
    try:
        evm.mine(block.time_s, [evm.decode(raw) for raw in block.transactions])
        same = evm.height == number and evm.block_hash(number) == block.hash
    except RpcError:
        same = False
    if not same:
        raise DamagedLog(
            f"{path}: block {number} replays to another hash than it had; it was written by "
            "another version of the embedded chain. Go back to that one, or remove the whole "
            "state directory to begin anew."
        )


def _invalid(code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}


def _json(body: object) -> web.Response:
    return web.Response(text=json.dumps(body), content_type="application/json")
