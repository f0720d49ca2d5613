"""The error of the evaluation driver."""

from visiondrop.errors import VisionDropError


class EvaluationError(VisionDropError):
    """A run that cannot start, go on or be recorded; the message says what was met and what to do."""
