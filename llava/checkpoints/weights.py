"""Weight files of a checkpoint folder: which there are, whether they are complete, and their tensors.

Every way in which a download can have stopped half-way (a shard that the index lists but the folder lacks, a file cut
short, a Git LFS pointer in place of a file, a leftover `.incomplete`) is a one-sentence VisionDropError here, before a
model is built.
"""

import json
import os
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from visiondrop.errors import VisionDropError

# In transformers' order of preference.
_NAMES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_SHARD = re.compile(r"(?:model|pytorch_model)-(\d+)-of-(\d+)\.(?:safetensors|bin)")
_FETCH_AGAIN = "download it again"


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """Paths of the weight files of `folder`, in order; VisionDropError where there are none or some are absent."""
    folder = Path(folder)
    for single, index in _NAMES:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _indexed_files(folder / index)
    return _shards_without_index(folder)


def _indexed_files(index):
    """The files that a `*.index.json` lists, all of which must be there."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise VisionDropError(
            f"{str(index)!r} is not a readable index of weight files ({error}); {_FETCH_AGAIN}."
        ) from error
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise VisionDropError(
            f"The checkpoint {str(index.parent)!r} is half-downloaded: {index.name} lists {len(names)} files, of which "
            f"{len(absent)} are missing ({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}); "
            "finish the download and try again."
        )
    return [index.parent / name for name in names]


def _shards_without_index(folder):
    """All of `model-0000K-of-0000N.*` where the index itself was not downloaded, provided every K is there."""
    shards = {path: _SHARD.fullmatch(path.name) for path in sorted(folder.iterdir())}
    shards = {path: match for path, match in shards.items() if match}
    if shards:
        expected = max(int(match.group(2)) for match in shards.values())
        if len(shards) == expected:
            return list(shards)
        raise VisionDropError(
            f"The checkpoint {str(folder)!r} is half-downloaded: {len(shards)} of {expected} weight files are there; "
            "finish the download and try again."
        )
    leftovers = _incomplete_files(folder)
    if leftovers:
        raise VisionDropError(
            f"The checkpoint {str(folder)!r} is half-downloaded: it has no weight file yet, only "
            f"{leftovers[0].name!r}; finish the download and try again."
        )
    if (folder / "build.json").is_file():
        command = json.loads((folder / "build.json").read_text(encoding="utf-8"))["make"]
        raise VisionDropError(f"The weights in {str(folder)!r} are not made yet: run {command} once.")
    raise VisionDropError(
        f"There are no weights in {str(folder)!r}: expected {' or '.join(name for pair in _NAMES for name in pair)}; "
        "check the path or download the weights."
    )


def _incomplete_files(folder):
    """What huggingface_hub leaves behind when a download stops: beside the files, below .cache, or among a cache's
    blobs.
    """
    places = [folder, folder / ".cache" / "huggingface" / "download", folder.parent.parent / "blobs"]
    return [path for place in places if place.is_dir() for path in sorted(place.glob("*.incomplete"))]


def read_weights(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder by the names they have on disk, memory-mapped on the CPU where the format
    allows.

    Raises VisionDropError for missing, truncated or unreadable files.
    """
    weights = {}
    for path in weight_files(folder):
        weights.update(_read_file(path))
    return weights


def _read_file(path):
    """name -> tensor of one weight file."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise VisionDropError(f"{str(path)!r} is a Git LFS pointer, not weights; run `git lfs pull` in its folder.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        raise VisionDropError(
            f"{str(path)!r} cannot be read as tensors alone, so it is damaged or holds other objects, which "
            f"are not loaded for safety; {_FETCH_AGAIN} or save its tensors as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise VisionDropError(f"{str(path)!r} is cut short or damaged ({reason}); {_FETCH_AGAIN}.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise VisionDropError(f"{str(path)!r} does not hold a dictionary of tensors; give a checkpoint's weights.")
    return weights
