"""Readers that take little, or nothing: they cost a bounded amount of memory, hold nobody up, and miss
nothing in the end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness import HubProcess, clean_environment, make_database, rss_bytes, run_sql, wait_for
from tests.wire import Wire

Serving = Callable[..., HubProcess]
STREAM = "/cdc/stream?table=t"
# Some 8 MiB at a time.
ROWS = 2_000
ROW_BYTES = 4_000


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, pad)")


def commit(hub: HubProcess, *, rows: int = ROWS) -> None:
    """Commits so many rows, in transactions of a hundred."""
    first = hub.status()["headLsn"] + 1
    run_sql(
        hub.database,
        *(
            f"WITH RECURSIVE n(i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM n"
            f" WHERE i < {min(start + 100, first + rows) - 1})"
            f" INSERT INTO t SELECT i, printf('%.*c', {ROW_BYTES}, 'x') FROM n"
            for start in range(first, first + rows, 100)
        ),
    )
    hub.wait_for_lsn(first + rows - 1)


@contextmanager
def stalled(hub: HubProcess, count: int = 1) -> Iterator[list[Wire]]:
    """Readers that have begun, and take nothing more."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(hub.port, receive_bytes=4_096)) for _ in range(count)]
        for wire in wires:
            wire.ask(STREAM)
            while b"caught-up" not in wire.data:
                assert wire.read()
        yield wires


class Tail:
    """`cdchub tail` on a hub's URL, in a process of its own."""

    def __init__(self, hub: HubProcess, output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            words = ["tail", hub.url, "--table", "t", "--since", "0", "--format", "json"]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cdchub", *words], stdout=file, env=clean_environment()
            )

    def lsns(self) -> list[int]:
        lines = self._output.read_bytes().split(b"\n")[:-1]
        changes = [json.loads(line) for line in lines]
        return [change["lsn"] for change in changes if change["type"] != "SNAPSHOT"]

    def has(self, count: int) -> bool:
        return self._output.read_bytes().count(b"\n") >= count


@contextmanager
def tail(hub: HubProcess, output: Path) -> Iterator[Tail]:
    reader = Tail(hub, output)
    try:
        yield reader
    finally:
        reader.process.kill()
        reader.process.wait()


@pytest.mark.parametrize("stall_s", [60, 1], ids=["waited for", "cut off"])
def test_a_stopped_process_costs_little_and_misses_nothing(
    big: Path, tmp_path: Path, serving: Serving, stall_s: float
) -> None:
    with (
        serving(big, "--set", f"stream.stall_s={stall_s}") as hub,
        tail(hub, tmp_path / "quick") as quick,
        tail(hub, tmp_path / "stopped") as stopped,
    ):
        # As much as the hub keeps of recent changes for everybody.
        commit(hub, rows=4 * ROWS)
        wait_for(lambda: quick.has(4 * ROWS) and stopped.has(4 * ROWS), "the readers to follow")
        with stalled(hub, 20):
            stopped.process.send_signal(signal.SIGSTOP)
            before_bytes, most_bytes = rss_bytes(hub.pid), 0
            for turn in range(5, 9):
                commit(hub)
                wait_for(lambda: quick.has(turn * ROWS), "the quick one to be served")  # noqa: B023
                most_bytes = max(most_bytes, rss_bytes(hub.pid))
            # 21 readers lag by 670 MiB together. Each costs what its transport may hold and a page.
            print(f"{(most_bytes - before_bytes) >> 10} KiB more for 21 readers that take nothing")
            assert most_bytes - before_bytes < 40 * 2**20
            if stall_s == 1:
                wait_for(lambda: hub.outcomes("stalled") == 21, "all who take nothing to be cut off")
            else:
                assert hub.status()["subscribers"]["byState"]["lagging"] == 21
            stopped.process.send_signal(signal.SIGCONT)
            wait_for(lambda: stopped.has(8 * ROWS), "the stopped one to catch up")
            assert hub.outcomes("opened") == 22 + (stall_s == 1), "only who was cut off came again"
        for reader in (quick, stopped):
            assert reader.lsns() == list(range(1, 8 * ROWS + 1))


def test_who_was_cut_off_resumes_where_it_was(big: Path, serving: Serving) -> None:
    with serving(big, "--set", "stream.stall_s=0.5") as hub:
        with stalled(hub) as (wire,):
            commit(hub)
            wait_for(lambda: hub.outcomes("stalled") == 1, "the reader to be cut off")
            assert hub.subscribers() == 0
            text = body(wire.rest())
            ids = re.findall(rb"^id: ([\w-]+:\d+)\ndata: .*\n\n", text, re.MULTILINE)
        got = [int(id.split(b":")[1]) for id in ids]
        assert got == list(range(1, len(got) + 1))
        assert 0 < len(got) < ROWS
        with hub.stream("table=t", Last_Event_ID=ids[-1].decode()) as again:
            rest = [change["lsn"] for change in again.changes(ROWS - len(got))]
        assert got + rest == list(range(1, ROWS + 1))


def test_a_reader_of_one_byte_at_a_time_gets_everything(big: Path, serving: Serving) -> None:
    with serving(big) as hub, hub.stream("table=t") as quick, stalled(hub) as (wire,):
        commit(hub)
        assert len(quick.changes(ROWS)) == ROWS
        assert hub.outcomes("fell_behind") >= 1
        data = bytearray(wire.data)
        for _ in range(200_000):
            wire.data = b""
            data += wire.read(1)
        # The rest of what a whole day would bring so.
        last = f'"txid":{ROWS - 99},"commit":true'.encode()
        while last not in data[-2 * ROW_BYTES :]:
            wire.data = b""
            data += wire.read(1_000)
        lsns = re.findall(rb"^id: [\w-]+:(\d+)\ndata: ", body(bytes(data)), re.MULTILINE)
        assert list(map(int, lsns)) == list(range(1, ROWS + 1))


def body(answer: bytes) -> bytes:
    """What a response carries, as far as it has come; chunked or not."""
    head, data = answer.split(b"\r\n\r\n", 1)
    if b"transfer-encoding: chunked" not in head:
        return data
    found, place = bytearray(), 0
    while (end := data.find(b"\r\n", place)) > 0:
        size = int(data[place:end], 16)
        found += data[end + 2 : end + 2 + size]
        place = end + 2 + size + 2
    return bytes(found)


def test_shutdown_does_not_wait_for_who_takes_nothing(big: Path, serving: Serving) -> None:
    with serving(big, "--drain", "1") as hub, ExitStack() as stack:
        streams = [stack.enter_context(hub.stream("table=t")) for _ in range(5)]
        for stream in streams:
            stream.until("caught-up")
        stack.enter_context(stalled(hub, 5))
        commit(hub)
        for stream in streams:
            assert len(stream.changes(ROWS)) == ROWS
        wait_for(lambda: hub.status()["subscribers"]["byState"].get("lagging") == 5, "them to lag")
        head = hub.head()
        # It fails unless the hub ends long before the stall limit, which is a minute.
        assert hub.stop() == 0
        for stream in streams:
            assert stream.rest() == []
            assert re.search(rf"\nid: {head}\nretry: \d+\n\n$", stream.text)
        if "httptools" not in hub.process.args:
            # uvicorn, which has to cancel those that hang, says so.
            assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]
