"""The command line. Everything heavy is imported inside the commands, so that ``--help`` answers at once."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..chat_templates.errors import PosttrainError
from ..data_tools.progress import say_now
from .tools import TOOLS, run_command


class _Commands(TyperGroup):
    """Lists its commands with the whole first paragraph of their help, which click cuts at the width of a line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((one.help or "").partition("\n\n")[0].split())) for name, one in self.commands.items()]
            )


app = typer.Typer(
    cls=_Commands,
    name="posttrain",
    help="Post-training and evaluation: one YAML recipe in, one trained and scored checkpoint out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Recipe = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Keys to replace.", show_default=False)
]
Steps = Annotated[
    list[str] | None, typer.Option("--step", metavar="NAME=FOLDER", help="What @NAME stands for in the recipe.")
]
Accelerate = Annotated[str | None, typer.Option(help="An accelerate config: cpu, ddp, zero2, …, or a path.")]
Model = Annotated[str, typer.Argument(help="A run folder, a checkpoint or a model.", show_default=False)]
NewFolder = Annotated[Path, typer.Option("-o", help="The new folder.", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm-eval")
        print(f"posttrain {version('posttrain')}", *(f"{name} {version(name)}" for name in libraries), sep="\n  ")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the versions of posttrain and its libraries.",
        ),
    ] = False,
) -> None:
    """Holds what stands before a command."""


@app.command()
def init(
    stage: Annotated[str, typer.Argument(help="What to train, such as sft, dpo or classify.", show_default=False)],
    model: Annotated[str, typer.Argument(help="A Hub id or a folder.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", help="The file to write.", show_default="STAGE.yaml")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="What to train on: a path, a Hub id, or a source as YAML.", show_default="example rows"),
    ] = None,
) -> None:
    """Write a commented recipe for a stage and a model."""
    from .init import write_recipe

    print(*write_recipe(stage, model, output or Path(f"{stage}.yaml"), data), sep="\n")


@app.command()
def check(
    recipes: Annotated[list[str] | None, typer.Argument(metavar="FILE... [a.b=c]...", show_default=False)] = None,
    data: Annotated[bool, typer.Option(help="Also read data, template and loss mask; build the tasks.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of benchmarks that suites read in place of their tasks' data.")
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the JSON Schema of recipes, or of: suite, judge.")
    ] = False,
    step: Steps = None,
    plan: Annotated[bool, typer.Option("--plan", help="Tabulate memory over batch, ZeRO stage and adapter.")] = False,
    device: Annotated[
        str | None, typer.Option(help="What it would run on, such as H100, or cpu.", show_default="a GPU")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Devices that train together.", show_default="1")] = None,
    accelerate: Accelerate = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens of the run, where the data is not read, such as 1e9.")
    ] = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1, help="The share of the device's peak that a run reaches; assumed.")
    ] = 0.4,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device for an hour.", show_default=False)] = None,
) -> None:
    """Check recipes, pipelines, suites and judges: all that can be known before a model is trained or scored.

    Of a recipe: schema, data columns, template, loss mask, and an estimate of memory, FLOPs, tokens and time; with
    --no-data by the model's config.json alone. Of a suite: what files and packages each task needs, and whether its
    right answers count.
    """
    from . import check as checking
    from . import schema
    from .needs import Assumptions
    from .train import parse_steps

    if json_schema:
        of = recipes or ["recipe"]
        if len(of) > 1 or of[0] not in ("recipe", "suite", "judge"):
            raise typer.BadParameter("there are schemas of: recipe, suite, judge", param_hint="--json-schema")
        print(schema.json_schema(of[0]))
        return
    paths = [Path(argument) for argument in recipes or [] if "=" not in argument]
    overrides = [argument for argument in recipes or [] if "=" in argument]
    if not paths:
        raise typer.BadParameter("give at least one recipe", param_hint="RECIPE")
    assumed = Assumptions(device, accelerate, processes, tokens, utilization, price, plan)
    code = checking.check_all(
        paths, overrides, parse_steps(step or []), read_data=data, data_dir=data_dir, assumed=assumed
    )
    raise typer.Exit(code)


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    split: Annotated[str, typer.Option(help="train or eval.")] = "train",
    step: Steps = None,
) -> None:
    """Print rows as the trainer will see them, with the tokens that carry loss in colour."""
    from .load import load
    from .show import show_rows
    from .train import parse_steps

    show_rows(load(recipe, overrides or [], parse_steps(step or [])), split=split, rows=rows)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(help="Processes on this machine.", show_default="1")] = None,
    accelerate: Accelerate = None,
    force: Annotated[bool, typer.Option("--force", help="Go on in a folder of a different recipe.")] = False,
    step: Steps = None,
) -> None:
    """Train one recipe on this machine; run again after a kill, it goes on where it was."""
    from . import launch
    from . import train as training
    from .load import load

    flags = ["--force"] if force else []
    flags += [f"--step={pair}" for pair in step or []]
    if accelerate is None and processes in (None, 1):  # in this process, which has imported half of it
        raise typer.Exit(training.main([str(recipe), *(overrides or []), *flags]))
    load(recipe, overrides or [], training.parse_steps(step or []))  # a wrong recipe is refused before any starts
    command = launch.command(recipe, overrides or [], processes=processes, accelerate=accelerate, flags=flags)
    launch.become(command)


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="The pipeline's YAML file.", show_default=False)],
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(help="Processes that train each recipe.", show_default="1")] = None,
    accelerate: Accelerate = None,
) -> None:
    """Run a pipeline: train what has changed, score every checkpoint, write the leaderboard."""
    from .pipeline import run as run_pipeline

    run_pipeline(
        pipeline,
        overrides or [],
        processes=processes,
        accelerate=accelerate,
        say=say_now,
    )


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="The study's YAML file.", show_default=False)],
    overrides: Overrides = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="HOURS", help="Run the sizes and seeds that fit into so many hours.", show_default="all of them"
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Processes that train each cell.", show_default="1")] = None,
    accelerate: Accelerate = None,
) -> None:
    """Run a study: a recipe in several versions from several seeds, compared with verdicts."""
    from .study import run_study

    run_study(
        file,
        overrides or [],
        budget=budget,
        processes=processes,
        accelerate=accelerate,
        say=say_now,
    )


