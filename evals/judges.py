"""Who judges, and what: a judge's folder (``judge.yaml``, ``prompt.jinja``) and a suite's ``judges:`` entries."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from ..chat_templates.errors import did_you_mean
from ..data_tools.endpoint import EndpointSpec
from ..data_tools.errors import SpecError
from ..data_tools.functions import function_file
from ..data_tools.spec import ClosedSection, Count, NonEmpty, Share, word_for
from ..data_tools.specfile import Document, KeyPath, load_document, validate
from .prompt_sets import Name

JUDGES = Path(__file__).parent / "judges"
FILE = "judge.yaml"
PROMPT = "prompt.jinja"
DATA_FILES = (".json", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz")
"""How the name of a file of answers ends."""
Backend = Literal["endpoint", "model", "reward", "rules"]
_PROMPTED = ("endpoint", "model")


class Labels(ClosedSection):
    """What the judge says."""

    first: NonEmpty = "A"
    """The answer that it saw first is better."""
    second: NonEmpty = "B"
    """The other is."""
    tie: NonEmpty = "C"
    """Neither is."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        plain = {" ".join(unicodedata.normalize("NFKC", label).split()).casefold() for label in self.all}
        if len(plain) < 3 or "" in plain:
            raise ValueError("the three labels must differ, whatever their case or width")
        return self

    @property
    def all(self) -> tuple[str, str, str]:
        """Returns the labels of first, second and tie."""
        return self.first, self.second, self.tie


class JudgeSettings(EndpointSpec):
    """All that may be said of a judge, in its folder or, over that, in a suite's entry."""

    model: str = ""
    """The model's name at the endpoint; else a folder, a Hub id, or ``@step``."""
    base_url: Annotated[str, Field(pattern=r"^(https?://.*)?$")] = ""
    """The endpoint, such as ``http://localhost:8000/v1``."""
    kind: Literal["pairwise", "rating"] = "pairwise"
    """``pairwise`` compares two answers, ``rating`` gives a mark to one."""
    backend: Backend = "endpoint"
    """``endpoint``: a server with OpenAI's chat protocol. ``model``: a language model in this process. ``reward``: a
    reward model. ``rules``: a function; it is no judge, and every row says so."""
    rule: str | None = None
    """``package.module:name`` or ``file.py:name`` of ``rule(prompt: dict, answer: str) -> float``."""
    system: str | None = None
    """A system message before the prompt."""
    labels: Labels = Labels()
    """What a pairwise judge says."""
    answer_by: Literal["auto", "logprobs", "text"] = "auto"
    """``logprobs`` reads the labels' probabilities, ``text`` what the judge wrote; ``auto`` takes the former where it
    can be had, which a server is probed for."""
    orders: Literal["both", "one"] = "both"
    """``both`` shows each pair twice, once in either order; ``one`` saves half of it, in an order that is drawn for
    each prompt."""
    repeats: Count = 1
    """How often each question is asked; averaged within the prompt."""
    temperature: NonNegativeFloat = 0.0
    """Of a judge that writes; 0 is greedy."""
    max_tokens: Count = 1024
    """Tokens that it may write."""
    seed: int = 0
    """Of its sampling, and of what is drawn for it."""
    pattern: str | None = None
    """A regular expression whose first group is the label or the mark; of several matches the last counts. By default
    ``[[label]]``."""
    scale: tuple[int, int] = (1, 10)
    """The lowest and the highest mark."""
    reference: Literal["use", "never"] = "use"
    """``use`` shows the judge a right answer where the prompt has one."""
    max_characters: Annotated[int, Field(ge=100)] = 20_000
    """Of an answer's turn that the judge sees; the rest is cut, visibly, and counted."""
    batch_size: Count = 8
    """Questions at a time for a model in this process."""
    leaderboard: bool | None = None
    """Whether its figures are ranked; by default those of all but ``rules``."""
    jury: tuple["JurorSpec", ...] = ()
    """Judges that judge instead, each under its own name; the verdict is theirs together."""
    vote: Literal["mean", "majority"] = "mean"
    """What makes the jury's verdict: the ``mean`` of its members' preferences or marks, or of preferences the
    ``majority``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale[0] >= self.scale[1]:
            raise ValueError("`scale` goes from the lowest mark to a higher one")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"`pattern` is no regular expression: {error}") from error
            if groups < 1:
                raise ValueError("`pattern` needs a group around the label or the mark: \\[\\[(A|B|C)\\]\\]")
        return self


class JurorSpec(JudgeSettings):
    """A member of a jury: a judge's folder, or the jury's own prompt with another model."""

    judge: str | None = None
    """A judge's name or folder; the jury's own by default."""
    name: Name | None = None
    """What its judgments are signed with; the judge's name, or the model's, by default."""

    _plain_name = model_validator(mode="before")(word_for("judge"))

    @model_validator(mode="after")
    def _no_jury(self) -> Self:
        if self.jury:
            raise ValueError("a member of a jury has no jury of its own")
        return self


JudgeSettings.model_rebuild()


class JudgeSpec(JudgeSettings):
    """A judge's ``judge.yaml``."""

    description: str = ""
    """What it judges, in a line."""


