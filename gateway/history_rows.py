"""Messages as an earlier build kept them: each a row of its own, with its msgpack.

Invariant: an account's rows here are older than all of its pages, and nobody adds to them; trimming
takes them away in the end. `history_file` calls.
"""

import sqlite3
from typing import Any, Final

import msgspec
from compex_client import messages as m

from gateway.facts import FILL, ORDER

_decode: Final = msgspec.msgpack.Decoder(m.Numbered).decode


class Rows:
    """Reads and trims the table `private` of an open file. Everything raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._is_empty = not self._all("SELECT 1 FROM private LIMIT 1")

    def _all(self, sql: str, *values: Any) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def page(self, kind: int, account: int, from_aseq: int, limit: int) -> list[m.Numbered]:
        """At most so many, from that number on; `kind` 0: of every kind."""
        if self._is_empty:
            return []
        of_kind = f"AND kind = {kind}" if kind else ""  # as it stands in the partial indexes
        found = self._all(
            f"SELECT message FROM private WHERE account = ? AND aseq >= ? {of_kind}"
            " ORDER BY aseq LIMIT ?",
            account,
            from_aseq,
            limit,
        )
        return [_decode(message) for (message,) in found]

    def fate(self, account: int, client_id: int) -> m.OrderInfo | None:
        """What became of the order of a client id, by its first message, its last `order` and its
        last one of all."""
        if self._is_empty:
            return None
        found: dict[int, bytes] = {}
        last_of_order = f"AND kind = {ORDER} ORDER BY aseq DESC"
        for which in ("ORDER BY aseq", last_of_order, "ORDER BY aseq DESC"):
            found |= self._all(
                "SELECT aseq, message FROM private WHERE account = ? AND client_id = ?"
                f" AND client_id > 0 AND kind IN ({ORDER}, {FILL}) {which} LIMIT 1",
                account,
                client_id,
            )
        return _order_told([_decode(found[aseq]) for aseq in sorted(found)])

    def trim(self, account: int, below: int) -> None:
        if not self._is_empty:
            self._all("DELETE FROM private WHERE account = ? AND aseq < ?", account, below)

    def first_since(self, account: int, time_us: int) -> int:
        """The number of the account's first message that is not older; 0 if all are."""
        if self._is_empty:
            return 0
        found = self._all(
            "SELECT aseq FROM private WHERE account = ? AND time_us >= ? ORDER BY aseq LIMIT 1",
            account,
            time_us,
        )
        return found[0][0] if found else 0


def _order_told(told: list[m.Numbered]) -> m.OrderInfo | None:
    """None if the order itself is not among them any more."""
    orders = [message for message in told if isinstance(message, m.Order)]
    if not orders:
        return None
    last, end = orders[-1], told[-1]
    assert isinstance(end, m.Order | m.Fill)
    state = end.state if isinstance(end, m.Order) else "filled" if end.left == "0" else "open"
    return m.OrderInfo(
        order_id=last.order_id,
        market=last.market,
        side=last.side,
        price=last.price,
        qty=last.qty,
        left=end.left,
        state=state,
        time_us=told[0].time_us,
        client_id=last.client_id,
        expires_s=last.expires_s,
        session=last.session,
    )
