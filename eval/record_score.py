"""Record what a server said about an upload file: VQAv2 test-dev, VizWiz test, MMBench test.

    python -m eval.record_score results/runs/vqav2-paper-… --score 76.8 --server "EvalAI 830, test-dev 2015"

Appends a row with the provenance of the run that wrote the file; its score is the server's, and tables take it
from there.  The run's own row, without a score, stays.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import ROOT
from eval.results import rows
from eval.results.folder import now
from visiondrop.errors import command_line

METRIC = "server_score"


def run_row(folder: Path) -> dict[str, Any]:
    """The row of a finished run that waits for a server's score.

    Raises:
        EvaluationError: no such run, a damaged row, a partial run, one that was scored here, or a lost upload file.
    """
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise EvaluationError(
            f"{folder} holds no readable row.json: give the folder of a finished run, below results/runs"
        ) from None
    wrong = rows.problem(row)
    if wrong:
        raise EvaluationError(
            f"row.json in {folder} is not what the run wrote ({wrong}): do the run again with --force"
        )
    if row["score"] is not None or not row["upload"]:
        raise EvaluationError(
            f"{folder.name} was scored here ({row['score']}), no server is needed: only runs with an upload file wait for one"
        )
    if row["partial"]:
        raise EvaluationError(
            f"{folder.name} is a partial run (--limit {row['limit']}): a server scores whole files only"
        )
    lost = [name for name in row["upload"] if not (folder / name).is_file()]
    if lost:
        raise EvaluationError(f"{folder / lost[0]} is gone: a score cannot be tied to a file that is not there")
    return row


def scored(row: dict[str, Any], score: float, server: str | None, known: list[dict[str, Any]]) -> dict[str, Any]:
    """The sealed row with the server's score.

    Args:
        row: of the run; known: rows of the results file.
        score: per cent; server: who gave it, in words (default: the address in the row).

    Raises:
        EvaluationError: the score is no percentage, or one is recorded already.
    """
    if not (math.isfinite(score) and 0 <= score <= 100):
        raise EvaluationError(f"--score {score:g}: give the server's score in per cent, 0 … 100")
    if 0 < score < 1:
        raise EvaluationError(f"--score {score:g} looks like a share: give per cent, {100 * score:g}")
    earlier = [r for r in known if r["run"] == row["run"] and r["score"] is not None and r["date"] > row["date"]]
    if earlier and earlier[-1]["score"] == score:
        raise EvaluationError(f"this score was recorded on {earlier[-1]['date']}: nothing to do")
    body = {name: value for name, value in row.items() if name != "checksum"}
    name = server or row["server"]
    return rows.seal(
        body
        | {
            "score": float(score),
            "metrics": row["metrics"] | {METRIC: float(score)},
            "server": name,
            "interval": None,
            "interval_method": f"none: scored by {name}",
            "date": now(),
        }
    )


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 recorded, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m eval.record_score", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="below results/runs")
    parser.add_argument(
        "--score", type=float, required=True, help="the server's score, per cent; a later one replaces it"
    )
    parser.add_argument("--server", help="who scored it, with phase or version (default: the address in the run's row)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "local.jsonl", help="results file")
    args = parser.parse_args(argv)
    row = run_row(args.folder)
    known = rows.load(args.out, strict=True)[0] if args.out.exists() else []
    made = scored(row, args.score, args.server, known)
    rows.append(args.out, made)
    print(
        f"{made['benchmark']}, {made['method']}, {made['tokens']}: {made['score']:g} by {made['server']}; row in {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
