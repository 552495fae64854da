"""lm-eval task definitions: read without running them, pointed at local data, and hashed by content.

Private names of lm-eval 0.4.13 used here and in ``task_index``, each named in ``tests/evals/test_definitions.py``:
``lm_eval.tasks._yaml_loader.load_yaml`` and ``lm_eval.tasks._index.TaskIndex``; ``harness`` replaces
``lm_eval.utils.apply_template``.
"""

import ast
import copy
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..chat_templates.errors import PosttrainError, did_you_mean, first_line
from ..data_tools.errors import listing
from ..data_tools.files import hash_file, hash_json
from ..data_tools.overlap import Item
from . import harness
from .canaries import Canaries, canaries
from .errors import EvalError, SuiteError
from .gold import check_gold
from .items import items_of
from .kept_passes import KeptPasses
from .models import load_tokenizer, quiet_bars
from .records import Result, versions
from .runs import Target
from .saved_answers import saved_model
from .spec import LIMITS, Chat, GroupSpec, SuiteSpec, TaskSpec
from .task import Checkpoint, Task
from .task_data import TaskRows, files_at, hash_rows, read_task_rows
from .task_index import find, lm_eval_folder
from .team import at_work
from .vllm_tasks import vllm_version
from .vllm_tasks import wrap as in_vllm

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import Task as LmEvalTask

Config = dict[str, Any]  # of a task: its YAML, or the keys of it
_SPLITS = ("training_split", "validation_split", "test_split")
_LOCAL_READERS = ("json", "csv", "parquet")
_READERS = (*_LOCAL_READERS, "text", "arrow")  # of the data sets library
_AS_THEY_ARE = TaskRows()


