"""What LLaVA adds to a language model: images become embeddings at the placeholders of the prompt.

Outside the decoder stack only unpruned lengths exist: a placeholder (-200) becomes as many positions as the image has
visual tokens before pruning, whatever a method will keep of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.errors import VisionDropError
from visiondrop.layout import Image, Layout
from visiondrop.plan import VisualShape

from .multimodal_encoder.builder import build_vision_tower
from .multimodal_projector.builder import build_vision_projector

FILLER_ID = 0  # stands for visual tokens in the ids `generate` keeps; their embeddings are given, it is never looked up


@dataclass
class Prompt:
    """A batch of prompts in unpruned length T, padded on the left.

    Attributes:
        ids: [B, T] with `FILLER_ID` at visual positions; mask: [B, T] bool; ordinals: [B, T] long, -1 = text.
        embeds: [B, T, D]; images: by ordinal; labels: [B, T] or None.
    """

    ids: Tensor
    mask: Tensor
    ordinals: Tensor
    embeds: Tensor
    images: list[Image]
    labels: Tensor | None = None


class LlavaMetaModel:
    """Mixin for the decoder stack: tower, projector and newline beside it, named as in the original checkpoints."""

    def build_vision(self, config) -> None:
        """Create the vision modules `config` describes."""
        self.vision_tower = build_vision_tower(config)
        self.mm_projector = build_vision_projector(config)
        if "unpad" in (config.mm_patch_merge_type or ""):
            self.image_newline = nn.Parameter(torch.empty(config.hidden_size))

    def get_vision_tower(self) -> nn.Module:
        """The vision tower."""
        return self.vision_tower


class LlavaMetaForCausalLM:
    """Mixin for the causal model: encoding images and laying out prompts."""

    def get_vision_tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.vision_tower

    def visual_shape(self) -> VisualShape:
        """The shape of an ordinary image of this model."""
        tower = self.get_vision_tower()
        extra = int(self.config.mm_vision_select_feature == "cls_patch")
        return VisualShape(
            layers=self.config.num_hidden_layers,
            patches=tower.num_patches,
            length=tower.num_patches + extra if extra else 0,
        )

    def encode_images(self, images: Tensor | list[Tensor]) -> tuple[list[Tensor], list[Image]]:
        """Pixels to embeddings.

        Args:
            images: [N, 3, H, W] or N tensors [3, H, W].

        Returns:
            (N tensors [m, D]: m rows after the encoder stage, or all; the layout's account of each image).
        """
        pixels = stack_images(images)
        tower, shape, origin = self.get_vision_tower(), self.visual_shape(), None
        pruner = tower.pruner
        if pruner is not None and pruner.plan_for(shape).encoder is not None:
            features, origin = tower.staged(pixels, shape)
        else:
            features = tower(pixels)
        embeds = self.model.mm_projector(features)
        accounts = [tower.image(shape, None if origin is None else origin[i], p) for i, p in enumerate(pixels)]
        return list(embeds), accounts

    def expand_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images,
        labels: Tensor | None = None,
        past: int = 0,
    ) -> Prompt:
        """Put images into prompts.

        Args:
            input_ids: [B, T0] with -200 where an image stands; attention_mask: [B, T0] or None.
            images: see `encode_images`; one per placeholder, row-major.
            past: columns already in the cache; images that lie wholly before are not encoded again.

        Raises:
            VisionDropError: images and placeholders do not match in number.
        """
        holes = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        given = 0 if images is None else len(images)
        if holes != given:
            raise VisionDropError(
                f"{given} images for {holes} <image> placeholders (id {IMAGE_TOKEN_INDEX}): give exactly one image per "
                "placeholder, in the order of the rows"
            )
        tokens = self.visual_shape().tokens
        rows = _expand_rows(input_ids, attention_mask, labels, tokens, strip=past == 0)
        ids, mask, ordinals, new_labels = _pad_left(rows, input_ids.device)
        needed = bool((ordinals[:, past:] >= 0).any())
        if needed:
            features, accounts = self.encode_images(images)
        else:
            features, accounts = [], [Image(self.visual_shape())] * given
        embeds = self.model.embed_tokens(ids)
        if needed:
            embeds = _place(embeds, ordinals, features)
        return Prompt(ids, mask, ordinals, embeds, accounts, new_labels if labels is not None else None)

    def layout_of(self, ordinals: Tensor, mask: Tensor | None, images: list[Image]) -> Layout:
        """Where the images of one pass stand."""
        return Layout.build(ordinals, mask, images)


def stack_images(images: Tensor | list[Tensor]) -> Tensor:
    """[N, 3, H, W] from a tensor or a list; anything else is refused with its shape."""
    if isinstance(images, (list, tuple)):
        sizes = {tuple(i.shape) for i in images}
        if len(sizes) != 1:
            raise VisionDropError(f"images of different shapes {sorted(sizes)}: preprocess them with llava.mm_utils.process_images")
        images = torch.stack(list(images))
    if images.ndim == 5 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 4 or images.shape[1] != 3:
        raise VisionDropError(f"images of shape {tuple(images.shape)}: allowed is [N, 3, H, W]")
    return images


def _expand_rows(input_ids: Tensor, mask: Tensor | None, labels: Tensor | None, tokens: int, strip: bool) -> list[tuple]:
    """Per row (ids, mask, ordinals, labels) with every placeholder replaced by `tokens` positions."""
    rows, ordinal = [], 0
    for b, line in enumerate(input_ids.tolist()):
        valid = [True] * len(line) if mask is None else mask[b].bool().tolist()
        marks = [-100] * len(line) if labels is None else labels[b].tolist()
        ids, keep, places, targets = [], [], [], []
        for token, ok, mark in zip(line, valid, marks):
            if not ok and strip:
                continue
            visual = token == IMAGE_TOKEN_INDEX
            count = tokens if visual else 1
            ids += [FILLER_ID if visual else token] * count
            keep += [ok] * count
            places += [ordinal if visual else -1] * count
            targets += [-100 if visual else mark] * count
            ordinal += int(visual)
        rows.append((ids, keep, places, targets))
    return rows


def _pad_left(rows: list[tuple], device: torch.device) -> tuple[Tensor, ...]:
    """(ids, mask, ordinals, labels), each [B, T], from ragged rows."""
    width = max(len(row[0]) for row in rows)
    fillers = (FILLER_ID, False, -1, -100)
    return tuple(
        torch.tensor([[filler] * (width - len(row[k])) + row[k] for row in rows], device=device)
        for k, filler in enumerate(fillers)
    )


def _place(embeds: Tensor, ordinals: Tensor, features: list[Tensor]) -> Tensor:
    """Write each image's m rows over the first m of its positions; the rest of the block becomes zero."""
    embeds = embeds.clone()
    for n, feature in enumerate(features):
        row, column = (ordinals == n).nonzero()[0].tolist()
        count = int((ordinals[row] == n).sum())
        embeds[row, column : column + count] = 0
        embeds[row, column : column + len(feature)] = feature.to(embeds.device, embeds.dtype)
    return embeds
