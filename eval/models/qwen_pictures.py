"""Qwen's picture reader without torchvision: what lmms-eval's wrappers ask of qwen-vl-utils, for pictures alone.

torchvision's wheels are built for CUDA and break a CPU environment (docs/installation.md), and qwen-vl-utils imports it.
"""

import base64
import math
from io import BytesIO
from typing import Any

from PIL import Image

from eval.errors import EvaluationError

MERGE, LEAST, MOST = 2, 4, 16384  # qwen-vl-utils 0.0.14: patches per side of a token, tokens of a picture


def process_vision_info(
    conversations: list,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
) -> tuple:
    """The pictures of conversations, sized as qwen-vl-utils does it; (pictures or None, None for videos[, settings])."""
    rows = conversations if conversations and isinstance(conversations[0], list) else [conversations]
    contents = [m["content"] for row in rows for m in row if isinstance(m["content"], list)]
    parts = [part for content in contents for part in content]
    if any("video" in part for part in parts):
        raise EvaluationError(
            "videos need torchvision, which a CPU environment cannot hold: evaluate them on a GPU machine"
        )
    pictures = [_picture(part, image_patch_size * MERGE) for part in parts if "image" in part] or None
    settings = {"do_sample_frames": False, **({} if return_video_metadata else {"fps": []})}
    return (pictures, None, settings) if return_video_kwargs else (pictures, None)


def _picture(part: dict[str, Any], side: int) -> Image.Image:
    """One picture, in RGB, its sides multiples of a token's."""
    image = part["image"]
    if isinstance(image, str):
        image = Image.open(BytesIO(base64.b64decode(image.split("base64,", 1)[1])))
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        image = white
    image, (width, height) = image.convert("RGB"), image.size
    least, most = part.get("min_pixels", LEAST * side**2), part.get("max_pixels", MOST * side**2)
    return image.resize(_sides(width, height, side, least, most))


def _sides(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Width and height as multiples of `side`, of `least` to `most` pixels in all, in about the old proportion."""
    if max(width, height) > 200 * min(width, height):
        raise EvaluationError(f"a picture of {width} x {height}: Qwen's models take sides of at most 200 : 1")
    across, down = (max(side, round(x / side) * side) for x in (width, height))
    if across * down > most:
        scale = math.sqrt(width * height / most)
        across, down = (math.floor(x / scale / side) * side for x in (width, height))
    elif across * down < least:
        scale = math.sqrt(least / (width * height))
        across, down = (math.ceil(x * scale / side) * side for x in (width, height))
    return across, down
