"""The one exception family of the package, and its sentences: what was received, what is allowed and the fix."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class VisionDropError(ValueError):
    """A request that cannot be served as asked; the message is a sentence for the person who asked."""


class UnsupportedError(VisionDropError):
    """A combination that would be computed wrongly, and is therefore refused."""


def closest(name: object, allowed: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the likeliest of the allowed ones, where there is one, and all."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"allowed are {', '.join(allowed) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def command_line(main: Callable[..., int]) -> Callable[..., int]:
    """Decorator of a command line's `main`: what cannot be served ends in `error: <sentence>` on stderr and in exit
    code 2.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except VisionDropError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
