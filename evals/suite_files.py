"""The files of suites: found by name or path, read, their paths made absolute and their folders of data taken."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..chat_templates.errors import did_you_mean
from ..data_tools.errors import DataError, listing
from ..data_tools.functions import function_file
from ..data_tools.sources import data_suffix, is_hub, local_files
from ..data_tools.specfile import (
    Document,
    KeyPath,
    load_document,
    raise_if_problems,
    settled,
    try_model,
    validate,
    with_references,
)
from .definitions import has_own_data
from .errors import SuiteError
from .judges import resolve_judging
from .prompt_sets import PROMPTS, PromptsSpec
from .spec import Chat, ClassificationSpec, FunctionSpec, GroupSpec, PairsSpec, PerplexitySpec, SuiteSpec, TaskSpec
from .task_data import DataFolder, TaskRows, field_problems, files_at, open_folder
from .task_index import find, members_of

SUITES = Path(__file__).parent / "suites"
_SHOWN = 8  # names of a layout's tasks in a message
Note = Callable[..., None]  # takes what is wrong, and the key within an entry
_Rows = TypeVar("_Rows", PerplexitySpec, PairsSpec, ClassificationSpec, PromptsSpec)


def suite_names() -> list[str]:
    """Returns the names of the suites that come with posttrain."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(
    name_or_path: str | Path,
    references: Mapping[str, Path] | None = None,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
) -> SuiteSpec:
    """Reads a suite by name or path; its relative paths become absolute, and local files must exist.

    Args:
        name_or_path: A suite that comes with posttrain, or a YAML file.
        references: Folders of a pipeline's steps, which ``@name`` stands for in the suite's paths.
        data_dir: A folder of benchmarks that replaces the suite's own ``data_dir``.
        limit: Score the first so many items of each entry only, whatever the suite says; `functions:` have no limit.

    Raises:
        SpecError: The file does not fit the schema; every problem with its line.
        SuiteError: There is no suite of that name.
    """
    path = _find(str(name_or_path))
    document, spec = _read(path, references or {})
    return _finished(document, spec, path.parent.resolve(), data_dir, limit)


def suite_of_tasks(
    tasks: Sequence[str], *, data_dir: Path | None, limit: int | None = None, chat: Chat = "never"
) -> SuiteSpec:
    """Makes a suite of names of tasks and groups, asked as lm-eval asks them: each with its own number of examples.

    Args:
        tasks: As the ``task`` of a suite's entries.
        data_dir: A folder of benchmarks that holds all of them; without one their data sets may come from the Hub.
        limit: Score the first so many documents of each task only.
        chat: As of a suite; without a template by default, as lm-eval does.

    Raises:
        SpecError: There are no such tasks, or the folder does not hold one.
        SuiteError: There is no such folder, or its layout is not known.
    """
    entries = [{"task": name} for name in tasks]
    value = {"name": "tasks", "chat": chat, "offline": data_dir is not None, "tasks": entries}
    document = Document(Path("--tasks"), value)
    spec = validate(SuiteSpec, document)
    found = _finished(document, spec, Path().resolve(), data_dir, limit)
    lost = [name for name in found.left_out if name in tasks]
    if lost:
        hint = "drop it, or leave out --data-dir to have its own data set"
        raise SuiteError(f"{found.data_dir} does not hold {', '.join(lost)}", where="--tasks", hint=hint)
    return found


def _finished(
    document: Document, spec: SuiteSpec | None, base: Path, data_dir: Path | None, limit: int | None
) -> SuiteSpec:
    """Resolves a suite that was read, with what the command line says of it."""
    if spec is not None:
        if data_dir is not None:
            spec = spec.model_copy(update={"data_dir": str(data_dir.absolute())})
        if limit is not None:
            sections = ("tasks", "robustness", "perplexity", "pairs", "classification", "prompts")
            update = {
                name: [entry.model_copy(update={"limit": limit}) for entry in getattr(spec, name)] for name in sections
            }
            spec = spec.model_copy(update=update)
        spec = _resolve(spec, base, document)
    return settled(document, spec)