@dataclass(frozen=True)
class HarnessTask(Task):
    """A task of lm-eval, found and read but not yet built.

    Attributes:
        spec: What the suite says of it.
        task_hash: As of :class:`Task`.
        path: Its YAML file.
        config: The YAML with its includes; functions stand as hashes of their source.
        data_files: The local file of each split; empty if the task reads a data set of its own.
        backend: What computes the answers.
    """

    spec: TaskSpec
    path: Path
    config: Config
    data_files: dict[str, Path]
    backend: str
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    is_divided = has_items = True

    def chat(self, suite: SuiteSpec) -> Chat:
        """Returns when the chat template is applied."""
        return self.spec.chat or suite.chat

    @property
    def needs_model(self) -> bool:
        """Whether transformers loads the model that answers."""
        return self.backend == "transformers"

    @property
    def is_remote(self) -> bool:
        """Whether its rows are on the Hub or at an address."""
        return not (self.data_files or _own_files(self.config))

    def needs(self) -> list[str]:
        """Returns its files or its data set, and the packages that its modules import."""
        spec, config = self.spec, self.config
        if self.data_files:
            found = [f"{split} from {file.name}" for split, file in self.data_files.items()]
            found += [f"only the {spec.coverage}"] if spec.coverage else []
        elif files := _own_files(config):
            found = [f"its own files: {listing(list(map(str, files)), 5)}"]
        elif address := _address(config):
            found = [f"the file at {address}, fetched when it is scored"]
        elif config.get("dataset_path") in _LOCAL_READERS:
            found = ["files of a `data_dir` or `data_files`: none are named, and it cannot be scored without"]
        else:
            named = [config.get("dataset_path"), config.get("dataset_name")]
            found = [f"data set {' '.join(str(name) for name in named if name)} of the Hub"]
        return found + [f"package {package}" for package in packages(self.path)]

    def check(self, folder: Path | None = None) -> None:
        """Builds the task, looks at the right answers of its rows, and scores answers known beforehand.

        Raises:
            SuiteError: As :func:`build`, or a row has no right answer that could be given, or none that counts.
            EvalError: As :func:`build`.
        """
        with harness.noted(), quiet_bars():
            task = build(self)
            check_gold(task, self.spec, self.data_files)
            self.canaries(task)

    def items(self) -> list[Item]:
        """Returns what the task asks, as :meth:`Task.items`."""
        with harness.noted(), quiet_bars():
            return items_of(build(self), self.spec.limit)

    @property
    def primary(self) -> str | None:
        """Returns the metric that stands for the task where the suite names none: the first of its YAML."""
        declared = self.config.get("metric_list") or []
        names = [entry.get("metric") for entry in declared if isinstance(entry, dict)]
        return next((name for name in names if isinstance(name, str)), None)

    @property
    def takes_answers(self) -> bool:
        """Whether its answers are texts."""
        return self.config.get("output_type") == "generate_until"

    def canaries(self, task: "LmEvalTask | None" = None) -> Canaries | None:
        """Returns what answers known beforehand score on the task, which need be built for the first call only."""
        if "canaries" not in self._kept:
            self._kept["canaries"] = canaries(task or build(self), self.spec, self.primary)
        return self._kept["canaries"]

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Scores a model on the task, as :meth:`Task.run`."""
        if checkpoint.lm is None and checkpoint.target.is_answers:
            checkpoint.lm = saved_model(checkpoint.target.folder)
        elif checkpoint.lm is None and self.backend == "vllm":
            folder = checkpoint.target.folder
            checkpoint.lm = in_vllm(folder, load_tokenizer(str(folder))[0], checkpoint.suite)
        elif checkpoint.lm is None:
            from .harness_model import HarnessModel

            loaded = checkpoint.language_model(self.spec.title)
            with harness.noted() as notes:
                checkpoint.lm = HarnessModel(loaded, checkpoint.suite)
            for note in harness.summary(notes):
                checkpoint.progress(f"{checkpoint.target.name}: {note}")
        lm: Any = checkpoint.lm
        if self.needs_model and not checkpoint.target.is_answers:
            lm.begin(self.spec.title, self._passes(checkpoint.target, checkpoint.load().model))
        elif checkpoint.target.is_answers:
            lm.names = self.spec.names
        with harness.noted() as notes:
            task = build(self)
        known = self.canaries(task)  # before several samples change how the task scores an answer
        suite, templated = checkpoint.suite, template is not None
        result = harness.run_task(task, self.spec, self.primary, lm, suite, templated=templated, notes=notes)
        sampling = {"sampling": self.spec.sampling.model_dump()} if self.spec.sampling else {}
        detail = (
            origin(self, is_limited=result.is_limited)
            | sampling
            | (result.detail or {})
            | ({"canaries": asdict(known)} if known else {})
        )
        notes_of_task = [_SHARED_SHOTS] if _shots_are_scored(task) else []
        asked = (self.config.get("generation_kwargs") or {}) | self.spec.gen_kwargs
        if self.takes_answers and "until" not in asked:
            notes_of_task.append(f"answers end at {task.config.fewshot_delimiter!r}, for no `until` is named")
        if known and known.fault:
            notes_of_task.append(known.fault)
        if known and isinstance(known.answer, str) and (known.majority or 1) < 1:
            notes_of_task.append(f"always {known.answer!r} would score {known.majority:.3f} on {known.metric}")
        return replace(result, detail=detail, notes=(*result.notes, *notes_of_task))

    def clean(self, target: Target) -> None:
        """Removes the log of passes, now that the score is written."""
        self._passes(target).remove()

    def _passes(self, target: Target, model: Any = None) -> KeptPasses:
        """Returns what is known of a model's passes on the task."""
        name = f"{target.model_hash[:12]}-{self.spec.title}-{self.task_hash[:8]}"
        how = [versions(), str(model.device), str(model.dtype), model.config._attn_implementation] if model else None
        return KeptPasses(target.store, name, team.rank if (team := at_work()) else 0, how)


_SHARED_SHOTS = "worked examples come from the scored rows, each row's own left out: labels of other rows are seen"


def _shots_are_scored(task: Any) -> bool:
    """Says whether a task's worked examples are drawn from the split that is scored."""
    config, shots = task.config, getattr(task, "fewshot_cfg", None)
    if shots is None or not config.num_fewshot:
        return False
    split = shots.split or (config.training_split if shots.samples is None else None)
    return split == (config.test_split or config.validation_split)


