"""With and without `compile=True`: first token (tower, stages, prefill, head) and a decoding step, interleaved.

"static" is what it switches on: CUDA graphs, or on the CPU the decoder's layers through torch.compile.
"""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from llava.static.decode import room_for
from llava.static.generate import Prompts, StaticGenerator, StaticPrompts
from visiondrop.compat import CACHE

from . import models
from .phases import Bench, Case
from .timing import Candidate, interleave, summary


def measure(model: nn.Module, cases: list[Case], batch: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row per case: {"first_token": {"eager": ms, "static": ms}, "decode": {...}}."""
    ids, pixels = models.prompts(model, batch)
    bench = Bench(model, None, 1, batch, steps, models.BEFORE + models.AFTER)
    candidates: dict[tuple, Candidate] = {}
    captured: dict[Case, bool] = {}
    for case in cases:
        bench.apply(case)
        generator = StaticGenerator(model)
        with torch.inference_mode():
            prompts = Prompts.read(model, ids, None, pixels, None)
            static = generator.held(prompts.key, lambda: StaticPrompts(model, prompts, room_for(steps), generator.how))
            static.start(prompts)
            static.decode(1)
        captured[case] = not generator.failed

        def on(case=case) -> None:
            bench.apply(case)

        def again(on=on, static=static) -> None:
            on()
            static.decoder.cache.step.zero_()

        def eager() -> None:
            cache = DynamicCache(config=model.config)
            model(input_ids=ids, images=pixels, logits_to_keep=1, **{CACHE: cache}).logits[:, -1:].argmax(-1)

        def replay(static=static) -> None:
            for number in range(1, steps + 1):
                static.decode(number)

        candidates[case, "first_token", "eager"] = Candidate(eager, on)
        candidates[case, "first_token", "static"] = Candidate(
            lambda static=static, prompts=prompts: static.start(prompts), on
        )
        stepping = bench.decode(case)
        candidates[case, "decode", "eager"] = Candidate(stepping.run, stepping.prepare, steps)
        candidates[case, "decode", "static"] = Candidate(replay, again, steps)
    times = interleave(candidates, rounds, model.device)
    return [
        {
            "kind": "graphs",
            "method": case.method,
            "tokens": case.tokens,
            "batch": batch,
            "captured": captured[case],
            "clock": "cuda events" if model.device.type == "cuda" else "thread cpu time",
            **{
                phase: {way: summary(times[case, phase, way]) for way in ("eager", "static")}
                for phase in ("first_token", "decode")
            },
        }
        for case in cases
    ]
