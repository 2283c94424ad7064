"""The house rules that no linter has, as tests over every tracked file.

Owns what "tidy" means here: sizes, names, docstrings, exact numbers, one place for the clock,
sockets and chance, nothing dead, nothing of one machine. Each rule is a function from a file to
its violations; a planted violation shows that the rule can fail. Run it alone with
`uv run pytest -n 0 tests/test_tidy.py`.
"""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from engine.rejects import WORDS, Reject

ROOT: Final = Path(__file__).parent.parent
COLUMNS_MAX: Final = 100
FUNCTION_LINES_MAX: Final = 70
MODULE_PARAGRAPH_MIN: Final = 60  # characters; less does not say what is owned and who may call
PRODUCT: Final = ("engine/", "gateway/", "settlement/")
CLIENT: Final = "gateway/client/"
TOP_LEVEL: Final = frozenset({
    "engine", "gateway", "settlement", "benchmarks", "tests",
    "pyproject.toml", "README.md", "uv.lock", "LICENSE", ".ci", ".gitignore", ".python-version",
})  # fmt: skip
SOURCES: Final = (".py", ".sol", ".js", ".mjs", ".sql", ".css")
WRITTEN_BY_TOOLS: Final = frozenset({
    "uv.lock", "settlement/contracts/package-lock.json", "tests/web/package-lock.json",
})  # fmt: skip
BANNED_WORDS: Final = frozenset({
    "util", "utils", "helper", "helpers", "common", "manager", "managers", "misc",
})  # fmt: skip
EXACT_SUFFIXES: Final = ("_ticks", "_lots", "_usdc6", "_ns", "sequence")
LINKED_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "www.apache.org", "www.w3.org"})
# Where the world comes in: only these may call the clock, chance or a socket themselves;
# everybody else is given them.
AMBIENT: Final = {
    "time.time_ns": {"engine/clock.py"},
    "time.perf_counter": {"engine/replay.py"},  # says how long a replay took, decides nothing
    "time.monotonic": {"settlement/database.py"},  # bounds the waits for another process
    "time.sleep": {"settlement/database.py"},
    "secrets.token_hex": {"gateway/node.py"},  # a new administrator's key
}
AMBIENT_MODULES: Final = ("time", "datetime", "date", "random", "secrets", "uuid")
AMBIENT_PURE: Final = frozenset({"random.Random", "datetime.strptime", "datetime.fromtimestamp"})
LISTENERS: Final = frozenset({
    "start_server", "create_server", "start_unix_server", "create_unix_server",
    "open_connection", "create_connection", "open_unix_connection", "create_datagram_endpoint",
})  # fmt: skip
# Modules that nothing in the product imports, and why they are there.
STANDS_ALONE: Final = {
    "engine.reference": "the executable specification; model tests hold the kernel to it",
}
CALLED_FROM_OUTSIDE: Final = {
    "connection_made": "asyncio calls a protocol's",
    "data_received": "asyncio calls a protocol's",
    "eof_received": "asyncio calls a protocol's",
    "pause_writing": "asyncio calls a protocol's",
    "resume_writing": "asyncio calls a protocol's",
    "connection_lost": "asyncio calls a protocol's",
    "on_url": "httptools calls a reader's",
    "on_header": "httptools calls a reader's",
    "on_headers_complete": "httptools calls a reader's",
    "on_message_complete": "httptools calls a reader's",
    "make_request": "web3 calls a provider's",
    "is_connected": "web3 calls a provider's",
}


