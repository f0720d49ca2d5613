"""One small file per model family: where its stack and tower are, and how pruning is attached to them."""

from importlib import import_module

from torch import nn

from ..errors import VisionDropError


def adapter_for(model: nn.Module):
    """The adapter of `model`, or an error that names the supported classes."""
    name = type(model).__name__
    if hasattr(model, "visual_shape") and hasattr(model, "get_vision_tower"):
        from .native import NativeAdapter

        return NativeAdapter(model)
    hub = {
        "LlavaForConditionalGeneration": ("hub_llava", "HubLlavaAdapter"),
        "LlavaNextForConditionalGeneration": ("hub_llava_next", "HubLlavaNextAdapter"),
        "VideoLlavaForConditionalGeneration": ("hub_video_llava", "HubVideoLlavaAdapter"),
    }
    if name in hub:
        module, adapter = hub[name]
        return getattr(import_module(f"{__name__}.{module}"), adapter)(model)
    raise VisionDropError(
        f"no adapter for {name}: supported are llava's LlavaLlamaForCausalLM and transformers' {', '.join(hub)}"
    )
