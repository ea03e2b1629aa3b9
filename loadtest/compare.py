"""cdchub beside nchan, a naive hub and a bare uvloop loop: the same load, the same client, in turns.

`compare.py S1 S3` runs the scenarios that are named, all of them by default, for every peer in every
round, forwards and then backwards, so that a machine that gets slower hits all alike. One core serves;
readers and publisher share another one. Read ratios and spreads, not absolutes.

| scenario | subscribers | events | tells |
|---|---|---|---|
| S1 | 1,000 | 100 a second for 10 s | CPU per delivery and latency at a load that one core can carry |
| S2 | 1,000 | as fast as the server takes them, 5 s or 20,000 | deliveries a second |
| S3 | 10,000 | idle, then 10 a second for 10 s | memory and CPU per connection, latency |
| S4 | 1,000 | 1,000 a second for 5 s | only a server that joins events can carry it |
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtest.crowd import Crowd
from loadtest.fanout_bench import until_idle
from loadtest.machine import Cores, ProcessCost, bound_to, raise_descriptor_limit
from loadtest.peers import PEERS, Peer
from loadtest.spine import describe_machine
from loadtest.wire import LoadTestError

# Nothing for so long after the last event: what has not come is lost.
_SILENCE_S = 3.0
_DELIVERY_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    subscribers: int
    # 0: closed loop, as fast as the server takes them.
    rate: float
    seconds: float
    rows_max: int
    connections: int = 8


SCENARIOS = {
    "S1": Scenario(1_000, 100, 10, 1_000),
    "S2": Scenario(1_000, 0, 5, 20_000),
    "S3": Scenario(10_000, 10, 10, 100),
    "S4": Scenario(1_000, 1_000, 5, 5_000, connections=64),
}


def small(scenario: Scenario) -> Scenario:
    """The same shape for a smoke test: it proves the program, not a server."""
    return replace(scenario, subscribers=30, rate=min(scenario.rate, 100), seconds=0.5, rows_max=50)


Result = dict[str, Any]


def run(name: str, peer_name: str, scenario: Scenario, cores: Cores) -> Result:
    """One peer, one scenario, once, on a fresh server."""
    with tempfile.TemporaryDirectory(prefix="cdchub-compare-") as folder:
        peer = PEERS[peer_name](Path(folder), cores)
        pid = peer.start()
        try:
            with Crowd(cores.client, peer.port, peer.path) as crowd:
                figures = _load(scenario, peer, pid, crowd)
        finally:
            peer.close()
    return {"figure": "compare", "scenario": name, "peer": peer_name, "at": int(time.time())} | figures


def _load(scenario: Scenario, peer: Peer, pid: int, crowd: Crowd) -> Result:
    until_idle(pid)
    opening = ProcessCost(pid)
    crowd.open(scenario.subscribers)
    until_idle(pid)
    opened_cpu_s, idle_kib = opening.cpu_s, opening.rss_kib_more
    crowd.do("clear")
    before = crowd.figures()
    serving = ProcessCost(pid)
    # At a rate the events are counted: a publisher that is late sends them all the same.
    seconds = scenario.seconds + (_DELIVERY_S_MAX if scenario.rate else 0.0)
    with peer.publisher(scenario.rate, seconds, scenario.rows_max, scenario.connections) as publisher:
        published = int(publisher.result(scenario.seconds + 2 * _DELIVERY_S_MAX)["published"])
    expected = published * scenario.subscribers
    crowd.do("until", field="delivered", least=expected, silenceS=_SILENCE_S, withinS=_DELIVERY_S_MAX)
    server_cpu_s = serving.cpu_s
    found = crowd.figures()
    took_s = max(1e-9, (found["lastReadNs"] - found["firstReadNs"]) / 1e9)
    delivered = max(1, found["delivered"])
    return {
        "subscribers": scenario.subscribers,
        "published": published,
        "lost": expected - found["delivered"],
        "deliveriesPerS": delivered / took_s,
        "cpuUsPerDelivery": 1e6 * server_cpu_s / delivered,
        "clientCpu": (found["cpuS"] - before["cpuS"]) / took_s,
        "p50Ms": found["p50Ms"],
        "p99Ms": found["p99Ms"],
        "bytesPerDelivery": found["bytes"] / delivered,
        "kibPerConnection": idle_kib / scenario.subscribers,
        "cpuUsPerConnect": 1e6 * opened_cpu_s / scenario.subscribers,
    }


COLUMNS: dict[str, str] = {
    "cpuUsPerDelivery": "CPU µs a delivery",
    "deliveriesPerS": "deliveries/s",
    "p50Ms": "p50 ms",
    "p99Ms": "p99 ms",
    "kibPerConnection": "KiB a connection",
    "cpuUsPerConnect": "CPU µs a connect",
    "bytesPerDelivery": "bytes a delivery",
    "clientCpu": "client's core",
}
_RATIO_OF = {"S2": "deliveriesPerS", "S4": "deliveriesPerS", "S3": "p99Ms"}


def table(name: str, results: list[Result]) -> list[str]:
    """Medians with their spread, and the ratio of each peer's median to the floor's and to nchan's."""
    peers = list(dict.fromkeys(result["peer"] for result in results))

    def values(peer: str, column: str) -> list[float]:
        found = [result[column] for result in results if result["peer"] == peer]
        return [value for value in found if value is not None]

    key = _RATIO_OF.get(name, "cpuUsPerDelivery")
    others = [peer for peer in ("floor", "nchan") if peer in peers]
    heads = [*COLUMNS.values(), "lost", *(f"{COLUMNS[key]} ÷ {peer}'s" for peer in others)]
    lines = [f"| {name} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for peer in peers:
        cells = [_cell(values(peer, column)) for column in COLUMNS]
        cells.append(f"{max(values(peer, 'lost')):,.0f}")
        for other in others:
            ratio = statistics.median(values(peer, key)) / statistics.median(values(other, key))
            cells.append(f"{ratio:.2f}")
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return lines


def _cell(values: list[float]) -> str:
    if not values:
        return "none"

    def show(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"

    median = show(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({show(min(values))}–{show(max(values))})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--subscribers", type=int, default=0, help="another number of them")
    parser.add_argument("--out", type=Path, help="append the results here, a JSON object a line")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}: choose from {', '.join(SCENARIOS)}")
    peers = []
    for name in options.peers.split(","):
        if name not in PEERS:
            parser.error(f"there is no peer {name!r}: choose from {', '.join(PEERS)}")
        if reason := PEERS[name].missing():
            print(f"{name} is left out: {reason}")
        else:
            peers.append(name)
    print(describe_machine())
    print(f"open files: {raise_descriptor_limit():,}", flush=True)
    cores = Cores.of_machine()
    lost = 0
    with bound_to(cores.client):
        for name in options.scenarios or SCENARIOS:
            scenario = small(SCENARIOS[name]) if options.small else SCENARIOS[name]
            if options.subscribers:
                scenario = replace(scenario, subscribers=options.subscribers)
            try:
                raise_descriptor_limit(scenario.subscribers)
                results = rounds(name, scenario, peers, options, cores)
            except LoadTestError as error:
                print(f"{name} has failed: {error}", file=sys.stderr)
                return 1
            print("\n".join(["", *table(name, results)]), flush=True)
            lost += sum(result["lost"] for result in results if result["peer"] == "cdchub")
    if lost:
        print(f"cdchub has lost {lost:,} deliveries", file=sys.stderr)
    return 1 if lost else 0


def rounds(
    name: str, scenario: Scenario, peers: list[str], options: argparse.Namespace, cores: Cores
) -> list[Result]:
    """A B C, C B A, A B C, …"""
    results = []
    for number in range(1 if options.small else options.rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            result = run(name, peer, scenario, cores)
            results.append(result)
            print(
                f"{name} {peer:7} {result['deliveriesPerS']:>11,.0f}/s"
                f"  {result['cpuUsPerDelivery']:6.2f} µs  lost {result['lost']}",
                flush=True,
            )
            if options.out is not None:
                with options.out.open("a") as out:
                    out.write(json.dumps(result) + "\n")
    return results


if __name__ == "__main__":
    raise SystemExit(main())
