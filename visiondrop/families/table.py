"""The model families of transformers that one adapter serves: a row each.

A row says where the tower is and how its patches become tokens; the rest (placeholders, decoder, cache, generation) the
classes have in common.  Facts were read in transformers' own modeling files, versions 5.17 to 5.24.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        title: as it is called in docs/models.md.
        classes: model classes of transformers; what derives from them is served as well.
        patches: how patches become tokens (see `families.patches`): "merge" (neighbours side by side), "windows" (the same,
            in the order of attention windows), "shuffle" or "connector" (a square of a tile's grid), "tiles" (stitched and
            resampled).
        tower, layers, attention: paths of the vision tower in `model.model`, of its layers in it, of attention in a layer.
        stack: path of the decoder in `model.model`.
        rotary: its attention rotates in another way than halves; its module's own function is called.
        video_token: name of the placeholder of videos in the configuration.
        axes: of a position; 3 = M-RoPE (time, height, width), whose positions are never renumbered.
        runs: a run of placeholders is one picture, however many feature blocks (tiles) it holds.
        videos: takes videos through `get_video_features`.
        tuned: published results of pruning methods exist for it; else it runs and is exact, nothing more is known.
    """

    title: str
    classes: tuple[str, ...]
    patches: str
    tower: str = "visual"
    layers: str = "blocks"
    attention: str = "attn"
    stack: str = "language_model"
    axes: int = 1
    rotary: bool = False
    video_token: str = "video_token_id"
    runs: bool = False
    videos: bool = True
    tuned: bool = True


FAMILIES = (
    Family("Qwen2-VL", ("Qwen2VLForConditionalGeneration",), "merge", axes=3),
    Family("Qwen2.5-VL", ("Qwen2_5_VLForConditionalGeneration",), "windows", axes=3),
    Family("Qwen3-VL", ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"), "merge", axes=3),
    Family(
        "LLaVA-OneVision",
        ("LlavaOnevisionForConditionalGeneration",),
        "tiles",
        tower="vision_tower",
        layers="encoder.layers",
        attention="self_attn",
    ),
    Family(
        "InternVL 2.5, 3, 3.5",
        ("InternVLForConditionalGeneration",),
        "shuffle",
        tower="vision_tower",
        layers="encoder.layer",
        attention="attention",
        runs=True,
        videos=False,
    ),
    Family(
        "GLM-4.1V, GLM-4.6V",
        ("Glm4vForConditionalGeneration", "Glm46VForConditionalGeneration"),
        "merge",
        axes=3,
        rotary=True,
        video_token="image_token_id",
        tuned=False,
    ),
    Family(
        "Idefics3, SmolVLM",
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        "connector",
        tower="vision_model",
        layers="encoder.layers",
        attention="self_attn",
        stack="text_model",
        runs=True,
        videos=False,
        tuned=False,
    ),
)

# A score would not see the mask of such a layer.
REFUSED = {
    "Gemma3ForConditionalGeneration": "its layers see a picture's tokens from both sides and others through a sliding window",
    "PaliGemmaForConditionalGeneration": "its layers see the whole prompt from both sides",
    "Qwen3_5ForConditionalGeneration": "most of its layers are linear attention, which keeps no tokens to prune",
    "Qwen3_5MoeForConditionalGeneration": "most of its layers are linear attention, which keeps no tokens to prune",
}


def family_of(class_name: str) -> Family | None:
    """The row that serves a model class, or None."""
    return next((family for family in FAMILIES if class_name in family.classes), None)