class PairBudget(ClosedSection):
    """So many judgments, spent where they narrow the intervals most."""

    budget: Count


class JudgeChoice(JudgeSettings):
    """A judge by its name or folder, and what is to be otherwise than its ``judge.yaml`` says."""

    judge: str
    """A judge of ``evals/judges``, or a folder (relative to the suite)."""

    @cached_property
    def members(self) -> tuple["Judge", ...]:
        """Returns the judge, or the members of its jury, as they were when the suite was read.

        An edit of a judge's folder, like one of the suite itself, counts from the next command on: a watch judges by
        what it was started with.
        """
        return load_judges(self)


class JudgingSpec(JudgeChoice):
    """An entry of a suite's ``judges:``."""

    prompts: str
    """The name of a prompt set of the suite."""
    name: Name | None = None
    """What the leaderboard calls it; ``<prompts>-<judge>`` by default."""
    baseline: str | None = None
    """Whom every candidate is compared with: ``@step`` or a run folder for its final model, a checkpoint's folder, or a
    file of answers (AlpacaEval's ``instruction`` and ``output``), joined by prompt."""
    pairs: Literal["baseline", "all"] | PairBudget = "baseline"
    """``baseline``; ``all`` pairs of models; or ``{budget: N}`` judgments."""
    max_rejected_share: Share = 0.25
    """The largest share of the questions about a candidate that a server may reject (too long for its context,
    filtered): with more, there is no score. They count as not judged."""
    canary: bool | Count | None = None
    """Prompts on which an answer that says nothing is judged against the baseline, once for all candidates; it must
    lose. True is a tenth of them, from 5 to 50; the default with a baseline."""

    @field_validator("pairs", mode="before")
    @classmethod
    def _known_pairs(cls, value: Any) -> Any:
        if value not in ("baseline", "all") and not isinstance(value, dict | PairBudget):
            raise ValueError(f"must be `baseline`, `all` or {{budget: N}}, not {value!r}")
        return value

    @property
    def title(self) -> str:
        """Returns what the leaderboard calls the entry."""
        return self.name or f"{self.prompts}-{Path(self.judge).name}"


@dataclass(frozen=True)
class Judge:
    """One judge, ready to be opened.

    Attributes:
        name: What its judgments are signed with.
        settings: Its folder's and the entry's, merged.
        prompt: The text of its template; empty for judges that read none.
        where: The template's path, for errors.
    """

    name: str
    settings: JudgeSettings
    prompt: str
    where: str

    @property
    def ordered(self) -> bool:
        """Says whether the verdict may depend on which answer is shown first."""
        return self.settings.backend in _PROMPTED

    @property
    def by_end(self) -> bool:
        """Says whether the verdict depends on whether an answer is finished or was cut."""
        return self.settings.backend == "reward"

    @property
    def leaderboard(self) -> bool:
        """Says whether its figures are ranked."""
        given = self.settings.leaderboard
        return self.settings.backend != "rules" if given is None else given


def judge_names() -> list[str]:
    """Returns the names of the judges that come with posttrain."""
    return sorted(path.parent.name for path in JUDGES.glob(f"*/{FILE}"))


def load_judges(entry: JudgeChoice) -> tuple[Judge, ...]:
    """Reads the judge of an entry, or the members of its jury; see :attr:`JudgeChoice.members`.

    Raises:
        SpecError: A judge's folder or file is wrong; every problem.
    """
    base = Path()
    folder, settings = _read(_find(entry.judge, base))
    settings = _over(settings, entry, base)
    if not settings.jury:
        return (_judge(folder.name, folder, settings),)
    judges = []
    for juror in settings.jury:
        where, own = (folder, settings) if juror.judge is None else _read(_find(juror.judge, base))
        own = _over(own, juror, base, jury=(), vote=settings.vote)
        name = juror.name or (where.name if juror.judge else _short(own))
        judges.append(_judge(name, where, own))
    names = [judge.name for judge in judges]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError([f"jury: the name '{twice[0]}' stands twice; give one of them another `name`"])
    kinds = {judge.settings.kind for judge in judges}
    if len(kinds) > 1:
        raise SpecError(["jury: its members must all compare, or all rate"])
    if "rating" in kinds and len({judge.settings.scale for judge in judges}) > 1:
        raise SpecError(["jury: its members must all rate on one `scale`, since their marks are averaged"])
    return tuple(judges)


def _find(judge: str, base: Path) -> Path:
    own = base / judge
    if (own / FILE).is_file():
        return own
    if "/" not in judge and (JUDGES / judge / FILE).is_file():
        return JUDGES / judge
    hint = did_you_mean(judge, judge_names()) or f"known judges: {', '.join(judge_names())}; or give a folder"
    raise SpecError([f"there is no judge '{judge}', and no folder {own} with a {FILE}; {hint}"])


