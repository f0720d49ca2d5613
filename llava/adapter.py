"""Our own `llava/` classes: their modeling files call the stages themselves, so there is nothing to hook."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llava import geometry
from llava.checkpoints.read import read_checkpoint
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.mm_utils import get_model_name_from_path, open_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.prompts import prompt_of
from llava.static.generate import StaticGenerator
from llava.video import MEAN, STD, read_frames, video_pixels
from llava.video import size_of as size_of_video
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.families import loading, register
from visiondrop.families.views import View, pictures
from visiondrop.plans.flops import ModelDims
from visiondrop.plans.shape import VisualShape
from visiondrop.shipped import shipped
from visiondrop.tower.clip_text import published


@register("LlavaLlamaForCausalLM")
class NativeAdapter:
    """Attaches a pruner to a `LlavaLlamaForCausalLM`."""

    def __init__(self, model: nn.Module):
        self.model = model

    def shape(self) -> VisualShape:
        """An ordinary image of this model."""
        return self.model.visual_shape()

    def clip(self) -> str | None:
        """The CLIP that the tower came from, as the checkpoint names it; Video-LLaVA's towers have other partners."""
        if self.model.get_video_tower() is not None:
            return None
        return self.model.config.mm_vision_tower or published(self.model.config.vision_config)

    def dims(self) -> ModelDims:
        """The model's dimensions."""
        return geometry.dims(self.model.config, self.model.config.name_or_path or type(self.model).__name__)

    def attach(self, pruner) -> Callable[[], None]:
        """Hand the pruner to the stack and the towers; returns the undo."""
        places = [self.model.model, *self.model.vision_towers()]

        def put(value) -> None:
            for place in places:
                place.pruner = value

        put(pruner)

        def undo() -> None:
            put(None)
            self.model.__dict__.pop("static", None)  # the class says None

        return undo

    def check_encoder_score(self, wanted: str) -> str:
        """Refused: the papers say what ranks patches here."""
        raise UnsupportedError(
            f"encoder_score={wanted!r}: in LLaVA's towers patches are ranked as the papers say, by [CLS] where there is one; "
            "leave it out"
        )

    def compile(self) -> None:
        """Let `generate` run with static shapes under the method that is attached, until it is undone."""
        self.model.static = StaticGenerator(self.model)

    def inputs(self, ids: list[int], image: Any, processor: Any = None) -> dict[str, Any]:
        """Arguments of a forward pass over `ids` and, after them, one image.

        Args:
            image: a PIL image, or preprocessed pixels [3, H, W] (or [1, 3, H, W]; a video [3, frames, H, W]).
            processor: the model's image processor; by default the one its loader set.
        """
        model, pixels, size = self.model, image, None
        if not isinstance(image, Tensor):
            processor = processor or model.get_vision_tower().image_processor
            if processor is None:
                raise VisionDropError("encode needs image_processor= for a picture (load_pretrained_model returns it)")
            image = open_image(image)
            pixels, size = process_images([image], processor, model.config), [image.size]
            pixels = pixels if isinstance(pixels, Tensor) else pixels[0]
        pixels = pixels.to(model.device, model.dtype)
        pixels = pixels[None] if pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[0] != 1) else pixels
        shape = model.pictures(pixels, size)[0].shape
        holes = [IMAGE_TOKEN_INDEX] * (shape.units if shape.kind == "video" else 1)  # a video has one for every frame
        return {
            "input_ids": torch.tensor([[*ids, *holes]], device=model.device),
            "images": pixels,
            "image_sizes": size,
        }


@dataclass
class Loaded:
    """A checkpoint with what turns pictures and questions into its inputs; made by `load`."""

    model: nn.Module
    tokenizer: Any
    image_processor: Any

    @property
    def videos(self) -> bool:
        """Whether the model takes videos."""
        return self.model.get_video_tower() is not None

    def inputs(self, image: Any, question: str) -> dict[str, Any]:
        """Arguments of `generate` for one question about one picture, in the checkpoint's conversation template.

        Args:
            image: a PIL image, or a video's frames, uint8 [frames, H, W, 3] (`open_video`).

        Raises:
            VisionDropError: a video for a model that takes none.
        """
        prompt, device = prompt_of(self.model.config, question), self.model.device
        if isinstance(image, np.ndarray):
            if not self.videos:
                raise VisionDropError("this model takes pictures and no videos: give a picture, or a model for videos")
            prompt = prompt.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN * len(image))
            pixels, sizes = [video_pixels(image).to(device, self.model.dtype)], None
        else:
            pixels = process_images([image], self.image_processor, self.model.config)
            pixels, sizes = [p.to(device, self.model.dtype) for p in pixels], [image.size]
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")[None]
        return {"input_ids": ids.to(device), "images": pixels, "image_sizes": sizes}

    def seen(self, inputs: dict[str, Any]) -> View:
        """The crops or frames of `inputs` as the tower sees them, in the order in which patch ids count them; their grid."""
        pixels, side = inputs["images"][0], self.model.get_vision_tower().num_patches_per_side
        video = self.videos and pixels.ndim == 4
        mean, std = (MEAN, STD) if video else (self.image_processor.image_mean, self.image_processor.image_std)
        units = pixels.transpose(0, 1) if video else pixels if pixels.ndim == 4 else pixels[None]
        return pictures(units, mean, std), (side, side)

    def generate(self, inputs: dict[str, Any], **settings: Any) -> Tensor:
        """[B, new] the ids that were generated after the prompts."""
        return self.model.generate(**inputs, **settings)

    def text(self, ids: Tensor) -> str:
        """The answer that new ids [new] spell."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load(path: str, dtype: torch.dtype) -> Loaded | loading.HubLoaded:
    """Open a checkpoint folder or hub id, of LLaVA or of a family of transformers (docs/models.md).

    On the accelerator, or on the CPU where there is none.
    """
    path = shipped(path)
    if loading.served_here(path):
        return loading.load(path, dtype)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        path, None, get_model_name_from_path(path), device_map="auto", torch_dtype=dtype
    )
    return Loaded(model, tokenizer, image_processor)


def open_video(source: Any) -> np.ndarray:
    """uint8 [frames, H, W, 3], the frames of a video that are shown to the model.

    Args:
        source: a path, the bytes of a file, or an open binary file.
    """
    return read_frames(source)


def shape_of(path: str) -> VisualShape:
    """An ordinary image of a checkpoint, without building its model: the weights stay on the disk.

    Raises VisionDropError for what is missing or damaged in the folder.
    """
    path = shipped(path)
    if loading.served_here(path):
        return loading.shape_of(path)
    return geometry.visual_shape(read_checkpoint(path).config)


__all__ = ["Loaded", "NativeAdapter", "load", "open_image", "open_video", "prompt_of", "shape_of", "size_of_video"]