def define(spec: TaskSpec, suite: SuiteSpec) -> HarnessTask:
    """Finds a task, reads its YAML and checks what the suite says of it, without importing lm-eval.

    The hash covers the task's YAML with its includes and the Python files that it names, the content (not the place)
    of local data files, what the suite says of the task, the suite settings that change answers, and lm-eval's version.

    Raises:
        SuiteError: There is no such task, it is a group or a tag, or splits and overrides do not fit it.
    """
    path = find(spec.task)
    config = read_yaml(path)
    if "group" in config or "task" not in config or isinstance(config["task"], list):
        raise SuiteError(
            f"{path.name} is not a single task", where=spec.task, hint="groups are refused: list their tasks"
        )
    _check_overrides(spec, config)
    config |= spec.overrides
    data_files = _data_files(spec, config, path)
    _check_splits(spec, config, data_files)
    own = {} if data_files else {str(file): hash_file(file) for file in _own_files(config)}
    content = {
        "config": config | {"metadata": _counted(config)} if "metadata" in config else config,
        "data": {split: hash_rows(file) for split, file in sorted(data_files.items())} or own,
        "spec": spec.model_dump(include={"num_fewshot", "limit", "metric", "gen_kwargs"}),
        "chat": spec.chat or suite.chat,
        "suite": suite.model_dump(include={"seed", "max_length", "dtype"}),
        "lm_eval": version("lm-eval"),
    }
    if suite.template_variables and content["chat"] != "never":
        if suite.template_variables.get("enable_thinking") and config.get("output_type") != "generate_until":
            hint = "say `chat: never` for the task, or leave `enable_thinking` out"
            what = "the likelihood of an option is asked before any thought: `enable_thinking` cannot go with it"
            raise SuiteError(what, where=spec.title, hint=hint)
        content["template_variables"] = dict(suite.template_variables)
    if suite.backend == "vllm":
        if (spec.sampling and spec.sampling.beams > 1) or spec.gen_kwargs.get("num_beams", 1) != 1:
            hint = "leave the setting out, or say `backend: transformers`"
            raise SuiteError("a beam search is not done by vLLM", where=spec.title, hint=hint)
        content["backend"] = {"vllm": vllm_version()}
    else:
        _check_generation(spec)
    if examples := _other_examples(spec, config | _splits(config, data_files)):
        content["examples"] = examples
    if suite.too_long != "cut":
        content["too_long"] = suite.too_long
    if rows := spec.model_dump(include={"fields", "where", "records"}, exclude_defaults=True):
        content["rows"] = rows
    if spec.change:
        content["change"] = spec.change.model_dump()
    if spec.sampling is not None:
        if config.get("output_type") != "generate_until":
            raise SuiteError("`sampling` goes with tasks that generate text", where=spec.title)
        content["sampling"] = spec.sampling.model_dump(exclude={"name"})
        if "generation_kwargs" in spec.overrides:
            content["sampling"]["overrides"] = "of this setting alone"
    return HarnessTask(spec, hash_json(content), path, config, data_files, suite.backend)


def _counted(config: Config) -> Any:
    """Returns a task's metadata without what a right answer is, which changes no figure."""
    told = config["metadata"]
    return {key: value for key, value in told.items() if key != "right_answer"} if isinstance(told, dict) else told


def each_setting(suite: SuiteSpec) -> tuple[list[TaskSpec], list[GroupSpec]]:
    """Returns the tasks and groups of a suite, those that generate text once for each of its sampling settings."""
    tasks, generating = [], set()
    for spec in suite.tasks:
        if suite.sampling and spec.sampling is None and _generates(spec):
            generating.add(spec.title)
            tasks += [
                spec.model_copy(update={"name": f"{spec.title}-{setting.name}", "sampling": setting})
                for setting in suite.sampling
            ]
        else:
            tasks.append(spec)
    groups = []
    for group in suite.groups:
        if not generating & set(group.tasks):
            groups.append(group)
            continue
        for setting in suite.sampling:
            members = [f"{name}-{setting.name}" if name in generating else name for name in group.tasks]
            groups.append(group.model_copy(update={"name": f"{group.name}-{setting.name}", "tasks": members}))
    return tasks, groups


def _generates(spec: TaskSpec) -> bool:
    """Says whether a task generates text; one that cannot be read is left to :func:`define` to refuse."""
    try:
        config = read_yaml(find(spec.task)) | spec.overrides
    except SuiteError:
        return False
    return config.get("output_type") == "generate_until"