class File:
    """One tracked file: its path from the root, with slashes, and its text."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text

    @property
    def is_product(self) -> bool:
        return self.path.startswith(PRODUCT) and self.path.endswith(".py")

    @property
    def module(self) -> str:
        """The dotted name by which it is imported."""
        name = self.path.removeprefix(CLIENT).removesuffix(".py").removesuffix("/__init__")
        return name.replace("/", ".")

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def lines(self) -> Iterator[tuple[int, str]]:
        return enumerate(self.text.splitlines(), 1)


@cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file())


@cache
def texts() -> tuple[File, ...]:
    """Every tracked file that is text."""
    found: list[File] = []
    for path in tracked():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            found.append(File(path, content.decode("utf-8")))
    return tuple(found)


@cache
def python() -> tuple[File, ...]:
    return tuple(file for file in texts() if file.path.endswith(".py"))


Rule = Callable[[File], list[str]]


# --- rules over one file ------------------------------------------------------------------------


def long_lines(file: File) -> list[str]:
    """What a linter is told at the end of a line does not count; a link cannot be broken."""
    if not file.path.endswith(SOURCES):
        return []
    return [
        f"{file.path}:{number}: {len(line)} columns, at most {COLUMNS_MAX}"
        for number, line in file.lines()
        if len(re.sub(r"\s+# (noqa|pyright|type|fmt):.*$", "", line)) > COLUMNS_MAX
    ]


def long_functions(file: File) -> list[str]:
    found: list[str] = []
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                where = f"{file.path}:{node.lineno}: {node.name}"
                found.append(f"{where} has {lines} lines, at most {FUNCTION_LINES_MAX}")
    return found


def words_of(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return re.findall(r"[a-z]+|[A-Z]+(?![a-z])", re.sub(r"([A-Z][a-z]+)", r"_\1", name).lower())


def empty_names(file: File) -> list[str]:
    """Names that say nothing of what is inside."""
    names = [(1, part) for part in Path(file.path).with_suffix("").parts]
    if file.path.endswith(".py"):
        names += [(n.lineno, n.name) for n in ast.walk(file.tree) if isinstance(n, ast.ClassDef)]
    return [
        f"{file.path}:{line}: the name {name!r} says nothing; name it after what it owns"
        for line, name in names
        if BANNED_WORDS.intersection(words_of(name))
    ]


def missing_paragraph(file: File) -> list[str]:
    """A module opens with a paragraph: what it owns, its invariant, who may call it."""
    if not file.text.strip():
        return []  # an empty __init__.py has nothing to say
    opening = ast.get_docstring(file.tree) or ""
    if not opening:
        return [f"{file.path}:1: no docstring; say what it owns, its invariant, who may call it"]
    if file.path.startswith(PRODUCT) and len(opening) < MODULE_PARAGRAPH_MIN:
        return [f"{file.path}:1: {opening!r} is no paragraph: what it owns, who may call it?"]
    if opening.splitlines()[0].rstrip()[-1] not in ".:,;])" and "\n\n" in opening[:80]:
        return [f"{file.path}:1: the docstring opens with a heading, not with a sentence"]
    return []


def is_exact(name: str) -> bool:
    return name.lower().endswith(EXACT_SUFFIXES)


def has_float(node: ast.AST | None) -> bool:
    """A float literal, the type, a call of it, or a true division that makes one."""
    if node is None:
        return False
    for part in ast.walk(node):
        match part:
            case ast.Constant(value=float()) | ast.BinOp(op=ast.Div()) | ast.Name(id="float"):
                return True
            case ast.AugAssign(op=ast.Div()):
                return True
            case _:
                pass
    return False


def _name_of(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Constant(value=str(name)):
            return name
        case _:
            return ""


def _given(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Each name in this node, with what it is declared as or given."""
    match node:
        case ast.Assign(targets=targets, value=value):
            yield from ((_name_of(target), value) for target in targets)
        case ast.AugAssign(target=target):
            yield _name_of(target), node
        case ast.AnnAssign(target=target, annotation=annotation, value=value):
            yield _name_of(target), annotation
            yield _name_of(target), value
        case ast.NamedExpr(target=target, value=value):
            yield target.id, value
        case ast.keyword(arg=str(name), value=value):
            yield name, value
        case ast.arg(arg=name, annotation=annotation):
            yield name, annotation
        case ast.FunctionDef(name=name, returns=returns):
            yield name, returns
        case ast.AsyncFunctionDef(name=name, returns=returns):
            yield name, returns
        case ast.Dict(keys=keys, values=values):
            yield from ((_name_of(k), v) for k, v in zip(keys, values, strict=True) if k)
        case _:
            pass


