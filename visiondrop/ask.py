"""One question about one image: the answer, tokens per layer, time, and a picture of what was kept."""

import os
import time

from .api import apply
from .errors import VisionDropError
from .registry import check_options


def ask(
    image: str,
    question: str,
    model: str,
    method: str,
    tokens: int | None,
    options: dict,
    show: str | None = None,
    max_new_tokens: int = 64,
    dtype: str = "auto",
) -> str:
    """Load `model`, apply the method, print answer, ledger and time; draw the kept patches into `show`.

    Args:
        image: file; model: folder or hub id of a LLaVA checkpoint; options: of the method.
        dtype: "auto" is float16 on an accelerator and float32 on a CPU.

    Returns:
        The answer.
    """
    import torch

    if show is not None:
        _check_writable(show)
    check_options(method, options)
    llava = _import_llava()
    picture = llava.mm_utils.open_image(image)
    cuda = torch.cuda.is_available()
    precision = {"auto": "float16" if cuda else "float32"}.get(dtype, dtype)
    tokenizer, network, processor, _ = llava.builder.load_pretrained_model(
        model, None, llava.mm_utils.get_model_name_from_path(model), device_map="auto", torch_dtype=getattr(torch, precision)
    )
    pixels = llava.mm_utils.process_images([picture], processor, network.config).to(network.device)
    template = llava.conversation.conv_templates[template_of(network.config)].copy()
    template.append_message(template.roles[0], f"{llava.constants.DEFAULT_IMAGE_TOKEN}\n{question}")
    template.append_message(template.roles[1], None)
    ids = llava.mm_utils.tokenizer_image_token(template.get_prompt(), tokenizer, return_tensors="pt")[None].to(network.device)
    with apply(network, method=method, tokens=tokens, options=options, report=True) as handle:
        start = time.perf_counter()
        new = network.generate(ids, images=pixels, image_sizes=[picture.size], do_sample=False, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - start
        answer = tokenizer.decode(new[0], skip_special_tokens=True).strip()
        print(answer)
        print(handle.ledger)
        print(f"{seconds:.2f} s for {new.shape[1]} new tokens on {network.device} in {precision}, encoding included")
        if show is not None:
            from .show import draw

            draw(picture, handle.report, network.get_vision_tower().num_patches_per_side, show)
            print(f"kept patches drawn into {show}")
    return answer


def template_of(config) -> str:
    """Name of the conversation template a checkpoint asks for, `vicuna_v1` where it asks for none."""
    return getattr(config, "conversation_template", None) or "vicuna_v1"


def _import_llava():
    from types import SimpleNamespace

    try:
        from llava import constants, conversation, mm_utils
        from llava.model import builder
    except ImportError as error:
        raise VisionDropError(
            f"`ask` needs the repository's own llava package ({error}); run it from the repository's folder, after: "
            "pip install -r requirements.txt"
        ) from error
    return SimpleNamespace(constants=constants, conversation=conversation, mm_utils=mm_utils, builder=builder)


def _check_writable(path: str) -> None:
    """Refuse an output that cannot be written before the model is loaded."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise VisionDropError(f"--show {path}: cannot write there; give a file in an existing, writable folder")