def build(definition: HarnessTask) -> "LmEvalTask":
    """Builds the lm-eval task; its rows come from memory if it has local files, so that no cache can mix them up.

    Raises:
        SuiteError: A data file cannot be read, a package or metric is missing, or lm-eval makes no single task of the
            definition.
        EvalError: The task's data set is on the Hub only, and the suite is offline.
    """
    harness.keep_templates()
    config = _read_with_functions(definition)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    if definition.data_files:
        config |= _local_data(definition)
    if definition.spec.num_fewshot is not None:  # lm-eval's own override is ignored where the YAML says 0
        config["num_fewshot"] = definition.spec.num_fewshot
    config["num_fewshot"] = config.get("num_fewshot") or 0
    if config["num_fewshot"]:
        config |= _fewshot_source(config)
    config["task"] = definition.spec.title
    task = _load(definition, config)
    if definition.spec.change:
        scored = task.config.test_split or task.config.validation_split
        plain, docs = task.dataset[scored], task.eval_docs
        task.dataset[scored] = definition.spec.change.apply(plain, definition.spec.title)
        task.task_docs = task.eval_docs
        if plain.to_list() != task.dataset[scored].to_list():
            _check_change(task, docs, definition.spec.title)
    if _shots_are_scored(task):  # an item is told by what it holds, which a task may draw and a change makes another
        task.sampler.replace_df(list(task.task_docs))
    if definition.spec.gen_kwargs:
        task.set_config("generation_kwargs", definition.spec.gen_kwargs, update=True)
    return task


def _check_change(task: Any, plain: Iterable[Any], where: str) -> None:
    """Refuses a change of rows that changes nothing that is asked: the task would pass for one that withstands it."""

    def asked(doc: Any) -> tuple[Any, list[str]]:
        options = [] if task.config.doc_to_choice is None else task.doc_to_choice(doc)
        return task.doc_to_text(doc), sorted(map(str, options))

    if all(asked(doc) == asked(other) for doc, other in zip(plain, task.task_docs, strict=False)):
        hint = "name a `column` that the prompt reads; another order of options is for tasks whose prompt lists them"
        raise SuiteError("the change of its rows changes no prompt", where=where, hint=hint)


def _load(definition: HarnessTask, config: Config) -> Any:
    """Has lm-eval make the task; it trips over a first document without a right answer, which is told in our words."""
    from unittest import mock

    from datasets.exceptions import DatasetsError
    from lm_eval.api import task as api
    from lm_eval.tasks import TaskManager

    begun: list[Any] = []
    original, get_metric, where = api.ConfigurableTask.doc_to_text, api.get_metric, definition.spec.title

    def doc_to_text(task: Any, *args: Any, **kwargs: Any) -> Any:
        begun.append(task)
        return original(task, *args, **kwargs)

    def metric(name: str, *args: Any) -> Any:
        if (function := get_metric(name, *args)) is None:
            hint = "lm-eval has none of that name, and others come from the Hub: name one that it has"
            raise SuiteError(f"there is no metric '{name}' here", where=where, hint=hint)
        return function

    try:
        with (
            mock.patch.object(api.ConfigurableTask, "doc_to_text", doc_to_text),
            mock.patch.object(api, "get_metric", metric),
            quiet_bars(),
        ):
            tasks = TaskManager(include_defaults=False).load([config])["tasks"]
    except PosttrainError:
        raise
    except (ConnectionError, FileNotFoundError, DatasetsError) as error:
        hint = "give local `data_files`, or say `offline: false`"
        raise EvalError(f"its data set is not here: {first_line(error)}", where=where, hint=hint) from error
    except Exception as error:  # whatever a task's own functions, templates and rows can raise
        if begun:
            check_gold(begun[0], definition.spec, definition.data_files)
        raise SuiteError(f"cannot be built: {type(error).__name__}: {first_line(error)}", where=where) from error
    if len(tasks) != 1:
        raise SuiteError(f"lm-eval makes {len(tasks)} tasks of it", where=where)
    return next(iter(tasks.values()))


