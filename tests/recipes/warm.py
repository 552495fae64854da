"""Commands of posttrain in processes of their own that have torch and TRL already: forks of a server that imports once.

Each is a real process, with its own arguments, environment, output and exit code, that can be killed; but for the
seconds of imports at its start it is what the command line gives. The server starts with the first command, and ends
with the tests.
"""

import contextlib
import gc
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

LOGITS = "POSTTRAIN_TEST_LOGITS"  # names the file that a run's logits are kept in
PROBE = [9, 40, 7, 77, 12, 300, 5, 61]  # the tokens
_IMPORTED = (
    "posttrain.recipes.cli",
    "posttrain.recipes.train",
    "posttrain.recipes.check",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.rloo_trainer",
    "trl.trainer.kto_trainer",
    "peft",
    "deepspeed",
    "lm_eval.evaluator",
    "datasets",
)


def start(
    command: Sequence[str | Path],
    output: Path = Path(os.devnull),
    environment: Mapping[str, str] = os.environ,
    kilobytes: int | None = None,
) -> Any:
    """Starts a command as ``conftest.command`` and ``launch.command`` give it; returns a ``multiprocessing.Process``.

    Args:
        command: ``python -m`` and a module of posttrain, with its arguments.
        output: The stem of the files that get standard output and error, ``.out`` and ``.err``.
        environment: Its variables.
        kilobytes: How large it may make a file, as ``ulimit -f`` says.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    become = {
        "COMMAND": list(map(str, command)),
        "ENVIRONMENT": dict(environment),
        "FOLDER": str(Path.cwd()),
        "OUTPUT": [str(output if str(output) == os.devnull else output.with_suffix(end)) for end in (".out", ".err")],
        "KILOBYTES": kilobytes,
    }
    # by the path of this file, since the server knows nothing of the tests' packages
    process = context.Process(target=runpy.run_path, args=(__file__, become, "__warm__"))
    with _no_main():
        process.start()
    return process


def run(*arguments: str | Path, kilobytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ``posttrain ARGUMENTS`` to its end."""
    from .conftest import command

    return _run(command(*arguments), [os.environ], kilobytes)[0]


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m MODULE ARGUMENTS`` to its end."""
    return _run([sys.executable, "-m", module, *arguments], [os.environ])[0]


def run_two(*arguments: str | Path, config: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in two processes that know of each other, with ``more`` in their environment.

    Returns:
        What came of the first one, or of the second one if only that failed.
    """
    from .conftest import command

    first, second = _run(command(*arguments), [told | more for told in environments_of_two(config)])
    return first if first.returncode else second if second.returncode else first


def environments_of_two(config: Path | None = None) -> list[dict[str, str]]:
    """Returns the environments of two processes that know of each other, as ``accelerate launch`` would make them."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from posttrain.recipes import launch

    port, told = str(launch._free_port()), {}
    asked = ["--config_file", str(config or launch.find_config("cpu")), "--num_processes", "2"]
    with mock.patch("torch.distributed.run.run", side_effect=lambda _: told.update(os.environ)):
        launch_command(launch_command_parser().parse_args([*asked, "--main_process_port", port, "-m", launch.MODULE]))
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [told | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def launched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Stands for ``launch.run``."""
    (done,) = _run(command, [os.environ if environment is None else environment])
    print(done.stdout, done.stderr)
    return done.returncode


def _run(
    command: Sequence[str | Path], environments: Sequence[Mapping[str, str]], kilobytes: int | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command in a process for each environment, at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(number) for number in range(len(environments))]
        started = [start(command, *own, kilobytes) for own in zip(outputs, environments, strict=True)]
        for process in started:
            process.join()
        return [
            subprocess.CompletedProcess(
                list(command),
                process.exitcode,
                output.with_suffix(".out").read_text(),
                output.with_suffix(".err").read_text(),
            )
            for process, output in zip(started, outputs, strict=True)
        ]


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hides the tests' own program, which a process of ``multiprocessing`` would import first."""
    main = sys.modules["__main__"]
    path, main.__file__ = getattr(main, "__file__", None), None
    try:
        yield
    finally:
        main.__file__ = path


def _keep_logits(train: Any, path: Path) -> None:
    """Makes a run write, before it saves its model, what that gives for some tokens, as its trainer holds it."""
    finish = train._finish

    def keeping(job: Any, trainer: Any, head: Any) -> None:
        import torch

        model = trainer.model_wrapped
        model.eval()
        with torch.no_grad():  # all processes together, each of which may hold a part of every weight
            logits = model(input_ids=torch.tensor([PROBE]), attention_mask=torch.ones(1, len(PROBE))).logits
        if trainer.is_world_process_zero():
            torch.save(logits.float().clone(), path)
        finish(job, trainer, head)

    train._finish = keeping


def _become(
    command: list[str], environment: Mapping[str, str], folder: str, output: Sequence[str], kilobytes: int | None
) -> None:
    """Makes this process the command; where the command would turn into training by itself, training is called."""
    gc.freeze()  # what the server has imported is nothing to collect
    for number, path in enumerate(output, start=1):
        sink = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(sink, number)
        os.close(sink)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if kilobytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
    from huggingface_hub import constants
    from posttrain.recipes import cli, launch, train

    constants.HF_HOME = environment.get("HF_HOME", constants.HF_HOME)  # read at its import
    plain = launch.become

    def become(command: Sequence[str]) -> None:
        sys.argv = list(command[2:])
        if sys.argv[0] == launch.MODULE:
            sys.exit(train.main())
        plain(command)

    launch.become = become  # type: ignore[assignment]
    if LOGITS in environment:
        _keep_logits(train, Path(environment[LOGITS]))
    if command[2] == launch.MODULE:
        become(command)
    sys.argv = ["posttrain", *command[3:]]
    cli.main()


if __name__ == "__warm__":
    _become(COMMAND, ENVIRONMENT, FOLDER, OUTPUT, KILOBYTES)  # type: ignore[name-defined]  # noqa: F821
