"""Whether the capture of a table stands as it was made, and whether a write may have escaped it."""

from __future__ import annotations

import re

from cdchub.capture.schema import OWN_PREFIX, Object, Schema
from cdchub.capture.stage import stage_name
from cdchub.capture.table import Shape
from cdchub.capture.triggers import capture_sql

# What lets a trigger end a statement, or the rest of its triggers, and keep the row.
_KEEPS_THE_ROW = re.compile(r"\b(raise|fail)\b", re.IGNORECASE)


def stands(schema: Schema, shape: Shape, table_id: int) -> bool:
    """Whether all objects of this table are there, word for word, and no trigger is newer."""
    wanted = capture_sql(shape, table_id)
    if any(schema.sql(name) != sql for name, sql in wanted.items()):
        return False
    return not _newer_triggers(schema, shape, table_id)


def may_have_escaped(schema: Schema, shape: Shape, table_id: int) -> bool:
    """Whether rows may have been written that no trigger of ours saw: one is not there, or a user's
    fires before it and can keep it from firing."""
    ours = {name for name, sql in capture_sql(shape, table_id).items() if "CREATE TRIGGER" in sql[:14]}
    # A rename takes triggers along.
    places = (shape.name, stage_name(table_id))
    if not ours <= {trigger.name for place in places for trigger in schema.triggers(place)}:
        return True
    newer = _newer_triggers(schema, shape, table_id)
    return any(_KEEPS_THE_ROW.search(trigger.sql or "") for trigger in newer)


def _newer_triggers(schema: Schema, shape: Shape, table_id: int) -> list[Object]:
    """The user's triggers that are newer than ours. The newest fires first: with RAISE(IGNORE), or if
    it fails under OR FAIL, SQLite keeps the row as it has become and never gets to ours."""
    triggers = schema.triggers(shape.name)
    wanted = capture_sql(shape, table_id)
    ours = [trigger.order for trigger in triggers if trigger.name in wanted]
    return [
        trigger
        for trigger in triggers
        if ours and trigger.order > min(ours) and not trigger.name.startswith(OWN_PREFIX)
    ]
