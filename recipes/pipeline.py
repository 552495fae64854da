"""An ordered list of steps, each skipped while nothing that it depends on has changed."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError, did_you_mean
from ..data_tools.files import hash_file, hash_json, hash_tree, locked, read_json, write_json
from ..data_tools.functions import function_file
from ..data_tools.plain_values import with_leaves
from ..data_tools.progress import Say
from ..data_tools.sources import content_hash
from ..data_tools.spec import SourceSpec
from ..data_tools.specfile import Document, load_document, raise_if_problems, settled, try_model, with_references
from ..data_tools.tool import Tool, source_fields, sources_of
from ..evals import checkpoints
from ..evals.runs import set_aside
from ..evals.suite_files import check_suite
from . import launch, rundir
from .errors import RunError
from .forks import Forks
from .inputs import beside, find_sources, find_suite
from .load import Loaded, RecipeTool, apply_override, load, override_of_file
from .schema import Pipeline, Step
from .tools import load_tool

STATE = ".step.json"
REPORT_STATE = ".report.json"


@dataclass(frozen=True)
class PlannedStep:
    """A step that has been checked.

    Attributes:
        name: Its name.
        folder: Its output folder.
        key: A hash of everything that its output depends on.
        loaded: Its recipe, if it is one.
        tool: Its tool, if it is one.
    """

    name: str
    folder: Path
    key: str
    loaded: Loaded | None
    tool: Tool | None


@dataclass(frozen=True)
class Scoring:
    """A scoring that has been checked.

    Attributes:
        name: Of the step, or of the pipeline for what comes when all have ended.
        folders: The run folders.
        suite: The suite's name or path.
        references: What ``@name`` stands for in it.
        final_only: Whether checkpoints are left out.
    """

    name: str
    folders: tuple[Path, ...]
    suite: str
    references: Mapping[str, Path]
    final_only: bool


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline, Document]:
    """Reads a pipeline.

    Args:
        path: The YAML file.
        overrides: ``output_dir=…`` and other keys of the pipeline, or ``step.a.b=c`` for a key of a step's recipe.

    Raises:
        SpecError: With every problem of the file; those of its recipes come when the steps are planned.
    """
    document = load_document(path)
    steps: dict[str, list[str]] = {}
    for override in overrides:
        name, _, rest = override.partition(".")
        if any(isinstance(step, dict) and step.get("name") == name for step in document.value.get("steps") or []):
            steps.setdefault(name, []).append(rest)
        else:
            apply_override(document, override)
    found = try_model(Pipeline, document)
    names = [step.name for step in found.steps] if found else []
    for index, name in enumerate(names):
        if name in names[:index]:
            document.problem(("steps", index, "name"), f"a step before this one is already named '{name}'")
    pipeline = settled(document, found)
    extended = [
        step.model_copy(update={"overrides": [*step.overrides, *steps.get(step.name, [])]}) for step in pipeline.steps
    ]
    return pipeline.model_copy(update={"steps": extended}), document


def run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    processes: int | None = None,
    accelerate: str | None = None,
    say: Say = print,
) -> bool:
    """Runs a pipeline: trains what has changed, scores and compares what is not yet, writes the report.

    All files are checked before the first step runs.

    Args:
        path: The pipeline's YAML file.
        overrides: As :func:`load_pipeline` takes them.
        processes: How many processes train each recipe.
        accelerate: The accelerate config they are launched with.
        say: Where the progress is told, a line at a time.

    Returns:
        Whether anything was done.

    Raises:
        PosttrainError: A file is wrong or a step failed; what was finished before stays.
    """
    pipeline, document = load_pipeline(path, overrides)
    worked = run_steps(pipeline, document, processes=processes, accelerate=accelerate, say=say)
    if not worked:
        say(f"{pipeline.output_dir}: every step is unchanged and every checkpoint scored; nothing to do")
    return worked


def run_steps(
    pipeline: Pipeline,
    document: Document,
    *,
    processes: int | None = None,
    accelerate: str | None = None,
    say: Say = print,
) -> bool:
    """Runs a pipeline that has been loaded, as :func:`run` does."""
    output_dir = Path(pipeline.output_dir)
    how = {"processes": processes, "accelerate": accelerate}
    worked = False
    single = accelerate is None and (processes or 1) == 1
    trains = any(step.recipe is not None for step in pipeline.steps)
    with locked(output_dir / ".lock"), Forks(wanted=single and trains) as forks:
        plans = plan(document, pipeline)
        last = plan_score(document, pipeline, plans)
        compared = plan_parity(document, pipeline, plans)
        for current in plans.values():
            worked |= _run_step(current, how, forks, say)
        if last:
            worked |= _score(last, forks, say)
        others = []
        for current in compared:
            did, same = _compare(current, forks, say)
            worked |= did
            others += [] if same else [current.name]
        if pipeline.report:
            worked |= _report(output_dir, list(plans.values()), say)
    if others:
        hint = "mend the files of the folder, or save the model anew: posttrain parity says which differ"
        raise RunError("transformers reads another model than was trained", where=", ".join(others), hint=hint)
    return worked


def plan(document: Document, pipeline: Pipeline) -> dict[str, PlannedStep]:
    """Checks the steps in their order and works out what the output of each depends on.

    Raises:
        PosttrainError: With every problem of the first step that is wrong.
    """
    plans: dict[str, PlannedStep] = {}
    for index, step in enumerate(pipeline.steps):
        folder = Path(pipeline.output_dir) / step.name
        references = {name: before.folder.absolute() for name, before in plans.items()}
        named = _referenced(document.value["steps"][index])
        loaded, tool = None, None
        if step.recipe is not None:
            loaded = _open_recipe(document, index, step, folder, references)
            named += _referenced(loaded.values)
            depends = sorted({plans[name].key for name in named if name in plans})
            identity = [loaded.hash, depends, _contents(loaded, folder)]
        else:
            tool, given, files = _open_tool(document, index, step, folder, references)
            depends = [plans[name].key for name in named if name in plans]
            identity = [given[0], rundir.versions()["posttrain"], given[1], files, depends]
        plans[step.name] = PlannedStep(step.name, folder, hash_json(identity), loaded, tool)
    return plans


def _open_recipe(document: Document, index: int, step: Step, folder: Path, references: Mapping[str, Path]) -> Loaded:
    """Loads a step's recipe."""
    assert step.recipe is not None
    recipe = beside(document, step.recipe)
    if recipe is None:
        document.problem(("steps", index, "recipe"), f"no such file: {step.recipe}")
    recipe = settled(document, recipe)
    overrides, places = list(step.overrides), {}
    for number, text in enumerate(step.overrides):
        if line := document.lines.get(("steps", index, "overrides", number)):  # else of the command line
            overrides[number] = override_of_file(document, text)
            places[overrides[number]] = f"{document.path}:{line}"
    return load(recipe, [*overrides, f"output_dir={folder}", f"name={step.name}"], references, places)


