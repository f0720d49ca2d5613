"""What LLaVA adds to a language model: images become embeddings at the placeholders of the prompt.

Outside the decoder stack only unpruned lengths exist: a placeholder (-200) becomes as many positions as the image has
visual tokens before pruning, whatever a method will keep of them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.errors import VisionDropError
from visiondrop.plans.shape import VisualShape
from visiondrop.stack.layout import Image
from visiondrop.tower.stage import Eyes, encode
from visiondrop.tower.units import Picture, by_shape, tower_ids

from .. import geometry
from ..anyres import Crops, check_layout, describe_crops, is_anyres
from .multimodal_encoder.builder import build_video_towers, build_vision_tower
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
        if config.mm_video_tower:
            self.image_tower, self.video_tower = build_video_towers(config)
        else:
            self.vision_tower = build_vision_tower(config)
        self.mm_projector = build_vision_projector(config)
        if "unpad" in (config.mm_patch_merge_type or ""):
            self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))

    def get_vision_tower(self) -> nn.Module:
        """The vision tower; of Video-LLaVA's two, the one for images."""
        return self.image_tower if hasattr(self, "image_tower") else self.vision_tower

    def get_video_tower(self) -> nn.Module | None:
        """The tower for videos, or None."""
        return getattr(self, "video_tower", None)


