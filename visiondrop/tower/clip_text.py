"""CLIP's text half and its two projections: what a method needs that compares patches with the question.

LLaVA's checkpoints hold CLIP's vision tower alone; the rest comes from the published CLIP checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from ..compat import Model
from ..errors import VisionDropError

REMEMBERED = 256  # questions whose embeddings are held
# (width, layers, patch, image side) of published towers, for checkpoints that do not name theirs.
PUBLISHED = {
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
}

Question = str | Sequence[int]  # words, or the ids of CLIP's tokenizer


def published(vision: Any) -> str | None:
    """The OpenAI repository of a tower with this `CLIPVisionConfig`, or None."""
    return PUBLISHED.get((vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size))


class ClipText:
    """The text half of one CLIP.

    Attributes:
        text, text_projection, visual_projection: its modules, as published.
        tokenizer: CLIP's, found when words are first asked about; None where there is none, so that questions must be ids.
    """

    def __init__(self, model: Model, tokenizer: Any = None, sources: Sequence[str | None] = ()):
        """sources: where to look for a tokenizer that is not given, the first that has one."""
        self._tokenizer, self._sources = tokenizer, sources
        self.text = model.text_model
        self.text_projection, self.visual_projection = model.text_projection, model.visual_projection
        self.segment = model.config.text_config.max_position_embeddings
        self._known: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(cls, clip: Any, default: str | None, device: torch.device) -> "ClipText":
        """From a loaded `CLIPModel`, a pair of one and its tokenizer, a folder or a hub id; None = `default`.

        Raises:
            VisionDropError: there is none, or it cannot be loaded.
        """
        model, tokenizer = clip if isinstance(clip, tuple) else (clip, None)
        if isinstance(model, nn.Module):
            if not all(hasattr(model, name) for name in ("text_model", "text_projection", "visual_projection")):
                raise VisionDropError(f"clip={type(model).__name__}: give a CLIPModel, or the folder or hub id of one")
            return cls(model, tokenizer, (getattr(model, "name_or_path", None), default))
        source = default if model is None else str(model)
        if not source:
            raise VisionDropError(
                "the checkpoint does not say which CLIP its tower comes from, and its text half is asked for: give clip=FOLDER "
                "(or a hub id, or a loaded CLIPModel)"
            )
        try:
            loaded = CLIPModel.from_pretrained(source, dtype=torch.float32).eval().to(device)
        except (OSError, ValueError) as error:
            raise VisionDropError(
                f"CLIP's text half cannot be loaded from {source!r} ({str(error).splitlines()[0]}): give clip=FOLDER, the "
                "whole CLIP that the vision tower was taken from (weights, config.json and tokenizer files)"
            ) from error
        found = cls(loaded, tokenizer, (source,))
        del loaded.vision_model  # the model's own tower is used
        return found

    @property
    def tokenizer(self) -> Any:
        """See the class."""
        if self._tokenizer is None:
            self._tokenizer = next((t for t in map(_tokenizer, self._sources) if t is not None), None)
            self._sources = ()
        return self._tokenizer

    def ids(self, question: Question) -> tuple[int, ...]:
        """CLIP's ids of a question, begin and end of text included; not cut at any length."""
        if not isinstance(question, str):
            return tuple(int(token) for token in question)
        if self.tokenizer is None:
            raise VisionDropError(
                "this CLIPModel comes without a tokenizer: give clip=(model, tokenizer) or clip=FOLDER, or the question as ids "
                "of CLIP's tokenizer"
            )
        return tuple(self.tokenizer(question, truncation=False, verbose=False)["input_ids"])

    def embed(self, questions: Sequence[Question]) -> Tensor:
        """[N, J] float32: per question the mean over its segments of their embeddings, each scaled to length 1.

        A question of more ids than CLIP has places is cut into segments that are texts of their own, as CDPruner does.
        """
        wanted = [self.ids(question) for question in questions]
        new = list(dict.fromkeys(ids for ids in wanted if ids not in self._known))
        if new:
            pieces = [ids[i : i + self.segment] for ids in new for i in range(0, len(ids), self.segment)]
            counts = [-(-len(ids) // self.segment) for ids in new]
            for ids, units in zip(new, self._segments(pieces).split(counts)):
                self._known[ids] = units.mean(dim=0)
        out = torch.stack([self._known[ids] for ids in wanted])
        while len(self._known) > REMEMBERED:
            self._known.pop(next(iter(self._known)))
        return out

    @torch.no_grad()
    def _segments(self, pieces: Sequence[tuple[int, ...]]) -> Tensor:
        """[M, J] float32 embeddings of length 1.

        Padding stands after what is pooled, and the half is causal, so it changes nothing.
        """
        width = max(map(len, pieces))
        device = self.text_projection.weight.device
        ids = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces], device=device)
        states = self.text_projection(self.text(input_ids=ids).pooler_output).float()
        return states / states.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def joint(self, states: Tensor) -> Tensor:
        """Tower states after its last norm [..., D] in the space of `embed`: [..., J] float32."""
        weight = self.visual_projection.weight
        return self.visual_projection(states.to(weight.device, weight.dtype)).float().to(states.device)


def _tokenizer(source: str | None) -> Any:
    """The tokenizer of a folder or hub id, or None where there is none."""
    if not source or (
        Path(source).is_dir() and not list(Path(source).glob("*token*")) + list(Path(source).glob("vocab*"))
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        return None
