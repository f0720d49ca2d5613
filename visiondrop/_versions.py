"""The version of this package, and the versions it was tested with."""

from importlib import metadata

__version__ = "0.2.0"
OLDEST, NEWEST = (5, 17), (5, 24)  # transformers: cache and mask interfaces agree in this range
RANGE = f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"
_RANGE_IN_WORDS = f"{OLDEST[0]}.{OLDEST[1]} … {NEWEST[0]}.{NEWEST[1]}"


def _found(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def transformers_problem() -> str | None:
    """Why the installed transformers cannot be used, or None."""
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return f"visiondrop needs transformers {_RANGE_IN_WORDS}; run: pip install 'transformers{RANGE}'"
    if _found(version) < OLDEST:
        return f"visiondrop needs transformers {_RANGE_IN_WORDS} and found {version}; run: pip install 'transformers{RANGE}'"
    return None


def check_versions() -> None:
    """Refuse a missing or unsupported transformers, or a broken torchvision, in one sentence.

    Raises:
        ImportError: with that sentence.
    """
    problem = transformers_problem()
    if problem is not None:
        raise ImportError(problem)
    version = metadata.version("transformers")
    if _found(version) > NEWEST:
        import warnings

        warnings.warn(
            f"visiondrop was tested with transformers {_RANGE_IN_WORDS}, found {version}; if results look wrong, run: "
            f"pip install 'transformers{RANGE}'",
            stacklevel=3,
        )
    check_torchvision()


def check_torchvision() -> None:
    """A torchvision built for another torch makes every model class of transformers fail to import."""
    try:
        metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        raise ImportError(
            f"the installed torchvision does not fit this torch ({error}); run: pip uninstall -y torchvision timm"
        ) from error
