"""The ratios that speed is judged by, each against a base that gets the same optimisations, interleaved.

    python -m eval.efficiency goals                 # all of them; minutes on one core
    python -m eval.efficiency goals --only prefill next

prefill    576 -> 64, d = 1024, 8 layers, 63 text tokens: full / staged, and the share of what free selection reaches
next       the same for 2880 -> 320; attention that skips what the causal mask hides leaves a smaller FLOP ratio (flop_ratio)
masked     the same for two prompts of unequal length: attention takes a mask and computes what it hides too, in all
           candidates, which is how the FLOP ratio of 10.63 counts
selection  576 -> 64 in a 32-layer stack: share of the staged prefill that choosing takes
decode     32 layers, d = 128: milliseconds per token of a pruned cache against stock layers on equally long caches
first      one picture and 63 text tokens to the first token, encoding included, 576 -> 64: whole tower against one that is
           cut inside (`tower_stages`), float32 and bfloat16
questions  18 questions on one image, CLIP-L tower: questions per second against the unpruned base, uncached and cached
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

import visiondrop
from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.compat import CACHE
from visiondrop.plans import flops
from visiondrop.reuse.prefix import continue_prefix, encode_prefix

from . import models
from .phases import Bench, Case
from .timing import Candidate, interleave, ratio, summary

TINY_DEEP = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 32, "num_attention_heads": 4}
QUESTIONS, QUESTION_TOKENS, NEW_TOKENS = 18, 28, 4
MIDDLE = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16, "num_attention_heads": 16}
TOWER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 8}
CUT = "8:160"  # 9 of 23 layers see every patch; 1:160 in the testbed, 2 of 5


def _bench(size: str | dict, units: int, rows: int = 1) -> Bench:
    return Bench(models.build(size), None, units, rows, 1, models.BEFORE + models.AFTER, uneven=rows > 1)


def _staged(bench: Bench, tokens: int, rounds: int) -> dict[str, list[float]]:
    full, staged = Case("none"), Case("visiondrop", tokens)
    candidates = {"full": bench.prefill(full), "staged": bench.prefill(staged), "free": bench.free(staged)}
    return interleave(candidates, rounds, bench.model.device)


def _flop_ratios(bench: Bench, tokens: int) -> dict[str, float]:
    """Full over staged, decoder layers only; causal: pairs above the diagonal, which the attention skips, not counted."""
    dims = visiondrop.apply(bench.model, "none").dims

    def work(case: Case, causal: bool) -> float:
        return sum(flops.block(dims, n + bench.text, causal=causal) for n in bench.plan(case).tokens_per_layer())

    full, staged = Case("none"), Case("visiondrop", tokens)
    return {name: work(full, causal) / work(staged, causal) for name, causal in (("whole", False), ("causal", True))}


def _prefill(units: int, tokens: int, rounds: int, goal: float, share: float, rows: int = 1) -> dict[str, Any]:
    bench = _bench("small", units, rows)
    times = _staged(bench, tokens, rounds)
    return {
        "prompts": rows,
        "ms": {name: summary(values) for name, values in times.items()},
        "flop_ratio": _flop_ratios(bench, tokens),
        "ratio": ratio(times["full"], times["staged"]),
        "ratio_free": ratio(times["full"], times["free"]),
        "share_of_free": ratio(times["free"], times["staged"]),
        "goal": {"ratio": goal, "share_of_free": share},
    }


def prefill(rounds: int) -> dict[str, Any]:
    """FLOP ratio 5.44; at least 4.4, and 95 % of free."""
    return _prefill(1, 64, rounds, 4.4, 0.95)


def next_crops(rounds: int) -> dict[str, Any]:
    """FLOP ratio 10.63; at least 9.2, and 92 % of free."""
    return _prefill(5, 320, rounds, 9.2, 0.92)


def masked(rounds: int) -> dict[str, Any]:
    """As `next`, two prompts of unequal length: attention whole in full, staged and free."""
    return _prefill(5, 320, rounds, 9.2, 0.92, rows=2)


def selection(rounds: int) -> dict[str, Any]:
    """At most 2 % of the staged prefill."""
    times = _staged(_bench("deep", 1), 64, rounds)
    share = [(s - f) / s for s, f in zip(times["staged"], times["free"])]
    return {"ms": {k: summary(v) for k, v in times.items()}, "share": summary(share), "goal": {"share": 0.02}}


def decode(rounds: int) -> dict[str, Any]:
    """Our stack at most 2 % above the stock layers, hooks at most 5 %, on caches of equal mean length."""
    out: dict[str, Any] = {"goal": {"native": 1.02, "hooks": 1.05}}
    for name, model in (("native", models.build(TINY_DEEP)), ("hooks", models.build_stock(TINY_DEEP))):
        # Steps are short: many rounds of few steps, so that the two meet the same machine.
        times = interleave(_decoding(model, 64, models.BEFORE + models.AFTER, 4), 8 * rounds, model.device)
        out[name] = ratio(times["pruned"], times["stock"])
        out[f"{name}_ms"] = {k: summary(v) for k, v in times.items()}
    return out


def _decoding(model, tokens: int, text: int, steps: int) -> dict[str, Candidate]:
    """Decoding on a pruned cache, and without a method on a plain cache of its mean length; both grow alike."""
    native = hasattr(model, "visual_shape")
    stack, pixels = model.model if native else model.model.language_model, models.pictures(model, 1)
    visual = [IMAGE_TOKEN_INDEX] if native else [model.config.image_token_id] * 576
    ids = torch.tensor([[*range(3, 3 + models.BEFORE), *visual, *range(3, 3 + text - models.BEFORE)]])
    images = {"images": pixels} if native else {"pixel_values": pixels}
    plain, pruned = DynamicCache(config=stack.config), DynamicCache(config=stack.config)
    with torch.inference_mode():
        stack(inputs_embeds=torch.randn(1, text + tokens, stack.config.hidden_size), **{CACHE: plain})
        handle = visiondrop.apply(model, "visiondrop", tokens)
        model(input_ids=ids, **{CACHE: pruned}, **images)
    token = torch.tensor([[7]])

    def on() -> None:
        nonlocal handle
        handle = visiondrop.apply(model, "visiondrop", tokens)

    def off() -> None:
        handle.remove()

    def run(cache) -> None:
        for _ in range(steps):
            model(input_ids=token, use_cache=True, **{CACHE: cache})

    return {
        "stock": Candidate(lambda: run(plain), off, steps),
        "pruned": Candidate(lambda: run(pruned), on, steps),
    }


def first(rounds: int) -> dict[str, Any]:
    """Cut inside the tower, at most 0.75 of the time of the whole one; bfloat16 no slower than float32."""
    candidates: dict = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = models.build(MIDDLE, tower=TOWER, dtype=dtype)
        ids, pixels = models.prompts(model, 1)
        for name, method, options in (
            ("none", "none", {}),
            ("whole", "visiondrop", {}),
            ("cut", "visiondrop", {"tower_stages": CUT}),
        ):
            prepare = partial(visiondrop.apply, model, method, None if method == "none" else 64, options=options)
            candidates[name, dtype] = Candidate(partial(_one_token, model, ids, pixels), prepare)
    times = interleave(candidates, rounds, torch.device("cpu"))
    out: dict[str, Any] = {
        "tower_stages": CUT,
        "goal": {"float32": 0.75, "bfloat16": 0.75, "bfloat16_over_float32": 1.0},
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        out[name] = ratio(times["cut", dtype], times["whole", dtype])
        out[f"{name}_ms"] = {case: summary(times[case, dtype]) for case in ("none", "whole", "cut")}
    out["bfloat16_over_float32"] = ratio(times["whole", torch.bfloat16], times["whole", torch.float32])
    return out


def _one_token(model, ids: torch.Tensor, pixels: torch.Tensor) -> None:
    model.generate(ids, images=pixels, max_new_tokens=1, do_sample=False)


def questions(rounds: int) -> dict[str, Any]:
    """At least 12 times the questions per second of the unpruned, uncached base; faster than a base that caches."""
    model = models.build("small", tower=models.CLIP_L)
    ids, pixels = models.prompts(model, 1)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 500, (QUESTIONS, QUESTION_TOKENS), generator=draw).tolist()
    prefix = ids[:, : models.BEFORE + 1]
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False}

    def reuse() -> None:
        continue_prefix(model, encode_prefix(model, prefix, images=pixels), rows, **settings)

    def one_by_one() -> None:
        model.generate(torch.cat([prefix, torch.tensor(rows[:1])], dim=1), images=pixels, **settings)

    def off() -> None:
        visiondrop.apply(model, "none").remove()

    def on() -> None:
        visiondrop.apply(model, "visiondrop", 64)

    candidates = {
        "reuse": Candidate(reuse, on, QUESTIONS),
        "base": Candidate(one_by_one, off),
        "base_reuse": Candidate(reuse, off, QUESTIONS),
    }
    times = interleave(candidates, rounds, model.device)
    return {
        "questions": QUESTIONS,
        "ms_per_question": {k: summary(v) for k, v in times.items()},
        "over_base": ratio(times["base"], times["reuse"]),
        "over_base_reuse": ratio(times["base_reuse"], times["reuse"]),
        "goal": {"over_base": 12, "over_base_reuse": 1},
    }


GOALS: dict[str, Callable[[int], dict[str, Any]]] = {
    "prefill": prefill,
    "next": next_crops,
    "masked": masked,
    "selection": selection,
    "decode": decode,
    "first": first,
    "questions": questions,
}
