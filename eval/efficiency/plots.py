"""Figures from rows of `python -m eval.efficiency`; they need matplotlib and no model."""

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
    return f"{row['device']}, d = {row['hidden']}, {row['layers']} layers, {row['dtype']}, {row['threads']} thread(s)"


def latency(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Decoder prefill against the mean visual tokens per layer at the smallest batch, with the roofline."""
    rows = [r for r in rows if r["kind"] == "phases"]
    if not rows:
        return None
    batch = min(r["batch"] for r in rows)
    rows = sorted((r for r in rows if r["batch"] == batch), key=lambda r: r["ledger"]["mean"])
    figure, axes = _figure()
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        middle = [r["ms"]["prefill"]["median"] for r in own]
        below = [m - r["ms"]["prefill"]["min"] for m, r in zip(middle, own)]
        above = [r["ms"]["prefill"]["max"] - m for m, r in zip(middle, own)]
        axes.errorbar(
            [r["ledger"]["mean"] for r in own], middle, yerr=[below, above], marker="o", capsize=2, label=method
        )
    bound = sorted({(r["ledger"]["mean"], r["roofline_ms"]["prefill"]) for r in rows})
    axes.plot([x for x, _ in bound], [y for _, y in bound], "k--", lw=1, label="roofline")
    axes.set(xlabel="mean visual tokens per layer", ylabel=f"decoder prefill, ms ({rows[0]['clock']})", ylim=(0, None))
    return _save(figure, axes, folder, "latency", f"{_place(rows[0])}, batch {batch}")


def throughput(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Images per second (encode + prefill) against batch size."""
    rows = sorted((r for r in rows if r["kind"] == "phases"), key=lambda r: r["batch"])
    if len({r["batch"] for r in rows}) < 2:
        return None
    figure, axes = _figure()
    for case in dict.fromkeys((r["method"], r["tokens"], r["units"], r["attention"]) for r in rows):
        own = [r for r in rows if (r["method"], r["tokens"], r["units"], r["attention"]) == case]
        method, tokens, units, attention = case
        label = f"{method} {tokens or ''}" + (f", {units} crops" if units > 1 else "")
        label += "" if attention == "sdpa" else f", {attention}"
        axes.plot([r["batch"] for r in own], [r["images_per_s"] for r in own], marker="o", label=label)
    axes.set(xlabel="batch", ylabel="images per second, encode + prefill", ylim=(0, None))
    tower = ", tower of two narrow layers: the decoder's share" if rows[0].get("tower") == "tiny" else ""
    return _save(figure, axes, folder, "throughput", _place(rows[0]) + tower)


def memory(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    """Peak bytes above weights of the prefill against visual tokens."""
    rows = sorted((r for r in rows if r["kind"] == "memory"), key=lambda r: r["visual_tokens"])
    if not rows:
        return None
    figure, axes = _figure()
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        axes.plot([r["visual_tokens"] for r in own], [r["memory_bytes"] / 2**20 for r in own], marker="o", label=method)
    axes.set(xlabel="visual tokens", ylabel="MiB above weights, prefill", xscale="log", yscale="log")
    return _save(figure, axes, folder, "memory", _place(rows[0]))


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Every figure the rows allow."""
    return [path for figure in (latency, throughput, memory) if (path := figure(rows, folder)) is not None]
