"""Who is to blame for a fill that is undone: each side by what it had signed when it had to."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from engine.records import Event
from settlement import database as db
from settlement.signatures import Signatures
from settlement.undoing import Undoing
from settlement.withholding import Withholding
from tests.chain.test_exits import Windowed
from tests.chain.test_signatures import (
    BID,
    BUYER,
    DOMAIN,
    NOW_S,
    OTHER,
    SELLER,
    SESSION,
    Clock,
    authority,
    booked,
    fill,
    hand_in,
    order,
    owner_of,
    sign,
)

SECOND_NS = 1_000_000_000
WITHIN_NS = 10 * SECOND_NS
RESALE, LAST = 102, 301  # order ids


@pytest.fixture
async def signatures(database_url: str) -> AsyncIterator[Signatures]:
    signatures = Signatures(database_url, DOMAIN, owner_of, Clock())
    yield signatures
    await signatures.close()


def ago(seconds: int, event: Event) -> Event:
    return event._replace(time_ns=(NOW_S - seconds) * SECOND_NS)


async def blamed(database: db.Database) -> list[tuple[int, int]]:
    """(event, account) of each side, once all is undone that is late."""
    await database.execute("INSERT INTO closed_account SELECT generate_series(1, 3), true")
    undoing = Undoing(database, cast("Any", Windowed()))
    await Withholding(database, undoing, WITHIN_NS, 0).mark(NOW_S * SECOND_NS)
    rows = await database.rows("SELECT event_number, account FROM withheld ORDER BY 1, 2")
    return [(row["event_number"], row["account"]) for row in rows]


async def test_who_signs_with_a_key_that_begins_later_than_other_fills_is_not_to_blame(
    signatures: Signatures, database: db.Database
) -> None:
    """The oldest was matched before the key of the buyer of the next one began."""
    first = fill(7, 5, order_id=LAST)._replace(account=OTHER)
    await booked(database, ago(1_000, first), ago(500, fill(8, 5)))
    await hand_in(signatures, OTHER, order(LAST, 1, True))
    bid = order(BID, 1, True)
    begins = authority(valid_from_s=NOW_S - 500 + 5)  # when the fill was there already
    outcome = await signatures.hand_in(BUYER, [bid], sign(BUYER, [bid], SESSION), begins)
    assert outcome.reject is None
    assert await blamed(database) == [(7, SELLER), (8, SELLER)]


async def test_who_has_not_had_time_to_sign_for_hours_sold_again_is_not_to_blame(
    signatures: Signatures, database: db.Database
) -> None:
    again = fill(8, 5, order_id=LAST, reference=RESALE, counter_account=BUYER)
    again = again._replace(account=OTHER, reason=2)
    await booked(database, ago(1_000, fill(7, 5)), ago(1, again))
    await hand_in(signatures, BUYER, order(BID, 1, True))
    assert await blamed(database) == [(7, SELLER)]
    assert await database.value("SELECT count(*) FROM fill WHERE void_number > 0") == 2


async def test_who_signs_for_what_has_ended_by_then_is_to_blame_and_who_was_kept_waiting_is_not(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, ago(100_000, fill(7, 5)), ago(100_000, fill(8, 5, order_id=LAST)))
    ends = NOW_S - 100_000
    await hand_in(signatures, BUYER, order(BID, 1, True, valid_until_s=ends))
    await hand_in(signatures, BUYER, order(LAST, 2, True, valid_until_s=ends - 43_200 + 1))
    assert await blamed(database) == [(7, SELLER), (8, BUYER), (8, SELLER)]