def _read(folder: Path) -> tuple[Path, JudgeSettings]:
    document = load_document(folder / FILE)
    return folder, _over(JudgeSettings(), validate(JudgeSpec, document), folder)


def _over(settings: JudgeSettings, given: JudgeSettings, base: Path, **more: Any) -> JudgeSettings:
    """Lays what was given over settings; its paths become absolute."""
    said = {name: getattr(given, name) for name in given.model_fields_set & JudgeSettings.model_fields.keys()}
    return settings.model_copy(update=said | _paths(given, base) | more)


def _paths(settings: JudgeSettings, base: Path) -> dict[str, str]:
    """Returns the model and the rule, where they are paths, as they are from anywhere."""
    found = {}
    if settings.model and (base / settings.model).is_dir():
        found["model"] = str((base / settings.model).resolve())
    if settings.rule and (file := function_file(settings.rule)):
        found["rule"] = settings.rule.replace(file, str((base / file).resolve()), 1)
    return found


def _short(settings: JudgeSettings) -> str:
    """Names a judge after what answers."""
    return re.sub(r"[^\w.\-]+", "-", (settings.rule or settings.model).rstrip("/").rpartition("/")[2]).strip("-") or "?"


def _judge(name: str, folder: Path, settings: JudgeSettings) -> Judge:
    path = folder / PROMPT
    if settings.backend not in _PROMPTED:
        return Judge(name, settings, "", str(path))
    try:
        return Judge(name, settings, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot read the judge's prompt: {error}"]) from error


def problems(entry: JudgingSpec, judges: tuple[Judge, ...]) -> list[tuple[KeyPath, str, str | None]]:
    """Returns what an entry lacks or says in vain, as the key, what is wrong, and what to do."""
    found: list[tuple[KeyPath, str, str | None]] = []
    for judge in judges:
        found += lacks(judge)
    if judges[0].settings.kind == "rating":
        for key in ("baseline", "pairs", "canary"):
            if key in entry.model_fields_set:
                found.append(((key,), "a rating compares with nobody", "drop it, or take a pairwise judge"))
        if judges[0].settings.vote == "majority":
            found.append((("vote",), "a majority takes a side, and a mark has none", "drop it: marks are averaged"))
    elif entry.baseline is None and entry.pairs == "baseline":
        found.append((("baseline",), "this key is required", "or say `pairs: all`"))
    if entry.canary and entry.baseline is None:
        found.append((("canary",), "the null answer is judged against a baseline", "give one, or drop `canary`"))
    return found


def lacks(judge: Judge) -> list[tuple[KeyPath, str, str | None]]:
    """Returns what one judge lacks or is told in vain, as :func:`problems`."""
    settings, found = judge.settings, []
    needs = {"endpoint": ("model", "base_url"), "model": ("model",), "reward": ("model",), "rules": ("rule",)}
    for key in needs[settings.backend]:
        if not getattr(settings, key):
            found.append(((key,), f"the judge '{judge.name}' ({settings.backend}) needs `{key}`", "give it here"))
    if settings.backend in ("reward", "rules") and "orders" in settings.model_fields_set and settings.orders == "both":
        found.append((("orders",), f"a {settings.backend} judge sees no order", "drop `orders`"))
    if settings.kind == "rating" and settings.backend == "endpoint" and settings.answer_by == "logprobs":
        hint = "servers give one token's probabilities, and 10 may be two tokens; say `text`, or `auto`"
        found.append((("answer_by",), "a server's rating is read from its text", hint))
    return found


def resolve_judging(entry: JudgingSpec, base: Path, document: Document, index: int, prompts: list[str]) -> JudgingSpec:
    """Makes an entry's paths absolute and notes everything that is wrong with it or with its judge."""
    where: KeyPath = ("judges", index)
    if entry.prompts not in prompts:
        hint = did_you_mean(entry.prompts, prompts) or f"prompt sets of the suite: {', '.join(prompts) or 'none'}"
        document.problem((*where, "prompts"), f"there is no prompt set '{entry.prompts}'", hint)
    if entry.baseline is not None:
        if entry.baseline.endswith(DATA_FILES) and not (base / entry.baseline).is_file():
            document.problem((*where, "baseline"), f"there is no file {base / entry.baseline}")
        entry = entry.model_copy(update={"baseline": str((base / entry.baseline).resolve())})
    # From here on the entry is independent of where its suite lies.
    try:
        jury: Any = tuple(j.model_copy(update=_paths(j, base) | _place(j.judge, base)) for j in entry.jury)
        update = _paths(entry, base) | _place(entry.judge, base) | ({"jury": jury} if jury else {})
        entry = entry.model_copy(update=update)
        judges = entry.members
    except SpecError as error:
        for problem in error.problems:
            document.problem((*where, "judge"), problem)
        return entry
    for key, what, hint in problems(entry, judges):
        document.problem((*where, *key), what, hint)
    return entry


def _place(judge: str | None, base: Path) -> dict[str, Any]:
    return {"judge": str(_find(judge, base).resolve())} if judge else {}
