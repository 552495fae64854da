"""Starting our processes: training in one or under accelerate in several, scoring; and what any of them keeps quiet."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..chat_templates.errors import did_you_mean
from .errors import RecipeError

CONFIGS = Path(__file__).parent / "accelerate"
MODULE = "posttrain.recipes.train"
LAUNCHER = "posttrain.recipes.launch"  # `main` below


def quiet_libraries() -> None:
    """Silences what no recipe can do anything about, and keeps bars to terminals; before any library is imported."""
    import logging
    import warnings

    harmless = {
        "bitsandbytes.backends.cpu.ops": "CPU gemm_4bit_forward",  # a kernel is missing, and training never uses it
        "DeepSpeed": "Setting accelerator to CPU",  # it says so whether or not it is used
    }
    for name, words in harmless.items():
        logging.getLogger(name).addFilter(lambda record, words=words: words not in record.getMessage())
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing\w*` is deprecated")  # TRL's own default
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler says that it starts and stops, across the bar
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def command(
    recipe: Path,
    overrides: Sequence[str],
    *,
    processes: int | None = None,
    accelerate: str | None = None,
    flags: Sequence[str] = (),
) -> list[str]:
    """Returns the command that trains a recipe.

    Args:
        recipe: The YAML file.
        overrides: ``a.b=c`` strings.
        processes: How many processes; None for what the accelerate config says, or one.
        accelerate: Name of a config in ``recipes/accelerate`` or a path; None picks ``ddp`` or ``cpu`` for several
            processes and no launcher at all for one.
        flags: Options passed on to the training module.

    Raises:
        RecipeError: The config does not exist, or ``processes`` is not positive.
    """
    if processes is not None and processes < 1:
        raise RecipeError(f"--processes must be at least 1, not {processes}")
    arguments = [str(recipe), *overrides, *flags]
    if accelerate is None and (processes or 1) == 1:
        return [sys.executable, "-m", MODULE, *arguments]
    check = ["--processes", str(processes)] if processes else []
    return [*_launcher(processes, accelerate), "-m", MODULE, *arguments, *check]


def _launcher(processes: int | None, accelerate: str | None) -> list[str]:
    """Returns the command that starts a module in several processes, as :func:`command` says."""
    driver = shutil.which("nvidia-smi") is not None  # torch would take seconds to say
    config = find_config(accelerate or ("ddp" if driver else "cpu"))
    count = ["--num_processes", str(processes)] if processes else []
    # A config of the user's own may span machines, which must agree on its port.
    port = ["--main_process_port", str(_free_port())] if config.parent == CONFIGS else []
    return [sys.executable, "-m", LAUNCHER, "--config_file", str(config), *count, *port]


def in_processes(processes: int, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs the command line's arguments in several processes on this machine."""
    return [*_launcher(processes, None), "-m", "posttrain.recipes.cli", *arguments]


def score_command(
    folders: Sequence[Path | str],
    suite: str,
    references: Mapping[str, Path],
    *,
    final_only: bool,
    device: str | None = None,
) -> list[str]:
    """Returns the command that scores run folders by a suite.

    Args:
        folders: The run folders.
        suite: The suite's name or file.
        references: The folders that ``@name`` stands for in the suite.
        final_only: Whether to leave the checkpoints.
        device: Where the models run; the first GPU if there is one.
    """
    command = [sys.executable, "-m", "posttrain.recipes.cli", "score", *map(str, folders), "--suite", suite]
    command += [f"--step={name}={folder}" for name, folder in references.items()]
    command += [f"--device={device}"] if device else []
    return [*command, "--final-only"] if final_only else command


def parity_command(folder: Path) -> list[str]:
    """Returns the command that compares a run's final model with what stock transformers makes of its folder."""
    return [sys.executable, "-m", "posttrain.recipes.cli", "parity", str(folder), "--against", "transformers"]


def alone() -> dict[str, str]:
    """Returns this process's environment without what a launcher set for its workers, whom a scorer would wait for."""
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    theirs = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_")
    return {key: value for key, value in os.environ.items() if key not in own and not key.startswith(theirs)}


def find_config(name: str) -> Path:
    """Finds an accelerate config by name or path.

    Raises:
        RecipeError: There is none.
    """
    for path in (CONFIGS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    raise RecipeError(
        f"no accelerate config '{name}'", hint=did_you_mean(name, names) or f"known: {', '.join(names)}, or a path"
    )


def _free_port() -> int:
    """Returns a port that nothing listens on, so that two launches on one machine do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def become(arguments: Sequence[str]) -> NoReturn:
    """Turns this process into a command, so that whoever kills the one kills the other."""
    sys.stdout.flush()
    os.execv(arguments[0], list(arguments))


def run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs a command to its end and returns its exit code; an interrupt reaches the command, which ends first."""
    with subprocess.Popen(arguments, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has sent it to the whole process group


def main() -> int:
    """Launches what the command line says, as ``accelerate launch`` does; returns the failed process's exit code.

    ``--config_file`` may also be the name of one of our configurations.

    A worker prints its own one-line error; torch's launcher would follow it with pages of its own and exit with 1. So
    it would after Ctrl-C, which it hands on to the workers; they say what stands, and the exit code is theirs.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = launch_command_parser().parse_args()
    try:
        options.config_file = options.config_file and str(find_config(options.config_file))
        launch_command(options)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
    except subprocess.CalledProcessError as error:  # `distributed_type: 'NO'` starts one process without torch
        rank, code = 0, error.returncode
    except SignalException as signal:
        return 128 + signal.sigval
    else:
        return 0
    if code < 0:  # it could say nothing itself
        print(f"process {rank} was ended by signal {-code}", file=sys.stderr)
    return code if code in (1, 2, 130) else 1


if __name__ == "__main__":
    sys.exit(main())
