"""The files for clusters start what they say, on as many machines as the cluster has."""

import inspect
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from posttrain.recipes import launch, train
from posttrain.recipes.load import load

LAUNCHERS = launch.CONFIGS.parent / "launchers"
SLURM = LAUNCHERS / "slurm.sh"
SKYPILOT = LAUNCHERS / "skypilot.yaml"


def skypilot() -> dict:
    return yaml.safe_load(SKYPILOT.read_text())


@pytest.mark.parametrize("script", [SLURM.read_text(), skypilot()["setup"], skypilot()["run"]])
def test_they_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("script", [SLURM.read_text(), skypilot()["run"]])
def test_their_options_exist(script: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    command = script[script.index("-m posttrain.recipes.launch") :]
    options, trained = command.split("-m posttrain.recipes.train")
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--\w+", options)) <= known
    assert set(re.findall(r"--\w+", trained)) == {"--processes"}
    assert '"--processes"' in inspect.getsource(train.main)


def test_skypilot_trains_a_recipe_that_loads_below_its_bucket() -> None:
    envs = skypilot()["envs"]
    loaded = load(launch.CONFIGS.parents[1] / envs["RECIPE"], envs["OVERRIDES"].split())
    assert any(loaded.recipe.output_dir.startswith(folder) for folder in skypilot()["file_mounts"])
    assert launch.find_config(envs["ACCELERATE"]).is_file()


def test_skypilot_s_bucket_takes_appends_and_no_two_machines_write_into_it() -> None:
    modes = {mount["mode"] for mount in skypilot()["file_mounts"].values()}
    assert modes == {"MOUNT_CACHED"}  # MOUNT writes whole files alone, and logs and scores are appended to
    assert skypilot()["num_nodes"] == 1  # what one machine writes into its cache, another sees late


def test_slurm_puts_a_job_back_into_the_queue_and_tells_the_script() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert {"requeue", "open-mode", "signal"} <= asked.keys()
    assert asked["ntasks-per-node"] == "1"  # a launcher a machine
    assert asked["signal"].startswith("B:USR1@")
    assert re.search(r"trap '.*scontrol requeue .*' USR1", SLURM.read_text())


def test_slurm_gives_each_machine_the_cpus_that_were_asked_for(tmp_path: Path) -> None:
    for name, text in (("srun", 'echo "$SRUN_CPUS_PER_TASK"'), ("scontrol", "echo here")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "SLURM_CPUS_PER_TASK": "48"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(SLURM), "recipe.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "48\n"  # since Slurm 22.05 srun takes it from this variable, not from the job's


SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
for node in 0 1; do SLURM_NODEID=$node "$@" & done
wait
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" > requeued; else echo 127.0.0.1; echo 127.0.0.1; fi
"""


@pytest.mark.slow
def test_two_machines_under_slurm_train_together(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    python = Path(launch.sys.executable).parent
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "here[1-2]"}
    environment = {**os.environ, **job, "GPUS": "1", "ACCELERATE": "cpu"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{python}:{environment['PATH']}"
    recipe = make_recipe(max_steps=2, save_strategy="no", per_device_train_batch_size=2)
    done = subprocess.run(
        ["bash", str(SLURM), str(recipe), "trainer.seed=3"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["processes"] == 2
    assert record["recipe"]["trainer"]["seed"] == 3
