"""Which keys may act for which wallets: authorisations and revocations, kept for good.

Owns one SQLite file, `gateway.sqlite3` in the node's directory. Everything is read from memory and
written by one thread beside the event loop, in order. Invariant: what is acknowledged is on the
disk; an authorisation counts from then on, a revocation from the moment it is asked for; a nonce
that a wallet has used or revoked for a key never counts again. Each signed authorisation is kept
as it was signed, for whoever has to prove later who let whom act. Sessions call it, after `auth`
has checked the signature.
"""

import asyncio
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from compex_client import messages as m
from compex_client.wallet import EVERY_KEY, SessionKey

from engine.rejects import CompexError, Reject
from gateway.schema import migrate
from gateway.wire import BadRequest

KEYS_FILE: Final = "gateway.sqlite3"
KEYS_PER_WALLET_MAX: Final = 64  # at a time
STATEMENTS_PER_WALLET_MAX: Final = 4_096  # authorisations and revoked keys kept, ever
STATEMENTS_MAX: Final = 1_000_000  # of all wallets
COMMITS_WAITING_MAX: Final = 1_024
COMMITS_OF_WALLET_MAX: Final = KEYS_PER_WALLET_MAX  # of those: all its keys in one go

# Each text is one version of the schema; the file's `user_version` counts those it has.
MIGRATIONS: Final = (
    """
    CREATE TABLE authorisations (
        wallet BLOB NOT NULL CHECK (length(wallet) = 20),
        key BLOB NOT NULL CHECK (length(key) = 20),
        nonce INTEGER NOT NULL,
        scopes INTEGER NOT NULL,
        markets TEXT NOT NULL, -- a JSON list
        valid_from_s INTEGER NOT NULL,
        valid_until_s INTEGER NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 65),
        time_ns INTEGER NOT NULL, -- when it came
        PRIMARY KEY (wallet, key, nonce)
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE revocations ( -- the one with the highest nonce for each key
        wallet BLOB NOT NULL CHECK (length(wallet) = 20),
        key BLOB NOT NULL CHECK (length(key) = 20), -- zeros: every key of the wallet
        nonce INTEGER NOT NULL,
        signature BLOB NOT NULL, -- empty: the wallet was logged in
        time_ns INTEGER NOT NULL,
        PRIMARY KEY (wallet, key)
    ) WITHOUT ROWID, STRICT;
    """,
)
_AUTHORISE: Final = "INSERT INTO authorisations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_REVOKE: Final = """
    INSERT INTO revocations VALUES (?, ?, ?, ?, ?) ON CONFLICT (wallet, key) DO UPDATE SET
        nonce = excluded.nonce, signature = excluded.signature, time_ns = excluded.time_ns
    WHERE excluded.nonce > nonce"""

log = logging.getLogger("compex.keys")
Done = Callable[[Reject | None], None]
Revoked = Callable[[Reject | None, int], None]  # and how many keys are out by it


class KeysError(CompexError):
    """The file of authorisations cannot be used; the message names it."""


class Revocation(NamedTuple):
    """`key` may be EVERY_KEY. Of a wallet that is logged in all nonces that were seen are meant,
    and those up to `nonce`, if it is higher."""

    wallet: bytes
    key: bytes
    nonce: int
    signature: bytes  # empty where the wallet is logged in


class Holder(Protocol):
    """A connection that a key logged in."""

    def key_ended(self, code: m.CloseCode) -> None: ...


@dataclass
class _Key:
    """One key of one wallet: what counts, and the nonces that do not count again."""

    terms: SessionKey | None = None  # None: not on the disk yet, or only ever revoked
    signature: bytes = b""  # of the terms, by the wallet
    seen_nonce: int = 0
    revoked_nonce: int = 0
    holders: set[Holder] = field(default_factory=set[Holder])


@dataclass
class _Owner:
    """One wallet that lets keys act for it."""

    revoked_nonce: int = 0  # for every key
    statements: int = 0
    keys: dict[bytes, _Key] = field(default_factory=dict[bytes, _Key])

    def is_out(self, key: _Key) -> bool:
        return key.seen_nonce <= max(self.revoked_nonce, key.revoked_nonce)


class Keys:
    """All of them. Without a path they are kept in memory alone, and each call is done at once."""

    def __init__(self, path: Path | None = None) -> None:
        self._owners: dict[bytes, _Owner] = {}
        self._wallets_of: dict[bytes, dict[bytes, None]] = {}  # by key, oldest first
        self._statements = 0
        self._waiting: Counter[bytes] = Counter()  # commits, by wallet
        self._thread = ThreadPoolExecutor(1, "keys") if path is not None else None
        self._database = _opened(path)
        self._load()

    async def close(self) -> None:
        """What was begun is on the disk when this returns."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)
        self._database.close()

    @property
    def owes_replies(self) -> bool:
        """Whether somebody waits to hear that something is on the disk."""
        return bool(self._waiting)  # a wallet for which nothing waits is not in it

    # --- reading -------------------------------------------------------------------------------
    def in_force(self, wallet: bytes, key: bytes, now_s: int) -> SessionKey:
        """What the key may do for the wallet now. Raises BadRequest: KEY_NOT_AUTHORISED,
        KEY_REVOKED or KEY_EXPIRED."""
        owner = self._owners.get(wallet)
        known = owner.keys.get(key) if owner is not None else None
        terms = known.terms if known is not None else None
        if owner is None or known is None or terms is None:
            raise BadRequest(Reject.KEY_NOT_AUTHORISED, "key")
        if terms.nonce <= max(owner.revoked_nonce, known.revoked_nonce):
            raise BadRequest(Reject.KEY_REVOKED, "key")
        if not terms.valid_from_s <= now_s < terms.valid_until_s:
            raise BadRequest(Reject.KEY_EXPIRED, "key")
        return terms

    def proof(self, wallet: bytes, key: bytes, now_s: int) -> tuple[SessionKey, bytes]:
        """What the key may do for the wallet now, and the wallet's signature of it. Raises as
        `in_force`."""
        terms = self.in_force(wallet, key, now_s)
        return terms, self._owners[wallet].keys[key].signature

    def of_wallet(self, wallet: bytes, now_s: int) -> list[SessionKey]:
        """Those that may act for it now or later."""
        owner = self._owners.get(wallet, _Owner())
        return [
            known.terms
            for known in owner.keys.values()
            if known.terms is not None and _counts(owner, known, now_s)
        ]

    def of_signer(self, key: bytes, now_s: int) -> list[SessionKey]:
        """For whom the key may act now or later."""
        return [
            terms
            for wallet in self._wallets_of.get(key, ())
            for terms in self.of_wallet(wallet, now_s)
            if terms.key == key
        ]

    # --- connections ---------------------------------------------------------------------------
    def hold(self, wallet: bytes, key: bytes, holder: Holder) -> None:
        """Tell the holder when the key is no longer in force, but by time."""
        self._owners[wallet].keys[key].holders.add(holder)

    def let_go(self, wallet: bytes, key: bytes, holder: Holder) -> None:
        self._owners[wallet].keys[key].holders.discard(holder)

    # --- changing ------------------------------------------------------------------------------
    def authorise(self, terms: SessionKey, signature: bytes, time_ns: int, done: Done) -> None:
        """`done` is told when it is on the disk, or that it is not. Raises BadRequest with nothing
        changed: NONCE_REPLAYED, TOO_MANY_KEYS, BUSY."""
        owner = self._owners.get(terms.wallet, _Owner())
        known = owner.keys.get(terms.key, _Key())
        if terms.nonce <= max(known.seen_nonce, known.revoked_nonce, owner.revoked_nonce):
            raise BadRequest(Reject.NONCE_REPLAYED, "nonce", "a greater one was used or revoked")
        others = (x for name, x in owner.keys.items() if name != terms.key)
        now_s = time_ns // 1_000_000_000
        if sum(_counts(owner, x, now_s) for x in others) >= KEYS_PER_WALLET_MAX:
            raise BadRequest(Reject.TOO_MANY_KEYS)
        self._make_room(owner)
        self._check_idle(terms.wallet)
        self._count(terms.wallet, owner)
        known = owner.keys.setdefault(terms.key, known)
        known.seen_nonce = terms.nonce  # at once, or the same one could be on its way twice
        row = (
            terms.wallet, terms.key, terms.nonce, terms.scopes, json.dumps(terms.markets),
            terms.valid_from_s, terms.valid_until_s, signature, time_ns,
        )  # fmt: skip

        def written(failure: Reject | None) -> None:
            if failure is None:
                self._take_effect(terms, signature)
            done(failure)

        self._commit(terms.wallet, _AUTHORISE, row, written)

    def _take_effect(self, terms: SessionKey, signature: bytes) -> None:
        owner = self._owners[terms.wallet]
        known = owner.keys[terms.key]
        before, known.terms, known.signature = known.terms, terms, signature
        self._wallets_of.setdefault(terms.key, {})[terms.wallet] = None
        if before is not None and before.scopes & ~terms.scopes:
            _end(known)

    def revoke(self, revocation: Revocation, time_ns: int, done: Revoked) -> None:
        """Keys are out from now on; `done` is told when that is on the disk, or that it is not.
        Raises BadRequest with nothing changed: KEY_NOT_AUTHORISED, NONCE_REPLAYED, TOO_MANY_KEYS,
        BUSY."""
        wallet, key, nonce, signature = revocation
        owner = self._owners.get(wallet, _Owner())
        meant = list(owner.keys.values()) if key == EVERY_KEY else [owner.keys.get(key, _Key())]
        seen = max((known.seen_nonce for known in meant), default=0)
        if not signature:  # the wallet itself is here, and means all that there is
            nonce = max(nonce, seen)
        if not nonce:
            raise BadRequest(Reject.KEY_NOT_AUTHORISED, "key")
        now_s = time_ns // 1_000_000_000
        standing = [known for known in meant if _counts(owner, known, now_s)]
        if any(known.seen_nonce > nonce for known in standing):
            raise BadRequest(Reject.NONCE_REPLAYED, "nonce", f"{seen} would stay in force")
        self._check_idle(wallet)
        if key == EVERY_KEY:
            owner.revoked_nonce = max(owner.revoked_nonce, nonce)
            self._owners[wallet] = owner
        else:
            if key not in owner.keys:  # which shall never come
                self._make_room(owner)
                self._count(wallet, owner)
                owner.keys[key] = meant[0]
            meant[0].revoked_nonce = max(meant[0].revoked_nonce, nonce)
        for known in standing:
            _end(known)
        row = (wallet, key, nonce, signature, time_ns)
        self._commit(wallet, _REVOKE, row, lambda failure: done(failure, len(standing)))

    def _make_room(self, owner: _Owner) -> None:
        """Raises BadRequest if a row more would be too many; nobody is kept from revoking keys."""
        full = owner.statements >= STATEMENTS_PER_WALLET_MAX
        if full or self._statements >= STATEMENTS_MAX:
            raise BadRequest(Reject.TOO_MANY_KEYS)

    def _check_idle(self, wallet: bytes) -> None:
        """Raises BadRequest. No wallet fills what all of them share: revoking costs it nothing."""
        of_wallet, of_all = self._waiting[wallet], self._waiting.total()
        if of_wallet >= COMMITS_OF_WALLET_MAX or of_all >= COMMITS_WAITING_MAX:
            raise BadRequest(Reject.BUSY)

    def _count(self, wallet: bytes, owner: _Owner) -> None:
        self._owners[wallet] = owner
        owner.statements += 1
        self._statements += 1

    # --- the file ------------------------------------------------------------------------------
    def _commit(self, wallet: bytes, sql: str, row: tuple[Any, ...], done: Done) -> None:
        def work() -> Reject | None:
            try:
                with self._database:
                    self._database.execute(sql, row)
            except sqlite3.Error as error:
                log.error("an authorisation or revocation is not on the disk: %s", error)
                return Reject.STOPPED
            return None

        def finished(future: "asyncio.Future[Reject | None]") -> None:
            self._waiting[wallet] -= 1
            if not self._waiting[wallet]:
                del self._waiting[wallet]
            done(Reject.STOPPED if future.cancelled() else future.result())

        if self._thread is None:
            done(work())
            return
        self._waiting[wallet] += 1
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, work).add_done_callback(finished)

    def _load(self) -> None:
        for terms, signature in _authorisations(self._database):
            owner = self._owners.get(terms.wallet, _Owner())
            known = owner.keys.setdefault(terms.key, _Key())
            self._count(terms.wallet, owner)
            known.terms, known.signature, known.seen_nonce = terms, signature, terms.nonce
            self._wallets_of.setdefault(terms.key, {})[terms.wallet] = None
        rows = self._database.execute("SELECT wallet, key, nonce FROM revocations")
        for wallet, key, nonce in rows:
            owner = self._owners.setdefault(wallet, _Owner())
            if key == EVERY_KEY:
                owner.revoked_nonce = nonce
            else:
                if key not in owner.keys:
                    self._count(wallet, owner)
                owner.keys.setdefault(key, _Key()).revoked_nonce = nonce


