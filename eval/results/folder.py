"""The folder of one run: what its processes and its driver leave there, and who may write.

    answers-<rank>.jsonl   answers as they come (eval/results/answers.py)
    samples.jsonl          one line per question, by document: prompt, answer, target, metrics
    outcome.json           lmms-eval's numbers and the ledger; it exists only when samples.jsonl is whole
    submissions/           upload files, where the benchmark has them
    sessions.json          every start of the run
    failure-<rank>.json    why a process stopped, if it did
    row.json               the finished run's row

`RunFiles` reads a folder that is there; `RunFolder` is the folder of a run that is being done.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from eval import benchmarks, machine
from eval.errors import EvaluationError
from eval.files import reason, write_whole
from eval.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What answering gave.

    Attributes:
        metrics: every number of lmms-eval, and a judge's.
        n: questions; ledger: of the plan in force.
        compile: how the answers were generated: off, on, partly or eager.
        unlike_uniform: share of the ids kept at the end, in the first batch, that a uniform choice of as many would not keep;
            None where no report was made.
        processor: what a wrapper's processor makes of pictures; None for our llava, whose checkpoint says it all.
    """

    metrics: dict[str, float]
    n: int
    ledger: dict[str, Any]
    compile: str = "off"
    processor: dict[str, Any] | None = None
    unlike_uniform: float | None = None

    def row(self) -> dict[str, Any]:
        """The fields of a row that it fills."""
        return asdict(self)


class RunFiles:
    """A run's folder, by its path."""

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """The samples as they are kept: doc_id, doc, target, prompt, answer, metrics."""
        return [json.loads(line) for line in (self.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]

    def samples(self) -> list[dict[str, Any]]:
        """The samples as `eval.scoring.scores` takes them: every metric beside the other fields."""
        return [{**line, **line["metrics"]} for line in self.lines()]

    def row(self) -> dict[str, Any] | None:
        """The row of the finished run, or None."""
        return self._read("row.json")

    def outcome(self) -> Outcome | None:
        """What answering gave, or None before its end."""
        found = self._read("outcome.json")
        return None if found is None else Outcome(**found)

    def sessions(self) -> list[dict[str, Any]]:
        """Every start so far."""
        return self._read("sessions.json") or []

    def _read(self, name: str) -> Any:
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


class RunFolder(RunFiles):
    """The folder of the run that `settings` describe.

    Attributes:
        settings: of the run; benchmark: theirs, looked up once.
    """

    def __init__(self, settings: Settings):
        super().__init__(settings.folder)
        self.settings = settings

    @cached_property
    def benchmark(self) -> benchmarks.Benchmark:
        """The benchmark under the run's protocol."""
        return benchmarks.get(self.settings.benchmark, self.settings.protocol)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second driver on it is refused."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = open(self.path / "lock", "w")
        except OSError as error:
            raise EvaluationError(
                f"run folder {self.path} cannot be written: {reason(error)}; choose another --runs", "batch"
            ) from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise EvaluationError(
                    f"the same run is going on in another process (folder {self.path}): let it finish"
                ) from None
            yield

    def begin(self) -> None:
        """Clear what a new session writes again (answers stay), and note this start in sessions.json."""
        for pattern in ("outcome.json", "failure-*.json", "traceback-*.txt"):
            for file in self.path.glob(pattern):
                file.unlink()
        shutil.rmtree(self.path / "submissions", ignore_errors=True)
        commit, dirty = machine.git_state()
        stored = sum(f.read_bytes().count(b"\n") for f in self.path.glob("answers-*.jsonl"))
        start = {"date": now(), "commit": commit, "dirty": dirty, "processes": self.settings.processes}
        write_whole(self.path / "sessions.json", json.dumps([*self.sessions(), {**start, "stored": stored}], indent=1))

    def empty(self) -> None:
        """Remove everything but the lock."""
        for entry in self.path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def write(self, samples: list[dict[str, Any]], outcome: Outcome) -> None:
        """samples.jsonl, then outcome.json: the second exists only when the first is whole.

        Args:
            samples: as `lines` gives them, by document.
        """
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        write_whole(self.path / "samples.jsonl", "".join(lines))
        write_whole(self.path / "outcome.json", json.dumps(asdict(outcome), ensure_ascii=False, indent=1))

    def finish(self, row: dict[str, Any]) -> None:
        """Keep the run's row: it is finished."""
        write_whole(self.path / "row.json", json.dumps(row, ensure_ascii=False, indent=1))

    def uploads(self) -> list[str]:
        """Upload files below the folder, where the benchmark has them.

        Raises:
            EvaluationError: the task wrote none.
        """
        found = sorted(f.relative_to(self.path).as_posix() for f in self.path.glob(self.benchmark.upload or ""))
        if not found:
            raise EvaluationError(
                f"{self.benchmark.task} wrote no {self.benchmark.upload} in {self.path}; the answers are kept"
            )
        return found


def now() -> str:
    """The time in UTC, as rows hold it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
