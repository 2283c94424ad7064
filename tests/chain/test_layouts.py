"""What settlement computes of a batch or a release is what VaultV2 computes, and what it costs."""

import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.gas import exchange
from benchmarks.vault import DAY_S, SETTLER, WATCHER, Fill, Record, Release, Vault, wallet
from settlement import batch, releases
from settlement.batch import FILL
from tests.chain.test_vault_v2 import refused
from tests.unit.test_batch import MONTH, SPOT

SEED = 5
ACCOUNTS = 120


@cache
def _vault() -> Vault:
    return exchange(ACCOUNTS)


def flow(count: int, buyers: int, chance: random.Random, *, tiny: bool = False) -> list[Fill]:
    """With `tiny` ones most bytes are zero: then the work costs more than the bytes."""
    return [
        Fill(
            chance.randint(1, buyers),
            chance.randint(buyers + 1, ACCOUNTS),
            1 if tiny else chance.randint(10_000, 60_000),
            1 if tiny else chance.randint(100, 10_000),
            *chance.choice([SPOT, MONTH]),
            0 if tiny else chance.randint(0, 2**32 - 1),
            0 if tiny else chance.randint(0, 2**32 - 1),
            0 if tiny else chance.randint(0, 50_000),
            0 if tiny else chance.randint(0, 50_000),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize(
    ("count", "buyers"), [(1, 1), (2, 2), (31, 9), (256, 60), (257, 1), (700, 60)]
)
def test_the_vault_settles_what_was_sealed_to_the_same_root_and_sum(
    count: int, buyers: int, tiny: bool
) -> None:
    vault = _vault()
    mark, head = vault.machine.mark(), vault.head
    fills = flow(count, buyers, random.Random(SEED), tiny=tiny)
    made = np.array([tuple(fill) for fill in fills], FILL)
    sealed = batch.seal(made, np.arange(1, count + 1))
    done = vault.do(SETTLER, "settle", head + 1, sealed.packed)
    [event] = vault.logged(done.logs, "Batch")
    assert event == {
        "id": head + 1, "root": sealed.root, "fills": count, "total": sealed.amount_usdc6,
    }  # fmt: skip
    assert vault.ask("batch", head + 1)[0] == sealed.root[:27]
    totals = batch.totals_usdc6(sealed.packed)
    assert [account["locked"] for account in vault.accounts()] == [
        totals.get(number, 0) for number in range(ACCOUNTS + 1)
    ]
    assert done.gas <= sealed.gas, "the limit suffices"
    if count > 200:
        assert sealed.gas <= 1.1 * done.gas, "and is no tenth too much"
    with refused("NotTheBuyer"):  # the path leads to the root, so this is all that is wrong
        vault.do(wallet(ACCOUNTS), "stop", _place(head + 1, sealed.packed, count // 3))
    vault.machine.reset(mark)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 300])
def test_the_vault_releases_what_was_sealed_to_the_unit(count: int) -> None:
    vault = _vault()
    mark = vault.machine.mark()
    head, released = vault.head, vault.releases
    chance = random.Random(SEED)
    fills = np.array([tuple(fill) for fill in flow(count, 60, chance)], FILL)
    sealed = batch.seal(fills, np.arange(1, count + 1))
    vault.do(SETTLER, "settle", head + 1, sealed.packed)
    vault.machine.wait(DAY_S)
    leases = batch.unpack(sealed.packed)
    paid = np.array(
        [chance.randint(0, most) for most in batch.notionals_usdc6(leases).tolist()], np.int64
    )
    records = releases.records_of(np.arange(count), leases, paid)
    release = releases.seal(head + 1, records)
    before = vault.accounts()
    call = (released + 1, release.batch_id, release.accounts, release.packed)
    done = vault.do(SETTLER, "release", *call)
    [event] = vault.logged(done.logs, "Release")
    assert (event["leases"], event["total"]) == (count, sealed.amount_usdc6)
    assert done.gas <= release.gas
    earned = [0] * (ACCOUNTS + 1)
    for _, buyer, seller, to_seller, to_buyer, to_exchange in records.tolist():
        for account, amount in ((seller, to_seller), (buyer, to_buyer), (0, to_exchange)):
            earned[account] += amount
    after = vault.accounts()
    assert [a["pending"] - b["pending"] for a, b in zip(after, before, strict=True)] == earned
    assert not any(account["locked"] for account in after)
    plain = Release(released + 1, head + 1, [_plainly(record) for record in records.tolist()])
    for index in {0, count - 1}:  # nothing was due yet, so whoever has the commitment may undo it
        if paid[index]:
            place = _place(head + 1, sealed.packed, index)
            undone = vault.do(WATCHER, "undoRelease", plain.proof(index), place)
            assert vault.logged(undone.logs, "ReleaseUndone")[0]["record"] == index
    vault.machine.reset(mark)


def _place(batch_id: int, packed: bytes, index: int) -> tuple[int, int, int, list[bytes]]:
    word = int.from_bytes(packed[30 * index : 30 * index + 30], "big")
    return batch_id, index, word, batch.path_of(packed, index)


def _plainly(record: Any) -> Record:
    index, buyer, seller, *parts = record
    return Record(index, buyer, seller, sum(parts), *parts[:2])
