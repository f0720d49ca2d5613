"""Figures from rows of `python -m eval.efficiency`; they need matplotlib and no model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError


def _figure():
    try:
        import matplotlib
    except ImportError:
        raise EvaluationError("plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, 4), layout="constrained")


def _save(figure, axes, folder: Path, name: str, title: str) -> Path:
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _place(row: dict[str, Any]) -> str:
    place = f"{row['device']}, d = {row['hidden']}, {row['layers']} layers, {row['dtype']}, {row['threads']} thread(s)"
    return place + (f", {row['text_tokens']} text tokens" if "text_tokens" in row else "")


def _of_one_place(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Rows of a kind, the newest of equal measurements.

    Raises:
        EvaluationError: they are not of one machine and one model.
    """
    rows = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r["date"])
    places = sorted({_place(r) for r in rows})
    if len(places) > 1:
        raise EvaluationError(
            f"these {kind} rows come from {len(places)} machines or models ({'; '.join(places)}), which share no axis: "
            "plot their files apart, each with its own --folder"
        )
    same = ("method", "tokens", "units", "batch", "attention", "tower", "visual_tokens")
    return list({tuple(r.get(name) for name in same): r for r in rows}.values())


def _label(row: dict[str, Any]) -> str:
    """What tells the lines of a figure apart besides the budget."""
    units, attention = row["units"], row["attention"]
    label = row["method"] + (f", {units} crops" if units > 1 else "")
    return label + ("" if attention == "sdpa" else f", {attention}")


def _by(rows: list[dict[str, Any]], name: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    """The rows in groups of one name, in order of first appearance."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def latency(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Decoder prefill against the mean visual tokens per layer at the smallest batch, with the roofline."""
    rows = _of_one_place(rows, "phases")
    if not rows:
        return None
    # Absolute times of two sweeps do not mix, and each sweep has its tower: the one with most rows is drawn.
    rows = max(_by(rows, lambda r: r.get("tower")).values(), key=len)
    batch = min(r["batch"] for r in rows)
    rows = sorted((r for r in rows if r["batch"] == batch), key=lambda r: r["ledger"]["mean"])
    figure, axes = _figure()
    for label, own in _by(rows, _label).items():
        ms = [r["ms"]["prefill"] for r in own]
        middle = [m["median"] for m in ms]
        spread = [[m["median"] - m["min"] for m in ms], [m["max"] - m["median"] for m in ms]]
        axes.errorbar([r["ledger"]["mean"] for r in own], middle, yerr=spread, marker="o", capsize=2, label=label)
    for number, own in enumerate(_by(rows, lambda r: r["units"]).values()):
        bound = sorted({(r["ledger"]["mean"], r["roofline_ms"]["prefill"]) for r in own})
        axes.plot([x for x, _ in bound], [y for _, y in bound], "k--", lw=1, label=None if number else "roofline")
    axes.set(xlabel="mean visual tokens per layer", ylabel=f"decoder prefill, ms ({rows[0]['clock']})", ylim=(0, None))
    return _save(figure, axes, folder, "latency", f"{_place(rows[0])}, batch {batch}")


def throughput(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Images per second (encode + prefill) against batch size."""

    def name(row: dict[str, Any]) -> tuple[str, bool]:
        label = f"{_label(row)}, {row['tokens']} tokens" if row["tokens"] else _label(row)
        return label, row.get("tower") == "tiny"

    lines = _by(sorted(_of_one_place(rows, "phases"), key=lambda r: r["batch"]), name)
    lines = {key: own for key, own in lines.items() if len(own) > 1}  # a single batch is no curve
    if not lines:
        return None
    figure, axes = _figure()
    narrow = {tiny for _, tiny in lines}
    for (label, tiny), own in lines.items():
        label += ", narrow tower" if tiny and len(narrow) > 1 else ""
        axes.plot([r["batch"] for r in own], [r["images_per_s"] for r in own], marker="o", label=label)
    rows = [r for own in lines.values() for r in own]
    axes.set(xlabel="batch", ylabel="images per second, encode + prefill", ylim=(0, None))
    axes.set_xticks(sorted({r["batch"] for r in rows}))
    tower = "\ntower of two narrow layers: the decoder's share" if narrow == {True} else ""
    return _save(figure, axes, folder, "throughput", _place(rows[0]) + tower)


def memory(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Peak bytes above weights of the prefill against visual tokens."""
    rows = sorted(_of_one_place(rows, "memory"), key=lambda r: r["visual_tokens"])
    if not rows:
        return None
    figure, axes = _figure()
    for method, own in _by(rows, lambda r: r["method"]).items():
        axes.plot([r["visual_tokens"] for r in own], [r["memory_bytes"] / 2**20 for r in own], marker="o", label=method)
    axes.set(xlabel="visual tokens", ylabel="MiB above weights, prefill", xscale="log", yscale="log")
    return _save(figure, axes, folder, "memory", _place(rows[0]))


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Every figure the rows allow."""
    return [path for figure in (latency, throughput, memory) if (path := figure(rows, folder)) is not None]
