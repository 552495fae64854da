"""What a recipe's ``data:`` section may say: the sources, how to read their rows, how to mix them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from ..chat_templates.errors import did_you_mean
from .mapping import syntax_problem

if TYPE_CHECKING:
    from .mix import Phase

Kind = Literal["text", "messages", "prompt", "prompt_completion", "preference", "unpaired", "classification"]
FormatName = Literal[
    "text", "messages", "sharegpt", "alpaca", "prompt", "prompt_completion", "preference", "unpaired", "classification"
]
FileType = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt"]

# The keys that make up a mapping of each kind: those it must have, and those it may have besides.
MAPPINGS: dict[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "messages": (frozenset({"messages"}), frozenset({"system", "tools"})),
    "text": (frozenset({"text"}), frozenset()),
    "classification": (frozenset({"text", "label"}), frozenset({"text_pair"})),
    "prompt_completion": (frozenset({"prompt", "completion"}), frozenset({"system", "tools"})),
    "unpaired": (frozenset({"prompt", "completion", "label"}), frozenset({"system", "tools"})),
    "preference": (frozenset({"prompt", "chosen", "rejected"}), frozenset({"margin", "system", "tools"})),
    "prompt": (frozenset({"prompt"}), frozenset({"system"})),
}
_MAPPING_KEYS = tuple(sorted({key for pair in MAPPINGS.values() for keys in pair for key in keys}))
_CONVERSATIONAL: tuple[FormatName, ...] = ("messages", "sharegpt", "alpaca")


def _check_template(source: str) -> str:
    """Refuses text that is not a Jinja template, at the time the recipe is read."""
    problem = syntax_problem(source)
    if problem:
        raise ValueError(f"not a valid template: {problem}")
    return source


# The check runs only on templates that are given, so a recipe without a mapping never imports Jinja.
Template = Annotated[str, AfterValidator(_check_template)]


# What fields may hold, where pydantic has no name for it.
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


def word_for(key: str) -> Callable[[Any], Any]:
    """Returns what lets a word alone stand for a section that needs no more than that word under a key."""
    return lambda value: {key: value} if isinstance(value, str) else value


class ClosedSection(BaseModel):
    """A section of a YAML file: no unknown keys, no change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class Section(ClosedSection):
    """One without any coercion of types."""

    model_config = ConfigDict(strict=True)


class MessageTemplate(Section):
    """One message of a mapping, each part a sandboxed Jinja template over the row's columns."""

    role: Template
    """`user`, `assistant`, `system` or `tool`, or a template that gives one of them."""
    content: Template = ""
    """The text of the message, such as `{{ question }}`."""
    tool_calls: Template | None = None
    """The calls of an assistant message: a template that gives a list, or its JSON."""
    train: bool | None = None
    """Whether the message carries loss, if it is an assistant message; by default `data.loss_on` decides."""

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if not self.content and self.tool_calls is None:
            raise ValueError("a message needs `content` or `tool_calls`")
        return self


def _string_keys(value: Any) -> Any:
    """Lets a file without a header be described as ``{0: text, 1: label}`` from Python too."""
    return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value