def _defaults(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    if not isinstance(node, ast.arguments):
        return
    plain = [*node.posonlyargs, *node.args]
    if node.defaults:
        last = plain[-len(node.defaults) :]
        yield from ((a.arg, value) for a, value in zip(last, node.defaults, strict=True))
    yield from ((a.arg, v) for a, v in zip(node.kwonlyargs, node.kw_defaults, strict=True))


def inexact_numbers(file: File) -> list[str]:
    """No float near a name that ends in a unit of price, quantity, money, time or order."""
    found: list[str] = []
    for node in ast.walk(file.tree):
        for name, value in (*_given(node), *_defaults(node)):
            if is_exact(name) and has_float(value):
                line = getattr(value, "lineno", getattr(node, "lineno", 1))
                found.append(f"{file.path}:{line}: {name} is an integer; no float may touch it")
    return found


def unfinished(file: File) -> list[str]:
    return [
        f"{file.path}:{number}: finish it or open an issue: {line.strip()}"
        for number, line in file.lines()
        if re.search(r"\b(TO[D]O|FIX[M]E|XX[X])\b", line)
    ]


def of_one_machine(file: File) -> list[str]:
    """Paths of somebody's machine, hosts of package registries, links to where nobody should go."""
    if file.path == "uv.lock":
        return []
    found: list[str] = []
    for number, line in file.lines():
        where = f"{file.path}:{number}"
        if path := re.search(r"(?<![\w.}-])/(?:work|home|root|Users|tmp)/[\w.]", line):
            found.append(f"{where}: {path.group()}... is a path of one machine")
        if host := re.search(r"\b(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com|io)\b", line):
            found.append(f"{where}: {host.group()} is a registry; clients know where theirs is")
        if file.path in WRITTEN_BY_TOOLS:
            continue
        links = (
            set(re.findall(r"\bhttps?://([^\s/:\"'`)>{]+\.[^\s/:\"'`)>{]+)", line)) - LINKED_HOSTS
        )
        found += [f"{where}: a link to {link}; say what is meant, links die" for link in links]
    return found


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{_dotted(value)}.{attribute}"
        case _:
            return ""


def ambient_calls(file: File) -> list[str]:
    """Clock and chance come in through constructors, sockets are the transport's."""
    if not file.is_product:
        return []
    found: list[str] = []
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ".".join(_dotted(node.func).split(".")[-2:])
        where = f"{file.path}:{node.lineno}: {name}()"
        if name.split(".")[-1] in LISTENERS and file.path != "gateway/transport.py":
            found.append(f"{where}: only gateway/transport.py touches sockets")
        ambient = name.split(".")[0] in AMBIENT_MODULES or name == "os.urandom"
        if not ambient or name in AMBIENT_PURE or "." not in name:
            continue
        if file.path not in AMBIENT.get(name, set()):
            found.append(f"{where}: take it through the constructor")
    return found


RULES: Final[tuple[Rule, ...]] = (
    long_lines, long_functions, empty_names, missing_paragraph, inexact_numbers, unfinished,
    of_one_machine, ambient_calls,
)  # fmt: skip
OVER_ANY_TEXT: Final = (long_lines, empty_names, unfinished, of_one_machine)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_tracked_file_keeps_the_rule(rule: Rule) -> None:
    files = texts() if rule in OVER_ANY_TEXT else python()
    found = [violation for file in files for violation in rule(file)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (long_lines, "engine/x.py", "a = 1  # " + "x" * 100),
        (long_lines, "gateway/web/x.css", "a" * 101),
        (long_functions, "tests/x.py", "def f():\n" + "    a = 1\n" * 70),
        (empty_names, "engine/utils.py", ""),
        (empty_names, "gateway/web/common.js", ""),
        (empty_names, "engine/x.py", "class OrderManager:\n    pass"),
        (missing_paragraph, "engine/x.py", "import os"),
        (missing_paragraph, "engine/x.py", '"""Orders."""'),
        (inexact_numbers, "engine/x.py", "price_ticks: float = 0"),
        (inexact_numbers, "engine/x.py", "price_ticks = 2.5"),
        (inexact_numbers, "engine/x.py", "self.qty_lots = total / 2"),
        (inexact_numbers, "engine/x.py", "amount_usdc6 /= 2"),
        (inexact_numbers, "engine/x.py", "f(amount_usdc6=1e6)"),
        (inexact_numbers, "engine/x.py", "def f(*, time_ns=0.5): pass"),
        (inexact_numbers, "engine/x.py", "def fee_usdc6() -> float: ..."),
        (inexact_numbers, "engine/x.py", "{'price_ticks': float(a)}"),
        (unfinished, "engine/x.py", "# TO" + "DO: later"),
        (of_one_machine, "README.md", "see /home" + "/me/notes"),
        (of_one_machine, "README.md", "from pypi" + ".org"),
        (of_one_machine, "README.md", "https:" + "//example.com/x"),
        (ambient_calls, "engine/x.py", "now = time.time_ns()"),
        (ambient_calls, "gateway/x.py", "now = datetime.datetime.now()"),
        (ambient_calls, "gateway/x.py", "await asyncio.start_server(f)"),
        (ambient_calls, "settlement/x.py", "random.random()"),
    ],
)
def test_a_planted_violation_is_found(rule: Rule, path: str, text: str) -> None:
    assert rule(File(path, text)), f"{rule.__name__} did not see {text[:60]!r} in {path}"


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (long_lines, "engine/x.py", "a = 1  # pyright: ignore[" + "x" * 100 + "]"),
        (inexact_numbers, "engine/x.py", "half_ticks = price_ticks // 2"),
        (inexact_numbers, "engine/x.py", "print(qty_lots / 100)"),
        (ambient_calls, "gateway/x.py", "def f(now_ns=time.monotonic_ns): pass"),
        (of_one_machine, "README.md", "http:" + "//127.0.0.1:8765/work/x"),
    ],
)
def test_what_is_allowed_is_not_reported(rule: Rule, path: str, text: str) -> None:
    assert rule(File(path, text)) == []


