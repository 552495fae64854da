"""``posttrain score``: which suite a run asks for, and what was scored, in words."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.progress import say_now
from ..evals.errors import EvalError
from ..evals.runs import read_record
from .errors import RecipeError

if TYPE_CHECKING:
    from ..evals.generations import PromptTask
    from ..evals.score import ScoreReport
    from ..evals.spec import Chat, SuiteSpec
    from ..evals.team import Team


def score_models(
    models: Sequence[str],
    *,
    suite: str | None,
    watch: bool,
    final_only: bool,
    output: Path | None,
    references: Mapping[str, Path],
    tasks: Sequence[str] = (),
    data_dir: Path | None = None,
    device: str | None = None,
    limit: int | None = None,
    chat: "Chat | None" = None,
) -> int:
    """Scores models that are not scored yet, has their answers judged, and prints a line for each score.

    Args:
        models: Run folders, single checkpoints, model folders or Hub ids.
        suite: A suite's name or file; None takes what the recipe of each run says.
        watch: Wait for new checkpoints until the runs have ended.
        final_only: Leave the checkpoints of a run.
        output: Where the scores of models that are no runs go.
        references: What ``@name`` stands for in the suite; None known takes what the run was given.
        tasks: Names of tasks and groups, in the place of a suite.
        data_dir: A folder of benchmarks that replaces the tasks' own data.
        device: Where models run; the first GPU if there is one.
        limit: Score the first so many items of each entry of the suite only, but for functions.
        chat: When ``tasks`` are templated; never by default.

    Returns:
        1 if anything failed; 2 if there was nothing to score, but for final models that are still to come; else 0.

    Raises:
        RecipeError: No suite is named, neither here nor by the recipes; or a suite and tasks are.
    """
    from ..evals.team import ProcessLostError, joined

    with joined() as team:
        try:
            suites, wanted = _wanted(models, suite, references, tasks, data_dir, limit, chat)
            code, judged, prompts = _score_each(suites, wanted, team, watch, final_only, device, output)
        except ProcessLostError as error:
            raise EvalError(
                f"another process has ended: {error}", hint="score again: what was scored is kept"
            ) from error
        except PosttrainError as error:
            if team is None or team.leads:
                raise
            raise SystemExit(error.exit_code) from error  # the leading process tells it
    if team is not None and not team.leads:
        return 0
    for key, paths in judged.items():
        if suites[key].judges and paths:
            code = max(code, _judge(paths, suites[key], prompts[key], output, device))
    return code


def _wanted(
    models: Sequence[str],
    suite: str | None,
    references: Mapping[str, Path],
    tasks: Sequence[str],
    data_dir: Path | None,
    limit: int | None,
    chat: "Chat | None",
) -> tuple[dict[str, "SuiteSpec"], dict[tuple[str, tuple[str, ...]], list[str]]]:
    """Returns suites by their content, and the models of which the same suite and metrics are asked."""
    from ..evals.suite_files import load_suite, suite_names, suite_of_tasks

    if tasks and suite:
        raise RecipeError("--suite and --tasks are two ways to say what is scored", hint="give one of them")
    if chat and not tasks:
        raise RecipeError("--chat is for --tasks", hint="a suite says `chat:` itself")

    suites: dict[str, SuiteSpec] = {}  # runs of which the same is asked go together, whatever steps each was made of
    wanted: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model in models:
        record = read_record(Path(model)) or read_record(Path(model).parent)
        named = None if tasks else suite or _suite_of(record, model)
        if named is None and not tasks:
            hint = f"say --suite with one of {', '.join(suite_names())}, or a suite's file; or --tasks"
            raise RecipeError("no suite is named", where=model, hint=hint)
        if named is None:
            spec = suite_of_tasks(tasks, data_dir=data_dir, limit=limit, chat=chat or "never")
        else:
            known = {name: Path(folder) for name, folder in (record.get("references") or {}).items()}
            spec = load_suite(named, known | dict(references), data_dir=data_dir, limit=limit)
        key = spec.model_dump_json()
        suites[key] = spec
        wanted.setdefault((key, _metrics_of(record)), []).append(model)
    return suites, wanted


def _score_each(
    suites: Mapping[str, "SuiteSpec"],
    wanted: Mapping[tuple[str, tuple[str, ...]], Sequence[str]],
    team: "Team | None",
    watch: bool,
    final_only: bool,
    device: str | None,
    output: Path | None,
) -> tuple[int, dict[str, list[str]], dict[str, "tuple[PromptTask, ...]"]]:
    """Scores models; returns the exit code, and of each suite the models to judge and its prompt sets as read."""
    from ..evals.score import score

    code = 0
    leads = team is None or team.leads
    judged: dict[str, list[str]] = {}
    prompts: dict[str, tuple[PromptTask, ...]] = {}
    for (key, metrics), paths in wanted.items():
        report = score(
            paths,
            _with_metrics(suites[key], metrics),
            watch=watch,
            final_only=final_only,
            device=device,
            output=output,
            progress=_say if leads else lambda line: None,
            team=team,
        )
        if not leads:
            continue
        _tell(report, watch=watch)
        code = max(code, report.exit_code)
        judged.setdefault(key, []).extend([] if report.interrupted or report.is_empty else paths)
        prompts[key] = report.prompts
    return code, judged, prompts


def _say(line: str) -> None:
    """Prints what scoring says as it happens, failures to the standard error."""
    print(line, file=sys.stderr if line.startswith("failed: ") else sys.stdout, flush=True)


def _tell(report: "ScoreReport", *, watch: bool) -> None:
    """Prints what a scoring did; why something failed has been said, where it was not foreseen its place is added."""
    print(f"{len(report.done)} scored, {report.skipped} scored before, {len(report.failed)} failed")
    for folder in report.unfinished:
        print(f"left {folder.folder}: its save has not finished")
    for failure in report.failed:
        print(failure.detail, end="", file=sys.stderr)
    if report.is_early:
        print("no final model yet; --watch waits for it")
    elif report.is_empty:
        hint = "" if watch else "; --watch waits for those of a run"
        print(f"no complete checkpoint to score{hint}", file=sys.stderr)


def _judge(
    paths: Sequence[str], suite: "SuiteSpec", prompts: Sequence["PromptTask"], output: Path | None, device: str | None
) -> int:
    """Judges the answers of all models together, since some are compared with others."""
    from ..evals.judging.run import judge
    from ..evals.runs import find_targets

    targets, _ = find_targets(paths, output, offline=suite.offline)
    stores = list(dict.fromkeys(target.store for target in targets))
    report = judge(stores, suite, prompts=prompts, device=device, progress=say_now)
    print(report.lines[0])
    for problem in report.problems:
        print(f"not judged: {problem}", file=sys.stderr)
    return report.exit_code


def _suite_of(record: Mapping[str, Any], model: str) -> str | None:
    """Returns the suite that a run's recipe names, as a path where it is a file beside the recipe."""
    from ..evals.suite_files import suite_names

    score = record.get("recipe", {}).get("score")
    if not score:
        return None
    recipe, suite = Path(record.get("recipe_path", "")), score["suite"]
    if (beside := recipe.parent / suite).is_file():
        return str(beside)
    if suite not in suite_names() and not Path(suite).is_file():
        what = f"the run's recipe names the suite {suite}, which is neither beside {recipe} nor here"
        raise RecipeError(what, where=model, hint="if it was moved, say --suite with its file")
    return suite


def _metrics_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the metrics of the `evaluate` library that a classifier's recipe names, scripts as paths."""
    names = (record.get("recipe", {}).get("classify") or {}).get("metrics") or ()
    folder = Path(record.get("recipe_path", "")).parent
    return tuple(str((folder / name).absolute()) if (folder / name).is_file() else name for name in names)


def _with_metrics(suite: "SuiteSpec", metrics: Sequence[str]) -> "SuiteSpec":
    """Adds metrics to the classification rows of a suite that do not have them."""
    rows = [
        spec.model_copy(update={"metrics": [*spec.metrics, *(name for name in metrics if name not in spec.metrics)]})
        for spec in suite.classification
    ]
    return suite.model_copy(update={"classification": rows})