def check_suite(name_or_path: str | Path, references: Mapping[str, Path]) -> bool:
    """Checks a suite whose files need not be there yet, since steps of a pipeline have still to write them.

    Args:
        name_or_path: As of :func:`load_suite`.
        references: As of :func:`load_suite`.

    Returns:
        Whether it names steps, so that its files cannot be looked at before those have run.

    Raises:
        SpecError: The file does not fit the schema, or names a step that is not there.
        SuiteError: There is no suite of that name.
    """
    path = _find(str(name_or_path))
    document, _ = _read(path, references)
    raise_if_problems(document)
    return document.value != load_document(path).value | {"name": document.value["name"]}


def _read(path: Path, references: Mapping[str, Path]) -> tuple[Document, SuiteSpec | None]:
    document = load_document(path)
    folders = {name: folder.absolute() for name, folder in references.items()}
    document.value = with_references(document, document.value, folders)
    document.value.setdefault("name", path.stem)
    return document, try_model(SuiteSpec, document)


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    path = SUITES / f"{name}.yaml"
    if not path.is_file():
        known = f"known suites: {', '.join(suite_names())}; or give a path to a .yaml"
        hint = did_you_mean(name, suite_names()) or known
        raise SuiteError(f"there is no suite '{name}'", hint=hint)
    return path


def _resolve(spec: SuiteSpec, base: Path, document: Document) -> SuiteSpec:
    """Makes paths absolute and notes files that are missing and names that stand twice."""
    spec, places = _expand(spec, document)
    spec, places = _take_from_folder(spec, base, document, places)
    if spec.data_dir is None and _all_missing(spec.perplexity, base):
        what = f"the files of its {len(spec.perplexity)} texts are not here: `data_dir:` or --data-dir names the folder"
        document.problem(("perplexity",), what)
        spec = spec.model_copy(update={"perplexity": []})
    sections = {
        "tasks": _resolve_task,
        "perplexity": _resolve_text,
        "pairs": _resolve_pairs,
        "classification": _resolve_classification,
        "functions": _resolve_function,
        "prompts": _resolve_prompts,
    }
    found: dict[str, list[Any]] = {}
    for section, resolve in sections.items():
        items = getattr(spec, section)
        where = places if section == "tasks" else [(section, index) for index in range(len(items))]
        noted = [partial(_note, document, key) for key in where]
        found[section] = [resolve(item, base, note) for item, note in zip(items, noted, strict=True)]
    names = [prompts.title for prompts in found["prompts"]]
    found["groups"] = _resolve_groups(spec, document)
    found["judges"] = [resolve_judging(entry, base, document, index, names) for index, entry in enumerate(spec.judges)]
    seen: set[str] = set()
    for section, items in found.items():
        for index, item in enumerate(items):
            if item.title in seen:
                hint = "give one of them another `name`"
                document.problem((section, index), f"the name '{item.title}' stands twice", hint)
            seen.add(item.title)
    return spec.model_copy(update=found)


def _all_missing(texts: Sequence[PerplexitySpec], base: Path) -> bool:
    """Says whether several texts are all of a folder that nobody named, which is one mistake and not one a text."""
    local = [text.path for text in texts if data_suffix(text.path) or not is_hub(text.source(), base)]
    return (
        len(texts) > 2 and len(local) == len(texts) and not any("*" in path or (base / path).exists() for path in local)
    )


def _expand(spec: SuiteSpec, document: Document) -> tuple[SuiteSpec, list[KeyPath]]:
    """Puts the tasks of lm-eval's groups and tags in the place of their names; with the place of each in the suite."""
    tasks, places, groups = [], [], {group.name: group for group in spec.groups}
    for place, entry in enumerate(spec.robustness):
        variants = entry.variants()
        tasks += variants
        places += [("robustness", place)] * len(variants)
        groups[entry.title] = GroupSpec(name=entry.title, mean="robust", tasks=[variant.title for variant in variants])
    for place, entry in enumerate(spec.tasks):
        members = members_of(entry.task)
        if members:
            for key in entry.model_fields_set & {"data_files", "baseline"}:
                what = f"'{entry.task}' stands for {len(members)} tasks, which have none in common: list those you want"
                document.problem(("tasks", place, key), what)
            tasks += [entry.model_copy(update={"task": member, "name": None}) for member in members]
            given = groups.get(entry.title, GroupSpec(name=entry.title))
            groups[entry.title] = given if given.tasks else given.model_copy(update={"tasks": members})
        else:
            tasks.append(entry)
        places += [("tasks", place)] * max(1, len(members))
    return spec.model_copy(update={"tasks": tasks, "groups": list(groups.values())}), places


