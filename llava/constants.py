"""Placeholders and special strings of LLaVA prompts: values that checkpoints and evaluators rely on."""

IGNORE_INDEX = -100  # label value that the loss skips
IMAGE_TOKEN_INDEX = -200  # stands for one whole image in `input_ids`; outside the vocabulary on purpose

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
