"""A LLaVA-1.5-shaped model with random weights in the hub's layout, wide enough that its decoder dominates."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eval.efficiency import models
from eval.errors import EvaluationError
from eval.files import ROOT
from llava.export_hub import export

WORDS = ROOT / "checkpoints" / "testbed"  # whose tokenizer and conversation the model gets
# In the 7B model tower and projector take 4 % of an unpruned prefill: so do these narrow towers beside these decoders.
TOWERS = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8},
    "thin": models.CLIP_TINY,
    "7b": models.CLIP_L,
}


def write(size: str, target: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write the model `size` of eval.efficiency.models with its tower into the new folder `target`.

    Raises:
        EvaluationError: an unknown size; VisionDropError: the folder holds files.
    """
    if size not in TOWERS:
        raise EvaluationError(f"--size {size!r}: allowed are {', '.join(TOWERS)}")
    words = json.loads((WORDS / "config.json").read_text(encoding="utf-8"))
    model = models.build(size, tower=TOWERS[size], vocab=words["vocab_size"], dtype=dtype, seed=seed)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held) / "original"
        shutil.copytree(WORDS, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
        _change(folder / "config.json", models.SIZES[size] | _of_the_decoder(size, dtype))
        _change(folder / "vision_tower" / "config.json", TOWERS[size] | {"torch_dtype": str(dtype)[6:]})
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return export(str(folder), target)


def _of_the_decoder(size: str, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "num_key_value_heads": models.SIZES[size]["num_attention_heads"],
        "mm_hidden_size": TOWERS[size]["hidden_size"],
        "torch_dtype": str(dtype)[6:],
    }


def _change(file: Path, values: dict[str, Any]) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**held, **values}, indent=2), encoding="utf-8")
