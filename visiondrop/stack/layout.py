"""Where the images of a batch stand: host-side numbers, made once per prefill, so that the stages need no look at data.

Coordinates.  A *column* counts all positions of a padded row; a *coordinate* counts its valid tokens only, 0 … n-1.
Inside the stack rows are always padded on the left, so column = width - length + coordinate.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import VisionDropError
from ..plans.shape import VisualShape


@dataclass(frozen=True, eq=False)
class Image:
    """One image, whichever rows show it.

    Attributes:
        shape: what its plan is made from.
        origin: ids of its tokens at LLM entry (see `arrange`), needed for recording; None = 0 … tokens-1.
        seed: fingerprint of the pixels, for seeded methods.
        room: positions its block has in the prompt, where the encoder stage passes on more tokens than the unpruned
            sequence would have (a thin unpadded strip of a picture); 0 = as many as unpruned tokens.
        scores, metric: [n] float32 and [n, E] of its tokens from the tower, where the encoder stage acts on entry of the
            stack; else None, and the block holds what the encoder stage has left.
        probes: [n] attention received in each tower layer that the stage asks for besides.
        entered: how many tokens that are, where it depends on the picture; None = as many as its plan says.
    """

    shape: VisualShape
    origin: Tensor | None = None
    seed: int = 0
    room: int = 0
    scores: Tensor | None = None
    metric: Tensor | None = None
    probes: dict[int, Tensor] = field(default_factory=dict)
    entered: int | None = None

    @property
    def block(self) -> int:
        """Positions of its block of placeholders."""
        return max(self.room, self.shape.tokens)


@dataclass
class Span:
    """One image's block of placeholders in one row: `image.block` of them from coordinate `start` on."""

    row: int
    start: int
    image: Image

    @property
    def shape(self) -> VisualShape:
        """The image's shape."""
        return self.image.shape


@dataclass
class Layout:
    """All spans of one prefill.

    Attributes:
        spans: in row order, then from left to right.
        lengths: valid tokens of every row.
        width: columns T.
        mask: [B, T] bool on the CPU where there is padding, else None.
        prompt_ends: per row, ascending coordinates after the last token of each prompt (see `Pruner.prompt_ends`).
    """

    spans: list[Span]
    lengths: list[int]
    width: int
    mask: Tensor | None = None
    prompt_ends: list[list[int]] = field(default_factory=list)

    @classmethod
    def build(cls, ordinals: Tensor, attention_mask: Tensor | None, images: list[Image]) -> "Layout":
        """Find each image's block.

        Args:
            ordinals: [B, T] long, the image a position belongs to, -1 for text.
            attention_mask: [B, T] or None; 0 = padding.
            images: by ordinal; an image may stand in several rows (beams).
        """
        ordinals = ordinals.cpu()
        mask = None if attention_mask is None else attention_mask.cpu().bool()
        if mask is not None and bool(mask.all()):
            mask = None
        width, spans = ordinals.shape[1], []
        lengths = [width] * len(ordinals) if mask is None else mask.sum(1).tolist()
        for row, line in enumerate(ordinals):
            if mask is not None:
                line = line[mask[row]]
            numbers, counts = line.unique_consecutive(return_counts=True)
            start = 0
            for number, count in zip(numbers.tolist(), counts.tolist()):
                if number >= 0:
                    _check_block(count, images[number].block)
                    spans.append(Span(row, start, images[number]))
                start += count
        return cls(spans, lengths, width, mask, [[n] for n in lengths])

    def left_padded(self) -> bool:
        """Whether all padding, if any, stands on the left."""
        if self.mask is None:
            return True
        return all(bool(row[self.width - n :].all()) for row, n in zip(self.mask, self.lengths))


def _check_block(count: int, block: int) -> None:
    if count != block:
        raise VisionDropError(
            f"{count} contiguous placeholder tokens for an image of {block}: give every image all of its "
            "placeholders side by side, in one pass (no chunked prefill, no truncation)"
        )


def number_images(is_visual: Tensor, images: list[Image]) -> Tensor:
    """Ordinals for `Layout.build` when only the placeholders are known: images fill them in row-major order.

    Args:
        is_visual: [B, T] bool, True at placeholders.
        images: the images as they were encoded; rows may repeat them (beams: A, A, B, B).

    Returns:
        [B, T] long, -1 for text.

    Raises:
        VisionDropError: the placeholders do not fit the images.
    """
    is_visual = is_visual.cpu()
    rows, (found, given) = len(is_visual), (int(is_visual.sum()), sum(i.block for i in images))
    repeat = found // given if given and found % given == 0 and rows % max(1, found // given) == 0 else 0
    out = torch.full(is_visual.shape, -1, dtype=torch.long)
    unused = list(range(len(images)))
    for first in range(0, rows, max(1, repeat)):
        need, numbers = int(is_visual[first].sum()), list[int]()
        while unused and sum(images[n].block for n in numbers) < need:
            numbers.append(unused.pop(0))
        blocks = torch.cat([torch.full((images[n].block,), n) for n in numbers]) if numbers else torch.empty(0)
        copies = range(first, first + max(1, repeat))
        if repeat == 0 or any(int(is_visual[r].sum()) != len(blocks) for r in copies):
            raise VisionDropError(
                f"{found} image placeholder tokens for {len(images)} images of "
                f"{sorted({i.block for i in images})} tokens each: give exactly one image per placeholder"
            )
        for row in copies:
            out[row, is_visual[row]] = blocks.long()
    return out


def row_index(pieces: list[list[Tensor]], width: int) -> Tensor:
    """Per row, concatenate index pieces and pad them on the left with 0: -> [B, width] long."""
    out = torch.zeros(len(pieces), width, dtype=torch.long)
    for row, parts in enumerate(pieces):
        joined = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
        out[row, width - len(joined) :] = joined
    return out


def padding_mask(lengths: list[int], width: int, device: torch.device) -> Tensor | None:
    """[B, width] bool, True = valid, for left-padded rows; None where every row is full."""
    if all(n == width for n in lengths):
        return None
    first = torch.tensor([width - n for n in lengths], device=device)
    return torch.arange(width, device=device) >= first[:, None]
