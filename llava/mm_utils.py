"""Images and prompts on their way into LLaVA: opening, padding, CLIP preprocessing, tokenising around `<image>`.

Pixels and ids are bit-identical to the original package (https://github.com/haotian-liu/LLaVA, llava/mm_utils.py,
release 1.2.2), whose published numbers come from PIL resizing; `llava.model.builder` therefore loads the PIL variant of
the CLIP processor.
"""

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from transformers import StoppingCriteria

from llava.anyres import process_anyres_image
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from visiondrop.errors import VisionDropError, first_line

# What PIL's decoders raise on damaged data, besides UnidentifiedImageError (an OSError).
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_PLAIN_ASPECT_RATIOS = (None, "square", "original")


def open_image(source: Any) -> Image.Image:
    """An RGB PIL image, upright, whatever was stored.

    source: a path, the bytes of an image file, an open binary file, or a PIL image. Greyscale (8 and 16 bit), CMYK,
    palette and alpha images become RGB, alpha being dropped as in the original; an EXIF orientation is applied.
    Raises VisionDropError for a missing or corrupt file and for a 1x1 image, which holds nothing to look at.
    """
    if isinstance(source, Image.Image):
        name = "the image passed in"
    elif isinstance(source, (str, os.PathLike)):
        name = f"image {os.fspath(source)!r}"
        if not os.path.isfile(source):
            raise VisionDropError(f"There is no file for {name}; check the path.")
    else:
        name = "the image data passed in"
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            source = io.BytesIO(source)
        image = source if isinstance(source, Image.Image) else Image.open(source)
        _load_whole(image)
        image = ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        raise VisionDropError(
            f"Could not decode {name}: it is corrupt, cut short or not an image ({first_line(error)}); replace the "
            "file."
        ) from error
    return _to_rgb(image, name)


def _load_whole(image):
    """Decode `image`, refusing one that is cut short even where a library has told PIL to fill the rest with grey."""
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _to_rgb(image, name="an image"):
    """`image` in mode RGB; an RGB image is returned unchanged. Raises VisionDropError for a 1x1 image."""
    if not isinstance(image, Image.Image):
        raise VisionDropError(
            f"Images must be PIL images, but {name} is a {type(image).__name__}; use llava.mm_utils.open_image."
        )
    if image.width * image.height <= 1:
        raise VisionDropError(
            f"Received {name} with {image.width}x{image.height} pixels, which shows nothing; give one with at least "
            "two pixels."
        )
    if image.mode == "RGB":
        return image
    try:
        if image.mode.startswith("I;16"):  # PIL would clip 16-bit greys at 255 and return a white image
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except _DECODING_ERRORS as error:
        raise VisionDropError(
            f"Could not convert {name} from mode {image.mode} to RGB ({first_line(error)}); save it as an RGB file."
        ) from error


def expand2square(image: Image.Image, background_color: Any) -> Image.Image:
    """`image` centred on a square of its longer side; a square image is returned unchanged.

    background_color: colour of the border in the mode of `image`, for RGB a tuple of three integers 0..255.
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: list[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Pixel values for the vision tower.

    images: list of PIL images; image_processor: a CLIP image processor; model_cfg: a config whose `image_aspect_ratio`
    is "pad" (border in the processor's mean colour up to a square, then resize), "anyres" (LLaVA-NeXT: a base picture
    and crops), or None / "square" / "original" (resize the shorter side and crop the centre).
    Returns float32 [N, 3, H, W], N images in order; for "anyres" [N, crops, 3, H, W], or a list of N tensors where
    their numbers of crops differ.
    """
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    images = [_to_rgb(image) for image in images]
    if not images:
        raise VisionDropError("process_images received an empty list; give at least one image, or leave images out.")
    if aspect_ratio == "pad":
        # int() truncates 122.77 to 122 and so on: the original's border colour.
        background = tuple(int(mean * 255) for mean in image_processor.image_mean)
        images = [expand2square(image, background) for image in images]
    elif isinstance(aspect_ratio, str) and aspect_ratio.startswith("anyres"):
        crops = [process_anyres_image(image, image_processor, model_cfg) for image in images]
        return torch.stack(crops) if len({len(crop) for crop in crops}) == 1 else crops
    elif aspect_ratio not in _PLAIN_ASPECT_RATIOS:
        raise VisionDropError(
            f"Unknown image_aspect_ratio {aspect_ratio!r} in the model's config; allowed are 'pad', 'anyres', 'square' "
            "and 'original'."
        )
    return torch.stack([_clip_pixels(image, image_processor) for image in images])


def _clip_pixels(image, image_processor):
    """float32 [3, H, W] of one RGB image."""
    return image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Token ids of `prompt` with one `image_token_index` per `<image>`.

    The pieces between placeholders are tokenised separately, each from its beginning, as in the original; a
    beginning-of-sequence id that the tokenizer puts before every piece is kept once.
    Returns a list of int, or with return_tensors="pt" a torch.long [N].
    """
    if return_tensors not in (None, "pt"):
        raise VisionDropError(f"Unsupported return_tensors {return_tensors!r}; allowed are None and 'pt'.")
    pieces = [tokenizer(piece).input_ids for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids.append(image_token_index)
        ids.extend(piece[1:] if has_bos else piece)
    return torch.tensor(ids, dtype=torch.long) if return_tensors else ids


def get_model_name_from_path(model_path: str | os.PathLike) -> str:
    """Last part of a path or hub id; a trainer's `checkpoint-N` folder takes its parent's name along
    ("run_checkpoint-N").
    """
    parts = os.fspath(model_path).strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each sequence of a batch once one of `keywords` stands in its newly written text.

    keywords: list of strings; input_ids: the prompt [B, N], accepted because the original takes it. How long the prompt
    is inside `generate` (where a placeholder counts as many positions, or the prompt is not passed at all) is seen at
    the first call, after one new token.
    """

    def __init__(self, keywords: list[str], tokenizer: Any, input_ids: torch.Tensor | None = None):
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self._prompt_length = None
        self._last_length = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """input_ids [B, N] -> bool [B], true where the sequence is finished."""
        length = input_ids.shape[1]
        if self._last_length is None or length <= self._last_length:  # a new call of generate
            self._prompt_length = length - 1
        self._last_length = length
        texts = self.tokenizer.batch_decode(input_ids[:, self._prompt_length :])
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)
