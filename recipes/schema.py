"""The recipe: what a YAML file may say, section by section.

Only what posttrain itself understands is declared here. ``data`` and ``score`` belong to the rooms that read them,
and ``trainer`` is passed to the stage's own configuration class, whose fields are never redeclared.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ..data_tools.functions import function_file
from ..data_tools.spec import Count, DataSpec, NonEmpty, Section, Share, word_for
from .adapter_types import MOVES_BASE, TYPES, AdapterType
from .stage_table import STAGES
from .trainer_fields import Field as TrainerField
from .trainer_fields import fields_of

StageName = Literal[
    "pretrain",
    "sft",
    "reward",
    "dpo",
    "kto",
    "orpo",
    "grpo",
    "rloo",
    "ppo",
    "classify",
    "distill",
    "distill_on_policy",
]


def _no_file(folder: str) -> str:
    if file := next((path for path in (Path(folder), *Path(folder).parents) if path.is_file()), None):
        raise ValueError(f"{file} is a file; name another folder")
    return folder


OutputDir = Annotated[str, AfterValidator(_no_file)]


class ModelSpec(Section):
    """Where the model and its tokenizer come from."""

    name_or_path: str | None = None
    """A Hub id, a folder, or `@step` in a pipeline."""
    config: dict[str, Any] | None = None
    """The configuration of a new model, `model_type` and its fields; the weights start at random."""
    tokenizer: str | None = None
    """A Hub id, a folder or `@step`; by default what lies beside the model."""
    revision: str | None = None
    """The branch, tag or commit of a Hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are held in; `auto` is float32 when all are trained, and as saved under adapters."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, a kernel of the Hub such as `kernels-community/flash-attn2`, …; by default
    what transformers chooses."""
    use_kernels: bool = False
    """Whether kernels of the Hub compute the layers that it has some for on this device; needs the package kernels."""
    trust_remote_code: bool = False
    """Whether Python code from the model's repository may run."""
    chat_template: str | None = None
    """A built-in name or the path of a .jinja file; by default the tokenizer's own."""
    rope_parameters: dict[str, Any] | None = None
    """How rotary positions are scaled for longer contexts, in transformers' words: `{rope_type: yarn, factor: 2.0}`, or
    `linear`, `dynamic`, `llama3`, `longrope`; what is not said stays as the model has it."""
    layers: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Keep only these layers of the model, counted from 0: a student made of some of its teacher's layers."""
    mup_base: Annotated[dict[str, PositiveInt], Field(min_length=1)] | None = None
    """For a new model in the maximal update parametrisation (muP: Yang et al. 2022, arXiv:2203.03466): the fields of
    `config` that widths differ in, at the width that `initializer_range` and `trainer.learning_rate` were found for,
    such as `{hidden_size: 64, intermediate_size: 256, num_attention_heads: 4}`. The size of a head stays."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give either name_or_path (a trained model) or config (a new one)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, such as llama")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a model from config needs tokenizer (a Hub id, a folder or @step)")
        if self.config is not None and self.rope_parameters is not None:
            raise ValueError("rope_parameters scales a trained model; a model from config has its own in config")
        if self.config is not None and self.layers is not None:
            raise ValueError("layers keeps some layers of a trained model; a model from config says its own number")
        if self.mup_base is not None and self.config is None:
            raise ValueError("mup_base is how a new model starts; a trained one (name_or_path) has started")
        if self.mup_base is not None and "hidden_size" not in self.mup_base:
            raise ValueError("mup_base needs hidden_size, the width of the base")
        return self


class AdapterSpec(Section):
    """What is trained instead of the model's own weights: one of peft's kinds of adapters, with peft's own fields.

    Those fields stand beside ``type``; a recipe's are checked when it is read (`adapter_types.adapter_problems`).
    """

    model_config = ConfigDict(extra="allow")

    type: str = ""
    """Such as `lora`, `prefix_tuning`, `ia3`: peft's type in lower case."""
    name_or_path: str | None = None
    """A trained adapter to go on from, in place of a type and its fields: its folder, a run of one, or `@step`."""

    @property
    def kind(self) -> AdapterType:
        """What must be known of its type."""
        return TYPES[self.type]

    @property
    def options(self) -> dict[str, Any]:
        """The fields of peft's configuration class."""
        return dict(self.model_extra or {})

    @property
    def moves_base(self) -> bool:
        """Whether the base without it is another model than the base before it."""
        return str(self.options.get("init_lora_weights")).startswith(MOVES_BASE)


