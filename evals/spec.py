"""What to score: a suite of tasks, texts, preference pairs, labelled rows and prompts to answer, read from YAML."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ..chat_templates.errors import did_you_mean
from ..data_tools.errors import DataError, listing
from ..data_tools.functions import function_file
from ..data_tools.sources import data_suffix, is_hub, local_files
from ..data_tools.spec import ClosedSection, Count, Share, SourceSpec
from ..data_tools.specfile import Document, KeyPath, load_document, raise_if_problems, validate, with_references
from .errors import SuiteError
from .judges import JudgingSpec, resolve_judging
from .prompt_sets import PROMPTS, Name, PromptsSpec
from .row_changes import OptionOrder, RowChange, TypingErrors
from .task_data import DataFolder, TaskRows, field_problems, files_at, open_folder
from .task_index import find, members_of

SUITES = Path(__file__).parent / "suites"
Chat = Literal["auto", "always", "never"]
_BATCH_AUTO = 8
_SHOWN = 8  # names of a layout's tasks in a message


class SamplingSpec(ClosedSection):
    """A named way to generate, under which each task that generates text is scored in a column of its own."""

    name: Name
    """What the column is called, behind the task: ``gsm8k-nucleus``."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy, or a beam search."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The mass of the likeliest tokens that are drawn from."""
    beams: Count = 1
    """Beams of a beam search."""
    samples: Count = 1
    """Answers to each item; more than one needs a temperature."""
    k: list[Count] = []
    """Of pass@k and maj@k; the number of samples by default."""

    @property
    def ks(self) -> list[int]:
        """Returns the k of pass@k and maj@k; none of a single sample."""
        return (self.k or [self.samples]) if self.samples > 1 else []

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples of greedy answers are all the same: give a `temperature` above 0")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("a beam search draws nothing: drop `beams` or `temperature`")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("`top_p` does nothing to greedy answers: give a `temperature` above 0")
        if max(self.k, default=1) > self.samples:
            raise ValueError(f"pass@{max(self.k)} needs as many `samples`; there are {self.samples}")
        return self


class TaskSpec(TaskRows):
    """One lm-eval task, and how it is asked."""

    task: str
    """A task file (``*.yaml``, relative to the suite), the name of one in ``evals/tasks``, or the name of an lm-eval
    built-in. The name of a group or a tag, such as ``mmlu``, stands for all its tasks and for their mean."""
    name: Name | None = None
    """What the leaderboard calls it; the task's own name by default. A task may stand twice under two names."""
    data_files: dict[str, str] = Field(default={})
    """A file for each split (relative to the suite; of any type that a data source may have), read instead of the
    task's own data set. Splits that are not listed do not exist. The suite's ``data_dir`` gives what is not named."""
    overrides: dict[str, Any] = Field(default={})
    """Keys of the task's YAML to replace, for files whose columns differ from the task's own."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples in the prompt; None leaves the task's own number."""
    limit: Count | None = None
    """Score the first so many documents only; None is all."""
    metric: str | None = None
    """The metric that stands for the task; the task's first by default."""
    gen_kwargs: dict[str, Any] = Field(default={})
    """Generation settings that replace the task's own, such as ``max_gen_toks``."""
    sampling: SamplingSpec | None = None
    """How this task is sampled, where the suite's ``sampling`` does not say it."""
    chat: Chat | None = None
    """Overrides the suite's ``chat``."""
    baseline: Annotated[float, Field(ge=0, lt=1)] | None = None
    """What guessing scores, for the ``centred`` mean of a group."""
    change: RowChange | None = None
    """A change of the scored rows that leaves their right answers as they are; ``robustness`` makes these."""

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the task."""
        return self.name or Path(self.task).stem


class RobustnessSpec(TaskSpec):
    """A task that is asked in several ways: what all of them have right, their mean, the worst, how far they spread."""

    phrasings: list[str] = Field(default=[])
    """Templates that take turns in place of the task's ``doc_to_text``."""
    typing_errors: TypingErrors | None = None
    """Errors of typing in a column, drawn anew for each seed."""
    options: OptionOrder | None = None
    """The options of a question in another order for each seed; for tasks whose prompt lists them."""
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1)
    """Of typing errors and orders."""

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if self.change is not None:
            raise ValueError("`change` is made of `typing_errors` and `options`")
        if not (self.phrasings or self.typing_errors or self.options):
            raise ValueError("nothing is varied: give phrasings, typing_errors or options")
        return self

    def variants(self) -> list[TaskSpec]:
        """Returns the task as it stands, then each way to ask it."""
        changes = [
            (f"phrasing{n}", {"overrides": self.overrides | {"doc_to_text": text}})
            for n, text in enumerate(self.phrasings, 1)
        ]
        for seed in self.seeds:
            for name, how in (("typing", self.typing_errors), ("options", self.options)):
                changes += [(f"{name}{seed}", {"change": RowChange(seed=seed, how=how)})] if how else []
        given = self.model_dump(include=self.model_fields_set & TaskSpec.model_fields.keys())
        return [
            TaskSpec(**given | {"name": f"{self.title}-{name}"} | update) for name, update in [("plain", {}), *changes]
        ]


