"""Training-free visual token pruning for LVLMs: the method VisionDrop, its baselines, and one dial for all of them.

    import visiondrop
    handle = visiondrop.apply(model, visiondrop.VisionDrop(tokens=64))   # on the model you already run
    print(handle.ledger)
    handle.remove()

Public names are imported when they are first asked for, so that `python -m visiondrop doctor` runs in an environment
in which torch or transformers do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._versions import __version__, check_versions

if TYPE_CHECKING:
    from .advice.run import advise
    from .api import Handle, apply, plan
    from .errors import UnsupportedError, VisionDropError
    from .methods.composed import compose
    from .methods.controls.none import NoPruning
    from .methods.controls.pool import Pool
    from .methods.controls.random import Random
    from .methods.controls.uniform import Uniform
    from .methods.decoder.dart import Dart
    from .methods.decoder.divprune import DivPrune
    from .methods.decoder.fastv import FastV
    from .methods.decoder.pyramiddrop import PyramidDrop
    from .methods.decoder.sparsevlm import SparseVLM
    from .methods.encoder.cdpruner import CDPruner
    from .methods.encoder.flowcut import FlowCut
    from .methods.encoder.hiprune import HiPrune
    from .methods.encoder.holov import HoloV
    from .methods.encoder.prumerge import PruMerge
    from .methods.encoder.prunesid import PruneSID
    from .methods.encoder.scope import Scope
    from .methods.encoder.visionzip import VisionZip
    from .methods.encoder.vispruner import VisPruner
    from .methods.method import Method
    from .methods.options import option
    from .methods.registry import available, parse, register
    from .methods.staged.visiondrop import VisionDrop
    from .methods.staged.vscan import VScan
    from .reuse.session import encode
    from .reuse.store import PrefixStore

_HOMES = {
    "PrefixStore": "reuse.store",
    "Method": "methods.method",
    "option": "methods.options",
    "parse": "methods.registry",
    "compose": "methods.composed",
    "VisionDrop": "methods.staged.visiondrop",
    "VScan": "methods.staged.vscan",
    "VisPruner": "methods.encoder.vispruner",
    "VisionZip": "methods.encoder.visionzip",
    "Scope": "methods.encoder.scope",
    "PruMerge": "methods.encoder.prumerge",
    "Dart": "methods.decoder.dart",
    "PruneSID": "methods.encoder.prunesid",
    "HoloV": "methods.encoder.holov",
    "CDPruner": "methods.encoder.cdpruner",
    "FlowCut": "methods.encoder.flowcut",
    "HiPrune": "methods.encoder.hiprune",
    "DivPrune": "methods.decoder.divprune",
    "FastV": "methods.decoder.fastv",
    "PyramidDrop": "methods.decoder.pyramiddrop",
    "SparseVLM": "methods.decoder.sparsevlm",
    "Pool": "methods.controls.pool",
    "Random": "methods.controls.random",
    "Uniform": "methods.controls.uniform",
    "NoPruning": "methods.controls.none",
    "Handle": "api",
    "advise": "advice.run",
    "apply": "api",
    "plan": "api",
    "UnsupportedError": "errors",
    "VisionDropError": "errors",
    "available": "methods.registry",
    "register": "methods.registry",
    "encode": "reuse.session",
}
__all__ = [
    "CDPruner",
    "DivPrune",
    "Scope",
    "FastV",
    "FlowCut",
    "Dart",
    "Handle",
    "HiPrune",
    "HoloV",
    "Method",
    "NoPruning",
    "Pool",
    "PrefixStore",
    "PruneSID",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "SparseVLM",
    "Uniform",
    "UnsupportedError",
    "VScan",
    "VisPruner",
    "VisionDrop",
    "VisionDropError",
    "VisionZip",
    "__version__",
    "advise",
    "apply",
    "available",
    "compose",
    "encode",
    "option",
    "parse",
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