class LoraSpec(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): the short form of `adapter: {type: lora, …}`."""

    r: Annotated[int, Field(gt=0, le=65536)] = 16
    """The rank."""
    alpha: Annotated[int, Field(gt=0, le=1_000_000)] = 32
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    target_modules: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, or `all-linear`."""
    modules_to_save: list[str] = []
    """Modules that are trained in full beside the adapters."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353)."""

    def adapter(self) -> AdapterSpec:
        """Returns the same by peft's names."""
        given = self.model_dump()
        named = {f"lora_{name}": given.pop(name) for name in ("alpha", "dropout")}
        return AdapterSpec(type="lora", **given, **named)


class TeacherSpec(Section):
    """The model whose predictions a student learns."""

    name_or_path: str
    """A Hub id, a folder, or `@step` in a pipeline."""
    revision: str | None = None
    """The branch, tag or commit of a Hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are held in; `auto` is as saved."""
    attn_implementation: str | None = None
    """As in the model section."""
    trust_remote_code: bool = False
    """Whether Python code from the teacher's repository may run."""
    top_k: Annotated[int, Field(gt=0, le=10**9)] | None = None
    """Cache the log-probabilities of the teacher's most likely tokens before training, so many of them at each place,
    instead of holding the teacher beside the student."""


VerifierName = Literal["exact", "numeric", "symbolic", "tests"]


class RewardSpec(Section):
    """One term of the reward: a reward model, a function or a verifier."""

    model: str | None = None
    """A sequence-classification model with one output: a Hub id, a folder, or `@step` of a `reward` run."""
    function: str | None = None
    """`package.module:name`, or `file.py:name` relative to the recipe; it may be asynchronous. Where it gives None, the
    term is left out of that answer's reward."""
    verifier: VerifierName | None = None
    """1 for an answer that is right and 0 for a wrong one, by the row's own `answer` to the letter (`exact`), as a
    number or as an expression (math-verify), or by its `tests`, Python that is run in the sandbox."""
    column: str | None = None
    """The column that the verifier checks by; by default `answer`, or `tests`."""
    name: str | None = None
    """What the logs call it; by default the function's or verifier's name or the model's folder."""
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    """Its factor in the sum of all terms."""

    @field_validator("verifier", mode="before")
    @classmethod
    def _no_judge(cls, verifier: Any) -> Any:
        if verifier in ("judge", "pairwise"):
            raise ValueError(
                "a judge prefers one of two answers, and gives none a reward of its own: it verifies the rows of `data "
                "synthesize`; take a reward model (`model:`), or train by dpo on pairs that it kept"
            )
        return verifier

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.model, self.function, self.verifier)) != 1:
            raise ValueError("give one of model (a reward model), function (package.module:name) and verifier")
        if self.column is not None and self.verifier is None:
            raise ValueError("column is what a verifier checks by; a function names its columns as arguments")
        if self.function is not None and ":" not in self.function:
            raise ValueError("function is package.module:name, or file.py:name")
        return self


class CriticSpec(Section):
    """Where PPO's value function starts from."""

    name_or_path: str | None = None
    """A reward model or a language model: a Hub id, a folder or `@step`; by default a copy of
    `model`, without an adapter."""
    shared: bool = False
    """A value head on the policy's own backbone instead of a model of its own."""

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.shared and self.name_or_path is not None:
            raise ValueError("a shared critic has the policy's backbone: drop name_or_path")
        return self


