"""One small file per model family: where its stack and tower are, and how pruning is attached to them."""

from torch import nn

from ..errors import VisionDropError


def adapter_for(model: nn.Module):
    """The adapter of `model`, or an error that names the supported classes."""
    name = type(model).__name__
    if hasattr(model, "visual_shape") and hasattr(model, "get_vision_tower"):
        from .native import NativeAdapter

        return NativeAdapter(model)
    if name == "LlavaForConditionalGeneration":
        from .hub_llava import HubLlavaAdapter

        return HubLlavaAdapter(model)
    raise VisionDropError(
        f"no adapter for {name}: supported are llava's LlavaLlamaForCausalLM and transformers' "
        "LlavaForConditionalGeneration"
    )
