"""Budgets by name: what others have published for models of any picture size, as shares of the picture's tokens.

A published ratio is of the tokens that are left after a method's stage; the budget here is the mean over layers.  Both are
the same for methods that prune before the language model; a stage inside it leaves its first layers whole, and the share
is computed for them (28 layers, Qwen2.5-VL-7B).
"""

from dataclasses import dataclass

from ..errors import VisionDropError, closest

BEFORE_THE_LLM = ("visionzip", "vispruner", "scope", "divprune", "hiprune")


@dataclass(frozen=True)
class Preset:
    """One published setting.

    Attributes:
        kept: share of tokens left after the stage; methods: those it was published for, with the layer that first sees
            fewer tokens, of 28 (0: all of them).
        source: where it stands, with the score relative to the unpruned model.
    """

    kept: float
    methods: dict[str, int]
    source: str

    def share(self, method: str) -> float:
        """The mean over layers, as a share."""
        first = self.methods[method]
        return (first + (28 - first) * self.kept) / 28


ELEVEN_TASKS = {**dict.fromkeys(BEFORE_THE_LLM, 0), "fastv": 2, "dart": 2}
PRESETS = {
    "qwen2.5-vl-25": Preset(
        0.25,
        ELEVEN_TASKS,
        "AngelSlim, 11 tasks on Qwen2.5-VL-7B: scope 92.5 % of the unpruned score, divprune 89.3, vispruner 88.3, "
        "hiprune 87.8, visionzip 87.6, fastv 87.2, dart 85.7",
    ),
    "qwen2.5-vl-10": Preset(
        0.10,
        ELEVEN_TASKS,
        "AngelSlim, 11 tasks on Qwen2.5-VL-7B: scope 79.4 % of the unpruned score, divprune 76.1, vispruner 72.6, "
        "hiprune 72.2, visionzip 71.8, dart 69.8, fastv 68.1",
    ),
    "qwen2.5-vl-512": Preset(
        512 / 1225, {"divprune": 0}, "AgilePruner's table, 512 of 1,225 tokens of Qwen2.5-VL-7B: divprune 96.8 %"
    ),
    "qwen2.5-vl-256": Preset(
        256 / 1225, {"divprune": 0}, "AgilePruner's table, 256 of 1,225 tokens of Qwen2.5-VL-7B: divprune 90.7 %"
    ),
}


def preset_share(method: str, name: str) -> float:
    """The budget, as a share, that preset `name` means for `method`.

    Raises:
        VisionDropError: no such preset, or it was not published for the method.
    """
    if name not in PRESETS:
        raise VisionDropError(f"tokens={name!r} is no number, no share and no preset: {closest(name, PRESETS)}")
    preset = PRESETS[name]
    if method not in preset.methods:
        raise VisionDropError(
            f"preset {name!r} was not published for method {method!r}: it is known for {', '.join(sorted(preset.methods))}"
        )
    return preset.share(method)