def _take_from_folder(
    spec: SuiteSpec, base: Path, document: Document, places: list[KeyPath]
) -> tuple[SuiteSpec, list[KeyPath]]:
    """Gives the tasks the files of the suite's folder; with the places in the suite of those that it holds."""
    if spec.data_dir is None:
        return spec, places
    if not spec.tasks:
        return _texts_from_folder(spec, base, document), places
    layout = str(base / spec.layout) if spec.layout and spec.layout.endswith((".yaml", ".yml")) else spec.layout
    folder = open_folder(base / Path(spec.data_dir).expanduser(), layout)
    given = [_given(task, base, folder) for task in spec.tasks]
    held = [(place, task) for place, task in zip(places, given, strict=True) if task is not None]
    lost = [(place, task) for place, task, found in zip(places, spec.tasks, given, strict=True) if found is None]
    unknown = False
    for place, task in lost:
        try:
            find(task.task)  # a folder without it is one thing, a name that nobody knows another
        except SuiteError as error:
            unknown = True
            document.problem((*place, "task"), str(error))
    missing = tuple(task.title for _, task in lost)
    if not held and not unknown:
        names = list(folder.layout.tasks)
        if entry := folder.layout.entry(missing[0]):
            hint = f"{missing[0]} needs {listing(list(entry.files.values()), _SHOWN)} there"
        else:
            hint = did_you_mean(missing[0], names) or f"its layout knows: {listing(names, _SHOWN)}"
        document.problem(("data_dir",), f"{folder.path} holds none of the suite's tasks", hint)
    local = _local(spec, missing, data_dir=str(folder.path), tasks=[task for _, task in held])
    return _texts_from_folder(local, base, document), [place for place, _ in held]


def _texts_from_folder(spec: SuiteSpec, base: Path, document: Document) -> SuiteSpec:
    """Points the texts of a suite at the folder, and leaves out those that it does not hold."""
    folder = base / Path(spec.data_dir or "").expanduser()
    if not folder.is_dir():
        document.problem(("data_dir",), f"there is no folder {folder}")
    held = [text.model_copy(update={"path": str(folder / text.path)}) for text in spec.perplexity]
    held = [text for text in held if Path(text.path).exists() or "*" in text.path]
    there = {text.title for text in held}
    missing = tuple(text.title for text in spec.perplexity if text.title not in there)
    if spec.perplexity and not held:
        document.problem(("data_dir",), f"{folder} holds none of the suite's texts")
    return _local(spec, missing, data_dir=str(folder), perplexity=held)


def _local(spec: SuiteSpec, missing: tuple[str, ...], **held: Any) -> SuiteSpec:
    """Returns a suite with what a folder holds of it; where that is not all, under a name that says so."""
    name = f"{spec.name}-local" if missing and not spec.left_out else spec.name
    local = spec.model_copy(update={"name": name, **held})
    local._left_out = (*spec.left_out, *missing)
    return local


def _resolve_groups(spec: SuiteSpec, document: Document) -> list[GroupSpec]:
    """Names the tasks of each group, and says of a group with tasks that are left out how many it has."""
    tasks = {task.title: task for task in spec.tasks}
    known = [*tasks, *spec.left_out]
    found = []
    for index, group in enumerate(spec.groups):
        wanted = group.tasks or known
        for name in wanted:
            if name not in known:
                hint = did_you_mean(name, known)
                document.problem(("groups", index, "tasks"), f"the suite has no task '{name}'", hint)
        members = [name for name in wanted if name in tasks]
        bare = [name for name in members if tasks[name].baseline is None]
        if group.mean == "centred" and bare:
            document.problem(("groups", index, "mean"), f"a centred mean needs the `baseline` of {', '.join(bare)}")
        update: dict[str, Any] = {"tasks": members}
        if len(members) < len(wanted):
            update |= {"name": f"{group.name}-local", "coverage": f"{len(members)} of {len(wanted)} tasks"}
        found += [group.model_copy(update=update)] if members else []
    return found


def _given(task: TaskSpec, base: Path, folder: DataFolder) -> TaskSpec | None:
    """Returns a task with files of its own, or else those of a folder, also where its YAML names what is not there."""
    found = _from_folder(task, folder)
    try:
        return task if task.data_files or has_own_data(task.task, base) else found
    except SuiteError:
        if found is None:
            raise
        return found


