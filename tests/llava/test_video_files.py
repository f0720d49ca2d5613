"""Decoding and preprocessing of videos: frames, pixels, damaged files, memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from llava import video
from tests.support import videos
from visiondrop.errors import VisionDropError


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 50, 83])
@pytest.mark.parametrize("codec, name", [("mpeg4", "a.mp4"), ("libx264", "a.mkv"), ("gif", "a.gif")])
def test_frames_are_evenly_spaced(tmp_path, count, codec, name):
    frames = video.read_frames(videos.write(tmp_path / name, count, codec=codec))
    assert frames.shape == (8, 48, 64, 3) and frames.dtype == np.uint8
    assert videos.numbers(frames) == [i * (count - 1) // 7 for i in range(8)]


def test_pixels_follow_the_original_recipe():
    rng = np.random.default_rng(0)
    for height, width in ((48, 64), (64, 48), (224, 224), (31, 97)):
        frames = rng.integers(0, 256, (8, height, width, 3), dtype=np.uint8)
        found = video.video_pixels(frames)
        assert found.shape == (3, 8, 224, 224) and found.dtype == torch.float32
        # Frame by frame, scaling before normalising: the same up to rounding, as both are linear.
        size = (224, int(width / height * 224)) if height <= width else (int(height / width * 224), 224)
        for t in (0, 5):
            plane = torch.from_numpy(frames[t]).permute(2, 0, 1)[None].float() / 255
            grown = torch.nn.functional.interpolate(plane, size=size, mode="bilinear", align_corners=False)[0]
            top, left = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
            grown = grown[:, top : top + 224, left : left + 224]
            mean, std = torch.tensor(video.MEAN).view(3, 1, 1), torch.tensor(video.STD).view(3, 1, 1)
            assert (found[:, t] - (grown - mean) / std).abs().max() < 1e-4


def test_bytes_and_open_files_work_and_no_flip_is_drawn(tmp_path):
    path = videos.write(tmp_path / "a.mp4", 20, sound=True)
    first = video.load_video(path)
    with open(path, "rb") as file:
        assert torch.equal(video.load_video(file), first)
    with open(path, "rb") as file:
        assert torch.equal(video.load_video(file.read()), first)
    assert all(torch.equal(video.load_video(path), first) for _ in range(3))


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    good = videos.write(tmp_path / "good.mp4", 30)
    data = open(good, "rb").read()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    cases = {
        "missing.mp4": "There is no file",
        "empty.mp4": "empty",
        "text.mp4": "corrupt",
        "cut.mp4": "cut short",
    }
    for name, word in cases.items():
        with pytest.raises(VisionDropError, match=word) as caught:
            video.load_video(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(VisionDropError, match="no video stream"):
        video.load_video(videos.write_sound(tmp_path / "sound.m4a"))
    assert video.load_video(tmp_path / "still.png").shape == (3, 8, 224, 224)  # one frame, eight times


def test_a_file_cut_in_the_middle_shows_what_is_left(tmp_path):
    path = videos.write(tmp_path / "a.mkv", 60, codec="libx264")
    data = open(path, "rb").read()
    (tmp_path / "cut.mkv").write_bytes(data[: int(len(data) * 0.7)])
    try:
        frames = video.read_frames(tmp_path / "cut.mkv")
    except VisionDropError as error:
        assert "corrupt" in str(error)
    else:
        shown = videos.numbers(frames)
        assert shown[0] == 0 and shown == sorted(shown) and shown[-1] < 60


def test_memory_does_not_grow_with_length(tmp_path):
    program = (
        "import resource, sys\n"
        "from llava.video import read_frames\n"
        "for path in sys.argv[1:]:\n"
        "    read_frames(path)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    paths = [videos.write(tmp_path / f"{count}.mp4", count, width=320, height=240) for count in (20, 400)]
    out = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True).stdout
    short, long = map(int, out.split())  # KiB; kept as a whole, the latter would be 92 MB
    assert long - short < 30_000, (short, long)


def test_prompt_has_a_placeholder_per_frame():
    assert video.video_prompt("Why?") == "<image>" * 8 + "\nWhy?"
