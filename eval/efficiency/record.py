"""Rows of measurements: JSON lines, each with its provenance (where, when, with what it was measured)."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eval import machine
from eval.errors import EvaluationError
from eval.results.rows import check_writable

SCHEMA = 1
NEEDED = ("schema", "kind", "commit", "uncommitted", "versions", "device", "threads", "dtype", "seed", "date", "load")


def certificate(device: str, dtype: str, seed: int = 0) -> dict[str, Any]:
    """What every row carries beside its numbers."""
    commit, uncommitted = machine.git_state()
    return {
        "schema": SCHEMA,
        "commit": commit,
        "uncommitted": uncommitted,
        "versions": {**machine.versions(), "python": platform.python_version()},
        "device": machine.device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def append(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Append rows in one write.

    Raises:
        EvaluationError: a field of the certificate is missing, or the file cannot be written.
    """
    for row in rows:
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise EvaluationError(f"this measurement cannot be recorded, it lacks {', '.join(missing)}")
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n" for row in rows)
    path = check_writable(path)
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror}; choose another --out") from None


def load(paths: list[Path]) -> list[dict[str, Any]]:
    """All rows of some files.

    Raises:
        EvaluationError: a file cannot be read, or a line is no row.
    """
    rows = []
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise EvaluationError(f"cannot read {path}: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["schema"] != SCHEMA:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                raise EvaluationError(
                    f"{path}, line {number}: not a row of schema {SCHEMA}; measure again into a new file"
                ) from None
            rows.append(row)
    return rows
