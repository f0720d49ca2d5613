"""Model classes and their loader; `llava.model.builder.load_pretrained_model` is the way in."""

from llava.config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]
