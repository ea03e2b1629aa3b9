"""A hub that ends itself with SIGKILL right before or after a step of its work.

`python -m tests.killed_hub DB STEP before|after N`: the N-th time that STEP is reached. It serves
nobody, and stops cleanly when its standard input ends. Every step is done by the product's own code;
only the kill is put around it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from cdchub import capturing, hub, spools
from cdchub.capture import base_keeper, history, install, tailer, upkeep
from cdchub.capture.driver import Connection
from cdchub.config import BaseConfig, CaptureConfig, Config, LogConfig
from cdchub.log import bases as log_bases
from cdchub.log import file as log_file
from cdchub.log import retention
from cdchub.log.writer import LogWriter

# Where each step is: the object, and the name of what is called there.
STEPS: dict[str, tuple[Any, str]] = {
    "own the source": (capturing.Owner, "acquire"),
    "create the log": (log_file, "_create"),
    "rename the new log": (Path, "rename"),
    "install or mend capture": (install, "reconcile"),
    "commit in the source": (Connection, "execute"),
    "pin what a base sees": (history, "Pinned"),
    "begin an epoch": (LogWriter, "start_epoch"),
    "adopt the source": (LogWriter, "adopt"),
    "take up the epoch": (base_keeper.BaseKeeper, "begin"),
    "read a base": (base_keeper, "BaseReading"),
    "begin a base": (LogWriter, "begin_base"),
    "copy a slice of a base": (LogWriter, "add_to_base"),
    "finish a base": (LogWriter, "finish_base"),
    "read the outbox": (tailer.Source, "read_batch"),
    "make entries": (tailer.Source, "entries"),
    "append": (LogWriter, "append"),
    "write a block of an append": (LogWriter, "_write"),
    "note a table of an append": (LogWriter, "_add_table"),
    "deliver": (hub.Hub, "_accept"),
    "sync the log": (LogWriter, "sync"),
    "prune": (upkeep, "prune"),
    "checkpoint the log": (LogWriter, "checkpoint"),
    "retain": (LogWriter, "retain"),
    "sweep a slice of the log": (retention, "sweep"),
    "discard a base": (log_bases, "discard"),
    "know what the log holds": (LogWriter, "known_rows"),
    "tell a schema change": (tailer.Tailer, "_take"),
    "close the source": (tailer.Source, "close"),
    "close cleanly": (LogWriter, "close_cleanly"),
    "close the spools": (spools.Spools, "close"),
}

# Small, so that every step is reached within a second or two of light writing.
CONFIG = Config(
    capture=CaptureConfig(
        batch_rows=40,
        prune_soft_rows=50,
        prune_quiet_s=0.02,
        prune_slice_rows=60,
        prune_hard_rows=400,
        prune_forced_slice_rows=100,
        safety_look_s=0.1,
    ),
    base=BaseConfig(interval_s=0.3, bytes_min=1),
)
# The same, and the log lets go of what is before its newest bases.
RETAINING = Config(
    capture=CONFIG.capture,
    base=CONFIG.base,
    log=LogConfig(retain_changes=100, retain_every_s=0.05),
)
RETENTION_STEPS = ("retain", "sweep a slice of the log", "discard a base")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody comes back from SIGKILL")


def arm(step: str, when: str, number: int) -> None:
    """Puts the kill around the `number`-th time that `step` is reached."""
    owner, name = STEPS[step]
    original = getattr(owner, name)
    calls = count(1)

    def armed(*arguments: Any, **named: Any) -> Any:
        due = _counts(step, arguments) and next(calls) == number
        if due and when == "before":
            die()
        result = original(*arguments, **named)
        if due:
            die()
        return result

    setattr(owner, name, armed)


def _counts(step: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this call is one of the step's."""
    if step == "commit in the source":
        connection, sql = arguments[0], arguments[1]
        # Commits of what has changed something; a reading transaction ends with the same word.
        return sql == "COMMIT" and connection.changes() > 0
    if step == "rename the new log":
        return str(arguments[1]).endswith("-cdchub")
    return True


async def serve(database: str, config: Config) -> None:
    async with hub.Hub(database, config=config):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    database, step, when, number = sys.argv[1:]
    arm(step, when, int(number))
    asyncio.run(serve(database, RETAINING if step in RETENTION_STEPS else CONFIG))


if __name__ == "__main__":
    main()
