"""The audit log has every administrator's command, login, authorisation and revocation, shows every
line that somebody touched, and never a secret."""

import errno
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from compex_client import Disconnected, Rejected, Scope, Wallet, connect
from compex_client import messages as m
from compex_client.messages import CloseCode
from compex_client.wallet import Domain, keccak256

from engine.rejects import Reject
from gateway.audit import AUDIT_FILE, BEFORE_THE_FIRST, Audit, AuditError, verify
from gateway.cli import main
from gateway.keys import KEYS_FILE, Keys
from tests.exchange import (
    ADMINISTRATOR,
    TICKER,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)

OWNER = wallet(101)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path) as running:
        await running.list_market()
        await running.open_account(1, cash_usdc6=10**9)
        yield running


def lines_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / AUDIT_FILE).read_text().splitlines()]


def ping(number: int) -> m.Ping:
    return m.Ping(number)


async def test_each_line_says_who_what_from_where_and_what_came_of_it(
    exchange: Exchange, tmp_path: Path
) -> None:
    administrator = exchange.converse(ADMINISTRATOR)
    administrator.say(m.Market(2, "halt", TICKER))
    await exchange.port.settled()
    administrator.say(m.Market(3, "halt", "NOSUCH"))
    trader = exchange.converse(OWNER)
    for number in (2, 3):
        trader.say(m.Market(number, "resume", TICKER))
    trader.say(m.New(4, TICKER, "buy", "1", "1"))
    found = [(x["what"], x["wallet"], x["outcome"]) for x in lines_in(tmp_path)]
    assert found == [
        ("login", ADMINISTRATOR.address, "done"),
        ("market", ADMINISTRATOR.address, "asked"),
        ("market", ADMINISTRATOR.address, "done"),
        ("market", ADMINISTRATOR.address, "asked"),
        ("market", ADMINISTRATOR.address, "4001 UNKNOWN_INSTRUMENT"),
        ("login", OWNER.address, "done"),
        ("market", OWNER.address, "1010 NOT_ADMINISTRATOR"),  # once a connection
    ]
    asked = lines_in(tmp_path)[1]
    assert asked["request"] == {"action": "halt", "market": TICKER}
    assert (asked["peer"], asked["time_us"]) == ("127.0.0.1", exchange.clock.now_ns() // 1_000)
    assert verify(tmp_path / AUDIT_FILE)[:2] == (7, 0)


async def test_without_its_log_nothing_is_administered_and_all_trade(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator = exchange.converse(ADMINISTRATOR)

    def full(_file: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gateway.audit.os.write", full)
    before = exchange.port.ready().last_sequence
    for request in (m.Market(2, "halt", TICKER), m.FeeTier(3, OWNER.address, 1)):
        [reject] = administrator.say(request)
        assert isinstance(reject, m.Reject) and reject.code == Reject.STOPPED
        assert "audit log" in reject.message
    assert exchange.port.ready().last_sequence == before
    trader = exchange.converse(OWNER)
    monkeypatch.undo()
    assert trader.say(m.New(2, TICKER, "buy", "1", "1")) == []
    await exchange.port.settled()
    [ack] = trader.heard()
    assert isinstance(ack, m.Ack)


# --- the chain ---------------------------------------------------------------------------------
LINES: Final = 5


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / AUDIT_FILE
    for half in (range(1, 3), range(3, LINES + 1)):
        audit = Audit(path)  # a start between the halves
        for number in half:
            audit.write(number, b"\1" * 20, b"", "192.0.2.1", m.FeeTier(number, "0x", 1), "done")
        audit.close()
    return path


def test_what_was_written_is_verified_over_starts(log: Path) -> None:
    found = verify(log)
    assert (found.lines, found.cut_off) == (LINES, 0)
    assert lines_in(log.parent)[0]["before"] == BEFORE_THE_FIRST


def swap(lines: list[bytes], at: int) -> None:
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def replace(lines: list[bytes], at: int, line: bytes) -> None:
    lines[at] = line


TOUCHES: Final[dict[str, Callable[[list[bytes], int], object]]] = {
    "removed": lambda lines, at: lines.pop(at),
    "doubled": lambda lines, at: lines.insert(at + 1, lines[at]),
    "put in": lambda lines, at: lines.insert(at + 1, b"junk\n"),
    "made junk": lambda lines, at: replace(lines, at, b"junk\n"),
    "changed": lambda lines, at: replace(lines, at, lines[at].replace(b"192.0.2.1", b"192.0.2.7")),
    "swapped": swap,
    "beheaded": lambda lines, at: [lines.pop(0) for _ in range(at + 1)],
}


@pytest.mark.parametrize("at", range(LINES - 1))
@pytest.mark.parametrize("name", TOUCHES)
def test_a_touched_line_shows(log: Path, name: str, at: int) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    TOUCHES[name](lines, at)
    log.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match=r"line \d"):
        verify(log)


def test_lines_removed_from_the_end_show_by_the_digest(log: Path) -> None:
    whole = verify(log)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(log).digest != whole.digest


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_cut_off_by_a_crash_is_ended_and_vouched_for(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])
    audit = Audit(log)
    audit.write(9, b"", b"", "", ping(9), "done")
    audit.write(10, b"", b"", "", ping(9), "done")
    audit.close()
    found = verify(log)
    assert (found.lines, found.cut_off) == (LINES + 2, 0 if cut == 1 else 1)
    lines = log.read_bytes().splitlines(keepends=True)
    lines[LINES - 1] = b"junk\n"
    log.write_bytes(b"".join(lines))
    with pytest.raises(AuditError):
        verify(log)


def test_a_line_cut_off_by_a_full_disk_is_told_and_the_next_ones_go_on(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, write = Audit(log), os.write

    def first_bytes(file: int, data: bytes) -> int:
        return write(file, data[:7])

    monkeypatch.setattr("gateway.audit.os.write", first_bytes)
    with pytest.raises(OSError, match="7 of"):
        audit.write(9, b"", b"", "", ping(9), "done")
    monkeypatch.undo()
    audit.write(10, b"", b"", "", ping(9), "done")
    audit.close()
    assert verify(log)[:2] == (LINES + 2, 1)


def test_the_command_verifies_a_nodes_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--verify", str(log.parent)]) == 0
    said = capsys.readouterr().out
    assert verify(log).digest in said and str(LINES) in said
    assert main(["audit", str(log.parent)]) == 0
    assert capsys.readouterr().out == log.read_text()
    log.write_bytes(log.read_bytes().replace(b"192.0.2.1", b"192.0.2.7", 1))
    assert main(["audit", "--verify", str(log.parent)]) == 1
    assert "line 2" in " ".join(capsys.readouterr().out.split())
    assert main(["audit", str(log.parent / "nowhere")]) == 1


# --- secrets -----------------------------------------------------------------------------------
SECRET_BOT, SECRET_STRANGER = (Wallet(keccak256(name)) for name in (b"bot", b"stranger"))


def all_written(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


async def trade_and_fail(url: str) -> None:
    """Logins good and bad, an authorisation used beyond its scope, a revocation."""
    async with await connect(url, OWNER) as owner:
        await owner.authorise(SECRET_BOT.address, scopes=Scope.TRADE, markets=[TICKER])
        async with await connect(url, OWNER.address, key=SECRET_BOT) as bot:
            fills = await bot.sequenced()
            await bot.place(TICKER, "buy", "1", "1")
            with pytest.raises(Rejected):
                await bot.withdraw("1")
            assert (await owner.revoke(SECRET_BOT.address)).count == 1
            assert (await anext(fills)).sequence
            with pytest.raises(Disconnected) as caught:
                await anext(fills)
            assert caught.value.code == CloseCode.KEY_REVOKED
    for wrong in (SECRET_BOT, SECRET_STRANGER):
        with pytest.raises(Rejected):
            await connect(url, OWNER.address, key=wrong)
    async with await connect(url, ADMINISTRATOR) as administrator:
        await administrator.halt_market(TICKER)


async def test_no_secret_and_no_logins_signature_is_in_any_file_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins: list[bytes] = []
    sign = Wallet.sign_login

    def noted(self: Wallet, domain: Domain, nonce: bytes, wallet: bytes = b"") -> bytes:
        logins.append(sign(self, domain, nonce, wallet))
        return logins[-1]

    monkeypatch.setattr(Wallet, "sign_login", noted)
    caplog.set_level(logging.DEBUG)
    store = Keys(tmp_path / KEYS_FILE)
    async with running_exchange(tmp_path, keys=store) as running:
        await running.list_market()
        await running.open_account(1, cash_usdc6=10**9)
        async with running_server(running) as (_, url):
            await trade_and_fail(url)
    await store.close()
    secrets = [bytes.fromhex(x.export_secret()[2:]) for x in (SECRET_BOT, SECRET_STRANGER)]
    assert len(logins) == 5 and len(lines_in(tmp_path)) == 9 and caplog.text
    texts = [caplog.text.encode(), *all_written(tmp_path)]
    assert any(SECRET_BOT.address_bytes in text for text in texts), "what may be there is found"
    for text in texts:
        for secret in (*secrets, *(login[:32] for login in logins)):
            assert secret not in text and secret.hex().encode() not in text.lower()