def _open_tool(
    document: Document, index: int, step: Step, folder: Path, references: Mapping[str, Path]
) -> tuple[Tool, list[Any], list[str]]:
    """Checks a tool's arguments; returns it, its name and arguments with files by name alone, and the files' hashes."""
    assert step.tool is not None
    at = ("steps", index, "args")
    for override in step.overrides:  # from the command line; the file's are refused by its schema
        document.problem(at[:2], f"cannot take {step.name}.{override}", "overrides belong to a recipe, args to a tool")
    name, args = _found(document, step.tool), with_references(document, step.args, references, at)
    tool, others = None, {}
    try:
        kind = load_tool(name)
        sources = [key for key in source_fields(kind) if key in args]
        others = {key: _found(document, value) for key, value in args.items() if key not in sources}
        args |= others
        for key in sources:
            find_sources(document, at, args, key, references)
        document.value["steps"][index]["args"] = args
        tool = try_model(kind, document, at)
    except InputError as error:
        document.problem(("steps", index, "tool"), error.what, error.hint)
    tool = settled(document, tool)
    paths = [function_file(text) or text for text in _strings([name, others]) if text.startswith("/")]
    paths = _inputs(paths, references)
    read = _outside(sources_of(tool), references)
    written = json.dumps([step.tool, step.args])  # a file counts by its content, so that it may lie anywhere
    for path in sorted({*paths, *(source.path for source in read)}, key=len, reverse=True):
        written = written.replace(json.dumps(path)[1:-1], json.dumps(Path(path).name)[1:-1])
    files = [_hash_tree(Path(path), folder) for path in paths] + [_hash_source(source) for source in read]
    if isinstance(tool, RecipeTool):
        files += _contents(tool.load(), folder)
    return tool, json.loads(written), files