class SourceSpec(Section):
    """Where rows come from, and how each becomes a training example.

    How a row is read is said by one of: ``format`` (a known layout of columns), a mapping (templates over the
    columns), or neither (the layout is inferred from the columns).
    """

    path: NonEmpty
    """A file, a folder or a glob, relative to the recipe; or a dataset's id on the Hub, `org/name`."""
    name: str | None = None
    """What reports call the source; its path if not given."""
    split: str = "train"
    """The split of a Hub dataset or of a folder with split files."""
    subset: str | None = None
    """The configuration of a Hub dataset that has several."""
    revision: str | None = None
    """The branch, tag or commit of a Hub dataset."""
    file_type: FileType | None = None
    """What the files are, where their names say otherwise or nothing, such as `tsv` of a table that is called .txt."""
    format: FormatName | None = None
    """The layout of the columns."""

    messages: Annotated[list[MessageTemplate], Field(min_length=1)] | None = None
    """Mapping: the conversation."""
    text: Template | None = None
    """Mapping: plain text, or with `label` the text to classify."""
    text_pair: Template | None = None
    """Mapping: the second text of a pair to classify."""
    prompt: Template | None = None
    """Mapping: the prompt, for `completion`, for `chosen` and `rejected`, or alone."""
    completion: Template | None = None
    """Mapping: the answer to `prompt`."""
    chosen: Template | None = None
    """Mapping: the preferred answer."""
    rejected: Template | None = None
    """Mapping: the other answer."""
    margin: Template | None = None
    """Mapping: by how much `chosen` is better, a number."""
    label: Template | None = None
    """Mapping: the class of `text`, or whether `completion` is wanted."""
    system: Template | None = None
    """A system message for rows that have none; left out where it renders empty."""
    tools: Template | None = None
    """Mapping: the tools that the model may call, a list or its JSON."""

    raw: bool = False
    """Leaves prompts and answers that are text without the chat template's roles, one after the other as they stand.
    By default they are a user's and an assistant's turn wherever there is a template."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The source's share of the tokens of the mixture, relative to the other sources."""
    row_weight: NonEmpty | None = None
    """A column of numbers from 0 up: how often each row is taken on average, by the mixture's need more or less."""
    limit: PositiveInt | None = None
    """Reads no more usable rows than this."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What one row of a .txt file is. The label of a document of `format: classification` is the name of its folder."""
    columns: Annotated[dict[str, str], BeforeValidator(_string_keys)] | None = None
    """New names for columns, `{name in the file: name that a format knows}`, such as `{question: prompt}`. In a CSV
    without a header the names are numbers from 0."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_section(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"a source is a section; write {{path: {value}}}")
        return value

    @field_validator("columns")
    @classmethod
    def _distinct_columns(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        names = list((value or {}).values())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two columns cannot both become '{twice[0]}'")
        return value

    @model_validator(mode="after")
    def _one_way_to_read(self) -> Self:
        keys = self.mapping_keys
        with_roles = [key for key in ("messages", "system", "tools") if key in keys]
        if self.raw and (with_roles or self.format in ("messages", "sharegpt")):
            what = f"`{with_roles[0]}`" if with_roles else f"`format: {self.format}`"
            raise ValueError(f"`raw: true` leaves text without roles, which {what} cannot do without; remove one")
        if self.format is not None:
            beside = [key for key in keys if key != "system" or self.format not in _CONVERSATIONAL]
            if beside:
                raise ValueError(
                    f"`format: {self.format}` reads fixed columns and cannot stand beside the mapping key"
                    f"{'s' if len(beside) > 1 else ''} {_quoted(beside)}; keep one or the other"
                )
        elif keys and keys != ("system",) and self.mapping_kind is None:
            kinds = "; ".join(" + ".join(sorted(required)) for required, _ in MAPPINGS.values())
            raise ValueError(f"the mapping keys {_quoted(keys)} make no one kind of row; a mapping is one of: {kinds}")
        return self

    @property
    def mapping_keys(self) -> tuple[str, ...]:
        """The mapping keys that are set, sorted."""
        return tuple(key for key in _MAPPING_KEYS if getattr(self, key) is not None)

    @property
    def mapping_kind(self) -> Kind | None:
        """The kind of row that the mapping makes, or None if the source has no mapping."""
        keys = set(self.mapping_keys)
        for kind, (required, optional) in MAPPINGS.items():
            if required <= keys <= required | optional:
                return kind
        return None

    @property
    def has_no_header(self) -> bool:
        """Whether ``columns`` names the columns of a table by number."""
        return bool(self.columns) and all(key.isdecimal() for key in self.columns or ())

    @property
    def title(self) -> str:
        """What reports call the source."""
        return self.name or self.path


def _quoted(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def as_list(value: Any) -> Any:
    """Lets one source stand for a list of it."""
    return [value] if isinstance(value, dict | str | SourceSpec) else value


Sources = Annotated[
    list[SourceSpec],
    BeforeValidator(as_list, json_schema_input_type=SourceSpec | list[SourceSpec]),
    Field(min_length=1),
]


class OrderSpec(Section):
    """In which order training rows come; one of its words alone stands for itself."""

    by: Literal["shuffled", "given", "length", "column"] = "column"
    """`shuffled`, anew in each epoch; `given`, source after source, each as it is written; `length`, by tokens;
    `column`, by a number in a column of the rows. All but the first are kept in training, in every epoch."""
    column: NonEmpty | None = None
    """The column of numbers; every source has it."""
    descending: bool = False
    """The longest, or the rows of the largest numbers, first."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("`column` names the numbers that rows are sorted by: say it, or another `by`")
        if self.descending and self.by not in ("length", "column"):
            raise ValueError(f"`descending` is for rows sorted by a number, not for `{self.by}`; remove it")
        return self

    @property
    def sentence(self) -> str:
        """What the order is, in words."""
        if self.by in ("shuffled", "given"):
            return {"shuffled": "shuffled, anew in each epoch", "given": "as given"}[self.by]
        number = "length" if self.by == "length" else f"column {self.column}"
        return f"by {number}, {'descending' if self.descending else 'ascending'}"


class PhaseSpec(Section):
    """A part of the training and the sources' shares of the tokens in it."""

    share: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The phase's part of all tokens, relative to the other phases."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
    """The share of the tokens of each source, by its name, relative to the others; a source that is not named has
    none."""
    to: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)] | None = None
    """The shares at the end of the phase, to which they go evenly; without it they stay as they are."""

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        for name in ("weights", "to"):
            weights = getattr(self, name)
            if weights is not None and not sum(weights.values()):
                raise ValueError(f"the `{name}` of a phase are all 0, and its tokens come from somewhere")
        return self


