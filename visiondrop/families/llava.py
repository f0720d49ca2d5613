"""transformers' `LlavaForConditionalGeneration`: the encoder stage stands between its tower and its projector.

Each image keeps its block of placeholders; the m rows that survive stand first, the rest are zero and are dropped on
entry of the stack.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..compat import Model
from ..errors import UnsupportedError, VisionDropError
from ..plans.flops import ModelDims, model_dims
from ..plans.shape import VisualShape, feature_layer
from ..stack.layout import Image
from ..tower.clip_text import published
from ..tower.stage import Eyes, encode
from ..tower.units import Picture, by_shape, tower_ids
from .hooks import HubAdapter
from .registry import register


@register("LlavaForConditionalGeneration")
class HubLlavaAdapter(HubAdapter):
    """Attaches a pruner to one `LlavaForConditionalGeneration`."""

    def __init__(self, model: Model):
        super().__init__(model)
        self.tower = self._tower()

    def _tower(self) -> Model:
        tower = self.inner.vision_tower
        return getattr(tower, "vision_model", tower)

    def feature_calls(self) -> dict[str, Callable]:
        """The encoder stage, around `get_image_features`."""
        return {"get_image_features": self._wrap_features(self.inner.get_image_features)}

    @property
    def has_cls(self) -> bool:
        """CLIP towers have [CLS], SigLIP towers do not."""
        return hasattr(self.tower.embeddings, "class_embedding")

    def shape(self) -> VisualShape:
        """An ordinary image of this model."""
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        extra = int(self.has_cls and config.vision_feature_select_strategy == "full")
        return VisualShape(
            layers=config.text_config.num_hidden_layers,
            patches=patches,
            length=patches + extra if extra else 0,
            cls=self.has_cls,
            **self.tower_facts(),
        )

    def describe(self, size: tuple[int, int]) -> Picture:
        """A picture of `size` (height, width), before it is encoded: every one becomes the same square."""
        shape = self.shape()
        return Picture(shape, ids=tower_ids(1, shape.patches, cls=True) if shape.tokens > shape.patches else None)

    def tower_facts(self) -> dict[str, Any]:
        """What a shape says of the tower's layers."""
        config = self.model.config
        layers, select = config.vision_config.num_hidden_layers, config.vision_feature_layer
        last = select if isinstance(select, int) else select[-1]  # several are refused by the encoder stage
        return {"tower_layers": layers, "feature_layer": feature_layer(layers, last)}

    def clip(self) -> str | None:
        """The CLIP that the tower came from: the hub's checkpoints have dropped its name."""
        return published(self.model.config.vision_config) if self.has_cls else None

    def dims(self) -> ModelDims:
        """The model's dimensions."""
        config = self.model.config
        name = config.name_or_path or type(self.model).__name__
        return model_dims(name, config.text_config, config.vision_config, int(self.has_cls))

    def check_encoder_score(self, wanted: str) -> str:
        """Refused: the papers say what ranks patches here."""
        raise UnsupportedError(
            f"encoder_score={wanted!r}: in LLaVA's towers patches are ranked as the papers say, by [CLS] where there is one; "
            "leave it out"
        )

    def inputs(self, ids: list[int], image: Any, processor: Any = None) -> dict[str, Any]:
        """Arguments of a forward pass over `ids` and, after them, one image.

        Args:
            image: anything `processor` takes, or preprocessed pixels [3, H, W] (or [1, 3, H, W]).
            processor: the model's image processor.
        """
        if type(self) is not HubLlavaAdapter:
            raise UnsupportedError(
                f"encode does not lay out prompts of {type(self.model).__name__}; use reuse.prefix.encode_prefix with "
                "its processor's inputs"
            )
        if not isinstance(image, Tensor):
            if processor is None:
                raise VisionDropError("encode needs image_processor= for a picture (processor.image_processor)")
            image = processor(images=image, return_tensors="pt")["pixel_values"]
        pixels = image if image.ndim == 4 else image[None]
        visual = [self.model.config.image_token_id] * self.shape().tokens
        return {
            "input_ids": torch.tensor([ids + visual], device=self.model.device),
            "pixel_values": pixels.to(self.model.device, self.model.dtype),
        }

    def pictures(self, arguments: dict) -> list[Picture]:
        """The images of a call of `get_image_features` with these arguments."""
        picture = self.describe((0, 0))
        return [replace(picture, pixels=p[None]) for p in arguments["pixel_values"]]

    def _wrap_features(self, stock):
        signature = inspect.signature(stock)

        @functools.wraps(stock)  # generate routes arguments by the signature
        def get_image_features(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            pictures = self._asked(self.pictures(arguments), self.model.config.image_token_id)
            self.now.pixels = self._given(arguments)
            if any(self.pruner.plan_for(p.shape).encoder for p in pictures):
                output, self.now.images = self._encode(pictures, self.tower, arguments.get("vision_feature_layer"))
            else:
                output = stock(*args, **kwargs)
                self.now.images = [Image(p.shape, p.ids, self.pruner.seed_of(p.pixels)) for p in pictures]
            self._check_places(*self._kinds()[0])
            return output

        return get_image_features

    def _asked(self, pictures: list[Picture], token: int) -> list[Picture]:
        """With their questions, where an encoder stage reads them and the prompts say them; `token`: their placeholder."""
        prompts, reader = self.now.prompts, self.pruner.reader
        if self.pruner.plan.question is None or prompts is None or reader.tokenizer is None:
            return pictures
        blocks = [p.shape.tokens for p in pictures]
        repeat = sum(row.count(token) for row in prompts) // max(1, sum(blocks)) or 1  # beams show the same pictures
        found = reader.read(prompts[::repeat], {token}, blocks)
        return [replace(p, question=text) for p, text in zip(pictures, found)]

    def _encode(
        self, pictures: list[Picture], tower: Model, select_layer: Any, first: int = 0
    ) -> tuple[Any, list[Image]]:
        """The tower up to its feature layer, the encoder stage, the projector; slots beyond the kept rows are zero.

        Args:
            tower: a vision transformer; first: ordinal of the first picture in the batch.

        Returns:
            (output whose `pooler_output` has one [tokens, D] block per picture, the layout's account of each).
        """
        select_layer = self.model.config.vision_feature_layer if select_layer is None else select_layer
        if not isinstance(select_layer, int):
            raise UnsupportedError(f"vision_feature_layer={select_layer}: the encoder stage needs one feature layer")
        eyes = Eyes(tower, select_layer, self.inner.multi_modal_projector, getattr(self.inner, "image_newline", None))
        blocks: Any = [None] * len(pictures)
        images: list[Any] = [None] * len(pictures)
        for shape, ordinals in by_shape(pictures):
            group = [pictures[i] for i in ordinals]
            self._check_room(shape)
            places = [first + i for i in ordinals]
            found = encode(self.pruner, eyes, group, places, first + len(pictures))
            packed = self.pruner.plan_for(shape).packed
            for k, i in enumerate(ordinals):
                rows, origin = found.rows[k], None if found.ids is None else found.ids[k]
                blocks[i] = torch.cat([rows, rows.new_zeros(shape.tokens - len(rows), rows.shape[1])])
                seed = self.pruner.seed_of(pictures[i].pixels)
                images[i] = Image(shape, origin, seed, entered=len(rows) if packed else None)
        return BaseModelOutputWithPooling(last_hidden_state=found.hidden, pooler_output=blocks), images

    def _check_room(self, shape: VisualShape) -> None:
        """The processor gave an image as many placeholders as it has unpruned tokens; the kept rows must fit."""
        entry = self.pruner.plan_for(shape).entry
        if entry > shape.tokens:
            raise UnsupportedError(
                f"method {self.pruner.method!r} with tokens={self.pruner.tokens} hands {entry} tokens on for an image "
                f"that has only {shape.tokens} unpruned ones (unpadded, {shape.units} crops); use a smaller budget, or "
                "load the checkpoint with llava.model.builder, whose classes make room"
            )
