"""The command that runs one seed again, and shows what happened: `python -m tests.simulate`.

Called by whoever was shown a seed that fails.
"""

import argparse
import asyncio
import sys

from settlement import database
from tests.passable import passable_directory
from tests.simulate.database import Databases
from tests.simulate.world import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from that one on")
    parser.add_argument("--trace", action="store_true", help="print every event")
    options = parser.parse_args()
    failed = 0
    with passable_directory() as directory:
        server = asyncio.run(database.serve(directory, durable=False))
        databases = Databases(server)
        for seed in range(options.seed, options.seed + options.seeds):
            outcome = run(seed, databases, print if options.trace else lambda _: None)
            print(outcome, flush=True)
            failed += bool(outcome.failure)
        databases.close()
        asyncio.run(server.stop())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
