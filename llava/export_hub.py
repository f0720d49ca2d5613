"""An original-layout checkpoint as the hub has it, so that stock transformers and vLLM load it.

    python -m llava.export_hub checkpoints/testbed /tmp/testbed-hf

The folder gets transformers' configuration, weights under the names that llava-hf publishes, the tokenizer with an `<image>`
token, the processor (pictures are padded to a square, as LLaVA-1.5 was trained) and a chat template with the wording of
the checkpoint's own conversation.  LLaVA-1.5 layouts only: LLaVA-NeXT's newlines are cut differently on the hub.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig
from transformers import LlavaConfig as HubConfig

from llava.checkpoints.read import TOWER_PREFIX, Checkpoint, read_checkpoint
from llava.checkpoints.tokenizer import load_tokenizer
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import SeparatorStyle, conv_templates
from llava.prompts import template_of
from visiondrop.errors import UnsupportedError, VisionDropError, command_line

SHARD = 5 * 10**9  # bytes of one weights file
NAMES = (
    (TOWER_PREFIX, "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
TEXT_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
    "rope_parameters max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id head_dim"
).split()


def export(source: str, target: str | Path) -> Path:
    """Write `source`, a folder or hub id in the original layout, into the new folder `target`.

    Raises:
        VisionDropError: the target holds files, or the checkpoint is missing, damaged or of another family.
    """
    folder = Path(target)
    if folder.exists() and any(folder.iterdir()):
        raise VisionDropError(f"folder {str(folder)!r} holds files: give a new or an empty one")
    checkpoint = read_checkpoint(source)
    _check(checkpoint)
    words = load_tokenizer(checkpoint.folder)
    token = _image_token(words, checkpoint.config.vocab_size)
    weights = {hub_name(name): value for name, value in checkpoint.weights.items()}
    dtype = next(iter(weights.values())).dtype
    rows = max(token + 1, checkpoint.config.vocab_size)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if name in weights:
            weights[name] = _with_rows(weights[name], rows)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "config.json", _config(checkpoint, rows, token, dtype))
    _save_weights(folder, weights)
    words.save_pretrained(folder)
    _write_processor(folder, checkpoint)
    (folder / "chat_template.jinja").write_text(chat_template(template_of(checkpoint.config)), encoding="utf-8")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    _write(folder, "generation_config.json", {name: value for name, value in ends.items() if value is not None})
    return folder


def hub_name(name: str) -> str:
    """The name that llava-hf publishes for one of our parameters."""
    ours, theirs = next((pair for pair in NAMES if name.startswith(pair[0])), ("", ""))
    if not ours:
        raise UnsupportedError(f"weight {name!r} has no place in the hub's LlavaForConditionalGeneration")
    return theirs + name.removeprefix(ours)


def chat_template(name: str) -> str:
    """A Jinja template that words messages as the conversation `name` does, its picture before the question."""
    words = conv_templates[name]
    if words.sep_style is not SeparatorStyle.TWO:
        raise UnsupportedError(f"conversation {name!r} is not one of USER: … ASSISTANT: …, whose wording is exported")
    person, model = words.roles
    picture = f"{DEFAULT_IMAGE_TOKEN}\\n"
    text = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' "
        f"%}}{{{{ '{picture}' }}}}{{% else %}}{{{{ p['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    )
    system, quote = words.system.replace("'", "\\'"), words.sep2
    return (
        f"{{{{ '{system}{words.sep}' }}}}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{person}: {text}{words.sep}"
        f"{{% else %}}{model}: {text}{quote}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{model}:{{% endif %}}"
    )


def _check(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    wrong = {
        "a video tower": bool(getattr(config, "mm_video_tower", None)),
        "image_aspect_ratio 'anyres' (LLaVA-NeXT)": getattr(config, "image_aspect_ratio", None) == "anyres",
        f"projector {config.mm_projector_type!r}": config.mm_projector_type != "mlp2x_gelu",
        "no CLIP tower": config.vision_config is None,
    }
    found = [what for what, holds in wrong.items() if holds]
    if found:
        raise UnsupportedError(f"{', '.join(found)}: only LLaVA-1.5's own layout can be exported")


def _image_token(words: Any, rows: int) -> int:
    """Id of `<image>`, added to the tokenizer where it has none."""
    words.add_special_tokens({"additional_special_tokens": [DEFAULT_IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    token = words.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if token is None or token == words.unk_token_id or token > rows + 64:
        raise VisionDropError(
            f"the tokenizer gives {DEFAULT_IMAGE_TOKEN} the id {token} beside {rows} rows of embeddings"
        )
    return token


def _with_rows(value: Tensor, rows: int) -> Tensor:
    """Embeddings with zero rows added at the end."""
    return torch.cat([value, value.new_zeros(rows - len(value), value.shape[1])]) if rows > len(value) else value


def _config(checkpoint: Checkpoint, rows: int, token: int, dtype: torch.dtype) -> dict[str, Any]:
    ours = checkpoint.config
    text = {name: getattr(ours, name) for name in TEXT_FIELDS if getattr(ours, name, None) is not None}
    vision = ours.vision_config if isinstance(ours.vision_config, dict) else ours.vision_config.to_dict()
    config = HubConfig(
        text_config=LlamaConfig(**text, vocab_size=rows),
        vision_config=CLIPVisionConfig(**{k: v for k, v in vision.items() if k not in ("model_type", "architectures")}),
        image_token_index=token,
        vision_feature_layer=ours.mm_vision_select_layer,
        vision_feature_select_strategy="full" if ours.mm_vision_select_feature == "cls_patch" else "default",
        tie_word_embeddings=bool(getattr(ours, "tie_word_embeddings", False)),
    )
    return {**config.to_dict(), "architectures": ["LlavaForConditionalGeneration"], "torch_dtype": str(dtype)[6:]}


def _save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """One file, or shards and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in weights.items():
        size += value.nbytes
        if size > SHARD and shards[-1]:
            shards.append({})
            size = value.nbytes
        shards[-1][name] = value.contiguous()
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for value in weights.values())
    _write(folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_processor(folder: Path, checkpoint: Checkpoint) -> None:
    """CLIP's settings from the checkpoint, in the hub's processor that pads to a square."""
    settings: dict[str, Any] = {}
    if checkpoint.processor_folder is not None:
        settings = json.loads((checkpoint.processor_folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    vision = checkpoint.config.vision_config
    side, patch = (
        (vision["image_size"], vision["patch_size"])
        if isinstance(vision, dict)
        else (vision.image_size, vision.patch_size)
    )
    settings |= {"image_processor_type": "LlavaImageProcessor", "processor_class": "LlavaProcessor"}
    settings |= {"do_pad": True, "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    _write(folder, "preprocessor_config.json", settings)
    strategy = "full" if checkpoint.config.mm_vision_select_feature == "cls_patch" else "default"
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": patch,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": 1,
        "image_token": DEFAULT_IMAGE_TOKEN,
    }
    _write(folder, "processor_config.json", processor)


def _write(folder: Path, name: str, values: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")


@command_line
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.export_hub", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="checkpoint folder or hub id, original layout")
    parser.add_argument("target", help="a new folder")
    arguments = parser.parse_args(argv)
    print(f"{export(arguments.source, arguments.target)}: load it with transformers or vLLM")


if __name__ == "__main__":
    sys.exit(main())
