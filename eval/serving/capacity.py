"""What a pass takes on a card, and how many prompts fit: a roofline whose few constants come from measured rows.

A pass of the decoder takes the larger of FLOPs / (share x rate) and bytes / (share x rate); encoding takes a constant and its FLOPs
/ (share x rate).  Passes that are launched from Python one kernel after the other take at least `launch`; replayed as graphs, as
vLLM does, they do not.  Nothing is in it of vLLM's own work on the processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import visiondrop
from eval.errors import EvaluationError
from visiondrop.plans import flops
from visiondrop.plans.plan import Plan
from visiondrop.plans.shape import VisualShape

from .queueing import Engine, Work

TEXT, NEW = 63, 128  # text tokens of a prompt in all measured rows, and tokens that the largest batches generate
LARGE = 8  # prompts from which an eager pass is bound by the card and not by its launches
WIDTH = 2  # bytes of a bfloat16
DIMS = flops.LLAVA_7B


@dataclass(frozen=True)
class Point:
    """A measured number: ms of a phase, or prompts that fit.

    Attributes:
        phase: "encode", "prefill", "decode", "first" (the first two together) or "fits"; graphs: replayed; limit: bytes, for "fits".
    """

    phase: str
    method: str
    tokens: int | None
    batch: int
    value: float
    graphs: bool = False
    units: int = 1
    limit: float = 0.0

    @property
    def used(self) -> bool:
        """Whether a plan is built on such passes; the others are bound by launches from Python."""
        return self.graphs or self.phase == "fits" or (self.batch >= LARGE and self.phase in ("encode", "prefill"))

    @cached_property
    def plan(self) -> Plan:
        """Of one of its prompts."""
        shape = VisualShape(layers=DIMS.layers, units=self.units, nominal_units=self.units)
        return visiondrop.plan(self.method, self.tokens, shape=shape)

    def __str__(self) -> str:
        what = f"{self.method} {self.tokens or ''}".strip() + (f", {self.units} crops" if self.units > 1 else "")
        how = "" if self.phase == "fits" else ", graphs" if self.graphs else ", eager"
        return f"{self.phase}, {what}, batch {self.batch}{how}" if self.phase != "fits" else f"largest batch, {what}"


@dataclass(frozen=True)
class Card:
    """A GPU: measured rates and memory, and the constants that are fitted.

    Attributes:
        flops, bytes: per second, of a large product and a large copy; memory: bytes; source: where they were measured.
        compute, traffic, tower: shares of the rates that passes reach; start: ms of encoding whatever its size;
        launch, launch_tower: least ms of a pass and of encoding that is launched from Python.
    """

    name: str
    flops: float
    bytes: float
    memory: float
    source: str
    compute: float = 0.6
    traffic: float = 0.5
    tower: float = 0.6
    start: float = 3.0
    launch: float = 25.0
    launch_tower: float = 12.0

    def pass_ms(self, work: float, moved: float) -> float:
        """One pass of the decoder: FLOPs and bytes."""
        return 1e3 * max(work / (self.compute * self.flops), moved / (self.traffic * self.bytes))

    def encode_ms(self, work: float) -> float:
        """One pass of tower and projector."""
        return self.start + 1e3 * work / (self.tower * self.flops)


def weights(dims: flops.ModelDims) -> float:
    """Bytes that a pass of the decoder reads: its layers and its head."""
    layer = (2 + 2 * dims.kv_share) * dims.hidden**2 + 3 * dims.hidden * dims.intermediate
    return WIDTH * (dims.layers * layer + dims.hidden * dims.vocab)


def all_weights(dims: flops.ModelDims) -> float:
    """Bytes of the whole model: with embeddings, tower and projector."""
    d, m = dims.vision_hidden, dims.vision_intermediate
    tower = dims.vision_layers * (4 * d * d + 2 * d * m) + dims.patch_inputs * d
    return weights(dims) + WIDTH * (dims.hidden * dims.vocab + tower + d * dims.hidden + dims.hidden**2)


def cached_bytes(dims: flops.ModelDims) -> float:
    """Bytes of keys and values of one token in all layers."""
    return 2 * WIDTH * dims.layers * dims.hidden * dims.kv_share


def active_bytes(dims: flops.ModelDims) -> float:
    """Bytes that one token of a prompt takes while a layer works on it: three rows of the MLP and four of the stream."""
    return WIDTH * (3 * dims.intermediate + 4 * dims.hidden)


def fits(plan: Plan, limit: float, new_tokens: int, dims: flops.ModelDims = DIMS, text: int = TEXT) -> int:
    """Prompts of one prefill that fit into `limit` bytes and generate `new_tokens` each."""
    lengths = [n + text for n in plan.tokens_per_layer()]
    held = cached_bytes(dims) * (sum(lengths) / len(lengths) + new_tokens)
    return int((limit - all_weights(dims)) // (held + active_bytes(dims) * max(lengths)))


def predicted(card: Card, point: Point) -> float:
    """What the model says of a measured number."""
    plan, rows = point.plan, point.batch
    lengths = [n + TEXT for n in plan.tokens_per_layer()]
    if point.phase == "fits":
        return fits(plan, point.limit, NEW)
    encode = card.encode_ms(rows * flops.encoding(plan, DIMS, lean=True))
    whole = rows * (flops.prefill(plan, DIMS, TEXT, lean=True) - flops.encoding(plan, DIMS, lean=True))
    prefill = card.pass_ms(whole, weights(DIMS))
    step = rows * (sum(flops.block(DIMS, 1, n) for n in lengths) + flops.head(DIMS, 1))
    read = rows * cached_bytes(DIMS) * sum(lengths) / len(lengths)
    ms = {"encode": encode, "prefill": prefill, "first": encode + prefill}
    ms["decode"] = card.pass_ms(step, weights(DIMS) + read)
    floors = {"encode": card.launch_tower, "first": card.launch_tower + card.launch}
    return ms[point.phase] if point.graphs else max(ms[point.phase], floors.get(point.phase, card.launch))


SHARES = ("compute", "traffic", "tower")
FITTED = (*SHARES, "start", "launch", "launch_tower")


def calibrated(card: Card, points: Sequence[Point]) -> Card:
    """The card with the constants that its points tell, by least squares of logarithms; the others stay as they are."""
    from scipy.optimize import least_squares  # the serving environment, where loads are measured, has none

    points = [p for p in points if p.phase != "fits"]
    told = [n for n in FITTED if any(_changes(card, n, p) for p in points)]
    if not told:
        return card

    def errors(logs: np.ndarray) -> list[float]:
        at = replace(card, **dict(zip(told, np.exp(logs))))
        return [float(np.log(predicted(at, p) / p.value)) for p in points]

    start = np.log([getattr(card, n) for n in told])
    # Absolute errors, all but: one row that was disturbed must not move the rest.
    above = np.log([1.0 if n in SHARES else 1e3 for n in told])
    found = least_squares(errors, start, bounds=(np.log(0.01), above), loss="soft_l1", f_scale=0.05, diff_step=1e-3)
    return replace(card, **dict(zip(told, map(float, np.exp(found.x)))))


def _changes(card: Card, name: str, point: Point) -> bool:
    """Whether a constant has a part in what is said of a point."""
    before = predicted(card, point)
    return any(predicted(replace(card, **{name: getattr(card, name) * by}), point) != before for by in (0.5, 2))


def engine(card: Card, plan: Plan, batched: int, seqs: int, share: float, dims: flops.ModelDims = DIMS) -> Engine:
    """One card as a queue's server: graphs, `batched` tokens of a step, `share` of its memory."""
    room = share * card.memory - all_weights(dims) - batched * active_bytes(dims)
    if room <= 0:
        raise EvaluationError(
            f"{card.name}: weights and a step of {batched} tokens leave no memory: raise --memory-share"
        )
    picture, single = flops.encoding(plan, dims, lean=True), flops.head(dims, 1)
    weighed, cached = weights(dims), cached_bytes(dims)
    token = flops.block(dims, 1, 0)
    pair = flops.block(dims, 1, 1) - token  # of one token with one cached one

    def step_ms(work: Work) -> float:
        total = dims.layers * sum(flops.block(dims, n, past, causal=True) for n, past in work.chunks)
        total += dims.layers * (work.decoding * token + work.held * pair)
        total += (work.decoding + work.finished) * single
        read = work.held + sum(past for _, past in work.chunks)
        encode = card.encode_ms(work.pictures * picture) if work.pictures else 0.0
        return encode + card.pass_ms(total, weighed + cached * read)

    return Engine(step_ms, batched, int(room // cached), seqs)


def points_of(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """The measured numbers in rows of eval.efficiency: 7B widths, bfloat16, plain attention."""
    out = []
    for row in rows:
        if row["kind"] == "graphs" and row.get("size") == "7b" and row["captured"]:
            for phase, name in (("first_token", "first"), ("decode", "decode")):
                at = (name, row["method"], row["tokens"], row["batch"])
                out.append(Point(*at, row[phase]["static"]["median"], graphs=True))
        wide = row["kind"] == "phases" and (row["hidden"], row["layers"]) == (DIMS.hidden, DIMS.layers)
        if wide and row["tower"] == "clip-l" and row["text_tokens"] == TEXT and row["method"] != "stock":
            at = (row["method"], row["tokens"])
            for phase in ("encode", "prefill", "decode"):
                value = row["ms"][phase]["median"]
                out.append(Point(phase, *at, row["batch"], value, units=row["units"]))
            largest = row["max_batch_new_tokens"][str(NEW)]
            out.append(Point("fits", *at, row["batch"], largest, units=row["units"], limit=row["memory_limit_bytes"]))
    return out
