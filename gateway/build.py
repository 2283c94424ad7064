"""Which build this is: its version, and a digest of what numbers what happens.

Invariant: builds of one name make the same events of a journal and give an account's messages the
same numbers, so a number noted under one may be resumed under the other; of builds of two names
that is not known. `session` says the name in `hello`.
"""

import hashlib
from pathlib import Path
from typing import Final

VERSION: Final = "0.1.0"
# What decides which events become messages of an account's stream, and under which numbers.
NUMBERING: Final = (
    "translate.py",
    "mirror.py",
    "leases.py",
    "facts.py",
    "private.py",
    "feed.py",
    "history.py",
    "history_file.py",
    "history_rows.py",
)


def build_name(root: Path = Path(__file__).parent.parent) -> str:
    """The version, "+" and 16 hex digits over the engine's sources and those that number."""
    sources = sorted((root / "engine").glob("*.py"))
    sources += [root / "gateway" / name for name in NUMBERING]
    digest = hashlib.blake2b(digest_size=8)
    for path in sources:
        source = path.read_bytes()
        digest.update(len(source).to_bytes(8, "little") + source)
    return f"{VERSION}+{digest.hexdigest()}"
