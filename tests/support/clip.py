"""CLIP with the golden text half: loaded, or as a folder with a tokenizer of bytes."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from tests.support.golden import golden_checkpoint as golden
from tests.support.golden import golden_clip_text as text

QUESTIONS = text.QUESTIONS


def model() -> CLIPModel:
    """All of CLIP; what methods take of it is its text half and the two projections."""
    width = golden.VISION["projection_dim"]
    clip = CLIPModel(CLIPConfig(text_config=text.CLIP_TEXT, vision_config=golden.VISION, projection_dim=width)).eval()
    for name, value in clip.state_dict().items():
        if value.is_floating_point() and name != "logit_scale":
            value.copy_(torch.from_numpy(text.tensor(name, tuple(value.shape))))
    return clip


def tokenizer(words: str, **_) -> dict:
    """As CLIP's, byte by byte."""
    return {"input_ids": text.text_ids(words)}


class Prompts:
    """Stands for the language model's tokenizer: reads a question out of the first ids of a text, as its template would."""

    def decode(self, ids: list[int]) -> str:
        """Five letters, then the end of the turn."""
        return "".join(chr(97 + i % 26) for i in ids[:5]) + " ASSISTANT: " + "and so on" * (len(ids) > 5)


def folder(path: Path) -> Path:
    """The same on disk, as published."""
    model().save_pretrained(path)
    vocabulary, merges = text.vocabulary()
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>", **names}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