def _from_folder(task: TaskSpec, folder: DataFolder) -> TaskSpec | None:
    """Returns a task with the files that a folder holds of it; what the suite says of rows stands before the layout."""
    names = [task.stem, task.title]  # one task may stand for several files, each under a name
    if task.title in folder.layout.tasks:
        names.reverse()  # spelt out it is meant; a pattern such as mmlu_{subject} may fit any name that was given
    entry = next(filter(None, map(folder.entry, names)), None)
    if entry is None:
        return None
    taken = {key: getattr(entry, key) for key in TaskRows.model_fields if key not in task.model_fields_set}
    overrides = entry.overrides | task.overrides
    return task.model_copy(update={"data_files": entry.files, "overrides": overrides, **taken})


def _note(document: Document, where: KeyPath, what: str, *key: str) -> None:
    document.problem((*where, *key), what)


def _resolve_task(task: TaskSpec, base: Path, note: Note) -> TaskSpec:
    name = task.task
    if name.endswith((".yaml", ".yml")):
        name = str((base / name).resolve())
        if not Path(name).is_file():
            note(f"there is no file {name}", "task")
    files = {split: str((base / file).resolve()) for split, file in task.data_files.items()}
    for split, file in files.items():
        if not files_at(file):
            note(f"there is no file {file}", "data_files", split)
    for column, problem in field_problems(task):
        note(problem, "fields", column)
    if not files and task.model_fields_set & {"fields", "where", "records"}:
        note("`fields`, `where` and `records` are of the rows of files: give `data_files`, or the suite a `data_dir`")
    return task.model_copy(update={"task": name, "data_files": files})


def _resolve_text(text: PerplexitySpec, base: Path, note: Note) -> PerplexitySpec:
    if text.stride and text.max_length and text.stride >= text.max_length:
        note("a stride must be shorter than max_length", "stride")
    return _resolve_path(text, base, note)


def _resolve_pairs(pairs: PairsSpec, base: Path, note: Note) -> PairsSpec:
    reference = pairs.reference or ""
    if reference and (base / reference).is_dir():
        pairs = pairs.model_copy(update={"reference": str(base / reference)})
    elif reference.startswith(("/", ".", "~")):
        note(f"there is no folder {reference}", "reference")
    return _resolve_path(pairs, base, note)


def _resolve_classification(rows: ClassificationSpec, base: Path, note: Note) -> ClassificationSpec:
    metrics = tuple(str(base / name) if (base / name).exists() else name for name in rows.metrics)
    for name in metrics:
        if name.endswith(".py") and not Path(name).is_file():
            note(f"there is no file {name}", "metrics")
    return _resolve_path(rows.model_copy(update={"metrics": metrics}), base, note)


def _resolve_function(metric: FunctionSpec, base: Path, note: Note) -> FunctionSpec:
    source, files = function_file(metric.function), tuple(str((base / file).resolve()) for file in metric.files)
    place = (base / source).resolve()
    for file, key in ((place, "function"), *((Path(file), "files") for file in files)):
        if not file.exists():
            note(f"there is no file {file}", key)
    function = metric.function.replace(source, str(place), 1) if source else metric.function
    return metric.model_copy(update={"function": function, "files": files})


def _resolve_prompts(prompts: PromptsSpec, base: Path, note: Note) -> PromptsSpec:
    own = PROMPTS / f"{prompts.path}.jsonl"
    if own.is_file() and not (base / prompts.path).exists():
        prompts = prompts.model_copy(update={"path": str(own)})
    if prompts.references is not None:
        file = base / prompts.references
        if not file.is_file():
            note(f"there is no file {file}", "references")
        prompts = prompts.model_copy(update={"references": str(file)})
    return _resolve_path(prompts, base, note)


def _resolve_path(item: _Rows, base: Path, note: Note) -> _Rows:
    """Makes the path of a data source absolute and notes a file that is missing."""
    source = item.source()
    if is_hub(source, base):
        return item
    try:
        local_files(source, base)
    except DataError as error:
        hint = "; `data_dir:` or --data-dir names the folder" if isinstance(item, PerplexitySpec) else ""
        note(f"{error}{hint}", "path")
    return item.model_copy(update={"path": str(base / item.path)})