class PerplexitySpec(ClosedSection):
    """A text on which to measure bits per byte."""

    name: Name
    """What the leaderboard calls it: the domain."""
    path: str
    """A file, folder or pattern (relative to the suite), or a Hub id; and with it the keys of a data source (``split``,
    ``subset``, ``revision``, ``text``, ``columns``, ``sample_by``, ``limit``)."""
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    text: str | None = None
    columns: dict[str, str] | None = None
    sample_by: Literal["line", "paragraph", "document"] = "document"
    where: dict[str, str | int | bool] = {}
    """Only rows whose columns hold these values are part of the text: ``{lang: es}``."""
    limit: Count | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens per window; the suite's, or else what the model can take."""
    stride: Count | None = None
    """Tokens that a window scores; half of ``max_length`` by default. Each token is scored exactly once."""
    metric: Literal["bits_per_byte", "perplexity", "bits_per_token"] = "bits_per_byte"
    """The metric that stands for the text."""

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the text."""
        return self.name

    def source(self) -> SourceSpec:
        """Returns the text as a data source; a .txt file is one document unless ``sample_by`` says otherwise."""
        given = self.model_dump(include=self.model_fields_set & SourceSpec.model_fields.keys())
        if data_suffix(self.path) == ".txt":
            given["sample_by"] = self.sample_by
        return SourceSpec(**given)


class RowsSpec(SourceSpec):
    """Held-out rows: a data source as in a recipe's ``data:`` section, under a name of its own."""

    name: Name  # type: ignore[assignment]  # here a source must have one
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a row; the suite's, or else what the model can take."""
    max_bad_share: Share = 0.02
    """The largest share of the rows that may be unusable, as in a recipe."""
    batch_size: Count | None = None
    """Sequences in a forward pass; the suite's by default."""

    @model_validator(mode="after")
    def _no_weight(self) -> Self:
        if "weight" in self.model_fields_set:
            raise ValueError("`weight` does nothing here: each row is read once; remove it")
        return self

    def source(self) -> SourceSpec:
        """Returns the rows as a data source."""
        return SourceSpec(**self.model_dump(include=self.model_fields_set & SourceSpec.model_fields.keys()))


class PairsSpec(RowsSpec):
    """Preference rows, to be told apart by a reward model, or by a policy's implicit reward."""

    reference: str | None = None
    """The model that a policy departed from: a folder, a Hub id, or ``@step``. With it the checkpoint is a language
    model, and its reward is ``beta (log p - log p of the reference)`` (Rafailov et al. 2023, arXiv:2305.18290, equation
    5, without the term that cancels within a pair)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Of that reward; the value that the policy was trained with."""
    metric: Literal["accuracy", "nll", "ece", "brier", "margin", "kappa"] = "accuracy"
    """The metric that stands for the pairs."""

    @model_validator(mode="after")
    def _beta_needs_reference(self) -> Self:
        if self.reference is None and "beta" in self.model_fields_set:
            raise ValueError("`beta` belongs to the implicit reward of a policy: give its `reference`, or drop `beta`")
        return self


