"""Measurements of eval.efficiency, kept in results/efficiency, as one table."""

from pathlib import Path

import pandas as pd

from eval.efficiency import record
from eval.files import ROOT

FOLDER = ROOT / "results" / "efficiency"


def file_of(what: str, device: str, size: str) -> Path:
    """Where a measurement's rows go."""
    return FOLDER / f"{what}-{device.split(':')[0]}-{size}.jsonl"


def files(what: str) -> list[Path]:
    """All measurements of one kind."""
    return sorted(FOLDER.glob(f"{what}-*.jsonl"))


def load(files: list[Path]) -> pd.DataFrame:
    """Timings in long form: one line per method, budget, crops, batch size and machine; the newest of equal ones."""
    rows = [r for r in record.load(files) if r["kind"] == "phases"]
    lines = []
    for row in rows:
        at = {
            k: row[k]
            for k in (
                "device",
                "dtype",
                "attention",
                "clock",
                "threads",
                "hidden",
                "layers",
                "units",
                "batch",
                "method",
                "tokens",
            )
        }
        for phase in ("encode", "select", "prefill", "decode"):
            found = row["ms"][phase]
            at |= {phase: found["median"], f"{phase}_min": found["min"], f"{phase}_max": found["max"]}
        at |= {
            "decode_tokens_per_s": row["decode_tokens_per_s"],
            "tflops": row["ledger"]["tflops"],
            "memory_gb": row["memory_bytes"] / 1e9,
            "rounds": row["ms"]["prefill"]["n"],
        }
        lines.append(at | {"date": row["date"], "commit": row["commit"]})
    table = pd.DataFrame(lines)
    if table.empty:
        return table
    table["total"] = table["encode"] + table["prefill"]
    where = ["device", "dtype", "attention", "clock", "threads", "hidden", "layers", "units", "batch"]
    table = table.sort_values("date", kind="stable").drop_duplicates([*where, "method", "tokens"], keep="last")
    base = table[table["method"] == "none"].set_index(where)
    for name, of in (("speedup", "total"), ("prefill_speedup", "prefill")):
        table[name] = [_over(base[of], tuple(row[k] for k in where), row[of]) for _, row in table.iterrows()]
    fewer = [_over(base["tflops"], tuple(row[k] for k in where), row["tflops"]) for _, row in table.iterrows()]
    table["realised"] = table["speedup"] / fewer
    return table.sort_values([*where, "tokens", "method"], kind="stable", na_position="first", ignore_index=True)


def _over(base: pd.Series, key: tuple, value: float) -> float:
    return float(base.loc[key]) / value if key in base.index else float("nan")
