"""Where a subscription begins, by what its request says."""

from __future__ import annotations

from cdchub.fanout import Core, FromBase, Gone, Start, resolve
from cdchub.log.protocol import Cursor
from cdchub.position import Beginning, Now, parse_since


def start_of(since: str | int | None, core: Core, *, snapshot: bool) -> Start:
    """None means with a snapshot. Raises `BadPosition`."""
    wanted = Now() if since is None else parse_since(str(since))
    if isinstance(wanted, Now) and snapshot:
        return None
    if isinstance(wanted, Beginning):
        return FromBase()
    return resolve(wanted, core.present.view)


def position_shown(start: Start, core: Core, *, since: str | int | None, snapshot: bool) -> str | None:
    """The position that a subscription has at its start; None where a snapshot comes first."""
    if isinstance(start, Cursor):
        return str(core.present.position(start) or core.present.head)
    if isinstance(start, Gone) and not snapshot:
        # A reset follows. Who is cut off in between must be told of the break again.
        return str(since) if ":" in str(since) else f"{core.present.head.epoch}:{since}"
    return None
