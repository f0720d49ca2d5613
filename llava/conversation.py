"""Prompt templates of LLaVA-1.5, LLaVA-NeXT and Video-LLaVA, character for character as the checkpoints were
trained.

    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\\nWhat is shown?")
    conversation.append_message(conversation.roles[1], None)      # None: the turn the model has to write
    prompt = conversation.get_prompt()

Source of the strings: https://github.com/haotian-liu/LLaVA (llava/conversation.py), release 1.2.2; `llava_llama_3`:
https://github.com/LLaVA-VL/LLaVA-NeXT, same file. A begin token is never part of the string: the tokenizer puts it there,
once, where its checkpoint has one (Yi's has none).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum, auto

from llava.constants import DEFAULT_IMAGE_TOKEN
from visiondrop.errors import VisionDropError


class SeparatorStyle(Enum):
    """How turns are joined: one separator, two alternating ones, Llama-2 chat tags, bare concatenation, or ChatML
    and Llama 3, whose roles carry their own tags.
    """

    SINGLE = auto()
    TWO = auto()
    LLAMA_2 = auto()
    PLAIN = auto()
    MPT = auto()
    LLAMA_3 = auto()


@dataclass
class Conversation:
    """A system sentence and a list of `[role, text]` turns; `text` None marks the turn still to be written.

    `sep` ends the person's turns and `sep2` the model's (TWO, PLAIN); in LLAMA_2 they open and close a pair of turns; in
    MPT and LLAMA_3 `sep` ends every turn, the system's too.
    """

    system: str
    roles: tuple[str, str]
    messages: list[list] = field(default_factory=list)
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "unknown"

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn. `role` is one of `self.roles`, `message` a string, or None for the answer to come."""
        if message is not None and not isinstance(message, str):
            raise VisionDropError(
                f"A message must be a string with {DEFAULT_IMAGE_TOKEN} where an image belongs, not "
                f"{type(message).__name__}."
            )
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """The whole conversation as one string, ready for `llava.mm_utils.tokenizer_image_token`."""
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2_prompt()
        if self.sep_style in (SeparatorStyle.MPT, SeparatorStyle.LLAMA_3):
            strip = self.sep_style is SeparatorStyle.LLAMA_3  # Llama 3's chat template trims every message
            turns = (
                role + (text.strip() if strip else text) + self.sep if text else role for role, text in self.messages
            )
            return self.system + self.sep + "".join(turns)
        if self.sep_style is SeparatorStyle.PLAIN:
            ends = (self.sep, self.sep2 or "")
            return self.system + "".join(text + ends[i % 2] for i, (_, text) in enumerate(self.messages) if text)
        ends = (self.sep, self.sep2 if self.sep_style is SeparatorStyle.TWO else self.sep)
        turns = (f"{role}: {text}{ends[i % 2]}" if text else f"{role}:" for i, (role, text) in enumerate(self.messages))
        return self.system + ends[0] + "".join(turns)

    @property
    def stop(self) -> str:
        """What the model writes at the end of its turn."""
        return self.sep2 if self.sep2 is not None else self.sep

    def _llama_2_prompt(self):
        """Person's turns in [INST] tags, the system sentence inside the first; the opening `sep` is left to the
        tokenizer's bos.
        """
        if not self.messages or not self.messages[0][1]:
            raise VisionDropError("A conversation in [INST] tags must begin with a non-empty message of the person.")
        prompt = ""
        for i, (_, text) in enumerate(self.messages):
            if not text:
                continue
            if i % 2:
                prompt += f" {text} {self.sep2}"
                continue
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            prompt += f"{self.sep}[INST] {text} [/INST]"
        return prompt.removeprefix(self.sep)

    def copy(self) -> "Conversation":
        """An independent conversation with the same template and turns."""
        return deepcopy(self)


_VICUNA_V1 = Conversation(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
    version="v1",
)

_LLAVA_V1 = Conversation(
    system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
    version="v1",
)

_LLAVA_LLAMA_2 = Conversation(
    system="You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
    version="llama_v2",
)

_PLAIN = Conversation(system="", roles=("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n", version="plain")

_MISTRAL_INSTRUCT = Conversation(
    system="",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="",
    sep2="</s>",
    version="llama_v2",
)

_CHATML_DIRECT = Conversation(
    system="<|im_start|>system\nAnswer the questions.",
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
    version="mpt",
)

_LLAVA_LLAMA_3 = Conversation(
    system=f"<|start_header_id|>system<|end_header_id|>\n\n{_LLAVA_LLAMA_2.system}",
    roles=(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    sep_style=SeparatorStyle.LLAMA_3,
    sep="<|eot_id|>",
    version="llama_v3",
)

conv_templates = {
    "v1": _VICUNA_V1,
    "vicuna_v1": _VICUNA_V1,
    "llava_v1": _LLAVA_V1,
    "llava_llama_2": _LLAVA_LLAMA_2,
    "mistral_instruct": _MISTRAL_INSTRUCT,
    "chatml_direct": _CHATML_DIRECT,
    "llava_llama_3": _LLAVA_LLAMA_3,
    "plain": _PLAIN,
}
default_conversation = _VICUNA_V1
