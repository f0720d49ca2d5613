"""What vLLM does with a request before the model runs: the setting joins the image's hash, and each image gets as many
placeholders as its plan hands tokens on.  Needs vLLM.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import stack
from transformers import BatchFeature
from vllm.model_executor.models.llava import LlavaMultiModalProcessor, LlavaProcessingInfo
from vllm.model_executor.models.llava_next import LlavaNextMultiModalProcessor, LlavaNextProcessingInfo
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo, PromptReplacement

from ..errors import UnsupportedError
from .images import Images
from .settings import NAME, Setting

UNPRUNED = Setting()


class PrunedInfo(BaseProcessingInfo):
    """What vLLM may ask about a model's images.

    Attributes:
        images: their shapes and plans.
    """

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        self.images = Images(self.get_hf_config())

    def get_hf_processor(self, **kwargs: Any) -> Any:
        """The model's processor with PIL's arithmetic: torchvision's differs in the last bits, on which ties turn."""
        kwargs.pop(NAME, None)
        return super().get_hf_processor(**{"backend": "pil", **kwargs})

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The unpruned count: a request may ask for it, and the tower's memory is needed whatever is kept behind it."""
        return {"image": self.get_max_image_tokens()}


class PrunedLlavaInfo(PrunedInfo, LlavaProcessingInfo):
    """LLaVA-1.5's."""


class PrunedLlavaNextInfo(PrunedInfo, LlavaNextProcessingInfo):
    """LLaVA-NeXT's."""


class PrunedProcessor(BaseMultiModalProcessor[Any]):
    """Placed before a family's own processor."""

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The largest input that there can be: unpruned."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, NAME: UNPRUNED}
        return inputs

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The setting in its canonical spelling takes the place of what the request says, so that it is hashed."""
        setting = inputs.hf_processor_mm_kwargs.get(NAME)
        if not isinstance(setting, Setting):  # which no request can bring
            setting = self.info.images.served.asked(setting)
            self._check(setting, inputs.mm_data_items)
        inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, NAME: setting.text}
        return super().apply(inputs, *args, **kwargs)

    def _check(self, setting: Setting, items: Any) -> None:
        """Refuse what cannot be served before anything is computed."""
        images = items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems)) if "image" in items else ()
        if isinstance(images, ImageEmbeddingItems) and setting.method != "none":
            raise UnsupportedError(
                f"method {setting.method!r} prunes pictures, and this request brings image embeddings: ask for method 'none'"
            )
        self.info.images.plan(setting, self.info.images.shape)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Pixel values, and with every image its setting."""
        plain = {name: value for name, value in hf_kwargs.items() if name != NAME}
        made = super()._call_hf_processor(hf_data, plain)
        if "pixel_values" in made:
            row = Setting.from_text(str(hf_kwargs[NAME])).row()
            made[NAME] = stack([row] * len(made["pixel_values"]))
        return made

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, NAME: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        setting = Setting.from_text(str(hf_processor_mm_kwargs[NAME]))
        if setting.method == "none":
            return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        token = self.info.get_hf_config().image_token_index

        def placeholders(item: int) -> list[int]:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(item)
            plan = self.info.images.plan(setting, self.info.images.describe((size.height, size.width)).shape)
            return [token] * plan.counts[-1]

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]


class PrunedLlavaProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """LLaVA-1.5's."""


class PrunedLlavaNextProcessor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's."""
