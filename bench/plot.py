"""Draws docs/performance.svg, and writes the tables of docs/performance.md, from what speed.py has saved.

.venv/bin/pip install 'matplotlib>=3.10'
.venv/bin/python bench/plot.py bench/results/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- begin: bench/plot.py -->\n", "<!-- end: bench/plot.py -->\n"

DRAWN_STREAMS = 32
DATABASES = ("SQLite", "PostgreSQL")
TARGETS = {
    "Get, done": (1.25, 1.25),
    "Get, running, of 100,000": (1.7, 2.2),
    "Start": (3.5, 4.5),
    "Renew": (3, 4),
    "Cancel": (3, 4),
    "Complete": (3, 4),
}
"""CPU time a call at DRAWN_STREAMS is to be at most so many times the bare server's, on each database."""

GREY = "#777777"  # is read on white and on black
COLORS = {"SQLite": "#2f6db5", "PostgreSQL": "#b3611a"}

Run = dict[str, Any]
"""What speed.py saved of one run."""


def main(files: Sequence[str]) -> None:
    runs: list[Run] = [json.loads(Path(file).read_text()) for file in files]
    runs.sort(key=lambda run: DATABASES.index(run["database"]))
    draw(runs, DOCS / "performance.svg")
    page = DOCS / "performance.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(before + BEGIN + "\n" + "\n\n".join(map(section, runs)) + "\n\n" + END + after)


def ratio(figures: dict[str, Any]) -> float:
    return float(figures["cpu"] / figures["bare_cpu"])


def target(call: str, database: str) -> float | None:
    return TARGETS[call][DATABASES.index(database)] if call in TARGETS else None


def draw(runs: Sequence[Run], file: Path) -> None:
    """Without fonts, dates or random ids: the same figures make the same file."""
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "opservice",
            "font.sans-serif": [
                "DejaVu Sans"
            ],  # measures the labels; any other will do to show them
            "font.size": 10,
            **{f"{part}.color": GREY for part in ("text", "xtick", "ytick")},
            **{f"axes.{part}": GREY for part in ("labelcolor", "edgecolor")},
        }
    )
    calls = list(dict.fromkeys(each["call"] for run in runs for each in run["figures"]))
    figure = Figure(figsize=(8, 0.9 + 0.55 * len(calls)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(runs)
    for index, run in enumerate(runs):
        database = run["database"]
        for figures in run["figures"]:
            if figures["streams"] != DRAWN_STREAMS:
                continue
            call = figures["call"]
            y = calls.index(call) + (index - (len(runs) - 1) / 2) * height
            axes.barh(y, ratio(figures), height * 0.9, color=COLORS[database])
            axes.text(0.05, y, f"{ratio(figures):.2f}", va="center", color="white", fontsize=8)
            if at_most := target(call, database):
                axes.vlines(at_most, y - height / 2, y + height / 2, GREY, linewidth=3)
        axes.barh(0, 0, color=COLORS[database], label=database)
    axes.vlines([], 0, 0, GREY, linewidth=3, label="at most (aim)")
    axes.axvline(1, color=GREY, linewidth=1, linestyle=":", label="bare handler")
    axes.set_yticks(range(len(calls)), calls)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"server CPU time a call, of the bare handler's, {DRAWN_STREAMS} calls at a time"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    nothing = dict.fromkeys(("Date", "Creator"))
    figure.savefig(file, transparent=True, metadata=nothing)


def section(run: Run) -> str:
    """Of the page: what it was measured on, and a table."""
    database, machine = run["database"], run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['kernel']}"
    head = (
        "call", "at a time", "CPU, µs", "bare, µs", "**of bare**", "aim", "calls/s", "bare, calls/s",
        "p50, ms", "p99, ms", "bare p50", "bare p99",
    )  # fmt: skip
    lines = [f"### {database}", "", f"{run['date']}; {where}.", f"{versions}.", ""]
    lines += [row(head), row(["---", *["--:"] * (len(head) - 1)])]
    lines += [row(cells(each, database)) for each in run["figures"]]
    return "\n".join([*lines, *together(run["figures"])])


def cells(figures: dict[str, Any], database: str) -> list[str]:
    at_most = target(figures["call"], database)
    aim = f"≤ {at_most}" if at_most and figures["streams"] == DRAWN_STREAMS else ""
    return [
        figures["call"],
        str(figures["streams"]),
        f"{figures['cpu']:.0f}",
        f"{figures['bare_cpu']:.0f}",
        f"**{ratio(figures):.2f}**",
        aim,
        *(f"{figures[each]:,.0f}" for each in ("rate", "bare_rate")),
        *(f"{figures[each]:.2f}" for each in ("p50", "p99", "bare_p50", "bare_p99")),
    ]


def row(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def together(all_figures: Sequence[dict[str, Any]]) -> list[str]:
    """What sharing an fsync is worth."""
    rates = {each["streams"]: each["rate"] for each in all_figures if each["call"] == "Start"}
    one, many = rates.pop(1, None), max(rates, default=0)
    if not one or not many:
        return []
    times = rates[many] / one
    return ["", f"{many} Starts at a time are {times:.1f} times as many a second as one at a time."]


if __name__ == "__main__":
    main(sys.argv[1:])
