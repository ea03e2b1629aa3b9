"""Plots for the documentation, from the JSON lines that `compare.py` and `fanout.py` have written.

`plots.py FILE… [--into docs/images]`. What a file lacks is left out. The SVGs are transparent with
mid-grey text, so one picture is readable on a light page and on a dark one, and the same results make
the same bytes, so that a plot changes only when its figures do. Of several runs of a section the last
one counts; of a comparison all of them do, as medians with their spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

_GREY = "#808080"
_COLOURS = ["#2f81f7", "#d9822b", "#9a6ddb", "#3fa45b"]
# What a scenario is about, whether more is better, and its words.
_KEYS = {
    "S1": ("cpuUsPerDelivery", "CPU a delivery"),
    "S2": ("deliveriesPerS", "deliveries/s"),
    "S3": ("p99Ms", "p99 latency"),
    "S4": ("deliveriesPerS", "deliveries/s"),
}

Line = dict[str, Any]


def style() -> None:
    mpl.use("svg")
    colours = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    mpl.rcParams.update(
        {
            **dict.fromkeys(colours, _GREY),
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": mpl.cycler(color=_COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.figsize": (7.2, 3.6),
            "font.size": 10,
            "grid.alpha": 0.25,
            "grid.color": _GREY,
            "legend.frameon": False,
            "savefig.transparent": True,
            # Without it the ids inside are random, and every run is another file.
            "svg.hashsalt": "cdchub",
        }
    )


def read(paths: Iterable[Path]) -> list[Line]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines() if line]


def ratios(lines: list[Line]) -> Figure | None:
    """Each peer beside the bare loop, by the one figure that a scenario is about."""
    runs = [line for line in lines if line["figure"] == "compare"]
    scenarios = [name for name in _KEYS if any(run["scenario"] == name for run in runs)]
    peers = list(dict.fromkeys(run["peer"] for run in runs))
    if not scenarios or "floor" not in peers:
        return None
    figure, axes = plt.subplots()
    width = 0.8 / len(peers)
    for number, peer in enumerate(peers):
        middles, below, above = [], [], []
        for scenario in scenarios:
            key = _KEYS[scenario][0]
            floor = statistics.median(_values(runs, scenario, "floor", key) or [1.0])
            found = [value / floor for value in _values(runs, scenario, peer, key)] or [0.0]
            middle = statistics.median(found)
            middles.append(middle)
            below.append(middle - min(found))
            above.append(max(found) - middle)
        at = [position + number * width - 0.4 + width / 2 for position in range(len(scenarios))]
        axes.bar(at, middles, width * 0.9, yerr=[below, above], ecolor=_GREY, label=peer)
    axes.axhline(1, color=_GREY, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(scenarios)), [f"{name}: {_KEYS[name][1]}" for name in scenarios])
    axes.set_ylabel("× the bare uvloop loop")
    _plain_numbers(axes.yaxis)
    axes.legend(ncols=len(peers), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _values(runs: list[Line], scenario: str, peer: str, key: str) -> list[float]:
    return [
        run[key]
        for run in runs
        if (run["scenario"], run["peer"]) == (scenario, peer) and run[key] is not None
    ]


def _section(lines: list[Line], name: str) -> Line | None:
    found = [line for line in lines if line["figure"] == "fanout" and line["name"] == name]
    return found[-1] if found else None


def _figure_of(section: Line, name: str) -> float | None:
    found = [figure["value"] for figure in section["figures"] if figure["name"] == name]
    return found[0] if found else None


def latency(lines: list[Line]) -> Figure | None:
    """p99 of those who are not concerned, before and during what happens to others."""
    names = {
        "stall": ("one reader stalls", "p99 of the others before", "p99 of the others during"),
        "reconnect": (
            "all others reconnect at once",
            "live readers' p99 before",
            "live readers' p99 meanwhile",
        ),
    }
    bars = []
    for name, (title, before, during) in names.items():
        if (section := _section(lines, name)) is not None:
            values = (_figure_of(section, before), _figure_of(section, during))
            bars.append((title, *(value or 0.0 for value in values)))
    if not bars:
        return None
    figure, axes = plt.subplots()
    for number, when in enumerate(("before", "meanwhile")):
        at = [position + 0.36 * number - 0.18 for position in range(len(bars))]
        drawn = axes.bar(at, [bar[number + 1] for bar in bars], 0.34, label=when)
        axes.bar_label(drawn, fmt="%.1f", color=_GREY)
    axes.set_xticks(range(len(bars)), [bar[0] for bar in bars])
    axes.set_ylabel("p99 from commit to receive, ms")
    axes.margins(y=0.12)
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def curve(lines: list[Line], section_name: str, curve_name: str, x_label: str) -> Figure | None:
    """A curve of one section; a stall, where it has one, is shaded."""
    section = _section(lines, section_name)
    if section is None or not section["curves"].get(curve_name):
        return None
    figure, axes = plt.subplots()
    axes.plot(*zip(*section["curves"][curve_name], strict=True))
    _shade(axes, section)
    axes.set_ylim(0, 1.12 * max(value for _, value in section["curves"][curve_name]))
    axes.set_xlabel(x_label)
    axes.set_ylabel(curve_name.partition(" by ")[0])
    return figure


def _shade(axes: Axes, section: Line) -> None:
    for begin, end in section["curves"].get("the stall, from and to, seconds", []):
        axes.axvspan(begin, end, color=_GREY, alpha=0.15, linewidth=0)
        axes.text((begin + end) / 2, 0.05, "stalled", ha="center", transform=_x_of_data(axes))


def _x_of_data(axes: Axes) -> Any:
    """x as the data has it, y as a share of the height."""
    return axes.get_xaxis_transform()


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10 on a logarithmic axis instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def filters(lines: list[Line]) -> Figure | None:
    figure = curve(lines, "filters", "CPU µs a change, by feeds", "feeds with different filters")
    if figure is not None:
        figure.axes[0].set_xscale("log")
        _plain_numbers(figure.axes[0].xaxis)
        figure.axes[0].set_ylabel("CPU of the hub a change, µs")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    style()
    lines = read(options.files)
    seconds = "the hub's memory, MiB by seconds"
    made = {
        "compare-ratios": ratios(lines),
        "latency-storms": latency(lines),
        "memory-stall": curve(lines, "stall", seconds, "seconds"),
        "memory-reconnect": curve(lines, "reconnect", seconds, "seconds"),
        "memory-churn": curve(
            lines, "memory", "the hub's memory, MiB by visits", "readers that came and went"
        ),
        "filters": filters(lines),
    }
    options.into.mkdir(parents=True, exist_ok=True)
    for name, figure in made.items():
        if figure is not None:
            path = options.into / f"{name}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