class ClassifySpec(Section):
    """What a classifier's head predicts."""

    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """One class (softmax), any of a list of them in a row (sigmoid each), or a number (mean squared error)."""
    labels: Annotated[list[str], Field(min_length=2)] | None = None
    """The classes in their order; by default those of the training data, sorted."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None
    """Weights of the classes in the loss; `balanced` is rows / (classes x rows of the class)."""
    pooling: Literal["cls", "mean"] | None = None
    """How an encoder that offers both makes one vector of a text; by default its own way, and for decoders the last
    token's."""
    metrics: list[str] = []
    """Metrics of the `evaluate` library besides posttrain's own: a Hub name, or the path of a metric script."""

    @model_validator(mode="after")
    def _fits_problem(self) -> Self:
        twice = [name for number, name in enumerate(self.labels or ()) if name in (self.labels or ())[:number]]
        if twice:
            raise ValueError(f"labels names the class '{twice[0]}' twice")
        if self.problem == "regression" and (self.labels or self.class_weights):
            raise ValueError("regression has no classes: drop labels and class_weights")
        return self


class ColumnSpec(Section):
    """A column of the board by which checkpoints are compared while the run trains."""

    column: NonEmpty
    """The task's name in the suite, or `task/metric`; by default the metric that stands for the task."""
    direction: Literal["max", "min"] | None = None
    """Which way is better; by default as the metric says."""


class EarlyStopSpec(ColumnSpec):
    """When a run ends before its last step: by a verdict (`evals/stats/stopping.py`), not by noise."""

    min_delta: PositiveFloat
    """The smallest gain worth having, in the column's unit. The run ends where each of the last checkpoints is shown to
    be better than the best by less than this."""
    patience: Count = 2
    """How many checkpoints after the best the verdict is about."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The share of runs that may be ended in error; it is spent over all looks."""


