"""The formats in which a change can be asked for: the hub's own, Debezium's, and CloudEvents.

Values are exact in each, in the hub's own notation (`change`). What a format has no place for goes
into members of its own, which readers of that format pass over.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum

import msgspec

from cdchub.change import RawChange, raw_change
from cdchub.errors import ValidationFailed
from cdchub.position import Epoch
from cdchub.version import __version__


class Format(Enum):
    CDCHUB = "cdchub"
    DEBEZIUM = "debezium"
    CLOUDEVENTS = "cloudevents"

    @classmethod
    def asked_for(cls, name: str | None) -> Format:
        """The format that `?format=` names. Raises `ValidationFailed`."""
        try:
            return cls(name or "cdchub")
        except ValueError:
            names = ", ".join(format.value for format in cls)
            raise ValidationFailed({"format": f"format is one of {names}, not {name!r:.60}"}) from None


def encode(format: Format, epoch: Epoch, data: bytes) -> bytes:
    """A change, as the hub writes it, in another format."""
    match format:
        case Format.CDCHUB:
            return data
        case Format.DEBEZIUM:
            return _encoder.encode(_debezium(epoch, raw_change(data)))
        case Format.CLOUDEVENTS:
            return _encoder.encode(_cloud_event(epoch, raw_change(data), data))


# Debezium: the value of a change event without a schema, as its relational connectors write it
# (debezium.io/documentation, "Data change events").


class _Source(msgspec.Struct):
    version: str
    connector: str
    name: str
    ts_ms: int
    snapshot: str
    db: str
    table: str
    sequence: str
    txId: int
    lsn: int


class _Envelope(msgspec.Struct):
    key: msgspec.Raw
    before: msgspec.Raw
    after: msgspec.Raw
    source: _Source
    op: str
    ts_ms: int


_OPERATIONS = {"INSERT": "c", "UPDATE": "u", "DELETE": "d", "SNAPSHOT": "r"}


def _debezium(epoch: Epoch, change: RawChange) -> _Envelope:
    snapshot = change.type == "SNAPSHOT"
    source = _Source(
        version=__version__,
        connector="cdchub",
        name="cdchub",
        ts_ms=change.timestamp,
        snapshot="true" if snapshot else "false",
        db="main",
        table=change.table,
        # Orders events of several histories, as Debezium's own `sequence` does: a JSON text.
        sequence=f'["{epoch}","{change.lsn}"]',
        txId=change.txid,
        lsn=change.lsn,
    )
    return _Envelope(
        key=change.key,
        before=change.oldValue,
        after=change.newValue,
        source=source,
        op=_OPERATIONS[change.type],
        ts_ms=change.timestamp,
    )


# CloudEvents 1.0.2 in its JSON format (cloudevents.io, "spec" §3 and "json-format" §2).


class _CloudEvent(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    # An extension ("partitioning"): changes of one row stay in order.
    partitionkey: str
    data: msgspec.Raw


def _cloud_event(epoch: Epoch, change: RawChange, data: bytes) -> _CloudEvent:
    row = change.key if change.type == "SNAPSHOT" else b""
    time = datetime.fromtimestamp(change.timestamp / 1000, UTC)
    return _CloudEvent(
        specversion="1.0",
        # The rows of a snapshot have one LSN; source and id together must be unique (§3.1.1).
        id=f"{epoch}:{change.lsn}" + (f":{change.table}:{bytes(row).decode()}" if row else ""),
        source=f"/cdc/{epoch}",
        type=f"cdchub.{change.type.lower()}",
        subject=change.table,
        time=time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        datacontenttype="application/json",
        partitionkey=f"{change.table}:{bytes(change.key).decode()}",
        data=msgspec.Raw(data),
    )


_encoder = msgspec.json.Encoder()
