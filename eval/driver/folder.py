"""The folder of one run: held by one driver at a time, emptied for a new start, and the list of its sessions."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from eval.driver import evaluate
from eval.driver.settings import Settings
from eval.errors import EvaluationError
from eval.results import fingerprint
from eval.results.answers import reason


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder; a second driver on it is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / "lock", "w")
    except OSError as error:
        raise EvaluationError(
            f"run folder {folder} cannot be written: {reason(error)}; choose another --runs", "batch"
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaluationError(
                f"the same run is going on in another process (folder {folder}): let it finish"
            ) from None
        yield


def empty(folder: Path) -> None:
    """Remove everything but the lock."""
    for entry in folder.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def note_session(settings: Settings) -> None:
    """Append this start to sessions.json: which code and how many processes gave which answers."""
    file = settings.folder / "sessions.json"
    sessions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    commit, dirty = fingerprint.git_state()
    stored = sum(f.read_bytes().count(b"\n") for f in settings.folder.glob("answers-*.jsonl"))
    sessions.append(
        {"date": now(), "commit": commit, "dirty": dirty, "processes": settings.processes, "stored": stored}
    )
    evaluate.write_whole(file, json.dumps(sessions, indent=1))


def now() -> str:
    """The time in UTC, as rows hold it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
