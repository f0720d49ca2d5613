"""Training-free visual token pruning for LVLMs: the method VisionDrop, its baselines, and one dial for all of them.

import visiondrop
handle = visiondrop.apply(model, method="visiondrop", tokens=64)   # on the model you already run
print(handle.ledger)
handle.remove()
"""

from ._versions import check_versions

check_versions()

from .api import Handle, apply, plan  # noqa: E402
from .errors import UnsupportedError, VisionDropError  # noqa: E402
from .methods.registry import available, register  # noqa: E402
from .reuse.session import encode  # noqa: E402

__version__ = "0.1.0"
__all__ = ["Handle", "UnsupportedError", "VisionDropError", "apply", "available", "encode", "plan", "register"]
