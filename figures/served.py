"""Throughput and time to the first token against concurrency of served models, unpruned and pruned (beyond the paper).

    python -m figures.served [--rows results/serving/cpu-small.jsonl]

One line of panels for each model and machine; markers are medians over rounds, bars the least and the most.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from figures.data.needs import Served
from figures.data.pages import page
from figures.look import style
from figures.look.style import plt

PANELS = (("requests_per_s", "requests per second"), ("ttft_ms", "time to first token, p50 (ms)"))


def places(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by model and machine, in words; of equal measurements the newest."""
    out: dict[str, dict[tuple, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["date"]):
        name = f"{row['model']} (width {row['hidden']}, {row['layers']} layers, {row['dtype']}), {row['served']}, {row['device']}, {row['server_threads']} thread(s)"
        out.setdefault(name, {})[row["method"], row["tokens"], row["concurrency"], row["round"]] = row
    return {name: list(own.values()) for name, own in out.items()}


def value(row: dict[str, Any], field: str) -> float:
    """The number that a panel shows of a row."""
    return row[field]["p50"] if isinstance(row[field], dict) else row[field]


def curve(rows: list[dict[str, Any]], field: str) -> list[tuple[int, float, float, float]]:
    """(concurrency, median, least, most) of one side."""
    by: dict[int, list[float]] = {}
    for row in rows:
        by.setdefault(row["concurrency"], []).append(value(row, field))
    return [(c, statistics.median(v), min(v), max(v)) for c, v in sorted(by.items())]


@page("served", Served())
def draw(rows: list[dict[str, Any]], name: str, out: Path) -> None:
    """A line of two panels for each model and machine."""
    style.use()
    found = places(rows)
    figure, axes = plt.subplots(len(found), 2, figsize=(style.PAGE * 0.85, 2.4 * len(found)), squeeze=False)
    text = [f"{'clients':>8} {'entry':<16}{'field':<16}{'median':>10}{'least':>10}{'most':>10}"]
    for line, (place, own) in zip(axes, found.items()):
        text += ["", place]
        sides: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for row in own:
            sides.setdefault((row["method"], row["tokens"]), []).append(row)
        for axis, (field, label) in zip(line, PANELS):
            for (method, tokens), side in sides.items():
                color, marker, dashes = style.of_method(method)
                points = curve(side, field)
                middle = [p[1] for p in points]
                spread = [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]]
                words = "unpruned" if method == "none" else f"{method}, {tokens} tokens"
                look = {"color": color, "marker": marker, "linestyle": dashes, "label": words}
                axis.errorbar([p[0] for p in points], middle, yerr=spread, **look)
                entry = f"{method} {tokens or ''}".strip()
                text += [f"{p[0]:>8} {entry:<16}{field:<16}{p[1]:>10.2f}{p[2]:>10.2f}{p[3]:>10.2f}" for p in points]
            axis.set_xscale("log", base=2)
            at = sorted({row["concurrency"] for row in own})
            axis.set_xticks(at, [str(c) for c in at])
            axis.minorticks_off()
            axis.set(xlabel="clients at once", ylabel=label)
            axis.set_ylim(bottom=0) if field == "requests_per_s" else axis.set_yscale("log")
        line[0].set_title(place, loc="left", fontsize=6)
        line[0].legend()
    style.save(figure, name, "\n".join(text), out)


if __name__ == "__main__":
    sys.exit(draw.main())
