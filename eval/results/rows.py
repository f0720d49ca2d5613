"""Result rows: append-only JSON lines, one row per finished run, each with its provenance and a checksum.

A line also carries a `link`, the hash of its own checksum and of the link before it: a row that was removed, moved or
inserted by hand is noticed at the row that follows.

    rows, problems = load("results/local.jsonl")      # keeps every good row, names every bad line
    append("results/local.jsonl", row)                # locked, all or nothing

python -m eval.results.rows results/local.jsonl               # checks a file and lists its rows
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import reason, write_fully
from eval.settings import added_row_fields, row_fields
from visiondrop.errors import command_line

SCHEMA = 1
NUMBER = (int, float)

# name -> (types, what it is); None among the types means that the field may be empty
FIELDS: dict[str, tuple[tuple, str]] = {
    "schema": ((int,), "version of this format"),
    "run": ((str,), "identity of the run: hash of everything that can change an answer"),
    "folder": ((str,), "name of the run's folder, where the single answers lie"),
    **row_fields(),
    "split": ((str,), "split of the data set"),
    "questions": ((str,), "fingerprint of all (document, prompt, target)"),
    "ledger": ((dict,), "tokens per layer, mean, cache entries, FLOPs"),
    "processor": ((dict, None), "sizes of the processor under a wrapper; null under our llava"),
    "n": ((int,), "questions answered"),
    "n_full": ((int, None), "questions of the full split, as published"),
    "partial": ((bool,), "a --limit was given: never enters a table"),
    "score": ((*NUMBER, None), "headline score; null where a server scores"),
    "metrics": ((dict,), "every number lmms-eval gave"),
    "interval": ((list, None), "95 % interval of the score"),
    "interval_method": ((str,), "how it was computed"),
    "unlike_uniform": (
        (*NUMBER, None),
        "share of the kept ids of the first batch that a uniform choice would not keep; null where no report was made",
    ),
    "changed": (
        (*NUMBER, None),
        "share of answers that differ from the unpruned run's; null where there is none, or it is one",
    ),
    "missing": ((list,), "headline metrics for which the data held no question"),
    "upload": ((list,), "upload files below the run's folder"),
    "server": ((str, None), "who scored or will score it: a benchmark's server or a judge; null where we did"),
    "device": ((str,), "cpu or cuda"),
    "device_name": ((str,), "processor or card"),
    "versions": ((dict,), "python, torch, transformers, lmms_eval, datasets, visiondrop"),
    "commit": ((str,), "git commit of this repository at the end of the run"),
    "dirty": ((bool,), "uncommitted changes"),
    "sessions": ((list,), "every start of the run: date, commit, processes, answers added"),
    "date": ((str,), "end of the run, UTC"),
    "duration": (NUMBER, "seconds of the last session, loading included"),
    "checksum": ((str,), "of the row without this field"),
}
ADDED = (
    *added_row_fields(),
    "processor",
    "changed",
    "unlike_uniform",
)  # rows from before these fields are whole without them: how they ran is not recorded


def checksum(row: dict[str, Any]) -> str:
    """16 hex digits over the row without its own checksum, in canonical form."""
    body = {k: v for k, v in row.items() if k != "checksum"}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wrong_type(value: Any, types: tuple) -> bool:
    if value is None:
        return None not in types
    if isinstance(value, bool):
        return bool not in types
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return not isinstance(value, tuple(t for t in types if t is not None))


def problem(row: Any) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return "not a row"
    if row.get("schema") != SCHEMA:
        return f"schema {row.get('schema')!r}, this version reads {SCHEMA}"
    missing, unknown = set(FIELDS) - set(row) - set(ADDED), set(row) - set(FIELDS)
    if missing or unknown:
        return ", ".join([f"missing {k}" for k in sorted(missing)] + [f"unknown field {k}" for k in sorted(unknown)])
    wrong = [k for k, (types, _) in FIELDS.items() if k in row and _wrong_type(row[k], types)]
    if wrong:
        return ", ".join(f"{k} = {row[k]!r} has the wrong type" for k in wrong)
    if row["checksum"] != checksum(row):
        return "checksum does not fit: the row was changed after it was written"
    return None


def seal(row: dict[str, Any]) -> dict[str, Any]:
    """The row with schema and checksum, checked.

    Raises:
        EvaluationError: a field is missing, unknown or of the wrong type.
    """
    row = {**row, "schema": SCHEMA}
    missing = [name for name in ADDED if name not in row]
    if missing:
        raise EvaluationError(f"this row cannot be recorded: missing {', '.join(missing)}")
    try:
        row["checksum"] = checksum(row)
    except ValueError:
        raise EvaluationError("this row cannot be recorded: it holds a number that is not finite") from None
    wrong = problem(row)
    if wrong:
        raise EvaluationError(f"this row cannot be recorded: {wrong}")
    return {name: row[name] for name in FIELDS}


def _link(before: str, row: dict[str, Any]) -> str:
    return hashlib.sha256(f"{before} {row['checksum']}".encode()).hexdigest()[:16]


def _read(path: str | Path) -> list[tuple[int, dict[str, Any] | None, str | None]]:
    """Every non-empty line as (number, row without its link or None, link or None)."""
    out = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            out.append((number, row, row.pop("link", "")))
        except (ValueError, AttributeError, TypeError):
            out.append((number, None, None))
    return out


def load(path: str | Path, strict: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """All good rows of a file, and one sentence per bad line (with its number).

    Args:
        strict: raise on the first bad line instead.

    Raises:
        EvaluationError: the file cannot be read, or `strict` and a line is bad.
    """
    try:
        lines = _read(path)
    except OSError as error:
        raise EvaluationError(f"cannot read results {path}: {reason(error)}") from None
    rows, problems = [], []
    before: str | None = ""
    for number, row, link in lines:
        wrong = "not a whole JSON line" if row is None else problem(row)
        if wrong is None:
            rows.append(row)
            if before is not None and link != _link(before, row):
                wrong = "the row before it was removed or moved (this row itself is whole)"
        if wrong:
            problems.append(f"{path}, line {number}: {wrong}")
        before = link
    if strict and problems:
        raise EvaluationError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    return rows, problems


def check_writable(path: str | Path) -> Path:
    """Make sure that rows can be appended, before hours of work; returns the absolute path."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise EvaluationError(f"results file {path} is not an ordinary file; choose another --out", "batch")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    except OSError as error:
        raise EvaluationError(
            f"results file {path} cannot be written: {reason(error)}; choose another --out", "batch"
        ) from None
    return path