class ClassificationSpec(RowsSpec):
    """Labelled rows for a classifier."""

    metric: str | None = None
    """The metric that stands for the rows; ``accuracy`` for one label, ``f1_macro`` for several, ``pearson`` for
    numbers."""
    max_bad_share: Share = 0.0
    """The largest share of the rows that may be unusable; a row without a label is one."""
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """What happens to a row of more tokens than fit. A classifier that is asked must answer, so such rows are cut by
    default, and counted."""
    metrics: tuple[str, ...] = Field(default=(), strict=False)
    """Metrics of the ``evaluate`` library besides: a Hub name, or the path of a metric script (relative to the
    suite)."""


class FunctionSpec(ClosedSection):
    """A metric of your own: a Python function of a checkpoint."""

    function: str
    """``package.module:name``, or ``file.py:name`` (relative to the suite), of ``f(model, tokenizer, step)``; see
    ``evals/own_metrics.py`` for what it may return."""
    name: Name | None = None
    """What the leaderboard calls it; the function's name by default."""
    higher_is_better: bool = True
    """Which way is up."""
    files: tuple[str, ...] = Field(default=(), strict=False)
    """Files that the function reads (relative to the suite): a change of one is a change of the metric."""

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the metric."""
        return self.name or self.function.rpartition(":")[2]

    @property
    def limit(self) -> None:
        """Returns None: how many items there are is the function's to say."""


