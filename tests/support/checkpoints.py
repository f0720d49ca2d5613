"""Small deterministic LLaVA checkpoints on disk, in every layout the loader reads.

    folder = write_original(tmp_path, layers=4, tower="separate", weights="bin", tokenizer="model")
    folder = write_hub(tmp_path, layers=4)

All hold the same weights: those of golden/golden_checkpoint.py, a function of the original parameter names, listed here
by hand so that no model class takes part. End-of-sequence is off unless asked for, so that `generate` always writes as
many tokens as it may.
"""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.small_tokenizer import write_json, write_tokenizer

_GOLDEN_PATH = Path(__file__).parent / "golden" / "golden_checkpoint.py"
_SPEC = importlib.util.spec_from_file_location("golden_checkpoint", _GOLDEN_PATH)
golden_checkpoint = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden_checkpoint)

VISION, TEXT = golden_checkpoint.VISION, golden_checkpoint.TEXT
VOCABULARY = TEXT["vocab_size"]
# The hub's conversion adds two tokens and pads the embeddings by 64 rows in all.
HUB_EXTRA_ROWS = 64
HUB_IMAGE_ID, HUB_PAD_ID = VOCABULARY, VOCABULARY + 1
TOWER_IN_CHECKPOINT = "model.vision_tower.vision_tower."
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


# Weights --------------------------------------------------------------------------------------------------------------


def language_shapes(layers, newline=False):
    """name -> shape of the language model and the projector, in original names; newline: with LLaVA-NeXT's newline
    embedding.
    """
    width, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{layer}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes["lm_head.weight"] = (VOCABULARY, width)
    for part, inputs in ((0, VISION["hidden_size"]), (2, width)):
        shapes |= {f"model.mm_projector.{part}.weight": (width, inputs), f"model.mm_projector.{part}.bias": (width,)}
    if newline:
        shapes["model.image_newline"] = (width,)
    return shapes


