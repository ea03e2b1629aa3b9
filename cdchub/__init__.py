"""cdchub makes a SQLite database live: every committed row change, in order, to every subscriber."""

from cdchub.version import __version__

__all__ = ["__version__"]
