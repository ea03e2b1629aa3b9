"""Every error that a user, a client or an operator can meet, as one tree.

    CdchubError
    ├── UsageError               wrong words on the command line or in the configuration (exit 2)
    ├── StartError               the hub can't start, or a command can't run (exit 1)
    │   ├── SourceMissing · NotADatabase · SourceNotWal · SourceBusy · SourceReadOnly
    │   ├── SourceOwned          another hub serves this source
    │   ├── DriverConflict       two SQLite libraries on one file in one process
    │   ├── LibraryTooOld        the standard library's SQLite can't tell what a hub asks
    │   ├── ForeignLog · LogUnusable   the log is another database's, or damaged
    │   ├── NoBase · NotVerifiable · CheckFailed · MigrationFailed
    │   └── TableRefused · NotCaptured
    ├── RequestError             a peer's mistake; carries an HTTP status and a stable `code`
    │   ├── MissingTable · UnknownTable · UnknownColumn · NoRoomColumn · NotImplementedYet
    │   ├── BadPosition · BadFilter
    │   ├── NotFound · MethodNotAllowed · Unauthorized · Forbidden · PayloadTooLarge
    │   ├── ValidationFailed · ConstraintViolation · Conflict · RoomsUnavailable
    │   ├── PositionGone         410: `position_expired`, `epoch_changed`, …: take a snapshot
    │   └── PassingRefusal       `Overloaded` · `Timeout` · `TooManyRequests`, with `retry_after_ms`
    └── InternalError            a fault of the hub itself, with the `error_id` of its log line

`code` is part of the contract (INTERFACE §4); `retryable` says whether the same request can succeed
later without a change. What to do about it is in the message itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class CdchubError(Exception):
    """Root of the tree. `str(error)` is one line a person can act on."""

    retryable: ClassVar[bool] = False


class UsageError(CdchubError):
    """Wrong words on the command line, in the environment or in the configuration file."""


class StartError(CdchubError):
    """The hub can't start, or a command can't do its work."""


class SourceMissing(StartError):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: no such file; create the database first")


class NotADatabase(StartError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: not a readable SQLite database ({why})")


class SourceNotWal(StartError):
    def __init__(self, path: str, mode: str) -> None:
        super().__init__(
            f"{path}: journal mode is {mode}; cdchub needs WAL, so that reading changes never "
            f"blocks writers: run `cdchub init {path} --wal`"
        )


class SourceBusy(StartError):
    retryable = True

    def __init__(self, path: str, waited_s: float) -> None:
        super().__init__(
            f"{path}: another process held the write lock for {waited_s:g} s; "
            "end its transaction and try again"
        )


class SourceReadOnly(StartError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path}: can't be written ({why}); cdchub needs to write the database and its folder"
        )


class SourceOwned(StartError):
    def __init__(self, path: str, pid: int | None) -> None:
        owner = f"pid {pid}" if pid else "a process that did not leave its pid"
        super().__init__(f"{path}: already served by {owner}; a source has one owner")
        self.pid = pid


class DriverConflict(StartError):
    def __init__(self, path: str, *, wanted: str, found: str) -> None:
        super().__init__(
            f"{path}: this process has it open with {found} already, and the hub was to use {wanted}; "
            "two SQLite libraries on one file in one process drop each other's locks and corrupt it "
            f'(sqlite.org/howtocorrupt.html §2.2): use Hub(..., driver="{found}")'
        )


class LibraryTooOld(StartError):
    def __init__(self, path: str, *, found: str, needed: str) -> None:
        super().__init__(
            f"{path}: this Python's sqlite3 is SQLite {found}, and a hub needs {needed} or newer; "
            'use Hub(..., driver="apsw") if nothing else in this process opens the file, or '
            "`cdchub serve` (whoever only writes may use 3.35)"
        )


class ForeignLog(StartError):
    def __init__(self, path: str, log_path: str) -> None:
        super().__init__(
            f"{log_path}: this change log belongs to another database than {path}; "
            "move it away to start a new history"
        )


class LogUnusable(StartError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: the change log can't be used ({why})")


class TableRefused(StartError):
    def __init__(self, table: str, why: str) -> None:
        super().__init__(f"table {table!r} can't be captured: {why}")
        self.table = table


class NotCaptured(StartError):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: no capture is installed; run `cdchub init {path}`")


class NoBase(StartError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path}: {why}; `cdchub init` takes a base snapshot, and so does `cdchub serve` without "
            "--no-base"
        )


class MigrationFailed(StartError):
    """The script could not be run, and nothing was changed."""


class CheckFailed(StartError):
    """What a stream has told is not what the hub holds."""


class NotVerifiable(StartError):
    """The log can't be compared with the source now; the message says what to do."""