class LlavaMetaForCausalLM:
    """Mixin for the causal model: encoding images and laying out prompts."""

    def get_vision_tower(self) -> nn.Module:
        """The vision tower; of Video-LLaVA's two, the one for images."""
        return self.model.get_vision_tower()

    def get_video_tower(self) -> nn.Module | None:
        """The tower for videos, or None."""
        return self.model.get_video_tower()

    def vision_towers(self) -> list[nn.Module]:
        """All towers."""
        return [t for t in (self.get_vision_tower(), self.get_video_tower()) if t is not None]

    def visual_shape(self) -> VisualShape:
        """The shape of what this model is made for: an image (LLaVA-NeXT: a square one of 2 x 2 tiles) or a video."""
        return geometry.visual_shape(self.config) if self.get_video_tower() is not None else self.image_shape()

    def video_shape(self) -> VisualShape:
        """The shape of a video: all frames, each with its [CLS]."""
        return geometry.video_shape(self.config)

    def image_shape(self) -> VisualShape:
        """The shape of an ordinary image.  In a model for videos the budget is a video's; an image has one frame's."""
        return self._with_newline(geometry.image_shape(self.config))

    def pictures(self, images: Tensor | list, image_sizes=None) -> list[Picture]:
        """What the images are, from their pixels and (LLaVA-NeXT) their sizes.

        Args:
            images: [N, 3, H, W] or N tensors [3, H, W]; LLaVA-NeXT: [N, crops, 3, H, W] or N tensors [crops, 3, H, W]
                (or [3, H, W], an image without tiles); Video-LLaVA: a list of images [3, H, W] and videos
                [3, frames, H, W].  An item may be None, an image that is in the cache.
            image_sizes: N pairs (width, height) of the original images.
        """
        if self.get_video_tower() is not None:
            return [self._frames(image) for image in images]
        if not is_anyres(self.config):
            shape = self.image_shape()
            given = [p for p in images if p is not None]
            pixels = iter(stack_images(images if len(given) == len(images) else given)) if given else iter(())
            return [Picture(shape, None if p is None else next(pixels)[None]) for p in images]
        sizes = [None] * len(images) if image_sizes is None else [tuple(int(n) for n in size) for size in image_sizes]
        if len(sizes) != len(images):
            raise VisionDropError(
                f"{len(sizes)} image_sizes for {len(images)} images: give one (width, height) per image"
            )
        return [self._crops(image, size) for image, size in zip(images, sizes)]

    def _frames(self, pixels: Tensor) -> Picture:
        """One image or video of a Video-LLaVA prompt."""
        frames = self.get_video_tower().frames
        if pixels.ndim == 3 and len(pixels) == 3:
            return Picture(self.image_shape(), pixels[None])
        if pixels.ndim == 4 and pixels.shape[:2] == (3, frames):
            return Picture(self.video_shape(), pixels.transpose(0, 1))
        raise VisionDropError(
            f"an input of shape {tuple(pixels.shape)}: Video-LLaVA takes images [3, H, W] and videos "
            f"[3, {frames}, H, W] (llava.video.load_video)"
        )

    def _earlier_pictures(self, input_ids: Tensor, image_sizes) -> list[Picture]:
        """The images of earlier turns, which are in the cache: what they are follows from the prompt alone."""
        holes = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        if self.get_video_tower() is None:
            return self.pictures([None] * holes, image_sizes)
        frames, out = self.get_video_tower().frames, []
        for row in input_ids:
            visual, counts = (row == IMAGE_TOKEN_INDEX).unique_consecutive(return_counts=True)
            for count in counts[visual].tolist():
                videos, images = divmod(count, frames)
                out += [Picture(self.video_shape())] * videos + [Picture(self.image_shape())] * images
        return out

    def _crops(self, image: Tensor | None, size: tuple[int, int] | None) -> Picture:
        """One LLaVA-NeXT image."""
        if image is not None and image.ndim == 3:
            image = image[None]
        if image is not None and (image.ndim != 4 or image.shape[1] != 3):
            raise VisionDropError(f"a LLaVA-NeXT image of shape {tuple(image.shape)}: allowed is [crops, 3, H, W]")
        crops = self._describe_crops(None if image is None else len(image), size)
        return Picture(crops.shape, image, crops.grid, crops.ids)

    def _describe_crops(self, units: int | None, size: tuple[int, int] | None) -> Crops:
        """`describe_crops` of this model."""
        crops = describe_crops(self.config, units, size)
        self._with_newline(crops.shape)
        return crops

    def _with_newline(self, shape: VisualShape) -> VisualShape:
        """The shape, refused where the configuration asks for a newline that was never loaded."""
        if shape.source == "anyres":
            check_layout("anyres", self.config.image_aspect_ratio, hasattr(self.model, "image_newline"))
        return shape

    def encode_images(self, images: Tensor | list, image_sizes=None) -> tuple[list[Tensor], list[Image]]:
        """Pixels to embeddings; arguments as in `pictures`.

        Returns:
            (N tensors [m, D]: m rows after the encoder stage, or all; the layout's account of each image).
        """
        return self.encode_pictures(self.pictures(images, image_sizes))

    def encode_pictures(self, pictures: list[Picture]) -> tuple[list[Tensor], list[Image]]:
        """`encode_images`, image by image described."""
        embeds: list = [None] * len(pictures)
        origins: list = [None] * len(pictures)
        if any(p.pixels is None for p in pictures):
            raise VisionDropError(
                "an image of this prompt is not in the cache: give the images of all its placeholders"
            )
        for shape, ordinals in by_shape(pictures):
            tower = self.get_video_tower() if shape.kind == "video" else self.get_vision_tower()
            if tower.pruner is not None and tower.pruner.plan_for(shape).encoder is not None:
                eyes = Eyes(
                    tower.clip, tower.select_layer, self.model.mm_projector, getattr(self.model, "image_newline", None)
                )
                group = [pictures[i] for i in ordinals]
                encoded = encode(tower.pruner, eyes, group, ordinals, len(pictures))
                found, origin = encoded.rows, encoded.ids
            else:
                rows = self.model.mm_projector(tower(torch.cat([pictures[i].pixels for i in ordinals])))
                rows = rows.view(len(ordinals), -1, rows.shape[-1])
                found = [self._pack(row, pictures[i]) for row, i in zip(rows, ordinals)]
                origin = [self._unpruned_ids(pictures[i]) for i in ordinals]
            for k, i in enumerate(ordinals):
                embeds[i], origins[i] = found[k], None if origin is None else origin[k]
        return embeds, [self.account(p, o, len(rows)) for p, o, rows in zip(pictures, origins, embeds)]

    def account(self, picture: Picture, origin: Tensor | None = None, rows: int | None = None) -> Image:
        """The layout's account of one image, of which the encoder stage has left `rows`."""
        pruner = self.get_vision_tower().pruner
        seed = 0 if pruner is None or picture.pixels is None else pruner.seed_of(picture.pixels)
        return Image(picture.shape, origin, seed, self._room(picture.shape), entered=rows)

    def _room(self, shape: VisualShape) -> int:
        """Positions that the rows left by an encoder stage need."""
        pruner = self.get_vision_tower().pruner
        return 0 if pruner is None else pruner.plan_for(shape).entry

    def _pack(self, rows: Tensor, picture: Picture) -> Tensor:
        """Projected rows [U * R, D] of one image as its unpruned sequence: unpadding undone, newlines put in."""
        if picture.ids is None:
            return rows
        ids = picture.ids.to(rows.device)
        if picture.shape.source == "anyres":
            rows = torch.cat([rows, self.model.image_newline[None].to(rows.device, rows.dtype)])
            ids = torch.where(ids < 0, len(rows) - 1, ids)
        return rows[ids]

    def _unpruned_ids(self, picture: Picture) -> Tensor | None:
        """Ids of an unpruned sequence for the report; None = 0 … tokens-1."""
        shape = picture.shape
        if picture.ids is not None or shape.tokens == shape.units * shape.patches:
            return picture.ids
        return tower_ids(shape.units, shape.patches, cls=True)

    def _asked(self, pictures: list[Picture], input_ids: Tensor, mask: Tensor | None) -> list[Picture]:
        """With their questions, where an encoder stage reads them and the prompts say them."""
        pruner = self.get_vision_tower().pruner
        if pruner is None or pruner.plan.question is None or pruner.reader.tokenizer is None:
            return pictures
        rows = [
            row if mask is None else row[m.bool()] for row, m in zip(input_ids, input_ids if mask is None else mask)
        ]
        blocks = [_placeholders(picture) for picture in pictures]
        found = pruner.reader.read([row.tolist() for row in rows], {IMAGE_TOKEN_INDEX}, blocks)
        return [replace(picture, question=text) for picture, text in zip(pictures, found)]

    def expand_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images,
        labels: Tensor | None = None,
        past: int = 0,
        image_sizes=None,
    ) -> Prompt:
        """Put images into prompts.

        Args:
            input_ids: [B, T0] with -200 where an image stands; attention_mask: [B, T0] or None.
            images, image_sizes: see `pictures`; one per placeholder, row-major.
            past: columns already in the cache; images that lie wholly before are not encoded again.

        Raises:
            VisionDropError: images and placeholders do not match in number.
        """
        if images is None and past:
            pictures = self._earlier_pictures(input_ids, image_sizes)
        else:
            pictures = [] if images is None else self.pictures(images, image_sizes)
        holes = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        if holes != sum(map(_placeholders, pictures)):
            each = "" if self.get_video_tower() is None else f", and {self.get_video_tower().frames} per video"
            raise VisionDropError(
                f"{len(pictures)} images for {holes} <image> placeholders (id {IMAGE_TOKEN_INDEX}): give exactly one "
                f"image per placeholder{each}, in the order of the rows"
            )
        blocks = [(_placeholders(p), Image(p.shape, room=self._room(p.shape)).block) for p in pictures]
        rows = _expand_rows(input_ids, attention_mask, labels, blocks, strip=past == 0)
        ids, mask, ordinals, new_labels = _pad_left(rows, input_ids.device)
        needed = bool((ordinals[:, past:] >= 0).any())
        if needed:
            pictures = self._asked(pictures, input_ids, attention_mask)
        features, accounts = self.encode_pictures(pictures) if needed else ([], [self.account(p) for p in pictures])
        embeds = self.model.embed_tokens(ids)
        if needed:
            embeds = _place(embeds, ordinals, features)
        return Prompt(ids, mask, ordinals, embeds, accounts, new_labels if labels is not None else None)


