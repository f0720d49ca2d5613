"""Videos on their way into Video-LLaVA: decoding, choosing eight frames, pixels.

    pixels = load_video("clip.mp4")        # float32 [3, 8, 224, 224], one entry of `images`
    prompt = video_prompt("What happens?")  # eight <image>, a newline, the question

Frames, scaling and crop are those of the original (https://github.com/PKU-YuanGroup/Video-LLaVA,
languagebind/video/processing_video.py), with one deviation: its random horizontal flip, left on at inference there, is
left out, so that a video has one answer.  Files are decoded by PyAV one frame at a time; only the chosen frames are
kept, so memory does not grow with a file's length.
"""

import io
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from visiondrop.errors import VisionDropError

FRAMES = 8
SIDE = 224
# CLIP's, as in the original.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def video_prompt(question: str, frames: int = FRAMES) -> str:
    """The user's turn about one video, as in the original's evaluation."""
    return DEFAULT_IMAGE_TOKEN * frames + "\n" + question


def load_video(source, frames: int = FRAMES, side: int = SIDE) -> Tensor:
    """Pixels of one video.

    Args:
        source: a path, the bytes of a file, or an open binary file.

    Returns:
        float32 [3, frames, side, side].

    Raises:
        VisionDropError: no such file, not a video, damaged, or without a picture.
    """
    return video_pixels(read_frames(source, frames), side)


def frame_numbers(count: int, frames: int = FRAMES) -> list[int]:
    """Which of `count` frames are shown: evenly spaced, first to last, rounded down (a short video repeats)."""
    return np.linspace(0, count - 1, frames, dtype=int).tolist()


def read_frames(source, frames: int = FRAMES) -> np.ndarray:
    """uint8 [frames, H, W, 3] RGB, the chosen frames of a file; arguments and errors as in `load_video`."""
    source, name = _source(source)
    count = sum(1 for _ in _packets(source, name))
    found, total = _pick(source, name, frame_numbers(count, frames) if count else [])
    if total and (total < count or not found):
        # Fewer pictures than the container announces: choose again among those that there are.
        found, total = _pick(source, name, frame_numbers(total, frames))
        count = total
    if not total:
        raise VisionDropError(f"{name} has no frames to show (it is empty or cut short); replace the file.")
    return np.stack([found[number] for number in frame_numbers(count, frames)])


def size_of(source) -> tuple[int, int]:
    """(width, height) of a video's frames, before any is decoded; arguments and errors as in `load_video`."""
    source, name = _source(source)
    return next(_sizes(source, name))


def video_pixels(frames: np.ndarray, side: int = SIDE) -> Tensor:
    """Normalise, scale the short side (bilinear), crop the centre: uint8 [T, H, W, 3] -> float32 [3, T, side, side]."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2) / 255.0
    video = (video - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    height, width = video.shape[2:]
    # The original rounds the longer side down.
    size = (int(height / width * side), side) if width < height else (side, int(width / height * side))
    video = torch.nn.functional.interpolate(video, size=size, mode="bilinear", align_corners=False)
    top, left = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return video[:, :, top : top + side, left : left + side].contiguous()


def _source(source):
    """(something PyAV opens any number of times, its name for messages)."""
    if isinstance(source, (str, os.PathLike)):
        name = f"video {os.fspath(source)!r}"
        if not os.path.isfile(source):
            raise VisionDropError(f"There is no file for {name}; check the path.")
        if os.path.getsize(source) == 0:
            raise VisionDropError(f"{name} is an empty file; replace it.")
        return os.fspath(source), name
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source), "the video data passed in"
    return source, "the video file passed in"


def _open(source, name: str):
    try:
        import av
    except ImportError:
        raise VisionDropError("Decoding videos needs the package av: pip install av.") from None
    if not isinstance(source, str):
        source.seek(0)
    container = av.open(source)
    if not container.streams.video:
        container.close()
        raise VisionDropError(
            f"{name} has no video stream: it holds only sound or text, or is cut short; give a video."
        )
    return container


def _reading(function):
    """Turn what FFmpeg says about a damaged file into a sentence."""

    def read(source, name: str, *args):
        try:
            yield from function(source, name, *args)
        # PyAV's errors derive from ValueError, OSError, EOFError and so on, depending on FFmpeg's code.
        except VisionDropError:
            raise
        except (ValueError, OSError, EOFError, IndexError, MemoryError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VisionDropError(
                f"Could not decode {name}: it is corrupt, cut short or no video ({reason}); replace the file."
            ) from error

    return read


@_reading
def _packets(source, name: str) -> Iterator[int]:
    """One item per stored frame, without decoding."""
    with _open(source, name) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield packet.size


@_reading
def _sizes(source, name: str) -> Iterator[tuple[int, int]]:
    """One item: what the container says."""
    with _open(source, name) as container:
        context = container.streams.video[0].codec_context
        yield context.width, context.height


@_reading
def _decoded(source, name: str) -> Iterator:
    """PyAV's frames, one after the other."""
    with _open(source, name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _pick(source, name: str, numbers: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """(wanted frames by number, uint8 [H, W, 3] in the first one's size; how many frames there are)."""
    wanted, found, size, total = set(numbers), {}, None, 0
    for number, frame in enumerate(_decoded(source, name)):
        total = number + 1
        size = size or (frame.width, frame.height)
        if number in wanted:
            found[number] = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return found, total
