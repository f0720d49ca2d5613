"""Placeholders and special strings of LLaVA prompts: values that checkpoints and evaluators rely on."""

from visiondrop.families.guards import PLACEHOLDER, PLACEHOLDER_ID

IGNORE_INDEX = -100  # label value that the loss skips
IMAGE_TOKEN_INDEX = PLACEHOLDER_ID

DEFAULT_IMAGE_TOKEN = PLACEHOLDER
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