def tower_shapes():
    """name -> shape of the CLIP tower, as published (`vision_model.*`)."""
    width, inner, patch = VISION["hidden_size"], VISION["intermediate_size"], VISION["patch_size"]
    positions = (VISION["image_size"] // patch) ** 2 + 1
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (positions, width),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(VISION["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{part}.weight": (width, width), f"{layer}self_attn.{part}.bias": (width,)}
        for part, outputs, inputs in (("fc1", inner, width), ("fc2", width, inner)):
            shapes |= {f"{layer}mlp.{part}.weight": (outputs, inputs), f"{layer}mlp.{part}.bias": (outputs,)}
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def _filled(shapes, dtype):
    """Tensors of these names and shapes with the golden values."""
    return {name: torch.from_numpy(golden_checkpoint.tensor(name, shape)).to(dtype) for name, shape in shapes.items()}


def language_weights(layers=TEXT["num_hidden_layers"], dtype=torch.float32, newline=False):
    """Golden weights of language model and projector, original names."""
    return _filled(language_shapes(layers, newline), dtype)


def tower_weights(dtype=torch.float32):
    """Golden weights of the CLIP tower, published names."""
    return _filled(tower_shapes(), dtype)


def save_weights(folder, tensors, weights="safetensors"):
    """Write `tensors` as one safetensors file, or in three shards with an index as "sharded" safetensors or "bin"."""
    if weights == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    stem, suffix = ("pytorch_model", "bin") if weights == "bin" else ("model", "safetensors")
    names, places = list(tensors), {}
    for k in range(3):
        part = {name: tensors[name] for name in names[k::3]}
        file = f"{stem}-{k + 1:05d}-of-00003.{suffix}"
        if weights == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": places})


# Checkpoints ----------------------------------------------------------------------------------------------------------


def write_tower(folder, weights="safetensors", dtype=torch.float32, full=True):
    """A tower's folder as published: config.json, preprocessor_config.json, weights. full: with the text half of CLIP's
    names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tower_weights(dtype)
    config = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], **VISION}
    if full:
        config = {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": VISION["projection_dim"],
            "text_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        }
        positions = tower_shapes()["vision_model.embeddings.position_embedding.weight"][0]
        tensors |= {
            "vision_model.embeddings.position_ids": torch.arange(positions)[None],
            "text_model.final_layer_norm.weight": torch.ones(32),
            "visual_projection.weight": torch.ones(4, 4),
            "logit_scale": torch.tensor(2.6592),
        }
    write_json(folder / "config.json", config)
    size = VISION["image_size"]
    processor = {
        "crop_size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": size,
    }
    write_json(folder / "preprocessor_config.json", processor)
    save_weights(folder, tensors, weights)
    return folder


def original_config(layers, tower_name, eos=False, dtype=torch.float32, **fields):
    """A config.json with the keys that liuhaotian/llava-v1.5-7b has, at the golden sizes."""
    return {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2 if eos else None,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "max_length": 4096,
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": golden_checkpoint.MM_VISION_SELECT_LAYER,
        "mm_vision_tower": tower_name,
        "model_type": "llava",
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        **TEXT,
        "num_hidden_layers": layers,
        **fields,
    }


def write_original(
    folder,
    layers=TEXT["num_hidden_layers"],
    tower="separate",
    weights="safetensors",
    tokenizer="model",
    eos=False,
    dtype=torch.float32,
    **fields,
):
    """Write a checkpoint in the original layout to `folder`/llava-v1.5-golden and return that path.

    tower: "separate", beside it in `folder`/clip-golden (named by a relative path), or "inside" the checkpoint, as in
    v1.6, with only the tower's config beside it; weights: see `save_weights`; tokenizer: "model" or "json"; fields:
    further keys of config.json.
    """
    folder = Path(folder)
    checkpoint = folder / "llava-v1.5-golden"
    checkpoint.mkdir(parents=True, exist_ok=True)
    tensors = language_weights(layers, dtype, newline="unpad" in fields.get("mm_patch_merge_type", ""))
    # Old trainers saved this buffer; nothing reads it.
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(
        TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
    )
    clip = write_tower(folder / "clip-golden", "bin" if weights == "bin" else "safetensors", dtype)
    if tower == "inside":
        tensors |= {TOWER_IN_CHECKPOINT + name: tensor for name, tensor in tower_weights(dtype).items()}
        for path in [*clip.glob("*.safetensors"), *clip.glob("*.bin"), *clip.glob("*.index.json")]:
            path.unlink()
        fields = {"unfreeze_mm_vision_tower": True} | fields
    write_json(checkpoint / "config.json", original_config(layers, "../clip-golden", eos, dtype, **fields))
    write_json(
        checkpoint / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2 if eos else None,
            "max_length": 4096,
            "pad_token_id": 0,
        },
    )
    save_weights(checkpoint, tensors, weights)
    write_tokenizer(checkpoint, tokenizer)
    return checkpoint


def hub_model(layers=TEXT["num_hidden_layers"], dtype=torch.float32, eos=False, family="Llava"):
    """transformers' LlavaForConditionalGeneration with the golden weights and `HUB_EXTRA_ROWS` zero rows of vocabulary.

    family: "Llava", or "LlavaNext" for LlavaNextForConditionalGeneration.
    """
    import transformers
    from transformers import CLIPVisionConfig, LlamaConfig

    text = LlamaConfig(**TEXT | {"num_hidden_layers": layers, "vocab_size": VOCABULARY + HUB_EXTRA_ROWS})
    text.eos_token_id = 2 if eos else None
    config = getattr(transformers, f"{family}Config")(
        text_config=text,
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=HUB_IMAGE_ID,
        vision_feature_layer=golden_checkpoint.MM_VISION_SELECT_LAYER,
    )
    config.dtype = dtype
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).to(dtype).eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in (language_weights(layers, dtype, family == "LlavaNext") | tower_weights(dtype)).items():
            target = state[_hub_name(name, state)]
            if len(target) > len(tensor):
                target.zero_()
            target[: len(tensor)] = tensor if tensor.ndim else tensor.item()
    model.generation_config.eos_token_id = 2 if eos else None
    model.generation_config.pad_token_id = HUB_PAD_ID
    return model


def _hub_name(name, state):
    """Where transformers' class holds the tensor with this original name; `state`: its state_dict, for the level
    `vision_model.`.
    """
    if name.startswith("vision_model."):
        candidates = ["model.vision_tower." + name, "model.vision_tower." + name.removeprefix("vision_model.")]
        return next(candidate for candidate in candidates if candidate in state)
    name = name.replace("model.mm_projector.0.", "model.multi_modal_projector.linear_1.")
    name = name.replace("model.mm_projector.2.", "model.multi_modal_projector.linear_2.")
    for part in ("layers", "embed_tokens", "norm"):
        name = name.replace(f"model.{part}.", f"model.language_model.{part}.", 1)
    return name


def write_hub(
    folder,
    layers=TEXT["num_hidden_layers"],
    keys="disk",
    tokenizer="model",
    eos=False,
    dtype=torch.float32,
    family="Llava",
):
    """Write the same model in the hub's layout to `folder`/llava-1.5-golden-hf and return that path.

    family: see `hub_model`; keys: "disk", the names that `save_pretrained` writes, or "class", those the class itself
    holds.
    """
    checkpoint = Path(folder) / "llava-1.5-golden-hf"
    checkpoint.mkdir(parents=True, exist_ok=True)
    model = hub_model(layers, dtype, eos, family)
    model.save_pretrained(checkpoint)
    if keys == "class":
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, checkpoint / "model.safetensors"
        )
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {"0": "<unk>", "1": "<s>", "2": "</s>", str(HUB_IMAGE_ID): "<image>", str(HUB_PAD_ID): "<pad>"}
    write_tokenizer(
        checkpoint,
        tokenizer,
        added_tokens_decoder={index: token | {"content": content} for index, content in added.items()},
        pad_token="<pad>",
        padding_side="left",
    )
    size = VISION["image_size"]
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}, "image_mean": CLIP_MEAN}
    processor |= {"crop_size": {"height": size, "width": size}, "image_std": CLIP_STD, "resample": 3}
    write_json(checkpoint / "preprocessor_config.json", processor)
    return checkpoint
