"""The error of the evaluation driver, and how far it reaches in a batch of runs."""

import errno

from visiondrop.errors import VisionDropError

REACHES = ("run", "benchmark", "batch")  # only this run; every run of this benchmark; every later run


class EvaluationError(VisionDropError):
    """A run that cannot start, go on or be recorded; the message says what was met and what to do.

    Attributes:
        reach: how far it reaches, one of `REACHES`: a batch of runs leaves out what would meet the same error again.
    """

    def __init__(self, message: str, reach: str = "run"):
        super().__init__(message)
        self.reach = reach


def reach_of(error: BaseException) -> str:
    """How far an error reaches; of those that do not say so, a disk that is full or read-only reaches the batch."""
    if isinstance(error, OSError):
        return "batch" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "run"
    return getattr(error, "reach", "run")
