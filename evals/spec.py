"""What a suite may say: tasks, texts, preference pairs, labelled rows and prompts to answer."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PrivateAttr,
    field_validator,
    model_validator,
)

from ..data_tools.sources import data_suffix
from ..data_tools.spec import ClosedSection, Count, PositiveShare, Share, SourceSpec, word_for
from .judges import JudgingSpec
from .prompt_sets import Name, PromptsSpec
from .row_changes import OptionOrder, RowChange, TypingErrors
from .task_data import TaskRows

Chat = Literal["auto", "always", "never"]
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one setting in lm-eval
_BATCH_AUTO = 8


class SamplingSpec(ClosedSection):
    """A named way to generate, under which each task that generates text is scored in a column of its own."""

    name: Name
    """What the column is called, behind the task: ``gsm8k-nucleus``."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy, or a beam search."""
    top_p: PositiveShare = 1.0
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
    num_fewshot: NonNegativeInt | None = None
    """Worked examples in the prompt; None leaves the task's own number."""
    limit: Count | None = None
    """Score the first so many documents only; None is all."""
    metric: str | None = None
    """The metric that stands for the task; the task's first by default."""
    gen_kwargs: dict[str, Any] = Field(default={})
    """Generation settings that replace the task's own, such as ``max_gen_toks``; others of the task's stay."""
    sampling: SamplingSpec | None = None
    """How this task is sampled, where the suite's ``sampling`` does not say it."""
    chat: Chat | None = None
    """Overrides the suite's ``chat``."""
    baseline: Annotated[float, Field(ge=0, lt=1)] | None = None
    """What guessing scores, for the ``centred`` mean of a group."""
    change: RowChange | None = None
    """A change of the scored rows that leaves their right answers as they are; ``robustness`` makes these."""

    _plain_name = model_validator(mode="before")(word_for("task"))

    @field_validator("gen_kwargs")
    @classmethod
    def _one_limit(cls, value: dict[str, Any]) -> dict[str, Any]:
        # lm-eval takes the first of the names that are there, and the task's own settings are there too.
        limits = [name for name in LIMITS if name in value]
        if len(limits) > 1:
            raise ValueError(f"`{limits[0]}` and `{limits[1]}` are names of one limit: keep one")
        return {LIMITS[0] if name in LIMITS else name: setting for name, setting in value.items()}

    @property
    def stem(self) -> str:
        """Returns the task's own name."""
        return Path(self.task).name.removesuffix(".yaml").removesuffix(".yml")

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the task."""
        return self.name or self.stem

    @property
    def names(self) -> set[str]:
        """Returns what saved answers may call the task: its own name too, and its title without that of a setting."""
        return {self.title, self.stem, self.title.removesuffix(f"-{self.sampling.name}" if self.sampling else "")}


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
    beta: PositiveFloat = 0.1
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

    _plain_name = model_validator(mode="before")(word_for("function"))

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
    """Tokens that a model sees at once; its own limit by default. More than it was made for is noted with the score,
    and refused where each place has an embedding."""
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