def plan_score(document: Document, pipeline: Pipeline, plans: Mapping[str, PlannedStep]) -> Scoring | None:
    """Checks what is scored when all steps have ended."""
    score = pipeline.score
    if score is None:
        return None
    trained = _trained(document, plans, score.steps or (), ("score", "steps"))
    section = {"suite": score.suite}
    find_suite(document, section)
    names = trained if score.steps is None else score.steps
    if not names:
        document.problem(("score",), "no step trains a model that could be scored")
    raise_if_problems(document)
    folders = tuple(plans[name].folder for name in names)
    references = {name: current.folder.absolute() for name, current in plans.items()}
    check_suite(section["suite"], references)
    return Scoring("all steps", folders, section["suite"], references, score.every == "end")


def plan_parity(document: Document, pipeline: Pipeline, plans: Mapping[str, PlannedStep]) -> list[PlannedStep]:
    """Checks of which steps the models are compared with what stock transformers makes of them."""
    _trained(document, plans, pipeline.parity, ("parity",))
    raise_if_problems(document)
    return [plans[name] for name in pipeline.parity]


def _trained(
    document: Document, plans: Mapping[str, PlannedStep], names: Sequence[str], at: tuple[str, ...]
) -> list[str]:
    """Returns the steps that train, and says which of the names are none of them."""
    trained = [name for name, current in plans.items() if current.loaded]
    for index, name in enumerate(names):
        if name not in trained:
            hint = did_you_mean(name, trained) or f"steps that train: {', '.join(trained)}"
            document.problem((*at, index), f"no step '{name}' that trains", hint)
    return trained


def _found(document: Document, values: Any) -> Any:
    """Returns a copy of a tool's arguments in which the name of a file beside the pipeline is its absolute path."""

    def find(value: Any) -> Any:
        if not isinstance(value, str) or not ("/" in value or "." in value):
            return value
        file = function_file(value) or value
        path = beside(document, file)
        return value.replace(file, str(path), 1) if path else value

    return with_leaves(values, find)


def _referenced(value: Any) -> list[str]:
    """Returns the names of the steps that a value refers to."""
    return [text[1:].partition("/")[0] for text in _strings(value) if text.startswith("@")]


def _strings(value: Any) -> list[str]:
    """Returns every string inside plain values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _contents(loaded: Loaded, own: Path) -> list[str]:
    """Hashes the local files that a recipe reads, wherever they lie; keys stand for the files of earlier steps."""
    recipe = loaded.recipe
    sources = _outside((*recipe.data.train, *(recipe.data.eval or ())), loaded.references)
    found = [content_hash(source, loaded.path.parent) for source in sources]
    paths = (*recipe.models, recipe.model.tokenizer, recipe.model.chat_template, *recipe.code)
    return found + [_hash_tree(Path(path), own) for path in _inputs(paths, loaded.references)]


def _outside(sources: Iterable[SourceSpec], references: Mapping[str, Path]) -> list[SourceSpec]:
    """Returns those of the sources that are local and that no earlier step writes."""
    steps = tuple(f"{folder}/" for folder in references.values())
    return [one for one in sources if not f"{one.path}/".startswith(steps) and Path(one.path).is_absolute()]


def _inputs(paths: Iterable[str | None], references: Mapping[str, Path]) -> list[str]:
    """Returns those of the paths that are there now and that no earlier step writes."""
    steps = tuple(f"{folder}/" for folder in references.values())
    return [path for path in paths if path and not f"{path}/".startswith(steps) and Path(path).exists()]


def _hash_source(source: SourceSpec) -> str:
    """Hashes the rows of a tool's source, or what `scaling` reads of runs."""
    from .scaling import run_folders

    if runs := run_folders(Path(source.path)):
        files = [run / name for run in runs for name in (rundir.RUN_FILE, rundir.LOG)]
        return hash_json([[file.parent.name, hash_file(file)] for file in files if file.is_file()])
    return content_hash(source, Path())


def _hash_tree(path: Path, own: Path) -> str:
    """Hashes a file, a model, or a folder's files: all below it, unless the step writes there, else those in it."""
    with contextlib.suppress(PosttrainError):
        return checkpoints.model_hash(path) if path.is_dir() else hash_file(path)
    return hash_tree(path, "*" if own.resolve().is_relative_to(path.resolve()) else "**/*")


