"""What goes back into the engine, once final: deposits, earnings, escrow, withdrawals, exits, and
that leases are over.

Owns the order of delivery. Invariant: everything is delivered at least once and in order; the
engine takes each credit's and end's number, batch id and withdrawal id once and refuses the
repetition, so that after a crash whatever is not booked in the ledger is simply delivered again.
Only settlement's service calls it.
"""

from collections.abc import Sequence
from typing import Final

from engine.port import Port
from engine.records import Command, CommandKind, Event, EventKind, Purse
from engine.rejects import Refused, Reject
from settlement.errors import SettlementHalted
from settlement.follow import Credit, Follower
from settlement.outgoing import Payment

CREDITS_PER_TURN_MAX: Final = 1_000
IN_FLIGHT_MAX: Final = 8_192  # commands whose answer is not booked yet

# A repetition, or a command overtaken by its account's owner, is answered so and changes nothing.
HARMLESS: Final = frozenset({
    Reject.ACCOUNT_EXISTS,
    Reject.DEPOSIT_OUT_OF_ORDER,
    Reject.ESCROW_OUT_OF_ORDER,
    Reject.WITHDRAWAL_OUT_OF_ORDER,
    Reject.VOID_OUT_OF_ORDER,
    Reject.EXIT_OUT_OF_ORDER,
    Reject.END_OUT_OF_ORDER,
    # The owner of the money was quicker; the next turn looks again.
    Reject.INSUFFICIENT_BALANCE,
    Reject.EXIT_EXCEEDS_FREE,
})  # fmt: skip
_ANSWERS: Final = frozenset({
    EventKind.ACCOUNT_OPENED,
    EventKind.DEPOSITED,
    EventKind.ESCROW_CONFIRMED,
    EventKind.WITHDRAWAL_RESERVED,
    EventKind.WITHDRAWAL_CONFIRMED,
    EventKind.WITHDRAWAL_CANCELLED,
    EventKind.ACCOUNT_CLOSED,
    EventKind.ACCOUNT_REOPENED,
    EventKind.FILL_VOIDED,
    EventKind.EXIT_CONFIRMED,
    EventKind.LEASES_ENDED,
    EventKind.REJECTED,
})  # fmt: skip


class Delivery:
    """Submits commands and keeps which of them are on their way."""

    def __init__(self, port: Port, follower: Follower, last_credit: int) -> None:
        self._port = port
        self._follower = follower
        self._last_credit = last_credit
        self._opened: set[int] = set()
        self._in_flight: dict[int, Command] = {}
        self._payments: set[tuple[str, int, int]] = set()

    async def credits(self) -> int:
        """Credit what became free in the vault, oldest first; returns how many were submitted.

        Stops at the first one that the engine has no room for; the next call goes on there.
        Raises SettlementHalted when the engine knows an account under another wallet.
        """
        count = 0
        for due in await self._follower.credits(self._last_credit, CREDITS_PER_TURN_MAX):
            known = self._port.owner_of(due.account)
            if not any(known):
                if due.account not in self._opened and not self._submit(
                    open_account(due.account, due.owner)
                ):
                    break
                self._opened.add(due.account)
            elif known != due.owner:
                raise SettlementHalted(
                    f"account {due.account} is 0x{due.owner.hex()} in the vault"
                    f" and 0x{known.hex()} in the engine"
                )
            if not self._submit(credit(due)):
                break
            self._last_credit = due.number
            count += 1
        return count

    def payments(self, due: Sequence[Payment]) -> int:
        """Confirm escrow, answer withdrawals, in the order given; returns how many were submitted.

        Those already on their way are left out; it stops at the first there is no room for.
        """
        count = 0
        for payment in due:
            key = (payment.kind, payment.id, payment.account)
            if key in self._payments:
                continue
            if not self._submit(confirm(payment)):
                break
            self._payments.add(key)
            count += 1
        return count

    def commands(self, due: Sequence[Command]) -> int:
        """Submit these, in order, as far as there is room; returns how many were submitted.

        The caller asks when nothing of the kind is on its way.
        """
        for count, command in enumerate(due):
            if not self._submit(command):
                return count
        return len(due)

    def booked(self, events: Sequence[Event]) -> None:
        """Told of every event after the ledger has booked it.

        Raises SettlementHalted when the engine refused one of our commands for a reason other
        than that it had taken it before.
        """
        if not self._in_flight:
            return
        for event in events:
            command = self._in_flight.get(event.sequence)
            if command is None or event.kind not in _ANSWERS:
                continue
            del self._in_flight[event.sequence]
            self._opened.discard(command.account)
            key = (_KIND_NAMES.get(command.kind, ""), command.client_id, command.account)
            self._payments.discard(key)
            if event.kind == EventKind.REJECTED and event.reason not in HARMLESS:
                kind = CommandKind(command.kind).name
                raise SettlementHalted(
                    f"the engine refused {kind} of account {command.account}"
                    f" (reference {command.client_id}): {Reject(event.reason).name}"
                )

    def _submit(self, command: Command) -> bool:
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            return False
        try:
            sequenced = self._port.submit(command)
        except Refused:
            return False  # BUSY or STOPPED: nothing was sequenced, so it is still due
        self._in_flight[sequenced.sequence] = command
        return True


def open_account(account: int, owner: bytes) -> Command:
    """`owner` is a 20-byte wallet address; it lies where order id, price and quantity do."""
    return Command(
        kind=CommandKind.OPEN_ACCOUNT,
        account=account,
        order_id=int.from_bytes(owner[:8], "little"),
        price_ticks=int.from_bytes(owner[8:16], "little", signed=True),
        qty_lots=int.from_bytes(owner[16:20], "little", signed=True),
    )


def credit(due: Credit) -> Command:
    """A deposit as the engine counts them: earnings, too, are money that comes from the vault."""
    return Command(
        kind=CommandKind.DEPOSIT,
        account=due.account,
        price_ticks=due.amount_usdc6,
        client_id=due.number,
        side=Purse.BOND if due.is_bond else Purse.CASH,
    )


_KINDS: Final = {
    "settle": CommandKind.CONFIRM_ESCROW,
    "withdraw": CommandKind.CONFIRM_WITHDRAWAL,
    "return": CommandKind.CANCEL_WITHDRAWAL,
    "exit": CommandKind.CONFIRM_EXIT,
}
_KIND_NAMES: Final = {int(kind): name for name, kind in _KINDS.items()}


def confirm(payment: Payment) -> Command:
    return Command(
        kind=_KINDS[payment.kind],
        account=payment.account,
        price_ticks=payment.amount_usdc6,
        client_id=payment.id,
    )
