"""Answers kept as they come: an append-only file per process, so that a killed run loses at most the batch in flight.

A line is one answer, {"key", "doc_id", "answer", "check"}: `key` names the question (document, prompt and generation
settings), `check` is a CRC-32 of the other three.  A torn or damaged line is dropped and its question asked again.
lmms-eval itself keeps nothing until a run ends.

No sqlite3: under kill -9 of two writers neither lost an acknowledged answer (8 trials each), but the log stores batches
about three times as fast, and SQLite's write-ahead log does not work on the network file systems that several machines share.
"""

import fcntl
import hashlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError, reach_of
from eval.files import reason, write_fully


def question_key(doc_id: int, prompt: str, settings: dict[str, Any]) -> str:
    """32 hex digits that name one question of a task: its document, prompt and generation settings."""
    text = json.dumps([doc_id, prompt, settings], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check(key: str, doc_id: int, answer: str) -> int:
    return zlib.crc32(json.dumps([key, doc_id, answer], ensure_ascii=False).encode())


def _encode(key: str, doc_id: int, answer: str) -> bytes:
    line = {"key": key, "doc_id": doc_id, "answer": answer, "check": _check(key, doc_id, answer)}
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _decode(line: bytes) -> tuple[str, str] | None:
    try:
        record = json.loads(line)
        if record["check"] != _check(record["key"], record["doc_id"], record["answer"]):
            return None
        return record["key"], record["answer"]
    except (ValueError, KeyError, TypeError):
        return None


class AnswerStore:
    """The answers of one run folder; this process appends to its own file and reads those of all processes.

    Attributes:
        dropped: damaged lines that were met; their questions are asked again.
        added: answers stored by this process since it was opened.
    """

    def __init__(self, folder: Path, rank: int = 0, patience: float = 10.0):
        """Read what is there and take this rank's file for writing.

        Args:
            patience: seconds to wait for another writer; the processes of a killed run need about one to notice.

        Raises:
            EvaluationError: the folder cannot be written, or another process holds the file.
        """
        self.folder, self.path = Path(folder), Path(folder) / f"answers-{rank}.jsonl"
        self.dropped, self.added = 0, 0
        self._answers: dict[str, str] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise EvaluationError(
                f"cannot write answers to {self.path}: {reason(error)}; choose another --runs", "batch"
            ) from None
        self._lock(patience)
        self._cut_torn_line()
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            self._read(path)

    def _lock(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    os.close(self._file)
                    raise EvaluationError(
                        f"{self.path} is being written by another process: let it finish or stop it"
                    ) from None
                time.sleep(0.1)

    def _cut_torn_line(self) -> None:
        """Remove what follows the last newline: a line that a killed process did not finish."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self.dropped += 1
            os.ftruncate(self._file, whole)

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        for line in lines[:-1]:
            entry = _decode(line)
            if entry is None:
                self.dropped += 1
            else:
                self._answers.setdefault(*entry)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The stored answer, or None."""
        return self._answers.get(key)

    def add(self, answers: list[tuple[str, int, str]]) -> None:
        """Store (key, doc_id, answer) of one batch; they are on the disk when this returns.  A known key is ignored.

        Raises:
            EvaluationError: they could not be written; the file holds exactly what it held before.
        """
        new = {key: (key, doc_id, answer) for key, doc_id, answer in answers if key not in self._answers}
        if not new:
            return
        try:
            write_fully(self._file, b"".join(_encode(*entry) for entry in new.values()))
        except OSError as error:
            raise EvaluationError(
                f"cannot store answers in {self.path}: {reason(error)}; the {len(self)} answers stored so far "
                "are safe, make room and start the same command again",
                reach_of(error),
            ) from None
        self._answers.update((key, answer) for key, _, answer in new.values())
        self.added += len(new)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)
