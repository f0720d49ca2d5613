"""What a served model makes of pictures: their shapes, their plans, and which plans can be served."""

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from ..errors import UnsupportedError, VisionDropError
from ..families import adapter_for
from ..methods.registry import available
from ..plans.plan import Ledger, Plan
from ..plans.shape import VisualShape
from ..pruner import Pruner
from ..tower.units import Picture
from .settings import Served, Setting

SETTINGS_HELD = 256  # settings whose plans are remembered
LATE = "and vLLM holds one number of cache slots per image in all layers, so a method must end before decoder layer 1; served are "


class Images:
    """The pictures of one served model, known from its configuration alone.

    Attributes:
        adapter: of the model's class, on a model of no weights; served: what the operator has set.
    """

    def __init__(self, config: Any):
        """Args:
        config: of transformers, with `visiondrop` in it where something is set.

        Raises:
            VisionDropError: a model that is not served, or a default that cannot be met.
        """
        self.served = Served.of(config)
        check_family(config)
        plain = copy.deepcopy(config)
        plain.text_config.architectures = None
        with torch.device("meta"):
            self.adapter = adapter_for(AutoModelForImageTextToText.from_config(plain))
        self.shape: VisualShape = self.adapter.shape()
        self.pruner = lru_cache(maxsize=SETTINGS_HELD)(self._pruner)
        self.plan(self.served.default, self.shape)

    def _pruner(self, setting: Setting) -> Pruner:
        options, dims = dict(setting.options), self.adapter.dims()
        return Pruner(setting.method, setting.tokens, options, self.shape, dims, min_tokens=setting.min_tokens)

    def describe(self, size: tuple[int, int]) -> Picture:
        """Shape, grid and ids of a picture of `size` (height, width)."""
        return self.adapter.describe(size)

    def plan(self, setting: Setting, shape: VisualShape) -> Plan:
        """The plan for pictures of `shape`.

        Raises:
            VisionDropError: unknown method or option, a budget that cannot be met or above the operator's, or a method that
                cannot be served.
        """
        plan = self.pruner(setting).plan_for(shape)
        why = refusal(plan)
        if why is not None:
            raise UnsupportedError(why if LATE not in why else why + self.methods())
        most = self.served.most_tokens
        if most is not None and plan.counts[-1] > most:
            raise VisionDropError(
                f"method {setting.method!r} with tokens={setting.tokens!r} hands {plan.counts[-1]} tokens of this image on, and "
                f"this server allows {most} (most_tokens): ask for a smaller budget"
            )
        return plan

    def ledger(self, setting: Setting) -> Ledger:
        """Of an ordinary picture, as it is served."""
        return self.plan(setting, self.shape).ledger(self.adapter.dims())

    def methods(self) -> str:
        """The registered methods that can be served on this model, in words."""
        names = []
        for name in available():
            try:
                plan = self.pruner(Setting(name, None if name == "none" else self.shape.nominal // 9)).plan
            except VisionDropError:
                continue
            if refusal(plan) is None:
                names.append(name)
        return ", ".join(names)


def refusal(plan: Plan) -> str | None:
    """Why a plan cannot be served, or None."""
    late = [s for s in plan.live_stages if s.layer > 0 or s.probe is not None]
    if late:
        return (
            f"method {plan.method!r} shortens the visual sequence inside the decoder, at layer {late[0].layer}, {LATE}"
        )
    if plan.text_guided or plan.question is not None:
        return (
            f"method {plan.method!r} reads the question when it chooses visual tokens, and vLLM shares an encoded image between "
            "questions: use a visual-only method"
        )
    if plan.packed:
        return (
            f"method {plan.method!r} passes on a number of tokens that depends on what an unpadded picture shows, and vLLM must "
            "know it before the picture is encoded: use another method for this model"
        )
    if plan.encoder is not None and max(plan.encoder.probes, default=0) > plan.shape.feature_layer:
        return (
            f"method {plan.method!r} asks for tower layer {max(plan.encoder.probes)}, and vLLM loads the tower up to layer "
            f"{plan.shape.feature_layer}, whose output is read: use another method"
        )
    if plan.begin is not None or (plan.live_stages and plan.positions != "compact"):
        return (
            f"method {plan.method!r} keeps the positions of the unpruned sequence, and vLLM numbers an image's tokens "
            "without gaps: use another method"
        )
    return None


FAMILIES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
MROPE = (
    "its positions have three axes, and vLLM recomputes them for pruned videos only (SupportsMultiModalPruning is asked for "
    "video embeddings; images come without the position channels): upstream must pass image items through recompute_mrope_positions"
)
REFUSED = {"qwen2_5_vl": MROPE, "qwen3_vl": MROPE}


def check_family(config: Any) -> None:
    """Refuse models that are not served, with the reason."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        why = REFUSED.get(str(kind), f"served are {', '.join(FAMILIES)}")
        raise UnsupportedError(f"a model of type {kind!r} cannot be served pruned: {why}")
    vision, layer = config.vision_config, config.vision_feature_layer
    if vision.model_type != "clip_vision_model":
        raise UnsupportedError(
            f"the vision tower of this {kind} model is of type {vision.model_type!r}, and pruning is served behind CLIP towers only"
        )
    if not isinstance(layer, int):
        raise UnsupportedError(f"vision_feature_layer={layer}: the encoder stage needs one feature layer")
