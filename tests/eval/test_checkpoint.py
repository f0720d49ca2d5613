"""A small checkpoint that answers: random weights whose only outputs are a handful of words, then the end.

Scores of a plain random model are all 0, which proves little.  Here two coordinates of the residual stream are
reserved, nothing inside the network writes to them: one lets only the answer words win at the end of a prompt, the
other brings the end of the text after an answer word.  Which word wins depends on image, question and pruning.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from llava.config import LlavaConfig
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from tests.support.datasets_small import COLOURS, picture

ANSWERS = ("Yes", "No", "A", "B", "C", *COLOURS)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
SPEECH = """USER: ASSISTANT: A chat between a curious user and an artificial intelligence assistant. The assistant gives
helpful, detailed, and polite answers to the user's questions. What is the colour of thing? Is there a thing in the
image? this colour has Which What color does the Sign say number Answer the question using a single word or phrase.
Answer with the option's letter from the given choices directly. There are several options: Look closely. Context: The
picture is drawn. Reference OCR token: STOP When the provided information is insufficient, respond with 'Unanswerable'.
Please answer yes or no."""
END, SPEAK = 0, 1  # the reserved coordinates
VISION = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=14
)
TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)


def _vocabulary() -> list[str]:
    words = dict.fromkeys([*ANSWERS, *re.findall(r"\w+|[^\w\s]", SPEECH), *(str(i) for i in range(64))])
    return [*SPECIAL, *words]


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="left", clean_up_tokenization_spaces=False, **names
    )


def _reserve(weights: dict[str, torch.Tensor], words: list[str], answers: tuple[str, ...]) -> None:
    """Free the two coordinates and wire them to the outputs."""
    spoken = torch.tensor([words.index(w) for w in answers])
    for name, value in weights.items():
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")) and ".vision_tower." not in name:
            value[[END, SPEAK]] = 0
        if name.startswith("model.mm_projector.2."):
            value[[END, SPEAK]] = 0
    embed, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embed[:, END], embed[:, SPEAK] = 0, 2
    embed[spoken, END], embed[spoken, SPEAK] = 1000, 0
    keep = head[spoken].clone()
    head.zero_()
    head[spoken] = keep
    head[spoken, END], head[spoken, SPEAK] = 0, 400
    head[words.index("</s>"), END] = 20


def write_answering_checkpoint(folder: Path, answers: tuple[str, ...] = ANSWERS, seed: int = 0) -> Path:
    """Write the checkpoint in the original LLaVA layout, float32: 64 patches, 4 layers; it says only `answers`."""
    words = _vocabulary()
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    settings = dict(
        **TEXT,
        **special,
        vocab_size=len(words),
        max_position_embeddings=2048,
        mm_hidden_size=VISION["hidden_size"],
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        image_aspect_ratio="pad",
        mm_vision_tower="openai/clip-vit-large-patch14-336",
        tie_word_embeddings=False,
        torch_dtype="float32",
    )
    model = LlavaLlamaForCausalLM(LlavaConfig(**settings, vision_config=dict(VISION)))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if "norm" in name or "layrnorm" in name:
            weights[name] = 1 + 0.1 * drawn if name.endswith("weight") else 0.02 * drawn
        elif "embed" in name or name == "lm_head.weight":
            weights[name] = drawn
        else:
            # Strong attention and outputs: the answer must hang on what was read, not on the last word of the prompt.
            gain = 5.0 if "o_proj" in name or "down_proj" in name else 2.0
            weights[name] = drawn * (0.02 if name.endswith("bias") else gain / value.shape[-1] ** 0.5)
    _reserve(weights, words, answers)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        **settings,
        "vision_config": dict(VISION),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _tokenizer(words).save_pretrained(folder)
    return folder


def load_answering(folder: Path) -> tuple:
    """Tokenizer, model and image processor of a checkpoint folder, float32 on the CPU."""
    return load_pretrained_model(str(folder), None, "answering", device_map="cpu", torch_dtype=torch.float32)[:3]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Tokenizer, model, image processor of the checkpoint."""
    return load_answering(write_answering_checkpoint(tmp_path_factory.mktemp("checkpoint") / "answering"))


def ask(loaded, index: int, question: str) -> str:
    """The model's answer about `picture(index)`."""
    tokenizer, model, processor = loaded
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"<image>\n{question}")
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
    image = picture(index)
    pixels = process_images([image], processor, model.config)
    new = model.generate(ids, images=pixels, image_sizes=[image.size], do_sample=False, max_new_tokens=8)
    return tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()


def test_it_answers_one_word_that_depends_on_image_and_question(loaded):
    by_image = [ask(loaded, i, "What is the colour of thing 0?") for i in range(12)]
    by_question = [ask(loaded, 0, f"What is the colour of thing {i}?") for i in range(12)]
    assert set(by_image + by_question) <= set(ANSWERS)
    assert len(set(by_image)) > 1 and len(set(by_question)) > 1
