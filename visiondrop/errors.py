"""The one exception family of the package: each message says what was received, what is allowed and the fix."""


class VisionDropError(ValueError):
    """A request that cannot be served as asked; the message is a sentence for the person who asked."""


class UnsupportedError(VisionDropError):
    """A combination that would be computed wrongly, and is therefore refused."""