def _read_with_functions(definition: HarnessTask) -> Config:
    """Reads a task's YAML and imports the modules that it names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    where = definition.spec.title
    try:
        # A copy: lm-eval adds to what stands in it, which the next setting of the same task must not find there.
        return load_yaml(definition.path) | copy.deepcopy(definition.spec.overrides)
    except ImportError as error:
        lacks, hint = "needs a package", f"pip install {error.name}"
        if error.name is None:  # lm-eval's own word for a file
            lacks, hint = "is not here", "a copy of a YAML needs the modules beside it: `include:` the YAML instead"
        raise SuiteError(f"its module {lacks}: {first_line(error)}", where=where, hint=hint) from error
    except (ConnectionError, FileNotFoundError) as error:
        hint = "a metric or data set of the Hub cannot be had offline"
        raise SuiteError(f"its module wants what is not here: {first_line(error)}", where=where, hint=hint) from error
    except Exception as error:  # a module is a program: it can fail in any way
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f"{f.filename}:{f.lineno}" for f in reversed(frames) if "lm_eval/api" not in f.filename), where)
        raise SuiteError(f"its module fails: {type(error).__name__}: {first_line(error)}", where=place) from error


def _local_data(definition: HarnessTask) -> Config:
    """Returns the keys that replace a task's data set by local files; splits without a file cease to exist."""
    from datasets import DatasetDict

    tables: Any = {split: read_table(file, definition.spec) for split, file in definition.data_files.items()}

    splits = _splits(definition.config, definition.data_files)
    return {"custom_dataset": lambda **_: DatasetDict(tables), "dataset_kwargs": None, **splits}


def _splits(config: Config, data_files: Mapping[str, Path]) -> Config:
    """Returns the splits of a task by key; where it is given local files, those without one cease to exist."""
    named = {key: config.get(key) for key in (*_SPLITS, "fewshot_split")}
    return {key: split if split in data_files else None for key, split in named.items()} if data_files else named


def read_table(path: Path, how: TaskRows = _AS_THEY_ARE) -> "Dataset":
    """Reads the rows of a data file that are a task's into memory; a key that a row lacks is None.

    Hugging Face's own reader would leave a copy in a cache that is keyed by path and time, not by content.

    Raises:
        DataError: The file cannot be read or is of no known type.
        SuiteError: A row cannot be read, there is none, or a column holds values of several types.
    """
    import pyarrow
    from datasets import Dataset

    rows = [row.values for row in read_task_rows(path, how)]
    keys = dict.fromkeys(key for row in rows for key in row)
    try:
        return Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        told = _odd_ones(rows, keys) or str(error)
        raise SuiteError(f"a column holds values of several types: {told}", where=str(path)) from error


def _odd_ones(rows: Sequence[dict[str, Any]], keys: Iterable[str]) -> str:
    """Names the rows, from 1, whose value is not of the type that most of its column are."""
    found = []
    for key in keys:
        kinds = Counter(type(row[key]).__name__ for row in rows if row.get(key) is not None)
        usual = kinds.most_common(1)[0][0] if len(kinds) > 1 else ""
        odd = [(n, row[key]) for n, row in enumerate(rows, 1) if row.get(key) is not None]
        odd = [(n, value) for n, value in odd if usual and type(value).__name__ != usual]
        found += [f"{key} of row {n} is {value!r}, not {usual}" for n, value in odd]
    return listing(found, 5, "; ")


def _fewshot_source(config: Config) -> Config:
    """Names the split that examples come from if it is the split that is scored.

    lm-eval leaves the scored document out of its own examples only if ``test_split`` and the examples' split are one.
    """
    scored = config.get("test_split") or config.get("validation_split")
    if (_fewshot_split(config) or scored) != scored:
        return {}
    return {"fewshot_split": scored, "test_split": scored, "validation_split": None}


def _fewshot_split(config: Config) -> str | None:
    """Returns the split, or else what stands for one, that examples come from by a task's YAML or else by lm-eval."""
    return _named_examples(config) or (config.get("validation_split") if config.get("test_split") else None)


def _named_examples(config: Config) -> str | None:
    fewshot = config.get("fewshot_config") or {}
    split = fewshot.get("split") or config.get("fewshot_split")
    return split or ("samples" if "samples" in fewshot else config.get("training_split"))


def _other_examples(spec: TaskSpec, config: Config) -> str | None:
    """Says which examples a task has that had others before, with the item itself among them or all from the tests."""
    if not (config.get("num_fewshot") if spec.num_fewshot is None else spec.num_fewshot):
        return None
    if not _fewshot_source(config):
        return None if _named_examples(config) else "of the validation split"
    split = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    missed = _fewshot_split(config) and split != config.get("test_split")
    return "without the item itself" if missed or config.get("process_docs") or spec.change else None


