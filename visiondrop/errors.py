"""The one exception family of the package: each message says what was received, what is allowed and the fix."""

import functools
import sys
from collections.abc import Callable


class VisionDropError(ValueError):
    """A request that cannot be served as asked; the message is a sentence for the person who asked."""


class UnsupportedError(VisionDropError):
    """A combination that would be computed wrongly, and is therefore refused."""


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