def _run_step(current: PlannedStep, how: dict[str, Any], forks: Forks, say: Say) -> bool:
    """Runs one step if it must; returns whether it did anything."""
    name, folder, loaded = current.name, current.folder, current.loaded
    if done := _is_done(current):
        say(f"{name}: unchanged, skipped")
    else:
        _set_aside(current, say)
        say(f"{name}: running")
        forks.prepare()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATE, {"key": current.key})  # first: what was killed may go on
        if loaded:
            steps = [f"--step={key}={place}" for key, place in loaded.references.items()]
            command = launch.command(loaded.path, loaded.overrides, flags=["--no-score", *steps], **how)
            _in_process("training", loaded.name, command, forks)
        elif current.tool:
            if line := current.tool.run(folder):
                say(line)
            checkpoints.write_manifest(folder, step=0, resumable=False)
    score = loaded.recipe.score if loaded else None
    if loaded is None or score is None:
        return not done
    scoring = Scoring(name, (folder,), score.suite, loaded.references, score.every != "checkpoint")
    return _score(scoring, forks, say) or not done


def _is_done(current: PlannedStep) -> bool:
    """Says whether a step's output was made from what it now depends on, and is still whole."""
    if _state_key(current.folder) != current.key:
        return False
    return rundir.is_finished(current.folder) if current.loaded else not checkpoints.verify(current.folder)


def _state_key(folder: Path) -> str | None:
    """Returns the key of the step that wrote a folder."""
    state = read_json(folder / STATE)
    return state.get("key") if isinstance(state, dict) else None


def _set_aside(current: PlannedStep, say: Say) -> None:
    """Renames the output of a step that has changed, so that nothing is lost; a killed step goes on where it was."""
    if not current.folder.exists() or _state_key(current.folder) == current.key:
        return
    if not any(path.name != ".lock" for path in current.folder.iterdir()):
        return
    number = 1
    while (aside := set_aside(current.folder, number)).exists():
        number += 1
    shutil.move(current.folder, aside)
    say(f"{current.name}: its inputs have changed; the earlier output is now {aside}")


def _in_process(what: str, name: str, command: Sequence[str], forks: Forks) -> None:
    """Trains or scores in a process of its own, so that its memory is free again for the next."""
    code = forks.run(command)
    if code != 0:
        raise RunError(f"{what} ended with exit code {code}", where=name, hint="what went wrong stands above")


def _score(scoring: Scoring, forks: Forks, say: Say) -> bool:
    """Scores and judges what is not yet, in a process of its own; returns whether there was anything."""
    from ..evals.judging.run import pending_judgments
    from ..evals.score import pending
    from ..evals.suite_files import load_suite

    folders, references, final_only = scoring.folders, scoring.references, scoring.final_only
    suite = load_suite(scoring.suite, references)
    if not pending(folders, suite, final_only=final_only) and not pending_judgments(folders, suite):
        say(f"{scoring.name}: every checkpoint is scored")
        return False
    command = launch.score_command(folders, scoring.suite, references, final_only=final_only)
    _in_process("scoring", scoring.name, command, forks)
    return True


def _compare(current: PlannedStep, forks: Forks, say: Say) -> tuple[bool, bool]:
    """Compares a step's model with what stock transformers makes of it, unless neither has changed since.

    Returns:
        Whether there was anything to do, and whether the two are one.
    """
    from ..evals.parity import stock_comparison

    if found := stock_comparison(current.folder):
        say(f"{current.name}: compared with what transformers makes of it")
        return False, found.passed
    code = forks.run(launch.parity_command(current.folder))
    found = stock_comparison(current.folder)
    if found is None:
        raise RunError(f"parity ended with exit code {code}", where=current.name, hint="what went wrong stands above")
    return True, found.passed


def _report(output_dir: Path, plans: list[PlannedStep], say: Say) -> bool:
    """Writes the leaderboard over all steps that were trained, unless it already shows just what they hold."""
    from ..evals import best_of_n, report
    from ..evals.parity import PARITY

    runs = [current.folder for current in plans if current.loaded is not None]
    names = ("run.json", "scores.jsonl", "log.jsonl", "judgments.jsonl", PARITY)
    inputs = [run / name for run in runs for name in names]
    inputs += [current.folder / best_of_n.FILE for current in plans if current.loaded is None]
    stamp = hash_json([[str(path.relative_to(output_dir)), hash_file(path)] for path in inputs if path.is_file()])
    target, state = output_dir / "leaderboard.html", output_dir / REPORT_STATE
    if not runs or (target.exists() and read_json(state) == stamp):
        return False
    report.write(report.build(runs), output_dir)
    write_json(state, stamp)
    say(f"leaderboard: {target}")
    return True
