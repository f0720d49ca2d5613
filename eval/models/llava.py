"""lmms-eval model class on our llava package: loads once, prunes, batches the questions of a task, keeps every answer.

What differs from lmms-eval's shipped `llava` class: it takes a method, a budget and the method's options; images go in
at the model's dtype; a document is looked up by its own task and split (the shipped class takes the first row's for a
whole batch); it runs on CPU processes; answers are stored as they come.  Prompts, image handling, batching order and
generation settings are the same, so with pruning off both give the same answers.
"""

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import parse_flag_from_env
from lmms_eval import utils
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

import visiondrop
from eval.errors import EvaluationError
from eval.models import lengths
from eval.models.request import Request, bare, pictures
from eval.models.reuse import ImageReuse
from eval.results.answers import AnswerStore, question_key
from eval.settings import ModelSettings
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
FIXED = ("pad", "fixed-2880", "video")  # layouts in which every picture has the ledger's tokens
MAX_NEW_TOKENS = 1024  # where a task sets none, as in the shipped class
# What lmms-eval's own command line calls our settings.
LMMS_EVAL_NAMES = {"pretrained": "model", "attn_implementation": "attention", "conv_template": "conversation"}


class LlavaVisionDrop(lmms):
    """A LLaVA checkpoint with one pruning method applied.

    Attributes:
        settings: what it was made from, device and dtype filled in.
        handle: of the method that is applied.
        ledger: tokens per layer, mean, FLOPs of the plan in force.
        store: where answers are kept, or None.
        reused: answers that were taken from the store.
    """

    is_simple = True
    processor_facts = None  # of a row: only wrappers have settings of their own
    unlike_uniform: float | None = None  # of a row, from the first batch

    def __init__(self, settings: ModelSettings, answers: Path | None = None):
        """Load the checkpoint and apply the method.

        Args:
            answers: folder for the answers; None keeps them in memory only.
        """
        super().__init__()
        settings = settings.placed()
        if settings.dtype not in DTYPES:
            raise EvaluationError(f"dtype {settings.dtype!r}: allowed are auto, {', '.join(DTYPES)}")
        if settings.conversation not in conv_templates:
            allowed = ", ".join(conv_templates)
            raise EvaluationError(f"conversation template {settings.conversation!r}: allowed are {allowed}")
        self.settings, self.batch_size = settings, int(settings.batch_size)
        self._accelerator_for(settings.device)
        self._load()
        self.model.eval()
        self.config = self.model.config
        if settings.layout is not None:
            use_layout(self.model, settings.layout)
        compiling = settings.compile == "on"
        how = {"tokens": settings.budget, "compile": compiling, "options": settings.options}
        self.handle = visiondrop.apply(self.model, method=settings.method, **how)
        self.ledger, self.static = self.handle.ledger, self.model.static  # lmms-eval takes the model away at the end
        self.reuse = ImageReuse(self, current_pruner(self.model)) if settings.reuse == "on" else None
        if self.sharded:
            if compiling:
                raise EvaluationError("--compile on needs a whole model per process, not weights shared out by ZeRO-3")
            self._shard(settings.dtype)
        self.store = AnswerStore(answers, self.rank) if answers else None
        self.reused, self._unchecked = 0, not compiling and not self.sharded

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "LlavaVisionDrop":
        """A model from lmms-eval's own command line: pretrained=PATH,method=visiondrop,tokens=64, and the method's options.

        Also known: attn_implementation, conv_template, dtype, layout, reuse, compile, and `answers`, a folder.
        """
        told = utils.simple_parse_args_string(arg_string)
        told |= {k: v for k, v in (additional_config or {}).items() if v is not None and k != "max_batch_size"}
        answers = told.pop("answers", None)
        settings = ModelSettings.of(**{LMMS_EVAL_NAMES.get(name, name): value for name, value in told.items()})
        return cls(settings, Path(answers) if answers else None)

    def _load(self) -> None:
        """Tokenizer, model and image processor; what is wrong with a checkpoint is wrong for every run with it."""
        settings = self.settings
        # Weights that will be shared out are loaded to the host: they may not fit on one card.
        place = "auto" if settings.device == "auto" else "cpu" if self.sharded else str(self.device)
        how = {"torch_dtype": DTYPES[settings.dtype], "attn_implementation": settings.attention, "device_map": place}
        name = get_model_name_from_path(settings.model)
        try:
            loaded = builder.load_pretrained_model(settings.model, None, name, **how)
        except VisionDropError as error:
            raise EvaluationError(str(error), "batch") from error
        self.tokenizer, self.model, self.image_processor, _ = loaded

    def _accelerator_for(self, device: str) -> None:
        """Set accelerator, device, rank and world size; on the CPU, also in several processes, gloo is used."""
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
    def pad_id(self) -> int:
        """What fills short prompts."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

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
                texts = self._checked([by_key[key] for key in batch])
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
            found = doc_to_visual(self.task_dict[task][split][doc_id])
            return [VideoFile(Path(image)) if isinstance(image, str) else image for image in found]
        except (OSError, ValueError, SyntaxError, EOFError, AttributeError, TypeError) as error:
            raise EvaluationError(
                f"the image of document {doc_id} of task {task} ({split}) cannot be decoded ({error}): "
                "repair the data set; the answers stored so far are kept"
            ) from error

    def _prompt(self, text: str, images: list) -> str:
        """The conversation around a question; image tokens go before it unless it places them itself."""
        if images and DEFAULT_IMAGE_TOKEN not in text:
            text = " ".join(DEFAULT_IMAGE_TOKEN * self._places(image) for image in images) + "\n" + text
        check_placeholders(text, sum(map(self._places, images)))
        conversation = conv_templates[self.settings.conversation].copy()
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def _places(self, image: Any) -> int:
        """Placeholders of one image, or of a video, which has one per frame."""
        video = self.config.video_config if isinstance(image, VideoFile) else None
        return 1 if video is None else video.num_frames

    def _pixels(self, image: Any) -> torch.Tensor:
        """Pixel values of one picture or video, see `Request.pixels`."""
        if not isinstance(image, VideoFile):
            pixels = process_images([image], self.image_processor, self.config)[0]
        elif (video := self.config.video_config) is None:
            raise EvaluationError("this checkpoint takes no videos: give a Video-LLaVA with --model")
        else:
            pixels = load_video(image.path, video.num_frames, video.image_size)
        return pixels.to(dtype=self.model.dtype, device=self.device)

    def request(self, instance: Instance, images: list | None = None) -> Request:
        """The question as the model takes it; its videos are decoded when pixels are asked for.

        Args:
            images: where they are decoded already.
        """
        images = self._images(instance) if images is None else images
        text, _, _, doc_id, task, _ = instance.args
        ids = tokenizer_image_token(self._prompt(text, images), self.tokenizer, IMAGE_TOKEN_INDEX)
        return Request(f"document {doc_id} of task {task}", images, list(ids), self._pixels)

    def _checked(self, requests: list[Instance]) -> list[str]:
        """Answers of one batch; in the first one, what the decoder sees is compared with the ledger."""
        if not self._unchecked:
            return self._answer(requests)
        self._unchecked, plan = False, self.handle.plan
        with lengths.Lengths(self.model.model.layers).watching() as found, self.handle.recording() as recorded:
            texts = self._answer(requests)
            self.unlike_uniform = lengths.unlike_uniform(recorded.report, plan)
        made = [self.request(request) for request in requests]
        if all(len(request.images) == 1 for request in made) and plan.shape.source in FIXED:
            shared = self.reuse is not None and self.reuse.key(requests[0])
            rows = [request.before if shared else request.ids for request in made]
            text = max(sum(token != IMAGE_TOKEN_INDEX for token in row) for row in rows)
            lengths.check(found.seen, plan.tokens_per_layer(), text)
        return texts

    @torch.inference_mode()
    def _answer(self, requests: list[Instance]) -> list[str]:
        """Answers of one batch, which shares its generation settings."""
        if self.reuse is not None and self.reuse.key(requests[0]):
            return self.reuse.answer(requests, generation_settings(requests[0].args[1]))
        made = [self.request(r) for r in requests]
        width, pad = max(len(r.ids) for r in made), self.pad_id
        ids = torch.full((len(made), width), pad, dtype=torch.long)
        mask = torch.zeros(len(made), width, dtype=torch.bool)
        for i, request in enumerate(made):
            start = width - len(request.ids)
            ids[i, start:], mask[i, start:] = torch.tensor(request.ids), True
        with self._questions(requests, made):
            new = self.model.generate(
                ids.to(self.device),
                attention_mask=mask.to(self.device),
                pad_token_id=pad,
                **pictures(made),
                use_cache=True,
                **generation_settings(requests[0].args[1]),
                **({"synced_gpus": True} if self.sharded else {}),
            )
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _questions(self, requests: list[Instance], made: list[Request]) -> AbstractContextManager:
        """Each picture's question, for methods that read it before the language model does."""
        asked = [bare(r.args[0]) for r, request in zip(requests, made, strict=True) for _ in request.images]
        return self.handle.questions(asked) if asked and all(asked) else nullcontext()

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
