"""The drawn pictures that ship with the demo, in visiondrop/demo/examples.

python -m testbed.examples            # draws them again; a test holds that they are the committed ones, pixel by pixel
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from testbed.data.scenes import draw_scene
from testbed.video.files import write_clip
from testbed.video.scenes import draw_clip

FOLDER = Path(__file__).resolve().parents[1] / "visiondrop/demo/examples"
SCENES = {"scene-1.webp": 100_012, "scene-2.webp": 100_013, "scene-3.webp": 100_010}
CLIPS = {"clip-1.mp4": 100_003}


def scenes() -> dict[str, np.ndarray]:
    """{file name: uint8 [336, 336, 3]}; lossless."""
    return {name: draw_scene("test", number).image for name, number in SCENES.items()}


def clips() -> dict[str, np.ndarray]:
    """{file name: uint8 [8, 224, 224, 3]}; lossless."""
    return {name: draw_clip("test", number).frames for name, number in CLIPS.items()}


def main() -> int:
    """Write the files."""
    for name, pixels in scenes().items():
        Image.fromarray(pixels).save(FOLDER / name, lossless=True, quality=100, method=6)
    for name, frames in clips().items():
        write_clip(FOLDER / name, frames)
    print(f"wrote {len(SCENES) + len(CLIPS)} files into {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
