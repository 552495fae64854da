"""Prompt sets: what they may say in a suite, and their rows as prompts, whichever benchmark's layout they have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from ..data_tools.conversations import conversation
from ..data_tools.dataset import DataReport, usable
from ..data_tools.endpoint import EndpointSpec
from ..data_tools.errors import DataError, RowError, listing
from ..data_tools.files import hash_json
from ..data_tools.sources import read_rows
from ..data_tools.spec import Count, NonEmpty, PositiveShare, Share, SourceSpec
from .thinking import TAGS

PLACEHOLDERS = ("folder", "run", "checkpoint", "step")
_SERVER = frozenset(EndpointSpec.model_fields)
PROMPTS = Path(__file__).parent / "prompts"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]  # it becomes part of a file's name

_IDS = ("id", "prompt_id", "question_id", "uid")
_CATEGORIES = ("category", "cluster", "dataset")
ASKED = ("turns", "messages", "prompt", "instruction")
"""The columns of which the first that a row has says what the user says."""
_REFERENCES = ("reference", "references", "reference_answer")


class PromptsSpec(EndpointSpec):
    """Prompts that every checkpoint is to answer once; the endpoint's keys go with ``backend: endpoint`` alone."""

    name: Name
    """What the answers are called."""
    path: str
    """A prompt set that comes with posttrain (`chat`), a file, folder or pattern (relative to the suite), or a Hub
    id."""
    split: str = "train"
    """Of a Hub data set, or of a folder with files for each split."""
    subset: str | None = None
    """Of a Hub data set."""
    revision: str | None = None
    """Of a Hub data set."""
    columns: dict[str, str] | None = None
    """Columns to rename, old name to new."""
    references: str | None = None
    """A file of reference answers in MT-bench's layout, joined by id."""
    limit: Count | None = None
    """The first so many prompts only."""
    system: str | None = None
    """A system message for prompts that have none."""
    max_new_tokens: Count = 256
    """Tokens of an answer at most, for each turn."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    top_p: PositiveShare = 1.0
    """The mass of the likeliest tokens that are drawn from."""
    samples: Count = 1
    """Answers to each prompt; more than one needs a temperature."""
    seed: int | None = None
    """Of the draws; the suite's by default."""
    chat: Literal["auto", "always", "never"] | None = None
    """Overrides the suite's `chat`."""
    plain: Literal["dialogue", "bare"] = "dialogue"
    """How a model without a chat template is asked: as a `dialogue` of `User:` and `Assistant:`, or with the `bare`
    prompt, which it continues to the end of the line."""
    thinking: tuple[tuple[str, str], ...] = Field(default=TAGS, strict=False)
    """Opening and closing tags around thoughts, which are kept in the record and not judged; an empty list judges
    everything."""
    max_bad_share: Share = 0.02
    """The largest share of the rows that may be unusable, and of the prompts that a server may reject."""
    backend: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """`transformers` or `vllm` in this process, or `endpoint`: a server with OpenAI's chat protocol that has the
    checkpoint loaded and applies the chat template itself."""
    batch_size: Count | None = None
    """Prompts at a time in this process; the suite's by default."""
    base_url: Annotated[str, Field(pattern=r"^(https?://.*)?$")] = ""
    """The endpoint, such as `http://localhost:8000/v1`."""
    model: NonEmpty = "{folder}"
    """The name that the endpoint knows the checkpoint by; `{folder}`, `{run}`, `{checkpoint}` and `{step}` stand for
    the checkpoint's own. The folder is what `vllm serve` and `transformers serve` say."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples of greedy answers are all the same: give a `temperature` above 0")
        if any(not tag.strip() for pair in self.thinking for tag in pair):
            raise ValueError("`thinking` holds an empty tag")
        given = sorted(_SERVER & self.model_fields_set)
        if self.backend != "endpoint" and given:
            raise ValueError(f"`{given[0]}` goes with `backend: endpoint`")
        if self.backend == "endpoint":
            if not self.base_url:
                raise ValueError("`backend: endpoint` needs the `base_url` of the server")
            for key in sorted({"chat", "plain"} & self.model_fields_set):
                raise ValueError(f"`{key}` is the server's to decide: drop it")
            self.server(**dict.fromkeys(PLACEHOLDERS, "x"))
        return self

    def server(self, **checkpoint: Any) -> EndpointSpec:
        """Returns the endpoint, with a checkpoint's own words in the model's name.

        Raises:
            ValueError: The name holds another placeholder.
        """
        try:
            model = self.model.format(**checkpoint)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"`model` may hold {known}, not '{self.model}'") from error
        shared = {name: getattr(self, name) for name in _SERVER - {"model"}}
        return EndpointSpec(**shared, model=model)

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the answers."""
        return self.name

    def source(self) -> SourceSpec:
        """Returns the prompts as a data source."""
        keys = {"path", "split", "subset", "revision", "columns"}
        return SourceSpec(**self.model_dump(include=keys & self.model_fields_set))


