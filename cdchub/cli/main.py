"""Entry point: words to a command, errors to one line and an exit code (0, 1 failed, 2 usage)."""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cdchub.cli.options import environment, parse
from cdchub.errors import CdchubError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments, environment())
        # Imported when it is known which: `tail` in a pipe should not wait for the web framework.
        with _kept():
            match options.command:
                case "serve" | "demo":
                    from cdchub.cli import serve as command
                case "init" | "deinit":
                    from cdchub.cli import init as command  # type: ignore[no-redef]
                case "tail":
                    from cdchub.cli import tail as command  # type: ignore[no-redef]
                case "verify":
                    from cdchub.cli import verify as command  # type: ignore[no-redef]
                case "replay":
                    from cdchub.cli import replay as command  # type: ignore[no-redef]
                case "migrate":
                    from cdchub.cli import migrate as command  # type: ignore[no-redef]
                case _:
                    from cdchub.cli import status as command  # type: ignore[no-redef]
        return command.run(options)
    except UsageError as error:
        print(f"cdchub: {error}".replace("cdchub: cdchub", "cdchub"), file=sys.stderr)
        return 2
    except CdchubError as error:
        print(f"cdchub: {error}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:
        # The source's driver has errors of its own, so this is the log's, or its replica's.
        print(f"cdchub: the change log can't be read ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _kept() -> Iterator[None]:
    """What is imported stays until the process ends: nobody need look for garbage in it.

    One look at it all takes some 30 ms, which a start and later the event loop are better without.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
