"""What may go wrong between the exchange and the chain, and which tests try it.

    python -m tests.chain.faults          each fault, and how many tests try it
    python -m tests.chain.faults --run    run them, and how many of them passed
    python -m tests.chain.faults --json   the same for programs

`FAULTS` is the list; a test says with `@pytest.mark.fault("name")` what it tries. Invariant: no
fault is without a test, no test names one that is not in the list: test_faults.py holds it to
that. A plugin of pytest while it runs them; otherwise it only reads the tests.
"""

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent.parent

FAULTS: Final = {
    # the process
    "crash-at-each-edge": "it is killed before or after any call, and begins again",
    "two-batchers": "a second one has taken the lock that the first one thinks it has",
    # the node
    "timeout-after-acceptance": "the node takes a transaction and its answer is lost",
    "lagging-rpc": "the node asked now is behind the one asked before",
    "dropped": "the pool forgets a transaction",
    "replaced": "the pool takes another one of the same nonce for it",
    "nonce-gap": "a nonce before those on their way is not used",
    "in-flight": "several are on their way at once",
    "foreign-transaction": "somebody else sends with the settler's key",
    "fee-spike": "gas costs more than was offered, or than the limit",
    "not-taken": "the node refuses a transaction: there is no ether, or no room in its pool",
    "stuck": "an offer is not taken for too long",
    "old-attempt-mined": "the cheaper transaction is mined after the raised one was sent",
    # blocks
    "reorg-1": "one block is taken back",
    "reorg-4": "four are",
    "reorg-32": "thirty-two are",
    "reorg-1-conflict": "one block is taken back, and the nonce is another's in the new one",
    "reorg-4-conflict": "four are, and it is",
    "reorg-32-conflict": "thirty-two are, and it is",
    "deposit-reorganised": "the block of a deposit is taken back",
    "finality-broken": "a block is taken back after it was final",
    # batches and withdrawals
    "revert-after-simulation": "it passes the simulation and has no effect",
    "insolvent-account": "a buyer's money is gone from the vault",
    "exited-account": "a buyer has left the vault",
    "duplicate-account": "one buyer is in a batch many times",
    "blacklisted-account": "the token refuses a wallet",
    "paused-vault": "the vault is paused",
    "bond-before-credit": "a bond is taken before the engine knows of a part of it",
    "undone-in-part": "the engine has undone some of the fills that are void",
    "exit-of-suspended": "who did not sign what it traded asks to leave with the money",
    "stopped-before-it-began": "a buyer stops hours before they begin, and may sell them again",
    "batch-grown-old": "orders end or are taken back while their batch waits to be sent",
    # prices
    "price-refused": "the feeds refuse a price, or are ahead of the newest block",
    # the token
    "paused-token": "the token moves nothing",
    "fee-on-transfer": "less arrives than was sent",
    "false-returning-token": "the token says no instead of reverting",
    # signatures and proofs
    "high-s": "a signature in its other form",
    "wrong-chain": "an order signed for another chain",
    "cross-contract-replay": "an order signed for another vault",
    "overfill-across-batches": "an order is filled beyond its quantity, a bit in each batch",
    "cancelled-order-settled": "a fill of an order that was cancelled",
    "release-and-claim": "a lease is paid out twice, in two ways",
    "second-preimage": "a node of the tree is passed off as a fill",
    "question-over": "a question is answered by somebody else before our answer is mined",
    "stopped-at-the-end": "what a buyer says in a lease's last seconds is not final when it is due",
    # arithmetic
    "one-unit-rounding": "a fee of many fills or of their sum",
    "overflow": "more than the counters hold",
}  # fmt: skip


def tried_in(path: Path) -> Iterator[tuple[str, str]]:
    """(fault, test) for each test of a file and each fault that it says it tries, also in the
    marks of its parameters, which stand for all tests that use them."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    lists = {
        target.id: list(_named(node))
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                for fault in _named(decorator):
                    yield fault, node.name
                for name in ast.walk(decorator):
                    if isinstance(name, ast.Name):
                        yield from ((fault, node.name) for fault in lists.get(name.id, ()))


def _named(node: ast.AST) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
            for argument in call.args:
                assert isinstance(argument, ast.Constant), "the list is read, not computed"
                yield str(argument.value)


def tried() -> dict[str, list[str]]:
    """The tests of each fault, as `file::name`, in the order of the list; then strangers."""
    found: dict[str, list[str]] = {name: [] for name in FAULTS}
    for path in sorted(TESTS.rglob("test_*.py")):
        for fault, test in tried_in(path):
            found.setdefault(fault, []).append(f"{path.relative_to(TESTS.parent)}::{test}")
    return found


class Counting:
    """What passed and what did not, by fault, as pytest says it."""

    def __init__(self) -> None:
        self.faults_of: dict[str, list[str]] = {}
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = item.iter_markers("fault")
            self.faults_of[item.nodeid] = [str(name) for mark in marks for name in mark.args]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            counted = self.passed if report.passed else self.failed
            counted.update(self.faults_of.get(report.nodeid, ()))


def main() -> int:
    parser = argparse.ArgumentParser(description="faults between the exchange and the chain")
    parser.add_argument("--run", action="store_true", help="run the tests that try them")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args()
    found, counting, status = tried(), Counting(), 0
    if options.run:
        arguments = ["-n", "0", "-q", "-m", "fault and not long and not soak", str(TESTS)]
        status = int(pytest.main(arguments, plugins=[counting]))
    rows = [
        {
            "fault": name,
            "what": what,
            "tests": found[name],
            "passed": counting.passed[name],
            "failed_or_skipped": counting.failed[name],
        }
        for name, what in FAULTS.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return status
    print("| fault | what happens | tests | passed | failed or skipped |")
    print("|---|---|---:|---:|---:|")
    for row in rows:
        ran = (row["passed"], row["failed_or_skipped"]) if options.run else ("", "")
        print(f"| {row['fault']} | {row['what']} | {len(found[str(row['fault'])])} | {ran[0]} |"
              f" {ran[1]} |")  # fmt: skip
    print(f"\n{len(FAULTS)} faults, {len({t for ts in found.values() for t in ts})} tests")
    return status


if __name__ == "__main__":
    sys.exit(main())
