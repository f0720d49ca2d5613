"""One model, many (method, budget): encode, prefill, select and decode timed apart, interleaved, against two bases.

Bases: method "none" in our own classes, and transformers' `LlavaForConditionalGeneration` of the same dimensions ("stock").
`select` is what choosing costs: the encoder stage alone on tower output at hand, plus the decoder prefill minus the
same layers on the same lengths with selection for free, round by round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import visiondrop
from visiondrop.compat import CACHE
from visiondrop.methods.registry import make_plan
from visiondrop.plans import flops
from visiondrop.plans.plan import Plan
from visiondrop.plans.shape import VisualShape
from visiondrop.pruner import current_choice
from visiondrop.reuse.prefix import Prefix
from visiondrop.tower.stage import Eyes, encode, look, reduce
from visiondrop.tower.units import Picture

from . import memory, models, roofline
from .timing import Candidate, interleave, ratio, summary

STOCK = "stock"


@dataclass(frozen=True)
class Case:
    """A method at a budget; "stock" is transformers' class."""

    method: str
    tokens: int | None = None

    def __str__(self) -> str:
        return self.method if self.tokens is None else f"{self.method} {self.tokens}"


class Bench:
    """All candidates for one batch size.

    Attributes:
        model: our class; stock: transformers' class or None; shape: what one image looks like.
        mask: [B, text + visual] bool, or None where all prompts are equally long; `uneven` prompts are for `prefill` and
            `free` only.
    """

    def __init__(
        self,
        model: nn.Module,
        stock: nn.Module | None,
        units: int,
        batch: int,
        steps: int,
        text: int,
        uneven: bool = False,
    ):
        self.model, self.stock, self.batch, self.steps, self.text = model, stock, batch, steps, text
        self.uneven = uneven
        self.shape: VisualShape = models.crops(units, model.config.num_hidden_layers)
        self.pixels = models.pictures(model, batch * units)
        self.hidden, self.layout = models.stack_input(model, batch, self.shape, text, uneven)
        mask = self.layout().mask
        self.mask = None if mask is None else mask.to(model.device)
        self.token = torch.full((batch, 1), 7, device=model.device)
        self.times: dict[tuple[Case, str], list[float]] = {}

    def plan(self, case: Case) -> Plan:
        """What happens to an image of this bench."""
        return make_plan("none" if case.method == STOCK else case.method, case.tokens, self.shape, {})

    def apply(self, case: Case) -> None:
        """Switch the model to `case`; budgets are stated for all crops of `shape`."""
        visiondrop.apply(self.model, case.method, case.tokens, shape=self.shape)

    def encode(self, case: Case) -> Candidate:
        """Tower, encoder stage and projector."""
        if case.method == STOCK:
            return Candidate(lambda: self.stock.model.get_image_features(pixel_values=self.pixels))
        tower, project = self.model.get_vision_tower(), self.model.model.mm_projector
        if self.plan(case).encoder is None:
            return Candidate(lambda: project(tower(self.pixels)), lambda: self.apply(case))
        pictures, every, eyes = self.pictures(), list(range(self.batch)), Eyes(tower.clip, tower.select_layer, project)
        return Candidate(lambda: encode(tower.pruner, eyes, pictures, every, self.batch), lambda: self.apply(case))

    def choose(self, case: Case) -> Candidate:
        """The encoder stage on tower output at hand, without the projector."""
        tower, pictures, every = self.model.get_vision_tower(), self.pictures(), list(range(self.batch))
        eyes = Eyes(tower.clip, tower.select_layer, nn.Identity())
        self.apply(case)
        with torch.inference_mode():
            seen = look(tower.pruner, eyes, pictures)
        return Candidate(
            lambda: reduce(tower.pruner, eyes, seen, pictures, every, self.batch), lambda: self.apply(case)
        )

    def pictures(self) -> list[Picture]:
        """The batch's pictures, each of 2 x 2 tiles and their base where they have crops."""
        return [Picture(self.shape, pixels, (2, 2)) for pixels in self.pixels.split(self.shape.units)]

    def prefill(self, case: Case) -> Candidate:
        """The decoder on a prompt, and the head on its last position."""
        return Candidate(lambda: self._prefilled(case), None if case.method == STOCK else lambda: self.apply(case))

    def _prefilled(self, case: Case) -> tuple[DynamicCache, Tensor]:
        if case.method == STOCK:
            stack, head, more = self.stock.model.language_model, self.stock.lm_head, {}
        else:
            stack, head, more = self.model.model, self.model.lm_head, {"layout": self.layout()}
        cache = DynamicCache(config=stack.config)
        out = stack(inputs_embeds=self.hidden, attention_mask=self.mask, use_cache=True, **{CACHE: cache}, **more)
        return cache, head(out.last_hidden_state[:, -1:])

    def decode(self, case: Case) -> Candidate:
        """Greedy steps on the cache of a prefill."""
        model, held = (self.stock if case.method == STOCK else self.model), {}
        if case.method != STOCK:
            self.apply(case)
        with torch.inference_mode():
            prefix = Prefix(self._prefilled(case)[0], self.token, current_choice(model))

        def prepare() -> None:
            if case.method != STOCK:
                self.apply(case)
            held["cache"] = prefix.rows(self.batch)

        def run() -> None:
            token = self.token
            for _ in range(self.steps):
                token = model(input_ids=token, use_cache=True, **{CACHE: held["cache"]}).logits[:, -1:].argmax(-1)

        return Candidate(run, prepare, self.steps)

    def free(self, case: Case) -> Candidate:
        """The decoder on the same lengths with selection for free."""
        return Candidate(models.free_stack(self.model, self.batch, self.plan(case), self.text, uneven=self.uneven))

    def measure(self, cases: list[Case], rounds: int, progress: Callable | None = None) -> None:
        """Time every phase of every case; phases one after another, cases interleaved within a phase."""
        device = self.model.device
        for phase in ("encode", "choose", "prefill", "decode"):
            candidates: dict = {}
            for case in cases:
                pruned = case.method != STOCK and self.plan(case).active
                if phase != "choose" or (pruned and self.plan(case).encoder is not None):
                    candidates[case, phase] = getattr(self, phase)(case)
                if phase == "prefill" and pruned:
                    candidates[case, "free"] = self.free(case)
            self.times |= interleave(candidates, rounds, device)
            if progress is not None:
                progress(phase)

    def select(self, case: Case) -> list[float]:
        """Milliseconds of choosing, by round (see the module's docstring)."""
        none = [0.0] * len(self.times[case, "prefill"])
        chosen, free = self.times.get((case, "choose"), none), self.times.get((case, "free"))
        if free is None:
            return chosen
        return [c + p - f for c, p, f in zip(chosen, self.times[case, "prefill"], free)]

    def realised(self, case: Case) -> dict[str, dict[str, float]]:
        """What becomes of the FLOPs saved, against method "none" in the same rounds: {} where that was not measured.

        Returns:
            "prefill" (decoder with causal attention, scores, head on one position) and "total" (with the tower), each with
            the time ratio (median of the ratios within rounds), the FLOP ratio and the first divided by the second.
        """
        base, dims = Case("none"), visiondrop.apply(self.model, "none").dims
        if (base, "prefill") not in self.times or case.method == STOCK:
            return {}
        out = {}
        for name, phases in (("prefill", ("prefill",)), ("total", ("encode", "prefill"))):
            spent, work = {}, {}
            for at in (base, case):
                plan = self.plan(at)
                spent[at] = [sum(ms) for ms in zip(*(self.times[at, phase] for phase in phases))]
                whole = flops.prefill(plan, dims, self.text, lean=True)
                work[at] = whole - (flops.encoding(plan, dims, lean=True) if name == "prefill" else 0)
            times, counted = ratio(spent[base], spent[case])["median"], work[base] / work[case]
            out[name] = {"time_ratio": times, "flop_ratio": counted, "share": times / counted}
        return out

    def row(self, case: Case, rates: roofline.Rates, limit_bytes: float) -> dict[str, Any]:
        """Numbers of one case, JSON-ready."""
        model = self.stock if case.method == STOCK else self.model
        plan, width = self.plan(case), next(self.model.parameters()).element_size()
        if case.method != STOCK:
            self.apply(case)
        dims = visiondrop.apply(self.model, "none").dims
        held = memory.peak(self.prefill(case).run if case.method == STOCK else self._after_apply(case), model)
        phases = {p: summary(self.times[case, p]) for p in ("encode", "prefill", "decode")}
        phases["select"] = summary(self.select(case))
        arguments = (plan, dims, rates, self.batch, self.text, width)
        return {
            "kind": "phases",
            "method": case.method,
            "tokens": case.tokens,
            "units": self.shape.units,
            "batch": self.batch,
            "text_tokens": self.text,
            "hidden": self.model.config.hidden_size,
            "layers": self.shape.layers,
            "attention": self.model.config._attn_implementation,
            "ledger": plan.ledger(dims, self.text).as_dict(),
            "clock": "cuda events" if model.device.type == "cuda" else "thread cpu time",
            "ms": phases,
            "roofline_ms": {
                "encode": roofline.encode_ms(plan, dims, rates, self.batch),
                "prefill": roofline.prefill_ms(*arguments),
                "decode": roofline.decode_ms(*arguments),
            },
            "rates": {"flops": rates.flops, "bytes": rates.bytes},
            "realised": self.realised(case),
            "images_per_s": 1e3 * self.batch / (phases["encode"]["median"] + phases["prefill"]["median"]),
            "decode_tokens_per_s": 1e3 * self.batch / phases["decode"]["median"],
            "memory_bytes": held,
            "max_batch": int((limit_bytes - memory.weight_bytes(model)) // (held / self.batch)),
            "max_batch_new_tokens": {str(new): self._largest(held, new, dims, limit_bytes, model) for new in (8, 128)},
            "memory_limit_bytes": limit_bytes,
        }

    def _largest(self, held: int, new: int, dims, limit_bytes: float, model: nn.Module) -> int:
        """Most rows within the limit when each also generates `new` tokens; computed from the memory per row."""
        width = next(model.parameters()).element_size()
        per_token = 2 * width * dims.layers * dims.hidden * dims.kv_share
        return int((limit_bytes - memory.weight_bytes(model)) // (held / self.batch + new * per_token))

    def _after_apply(self, case: Case) -> Callable[[], object]:
        self.apply(case)
        return lambda: self._prefilled(case)
