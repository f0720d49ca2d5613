"""Registers our model with lmms-eval from outside its tree, under the id `llava_visiondrop`.

From a checkout, lmms-eval's own command line with our model registered:

    python -m eval.models.plugin --model llava_visiondrop --model_args pretrained=PATH,method=visiondrop,tokens=64 --tasks gqa
"""

MODEL_ID = "llava_visiondrop"
CLASS_PATH = "eval.models.lmms_model.LlavaVisionDrop"


def manifest():
    """lmms-eval's description of our model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=CLASS_PATH)


def model_class() -> type:
    """Our class as lmms-eval's own registry finds it."""
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    return get_model(MODEL_ID)


def main() -> None:
    """lmms-eval's command line."""
    from lmms_eval.__main__ import cli_evaluate

    model_class()
    cli_evaluate()


if __name__ == "__main__":
    main()