class GroupSpec(ClosedSection):
    """Tasks whose means stand in a column of their own."""

    name: Name
    """What the leaderboard calls it; ``<name>-local`` where the suite's folder does not hold all its tasks."""
    tasks: list[str] = []
    """The tasks by what the leaderboard calls them. By default those of the entry of ``tasks`` of that name, if that is
    a group of lm-eval, or else all of the suite."""
    mean: Literal["macro", "micro", "centred", "robust"] = "macro"
    """The mean that stands for the group: of the tasks' figures, of all items, or of ``(a - b) / (1 - b)`` with ``b``
    the ``baseline`` of each task. The macro and micro means are there in any case. ``robust`` is for tasks of the same
    items, asked in several ways: the share of items that are right in all of them."""
    coverage: str | None = None
    """What part of the group is there; it stands in the column's title."""

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the group."""
        return self.name


class SuiteSpec(ClosedSection):
    """A named list of things to score, with the settings that hold for all of them."""

    name: Name
    """The suite; its file's name by default."""
    data_dir: str | None = None
    """A folder of benchmarks (relative to the suite), read instead of the tasks' own data sets; the paths of
    ``perplexity`` texts start from it. What it does not hold is left out, and the suite is then called
    ``<name>-local``."""
    layout: str | None = None
    """Which files of that folder are a task's: a layout of ``evals/layouts`` or a YAML file; told from the folder by
    default."""
    tasks: list[TaskSpec] = []
    """Tasks for lm-eval."""
    robustness: list[RobustnessSpec] = []
    """Tasks for lm-eval that are asked in several ways."""
    groups: list[GroupSpec] = []
    """Means over tasks."""
    sampling: list[SamplingSpec] = []
    """Settings under which each task that generates text is scored; by default once, as the task says."""
    perplexity: list[PerplexitySpec] = []
    """Texts for perplexity."""
    pairs: list[PairsSpec] = []
    """Preference rows for reward models and policies."""
    classification: list[ClassificationSpec] = []
    """Labelled rows for classifiers."""
    functions: list[FunctionSpec] = []
    """Metrics of your own: Python functions of a checkpoint."""
    prompts: list[PromptsSpec] = []
    """Prompts whose answers are saved, for judges and people to compare."""
    judges: list[JudgingSpec] = []
    """Who compares or rates those answers once they are there."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What computes the answers to the tasks of lm-eval. vLLM must be installed, and takes whole models and no
    adapters; it runs on the GPUs of ``CUDA_VISIBLE_DEVICES``. Texts, pairs and classification are transformers' still,
    and ``prompts`` have a ``backend`` each."""
    chat: Chat = "auto"
    """``auto`` applies the chat template if the checkpoint's tokenizer has one. Perplexity and classification never do;
    conversations of ``pairs`` always do."""
    too_long: Literal["cut", "skip", "error"] = "cut"
    """What happens to an item of a task that is longer than the model takes: its beginning is cut, as lm-eval does, or
    it is left out and counted, or the task is not scored."""
    template_variables: dict[str, str | int | float | bool] = {}
    """Variables of the chat template for tasks and prompt sets, such as ``enable_thinking: false``."""
    batch_size: Count | Literal["auto"] = 16
    """Sequences in a forward pass, or ``auto``: lm-eval seeks the largest, the others take 8."""
    seed: int = 0
    """Of few-shot sampling, sampled generation and bootstrap."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens that a model sees at once; its own limit by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are loaded as; ``auto`` is what the checkpoint says."""
    offline: bool = True
    """Whether the Hub is out of bounds; a built-in task then needs ``data_files`` or a filled cache."""
    contamination: Literal["auto", "always", "never"] = "auto"
    """Whether the items of the tasks are looked for in the training data of each run and its ancestors, once; the board
    then has the scores on the others too. ``auto`` looks through a gigabyte at most, about a minute's work."""
    _left_out: tuple[str, ...] = PrivateAttr(())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Returns the tasks that the suite names and its folder does not hold."""
        return self._left_out

    @field_validator("template_variables")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(value.keys() & {"messages", "tools", "add_generation_prompt", "continue_final_message"}):
            raise ValueError(f"`{ours[0]}` is set by what is asked: drop it")
        return value

    @model_validator(mode="after")
    def _check(self) -> "SuiteSpec":
        sections = (
            self.tasks,
            self.robustness,
            self.perplexity,
            self.pairs,
            self.classification,
            self.functions,
            self.prompts,
        )
        if not any(sections):
            names = "tasks, perplexity, pairs, classification, functions or prompts"
            raise ValueError(f"the suite scores nothing: it has no {names}")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> "SuiteSpec":
        names = [setting.name for setting in self.sampling]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the setting '{twice}' of `sampling` stands twice")
        return self

    def size_of_batch(self, given: int | None = None) -> int:
        """Returns the sequences in a forward pass of ours, where ``auto`` is 8."""
        return given or (_BATCH_AUTO if self.batch_size == "auto" else self.batch_size)


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
        limit: Score the first so many documents of each task and text only, whatever the suite says.

    Raises:
        SpecError: The file does not fit the schema; every problem with its line.
        SuiteError: There is no suite of that name.
    """
    path = _find(str(name_or_path))
    document, spec = _read(path, references or {})
    return _finished(document, spec, path.parent.resolve(), data_dir, limit)


def suite_of_tasks(
    tasks: Sequence[str], *, data_dir: Path | None = None, limit: int | None = None, chat: Chat = "never"
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
            sections: dict[str, list[Any]] = {
                name: getattr(spec, name) for name in ("tasks", "robustness", "perplexity")
            }
            update = {
                name: [entry.model_copy(update={"limit": limit}) for entry in sections[name]] for name in sections
            }
            spec = spec.model_copy(update=update)
        spec = _resolve(spec, base, document)
    raise_if_problems(document)
    assert spec is not None  # a suite that does not validate leaves problems
    return spec


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
    return document, validate(SuiteSpec, document, raise_problems=False)


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
    given = [task if task.data_files else _from_folder(task, folder) for task in spec.tasks]
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


def _from_folder(task: TaskSpec, folder: DataFolder) -> TaskSpec | None:
    """Returns a task with the files that a folder holds of it; what the suite says of rows stands before the layout."""
    entry = folder.entry(task.title) or folder.entry(Path(task.task).stem)  # one task may stand for several files
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
