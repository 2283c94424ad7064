"""How much each durability promise is tried, and the table that a run closes with.

`BUDGETS` is the one place for the numbers: a default run spends the small ones, `-m soak` the full
ones. A test decorated with `tries("...")` is two tests, one for each, and takes its number from the
fixture `trial`, which counts. Invariant: what was tried and did not hold is in the table as such,
whichever process tried it: a worker hands its counts over with its test's report. A plugin of
pytest, loaded by `conftest.py`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeVar, cast

import pytest
from xdist.scheduler import WorkStealingScheduling

SOAK_SECONDS_MAX: Final = 7200  # one test of a full budget
SMALL_SECONDS_MAX: Final = 900  # of a small one: compiling anew takes minutes where others work
PROPERTY: Final = "promise"  # under which a report carries the counts of its test

Case = TypeVar("Case")
Test = TypeVar("Test", bound=Callable[..., Any])


class Budget(NamedTuple):
    promise: str
    soak: int
    default: int


BUDGETS: Final = {
    "kills": Budget("what was acknowledged is there after kill -9, once", 1_000, 20),
    "bits": Budget("a flipped bit of a 64 KiB segment is found out", 1 << 19, 1 << 19),
    "cuts": Budget("a segment cut short at any byte is found out", 1 << 16, 1 << 16),
    "jumps": Budget("a clock that jumps by an hour misorders nothing", 1_000, 20),
    "cut-off": Budget("a request cut off around its answer has one effect", 10_000, 100),
    "one-hash": Budget("the same commands give the same state", 10_000_000, 100_000),
    "snapshots": Budget("a start from a snapshot is one from the first command", 100, 10),
    "conserved": Budget("money and capacity are conserved at every event", 1_000_000, 5_000),
    "booked": Budget("the ledger's books are sound, by its own SQL", 200_000, 2_500),
    "seeds": Budget("a node simulated with faults from a seed keeps its promises", 10_000, 50),
    "hostile": Budget("hostile frames end in a numbered reject or a close", 1_000_000, 20_000),
    "resumed": Budget("cut off and resumed, a bot has its private history, once", 1_000, 30),
    "disk-errors": Budget("after any error of the disk nobody hears of anything", 36, 12),
}


class Trial:
    """What one test does for a promise: it may spend `budget`, and counts."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.tried = 0
        self.survived = 0
        self.note = ""  # what the numbers alone do not say

    def each(self, cases: Iterable[Case]) -> Iterator[Case]:
        """The cases, one after the other: what the loop over them leaves by raising has failed."""
        for case in cases:
            self.tried += 1
            yield case
            self.survived += 1


class Counted(NamedTuple):
    """What a report says of its test. Plain, so that it travels between processes."""

    key: str
    tried: int
    survived: int
    seconds: float
    note: str


def tries(key: str) -> Callable[[Test], Test]:
    """Make a test one of the small and one of the full budget of this promise."""
    budget = BUDGETS[key]
    in_time = pytest.mark.timeout(SMALL_SECONDS_MAX)
    marks = [pytest.mark.soak, pytest.mark.timeout(SOAK_SECONDS_MAX)]
    return pytest.mark.parametrize(
        "trial",
        [
            pytest.param((key, budget.default), id=f"{budget.default}-{key}", marks=in_time),
            pytest.param((key, budget.soak), id=f"{budget.soak}-{key}-in-full", marks=marks),
        ],
        indirect=True,
    )


@pytest.fixture
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    key, budget = request.param
    counted = Trial(budget)
    begin = time.monotonic()
    yield counted
    seconds = time.monotonic() - begin
    said = Counted(key, counted.tried, counted.survived, seconds, counted.note)
    request.node.user_properties.append((PROPERTY, tuple(said)))


class ClosingTable:
    """Gathers what the reports say, in the process that prints."""

    def __init__(self) -> None:
        self._counted: list[Counted] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self._counted.append(Counted._make(cast("Any", value)))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._counted:
            return
        terminalreporter.section("promises")
        for line in table(self._counted):
            terminalreporter.write_line(line)


def table(counted: Iterable[Counted]) -> list[str]:
    """promise | tried | survived | seconds, a row for each promise in the order of `BUDGETS`, and
    below a row what its tests noted."""
    rows: dict[str, list[Counted]] = {key: [] for key in BUDGETS}
    for one in counted:
        rows[one.key].append(one)
    width = max(len(budget.promise) for budget in BUDGETS.values())
    lines = [f"{'promise':{width}} | {'tried':>10} | {'survived':>10} | {'seconds':>7}"]
    for key, said in rows.items():
        if said:
            tried, survived = sum(one.tried for one in said), sum(one.survived for one in said)
            seconds = round(sum(one.seconds for one in said))
            promise = BUDGETS[key].promise
            lines.append(f"{promise:{width}} | {tried:10,} | {survived:10,} | {seconds:7,}")
            lines += [f"  {note}" for note in dict.fromkeys(one.note for one in said) if note]
    untried = [BUDGETS[key].promise for key, said in rows.items() if not said]
    return lines + [f"not tried in this run: {promise}" for promise in untried]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WorkStealingScheduling | None:
    """Full budgets take an hour on each core, and half of it is one file's."""
    return WorkStealingScheduling(config, log) if config.option.markexpr == "soak" else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ClosingTable(), "closing-table")
