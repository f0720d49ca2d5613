"""lmms-eval model class on our llava package: loads once, prunes, batches the questions of a task, keeps every answer.

What differs from lmms-eval's shipped `llava` class: it takes a method, a budget and the method's options; images go in
at the model's dtype; a document is looked up by its own task and split (the shipped class takes the first row's for a
whole batch); it runs on CPU processes; answers are stored as they come.  Prompts, image handling, batching order and
generation settings are the same, so with pruning off both give the same answers.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import parse_flag_from_env
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

import visiondrop
from eval.errors import EvaluationError
from eval.models.reuse import ImageReuse
from eval.results.answers import AnswerStore, question_key
from eval.tasks.video_qa import VideoFile
from llava.anyres import use_layout
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model import builder
from llava.video import load_video
from visiondrop.errors import VisionDropError
from visiondrop.families.guards import check_placeholders
from visiondrop.pruner import current_pruner

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_NEW_TOKENS = 1024  # where a task sets none, as in the shipped class


class LlavaVisionDrop(lmms):
    """A LLaVA checkpoint with one pruning method applied.

    Attributes:
        ledger: tokens per layer, mean, FLOPs of the plan in force.
        store: where answers are kept, or None.
        reused: answers that were taken from the store.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "visiondrop",
        tokens: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 1,
        attn_implementation: str = "sdpa",
        conv_template: str = "vicuna_v1",
        answers: str | None = None,
        layout: str | None = None,
        max_batch_size: int | None = None,
        reuse: str = "off",
        compile: str = "off",
        **options: Any,
    ):
        """Load the checkpoint and apply the method.

        Args:
            pretrained: checkpoint folder or hub id.
            method, tokens, options: as in `visiondrop.apply`.
            device: "cpu", "cuda", "cuda:1", or "auto" (one process, layers over all cards); default: cuda if any.
            dtype: float32, float16, bfloat16, or auto: float16 on cuda, float32 on cpu.
            batch_size: questions per generate call.
            answers: folder for the answers; None keeps them in memory only.
            layout: "anyres" or "fixed-2880" for LLaVA-NeXT; None: as the checkpoint says.
            max_batch_size: accepted because lmms-eval may pass it; ignored.
            reuse: "on" = questions of one image share its pruned cache (eval/models/reuse.py).
            compile: "on" = static shapes, see `visiondrop.apply`; answers behind a shared cache have them too.
        """
        super().__init__()
        self._accelerator_for(device)
        if dtype == "auto":
            dtype = "float16" if self.device.type == "cuda" else "float32"
        if dtype not in DTYPES:
            raise EvaluationError(f"dtype {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
        if conv_template not in conv_templates:
            raise EvaluationError(f"conversation template {conv_template!r}: allowed are {', '.join(conv_templates)}")
        self.batch_size, self.conv_template = int(batch_size), conv_template
        # Weights that will be shared out are loaded to the host: they may not fit on one card.
        place = "auto" if device == "auto" else "cpu" if self.sharded else str(self.device)
        self._load(pretrained, device_map=place, torch_dtype=DTYPES[dtype], attn_implementation=attn_implementation)
        self.model.eval()
        self.config = self.model.config
        if layout is not None:
            use_layout(self.model, layout)
        compiling = compile == "on"
        handle = visiondrop.apply(self.model, method=method, tokens=tokens, compile=compiling, options=options)
        self.ledger, self.static = handle.ledger, self.model.static  # lmms-eval takes the model away at the end
        self.reuse = ImageReuse(self, current_pruner(self.model)) if reuse == "on" else None
        if self.sharded:
            if compiling:
                raise EvaluationError("--compile on needs a whole model per process, not weights shared out by ZeRO-3")
            self._shard(dtype)
        self.store = AnswerStore(Path(answers), self.rank) if answers else None
        self.reused = 0

    def _load(self, pretrained: str, **how: Any) -> None:
        """Tokenizer, model and image processor; what is wrong with a checkpoint is wrong for every run with it."""
        try:
            loaded = builder.load_pretrained_model(pretrained, None, get_model_name_from_path(pretrained), **how)
        except VisionDropError as error:
            raise EvaluationError(str(error), "batch") from error
        self.tokenizer, self.model, self.image_processor, _ = loaded

    def _accelerator_for(self, device: str | None) -> None:
        """Set accelerator, device, rank and world size; on the CPU, also in several processes, gloo is used."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device != "cpu" and not torch.cuda.is_available():
            raise EvaluationError(f"device {device!r} was asked for but torch finds no card; use --device cpu")
        # Accelerate sets DeepSpeed up only when cpu is not asked for, and then has to be told the processes' backend.
        deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
        backend = "gloo" if deepspeed and device == "cpu" else None
        group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(days=7))
        self.accelerator = Accelerator(cpu=device == "cpu" and not deepspeed, kwargs_handlers=[group])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self.world_size > 1 and device == "auto":
            raise EvaluationError("device 'auto' spreads one model over all cards and needs a single process")
        named = device if device not in ("cuda", "auto") else f"cuda:{self.accelerator.local_process_index}"
        self._device = torch.device(named)

    def _shard(self, dtype: str) -> None:
        """Hand the model to DeepSpeed (ZeRO-3 inference): each process holds a share of every weight."""
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = self.batch_size
        config["fp16"], config["bf16"] = {"enabled": dtype == "float16"}, {"enabled": dtype == "bfloat16"}
        self.model = self.accelerator.unwrap_model(self.accelerator.prepare(self.model))

    @property
    def device(self) -> torch.device:
        """Where inputs go; lmms-eval also gathers counts there."""
        return self._device

    @property
    def compiled(self) -> str:
        """How the answers were generated: off, on, partly or eager (eval/results/rows.py)."""
        return "off" if self.static is None else self.static.outcome

    @property
    def sharded(self) -> bool:
        """Whether every process holds a share of each weight, so that all must call the model equally often."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to all requests in their order; stored ones are reused, new ones stored batch by batch."""
        by_key = {self._key(request): request for request in requests}
        answers = {key: self.store.get(key) for key in by_key} if self.store is not None else dict.fromkeys(by_key)
        waiting = [key for key, answer in answers.items() if answer is None]
        self.reused = len(by_key) - len(waiting)
        with tqdm(total=len(by_key), initial=self.reused, disable=self.rank != 0, desc="questions", unit="q") as bar:
            for batch in self._batches(waiting, by_key):
                texts = self._answer([by_key[key] for key in batch])
                if self.store is not None:
                    self.store.add([(key, by_key[key].args[3], text) for key, text in zip(batch, texts, strict=True)])
                bar.update(sum(answers[key] is None for key in batch))
                answers.update(zip(batch, texts, strict=True))
        return [answers[self._key(request)] for request in requests]

    @staticmethod
    def _key(request: Instance) -> str:
        prompt, settings, _, doc_id, task, split = request.args
        return question_key(doc_id, prompt, {**settings, "task": task, "split": split})

    def _batches(self, waiting: list[str], by_key: dict[str, Instance]) -> list[list[str]]:
        """Keys in batches of equal generation settings, longest prompt first (memory peaks at the start).

        With reuse, a batch holds all waiting questions of its images, or as many of a single image as it can.
        """
        groups: dict[tuple[str, str], list[str]] = {}
        if self.reuse is not None:
            self.reuse.note([by_key[key] for key in waiting])
        for key in waiting:
            image = self.reuse.key(by_key[key]) if self.reuse is not None else ""
            groups.setdefault((repr(sorted(by_key[key].args[1].items())), image), []).append(key)
        batches = []
        for keys in groups.values():
            length = {k: len(self.tokenizer.encode(by_key[k].args[0], add_special_tokens=False)) for k in keys}
            keys.sort(key=lambda k: (-length[k], by_key[k].args[0]))
            batches += [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]
        if self.reuse is not None:
            batches = self.reuse.join(batches, by_key, self.batch_size)
        if self.sharded:
            # A rank with fewer batches asks one question again, else the others wait for it for ever.
            most = int(self.accelerator.gather(torch.tensor([len(batches)], device=self.device)).max())
            batches += [[next(iter(by_key))]] * (most - len(batches))
        return batches

    def _images(self, request: Instance) -> list:
        """The request's PIL images, decoded now, and its video files, decoded later."""
        _, _, doc_to_visual, doc_id, task, split = request.args
        try:
            return doc_to_visual(self.task_dict[task][split][doc_id])
        except (OSError, ValueError, SyntaxError, EOFError, AttributeError, TypeError) as error:
            raise EvaluationError(
                f"the image of document {doc_id} of task {task} ({split}) cannot be decoded ({error}): "
                "repair the data set; the answers stored so far are kept"
            ) from error

    def _prompt(self, text: str, images: list) -> str:
        """The conversation around a question; image tokens go before it unless it places them itself."""
        if images and DEFAULT_IMAGE_TOKEN not in text:
            text = " ".join([DEFAULT_IMAGE_TOKEN] * len(images)) + "\n" + text
        check_placeholders(text, sum(map(self._places, images)))
        conversation = conv_templates[self.conv_template].copy()
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def _places(self, image: Any) -> int:
        """Placeholders of one image, or of a video, which has one per frame."""
        video = self.config.video_config if isinstance(image, VideoFile) else None
        return 1 if video is None else video.num_frames

    def _pixels(self, images: list, requests: list[Instance]) -> Any:
        """Pixel values at the model's dtype on its device: [N, 3, H, W], a list of such, or None without images."""
        if not images:
            return None
        try:
            if any(isinstance(image, VideoFile) for image in images):
                pixels = [self._visual(image) for image in images]
            else:
                pixels = process_images(images, self.image_processor, self.config)
        except VisionDropError as error:
            ids = ", ".join(str(r.args[3]) for r in requests)
            raise EvaluationError(f"an image of document {ids} of task {requests[0].args[4]}: {error}") from error
        place = {"dtype": self.model.dtype, "device": self.device}
        return [p.to(**place) for p in pixels] if isinstance(pixels, list) else pixels.to(**place)

    def _visual(self, image: Any) -> torch.Tensor:
        """[3, H, W] of an image or [3, frames, H, W] of a video, for a model that takes both."""
        if not isinstance(image, VideoFile):
            return process_images([image], self.image_processor, self.config)[0]
        video = self.config.video_config
        if video is None:
            raise EvaluationError("this checkpoint takes no videos: give a Video-LLaVA with --model")
        return load_video(image.path, video.num_frames, video.image_size)

    @torch.inference_mode()
    def _answer(self, requests: list[Instance]) -> list[str]:
        """Answers of one batch, which shares its generation settings."""
        if self.reuse is not None and self.reuse.key(requests[0]):
            return self.reuse.answer(requests, generation_settings(requests[0].args[1]))
        images = [self._images(r) for r in requests]
        flat = [image for row in images for image in row]
        prompts = [self._prompt(r.args[0], row) for r, row in zip(requests, images, strict=True)]
        rows = [tokenizer_image_token(p, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt") for p in prompts]
        width, pad = max(len(r) for r in rows), self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :], mask[i, width - len(row) :] = row, True
        new = self.model.generate(
            ids.to(self.device),
            attention_mask=mask.to(self.device),
            pad_token_id=pad,
            images=self._pixels(flat, requests),
            image_sizes=[getattr(image, "size", None) for image in flat],
            use_cache=True,
            **generation_settings(requests[0].args[1]),
            **({"synced_gpus": True} if self.sharded else {}),
        )
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: none of our benchmarks asks for it."""
        raise EvaluationError("log-likelihood tasks are not supported; our benchmarks are generate_until tasks")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: none of our benchmarks asks for it."""
        raise EvaluationError("multi-round tasks are not supported; our benchmarks are generate_until tasks")


def generation_settings(task: dict[str, Any]) -> dict[str, Any]:
    """`generate` arguments from a task's settings, with the shipped class's defaults; `until` is unused there too."""
    temperature = task.get("temperature", 0)
    settings = {
        "do_sample": temperature > 0,
        "num_beams": task.get("num_beams", 1),
        "max_new_tokens": task.get("max_new_tokens", MAX_NEW_TOKENS),
    }
    # Given without sampling, these two only make transformers warn.
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": task.get("top_p")}
    return settings
