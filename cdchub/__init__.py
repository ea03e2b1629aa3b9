"""cdchub makes a SQLite database live: every committed row change, in order, to every subscriber."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdchub.version import __version__

if TYPE_CHECKING:
    from cdchub.client import Client
    from cdchub.hub import Hub, Table

__all__ = ["Client", "Hub", "Table", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: a command in a pipe should not wait for all of it.
    if name == "Client":
        from cdchub.client import Client

        return Client
    if name in ("Hub", "Table"):
        from cdchub import hub

        return getattr(hub, name)
    raise AttributeError(f"module 'cdchub' has no attribute {name!r}")
