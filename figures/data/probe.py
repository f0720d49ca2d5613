"""Looking into an unpruned model: what a decoder layer receives, and the scores any rule would give its visual tokens.

`Probe` loads a checkpoint and one picture at a time.  Scores are those of the methods (`visiondrop.ops.scores`), computed
on the states that enter a layer with that layer's own projections.
"""

import functools
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval import machine
from eval.results import fingerprint
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, open_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from visiondrop.ops import scores

RULES = ("text", "causal", "queries", "bidirectional")  # last prompt token; image-to-image under the three masks


class Probe:
    """A checkpoint ready to be asked about pictures.

    Attributes:
        layers: decoder layers; grid: patches along one side.
    """

    def __init__(
        self, path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, conversation: str = "vicuna_v1"
    ):
        """Load the checkpoint; errors are those of `load_pretrained_model`."""
        self.path, self.conversation = path, conversation
        name = get_model_name_from_path(path)
        self.tokenizer, self.model, self.processor, _ = load_pretrained_model(
            path, None, name, device_map=device, torch_dtype=dtype
        )
        self.model.eval()
        self.stack = self.model.model
        self.layers = len(self.stack.layers)
        self.grid = int(round(self.model.get_vision_tower().num_patches ** 0.5))

    def identity(self) -> dict[str, Any]:
        """What a file made from this model must say about its origin."""
        checkpoint = fingerprint.checkpoint(self.path)
        commit, dirty = machine.git_state()
        return {
            "model": checkpoint.name,
            "model_fingerprint": checkpoint.fingerprint,
            "layers": self.layers,
            "grid": self.grid,
            "commit": commit,
            "dirty": dirty,
            "versions": machine.versions(),
        }

    def prompt(self, question: str) -> Tensor:
        """[1, T] ids with one placeholder, as the evaluation builds them."""
        conversation = conv_templates[self.conversation].copy()
        conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        return ids[None].to(self.model.device)

    def pixels(self, image: np.ndarray) -> Tensor:
        """[1, 3, H, W] at the model's dtype."""
        out = process_images([Image.fromarray(image)], self.processor, self.model.config)
        return out.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def answer(self, image: np.ndarray, question: str) -> str:
        """The greedy answer, at most 16 tokens, under whatever pruning is switched on."""
        ids = self.prompt(question)
        new = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            images=self.pixels(image),
            image_sizes=[image.shape[1::-1]],
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        )
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()

    @torch.inference_mode()
    def prefill(self, image: np.ndarray, question: str) -> None:
        """One pass over the prompt under whatever pruning is switched on; its result is in the handle's report."""
        self.model(input_ids=self.prompt(question), images=self.pixels(image), image_sizes=[image.shape[1::-1]])

    @torch.inference_mode()
    def received(
        self, image: np.ndarray, question: str, layer: int, rules: tuple[str, ...] = RULES
    ) -> dict[str, np.ndarray]:
        """Scores of all patches by each rule at the entry of a decoder layer: rule -> float32 [n].

        Args:
            image: uint8 [H, W, 3]; layer: 0-based.
        """
        states, rope = self._entry(image, question, layer)
        start = int((self.prompt(question)[0] == IMAGE_TOKEN_INDEX).nonzero()[0])
        n = self.grid**2
        block = self.stack.layers[layer]
        query, key = (scores.project(block, states, rope, what) for what in "qk")
        scale, out = block.self_attn.scaling, {}
        for rule in rules:
            if rule == "text":
                row = scores.attention_rows(query[:, :, -1:], key, scale, None)[0, 0]
                out[rule] = row[start : start + n]
            else:
                out[rule] = scores.received(query[:, :, start : start + n], key[:, :, : start + n], scale, None, rule)[
                    0
                ]
        return {rule: value.float().cpu().numpy() for rule, value in out.items()}

    def _entry(self, image: np.ndarray, question: str, layer: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States [1, L, D] and rotary tables that enter a layer of the unpruned model."""
        seen: list[Any] = []

        def keep(module, args, kwargs):
            seen.append((args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]))

        hook = self.stack.layers[layer].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.prefill(image, question)
        finally:
            hook.remove()
        return seen[0]


def top(score: np.ndarray, keep: int) -> np.ndarray:
    """Which patches the `keep` best are: bool [n]; the earlier of equals first."""
    chosen = np.zeros(len(score), dtype=bool)
    chosen[np.argsort(-score, kind="stable")[:keep]] = True
    return chosen


@functools.cache
def square(file: str, side: int) -> np.ndarray:
    """A picture file as the tower sees it, padded to a square with CLIP's mean colour: uint8 [side, side, 3]."""
    picture = open_image(file)
    canvas = Image.new("RGB", [max(picture.size)] * 2, (122, 116, 104))
    canvas.paste(picture, [(max(picture.size) - s) // 2 for s in picture.size])
    return np.asarray(canvas.resize((side, side), Image.Resampling.BICUBIC))
