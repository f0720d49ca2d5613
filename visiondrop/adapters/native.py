"""Our own `llava/` classes: their modeling files call the stages themselves, so there is nothing to hook."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..flops import ModelDims
from ..plan import VisualShape


def model_dims(name: str, text, vision, cls: int = 1) -> ModelDims:
    """Widths for FLOPs from a text and a vision configuration."""
    return ModelDims(
        name=name,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        vocab=text.vocab_size,
        kv_share=text.num_key_value_heads / text.num_attention_heads,
        vision_hidden=vision.hidden_size,
        vision_intermediate=vision.intermediate_size,
        vision_layers=vision.num_hidden_layers,
        patch_inputs=3 * vision.patch_size**2,
        cls=cls,
    )


class NativeAdapter:
    """Attaches a pruner to a `LlavaLlamaForCausalLM`."""

    def __init__(self, model: nn.Module):
        self.model = model

    def shape(self) -> VisualShape:
        """An ordinary image of this model."""
        return self.model.visual_shape()

    def dims(self) -> ModelDims:
        """The model's widths."""
        name = self.model.config.name_or_path or type(self.model).__name__
        tower = self.model.vision_towers()[-1].config
        return replace(
            model_dims(name, self.model.config, tower), temporal=bool(getattr(tower, "add_time_attn", False))
        )

    def attach(self, pruner) -> Callable[[], None]:
        """Hand the pruner to the stack and the towers; returns the undo."""
        places = [self.model.model, *self.model.vision_towers()]

        def put(value) -> None:
            for place in places:
                place.pruner = value

        put(pruner)

        def undo() -> None:
            put(None)
            self.model.__dict__.pop("static", None)

        return undo

    def compile(self) -> None:
        """Let `generate` run with static shapes under the method that is attached, until it is undone."""
        from llava.model.graphs import StaticGenerator

        self.model.__dict__["static"] = StaticGenerator(self.model)
