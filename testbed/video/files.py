"""Drawn clips as video files: H.264 without loss in MP4, so that the decoder gives back the very pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from visiondrop.errors import VisionDropError

RATE = 4  # frames per second: eight frames are two seconds
_LOSSLESS = {"qp": "0", "preset": "veryfast", "threads": "1"}


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes frames (uint8 [F, H, W, 3]) in one move; an interrupted call leaves no half file under `path`.

    Raises:
        VisionDropError: no PyAV, or one without this encoder.
    """
    try:
        import av
    except ImportError:
        raise VisionDropError("Writing the testbed's videos needs the package av: pip install av.") from None
    if "libx264rgb" not in av.codecs_available:
        raise VisionDropError(
            "this build of PyAV lacks the libx264rgb encoder, which the testbed's videos need: install its own wheels "
            "(pip install av)."
        )
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=RATE, options=_LOSSLESS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(data.getvalue())
    unfinished.replace(path)
