"""One reader that stops reading, among many: what the others and the hub's memory notice of it.

The reader is a process under SIGSTOP, so its socket stays open and fills. When it goes on, it must
get everything that it has missed, over a new connection if the hub gave the old one up.
"""

from __future__ import annotations

import argparse
import signal
import threading

from loadtest.fanout_bench import Bench, Measured
from loadtest.machine import MemoryCurve
from loadtest.wire import LoadTestError

# So little that the kernel's buffers don't hide the stall from the hub.
_RECEIVE_BYTES = 4_096


def measure(options: argparse.Namespace) -> Measured:
    section = Measured("stall")
    small = ("--follow", "--receive-bytes", str(_RECEIVE_BYTES))
    with (
        Bench() as bench,
        bench.crowd("table=bench", "--follow") as others,
        bench.crowd("table=bench", *small) as stalled,
    ):
        others.open(options.readers)
        stalled.open(1)
        load = ("--rate", options.stall_rate, "--pad", options.stall_pad)
        with bench.writer(*load) as writer, MemoryCurve(bench.hub.pid) as curve:
            bench.head_at_least(1)
            for name, seconds in (("before", options.before_s), ("during", options.stall_s)):
                if name == "during":
                    stalled.process.send_signal(signal.SIGSTOP)
                others.do("clear")
                _let_pass(seconds)
                # On a machine that stands still even a second can pass without an event.
                others.do("until", field="delivered", least=1, withinS=30.0)
                found = others.figures()
                section.add(f"p50 of the others {name}", found["p50Ms"], "ms")
                section.add(f"p99 of the others {name}", found["p99Ms"], "ms")
            section.notes.append(f"at its end: {bench.status()['subscribers']['byState']}")
            stalled.process.send_signal(signal.SIGCONT)
            written = int(writer.stop()["published"])
        head = bench.head_at_least(written)
        others.until("lsn", head, within_s=60.0)
        stalled.until("lsn", head, within_s=120.0)
        last = stalled.flawless()
        if last["changes"] != written or others.flawless()["fewest"] != written:
            raise LoadTestError(f"{written:,} changes were written: {last}, {others.figures()}")
        section.notes.append(
            f"the stalled reader has seen all {written:,} changes, over {1 + last['cuts']} connections"
        )
    section.add("the hub's memory at its peak", curve.peak_mib, "MiB")
    section.add("more than at the start", curve.peak_mib - curve.points[0][1], "MiB")
    section.curves["the hub's memory, MiB by seconds"] = curve.points
    section.curves["the stall, from and to, seconds"] = [
        (options.before_s, options.before_s + options.stall_s)
    ]
    return section


def _let_pass(seconds: float) -> None:
    """The measured time itself: there is no condition to wait for."""
    threading.Event().wait(seconds)