def append(path: str | Path, row: dict[str, Any]) -> None:
    """Append a sealed row under a lock; on failure the file is as it was.

    A torn last line (a writer was killed) is ended first, so that it spoils no other row.

    Raises:
        EvaluationError: the row is not sealed or cannot be written.
    """
    wrong = problem(row)
    if wrong:
        raise EvaluationError(f"this row cannot be recorded: {wrong}")
    path = check_writable(path)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        before = next((link for _, _, link in reversed(_read(path)) if link is not None), "")
        line = json.dumps({**row, "link": _link(before, row)}, ensure_ascii=False, allow_nan=False) + "\n"
        write_fully(descriptor, (("\n" if torn else "") + line).encode())
    except OSError as error:
        raise EvaluationError(
            f"the result row could not be written to {path}: {reason(error)}; nothing is lost, "
            "make room and start the same command again: it only writes the row"
        ) from None
    finally:
        os.close(descriptor)


@command_line
def main(argv: list[str] | None = None) -> int:
    """List the rows of a file and its problems; exit 2 when there are any."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.results.rows", description="Check a results file and list its rows."
    )
    parser.add_argument("file", type=Path)
    rows, problems = load(parser.parse_args(argv).file)
    for row in rows:
        score = "upload" if row["score"] is None else f"{row['score']:.2f}"
        mark = " (partial)" if row["partial"] else ""
        what = f"{row['benchmark']:<12}{row['protocol']:<9}{row['method']:<14}{row['tokens'] or row.get('share') or '-':>5}"
        print(f"{what}  {score}{mark}  {row['date']}")
    for sentence in problems:
        print(f"error: {sentence}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
