"""The command line.

python -m visiondrop plan --method visiondrop --tokens 64        tokens per layer, before any model is loaded
python -m visiondrop ask --image photo.jpg --question "What is on the table?" --tokens 64 --show kept.png
python -m visiondrop demo                                        a page in the browser: methods side by side
python -m visiondrop advise --model MODEL --data PICTURES         which method and how many tokens for your pictures
python -m visiondrop serve MODEL --method visionzip --tokens 64    vLLM's server with pruned images
python -m visiondrop methods                                     what is there, with its options
"""

import argparse
import json
from typing import Any

from . import doctor
from .advice.command import add_arguments as add_advise_arguments
from .advice.command import command_advise
from .api import plan
from .demo.ask import ask
from .errors import VisionDropError, command_line
from .methods.composed import JOIN
from .methods.options import options_in
from .methods.registry import available, method_class, options_of
from .plans.budget import Budget
from .plans.presets import PRESETS
from .precision import DTYPES
from .serving.command import add_arguments as add_serve_arguments
from .serving.command import serve

DEFAULT_MODEL = "liuhaotian/llava-v1.5-7b"


def read_options(pairs: list[str]) -> dict[str, str]:
    """{"name": "value"} from "name=value" items."""
    out = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise VisionDropError(f"--option {pair!r}: write it as name=value, e.g. --option score=text")
        out[name.replace("-", "_")] = value
    return out


def budget(text: str) -> Budget:
    """--tokens as a whole number, a share of the image's tokens, or a published setting: 64, 22%, 0.22, qwen2.5-vl-25."""
    if text in PRESETS:
        return text
    try:
        return text if text.endswith("%") else float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write 64, 22% or 0.22, or one of {', '.join(PRESETS)}") from None


def add_method_arguments(parser: argparse.ArgumentParser, tokens: int | None = None, shares: bool = False) -> None:
    """The arguments that name a method and its settings, the same for every command.

    Args:
        tokens: the default budget; shares: a share of the image's tokens is allowed too (rows of results are by count).
    """
    parser.add_argument(
        "--method",
        default="visiondrop",
        help="a registered method (python -m visiondrop methods), or two: vispruner+fastv",
    )
    parser.add_argument(
        "--tokens",
        type=budget if shares else int,
        default=tokens,
        help="the budget: mean visual tokens per LLM layer"
        + (", or a share of the image's: 22%%, or a published setting: qwen2.5-vl-25" if shares else ""),
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method; repeat"
    )
    parser.add_argument("--preset", help="short for --option preset=NAME")
    parser.add_argument("--strict-budget", action="store_true", help="short for --option strict_budget=on")


def method_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The method's options from parsed arguments; of two joined methods the short forms mean the decoder's."""
    options = read_options(arguments.option)
    at = "decoder." if JOIN in arguments.method else ""
    if arguments.preset is not None:
        options[f"{at}preset"] = arguments.preset
    if arguments.strict_budget:
        options[f"{at}strict_budget"] = "on"
    return options


def command_plan(arguments: argparse.Namespace) -> None:
    """Print the ledger of a plan."""
    if arguments.layers < 2 or arguments.patches < 1:
        raise VisionDropError(
            f"--layers {arguments.layers} --patches {arguments.patches}: at least 2 layers and 1 patch are needed"
        )
    made = plan(
        arguments.method,
        arguments.tokens,
        layers=arguments.layers,
        patches=arguments.patches,
        options=method_options(arguments),
    )
    ledger = made.ledger(text_tokens=arguments.text)
    print(json.dumps(ledger.as_dict()) if arguments.json else ledger)


def command_methods(arguments: argparse.Namespace) -> None:
    """Print every method and its options."""
    for name in available():
        cls = method_class(name)
        print(f"{name:<12} {(cls.__doc__ or '').strip().splitlines()[0] if cls.__doc__ else ''}".rstrip())
        defaults = options_of(name)
        for option, (field, _) in options_in(cls).items():
            told = field.metadata
            allowed = f" ({', '.join(told['allowed'])})" if told.get("allowed") else ""
            print(f"    {option}={defaults[option]}{allowed}  {told.get('help', '')}".rstrip())


def command_ask(arguments: argparse.Namespace) -> None:
    """Answer one question about one image."""
    settings: dict[str, Any] = {
        k: getattr(arguments, k) for k in ("image", "question", "model", "method", "tokens", "show")
    }
    ask(**settings, options=method_options(arguments), max_new_tokens=arguments.max_new_tokens, dtype=arguments.dtype)


def command_demo(arguments: argparse.Namespace) -> None:
    """Serve the page to play with."""
    try:
        from .demo.serve import serve  # needs gradio
    except ImportError as error:
        raise VisionDropError(
            f"the demo needs Gradio ({error}): in a checkout run bash scripts/demo.sh, which makes its environment; else "
            "pip install 'visiondrop[demo]'"
        ) from error
    serve(arguments.model, arguments.host, arguments.port)


def command_serve(arguments: argparse.Namespace) -> None:
    """Become vLLM's server."""
    serve(arguments, method_options(arguments), arguments.vllm)


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(prog="python -m visiondrop", description="Visual token pruning for LVLMs.")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("plan", help="tokens per layer, mean, cache entries and FLOPs of a method")
    add_method_arguments(one, shares=True)
    one.add_argument("--layers", type=int, default=32, help="decoder layers (default 32)")
    one.add_argument("--patches", type=int, default=576, help="patches of the image (default 576)")
    one.add_argument(
        "--text", type=int, default=63, help="text tokens of the prompt (default 63, as in the paper's FLOPs)"
    )
    one.add_argument("--json", action="store_true", help="one JSON object instead of text")
    one.set_defaults(run=command_plan)

    commands.add_parser("doctor", help="is this environment fit to run: part by part, with the fix").set_defaults(
        run=lambda arguments: doctor.main()
    )
    commands.add_parser("methods", help="the methods and their options").set_defaults(run=command_methods)

    one = commands.add_parser("ask", help="answer a question about an image")
    add_method_arguments(one, shares=True)
    one.add_argument("--image", required=True, help="a picture, or a video for a model that takes videos")
    one.add_argument("--question", required=True)
    one.add_argument("--model", default=DEFAULT_MODEL, help=f"folder or hub id (default {DEFAULT_MODEL})")
    one.add_argument("--show", metavar="PNG", help="draw the kept patches of every stage over the image")
    one.add_argument("--max-new-tokens", type=int, default=64)
    one.add_argument("--dtype", default="auto", choices=DTYPES)
    one.set_defaults(run=command_ask)

    one = commands.add_parser("demo", help="a page in the browser: methods side by side on a picture")
    one.add_argument("--model", help="folder or hub id (default: the testbed that ships with the repository)")
    one.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    one.add_argument("--port", type=int, default=7860, help="default 7860; 0 takes a free one")
    one.set_defaults(run=command_demo)
    one = commands.add_parser("advise", help="which method and how many tokens for your own pictures")
    add_advise_arguments(one, budget)
    one.set_defaults(run=command_advise)
    one = commands.add_parser(
        "serve", allow_abbrev=False, help="vLLM's OpenAI server with pruned images (docs/serving.md)"
    )
    add_serve_arguments(one)
    add_method_arguments(one, shares=True)
    one.set_defaults(run=command_serve)
    return parser


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run a command; a request that cannot be served ends in one sentence and exit code 2."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.vllm = rest
    parsed.run(parsed)
    return 0