@dataclass(frozen=True)
class Prompt:
    """Something to answer.

    Attributes:
        id: Its name in the set.
        key: A hash of the system message and the turns: what joins answers of different models.
        turns: What the user says; the model answers each before the next is said.
        category: What it is about, or None.
        references: A right answer for each turn, empty where there is none; or None.
        system: The system message, or None.
    """

    id: str
    key: str
    turns: tuple[str, ...]
    category: str | None
    references: tuple[str, ...] | None
    system: str | None


def prompt_key(turns: tuple[str, ...], system: str | None = None) -> str:
    """Returns the hash of everything that is asked: 16 hexadecimal digits."""
    return hash_json([system or None, list(turns)])


def load_prompts(spec: PromptsSpec) -> tuple[list[Prompt], tuple[str, ...], bool]:
    """Reads a prompt set, in its order.

    A row is own (``id``, with ``prompt``, ``turns`` or ``messages``), MT-bench's (``question_id``, ``turns``),
    AlpacaEval's (``instruction``) or Arena-Hard's (``uid`` or ``question_id``, ``prompt`` or ``turns``). Where rows
    have no id, a hash of the content stands for it. A prompt that is there again, under whatever id, is dropped and
    counted: its answers would count twice.

    Returns:
        The prompts, notes of what was dropped, and whether the limit leaves prompts out.

    Raises:
        DataError: The set cannot be read, one id stands for different prompts, or too many rows are unusable.
    """
    source = spec.source()
    answers, notes = _read_references(spec.references) if spec.references else ({}, [])
    report = DataReport(source=source.title)
    found: dict[str, tuple[Prompt, str]] = {}
    keys: set[str] = set()
    twice, clashes, is_limited = 0, [], False
    read = partial(_prompt_of, system=spec.system, answers=answers)
    for where, prompt in usable(read_rows(source, Path.cwd()), read, report, spec.max_bad_share):
        known = found.get(prompt.id)
        if known is not None and known[0].key != prompt.key:
            clashes.append(f"'{prompt.id}' at {known[1]} and {where}")
        elif prompt.key in keys:
            twice += 1
        elif spec.limit is None or len(found) < spec.limit:
            found[prompt.id] = (prompt, where)
            keys.add(prompt.key)
        else:
            is_limited = True
    if clashes:
        what = f"an id stands for different prompts: {listing(clashes, 5)}"
        raise DataError(what, where=source.title, hint="give each prompt an id of its own")
    report.check(spec.max_bad_share)
    if (answers or notes) and not answers.keys() & found.keys():
        hint = "ids join the two files"
        raise DataError("no reference there has the id of a prompt", where=str(spec.references), hint=hint)
    dropped = [f"{count} prompts dropped: {reason}" for reason, count in report.dropped.items()]
    dropped += [f"{twice} prompts dropped: there already"] if twice else []
    return [prompt for prompt, _ in found.values()], (*dropped, *notes), is_limited


