"""The rows of a run: append-only JSON lines, each with a checksum; what a killed run has finished is not done again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import VisionDropError

SCHEMA = "visiondrop-advise-1"  # unlike rows of benchmarks, which no table mixes with these


def checksum(row: dict[str, Any]) -> str:
    """16 hex digits over a row without its own checksum."""
    body = {k: v for k, v in row.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


class Rows:
    """The rows of one folder.

    Attributes:
        answers, cells, times: by sample; by (sample, setting); by (repeat, setting).
        seconds: spent so far, over all sessions.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.path = folder / "rows.jsonl"
        self.answers: dict[int, dict] = {}
        self.cells: dict[tuple[int, str], dict] = {}
        self.times: dict[tuple[int, str], dict] = {}
        self.seconds, self.certificate = 0.0, None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._load()
            if self.certificate is not None and self.certificate["identity"] != identity:
                changed = [k for k in identity if self.certificate["identity"].get(k) != identity[k]]
                raise VisionDropError(
                    f"--out {folder} holds another run ({', '.join(changed)} differ): choose another folder, or remove it"
                )
            self._file = self.path.open("a", encoding="utf-8")
            if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
                self._file.write("\n")  # a line that a killed run left torn ends here
        except OSError as error:
            raise VisionDropError(f"--out {folder}: cannot be written ({error.strerror or error})") from error

    @classmethod
    def read(cls, folder: Path) -> "Rows":
        """The rows of a folder, whichever run they belong to."""
        first = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0]
        return cls(folder, json.loads(first)["identity"])

    def _load(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            self._take(line)

    def add(self, kind: str, **values: Any) -> None:
        """Append a row; the system has it before this returns, so that killing the process loses none."""
        row: dict[str, Any] = {"schema": SCHEMA, "kind": kind, **values}
        row["checksum"] = checksum(row)
        line = json.dumps(row)
        self._file.write(line + "\n")
        self._file.flush()
        self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            if row["schema"] != SCHEMA or row["checksum"] != checksum(row):
                return
        except (ValueError, KeyError, TypeError):
            return  # torn or changed: it is measured again
        kind = row["kind"]
        self.seconds = max(self.seconds, row.get("seconds", 0.0))
        if kind == "run":
            self.certificate = row
        elif kind == "answer":
            self.answers[row["sample"]] = row
        elif kind == "cell":
            self.cells[row["sample"], row["setting"]] = row
        elif kind == "time":
            self.times[row["repeat"], row["setting"]] = row
