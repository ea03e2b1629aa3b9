"""What `conflate=1` makes of a backlog: each key's last state, in the order of the last LSNs."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from cdchub.change import ChangeType, encode_change
from cdchub.fanout.conflation import Conflation, batched
from cdchub.fanout.feed import Item

PLENTY = 2**20


def item(lsn: int, kind: ChangeType, key: object, value: object = None, table: str = "t") -> Item:
    row: Any = {"id": key, "v": value}
    data = encode_change(
        lsn=lsn,
        type=kind,
        table=table,
        key={"id": key},  # type: ignore[dict-item]
        old=None if kind is ChangeType.INSERT else {"id": 0, "v": "old"},
        new=None if kind is ChangeType.DELETE else row,
        timestamp_ms=lsn,
        txid=lsn,
        commit=True,
    )
    return lsn, data


INS, UPD, DEL = ChangeType.INSERT, ChangeType.UPDATE, ChangeType.DELETE


def taken(held: Conflation) -> list[dict[str, Any]]:
    items = held.take()
    changes = [json.loads(data) for _, data in items]
    assert [lsn for lsn, _ in items] == [change["lsn"] for change in changes]
    return changes


def test_only_the_last_state_of_each_key_is_left_and_says_so() -> None:
    held = Conflation(bytes_max=PLENTY)
    held.add([item(1, INS, "a", 1), item(2, INS, "b", 1), item(3, UPD, "a", 2)])
    held.add([item(5, UPD, "a", 3), item(6, INS, "c", 1)])
    found = taken(held)
    assert [(c["lsn"], c["type"], c["newValue"]["v"]) for c in found] == [
        (2, "INSERT", 1),
        (5, "UPDATE", 3),
        (6, "INSERT", 1),
    ]
    assert all(c["conflated"] is True and c["oldValue"] is None for c in found)
    fields = ["lsn", "type", "table", "key", "oldValue", "newValue", "timestamp", "txid", "commit"]
    assert list(found[0]) == [*fields, "conflated"]
    assert found[1] | {"conflated": 0} == json.loads(item(5, UPD, "a", 3)[1]) | {
        "oldValue": None,
        "conflated": 0,
    }


def test_a_row_that_has_gone_is_told_as_gone() -> None:
    held = Conflation(bytes_max=PLENTY)
    held.add([item(1, INS, "a", 1), item(2, UPD, "a", 2), item(3, DEL, "a")])
    held.add([item(4, DEL, "b"), item(5, INS, "b", 9)])
    assert [(c["type"], c["key"]["id"], c["newValue"]) for c in taken(held)] == [
        ("DELETE", "a", None),
        ("INSERT", "b", {"id": "b", "v": 9}),
    ]


@pytest.mark.parametrize(
    "pair", [(1, 1.0), (1, "1"), (None, "null"), ("a", "A"), ({"$blob": "YQ=="}, "a")]
)
def test_keys_are_equal_when_their_bytes_are(pair: tuple[object, object]) -> None:
    held = Conflation(bytes_max=PLENTY)
    held.add(item(lsn, INS, key, lsn) for lsn, key in enumerate((*pair, *pair), 1))
    assert [change["lsn"] for change in taken(held)] == [3, 4]


def test_equal_keys_of_two_tables_are_two_rows() -> None:
    held = Conflation(bytes_max=PLENTY)
    held.add([item(1, INS, 1, table="t"), item(2, INS, 1, table="u")])
    assert [change["table"] for change in taken(held)] == ["t", "u"]


def test_it_is_full_by_what_it_holds_and_not_by_what_it_saw() -> None:
    size = len(item(100, UPD, 1, "x")[1])
    held = Conflation(bytes_max=3 * size)
    held.add(item(lsn, UPD, 1, "x") for lsn in range(100, 900))
    assert not held.is_full
    held.add(item(lsn, UPD, lsn, "x") for lsn in (900, 901, 902))
    assert held.is_full
    assert len(taken(held)) == 4
    assert not held.is_full
    assert held.take() == []


@pytest.mark.parametrize("seed", range(30))
def test_whoever_applies_what_is_left_holds_what_all_changes_make(seed: int) -> None:
    rng = random.Random(seed)
    changes = [
        item(lsn, rng.choice((INS, UPD, DEL)), rng.randrange(6), lsn)
        for lsn in range(1, rng.randrange(2, 80))
    ]
    held = Conflation(bytes_max=rng.choice((0, 500, PLENTY)))
    # What a reader holds wherever it is cut off, and goes on behind the last LSN it has.
    rows: dict[int, Any] = {}
    applied: list[int] = []
    for change in changes:
        held.add([change])
        if held.is_full or change is changes[-1]:
            for each in taken(held):
                applied.append(each["lsn"])
                rows[each["key"]["id"]] = each["newValue"]
    whole = {(c := json.loads(data))["key"]["id"]: c["newValue"] for _, data in changes}
    assert rows == whole
    assert applied == sorted(set(applied))


def test_who_is_cut_off_anywhere_misses_nothing_that_comes_later() -> None:
    """In the order of the last LSNs, so that each LSN is a position."""
    changes = [item(lsn, UPD, lsn % 4, lsn) for lsn in range(1, 20)]
    held = Conflation(bytes_max=PLENTY)
    held.add(changes)
    whole = held.take()
    for count in range(len(whole) + 1):
        got = [json.loads(data) for _, data in whole[:count]]
        position = got[-1]["lsn"] if got else 0
        held.add(change for change in changes if change[0] > position)
        rest = taken(held)
        rows = {c["key"]["id"]: c["newValue"]["v"] for c in [*got, *rest]}
        assert rows == {0: 16, 1: 17, 2: 18, 3: 19}


def test_batches_are_in_order_and_whole() -> None:
    items = [item(lsn, UPD, lsn) for lsn in range(1, 8)]
    parts = [list(part) for part in batched(items, rows_max=3, bytes_max=10**6)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [each for part in parts for each in part] == items
