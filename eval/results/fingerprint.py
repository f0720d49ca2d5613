"""What a run is made of: the checkpoint's identity and geometry."""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import of_folder
from llava import geometry
from llava.anyres import set_layout
from llava.checkpoints.read import MODEL_TYPES
from llava.checkpoints.settings import settings_at_hand, tower_place
from llava.config import LlavaConfig
from visiondrop.plans.flops import ModelDims
from visiondrop.plans.shape import VisualShape
from visiondrop.shipped import shipped

TOWERS = ("mm_vision_tower", "mm_image_tower", "mm_video_tower")  # fields of config.json that name one
CARDS = (".md",)  # a model card changes no answer, and it is written after the rows that it quotes


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
