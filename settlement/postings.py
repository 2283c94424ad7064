"""What each log of VaultV2 moves in the ledger, as lines of one amount and two ends. Pure.

Owns which buckets a kind of log touches. Invariant: the lines of a log move what its call moved in
the vault, no more and no less; money that becomes free there goes to the ledger's vault, because
it is its owner's cash only once the engine has credited it, as a deposit. The ledger takes them.

    escrow ─release─▶ earnings ─collect─▶ vault      settler_bond ─penalty─▶ vault, owed
       └─claim, annul─▶ vault       bond ─slash─▶ vault      stakes ─answer─▶ settler_bond
"""

from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from settlement.releases import Records

Bucket: TypeAlias = Literal[
    "vault", "cash", "pending", "escrow", "leaving", "bond", "earnings",
    "settler_bond", "stakes", "owed",
]  # fmt: skip
EXCHANGE: Final = 0  # the vault's account 0: fees, and what is no trader's


class Line(NamedTuple):
    """A transfer of a transaction. `reference` says of what: a release's or a batch's id before the
    16 bits of a place in it, or an account's or a challenge's number."""

    kind: str
    reference: int
    from_account: int
    from_bucket: Bucket
    to_account: int
    to_bucket: Bucket
    amount_usdc6: int


def _lines(*lines: Line) -> list[Line]:
    return [line for line in lines if line.amount_usdc6]


def lease_of(batch_id: int, index: int) -> int:
    """The number of a lease, as the vault counts them."""
    return batch_id << 16 | index


# --- leases -----------------------------------------------------------------------------------


def released(release_id: int, records: Records) -> list[Line]:
    """Of a Release: what sellers earn, buyers get back and the exchange takes, one line for each
    buyer and receiver."""
    return _parts("release", release_id, records)


def undone(release_id: int, records: Records) -> list[Line]:
    """Of a ReleaseUndone: these records of it the other way round."""
    return [
        line._replace(
            from_account=line.to_account,
            from_bucket=line.to_bucket,
            to_account=line.from_account,
            to_bucket=line.from_bucket,
        )
        for line in _parts("undo", release_id, records)
    ]


def _parts(kind: str, release_id: int, records: Records) -> list[Line]:
    buyers = np.tile(records["buyer"], 3)
    takers = np.concatenate([
        records["seller"], records["buyer"], np.full(len(records), EXCHANGE)
    ])  # fmt: skip
    names = ("to_seller_usdc6", "to_buyer_usdc6", "to_exchange_usdc6")
    amounts = np.concatenate([records[name] for name in names])
    pairs, places = np.unique(np.stack([buyers, takers], axis=1), axis=0, return_inverse=True)
    sums = np.zeros(len(pairs), np.int64)
    np.add.at(sums, places.reshape(-1), amounts)
    return _lines(*(
        Line(kind, release_id, buyer, "escrow", taker, "earnings", amount)
        for (buyer, taker), amount in zip(pairs.tolist(), sums.tolist(), strict=True)
    ))  # fmt: skip


def claimed(lease: int, buyer: int, freed_usdc6: int, fees_usdc6: int) -> list[Line]:
    """Of a Claimed: `freed` is what both parties have free now, together."""
    return _lines(
        Line("claim", lease, buyer, "escrow", EXCHANGE, "vault", freed_usdc6),
        Line("claim", lease, buyer, "escrow", EXCHANGE, "earnings", fees_usdc6),
    )


def annulled(lease: int, buyer: int, cost_usdc6: int) -> list[Line]:
    """Of a Voided: a settled fill that nobody had signed for, or that was flawed."""
    return _lines(Line("annul", lease, buyer, "escrow", EXCHANGE, "vault", cost_usdc6))


def slashed(lease: int, seller: int, amount_usdc6: int) -> list[Line]:
    """Of a Slashed: out of the seller's bond, free for the buyer."""
    return _lines(Line("slash", lease, seller, "bond", EXCHANGE, "vault", amount_usdc6))


# --- the settler's word -----------------------------------------------------------------------


def punished(lease: int, amount_usdc6: int) -> list[Line]:
    """Of a SettlerBondTaken that follows a Voided or a ReleaseUndone: a quarter, rounded down, is
    free for each party, the rest is owed to whoever showed what was wrong."""
    parties = 2 * (amount_usdc6 // 4)
    return _lines(
        Line("penalty", lease, EXCHANGE, "settler_bond", EXCHANGE, "vault", parties),
        Line("penalty", lease, EXCHANGE, "settler_bond", EXCHANGE, "owed", amount_usdc6 - parties),
    )


def challenged(lease: int, stake_usdc6: int) -> list[Line]:
    """Of a Challenged."""
    return _lines(Line("stake", lease, EXCHANGE, "vault", EXCHANGE, "stakes", stake_usdc6))


def answered(lease: int, stake_usdc6: int) -> list[Line]:
    """Of an Answered: the stake is the settler's bond."""
    return _lines(Line("answer", lease, EXCHANGE, "stakes", EXCHANGE, "settler_bond", stake_usdc6))


def refunded(lease: int, stake_usdc6: int) -> list[Line]:
    """Of a question that nobody answered in time."""
    return _lines(Line("refund", lease, EXCHANGE, "stakes", EXCHANGE, "owed", stake_usdc6))


def rewarded(amount_usdc6: int) -> list[Line]:
    """Of an OwedTaken."""
    return _lines(Line("reward", EXCHANGE, EXCHANGE, "owed", EXCHANGE, "vault", amount_usdc6))


def pledged(amount_usdc6: int) -> list[Line]:
    """Of a SettlerBondAdded."""
    return _lines(
        Line("pledge", EXCHANGE, EXCHANGE, "vault", EXCHANGE, "settler_bond", amount_usdc6)
    )


def unpledged(amount_usdc6: int) -> list[Line]:
    """Of a SettlerBondTaken by the administrator."""
    return _lines(
        Line("unpledge", EXCHANGE, EXCHANGE, "settler_bond", EXCHANGE, "vault", amount_usdc6)
    )


# --- accounts ---------------------------------------------------------------------------------


def collected(account: int, amount_usdc6: int) -> list[Line]:
    """Of a Collected: matured earnings are free."""
    return _lines(Line("collect", account, account, "earnings", EXCHANGE, "vault", amount_usdc6))


def unbonded(account: int, amount_usdc6: int) -> list[Line]:
    """Of a BondTaken."""
    return _lines(Line("unbond", account, account, "bond", EXCHANGE, "vault", amount_usdc6))


def fees_taken(amount_usdc6: int) -> list[Line]:
    """Of a FeesTaken."""
    return _lines(Line("fees", EXCHANGE, EXCHANGE, "earnings", EXCHANGE, "vault", amount_usdc6))
