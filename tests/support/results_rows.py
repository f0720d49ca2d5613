"""Made-up result rows for tests of tables and figures: sealed like real ones, with numbers nobody measured."""

from pathlib import Path
from typing import Any

import visiondrop
from eval import benchmarks
from eval.results import rows
from figures.data.settings import options_of

MODEL = "liuhaotian/llava-v1.5-7b"


def blank() -> dict[str, Any]:
    """A value of the right type for every field of a row, None where it may be empty."""
    kinds = {name: types for name, (types, _) in rows.FIELDS.items() if name not in ("schema", "checksum")}
    return {name: None if None in types else types[0]() for name, types in kinds.items()}


def row(
    benchmark: str, score: float | None, method: str = "none", tokens: int | None = 576, **changes: Any
) -> dict[str, Any]:
    """A sealed row of a whole run under the paper protocol; `changes` replace fields."""
    spec = benchmarks.get(benchmark, changes.get("protocol", "paper"))
    options = options_of(changes.pop("options", []))
    ledger = visiondrop.plan(method, tokens, options=options).ledger().as_dict()
    out = {
        **blank(),
        "run": f"{benchmark}{method}{tokens}"[:12],
        "folder": "made-up",
        "benchmark": benchmark,
        "protocol": spec.protocol,
        "task": spec.task,
        "split": spec.split,
        "model": MODEL,
        "model_fingerprint": "f" * 16,
        "data": "hub",
        "questions": "q" * 16,
        "method": method,
        "tokens": tokens,
        "options": options,
        "ledger": ledger,
        "n": spec.rows,
        "n_full": spec.rows,
        "limit": None,
        "partial": False,
        "score": score,
        "metrics": {},
        "interval": None if score is None else [score - 1, score + 1],
        "interval_method": "made up",
        "missing": [],
        "upload": [],
        "server": spec.server,
        "dtype": "float16",
        "attention": "sdpa",
        "device": "cuda",
        "device_name": "none",
        "batch_size": 1,
        "reuse": "off",
        "compile": "off",
        "processes": 1,
        "seed": 0,
        "conversation": "vicuna_v1",
        "versions": {},
        "commit": "0" * 40,
        "dirty": False,
        "sessions": [],
        "date": "2026-01-01T00:00:00Z",
        "duration": 1.0,
    }
    return rows.seal(out | changes)


def write(folder: Path, *made: dict[str, Any]) -> Path:
    """The rows in a results file."""
    folder.mkdir(exist_ok=True)
    file = folder / "made-up.jsonl"
    for one in made:
        rows.append(file, one)
    return file