class ObjectiveSpec(Section):
    """What `pretrain` learns in place of the next token: tokens that are hidden (Devlin et al. 2019, section 3.1)."""

    name: Literal["mlm"]
    """`mlm`: masked language modelling, for encoders."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The probability with which a token is chosen to be predicted; special tokens never are. ModernBERT was made
    with .3 (Warner et al. 2024, arXiv:2412.13663), and with the shares below."""
    mask_replace_prob: Share = 0.8
    """The share of chosen tokens that the mask token stands for."""
    random_replace_prob: Share = 0.1
    """The share that any token of the vocabulary stands for; the rest stay as they are."""
    whole_word: bool = False
    """Whether all pieces of a word are chosen together; for WordPiece vocabularies, whose pieces begin with `##`."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError("mask_replace_prob and random_replace_prob are shares of one whole: their sum is above 1")
        return self


class ScoreSpec(Section):
    """Which checkpoints of the run are scored, and by what."""

    suite: str
    """The name of a suite, or the path of its YAML file."""
    every: Literal["checkpoint", "end"] | Count = "end"
    """Every save, once the run has ended; the final model only; or every so many steps while the run trains, each of
    which is saved for it, and the last step."""
    start: bool = False
    """Also the weights before the first step, as `checkpoint-0`."""
    device: NonEmpty | None = None
    """Where checkpoints are scored beside the training, such as `cpu` or `cuda:1`; with `every: N`. By default the
    training waits for its scores. A decision by scores made beside it comes one look later."""
    keep_best: ColumnSpec | None = None
    """The best checkpoint of a column, which `trainer.save_total_limit` never removes; with `every: N`."""
    early_stop: EarlyStopSpec | None = None
    """When the run ends early; with `every: N`."""

    @model_validator(mode="after")
    def _while_training(self) -> Self:
        given = [key for key in ("device", "keep_best", "early_stop") if getattr(self, key) is not None]
        if given and not isinstance(self.every, int):
            raise ValueError(f"{given[0]} is for scores while the run trains: say every: N (steps)")
        return self


class Recipe(Section):
    """One training run."""

    stage: StageName
    """What to train."""
    name: str | None = None
    """The run's name in reports; by default the name of its file, and of the folder that `output_dir=…` chooses."""
    model: ModelSpec
    """Where the model and its tokenizer come from."""
    lora: LoraSpec | None = None
    """Train low-rank adapters instead of all weights."""
    adapter: AdapterSpec | None = None
    """Train an adapter of any kind that peft has; `lora` is its short form."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """Quantize the frozen base; needs an adapter. nf4 with lora is QLoRA."""
    data: DataSpec
    """What to train on and what to evaluate the loss on."""
    teacher: TeacherSpec | None = None
    """The model to learn from; stages `distill`, `distill_on_policy` and, for a classifier as teacher, `classify`."""
    rewards: list[RewardSpec] = []
    """The terms of the reward; stages `ppo`, `grpo` and `rloo`."""
    gold: RewardSpec | None = None
    """A reward that is logged beside the others and never trained on, to show over-optimisation."""
    tools: list[str] = []
    """Functions that the policy may call while it writes, as TRL's GRPOTrainer takes them; stage `grpo`. Each is
    `package.module:name` or `file.py:name`, with typed arguments and a docstring for the template."""
    environment: str | dict[str, str] | None = None
    """What makes the environments that answers are written in (TRL's `environment_factory`): a class's place, or the
    places by what rows say under `environment`; stage `grpo`. One that has `get_reward` may stand for `rewards`."""
    rollout_func: str | None = None
    """A function in the place of TRL's own generation (its `rollout_func`); stage `grpo`."""
    critic: CriticSpec | None = None
    """The value function; stage `ppo`."""
    classify: ClassifySpec | None = None
    """The head; stage `classify`."""
    objective: Annotated[
        ObjectiveSpec | None,
        BeforeValidator(word_for("name"), json_schema_input_type=Literal["mlm"] | ObjectiveSpec | None),
    ] = None
    """What is learnt in place of the next token: `mlm`, or `{name: mlm, mlm_probability: .3, …}`; stage `pretrain`.
    Texts longer than `trainer.max_length` are cut in pieces, unless `data.too_long` says otherwise."""
    trainer: dict[str, Any] = {}
    """Verbatim fields of the stage's configuration class, such as TRL's SFTConfig."""
    score: ScoreSpec | None = None
    """Which checkpoints are scored, and by what; nothing by default."""
    watchdog: Literal["warn", "stop", "rewind"] = "warn"
    """What is done where training goes wrong (a loss or gradient that spikes or is not finite, a batch without a
    supervised token, rewards that collapse, a divergence that blows up): a warning; an end; or the run goes back to the
    last checkpoint before it and skips the batch."""
    profile: bool = False
    """Whether a few steps are traced: a file for ui.perfetto.dev, and words on where their time went."""
    output_dir: OutputDir
    """The run folder."""

    @property
    def adapts(self) -> AdapterSpec | None:
        """The adapter that is trained, however the recipe says it; None where all weights are."""
        return self.adapter or (self.lora and self.lora.adapter())

    @property
    def section(self) -> str:
        """What the section of its adapter is called in the recipe."""
        return "adapter" if self.adapter else "lora"

    @property
    def loads_reference(self) -> bool:
        """Whether the policy as it was is another model, and not the policy without its adapter."""
        return self.adapts is None or self.adapts.name_or_path is not None or self.adapts.moves_base

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the recipe names: the trained one, its adapter, teacher, reward models and critic."""
        named = [self.model.name_or_path, self.teacher and self.teacher.name_or_path]
        named.append(self.adapter and self.adapter.name_or_path)
        named += [reward.model for reward in (*self.rewards, self.gold) if reward]
        named.append(self.critic and self.critic.name_or_path)
        return tuple(name for name in named if name)

    @property
    def code(self) -> tuple[str, ...]:
        """The files of the user's functions: rewards, tools, environments, and what stands in for TRL's generation."""
        named = [reward.function for reward in (*self.rewards, self.gold) if reward]
        named += [*self.tools, self.rollout_func]
        named += self.environment.values() if isinstance(self.environment, dict) else [self.environment]
        return tuple(dict.fromkeys(filter(None, map(function_file, named))))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.lora and self.adapter:
            raise ValueError("lora is the short form of adapter: drop one of the two")
        if self.quantization and self.adapts is None:
            raise ValueError("quantization freezes the base, so it needs a lora section or an adapter section")
        if self.objective is not None and (self.adapts or self.quantization):
            raise ValueError("objective: mlm trains all weights of an encoder: drop lora, adapter and quantization")
        if self.model.rope_parameters is not None and self.adapts:
            raise ValueError(
                "an adapter does not keep model.rope_parameters, so whoever loads it would read its base unscaled; "
                f"drop {self.section}, or write rope_parameters into the base's config.json"
            )
        if self.model.mup_base is not None and (STAGES[self.stage].family != "text" or self.objective is not None):
            raise ValueError("model.mup_base is for language models trained from nothing: pretrain, sft or distill")
        if self.model.config is not None and (self.adapts or self.quantization):
            raise ValueError("a new model (model.config) has nothing to adapt: drop lora, adapter and quantization")
        if self.score and self.score.every == "checkpoint" and self.trainer.get("save_total_limit") is not None:
            raise ValueError(
                "trainer.save_total_limit deletes checkpoints that score.every: checkpoint still has to score; "
                "drop one of the two"
            )
        if self.score and self.score.start and self.score.every == "end":
            raise ValueError(
                "score.start saves a checkpoint that score.every: end would not score; say every: checkpoint"
            )
        if self.trainer.get("eval_strategy", "no") != "no" and self.data.eval is None:
            raise ValueError("trainer.eval_strategy evaluates, but there is no data.eval")
        return self


class Step(Section):
    """One step of a pipeline: a recipe to train, or a data tool to run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """What later steps call it, as `@name`; also the name of its folder."""
    recipe: str | None = None
    """A recipe, relative to the pipeline's file."""
    overrides: list[str] = []
    """Overrides of the recipe, `a.b=c`."""
    tool: str | None = None
    """A data tool: a name, or a class of your own, `file.py:Name`, whose file's change is a change of the step."""
    args: dict[str, Any] = {}
    """The tool's arguments."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.recipe is None) == (self.tool is None):
            raise ValueError("a step has either recipe or tool")
        if (self.recipe and self.args) or (self.tool and self.overrides):
            raise ValueError("overrides belong to a recipe, args to a tool")
        return self


class PipelineScore(Section):
    """What is scored once all steps have ended, such as answers that judges compare across steps."""

    suite: str
    """The name of a suite, or the path of its YAML file; `@name` in it is any step."""
    every: Literal["checkpoint", "end"] = "end"
    """Every checkpoint of the steps, or their final models only."""
    steps: list[str] | None = None
    """The steps whose models are scored; all that train by default."""


class Pipeline(Section):
    """An ordered list of steps, each in its own folder under one output folder."""

    name: str | None = None
    """What reports call it; by default the name of its file."""
    steps: Annotated[list[Step], Field(min_length=1)]
    """The steps; each may use the outputs of those before it."""
    score: PipelineScore | None = None
    """What is scored when all steps have ended; each recipe's own `score` comes right after its training."""
    parity: list[str] = []
    """The steps whose final models are compared with what stock transformers makes of their folders alone."""
    report: bool = True
    """Whether to write a leaderboard over all steps at the end."""
    output_dir: OutputDir
    """The folder of the steps' folders."""


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class StudyStep(Step):
    """A step before the cells of a study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9{][A-Za-z0-9_.{}-]*$")]
    """What arms call it, as `@name`. A name with `{size}` or `{seed}` is a step for each of these, which stand for
    themselves in its arguments too."""


class Study(Section):
    """A recipe in several versions (arms), each at every size and from every seed."""

    name: str | None = None
    """What the page is called; by default the name of the file."""
    recipe: str
    """What is trained in every cell, relative to the study's file."""
    steps: list[StudyStep] = []
    """Steps before the cells, as in a pipeline, such as the tools that select rows; arms say `@step`."""
    arms: Annotated[dict[_Name, list[str]], Field(min_length=2)]
    """The versions that are compared: for each the overrides of the recipe, `a.b=c`, in which `{size}` and `{seed}` are
    the cell's own: `data.train.path=@random-{size}-{seed}/rows.jsonl`."""
    baseline: str | None = None
    """The arm that the others are compared with; the first by default."""
    sizes: Annotated[dict[_Name, list[str]], Field(min_length=1)] = {"all": []}
    """A second axis, such as the tokens of training: for each value its overrides; arms are compared within a size.
    Names that are numbers give curves."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=2)] = [1, 2, 3]
    """Each sets `trainer.seed` and `data.seed`; a verdict needs three or more."""
    suite: str
    """The suite that every cell's final model is scored by."""
    outcomes: Annotated[list[str], Field(min_length=1)] | None = None
    """The tasks of the suite that arms are compared on, by their first figures; all of them by default."""
    output_dir: OutputDir
    """The folder of the steps, the cells and the page."""

    @model_validator(mode="after")
    def _arms(self) -> Self:
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: no arm '{self.baseline}'; arms: {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one stands twice")
        return self

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the baseline."""
        return [arm for arm in self.arms if arm != self.reference]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))


def json_schema(of: str = "recipe") -> str:
    """Returns the JSON Schema of a kind of file, for editors: ``recipe``, ``suite`` or ``judge``."""
    from ..evals.judges import JudgeSpec
    from ..evals.spec import SuiteSpec

    schema = {"recipe": Recipe, "suite": SuiteSpec, "judge": JudgeSpec}[of].model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    if of == "recipe":
        _add_trainer_fields(schema)
    elif of == "suite":
        schema["required"].remove("name")  # by default it is the file's
    return json.dumps(schema, indent=2)


def _add_trainer_fields(schema: dict[str, Any]) -> None:
    """Adds the trainer's fields of each stage."""
    stages = {
        name: {
            field.name: _field_schema(field)
            for field in fields_of(stage.config).values()
            if field.name not in stage.owned
        }
        for name, stage in STAGES.items()
    }
    entries: dict[str, list[dict[str, Any]]] = {}
    for fields in stages.values():
        for name, entry in fields.items():
            entries.setdefault(name, []).append(entry)
    # a field that means the same everywhere is told once, the others by stage
    same = {name: found[0] if all(entry == found[0] for entry in found) else {} for name, found in entries.items()}
    schema["properties"]["trainer"] |= {"properties": same, "additionalProperties": False}
    schema["allOf"] = [
        {
            "if": {"properties": {"stage": {"const": stage}}},
            "then": {
                "properties": {
                    "trainer": {
                        "properties": {
                            **{name: entry for name, entry in fields.items() if not same[name]},
                            **dict.fromkeys(sorted(same.keys() - fields.keys()), False),
                        }
                    }
                }
            },
        }
        for stage, fields in stages.items()
    ]


def _field_schema(field: TrainerField) -> dict[str, Any]:
    """Describes a trainer's field in JSON Schema."""
    names = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
    types = sorted({names.get(kind, "null") for kind in field.types})
    entry: dict[str, Any] = {"description": field.annotation} | ({"type": types} if types else {})
    entry |= field.range.schema() if field.range else {}
    if field.choices and set(types) <= {"string", "null"}:
        return entry | {"enum": [*field.choices, *([None] if "null" in types else [])]}
    return entry | ({"examples": list(field.choices)} if field.choices else {})
