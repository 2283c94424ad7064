"""The version of a SQLite file's schema, in the file itself.

Invariant: a migration is applied whole, together with its number, or not at all. Who owns a file
has its migrations; `keys` and `history_file` call.
"""

import sqlite3
from collections.abc import Sequence


def migrate(database: sqlite3.Connection, migrations: Sequence[str]) -> bool:
    """Apply those that the file lacks; each SQL text is one version. False, with nothing done, if
    the file has more of them: a later build wrote it. Raises sqlite3.Error."""
    [(version,)] = database.execute("PRAGMA user_version").fetchall()
    if version > len(migrations):
        return False
    for number, sql in enumerate(migrations[version:], version + 1):
        database.executescript(f"BEGIN; {sql} PRAGMA user_version = {number}; COMMIT;")
    return True
