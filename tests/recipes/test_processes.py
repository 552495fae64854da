"""Two processes train what one does, and one process never passes for two."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from posttrain.data_tools.files import hash_file
from posttrain.evals import checkpoints
from posttrain.recipes import launch, rundir
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from . import warm
from .conftest import EVERY_RECIPE, VARIANTS, command, log, losses, posttrain


@pytest.mark.slow
@pytest.mark.parametrize("stage", EVERY_RECIPE)
def test_two_processes_log_the_losses_of_one_with_the_same_global_batch(
    make_recipe: Callable[..., Path], tmp_path: Path, stage: str
) -> None:
    evaluated = {"per_device_eval_batch_size": 3}
    overrides: list[str] = []
    if stage in ("pretrain", "sft", "distill") or stage in VARIANTS:  # whose held-out loss is one mean over tokens
        kind = EVERY_RECIPE[stage]["kind"]
        overrides = [f"data.eval={{path: {tmp_path / kind}.jsonl, format: {kind}, limit: 10}}"]
        overrides += ["trainer.eval_strategy=epoch"]
    train(load(make_recipe(stage, "one", per_device_train_batch_size=4, **evaluated), overrides))
    recipe = make_recipe(stage, "two", per_device_train_batch_size=2, **evaluated)
    # what starts the processes is the same for all stages
    given = ("train", recipe, *overrides)
    two = posttrain(*given, "--processes", "2") if stage == "sft" else warm.run_two(*given)
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "one" / "run.json").read_text())["processes"] == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert len(losses(tmp_path / "one")) == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    one, both = ([line["eval_loss"] for line in log(tmp_path / name) if "eval_loss" in line] for name in ("one", "two"))
    assert len(one) == len(overrides[1:])
    assert both == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_a_launcher_that_quietly_starts_one_process_is_found_out(make_recipe: Callable[..., Path]) -> None:
    # as accelerate 1.15 does without a word for `accelerate launch --cpu --num_processes 2`
    result = warm.run_module(launch.MODULE, str(make_recipe()), "--processes", "2")
    assert result.returncode != 0
    assert "asked for 2 processes, but 1 train together" in result.stderr


def test_ctrl_c_is_no_failure_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.commands.launch as theirs
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def interrupted(_: object) -> None:
        raise SignalException("got signal: 2", signal.SIGINT)

    monkeypatch.setattr(theirs, "launch_command", interrupted)
    monkeypatch.setattr(sys, "argv", ["launch", "--config_file", "cpu", "-m", launch.MODULE])
    assert launch.main() == 130


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (130, 130), (7, 1), (-9, 1)])
def test_one_process_s_failure_is_the_launcher_s_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, expected: int
) -> None:
    config = tmp_path / "one.yaml"  # as `accelerate config` writes it for one process
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    script = tmp_path / "fails.py"
    script.write_text(f"import os, signal\nos.kill(os.getpid(), 9) if {code} < 0 else os._exit({code})\n")
    monkeypatch.setattr(sys, "argv", ["launch", "--config_file", str(config), str(script)])
    assert launch.main() == expected
    assert ("ended by signal 9" in capsys.readouterr().err) == (code < 0)


def test_an_unknown_accelerate_config_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'zero3'"):
        launch.command(Path("r.yaml"), [], accelerate="zreo3")


def test_every_accelerate_config_names_itself_and_sets_the_processes_but_not_the_precision() -> None:
    import yaml

    names = {path.stem for path in launch.CONFIGS.glob("*.yaml")}
    assert {"cpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"} <= names
    for path in launch.CONFIGS.glob("*.yaml"):
        value = yaml.safe_load(path.read_text())
        assert value["num_processes"] >= 2, path
        assert value["mixed_precision"] == "no", path  # another would win over `trainer.bf16: false`
        assert path.read_text().startswith("# "), path


@pytest.mark.slow
def test_two_processes_killed_and_started_again_end_with_the_same_bits_and_log(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"packing": True, "max_length": 96, "per_device_train_batch_size": 2, "max_steps": 10}
    options |= {"lr_scheduler_type": "constant", "logging_steps": 3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = warm.run_two("train", make_recipe("sft", "whole", **options))
    assert result.returncode == 0, result.stderr
    recipe = make_recipe("sft", "killed", **options)
    started = command("train", recipe, "--processes", "2")
    launcher = psutil.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while launcher.poll() is None and checkpoints.read_manifest(killed / "checkpoint-4") is None:
        time.sleep(0.005)
    for process in [launcher, *launcher.children(recursive=True)]:  # workers lie in sessions of their own
        process.suspend()  # first, so that no launcher mourns its workers
    processes = [launcher, *launcher.children(recursive=True)]
    assert len(processes) > 2, "the run ended before it could be killed"
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=30)
    assert rundir.find_resume(killed) is not None
    assert not rundir.is_finished(killed)
    again = warm.run_two("train", recipe)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout
    saved = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert [hash_file(killed / path) for path in saved] == [hash_file(whole / path) for path in saved]
    assert log(killed) == log(whole)
    assert {"num_tokens", "train_loss"} <= {name for line in log(killed) for name in line}
