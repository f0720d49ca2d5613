"""Where the checkout lies, and how files are written: whole or not at all, with the reason in plain words."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError, reach_of
from visiondrop.errors import closest

ROOT = Path(__file__).resolve().parents[1]


def reason(error: OSError) -> str:
    """The cause of a failed write in plain words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return (error.strerror or str(error)).lower()


def write_whole(path: Path, text: str) -> None:
    """Write through a temporary file, so that a file of this name is always complete.

    Raises:
        EvaluationError: the disk is full or the folder cannot be written.
    """
    part = path.with_suffix(path.suffix + ".part")
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EvaluationError(
            f"cannot write {path}: {reason(error)}; nothing is lost, make room and start the same command again",
            reach_of(error),
        ) from None
    part.replace(path)


def write_fully(descriptor: int, data: bytes) -> None:
    """Write all of `data` and force it to the disk; on failure cut the file back to where it was and raise OSError."""
    start = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)
        raise


def check_keys(entry: dict[str, Any], allowed: Iterable[str], where: str, required: Iterable[str] = ()) -> dict:
    """The entry of a file of configs/, when it has no unknown and no missing key.

    Args:
        where: file and place, for the sentence.

    Raises:
        EvaluationError: a key is unknown or missing.
    """
    known = sorted(allowed)
    wrong = [f"unknown key {key!r}; {closest(key, known)}" for key in entry if key not in known]
    wrong += [f"missing key {key!r}" for key in sorted(set(required) - set(entry))]
    if wrong:
        raise EvaluationError(f"{where}: {', '.join(wrong)}; keys are explained at the top of the file")
    return entry
