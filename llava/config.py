"""LLaMA's configuration with LLaVA's fields."""

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig


class LlavaConfig(LlamaConfig):
    """LLaMA's configuration with LLaVA's fields, named as in the original `config.json`.

    Attributes:
        vision_config: the tower's `CLIPVisionConfig` (or its dict), filled in by the loader.
        mm_image_tower, mm_video_tower: Video-LLaVA's two towers, in place of `mm_vision_tower`; `vision_config` then is
            that of the former and `video_config` (with `num_frames`, `add_time_attn`) that of the latter.
        conversation_template: name of the prompt template it was trained with; None: see `llava.prompts.template_of`.
    """

    model_type = "llava_llama"
    sub_configs = {"vision_config": CLIPVisionConfig, "video_config": CLIPVisionConfig}

    mm_vision_tower: str | None = None
    mm_image_tower: str | None = None
    mm_video_tower: str | None = None
    mm_hidden_size: int = 1024
    mm_projector_type: str = "mlp2x_gelu"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_patch_merge_type: str | None = "flat"
    image_aspect_ratio: str | None = "pad"
    image_grid_pinpoints: list | None = None
    conversation_template: str | None = None
    tokenizer_model_max_length: int | None = None
    unfreeze_mm_vision_tower: bool = False
    vision_config: dict | PreTrainedConfig | None = None
    video_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        if isinstance(self.video_config, dict):
            self.video_config = CLIPVisionConfig(**self.video_config)
        super().__post_init__(**kwargs)