@app.command()
def score(
    models: Annotated[
        list[str],
        typer.Argument(help="Run folders, model folders, Hub ids, or files of answers.", show_default=False),
    ],
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or file; default: what the run's recipe says.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Wait for new checkpoints until the run ends; suite and judges as at the start."),
    ] = False,
    final_only: Annotated[
        bool, typer.Option("--final-only", help="Leave the checkpoints, score the final model.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", help="Where scores of a model that is no run go.")] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="TASK,...", help="Tasks and groups by name, in place of a suite.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of benchmarks to read in place of the tasks' own data.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; the first GPU if there is one.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Score the first so many items of each entry of the suite; only `functions:` are whole."
        ),
    ] = None,
    chat: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(help="Whether --tasks are asked under the chat template.", show_default="never"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine that share the passes, one a GPU.", show_default="1"),
    ] = None,
    step: Steps = None,
) -> None:
    """Score checkpoints that are not scored yet."""
    from . import launch
    from .scoring import score_models
    from .train import parse_steps

    if processes and processes > 1:
        launch.become(launch.in_processes(processes, _without_processes(sys.argv[1:])))
    code = score_models(
        models,
        suite=suite,
        watch=watch,
        final_only=final_only,
        output=output,
        references=parse_steps(step or []),
        tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
        data_dir=data_dir,
        device=device,
        limit=limit,
        chat=chat,
    )
    raise typer.Exit(code)


def _without_processes(arguments: list[str]) -> list[str]:
    """Leaves the number of processes out of a command line."""
    kept = list(arguments)
    while "--processes" in kept:
        at = kept.index("--processes")
        del kept[at : at + 2]
    return [argument for argument in kept if not argument.startswith("--processes=")]


@app.command()
def watch(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, beside each other in one picture.", show_default=False)
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A figure of the log to show; may be given again.", show_default="the most telling"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the curves and end.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Show them on a page of trackio's instead.")] = False,
) -> None:
    """Watch runs: the curves of their logs as they grow, and what the watchdog saw. Ctrl-C ends it, and no run."""
    from .watch import browse
    from .watch import watch as watch_runs

    with contextlib.suppress(KeyboardInterrupt):
        if browser:
            browse(runs)
        else:
            watch_runs(runs, metric or (), once=once)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, folders of them, and results of lm-eval, AlpacaEval or inspect.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", help="Where leaderboard.{html,md,csv,json} go.")] = Path(),
    baseline: Annotated[
        str | None,
        typer.Option(help="What all rows are compared with: a run, or run/checkpoint.", show_default="first"),
    ] = None,
) -> None:
    """Write a leaderboard over scored runs."""
    from ..evals import report as reporting

    reporting.write(reporting.build(runs, baseline=baseline), output)
    print(output / "leaderboard.html")


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="A scored run folder.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", help="The file to write.", show_default="print it")] = None,
    name: Annotated[
        str | None, typer.Option(help="What the card calls the model.", show_default="the run's name")
    ] = None,
) -> None:
    """Write a model card for the Hub, with the results of tasks that were run unmodified and whole."""
    from ..evals.model_card import write_card

    text = write_card(run, output, name=name)
    print(output or text)


