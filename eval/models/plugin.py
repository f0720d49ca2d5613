"""Registers our models with lmms-eval from outside its tree, and says which one a run asks for.

From a checkout, lmms-eval's own command line with our model registered:

    python -m eval.models.plugin --model llava_visiondrop --model_args pretrained=PATH,method=visiondrop,tokens=64 --tasks gqa
"""

from eval.settings import ModelSettings

LLAVA, SERVED = "llava_visiondrop", "visiondrop_served"
CLASSES = {
    LLAVA: "eval.models.llava.LlavaVisionDrop",
    SERVED: "eval.models.served.Served",
}  # lmms-eval's name of a model -> its class
# Type of a model in its config.json -> lmms-eval's wrapper; what is not here is loaded by our llava.
WRAPPERS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "internvl": "internvl_hf",
    "llava_onevision": "llava_hf",
}


def chosen(settings: ModelSettings) -> tuple[str, type]:
    """lmms-eval's name and the class of the model that answers under `settings`."""
    if settings.server is not None:
        return SERVED, model_class(SERVED)
    if settings.wrapper is None:
        return LLAVA, model_class(LLAVA)
    from eval.models.hub import hub_class  # lmms-eval is imported where it is needed

    return settings.wrapper, hub_class(settings.wrapper)


def model_class(name: str) -> type:
    """One of our classes, as lmms-eval's own registry finds it."""
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model
    from lmms_eval.models.registry_v2 import ModelManifest

    MODEL_REGISTRY_V2.register_manifest(ModelManifest(name, simple_class_path=CLASSES[name]), overwrite=True)
    return get_model(name)


def main() -> None:
    """lmms-eval's command line."""
    from lmms_eval.__main__ import cli_evaluate

    for name in CLASSES:
        model_class(name)
    cli_evaluate()


if __name__ == "__main__":
    main()
