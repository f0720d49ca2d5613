"""Which conversation a checkpoint was trained with, and the prompt of one question about one picture.

The command `ask`, `visiondrop.encode` and everything else that words a prompt itself take it from here, so that the same
question becomes the same ids at every door.
"""

from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from visiondrop.errors import VisionDropError
from visiondrop.families.guards import refuse_spelled_placeholder

DEFAULT_TEMPLATE = "vicuna_v1"
# Rows of the embeddings, without and with the hub's padding: Yi has 64,000 tokens, Llama 3 128,256.
_YI_ROWS = range(64_000, 64_257)
_LLAMA_3_ROWS = range(128_256, 128_577)


def template_of(config: Any) -> str:
    """Name of the template of a checkpoint, from its config (ours or transformers').

    What the config names (`conversation_template`) comes first. Else the decoder decides, as model names do in the
    original: Mistral is asked by `mistral_instruct`, Yi (v1.6-34b) by `chatml_direct`, Llama 3 by `llava_llama_3`,
    Vicuna by `vicuna_v1`.
    Raises VisionDropError for a name that is no template.
    """
    named = getattr(config, "conversation_template", None)
    if named is not None:
        if named not in conv_templates:
            raise VisionDropError(
                f"conversation_template {named!r} in the model's config: allowed are {', '.join(conv_templates)}."
            )
        return named
    text = getattr(config, "text_config", None) or config
    if "mistral" in str(getattr(text, "model_type", "")):
        return "mistral_instruct"
    rows = getattr(text, "vocab_size", 0)
    if rows in _YI_ROWS:
        return "chatml_direct"
    return "llava_llama_3" if rows in _LLAMA_3_ROWS else DEFAULT_TEMPLATE


def prompt_of(config: Any, question: str) -> str:
    """The whole prompt of `question` about one picture, with one `<image>`, in the checkpoint's template.

    Raises VisionDropError for a question that spells the placeholder.
    """
    refuse_spelled_placeholder(question)
    conversation = conv_templates[template_of(config)].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