class RequestError(CdchubError):
    """A peer's mistake, or a passing refusal. `fields` are added to the problem document."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"
    title: ClassVar[str] = "Bad request"

    def __init__(self, detail: str, *, fields: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields: Mapping[str, object] = fields or {}


class MissingTable(RequestError):
    code = "missing_table"
    title = "No table was named"

    def __init__(self) -> None:
        super().__init__("name at least one table, such as ?table=todos, or ?table=* for all")


class UnknownTable(RequestError):
    status = 404
    code = "unknown_table"
    title = "Unknown table"

    def __init__(self, table: str, known: Sequence[str]) -> None:
        names = ", ".join(known[:10]) or "none"
        super().__init__(f"no captured table is called {table!r}; captured: {names}")


class NoRoomColumn(RequestError):
    code = "no_room_column"
    title = "No room column"

    def __init__(self, tables: Sequence[str]) -> None:
        super().__init__(
            f"none of {', '.join(tables)} has a room column; "
            "name one with `cdchub serve --table T:room=COLUMN`"
        )


class UnknownColumn(RequestError):
    code = "unknown_column"
    title = "Unknown column"

    def __init__(self, column: str, where: str, known: Sequence[str]) -> None:
        names = ", ".join(known[:20]) or "none"
        super().__init__(f"no captured column of {where} is called {column[:80]!r}; there are {names}")


class BadFilter(RequestError):
    """`at` is the place of the first character that can't be read, from 0."""

    code = "bad_filter"
    title = "Malformed filter"

    def __init__(self, text: str, at: int, why: str) -> None:
        shown = f"{text[max(0, at - 40) : at]}\N{RIGHTWARDS ARROW}{text[at : at + 40]}"
        super().__init__(
            f"the filter {why}, at character {at + 1}: {shown}", fields={"filter": text, "at": at}
        )
        self.at = at


class BadPosition(RequestError):
    code = "bad_position"
    title = "Malformed position"

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:80]!r} is not a position: use <epoch>:<lsn>, <lsn>, now or beginning")


class NotImplementedYet(RequestError):
    code = "not_implemented"
    title = "Not implemented yet"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is part of the protocol, but this version doesn't serve it yet")


class ValidationFailed(RequestError):
    code = "validation_failed"
    title = "Validation failed"

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(errors.values()), fields={"errors": dict(errors)})
        self.errors = dict(errors)


class NotFound(RequestError):
    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class Unauthorized(RequestError):
    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class Forbidden(RequestError):
    status = 403
    code = "forbidden"
    title = "Forbidden"


class ConstraintViolation(RequestError):
    status = 409
    code = "constraint_violation"
    title = "Constraint violated"


class Conflict(RequestError):
    """What a request names is somebody else's already."""

    status = 409
    code = "conflict"
    title = "Conflict"


class RoomsUnavailable(RequestError):
    status = 404
    code = "rooms_unavailable"
    title = "Rooms are not available"


class UpgradeRequired(RequestError):
    status = 426
    code = "upgrade_required"
    title = "Upgrade required"


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"
    title = "Payload too large"


class PositionGone(RequestError):
    """A position that can't be served. It means "take a snapshot", not "try again"."""

    status = 410
    title = "This position can't be served"
    CODES: ClassVar[Mapping[str, str]] = {
        "expired": "position_expired",
        "epoch": "epoch_changed",
        "ahead": "position_ahead",
        "schema": "schema_changed",
    }

    def __init__(self, reason: str, *, tables: Sequence[str], position: str, oldest: str) -> None:
        super().__init__(
            f"{reason}: drop what you hold of {', '.join(tables)} and take a snapshot",
            fields={
                "reason": reason,
                "tables": list(tables),
                "position": position,
                "oldest": oldest,
            },
        )
        self.reason = reason

    @property
    def gone_code(self) -> str:
        return self.CODES[self.reason]


class PassingRefusal(RequestError):
    """Refused now, welcome later. An EventSource gets it as `event: refused` (INTERFACE §3)."""

    retryable = True
    retry_after_ms: ClassVar[int] = 2_000


class Overloaded(PassingRefusal):
    status = 503
    code = "overloaded"
    title = "Overloaded"
    retry_after_ms = 5_000


class TooManyRequests(PassingRefusal):
    status = 429
    code = "too_many_requests"
    title = "Too many requests"
    retry_after_ms = 1_000


class Timeout(PassingRefusal):
    status = 504
    code = "timeout"
    title = "Timed out"


class InternalError(CdchubError):
    """A fault of the hub. The peer learns `error_id`; the log line with that id has the cause."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error {error_id}")
        self.error_id = error_id