def _data_files(spec: TaskSpec, config: Config, path: Path) -> dict[str, Path]:
    """Returns the suite's files, or those that a task of our own names, relative to its YAML."""
    if spec.data_files:
        if "class" in config:
            raise SuiteError("a task written as a Python class cannot be given data_files", where=spec.task)
        return {split: Path(file) for split, file in spec.data_files.items()}
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") not in _LOCAL_READERS or not named:
        return {}
    files = named if isinstance(named, dict) else {"train": named}
    if any("://" in str(file) for file in files.values()):  # a data set of the task's own, like one of the Hub
        return {}
    found = {}
    for split, file in files.items():
        found[split] = (path.parent / str(file)).resolve()
        if not found[split].is_file():
            raise SuiteError(f"there is no file {found[split]}", where=str(path), hint="give `data_files` in the suite")
    return found


def _own_files(config: Config) -> list[Path]:
    """Returns the files on this machine that a task has the data sets library read, from where it is run."""
    how = config.get("dataset_kwargs") or {}
    named = how.get("data_files")
    listed = list(named.values()) if isinstance(named, dict) else [named]
    patterns = [one for some in listed for one in (some if isinstance(some, list) else [some])]
    places = (
        [how.get("data_dir"), *patterns] if config.get("dataset_path") in _READERS else [config.get("dataset_path")]
    )
    found = []
    for place in map(Path, filter(None, places)):
        inside = [file for file in sorted(place.rglob("*")) if file.is_file()]  # none of what is no folder
        found += [file for file in inside if not any(part.startswith(".") for part in file.relative_to(place).parts)]
        found += files_at(place)
    return found


def has_own_data(task: str, base: Path) -> bool:
    """Says whether a task is a file, from a folder, whose own YAML names files of this machine."""
    path = base / task
    if not task.endswith((".yaml", ".yml")) or not path.is_file():
        return False
    config = read_yaml(path)
    return bool(_data_files(TaskSpec(task=task), config, path) or _own_files(config))


def _address(config: Config) -> str | None:
    """Returns the address of a task's own data file, if it has one."""
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    files = list(named.values()) if isinstance(named, dict) else [named]
    return next((str(file) for file in files if "://" in str(file)), None)


def _check_splits(spec: TaskSpec, config: Config, data_files: dict[str, Path]) -> None:
    """Refuses files for splits that a task never reads, and a task with nothing to score."""
    known = {config[key] for key in (*_SPLITS, "fewshot_split") if config.get(key)}
    fewshot_split = (config.get("fewshot_config") or {}).get("split")
    known |= {fewshot_split} if fewshot_split else set()
    if not data_files:
        return
    for split in data_files:
        if split not in known:
            hint = did_you_mean(split, known) or f"it reads: {', '.join(sorted(known))}"
            raise SuiteError(f"the task reads no split '{split}'", where=spec.task, hint=hint)
    scored = [config.get("test_split"), config.get("validation_split")]
    if not any(split in data_files for split in scored if split):
        wanted = " or ".join(f"'{split}'" for split in scored if split)
        raise SuiteError("data_files has no split to score", where=spec.task, hint=f"give a file for {wanted}")
    if fewshot_split and fewshot_split not in data_files:
        raise SuiteError(
            f"its examples come from the split '{fewshot_split}'", where=spec.task, hint="give a file for it"
        )


def _check_overrides(spec: TaskSpec, config: Config) -> None:
    known = _config_keys() | set(config)
    for key in spec.overrides:
        if key not in known:
            raise SuiteError(f"unknown key '{key}' in overrides", where=spec.task, hint=did_you_mean(key, known))
        if key in ("task", "include", "class", "num_fewshot", "dataset_kwargs", "custom_dataset"):
            raise SuiteError(f"overrides cannot set '{key}'", where=spec.task)


def _check_generation(spec: TaskSpec) -> None:
    settings = spec.gen_kwargs | (spec.overrides.get("generation_kwargs") or {})
    known = {"until", *LIMITS, *_generation_keys()} if settings else set()
    for key in settings:
        if key not in known:
            raise SuiteError(f"there is no generation setting '{key}'", where=spec.title, hint=did_you_mean(key, known))


def _config_keys() -> set[str]:
    """Returns the keys of a task's YAML, from the source of lm-eval (importing it takes seconds)."""
    source = (lm_eval_folder() / "config" / "task.py").read_text()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "TaskConfig"]
    fields = [node.target for node in classes[0].body if isinstance(node, ast.AnnAssign)]
    return {field.id for field in fields if isinstance(field, ast.Name)}


