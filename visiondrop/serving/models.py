"""vLLM's LLaVA classes with pruning between their vision tower and their language model.  Needs vLLM."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder, LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.vision import is_vit_use_data_parallel
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..plans.plan import Plan
from ..tower.stage import Eyes, encode
from ..tower.units import Picture, by_shape
from .entry import enter
from .images import Images
from .processor import PrunedLlavaInfo, PrunedLlavaNextInfo, PrunedLlavaNextProcessor, PrunedLlavaProcessor
from .settings import NAME, Setting
from .tower import Tower, watched

VllmModel: Any = object  # the class of vLLM that stands behind `Pruned`


class Pruned(VllmModel):
    """Placed before a model class of vLLM.

    Attributes:
        images: shapes and plans of its pictures.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        self.images = Images(vllm_config.model_config.hf_config)  # before the weights: a wrong setting ends here
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.split_tower = get_tensor_model_parallel_world_size() > 1 and not is_vit_use_data_parallel()

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The rows of every image that enter the language model, images of one setting together."""
        rows = kwargs.pop(NAME, None)
        pixels = kwargs.get("pixel_values")
        if rows is None or pixels is None:
            return super().embed_multimodal(**kwargs)
        settings = [Setting.from_row(row) for row in rows]
        out: list[Tensor | None] = [None] * len(settings)
        for setting in dict.fromkeys(settings):
            at = [i for i, one in enumerate(settings) if one == setting]
            own = {name: _some(value, at) for name, value in kwargs.items() if value is not None}
            for i, found in zip(at, self._embed(setting, own), strict=True):
                out[i] = found
        return out

    def _embed(self, setting: Setting, images: dict[str, Any]) -> Sequence[Tensor]:
        """Images of one setting."""
        if setting.method == "none":
            return list(super().embed_multimodal(**images))
        pictures = self.images.adapter.pictures(images)
        out: dict[int, Tensor] = {}
        for shape, at in by_shape(pictures):
            plan, own = self.images.plan(setting, shape), [pictures[i] for i in at]
            if plan.encoder is not None:
                rows = self._encoded(setting, plan, own)
            else:
                rows = list(super().embed_multimodal(**{name: _some(value, at) for name, value in images.items()}))
            seeds = [self.images.pruner(setting).seed_of(p.pixels) for p in own]
            out |= dict(zip(at, enter(plan, rows, seeds), strict=True))
        return [out[i] for i in range(len(pictures))]

    def _encoded(self, setting: Setting, plan: Plan, pictures: Sequence[Picture]) -> Sequence[Tensor]:
        """Tower, encoder stage and projector for pictures of one shape."""
        vision = self.vision_tower.vision_model
        gather = _gathered if self.split_tower else _as_it_is
        tower = Tower(vision, self.config.vision_config.num_attention_heads, watched(plan), gather)
        newline: Any = getattr(self, "image_newline", None)
        eyes = Eyes(tower, plan.shape.feature_layer + 1, self.multi_modal_projector, newline)
        pruner, ordinals = self.images.pruner(setting), list(range(len(pictures)))
        return encode(pruner, eyes, pictures, ordinals, len(pictures)).rows


def _gathered(rows: Tensor) -> Tensor:
    """[U, R, h * E] of this process's heads -> [U, R, H * E] of all; a part of a fused projection is not contiguous."""
    return tensor_model_parallel_all_gather(rows.contiguous())


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _some(value: Any, at: Sequence[int]) -> Any:
    """The images `at` of a batched argument."""
    if isinstance(value, Tensor):
        return value if len(at) == len(value) else value[torch.tensor(at, device=value.device)]
    return [value[i] for i in at]


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaProcessor, info=PrunedLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VisionDropLlavaForConditionalGeneration(Pruned, LlavaForConditionalGeneration):
    """LLaVA-1.5."""


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaNextProcessor, info=PrunedLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VisionDropLlavaNextForConditionalGeneration(Pruned, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""
