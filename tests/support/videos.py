"""Small video files drawn for tests."""

import av
import numpy as np

BITS = 12


def draw(number: int, width: int, height: int) -> np.ndarray:
    """Frame `number`, written into it in binary: three rows of four black or white fields."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    fields = np.array(bits, np.uint8).reshape(3, 4)
    grey = fields.repeat(height // 3, axis=0).repeat(width // 4, axis=1)
    return np.stack([grey] * 3, axis=-1)


def numbers(frames: np.ndarray) -> list[int]:
    """What `draw` wrote into frames [T, H, W, 3]."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 6 :: height // 3, width // 8 :: width // 4].mean(axis=-1) > 127
    return (middle.reshape(len(frames), BITS) << np.arange(BITS)).sum(axis=1).tolist()


def write(
    path, count: int, width: int = 64, height: int = 48, codec: str = "mpeg4", rate: int = 10, sound: bool = False
) -> str:
    """A video of `count` frames; with `sound`, an audio stream as well."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.bit_rate = 2_000_000
        audio = container.add_stream("aac", rate=16000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _silence(container, audio)
    return str(path)


def write_sound(path) -> str:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=16000))
    return str(path)


def _silence(container, stream) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
