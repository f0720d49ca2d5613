"""The versions this package was tested with, checked once at import."""

from importlib import metadata

OLDEST, NEWEST = (5, 17), (5, 24)  # transformers: cache and mask interfaces agree in this range


def check_versions() -> None:
    """Refuse a missing or unsupported transformers, or a broken torchvision, in one sentence."""
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        raise ImportError("visiondrop needs transformers 5.17 … 5.24; run: pip install -r requirements.txt") from None
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < OLDEST:
        raise ImportError(
            f"visiondrop needs transformers 5.17 … 5.24 and found {version}; run: pip install 'transformers>=5.17,<5.25'"
        )
    if found > NEWEST:
        import warnings

        warnings.warn(
            f"visiondrop was tested with transformers 5.17 … 5.24, found {version}; if results look wrong, run: "
            "pip install 'transformers<5.25'",
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
