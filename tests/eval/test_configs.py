"""Launcher configurations are read by accelerate's and DeepSpeed's own parsers, and so are the commands above them."""

import re
import shlex

import pytest
import yaml

from eval import benchmarks, run
from eval.driver import launch
from eval.files import ROOT
from eval.settings import Settings

FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def commands(file) -> list[list[str]]:
    """The `accelerate launch` lines of a header."""
    return [
        shlex.split(line.strip("# "))
        for line in file.read_text().splitlines()
        if line.startswith("#   accelerate launch")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_accelerate_accepts_the_file_and_the_command_above_it(file, monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(ROOT)
    config, raw = load_config_from_file(str(file)), yaml.safe_load(file.read_text())
    assert config.num_processes == raw["num_processes"] and config.distributed_type == raw["distributed_type"]
    assert commands(file)
    for machine, words in enumerate(commands(file)):
        args = launch_command_parser().parse_args(words[2:])
        assert args.config_file == str(file.relative_to(ROOT)) and args.module and args.training_script == "eval.run"
        ours = run.parser().parse_args(args.training_script_args)
        assert ours.benchmark in benchmarks.load() and ours.tokens == 64
        checked = _validate_launch_command(args)[0]
        assert (checked.num_processes, checked.num_machines) == (raw["num_processes"], raw["num_machines"])
        assert checked.machine_rank == machine
        assert checked.use_deepspeed == (raw["distributed_type"] == "DEEPSPEED")


def test_deepspeed_accepts_the_zero3_file(monkeypatch):
    deepspeed_config = pytest.importorskip("deepspeed.runtime.config", reason="DeepSpeed is not installed")
    monkeypatch.setenv("WORLD_SIZE", "1")
    (named,) = re.findall(r"deepspeed_config_file: (\S+)", (ROOT / "configs/accelerate/zero3.yaml").read_text())
    config = deepspeed_config.DeepSpeedConfig(str(ROOT / named))
    assert config.zero_optimization_stage == 3 and config.zero_config.offload_param is None

    from accelerate.utils import DeepSpeedPlugin

    assert DeepSpeedPlugin(hf_ds_config=str(ROOT / named)).zero_stage == 3


def settings(**changes) -> Settings:
    base = dict.fromkeys(Settings.__dataclass_fields__, None)
    return Settings(**{**base, "options": {}, "processes": 2, "device": "cpu", **changes})


def test_launchers(tmp_path):
    on_cpu, on_cards = launch.command(settings(), tmp_path), launch.command(settings(device="cuda"), tmp_path)
    assert "torch.distributed.run" in on_cpu and "--nproc_per_node=2" in on_cpu
    assert "accelerate.commands.launch" in on_cards and "--num_processes=2" in on_cards
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args(on_cards[on_cards.index("accelerate.commands.launch") + 1 :])
    assert args.multi_gpu and args.training_script == "eval.driver.process" and args.num_processes == 2


def test_more_processes_than_cards_are_refused():
    with pytest.raises(launch.EvaluationError, match="needs as many cards"):
        launch.check(settings(device="cuda", processes=64))
    with pytest.raises(launch.EvaluationError, match="'cuda:1'"):
        launch.check(settings(device="cuda:1"))
    launch.check(settings(device="cpu", processes=64))


def test_sharded_processes_ask_equally_often():
    """With shared-out weights (ZeRO-3) a process with fewer questions left repeats one, as the others wait for it."""
    from types import SimpleNamespace

    import torch
    from accelerate import DistributedType

    from eval.models.llava import LlavaVisionDrop

    lm = object.__new__(LlavaVisionDrop)
    lm.batch_size, lm._device, lm.reuse = 2, torch.device("cpu"), None
    lm.tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: text.split())
    requests = {
        key: SimpleNamespace(args=(text, {}, None, i, "t", "s"))
        for i, (key, text) in enumerate([("a", "w"), ("b", "w w"), ("c", "w w w")])
    }
    for kind, expected in (
        (DistributedType.NO, [["c", "b"], ["a"]]),
        (DistributedType.DEEPSPEED, [["c", "b"], ["a"], ["a"]]),
    ):
        lm.accelerator = SimpleNamespace(distributed_type=kind, gather=lambda count: torch.tensor([int(count), 3]))
        assert lm._batches(list(requests), requests) == expected
    assert lm._batches([], requests) == [["a"]] * 3
