"""Copies one database over another with SQLite's backup API, as a restore does, and says when.

A process of its own, because whoever restores is one: `database_copy.py FROM TO`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("origin")
    parser.add_argument("target")
    options = parser.parse_args()
    with (
        contextlib.closing(sqlite3.connect(options.origin)) as origin,
        contextlib.closing(sqlite3.connect(options.target, timeout=60.0)) as target,
    ):
        origin.backup(target)
    print(json.dumps({"atNs": time.monotonic_ns()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
