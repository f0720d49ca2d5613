"""Did a run prune at all?  Its answers against those of the unpruned run of the same model and questions.

Four ports in one audit of the field pruned nothing, and nobody had noticed: their scores were simply good.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.results.folder import RunFiles

FEW = 0.25  # below this share of the tokens a run in which no answer changed is not believed
ENOUGH = 20  # questions from which on equal answers are suspicious


def changed(row: dict[str, Any], runs: Path) -> float | None:
    """Share of a run's answers that differ from the unpruned run's, or None where `runs` holds no such run.

    Args:
        row: the run's row; runs: the folder in which runs keep their answers.
    """
    if row["method"] == "none":
        return None
    mine = _answers(RunFiles(runs / row["folder"]))
    for other in unpruned(row, runs):
        theirs = _answers(other)
        if theirs.keys() == mine.keys():
            return sum(mine[key] != theirs[key] for key in mine) / len(mine)
    return None


def unpruned(row: dict[str, Any], runs: Path) -> Iterator[RunFiles]:
    """Finished unpruned runs of the same questions by the same checkpoint, the newest first."""
    same = ("benchmark", "protocol", "questions", "model_fingerprint", "dtype")
    found = []
    for folder in runs.glob(f"{row['benchmark']}-*-none-*"):
        files = RunFiles(folder)
        base = files.row()
        if base and base["method"] == "none" and all(base.get(name) == row.get(name) for name in same):
            found.append((base["date"], folder.name, files))
    return (files for _, _, files in sorted(found, key=lambda entry: entry[:2], reverse=True))


def _answers(files: RunFiles) -> dict[int, str]:
    return {line["doc_id"]: line["answer"] for line in files.lines()}


def suspicion(row: dict[str, Any]) -> str | None:
    """Why a row is not believed to be of a pruned model, or None."""
    ledger = row["ledger"]
    if row["method"] == "none" or not ledger.get("unpruned"):
        return None
    share = ledger["mean"] / ledger["unpruned"]
    if share < FEW and row.get("changed") == 0 and row["n"] >= ENOUGH:
        return f"no answer differs from the unpruned model's at {100 * share:.0f} % of the tokens: did it prune?"
    return None
