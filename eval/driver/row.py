"""The row of a finished run: its settings, what answering gave, the score with its interval, and where it was made."""

from typing import Any

from eval import machine
from eval.results import fingerprint, rows, unpruned
from eval.results.folder import RunFolder, now
from eval.scoring import scores
from eval.scoring.judge import judge_of


def make_row(folder: RunFolder, duration: float) -> dict[str, Any]:
    """The sealed row of a run whose outcome and samples are there.

    Args:
        duration: seconds of the last session.
    """
    settings, outcome = folder.settings, folder.outcome()
    parts = settings.row(), outcome.row(), score(folder, outcome.metrics), environment(settings.device)
    session = {"sessions": folder.sessions(), "date": now(), "duration": round(duration, 1)}
    row = {name: value for part in (*parts, session) for name, value in part.items()}
    return rows.seal(row | {"changed": unpruned.changed(row, folder.path.parent)})


def score(folder: RunFolder, metrics: dict[str, float]) -> dict[str, Any]:
    """The headline with its interval, recounted from the single answers; or what a server needs to score them."""
    benchmark, samples = folder.benchmark, folder.samples()
    value, missing = scores.headline(benchmark, metrics)
    between, how, uploads = None, "none: scored by a server", []
    if value is None:
        uploads = folder.uploads()
    else:
        parts = scores.terms(benchmark, samples)
        scores.check_recount(benchmark, parts, value)
        between, how = scores.interval(parts)
    judge = judge_of(benchmark, folder.settings.judge_url, folder.settings.judge_model)
    return {
        "split": benchmark.split,
        "n_full": benchmark.rows,
        "questions": fingerprint.of_values([[s["doc_id"], s["prompt"], s["target"]] for s in samples]),
        "score": value,
        "interval": between,
        "interval_method": how,
        "missing": missing,
        "upload": uploads,
        "server": judge.name if judge else benchmark.server,
    }


def environment(device: str) -> dict[str, Any]:
    """The machine, the versions and the code."""
    commit, dirty = machine.git_state()
    named = machine.device_name(device)
    return {"device_name": named, "versions": machine.versions(), "commit": commit, "dirty": dirty}