class DataSpec(Section):
    """The ``data:`` section: what to train on, what to evaluate the loss on, and what to do with odd rows."""

    train: Sources
    """One source, or a list of them that is mixed."""
    eval: Sources | None = None
    """Held-out rows, for the evaluation loss, as often as `trainer.eval_strategy` says: by default never."""
    max_bad_share: Share = 0.02
    """The largest share of a source's rows that may be dropped as unusable before the run stops."""
    too_long: Literal["drop", "truncate", "split", "error"] = "drop"
    """What happens to a row of more tokens than fit."""
    loss_on: Literal["all", "last"] = "all"
    """Which of the assistant's turns carry loss: all of them, or only the last of each conversation. Turns that a row
    marks to carry none (`train: false`, `weight: 0` and the like) never do."""
    max_prompt_length: PositiveInt | None = None
    """Prompts of more tokens than this are dropped: stages ppo, grpo, rloo, distill_on_policy."""
    mix: Literal["weights", "concat"] = "concat"
    """`concat` takes every row once; `weights`, the default once a source has a weight, mixes by tokens."""
    tokens: PositiveInt | None = None
    """The tokens of the mixture, all sources together: of one epoch, and `trainer.num_train_epochs` is 3 by default."""
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Mixes without weights: each source's share is its own tokens to the power 1/temperature, so that small sources,
    such as rare languages, get more than they have. 1 leaves the proportions."""
    schedule: Annotated[list[PhaseSpec], Field(min_length=1)] | None = None
    """Shares of the sources that change along the training: phases, one after the other."""
    order: Annotated[
        OrderSpec,
        BeforeValidator(word_for("by"), json_schema_input_type=OrderSpec | Literal["shuffled", "given", "length"]),
    ] = OrderSpec(by="shuffled")
    """In which order training rows come: `shuffled`, `given`, `length`, or a section such as `{column: difficulty}`."""
    seed: NonNegativeInt = 0
    """Decides the order of the mixture."""

    @model_validator(mode="before")
    @classmethod
    def _weights_imply_mix(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "mix" in data:
            return data
        sources = data.get("train")
        sources = sources if isinstance(sources, list) else [sources]
        weighted = any(
            "weight" in (source.model_fields_set if isinstance(source, SourceSpec) else source)
            for source in sources
            if isinstance(source, dict | SourceSpec)
        )
        return {**data, "mix": "weights"} if weighted else data

    @model_validator(mode="after")
    def _weights_count(self) -> Self:
        if self.mix == "concat" and any("weight" in source.model_fields_set for source in self.train):
            raise ValueError("`mix: concat` takes every row once, so a source's `weight` would do nothing; remove one")
        if self.temperature is not None and self.mix == "weights":
            raise ValueError("`temperature` decides the shares, and so do weights; remove one")
        for name in ("weight", "row_weight"):
            if any(name in source.model_fields_set for source in self.eval or ()):
                raise ValueError(f"`{name}` does nothing on an evaluation source: each row is read once; remove it")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule is None:
            return self
        others = {"a source's `weight`": self.mix == "weights", "`temperature`": self.temperature is not None}
        others["`order`"] = self.order.by != "shuffled"
        for other in (name for name, said in others.items() if said):
            raise ValueError(f"`schedule` decides the shares and the order, and so does {other}; remove one")
        titles = [source.title for source in self.train]
        if len(set(titles)) < len(titles):
            raise ValueError("`schedule` tells sources apart by their names: give each a `name` of its own")
        for number, phase in enumerate(self.schedule):
            for name in [*phase.weights, *(phase.to or ())]:
                if name not in titles:
                    hint = did_you_mean(name, titles) or f"they are called {_quoted(titles)}"
                    raise ValueError(f"`schedule`, phase {number + 1}: no source is called '{name}'; {hint}")
        for place, title in enumerate(titles):
            if not any(phase.start[place] + phase.end[place] for phase in self.phases):
                raise ValueError(f"`schedule` gives the source '{title}' no share in any phase; name it or remove it")
        return self

    @property
    def phases(self) -> "tuple[Phase, ...]":
        """The schedule, its weights in the order of the sources."""
        from .mix import Phase

        titles = [source.title for source in self.train]

        def weights(named: dict[str, float]) -> tuple[float, ...]:
            return tuple(named.get(title, 0.0) for title in titles)

        return tuple(
            Phase(phase.share, weights(phase.weights), weights(phase.weights if phase.to is None else phase.to))
            for phase in self.schedule or ()
        )

    @property
    def keeps_order(self) -> bool:
        """Whether the order of the prepared rows is that of the training."""
        return self.schedule is not None or self.order.by != "shuffled"
