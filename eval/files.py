"""Where the checkout is, fingerprints of files, and how they are written: whole or not at all, with the reason."""

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError, reach_of
from visiondrop.errors import closest

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 64 * 2**20  # files up to this size are hashed whole, larger ones by samples
STEP, SAMPLE = 4 * 2**20, 4096  # every matrix of a 7B model is larger than a step, so each is sampled


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


def of_files(files: list[Path], root: Path) -> str:
    """16 hex digits over names, sizes and contents; of large files, 4 KiB in every 4 MiB are read."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()} {size}\n".encode())
        with open(file, "rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for start in [*range(0, size, STEP), size - SAMPLE]:
                stream.seek(start)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def of_folder(folder: Path, without: tuple[str, ...] = ()) -> str:
    """Fingerprint of all files below a folder, hidden ones and those with a suffix in `without` left out."""
    files = [
        f
        for f in folder.rglob("*")
        if f.is_file() and f.suffix not in without and not any(p.startswith(".") for p in f.relative_to(folder).parts)
    ]
    return of_files(files, folder)
