"""The load tests, small, against the hub alone: that figures come out, and that losses are noticed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.progress import Progress, Step, parse
from loadtest.readers import Counter, Follower, Tally
from loadtest.row_writer import stamp

_ROOT = Path(__file__).parent.parent


def run(program: str, *options: str, out: Path) -> list[dict[str, Any]]:
    """What the program has written; it must have ended well."""
    done = subprocess.run(
        [sys.executable, _ROOT / "loadtest" / program, "--small", "--out", out, *options],
        capture_output=True,
        text=True,
        timeout=110,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_comparison_counts_every_delivery_of_the_hub(tmp_path: Path) -> None:
    lines = run("compare.py", "S1", "S2", "--peers", "cdchub", out=tmp_path / "out.jsonl")
    assert [(line["scenario"], line["peer"]) for line in lines] == [("S1", "cdchub"), ("S2", "cdchub")]
    for line in lines:
        assert line["lost"] == 0
        assert line["published"] == 50
        assert line["subscribers"] == 30
        for name in ("cpuUsPerDelivery", "deliveriesPerS", "p50Ms", "p99Ms", "bytesPerDelivery"):
            assert line[name] > 0, name


def test_every_section_of_the_fan_out_ends_with_figures(tmp_path: Path) -> None:
    lines = run("fanout.py", out=tmp_path / "out.jsonl")
    names = ["filters", "stall", "reconnect", "epoch", "memory", "new", "catch-up"]
    assert [line["name"] for line in lines] == names
    for line in lines:
        assert line["figures"]
        assert all(math.isfinite(figure["value"]) for figure in line["figures"])
    by_name = {line["name"]: line for line in lines}
    assert len(by_name["stall"]["curves"]["the hub's memory, MiB by seconds"]) > 1
    assert len(by_name["memory"]["curves"]["the hub's memory, MiB by visits"]) > 1


def change(lsn: int) -> bytes:
    return f'id: epoch1:{lsn}\ndata: {{"lsn":{lsn},"stamp":"{stamp(lsn)}"}}\n\n'.encode()


def changes(*lsns: int) -> bytes:
    return b"".join(change(lsn) for lsn in lsns)


def followed(*pieces: bytes, dense: bool = True) -> Progress:
    progress = Progress(dense=dense)
    for piece in pieces:
        progress.follow(parse(piece))
    return progress


def test_a_piece_says_what_its_blocks_say() -> None:
    piece = parse(
        b": connected\nretry: 1\n\nid: \nevent: snapshot\ndata: {}\n\n"
        b"data: {}\n\ndata: {}\n\nid: epoch1:6\n\n" + changes(7, 8, 10) + b": ping\nid: epoch1:10\n\n"
    )
    assert piece.steps == [
        Step("snapshot", -1, -1),
        Step("rows", 2, 2),
        Step("cursor", 6, 6),
        Step("changes", 7, 8),
        Step("changes", 10, 10),
        Step("cursor", 10, 10),
    ]
    assert piece.last_id == b"epoch1:10"
    assert piece.changes == 3
    assert piece.stamps_ns == [7, 10]


@pytest.mark.parametrize(
    ("pieces", "flaws"),
    [
        ([changes(1, 2), changes(3)], (0, 0, 0)),
        ([changes(1, 2), changes(4)], (1, 0, 0)),
        ([changes(1, 3)], (1, 0, 0)),
        ([changes(1, 2), changes(2, 3)], (0, 1, 0)),
        ([changes(2), changes(1)], (0, 1, 0)),
        ([changes(1), b": ping\nid: epoch1:2\n\n"], (1, 0, 0)),
        ([changes(1, 2), b": ping\nid: epoch1:1\n\n"], (0, 0, 1)),
        ([changes(8), b"id: epoch2:3\nevent: reset\ndata: {}\n\n", changes(4)], (0, 0, 0)),
    ],
)
def test_a_follower_notices_gaps_repeats_and_disorder(
    pieces: list[bytes], flaws: tuple[int, int, int]
) -> None:
    progress = followed(*pieces)
    assert (progress.gaps, progress.repeats, progress.disorder) == flaws


def test_a_filtered_follower_may_miss_lsns_but_not_go_back() -> None:
    assert followed(changes(1, 5), changes(9), dense=False).gaps == 0
    assert followed(changes(5), changes(5), dense=False).repeats == 1


@pytest.mark.parametrize("size", [5_000, 7_001, 10**6])
async def test_what_one_follower_has_checked_serves_others_and_hides_nothing(size: int) -> None:
    """Of several followers the first one's bytes are parsed and the others' compared with them."""
    head = b"HTTP/1.1 200 OK\r\n\r\n: connected\nretry: 1\n\nid: epoch1:0\n\n"
    tail = b"id: epoch1:500\nevent: caught-up\ndata: {}\n\n"
    lsns = range(1, 501)
    whole, missing = head + changes(*lsns) + tail, head + changes(*lsns[:300], *lsns[301:]) + tail
    twice = head + changes(*lsns[:300], 300, *lsns[300:]) + tail
    found = []
    for body in (whole, whole, missing, twice, whole):
        progress = Progress(dense=True)
        reader = Follower(Tally(), b"", asyncio.get_running_loop().create_future(), progress)
        for at in range(0, len(body), size):
            reader.data_received(body[at : at + size])
        assert (progress.lsn, progress.last_id, progress.caughtUp) == (500, b"epoch1:500", 1)
        assert reader.tally.delivered == progress.changes
        found.append((progress.changes, progress.gaps, progress.repeats))
    assert found == [(500, 0, 0), (500, 0, 0), (499, 1, 0), (501, 0, 1), (500, 0, 0)]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
async def test_readers_count_whatever_way_the_network_cuts(size: int) -> None:
    body = b"HTTP/1.1 200 OK\r\n\r\n" + changes(*range(1, 21))
    counted, followed_, progress = Tally(), Tally(), Progress(dense=True)
    for reader in (
        Counter(counted, b"", asyncio.get_running_loop().create_future()),
        Follower(followed_, b"", asyncio.get_running_loop().create_future(), progress),
    ):
        for at in range(0, len(body), size):
            reader.data_received(body[at : at + size])
        assert reader.on_open.done()
    assert counted.delivered == followed_.delivered == progress.changes == 20
    assert progress.lsn == 20
    assert (progress.gaps, progress.repeats) == (0, 0)