@app.command()
def arena(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with saved answers.", show_default=False)],
    prompts: Annotated[
        str | None, typer.Option(help="The prompt set; needed where runs have answered several.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the page listens; 0 is any free port.")] = 0,
    voter: Annotated[str | None, typer.Option(help="Who votes.", show_default="the user's name")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the pairs.")] = 0,
) -> None:
    """Vote on saved answers, blind and side by side, on a page that only this machine can open."""
    from ..evals.arena import serve

    serve(runs, task=prompts, port=port, voter=voter, seed=seed, progress=say_now)


@app.command()
def parity(
    model: Model,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|GGUF|Modelfile|URL|transformers",
            help="What it is compared with; of a server, an OpenAI-compatible one, or Ollama's own API (…/api). "
            "`transformers` is what stock transformers alone makes of its folder.",
            show_default="the run's adapter with its merged model",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the server calls the model.", show_default="as it is named here")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the server's key.", show_default="no key")
    ] = None,
) -> None:
    """Prove that two forms of a model are one: template, tokens, log-probabilities, greedy answers."""
    from ..evals.parity import check_run, check_served, is_server

    if against is not None and is_server(against):
        found = check_served(model, against, name=name, api_key_env=api_key_env)
    else:
        found = check_run(model, against)
    _tell_parity(found)


def _tell_parity(found: Any, *output: Path) -> None:
    """Prints what was compared, and what was written, and ends with 1 where the two are not one model."""
    from .parity import parity_lines

    print(*parity_lines(found), *output, sep="\n")
    raise typer.Exit(0 if found.passed else 1)


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="A run folder, a checkpoint or an adapter.", show_default=False)],
    output: NewFolder,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="The type of the weights; auto is that of the base."),
    ] = "auto",
) -> None:
    """Merge an adapter into its base: a plain model folder, proved to be what the adapter was."""
    from .merge import merge_to

    _tell_parity(merge_to(model, output, dtype=dtype), output)


@app.command()
def export(
    model: Model,
    to: Annotated[Literal["vllm", "gguf", "ollama"], typer.Option(help="For which server.", show_default=False)],
    output: NewFolder,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option(help="The type of a GGUF file's weights.")
    ] = "f32",
    converter: Annotated[
        Path | None,
        typer.Option(help="llama.cpp's convert_hf_to_gguf.py.", show_default="the one that is installed"),
    ] = None,
) -> None:
    """Write a model for a server: a plain folder, a GGUF file, or one with a Modelfile; proved by parity."""
    from .export import export as export_model

    _tell_parity(export_model(model, to, output, outtype=outtype, converter=converter), output)


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1, help="The mass of likeliest tokens to draw from.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Talk to a model under its own chat template. /reset begins anew, /quit or Ctrl-D ends.

    Input that comes from no terminal is read line by line, and each line gets an answer.
    """
    from ..data_tools.generate import Sampling
    from .chat import talk

    talk(model, Sampling(max_new_tokens, temperature=temperature, top_p=top_p, seed=seed), system=system)


_TOOL_LINES = {name: line for name, (_, line) in TOOLS.items()}
_TOOL_LINES["file.py:Name"] = "One of your own, a class made from posttrain.data_tools.tool.Tool."
_LONGEST_NAME = max(map(len, _TOOL_LINES))


@app.command(
    options_metavar="TOOL [ARGUMENTS]...",
    no_args_is_help=True,
    # What follows the tool's name is the tool's own, `--help` too.
    context_settings={"allow_interspersed_args": False, "allow_extra_args": True},
    help="Run a tool that makes training sets.\n\n\b\nTools, each with a --help of its own:\n"
    + "\n".join(f"  {name:{_LONGEST_NAME}}  {line}" for name, line in _TOOL_LINES.items()),
)
def data(context: typer.Context) -> None:
    """Run a tool that makes training sets."""
    run_command(*context.args)


def main() -> None:
    """Runs the command line: an error of ours is one line and its exit code, never a traceback."""
    from ..data_tools.files import explain_full_disk
    from .launch import quiet_libraries

    quiet_libraries()
    try:
        with explain_full_disk(Path()):
            app()
    except PosttrainError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