# --- rules over the whole tree ------------------------------------------------------------------


def test_the_top_level_is_exactly_the_layout() -> None:
    found = {path.split("/")[0] for path in tracked()}
    assert found == TOP_LEVEL, f"not in the layout: {found - TOP_LEVEL}; gone: {TOP_LEVEL - found}"


def _imports(file: File) -> Iterator[str]:
    """Every dotted name this file may have imported, modules and what is in them alike."""
    for node in ast.walk(file.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _starts_by_itself(file: File) -> bool:
    return '__name__ == "__main__"' in file.text or Path(file.path).name.startswith(
        ("test_", "bench_", "conftest")
    )


def test_every_module_is_imported_or_started() -> None:
    """By the product, if it is the product's: what only a test calls is dead."""
    used_by_product = {name for file in python() if file.is_product for name in _imports(file)}
    used = {name for file in python() for name in _imports(file)}
    dead = [
        file.path
        for file in python()
        if file.text.strip()
        and not _starts_by_itself(file)
        and file.module not in STANDS_ALONE
        and file.module not in (used_by_product if file.is_product else used)
    ]
    assert not dead, f"nothing imports {dead}: delete them, or say in STANDS_ALONE why they stay"
    assert set(STANDS_ALONE) <= {file.module for file in python()}, "STANDS_ALONE names the gone"


def test_every_script_of_the_page_is_loaded() -> None:
    web = [file for file in texts() if file.path.startswith("gateway/web/")]
    for file in web:
        name = Path(file.path).name
        loaded = [other.path for other in web if other is not file and name in other.text]
        assert loaded or name == "index.html", f"nothing of the page loads {file.path}"


def _definitions(file: File) -> Iterator[tuple[int, str]]:
    """Functions, methods, classes, and the constants of the module."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
    for node in file.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        yield from ((node.lineno, t.id) for t in targets if isinstance(t, ast.Name))


def test_every_definition_of_the_product_is_used_or_documented() -> None:
    words: Counter[str] = Counter()
    for file in (file for file in texts() if file.path.endswith((".py", ".md"))):
        words.update(re.findall(r"\w+", file.text))
    dead = [
        f"{file.path}:{line}: nothing uses {name}"
        for file in python()
        if file.is_product
        for line, name in _definitions(file)
        if words[name] < 2 and not name.startswith("__") and name not in CALLED_FROM_OUTSIDE
    ]
    assert not dead, "\n" + "\n".join(dead)


def test_every_reject_has_its_own_words_and_somebody_who_says_it() -> None:
    product = [
        file.text
        for file in python()
        if file.is_product and file.module not in {"engine.rejects", *STANDS_ALONE}
    ]
    for reject in Reject:
        assert WORDS[reject].strip(), f"{reject!r} has no words"
        said = any(re.search(rf"\b{reject.name}\b", text) for text in product)
        assert said, f"{reject!r} is said by nobody in engine, gateway or settlement"
    assert len(set(WORDS.values())) == len(WORDS), "two rejects have the same words"


def test_every_dependency_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    project = tomllib.loads("\n".join(lines))
    wanted = [*project["project"]["dependencies"]]
    for group in project["dependency-groups"].values():
        wanted += [entry for entry in group if isinstance(entry, str)]
    for dependency in wanted:
        [line] = [line for line in lines if f'"{dependency}"' in line]
        obvious = dependency.startswith("pytest>")
        assert obvious or "#" in line, f"say beside {dependency} what it is for"
