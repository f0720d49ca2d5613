"""Training-free visual token pruning for LVLMs: the method VisionDrop, its baselines, and one dial for all of them.

    import visiondrop
    handle = visiondrop.apply(model, method="visiondrop", tokens=64)   # on the model you already run
    print(handle.ledger)
    handle.remove()

Public names are imported when they are first asked for, so that `python -m visiondrop doctor` runs in an environment
in which torch or transformers do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._versions import __version__, check_versions

if TYPE_CHECKING:
    from .api import Handle, apply, plan
    from .errors import UnsupportedError, VisionDropError
    from .methods.registry import available, register
    from .reuse.session import encode

_HOMES = {
    "Handle": "api",
    "apply": "api",
    "plan": "api",
    "UnsupportedError": "errors",
    "VisionDropError": "errors",
    "available": "methods.registry",
    "register": "methods.registry",
    "encode": "reuse.session",
}
__all__ = [
    "Handle",
    "UnsupportedError",
    "VisionDropError",
    "__version__",
    "apply",
    "available",
    "encode",
    "plan",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'visiondrop' has no attribute {name!r}")
    check_versions()
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