def _generation_keys() -> set[str]:
    """Returns the keys of transformers' generation settings, from its source (importing it takes seconds)."""
    transformers: Any = find_spec("transformers")
    tree = ast.parse((Path(transformers.origin).parent / "generation" / "configuration_utils.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GenerationConfig"]
    assigned = [target for node in ast.walk(classes[0]) if isinstance(node, ast.Assign) for target in node.targets]
    return {target.attr for target in assigned if isinstance(target, ast.Attribute)}


class _Loader(yaml.SafeLoader):
    """Reads a task's YAML without running the Python that it names."""


def _named(loader: _Loader, node: Any) -> Config:
    return {"!function": loader.construct_scalar(node)}


_Loader.add_constructor("!function", _named)


def read_yaml(path: Path, modules: set[Path] | None = None, parents: tuple[Path, ...] = ()) -> Config:
    """Reads a task's YAML with its includes; each ``!function`` becomes its name and the hash of its file.

    Args:
        path: The file.
        modules: Takes the Python files that it and its includes name.
        parents: The files that include it.

    Raises:
        SuiteError: The file cannot be read, is no mapping, or includes itself.
    """
    path = path.resolve()
    if path in parents:
        raise SuiteError("the file includes itself", where=str(path))
    try:
        config = yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise SuiteError(f"cannot read: {error.strerror}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise SuiteError(f"not valid YAML: {str(error).splitlines()[0]}", where=str(path)) from error
    if not isinstance(config, dict):
        raise SuiteError("a task is a mapping of keys to values", where=str(path))
    modules = set() if modules is None else modules
    config = _hash_functions(config, path.parent, modules)
    includes = config.pop("include", [])
    merged: Config = {}
    for include in includes if isinstance(includes, list) else [includes]:
        included = read_yaml(path.parent / include, modules, (*parents, path))
        included.pop("task_list", None)
        merged |= included
    return merged | config


def packages(path: Path) -> list[str]:
    """Returns what the modules that a task names import, but for Python's own and what lm-eval cannot do without.

    One that is not installed is marked so.
    """
    found: set[str] = set()
    modules: set[Path] = set()
    read_yaml(path, modules)
    for module in modules:
        for node in ast.walk(ast.parse(module.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    found -= {"", "lm_eval", "posttrain", "datasets", "numpy", "transformers", "yaml", *sys.stdlib_module_names}
    return [name if find_spec(name) else f"{name}, which is not installed" for name in sorted(found)]


def _hash_functions(value: Any, folder: Path, modules: set[Path]) -> Any:
    """Puts beside each function's name the hash of the Python file that holds it, and collects those files."""
    if isinstance(value, list):
        return [_hash_functions(item, folder, modules) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"!function"}:
        module = str(value["!function"]).rpartition(".")[0]
        source = folder / f"{module.replace('.', '/')}.py"
        modules |= {source} if source.is_file() else set()
        return value | {"source": hash_file(source) if source in modules else None}
    return {str(key): _hash_functions(item, folder, modules) for key, item in value.items()}


def origin(definition: HarnessTask, *, is_limited: bool = True) -> Config:
    """Returns what a score says of its task: which data set it reads, and what makes it another task than lm-eval's.

    A few-shot number or a chat template of the suite's choosing is a setting of lm-eval, recorded elsewhere.

    Args:
        definition: The task.
        is_limited: Whether its limit leaves items out.
    """
    spec, config = definition.spec, definition.config
    root = lm_eval_folder() / "tasks"
    changes = {
        "a task file of one's own": not definition.path.resolve().is_relative_to(root.resolve()),
        "overrides": bool(spec.overrides),
        "data files in place of its data set": bool(definition.data_files),
        "generation settings": bool(spec.gen_kwargs) or "generation_kwargs" in spec.overrides,
        "a limit": spec.limit is not None and is_limited,
    }
    split = config.get("test_split") or config.get("validation_split")
    dataset = {"path": config.get("dataset_path"), "name": config.get("dataset_name"), "split": split}
    coverage = {"coverage": spec.coverage} if spec.coverage else {}
    return coverage | {
        "kind": "lm-eval",
        "task": spec.task,
        "changes": [name for name, changed in changes.items() if changed],
        "dataset": {key: value for key, value in dataset.items() if isinstance(value, str)},
    }