def stack_images(images: Tensor | list[Tensor]) -> Tensor:
    """[N, 3, H, W] from a tensor or a list; anything else is refused with its shape."""
    if isinstance(images, (list, tuple)):
        sizes = {tuple(i.shape) for i in images}
        if len(sizes) != 1:
            raise VisionDropError(
                f"images of different shapes {sorted(sizes)}: preprocess them with llava.mm_utils.process_images"
            )
        images = torch.stack(list(images))
    if images.ndim == 5 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 4 or images.shape[1] != 3:
        raise VisionDropError(f"images of shape {tuple(images.shape)}: allowed is [N, 3, H, W]")
    return images


def _placeholders(picture: Picture) -> int:
    """How often -200 stands for it in a prompt: once, or once per frame of a video."""
    return picture.shape.units if picture.shape.kind == "video" else 1


def _expand_rows(
    input_ids: Tensor, mask: Tensor | None, labels: Tensor | None, blocks: list[tuple[int, int]], strip: bool
) -> list[tuple]:
    """Per row (ids, mask, ordinals, labels) with placeholders replaced.

    blocks: per image (placeholders, which stand side by side; positions that they become together).
    """
    rows, ordinal, left = [], -1, 0
    for b, line in enumerate(input_ids.tolist()):
        valid = [True] * len(line) if mask is None else mask[b].bool().tolist()
        marks = [-100] * len(line) if labels is None else labels[b].tolist()
        ids, keep, places, targets = [], [], [], []
        for token, ok, mark in zip(line, valid, marks):
            if not ok and strip:
                continue
            visual, count = token == IMAGE_TOKEN_INDEX, 1
            if visual and left == 0:
                ordinal += 1
                left, count = blocks[ordinal]
            elif visual:
                count = 0
            elif left:
                raise VisionDropError(_torn(blocks[ordinal][0], left))
            left -= int(visual)
            ids += [FILLER_ID if visual else token] * count
            keep += [ok] * count
            places += [ordinal if visual else -1] * count
            targets += [-100 if visual else mark] * count
        if left:
            raise VisionDropError(_torn(blocks[ordinal][0], left))
        rows.append((ids, keep, places, targets))
    return rows


def _torn(frames: int, left: int) -> str:
    return (
        f"a video needs {frames} <image> placeholders side by side; {left} are missing behind {frames - left} of them"
    )


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
