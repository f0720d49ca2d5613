"""One question as a LLaVA takes it: made in one place, used by plain answering and by shared prefixes alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eval.errors import EvaluationError
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from visiondrop.errors import VisionDropError

# How benchmarks ask for short answers: no part of the question for a method that reads it before the language model does.
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


def bare(text: str) -> str:
    """A benchmark's text without placeholders and closing instruction, as CDPruner's authors hand it over."""
    text = text.replace(DEFAULT_IMAGE_TOKEN, " ").strip()
    for instruction in INSTRUCTIONS:
        text = text.removesuffix(instruction).rstrip()
    return text


@dataclass(frozen=True)
class Request:
    """A question and its pictures.

    Attributes:
        document: what it is about, for sentences.
        images: PIL images, decoded, and video files.
        ids: of the whole prompt, with one placeholder for each image and for each frame of a video.
        prepare: pixel values of one of `images`.
    """

    document: str
    images: list[Any]
    ids: list[int]
    prepare: Callable[[Any], Tensor]

    @property
    def sizes(self) -> list[tuple[int, int] | None]:
        """(width, height) of every image, None of a video."""
        return [getattr(image, "size", None) for image in self.images]

    @cached_property
    def pixels(self) -> list[Tensor]:
        """Pixel values at the model's dtype on its device, image by image: [3, H, W], [crops, 3, H, W] or, of a video,
        [3, frames, H, W].

        Raises:
            EvaluationError: an image cannot be used.
        """
        try:
            return [self.prepare(image) for image in self.images]
        except VisionDropError as error:
            raise EvaluationError(f"an image of {self.document}: {error}") from error

    @property
    def before(self) -> list[int]:
        """Ids up to and including the last image; none without one."""
        return self.ids[: self._end]

    @property
    def behind(self) -> list[int]:
        """Ids after the last image."""
        return self.ids[self._end :]

    @cached_property
    def _end(self) -> int:
        return max((i + 1 for i, token in enumerate(self.ids) if token == IMAGE_TOKEN_INDEX), default=0)


def pictures(requests: Sequence[Request]) -> dict[str, Any]:
    """`images` and `image_sizes` of the model for a batch: [N, 3, H, W], a list where shapes differ or a video is among
    them, or None without images.
    """
    every = [pixels for request in requests for pixels in request.pixels]
    sizes = [size for request in requests for size in request.sizes]
    alike = len({pixels.shape for pixels in every}) == 1 and None not in sizes
    return {"images": torch.stack(every) if alike else every or None, "image_sizes": sizes}
