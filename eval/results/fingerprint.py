"""What a run is made of: the checkpoint's identity and geometry, the code's commit, the versions in use."""

import copy
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import ROOT
from llava import geometry
from llava.anyres import set_layout
from llava.checkpoints.read import MODEL_TYPES
from llava.checkpoints.settings import settings_at_hand, tower_place
from llava.config import LlavaConfig
from visiondrop.plans.flops import ModelDims
from visiondrop.plans.shape import VisualShape
from visiondrop.shipped import shipped

WHOLE = 64 * 2**20  # files up to this size are hashed whole, larger ones by samples
STEP, SAMPLE = 4 * 2**20, 4096  # every matrix of a 7B model is larger than a step, so each is sampled
TOWERS = ("mm_vision_tower", "mm_image_tower", "mm_video_tower")  # fields of config.json that name one
CARDS = (".md",)  # a model card changes no answer, and it is written after the rows that it quotes
PACKAGES = ("torch", "transformers", "lmms_eval", "datasets", "accelerate")


def of_files(files: list[Path], root: Path) -> str:
    """16 hex digits over names, sizes and contents; of large files, 4 KiB in every 4 MiB are read."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()} {size}\n".encode())
        with open(file, "rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for start in [*range(0, size, STEP), size - SAMPLE]:
                stream.seek(start)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def of_folder(folder: Path, without: tuple[str, ...] = ()) -> str:
    """Fingerprint of all files below a folder, hidden ones and those with a suffix in `without` left out."""
    files = [
        f
        for f in folder.rglob("*")
        if f.is_file() and f.suffix not in without and not any(p.startswith(".") for p in f.relative_to(folder).parts)
    ]
    return of_files(files, folder)


def of_values(values: Any) -> str:
    """16 hex digits over JSON-like values."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint before it is loaded.

    Attributes:
        path: folder or hub id, as `load_pretrained_model` takes it.
        name: hub id, or the folder's name.
        fingerprint: of the local files, or the hub revision.
        config: its config.json.
    """

    path: str
    name: str
    fingerprint: str
    config: dict[str, Any]

    @cached_property
    def settings(self) -> LlavaConfig | None:
        """What our classes make of the configuration; None for another family, or where a tower's is not at hand.

        Raises:
            UnsupportedError: a LLaVA that our classes refuse.
        """
        if self.config.get("model_type") not in MODEL_TYPES:
            return None
        return settings_at_hand(self.config, Path(self.path))

    @property
    def dims(self) -> ModelDims | None:
        """Dimensions for the FLOPs of a ledger; None where `settings` is."""
        return None if self.settings is None else geometry.dims(self.settings, self.name)

    def visual_shape(self, layout: str | None = None) -> VisualShape | None:
        """What the loaded model's own `visual_shape()` will say; None where `settings` is.

        Args:
            layout: how LLaVA-NeXT cuts pictures, "anyres" or "fixed-2880"; None: as the checkpoint says.
        """
        if self.settings is None:
            return None
        config = copy.deepcopy(self.settings)
        if layout is not None:
            set_layout(config, layout)
        return geometry.visual_shape(config)


def _hub_config(model: str) -> tuple[Path, str]:
    """config.json of a hub id and its revision; from the cache when there is no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=["config.json"]))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise EvaluationError(
                f"checkpoint {model!r} is not on the hub or not open to you: check the name",
                "batch",
            ) from None
        raise EvaluationError(
            f"checkpoint {model!r} is no folder here and cannot be fetched (no network, nothing in the cache): "
            "give the path of a downloaded checkpoint",
            "batch",
        ) from None
    except HFValidationError:
        raise EvaluationError(f"checkpoint folder {model!r} does not exist", "batch") from None
    return folder / "config.json", folder.name


def checkpoint(model: str) -> Checkpoint:
    """Identity of a checkpoint folder or hub id, without loading it.

    Raises:
        EvaluationError: the folder, its configuration or the network is missing.
    """
    model = shipped(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        path, name, file = str(folder.resolve()), folder.resolve().name, folder / "config.json"
        if not file.is_file():
            raise EvaluationError(f"checkpoint folder {model} holds no config.json: is the download complete?", "batch")
        fingerprint = of_folder(folder, without=CARDS)
    elif folder.is_absolute() or model.startswith((".", "~")) or folder.exists():
        raise EvaluationError(f"checkpoint folder {model} does not exist or is not a folder", "batch")
    else:
        path = name = model
        file, fingerprint = _hub_config(model)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise EvaluationError(
            f"config.json of checkpoint {model} is missing or damaged: download it again", "batch"
        ) from None
    named = [str(config[field]) for field in TOWERS if config.get(field)]
    towers = [place.resolve() for tower in named if (place := tower_place(tower, Path(path)))]
    for tower in dict.fromkeys(towers):
        if not tower.is_relative_to(Path(path)):
            fingerprint += "-" + of_folder(tower, without=CARDS)
    return Checkpoint(path=path, name=name, fingerprint=fingerprint, config=config)


@cache
def git_state(root: Path = ROOT) -> tuple[str, bool]:
    """(commit, uncommitted changes) of the checkout; ("unknown", True) outside of one."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def version_of(package: str) -> str:
    """Installed version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions that can change an answer or a score."""
    import visiondrop

    ours = getattr(visiondrop, "__version__", None) or version_of("visiondrop")
    return {"python": platform.python_version(), **{p: version_of(p) for p in PACKAGES}, "visiondrop": ours}


def device_name(device: str) -> str:
    """Name of the card or processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.+)", text)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()
