"""Where tests put a PostgreSQL, and how they get a database in it."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

NewDatabase = Callable[[], Awaitable[str]]


@contextmanager
def passable_directory() -> Generator[Path]:
    """A temporary directory for PostgreSQL. As root it runs as another user, who may not pass
    through pytest's own: each start of a pytest takes that permission away again."""
    with TemporaryDirectory(prefix="compex-test-", ignore_cleanup_errors=True) as name:
        yield Path(name)
