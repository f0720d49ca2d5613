"""One adapter per model family: where its stack and tower are, and how pruning is attached to them."""

from .dynamic import DynamicAdapter, serve
from .llava import HubLlavaAdapter
from .llava_next import HubLlavaNextAdapter
from .registry import adapter_for, loader, register
from .table import FAMILIES
from .video_llava import HubVideoLlavaAdapter

for _family in FAMILIES:
    serve(_family)

__all__ = [
    "DynamicAdapter",
    "HubLlavaAdapter",
    "HubLlavaNextAdapter",
    "HubVideoLlavaAdapter",
    "adapter_for",
    "loader",
    "register",
    "serve",
]
