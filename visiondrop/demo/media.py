"""Pictures on their way to the model: from a file, from what a browser sends, or from the examples that ship.

What a browser sends is a data URL inside the request and stays in memory: nothing is written to disk.
"""

import base64
import binascii
import hashlib
import io
import json
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import VisionDropError, closest
from ..families import loader

EXAMPLES = Path(__file__).parent / "examples"
MOST_BYTES = 8 << 20  # of an uploaded file
MOST_PIXELS = 30_000_000  # of a picture, before it is decoded
URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,")
MARK = 12  # letters of a picture's SHA-256


@dataclass(frozen=True)
class Example:
    """A picture that ships.

    Attributes:
        path: its file; question: one to begin with; about: what it is.
    """

    path: Path
    question: str
    about: str

    @property
    def video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.path.name)

    @property
    def url(self) -> str:
        """The file as a data URL."""
        kind = mimetypes.guess_type(self.path.name)[0] or "image/webp"
        return f"data:{kind};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


def examples() -> dict[str, Example]:
    """The examples by name."""
    told = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return {name: Example(EXAMPLES / e["file"], e["question"], e["about"]) for name, e in told.items()}


def example(name: str) -> Example:
    """One of the examples.

    Raises:
        VisionDropError: there is none of this name.
    """
    found = examples()
    if name not in found:
        raise VisionDropError(f"There is no example {name[:40]!r}: {closest(name[:40], found)}.")
    return found[name]


def is_video(name: str) -> bool:
    """Whether a file's name is a video's."""
    return (mimetypes.guess_type(name)[0] or "").startswith("video/")


def open_picture(path: Any) -> Image.Image | np.ndarray:
    """A file as `Loaded.inputs` takes it: a PIL image, or a video's frames, uint8 [frames, H, W, 3]."""
    return loader().open_video(path) if is_video(str(path)) else loader().open_image(path)


def from_url(url: str) -> Image.Image | np.ndarray:
    """The picture or video in a data URL, within the limits of this page.

    Raises:
        VisionDropError: no data URL, too many bytes or pixels, or a file that cannot be decoded.
    """
    kind, data = content(url)
    if kind.startswith("video/"):
        width, height = loader().size_of_video(data)
        _check_pixels(width, height)
        return loader().open_video(data)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            size = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        size = (1, 1)  # the loader says what is wrong
    _check_pixels(*size)
    return loader().open_image(data)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise VisionDropError(
            f"The picture has {width} x {height} pixels; this page takes up to {MOST_PIXELS // 1_000_000} million: "
            "give a smaller one."
        )


def content(url: str) -> tuple[str, bytes]:
    """(media type, bytes) of a data URL, within the limit of bytes."""
    found = URL.match(url)
    if found is None:
        raise VisionDropError("That is no picture: choose a file, paste a picture, or take an example.")
    if (len(url) - found.end()) * 3 // 4 > MOST_BYTES:
        raise VisionDropError(
            f"The file has {(len(url) - found.end()) * 3 / 4 / 2**20:.1f} MB; this page takes up to "
            f"{MOST_BYTES >> 20} MB: give a smaller one."
        )
    try:
        return found.group(1) or "", base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise VisionDropError("The picture was cut short on its way: load it again.") from None


def mark_of(url: str) -> str:
    """The start of the SHA-256 of the file in a data URL, by which its owner's picture is known again."""
    return hashlib.sha256(content(url)[1]).hexdigest()[:MARK]
