"""Opening a checkpoint of the table's families, by folder or hub id, with its processor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..compat import Model
from ..errors import VisionDropError
from ..plans.shape import VisualShape
from .processors import load_processor
from .registry import adapter_for
from .table import family_of
from .views import View, view

QUESTION = "{question}"


def served_here(path: str) -> bool:
    """Whether a checkpoint is one of the table's families; False where its configuration cannot be had."""
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception:  # other loaders have their own words for what is missing
        return False
    return family_of(str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type))) is not None


def template(processor: Any) -> tuple[str, str]:
    """(text up to the picture's placeholder, text after it with `{question}`) of the processor's own chat template."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    token = processor.image_token
    before, found, behind = text.partition(token)
    if not found or token in behind or QUESTION not in behind:
        raise VisionDropError(
            f"the chat template of {type(processor).__name__} does not put one picture, {token!r}, before the question; give "
            "inputs that the processor has made to the model itself"
        )
    return before + token, behind


def put_before(processor: Any, image: Any, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    """(the model's arguments for a picture and what stands before it, the text after it with `{question}`)."""
    before, behind = template(processor)
    return _made(processor, image, before, device, dtype), behind


def _made(processor: Any, image: Any, text: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = dict(processor(images=[image], text=[text], return_tensors="pt"))
    return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}


@dataclass
class HubLoaded:
    """A checkpoint with its processor; made by `load`."""

    model: Model
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.processor.tokenizer

    def inputs(self, image: Any, question: str) -> dict[str, Any]:
        """Arguments of `generate` for one question about one PIL image, in the processor's own chat template.

        Raises:
            VisionDropError: frames of a video.
        """
        if isinstance(image, np.ndarray):
            raise VisionDropError(
                f"a video for {type(self.model).__name__}: give a picture here, or inputs that the processor has made of the "
                "video to the model itself"
            )
        before, behind = template(self.processor)
        text = before + behind.replace(QUESTION, question)
        return _made(self.processor, image, text, self.model.device, self.model.dtype)

    def seen(self, inputs: dict[str, Any]) -> View | None:
        """The picture of `inputs` as the tower sees it and its grid of tokens; None where there is no grid."""
        return view(self.model, self.processor, inputs)

    def generate(self, inputs: dict[str, Any], **settings: Any) -> Tensor:
        """[B, new] the ids that were generated after the prompts."""
        return self.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]

    def text(self, ids: Tensor) -> str:
        """The answer that new ids [new] spell."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load(path: str, dtype: torch.dtype) -> HubLoaded:
    """Open a checkpoint on the accelerator, or on the CPU where there is none."""
    device = "auto" if torch.cuda.is_available() else None
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, device_map=device)
    return HubLoaded(model.eval(), load_processor(path))


def shape_of(path: str) -> VisualShape:
    """An ordinary image of a checkpoint, without its weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
    return adapter_for(model).shape()