def _read_references(path: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Reads a file of reference answers by id, and notes how many rows hold none."""
    report = DataReport(source=path)
    rows = read_rows(SourceSpec(path=path), Path.cwd())
    answers = dict(answer for _, answer in usable(rows, answer_of, report))
    bad = report.rows - report.kept
    return answers, [f"{bad} of {report.rows} references cannot be read"] if bad else []


def _prompt_of(row: Mapping[str, Any], *, system: str | None, answers: Mapping[str, tuple[str, ...]]) -> Prompt:
    """Reads a row of any of the layouts, with its own references unless a file has some; else raises RowError."""
    turns, own_system = turns_of(row)
    system = own_system or (system if system and system.strip() else None)
    given = next((row[name] for name in _IDS if row.get(name) is not None), None)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise RowError("the id is neither text nor a whole number", type(given).__name__)
    category = next((row[name] for name in _CATEGORIES if isinstance(row.get(name), str) and row[name]), None)
    references = _references(row, len(turns))
    key = prompt_key(turns, system)
    identity = key[:12] if given is None or given == "" else str(given)
    references = _padded(answers[identity][: len(turns)], len(turns)) if identity in answers else references
    return Prompt(identity, key, turns, category, references, system)


def turns_of(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Returns what the user says in a row of any of the layouts, and the row's system message.

    Raises:
        RowError: It is no prompt; the reason says why.
    """
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError("column 'system' is not text", type(system).__name__)
    name = next((n for n in ASKED if row.get(n) is not None), None)
    if name is None:
        raise RowError("no column 'prompt', 'turns', 'messages' or 'instruction'")
    value = row[name]
    if isinstance(value, str):
        given = row.get("input") if name == "instruction" else None
        value = [f"{value}\n\n{given}" if isinstance(given, str) and given.strip() else value]
    if not isinstance(value, list) or not value:
        raise RowError(f"column '{name}' holds no turns", type(value).__name__)
    if all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        value, system = _of_messages(value, system)
    turns: list[str] = []
    for turn in value:
        text: Any = turn.get("content") if isinstance(turn, dict) else turn
        if not isinstance(text, str):
            raise RowError("a turn is not text")
        if not text.strip():
            raise RowError("a turn is empty")
        turns.append(text)
    return tuple(turns), system if system and system.strip() else None


def _of_messages(value: list[Any], system: str | None) -> tuple[list[str], str | None]:
    """Splits a conversation; its last answer, if it ends with one, is left out."""
    messages = conversation(value, sharegpt=True, system=system)
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise RowError("no user message")
    if any(message["role"] != "user" for message in messages):
        raise RowError("an answer is given within the prompt", "the model answers each turn itself: give `turns`")
    return [message["content"] for message in messages], system


def _references(row: Mapping[str, Any], turns: int) -> tuple[str, ...] | None:
    """Returns the reference of each turn; a row that has fewer has them for its first turns."""
    value = next((row[name] for name in _REFERENCES if row.get(name) is not None), None)
    if value is None:
        return None
    texts = [value] if isinstance(value, str | int | float) else value
    if not isinstance(texts, list) or not all(isinstance(text, str | int | float) for text in texts):
        raise RowError("a reference is not text", type(value).__name__)
    if len(texts) > turns:
        raise RowError("more references than turns", f"{len(texts)} and {turns}")
    found = tuple(text if isinstance(text, str) else json.dumps(text) for text in texts)
    return _padded(found, turns)


def _padded(references: tuple[str, ...], turns: int) -> tuple[str, ...] | None:
    """Returns a reference for each turn, empty for those at the end that have none; None if there is none at all."""
    return references + ("",) * (turns - len(references)) if any(text.strip() for text in references) else None


def answer_of(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Reads the id, empty if there is none, and the answer to each turn from a row of any benchmark's layout.

    Raises:
        RowError: There is no answer.
    """
    identity = next((row[name] for name in _IDS if isinstance(row.get(name), str | int)), "")
    texts: Any = None
    for read in _ANSWERS:
        try:
            texts = read(row)
            break
        except (KeyError, TypeError, IndexError):
            continue
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RowError("no answer")
    return str(identity), tuple(texts)


def _plain_turn(turn: Any) -> Any:
    """Returns the text of a turn: text itself, ``{content: text}``, or ``{content: {answer: text}}``."""
    content = turn["content"] if isinstance(turn, dict) else turn
    return content["answer"] if isinstance(content, dict) else content


_ANSWERS: tuple[Callable[[Mapping[str, Any]], Any], ...] = (
    lambda row: [_plain_turn(turn) for turn in row["choices"][0]["turns"]],
    lambda row: [_plain_turn(turn) for turn in row["messages"] if turn["role"] == "assistant"],
    lambda row: [row["output"]] if isinstance(row["output"], str) else row["output"],
    lambda row: [row["reference"]] if isinstance(row["reference"], str) else row["reference"],
)
