"""The command line: one module a command."""

from cdchub.cli.main import main

__all__ = ["main"]
