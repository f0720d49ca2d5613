"""One adapter per model family: where its stack and tower are, and how pruning is attached to them."""

from .dynamic import DynamicAdapter
from .llava import HubLlavaAdapter
from .llava_next import HubLlavaNextAdapter
from .registry import adapter_for, loader, register
from .table import FAMILIES
from .video_llava import HubVideoLlavaAdapter

for _family in FAMILIES:
    register(*_family.classes)(type("DynamicAdapter", (DynamicAdapter,), {"family": _family}))

__all__ = [
    "DynamicAdapter",
    "HubLlavaAdapter",
    "HubLlavaNextAdapter",
    "HubVideoLlavaAdapter",
    "adapter_for",
    "loader",
    "register",
]
