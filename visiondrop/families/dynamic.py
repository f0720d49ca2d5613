"""One adapter for the families of `families.table`: models that take pictures of many sizes, several of them, and videos.

The tower runs as it is and passes on all of its tokens.  Scores and keys are picked up in its last layer that sees the whole
picture, sent the way the patches go on to become tokens, and kept beside them; the encoder stage chooses on entry of the
language model, where positions (M-RoPE), features of other layers (Qwen3-VL) and beams follow the tokens by themselves.
What that costs more than choosing before the projector is the projector on all tokens, well below 1 % of a prefill.

Pictures are found by their placeholders: a run of them is one picture, one frame where text stands between frames, or,
where pictures stand side by side, as much of the run as the model made tokens for.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..compat import Model
from ..errors import UnsupportedError, VisionDropError
from ..ops import scores
from ..plans.flops import ModelDims
from ..plans.grids import PACKED
from ..plans.shape import VisualShape, feature_layer
from ..pruner import Pruner
from ..stack.layout import Image
from .dims import dims_of
from .hooks import HubAdapter
from .patches import PATCHES, grid_of, tiles_of
from .registry import register
from .table import Family
from .tap import Taken, Tap

ENCODER_SCORES = ("received", "cls")
ACT_ON_PATCHES = ("prumerge", "vscan")  # keys of patches, and projected patches averaged
ORDINARY = (32, 32)  # rows and columns of tokens that ledgers are made for, where pictures may have any size


@dataclass
class Encoded:
    """What one call of the tower has made: the pictures, or the videos, of a batch in prompt order.

    Attributes:
        sizes: tokens per item; grids: per item (frames, rows, columns) of tokens, or None.
        numbers: [N, 1 + E] score and key of every token, or None where nothing asks for them.
        seeds: a fingerprint per item; tiles: tiles or frames per item that were stitched or pooled, or none.
        probes: by tower layer, [N] attention received by every token.
    """

    kind: str
    sizes: list[int]
    grids: list[tuple[int, int, int]] | None = None
    numbers: Tensor | None = None
    seeds: list[int] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    probes: dict[int, Tensor] = field(default_factory=dict)


class DynamicAdapter(HubAdapter):
    """Attaches a pruner to one model of a family in the table."""

    pixel_names = ("pixel_values", "pixel_values_videos")
    family: Family

    def __init__(self, model: Model):
        super().__init__(model)
        self.tower = self.inner.get_submodule(self.family.tower)
        self.layers = self.tower.get_submodule(self.family.layers)
        self.taps = [Tap(layer.get_submodule(self.family.attention)) for layer in self.layers]

    def _stack(self) -> Model:
        return self.inner.get_submodule(self.family.stack)

    def shape(self) -> VisualShape:
        """An ordinary picture: `ORDINARY` tokens, or a square of two by two tiles and the whole picture beside them."""
        tower = self.dims().grid_tower
        if not tower.tile:
            return self._shape((1, *ORDINARY))
        if self.family.runs:
            return self._shape((5, self._side, self._side))
        side = 2 * self.model.config.vision_config.image_size
        sizes = torch.tensor([[side, side]])
        tiles = tiles_of(self.inner, sizes, None)[0]
        patches = torch.zeros(tiles * tower.tile, 1)
        tokens = len(PATCHES["tiles"](self.inner, patches, {"image_sizes": sizes}))
        return self._shape(None, tokens, tiles)

    def dims(self) -> ModelDims:
        """The model's dimensions."""
        return dims_of(self.model.config, self.family.patches)

    def attach(self, pruner: Pruner) -> Callable[[], None]:
        """Install the hooks; returns the undo."""
        self._check(pruner.plan)
        pruner.keeps_positions, pruner.own_rotary = self.family.axes > 1, self.family.rotary
        pruner.positions(pruner.plan)  # those that this model cannot have are refused now
        detach, lifts = super().attach(pruner), [tap.attach() for tap in self.taps]

        def undo() -> None:
            for lift in lifts:
                lift()
            detach()

        return undo

    def inputs(self, ids: list[int], image: Any, processor: Any = None) -> dict[str, Any]:
        """Refused: these families lay out their own prompts, see `loading.put_before`."""
        raise UnsupportedError(
            f"{self.family.title} lays out its prompts itself: give encode the model's processor= "
            "(AutoProcessor.from_pretrained), in place of tokenizer=, image_processor= and prompt="
        )

    def check_encoder_score(self, wanted: str) -> str:
        """`encoder_score` of `apply`, where the tower has what it asks for."""
        allowed = ENCODER_SCORES if self._has_cls else ENCODER_SCORES[:1]
        if wanted not in allowed:
            raise UnsupportedError(
                f"encoder_score={wanted!r}: allowed for {self.family.title} are {', '.join(allowed)}"
                + ("" if self._has_cls else " (its tower has no [CLS])")
            )
        return wanted

    def feature_calls(self) -> dict[str, Callable]:
        """Every call that encodes notes what it encoded."""
        names = {"image": "get_image_features", **({"video": "get_video_features"} if self.family.videos else {})}
        return {name: self._noting(kind, getattr(self.inner, name)) for kind, name in names.items()}

    def _check(self, plan) -> None:
        """Refuse what acts inside the tower, or on what lies between it and its tokens."""
        if plan.tower or (plan.encoder is not None and plan.method.split("+")[0] in ACT_ON_PATCHES):
            raise UnsupportedError(
                f"method {plan.method!r} acts on the patches of a CLIP tower; {self.family.title} has another tower, and hands "
                "on tokens of several patches: use visionzip, vispruner, scope, divprune, hiprune, holov, prunesid, visiondrop "
                "or a method that acts in the decoder"
            )

    @property
    def _scored(self) -> int:
        """The tower's last layer that sees the whole picture and whose output, or a later one's, goes on; 0-based."""
        whole = getattr(self.model.config.vision_config, "fullatt_block_indexes", None)
        if whole:
            return whole[-1]
        feature = getattr(self.model.config, "vision_feature_layer", -1)
        if not isinstance(feature, int):
            raise UnsupportedError(f"vision_feature_layer={feature}: scores are read from one feature layer")
        return feature_layer(len(self.layers), feature)

    def _whole(self, layer: int) -> int:
        """The layer nearest to `layer` that sees the whole picture: inside a window, attention ranks that window alone."""
        whole = getattr(self.model.config.vision_config, "fullatt_block_indexes", None) or range(len(self.layers))
        return min(whole, key=lambda at: (abs(at - layer), at))

    def _noting(self, kind: str, stock: Callable) -> Callable:
        signature = inspect.signature(stock)

        @functools.wraps(stock)  # generate routes arguments by the signature
        def call(*args, **kwargs):
            if self.now.encoding or not self.pruner.plan.active:  # a video's frames go through the call for pictures
                return stock(*args, **kwargs)
            self._check(self.pruner.plan)
            self.now.encoding = True
            try:
                with ExitStack() as block:
                    taken = {at: block.enter_context(self.taps[at].taking()) for at in self._asked()}
                    output = stock(*args, **kwargs)
            finally:
                self.now.encoding = False
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            if kind == "video" and "pixel_values" in arguments:  # as OneVision called it up to 5.19
                arguments["pixel_values_videos"] = arguments.pop("pixel_values")
            self._note(kind, arguments, output, taken)
            return output

        return call

    def _asked(self) -> set[int]:
        """Tower layers that the encoder stage asks for attention."""
        stage = self.pruner.plan.encoder
        return set() if stage is None else {self._scored, *map(self._whole, stage.probes)}

    def _note(self, kind: str, arguments: dict[str, Any], output: Any, taken: dict[int, Taken]) -> None:
        rows = output.pooler_output
        sizes, grids, grid = [len(row) for row in rows], None, grid_of(arguments)
        if self.family.patches == "connector":  # all tiles of a sample at once, and each is a picture
            sizes = [self._side**2] * (sum(sizes) // self._side**2)
        if grid is not None:
            unit = self.tower.spatial_merge_size
            grids = [(t, h // unit, w // unit) for t, h, w in grid.tolist()]
        tiles: list[int] = []
        if self.family.patches == "tiles":
            tiles, sizes = self._tiled(kind, arguments, sizes)
        numbers, probes = None, {}
        if taken:
            numbers = self._tokens(self._numbers(taken[self._scored]), arguments)
            if len(numbers) != sum(sizes):
                raise VisionDropError(
                    f"{len(numbers)} scores for {sum(sizes)} visual tokens of {type(self.model).__name__}: this version of "
                    "transformers makes tokens of patches in another way; install one within the supported range"
                )
            for layer in self.pruner.plan.encoder.probes:
                received = self._received(taken[self._whole(layer)])
                probes[layer] = self._tokens(received[:, None], arguments)[:, 0]
        given = self._given({"pixel_values": None, **arguments})
        self.now.pixels = [*self.now.pixels, *given]
        seeds = [self.pruner.seed_of(pixels) for pixels in given] if len(given) == len(sizes) else [0] * len(sizes)
        self.now.encoded[kind] = Encoded(kind, sizes, grids, numbers, seeds, tiles, probes)

    def _tiled(self, kind: str, arguments: dict[str, Any], sizes: list[int]) -> tuple[list[int], list[int]]:
        """(tiles or frames, tokens) of LLaVA-OneVision's items; older releases add a video's newline after this call."""
        if kind == "image":
            return tiles_of(self.inner, arguments["image_sizes"], arguments.get("batch_num_images")), sizes
        frames = arguments["pixel_values_videos"].shape[1]
        side = round(self.dims().grid_tower.tile ** 0.5)
        pooled = ((side + 1) // 2) ** 2  # two by two patches become one token
        return [frames] * len(sizes), [frames * pooled + 1] * len(sizes)

    def _numbers(self, taken: Taken) -> Tensor:
        """[P, 1 + E] float32: every patch's score and its key, mean over heads, in the tower's order."""
        first = int(self._has_cls)
        parts = []
        for query, key, scale in taken:
            if self.pruner.encoder_score == "cls":
                score = scores.attention_rows(query[:, :, :1], key, scale, None)[:, 0, first:]
            else:
                chunk, fused = self.pruner.chunk, self.pruner.fused
                score = scores.received(query[:, :, first:], key, scale, None, "bidirectional", chunk, fused)
            metric = key[:, :, first:].mean(dim=1).float()
            parts.append(torch.cat([score[..., None], metric], dim=-1).flatten(0, 1))
        return torch.cat(parts)

    def _received(self, taken: Taken) -> Tensor:
        """[P] float32: attention that every patch receives from all rows, [CLS] among them, in the tower's order."""
        first, chunk, fused = int(self._has_cls), self.pruner.chunk, self.pruner.fused
        rows = [scores.received(q, k, scale, None, "bidirectional", chunk, fused) for q, k, scale in taken]
        return torch.cat([row[:, first:].flatten() for row in rows])

    def _tokens(self, numbers: Tensor, arguments: dict[str, Any]) -> Tensor:
        return PATCHES[self.family.patches](self.inner, numbers, arguments)

    @property
    def _side(self) -> int:
        """Tokens per side of a tile."""
        tower = self.dims().grid_tower
        return round(tower.tile**0.5) // tower.merge

    @property
    def _has_cls(self) -> bool:
        return self.family.patches == "shuffle"

    def _shape(self, grid: tuple[int, int, int] | None, tokens: int = 0, tiles: int = 0) -> VisualShape:
        """A picture or video of `grid` (frames, rows, columns) tokens, or of `tokens` that the model has packed."""
        frames, rows, columns = grid or (1, 1, tokens)
        return VisualShape(
            layers=self.model.config.text_config.num_hidden_layers,
            patches=frames * rows * columns,
            cls=False,
            source=PACKED if grid is None else f"{frames}x{rows}x{columns}" if frames > 1 else f"{rows}x{columns}",
            grid=grid,
            tiles=tiles,
            tower_layers=len(self.layers),
            feature_layer=self._scored,
        )

    def _kinds(self) -> list[tuple[int, list[Image]]]:
        config = self.model.config
        names = ("image_token_id", self.family.video_token) if self.family.videos else ("image_token_id",)
        return [(token, []) for token in dict.fromkeys(getattr(config, name) for name in names)]

    def _check_places(self, token: int, images: list[Image]) -> None:
        """The classes compare numbers of placeholders and features themselves."""

    def _number(self) -> tuple[Tensor, list[Image]]:
        ordinals, images = torch.full(self.now.ids.shape, -1), list[Image]()
        for kind, name in (("image", "image_token_id"), ("video", self.family.video_token)):
            encoded = self.now.encoded.get(kind)
            if encoded is not None:
                token = getattr(self.model.config, name)
                found, more = self._cut((self.now.ids == token).cpu(), encoded)
                ordinals = torch.where(found >= 0, found + len(images), ordinals)
                images += more
        return ordinals, images

    def _cut(self, visual: Tensor, encoded: Encoded) -> tuple[Tensor, list[Image]]:
        """[B, T] bool places of one kind -> ([B, T] long, which picture stands there or -1; the pictures)."""
        given, found = sum(encoded.sizes), int(visual.sum())
        repeat = found // given if given and found % given == 0 else 0
        if repeat == 0 or len(visual) % repeat:
            raise VisionDropError(
                f"{found} {encoded.kind} placeholder tokens for {given} visual tokens: give the ids that the processor made "
                "for these pictures, in one pass (no chunked prefill, no truncation)"
            )
        ordinals, images = torch.full(visual.shape, -1), list[Image]()
        pieces = self._pieces(visual[::repeat], encoded)
        for row, start, item, offset, count in pieces:
            for copy in range(row * repeat, (row + 1) * repeat):  # beams show the same pictures
                ordinals[copy, start : start + count] = len(images)
            images.append(self._image(encoded, item, offset, count))
        return ordinals, images

    def _pieces(self, visual: Tensor, encoded: Encoded) -> Iterator[tuple[int, int, int, int, int]]:
        """(row, column, item, offset into all tokens, count) of every picture: runs, cut where an item ends."""
        ends = torch.tensor([0, *encoded.sizes]).cumsum(0).tolist()
        offset = item = 0
        for row, line in enumerate(visual):
            _, counts = line.unique_consecutive(return_counts=True)
            start = 0
            for count in counts.tolist():
                stop, here = start + count, start
                while line[start] and here < stop:
                    while ends[item + 1] <= offset:
                        item += 1
                    piece = stop - here if self.family.runs else min(stop - here, ends[item + 1] - offset)
                    yield row, here, item, offset, piece
                    here, offset = here + piece, offset + piece
                start = stop

    def _image(self, encoded: Encoded, item: int, offset: int, count: int) -> Image:
        grid = None
        if encoded.grids is not None:
            frames, rows, columns = encoded.grids[item]
            grid = (count // (rows * columns), rows, columns)
        elif self.family.runs:
            side = self._side
            grid = (count // side**2, side, side)
        tiles = encoded.tiles[item] if encoded.tiles else 0
        seed, own = encoded.seeds[item], dict[str, Any]()
        if encoded.numbers is not None:
            numbers = encoded.numbers[offset : offset + count]
            probes = {at: x[offset : offset + count] for at, x in encoded.probes.items()}
            own = {"scores": numbers[:, 0], "metric": numbers[:, 1:], "probes": probes}
        return Image(self._shape(grid, count, tiles), None, seed, **own)

    def _given(self, kwargs: dict) -> list[Tensor]:
        out = []
        for name, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            pixels, sizes = kwargs.get(name), kwargs.get(grid)
            if pixels is not None and self.family.patches == "connector":
                out += [tile for tile in pixels.flatten(0, 1) if bool(tile.any())]  # zeros pad a batch
            elif pixels is not None:
                out += list(pixels) if sizes is None else list(torch.split(pixels, sizes.prod(-1).tolist()))
        return out

    def _extras(self, kwargs: dict) -> tuple[Tensor | None, dict]:
        places, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        if not features:
            return None, kwargs
        states = kwargs["inputs_embeds"]
        own = states.new_zeros(*states.shape[:2], len(features) * states.shape[2])
        own[places.to(states.device)] = torch.cat([f.to(states) for f in features], dim=-1)
        return own, {**kwargs, "deepstack_visual_embeds": None}

    def _note_inputs(self, module, args, kwargs) -> None:
        if not kwargs.get("mm_encoder_outputs"):
            self._forget()
        super()._note_inputs(module, args, kwargs)

    def _forget(self) -> None:
        self.now.forget()

    def _wrap_generate(self, stock):
        guarded = super()._wrap_generate(stock)

        @functools.wraps(stock)
        def generate(*args, **kwargs):
            self._forget()
            return guarded(*args, **kwargs)

        return generate


def serve(family: Family) -> None:
    """Let `apply` serve the classes of `family`: what a row of the table does when the package is imported."""
    register(*family.classes)(type("DynamicAdapter", (DynamicAdapter,), {"family": family}))
