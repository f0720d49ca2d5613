"""What a run is made of: the checkpoint's identity and geometry, the code's commit, the versions in use."""

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from eval.errors import EvaluationError
from eval.files import ROOT
from visiondrop.plans.flops import LLAVA_7B, ModelDims
from visiondrop.plans.shape import VisualShape, feature_layer
from visiondrop.shipped import shipped

WHOLE = 64 * 2**20  # files up to this size are hashed whole, larger ones by samples
STEP, SAMPLE = 4 * 2**20, 4096  # every matrix of a 7B model is larger than a step, so each is sampled
TOWERS = ("mm_vision_tower", "mm_image_tower", "mm_video_tower")  # fields of config.json that name one
HUB = ("llava", "llava_next", "video_llava")  # model types whose folders our classes read in transformers' layout
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
        config: its config.json; of transformers' own classes with the defaults that the file leaves out.
    """

    path: str
    name: str
    fingerprint: str
    config: dict[str, Any]

    @property
    def text_config(self) -> dict[str, Any]:
        """The decoder's part of the configuration."""
        return self.config.get("text_config", self.config)

    @property
    def vision_config(self) -> dict[str, Any]:
        """The tower's part, from the checkpoint or from the tower's own folder; {} where neither is at hand.

        Of Video-LLaVA's two towers the one for videos, which its budgets are stated for.
        """
        video = bool(self.config.get("mm_video_tower"))
        held = self.config.get("video_config" if video else "vision_config")
        folder = tower_folder(self.path, self.config, "mm_video_tower" if video else "mm_vision_tower")
        if held or folder is None or not (folder / "config.json").is_file():
            return held or {}
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("vision_config", config)

    @property
    def layers(self) -> int | None:
        """Decoder layers, where the configuration says so."""
        return self.text_config.get("num_hidden_layers")

    @property
    def patches(self) -> int | None:
        """Patches of one image unit, from the tower's configuration or its name (…-patch14-336); None if unknown."""
        vision = self.vision_config
        if vision.get("image_size") and vision.get("patch_size"):
            return (vision["image_size"] // vision["patch_size"]) ** 2
        named = re.search(r"patch(\d+)-(\d+)$", str(self.config.get("mm_vision_tower", "")))
        return (int(named[2]) // int(named[1])) ** 2 if named else None

    @property
    def dims(self) -> ModelDims:
        """Widths for the FLOPs of a ledger; what the configuration does not say is taken from LLaVA-1.5-7B."""
        text, vision, base = self.text_config, self.vision_config, LLAVA_7B
        heads = text.get("num_attention_heads", 1)
        return ModelDims(
            name=self.name,
            hidden=text.get("hidden_size", base.hidden),
            intermediate=text.get("intermediate_size", base.intermediate),
            layers=self.layers or base.layers,
            vocab=text.get("vocab_size", base.vocab),
            kv_share=(text.get("num_key_value_heads") or heads) / heads,
            vision_hidden=vision.get("hidden_size", base.vision_hidden),
            vision_intermediate=vision.get("intermediate_size", base.vision_intermediate),
            vision_layers=vision.get("num_hidden_layers", base.vision_layers),
            patch_inputs=3 * vision["patch_size"] ** 2 if vision.get("patch_size") else base.patch_inputs,
            temporal=bool(vision.get("add_time_attn")),
        )

    @property
    def _tower_depth(self) -> dict[str, int]:
        """The tower's layers, and the one that is read."""
        layers = self.vision_config.get("num_hidden_layers", LLAVA_7B.vision_layers)
        select = self.config.get("mm_vision_select_layer", self.config.get("vision_feature_layer", -2))
        return {"tower_layers": layers, "feature_layer": feature_layer(layers, select)}

    def visual_shape(self, layout: str | None = None) -> VisualShape | None:
        """What the loaded model's own `visual_shape()` will say, as far as config.json tells; None where it does not.

        Args:
            layout: how LLaVA-NeXT cuts pictures, "anyres" or "fixed-2880"; None: as the checkpoint says.
        """
        config, layers, patches = self.config, self.layers, self.patches
        if layers is None or patches is None:
            return None
        hub_video = config.get("model_type") == "video_llava"
        if hub_video or config.get("mm_video_tower"):
            vision = self.vision_config
            units = vision.get("num_frames", 8 if hub_video else None)
            if units is None:
                return None
            source = "video" if vision.get("add_time_attn") else "video-without-temporal-attention"
            frames = dict(units=units, nominal_units=units, length=units * (patches + 1), kind="video", source=source)
            return VisualShape(layers, patches, **frames, **self._tower_depth)
        if config.get("model_type") == "llava_next" or config.get("image_aspect_ratio") == "anyres":
            side = 2 * math.isqrt(patches)
            whole = layout == "fixed-2880" or (layout is None and config.get("mm_patch_merge_type") == "spatial")
            length, source = (5 * patches, f"fixed-{5 * patches}") if whole else (5 * patches + side, "anyres")
            crops = dict(units=5, nominal_units=5, length=length, source=source, canvas=(side, side))
            return VisualShape(layers, patches, **crops, **self._tower_depth)
        whole = "full" in str(config.get("vision_feature_select_strategy")) or (
            config.get("mm_vision_select_feature") == "cls_patch"
        )
        return VisualShape(layers, patches, length=patches + 1 if whole else 0, **self._tower_depth)


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of transformers' LLaVA classes with its defaults (files hold what differs); others as they are."""
    kind = config.get("model_type")
    if kind not in HUB or "text_config" not in config:
        return config
    return CONFIG_MAPPING[kind].from_dict(config).to_dict()


def tower_folder(checkpoint: str, config: dict[str, Any], field: str = "mm_vision_tower") -> Path | None:
    """Local folder of the vision tower that an original checkpoint names in a field of `TOWERS`, or None."""
    tower = config.get(field)
    for folder in (Path(checkpoint) / str(tower), Path(str(tower)).expanduser()):
        if tower and folder.is_dir():
            return folder
    return None


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
    towers = [folder.resolve() for field in TOWERS if (folder := tower_folder(path, config, field)) is not None]
    for tower in dict.fromkeys(towers):
        if not tower.is_relative_to(Path(path)):
            fingerprint += "-" + of_folder(tower, without=CARDS)
    return Checkpoint(path=path, name=name, fingerprint=fingerprint, config=completed(config))


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