def _counts(owner: _Owner, known: _Key, now_s: int) -> bool:
    """Whether it may act now or later; one on its way to the disk does."""
    expired = known.terms is not None and known.terms.valid_until_s <= now_s
    return not owner.is_out(known) and not expired


def _end(known: _Key) -> None:
    for holder in list(known.holders):
        holder.key_ended(m.CloseCode.KEY_REVOKED)


def _opened(path: Path | None) -> sqlite3.Connection:
    """The database, in the newest version. Raises KeysError."""
    try:
        # One thread uses it at a time: this one until it is loaded, then the writer.
        database = sqlite3.connect(path or ":memory:", check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL").close()
        database.execute("PRAGMA synchronous = FULL")
        if not migrate(database, MIGRATIONS):
            [(version,)] = database.execute("PRAGMA user_version")
            raise KeysError(f"{path} is of version {version}, made by a later build")
    except sqlite3.Error as error:
        raise KeysError(f"{path} cannot be used: {error}") from error
    return database


def _authorisations(database: sqlite3.Connection) -> Iterator[tuple[SessionKey, bytes]]:
    """Of each key the latest comes last."""
    rows = database.execute(
        "SELECT wallet, key, scopes, markets, valid_from_s, valid_until_s, nonce, signature"
        " FROM authorisations ORDER BY nonce"
    )
    for *of_key, scopes, markets, valid_from_s, valid_until_s, nonce, signature in rows:
        wallet, key = of_key
        named = tuple(json.loads(markets))
        terms = SessionKey(wallet, key, scopes, named, valid_from_s, valid_until_s, nonce)
        yield terms, signature
