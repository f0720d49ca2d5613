"""One adapter per model family: where its stack and tower are, and how pruning is attached to them."""

from .llava import HubLlavaAdapter
from .llava_next import HubLlavaNextAdapter
from .registry import adapter_for, loader, register
from .video_llava import HubVideoLlavaAdapter

__all__ = ["HubLlavaAdapter", "HubLlavaNextAdapter", "HubVideoLlavaAdapter", "adapter_for", "loader", "register"]
