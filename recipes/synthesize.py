"""`data synthesize`: rows that a model writes, by a method: prompts one after the other, checks, and what is kept.

A method is a YAML file: steps that ask the model, each with a prompt over a row's columns and the replies so far, and
the row that comes of them. Who is asked, the log of what was answered and what was paid are those of `data answers`.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, Tag, field_validator

from ..chat_templates.errors import InputError, did_you_mean
from ..data_tools.ask import (
    CUT,
    LOG,
    SETTINGS,
    AskSpec,
    Log,
    Query,
    Take,
    answerer,
    ask,
    claim,
    problem_of,
)
from ..data_tools.errors import DataError, RowError, listing
from ..data_tools.files import hash_json, locked, without_surrogates, write_atomic
from ..data_tools.mapping import as_text, compile_template
from ..data_tools.ngrams import words_in
from ..data_tools.plain_values import with_leaves
from ..data_tools.sources import read_rows, refuse_own
from ..data_tools.spec import Count, PositiveShare, Section, Template
from ..data_tools.specfile import load_document, validate
from ..data_tools.tool import Source
from ..data_tools.tool_report import PAGE, Table, Tally, ToolReport, percent, texts_of
from ..evals.judges import JudgeChoice
from .schema import VerifierName

if TYPE_CHECKING:
    from ..data_tools.endpoint import Reply
    from ..evals.judging.duels import DuelOutcome, Referee

ROWS = "rows.jsonl"
METHODS = Path(__file__).parent / "methods"
_WAVE = 64  # rows that are made together, before it is looked whether they are still new
_DRY = 0.1  # of the last so many: with fewer new ones, no more are made
_SHINGLE = 3  # words
_PARAMETERS = {"temperature", "top_p", "seed", "max_new_tokens"}  # that each row says it was made with


_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_AGAIN = "That reply cannot be used: {}. Write the whole reply again, and nothing else."


class StepSpec(Section):
    """One question to the model."""

    name: _Name
    """What later prompts and the row call the reply."""
    prompt: Template
    """What is asked: a template over the row's columns, earlier replies, `examples` and the call's `variables`."""
    system: Template | None = None
    """A system message before it."""
    pattern: str | None = None
    """What counts of the reply: the first group of this regular expression; a reply it is not found in is dropped."""
    fields: list[_Name] = Field(default_factory=list)
    """Keys of the JSON object that the reply must hold; later prompts and the row call their values by these names."""
    repair: bool = False
    """Whether a reply without the pattern or the fields is asked for once more, with what is wrong with it."""
    novel: bool = False
    """Whether a reply is dropped that is much like an earlier one or, where examples are shown, like what a row says;
    where a row is made of each, one that only says a column of its row again."""

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        if not groups:
            raise ValueError("has no group; put what counts in parentheses")
        return pattern


class MethodSpec(Section):
    """How rows are made."""

    description: str
    """What the rows are, in a line."""
    examples: NonNegativeInt = 0
    """Rows drawn to show the model for each row that is made; 0 makes a row of each row."""
    steps: Annotated[list[StepSpec], Field(min_length=1)]
    """What is asked, in order."""
    output: dict[str, Any]
    """The row's columns: templates, in lists and mappings if need be."""


class Check(Section):
    """What a row must pass."""

    verifier: VerifierName
    """`exact`: the reply is right to the letter; `numeric`: the last number is; `symbolic`: the last expression is, by
    math-verify; `tests`: Python passes tests in the sandbox."""
    of: str
    """The step, or the field of one, whose reply is checked."""
    column: str
    """The column of the rows that says what is right."""

    @property
    def name(self) -> str:
        """Returns what rows and page call it."""
        return self.verifier


class Preferred(JudgeChoice):
    """What a judge must prefer, whichever of the two it sees first."""

    of: str
    """The step, or the field of one, whose reply has to win."""
    over: str | None = None
    """The earlier step, field or column that it has to be better than. Without, samples of a row meet one another, and
    the last that won is kept (`keep: best`)."""
    request: Template
    """What both answer, as the judge is told: a template over what prompts may name, such as `{{ question }}`."""
    column: str | None = None
    """The column of the rows that says what is right, if the judge is to be shown it."""

    @property
    def name(self) -> str:
        """Returns what rows and page call it."""
        return Path(self.judge).name

    @property
    def title(self) -> str:
        """Returns what its record is called."""
        return "-".join((self.of, self.over or "best", self.name))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _kind_of_check(value: Any) -> str:
    judged = isinstance(value, Preferred) or (isinstance(value, dict) and "judge" in value)
    return "preferred" if judged else "checked"  # no keys, or errors would be taken for errors of theirs


_AnyCheck = Annotated[
    Annotated[Check, Tag("checked")] | Annotated[Preferred, Tag("preferred")], Discriminator(_kind_of_check)
]


class Synthesize(AskSpec):
    """Makes rows with a model, by a method: new instructions, harder ones, translations, revised answers, worked ones.

    Writes ``rows.jsonl``, in which `synthetic` says of each row the method, the model with prompts and parameters, what
    it was made from and what it passed, and a page with examples of what was kept and why the rest was not. What was
    answered is not asked again, but for answers that were cut at a lower `max_new_tokens`.
    """

    rows: Source
    """What is made something of: seeds, questions, texts; the method's prompts name its columns."""
    method: str
    """A method that comes with posttrain (self_instruct, evol_instruct, backtranslation, translation, personas,
    critique_revise, branch_solve_merge, chain_of_thought, self_play), or a YAML file of your own."""
    count: Count | None = None
    """How many rows are asked for, by methods that draw examples; fewer where nothing new comes any more."""
    samples: Count = 1
    """How often a row is made of each row, by methods that do not."""
    keep: Literal["all", "first", "best"] = "all"
    """Of several samples of a row that pass: `all` different ones, the `first`, or the `best` by a judge."""
    verify: Annotated[list[_AnyCheck], BeforeValidator(_listed)] = Field(default_factory=list)
    """What a row must pass: `{verifier: numeric, of: reasoning, column: answer}`, or that a judge prefers it in both
    orders: `{judge: pairwise, of: revision, over: first, request: "{{ prompt }}", model: …, base_url: …}`."""
    max_similarity: PositiveShare = 0.5
    """How much of its runs of three words (Jaccard) a new reply may share with an earlier one."""
    variables: dict[str, str] = Field(default_factory=dict)
    """What the prompts name beside columns, such as `{language: German}`."""

    @property
    def best(self) -> Preferred | None:
        """Returns the check by which samples of a row meet one another."""
        return next((one for one in self.verify if isinstance(one, Preferred) and one.over is None), None)

    def run(self, output_dir: Path) -> str:
        """Makes the rows; a killed call goes on where it was.

        Raises:
            PosttrainError: The method or the rows cannot be read, or the model cannot be asked.
        """
        from ..evals.checkpoints import model_hash
        from ..evals.models import load_language_model
        from ..evals.runs import locate

        method = load_method(self.method)
        self._check(method)
        refuse_own([self.rows], [output_dir / ROWS])
        unusable = Tally()
        rows = list(islice(self._usable(method, unusable), self.rows.limit))
        if not rows:
            hint = next((f"{some[0].where}: {some[0].detail}" for some in unusable.examples.values()), None)
            reason = "; ".join(unusable.counts) or "it has none"
            raise DataError(f"no row can be used: {reason}", where=self.rows.title, hint=hint)
        self._check_verify(method, rows)
        decides = {"model", "base_url", "temperature", "top_p", "seed"}
        own = {} if self.base_url else {"model": model_hash(locate(self.model))}
        with locked(output_dir / ".lock"):
            referees = self._referees(output_dir)
            claim(output_dir / SETTINGS, self.model_dump(include=decides) | own)
            log = _AnswerLog(output_dir / LOG, self.max_new_tokens)
            model: list[Any] = []

            def backend(queries: Sequence[Query], done: Collection[str], take: Take) -> None:
                if not model:
                    model.append(answerer(self, output_dir, lambda name: load_language_model(str(locate(name)))))
                model[0]([query for query in queries if query.key not in done], (), take)

            work = _Work(self, method, rows, log, backend, unusable, referees)
            work.run()
            for referee in work.referees.values():
                referee.close()
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in work.made)
            write_atomic(output_dir / ROWS, "".join(lines))
        report = work.report()
        report.write(output_dir)
        return f"{report.as_text()}\n{output_dir / PAGE}"

    def _usable(self, method: MethodSpec, unusable: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the rows that can be read and that the first prompt can be made of; counts the others."""
        first = compile_template(method.steps[0].prompt)
        for row in read_rows(self.rows, Path()):
            problem = row.problem
            if problem is None:
                try:
                    first(({"examples": [row.values]} if method.examples else row.values) | self.variables)
                except RowError as error:  # its own words may be about the call's names, not the row's
                    what = "as an example" if method.examples else method.steps[0].name
                    problem = RowError(f"{what}: {error.reason}", f"the row has {listing(row.values)}")
            if problem is None:
                yield row.where, row.values
            else:
                unusable.add(problem.reason, row.where, detail=problem.detail)

    def _check(self, method: MethodSpec) -> None:
        """Refuses arguments that do not fit the method, with what to say instead."""
        if method.examples and self.count is None:
            raise InputError(f"the method {self.method} makes as many rows as are asked for", hint="say --count")
        if not method.examples and self.count is not None:
            raise InputError(f"the method {self.method} makes a row of each row", hint="say --samples, not --count")
        if (self.samples > 1 or method.examples) and self.temperature == 0:
            raise InputError("greedy replies to one prompt are all the same", hint="give a temperature above 0")
        among = sum(isinstance(check, Preferred) and check.over is None for check in self.verify)
        if among != (self.keep == "best") or (among and (self.samples == 1 or method.examples)):
            hint = "say --keep best, --samples, and one `judge` without `over` in --verify; or none of them"
            raise InputError("the best of several samples of a row is what one judge prefers of them", hint=hint)

    def _referees(self, output_dir: Path) -> dict[str, "Referee"]:
        """Opens the judges, by the names of their checks.

        Raises:
            InputError: One cannot work, stands twice, or would be held to no budget where there is one.
        """
        found = {}
        for check in self.verify:
            if isinstance(check, Preferred):
                from ..evals.judging.duels import Referee  # numpy

                where = f"verify: {check.name}"
                if check.title in found:
                    raise InputError("compares the same twice", where=where, hint="drop one of the two")
                served = [one.settings for one in check.members if one.settings.backend == "endpoint"]
                if self.budget is not None and any(one.budget is None for one in served):
                    hint = "say `budget:` in the check: --budget is that of the model that writes"
                    raise InputError("the judge has no budget of its own", where=where, hint=hint)
                found[check.title] = Referee(check, check.title, output_dir)
        return found

    def _check_verify(self, method: MethodSpec, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Refuses, before anything is asked, to verify what is no reply, or by what the rows do not have."""
        names = [name for step in method.steps for name in (step.name, *step.fields)]
        for check in self.verify:
            if check.of not in names:
                raise InputError(f"verify: no step '{check.of}'", hint=f"steps: {', '.join(names)}")
            columns = [] if method.examples else rows  # examples are shown, and a new row has none of their columns
            if isinstance(check, Preferred):
                self._check_judge(check, names, columns)
                continue
            if check.column in names:
                if check.column == check.of or any(check.column in values for _, values in columns):
                    raise InputError(
                        f"verify: the column '{check.column}' is hidden by the step of that name",
                        hint="rename the step, or replies are checked by replies",
                    )
            elif check.column not in self.variables:
                where = next((where for where, values in columns if check.column not in values), None)
                if where is not None or method.examples:
                    raise DataError(f"has no column '{check.column}' to verify by", where=where or self.rows.title)

    def _check_judge(
        self, check: Preferred, names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """Refuses to let a judge compare a reply with itself, or with what is not there."""
        known = {*names, *self.variables}
        for what, key in (("over", check.over), ("column", check.column)):
            if key is None or (key in known and key != check.of):
                continue
            where = next((where for where, values in rows if key not in values), None)
            if key == check.of or where is not None or not rows:
                hint = f"steps: {', '.join(names)}; or a column of the rows"
                raise InputError(f"verify: {what} '{key}' is nothing to compare with", where=where, hint=hint)
        request, blank = compile_template(check.request), dict.fromkeys(known, "")
        for where, values in rows or [("", {})]:
            try:
                request(dict(values) | blank)
            except RowError as error:
                raise InputError(f"verify: request: {error.reason}", where=where or None, hint=error.detail) from error


def load_method(name: str) -> MethodSpec:
    """Reads a method: one that comes with posttrain, or a YAML file.

    Raises:
        PosttrainError: There is none, or it is wrong.
    """
    known = sorted(path.stem for path in METHODS.glob("*.yaml"))
    path = METHODS / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        hint = did_you_mean(name, known) or f"methods: {', '.join(known)}, or a YAML file"
        raise InputError(f"no method '{name}'", hint=hint)
    return validate(MethodSpec, load_document(path))


@dataclass
class _Item:
    """A row in the making.

    Attributes:
        where: The row that it is made of, or the examples that were shown.
        sample: Which of several.
        values: What prompts may name.
        prompts: What each step asked.
        dropped: Why it is not kept; empty while it may be.
        detail: What the reason is about.
        tokens: Of prompts and replies, as far as they were counted.
    """

    where: list[str]
    sample: int
    values: dict[str, Any]
    prompts: dict[str, str] = field(default_factory=dict)
    dropped: str = ""
    detail: str = ""
    tokens: int = 0


class _AnswerLog(Log):
    """The replies there are; those that were cut at a lower limit are asked for again.

    A line has the ``text``, the ``tokens`` of prompt and reply, and the ``limit`` that it was cut at, 0 of a whole one.
    """

    def __init__(self, path: Path, limit: int):
        from ..data_tools.endpoint import EMPTY, Reply

        cut_at: dict[str, int] = {}

        def read(line: dict[str, Any]) -> "Reply":
            cut_at[line["key"]] = line["limit"]
            prompt, completion = line["tokens"]
            finish = "length" if line["limit"] else "stop"
            return Reply("", line["text"], finish, prompt_tokens=prompt, completion_tokens=completion)

        def write(reply: "Reply") -> dict[str, Any] | None:
            if reply.error not in (None, EMPTY) and reply.finish != "length":
                return None
            cut = limit if reply.finish == "length" else 0
            return {"text": reply.text, "limit": cut, "tokens": [reply.prompt_tokens, reply.completion_tokens]}

        super().__init__(path, read, write, sync=False)
        for key, cut in cut_at.items():
            if 0 < cut < limit:
                del self.answers[key]


class _Known:
    """What has been said, by its runs of three words."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, frozenset[tuple[str, ...]]]] = []
        self._places: dict[tuple[str, ...], list[int]] = {}

    def add(self, text: str) -> None:
        """Adds a text."""
        shingles = _shingles(text)
        for shingle in shingles:
            self._places.setdefault(shingle, []).append(len(self._texts))
        self._texts.append((text, shingles))

    def like(self, text: str, most: float) -> str | None:
        """Returns an earlier text that shares more than so much (Jaccard), or None."""
        mine = _shingles(text)
        for place in sorted({place for shingle in mine for place in self._places.get(shingle, ())}):
            other, theirs = self._texts[place]
            if len(mine & theirs) > most * len(mine | theirs):
                return other
        return None


@dataclass
class _Work:
    """The making of all rows.

    Attributes:
        items: All that were begun.
        made: The rows that are kept.
        seen: Hashes of what no second row may be.
        known: What a new reply must not be like.
        repairs: Items of which an unreadable reply was asked for again.
        checked: How many came to the checks.
        right: How many of them passed.
        dried: Whether nothing new came any more.
    """

    spec: Synthesize
    method: MethodSpec
    rows: list[tuple[str, dict[str, Any]]]
    log: _AnswerLog
    backend: Callable[[Sequence[Query], Collection[str], Take], None]
    unusable: Tally
    referees: Mapping[str, "Referee"]
    items: list[_Item] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    known: _Known = field(default_factory=_Known)
    repairs: list[_Item] = field(default_factory=list)
    checked: int = 0
    right: int = 0
    dried: bool = False

    def run(self) -> None:
        """Makes the rows wave after wave, until there are enough or nothing new comes."""
        if self.method.examples:
            for text in texts_of([values for _, values in self.rows]):
                self.known.add(text)
        while wave := self._wave():
            for step in self.method.steps:
                self._ask(step, _left(wave))
            self.checked += len(_left(wave))
            for check in self.spec.verify:
                if check is not self.spec.best:
                    self._verify(check, _left(wave))
            self.right += len(_left(wave))
            if self.spec.best is not None:
                self._choose(self.spec.best, _left(wave))
            self._keep(_left(wave))
            self.items += wave
            last = self.items[-_WAVE:]
            if self.method.examples and len(last) == _WAVE and len(_left(last)) < _DRY * _WAVE:
                self.dried = True
                break

    def _wave(self) -> list[_Item]:
        """Returns the next rows in the making."""
        first = len(self.items)
        if not self.method.examples:  # wave by wave too, so that a budget that ends has made whole rows
            some = self.rows[first // self.spec.samples :][: max(1, _WAVE // self.spec.samples)]
            return [
                _Item([where], sample, values | self.spec.variables)
                for where, values in some
                for sample in range(self.spec.samples)
            ]
        wanted = (self.spec.count or 0) - len(self.made)
        if first >= 4 * (self.spec.count or 0):  # each of them had its chance four times
            return []
        return [self._shown(number) for number in range(first, first + min(_WAVE, wanted))]

    def _shown(self, number: int) -> _Item:
        draw = random.Random(f"{self.spec.seed}-{number}")
        shown = draw.sample(self.rows, min(self.method.examples, len(self.rows)))
        values = {"examples": [values for _, values in shown]} | self.spec.variables
        return _Item([where for where, _ in shown], number, values)

    def _ask(self, step: StepSpec, items: Sequence[_Item]) -> None:
        """Asks one step of all items, and keeps what counts of the replies; unreadable ones are asked for once more."""
        asked: list[tuple[_Item, list[dict[str, str]]]] = []
        for item in items:
            try:
                messages = [
                    {
                        "role": role,
                        "content": as_text(compile_template(text)(item.values), f"the {role} message").strip(),
                    }
                    for role, text in (("system", step.system), ("user", step.prompt))
                    if text is not None
                ]
            except RowError as error:
                item.dropped, item.detail = f"{step.name}: {error.reason}", error.detail
            else:
                item.prompts[step.name] = messages[-1]["content"]
                asked.append((item, messages))
        unread = self._round(step, asked)
        if step.repair:
            self.repairs += [item for item, _ in unread]
            for item, _ in unread:
                item.dropped = item.detail = ""
            self._round(step, unread)

    def _round(
        self, step: StepSpec, asked: Sequence[tuple[_Item, list[dict[str, str]]]]
    ) -> list[tuple[_Item, list[dict[str, str]]]]:
        """Asks of items their messages; returns those whose reply was unreadable, with what is to be asked of them."""
        queries = [(item, Query(hash_json([messages, item.sample]), messages, item.sample)) for item, messages in asked]
        answers = ask([query for _, query in queries], self.backend, self.log)
        unread = []
        for item, query in queries:
            reply = answers.get(query.key) or self.log.failed.get(query.key)
            if complaint := self._use(step, item, reply):
                said = [{"role": "assistant", "content": item.detail}, {"role": "user", "content": complaint}]
                unread.append((item, [*query.messages, *said]))
        return unread

    def _use(self, step: StepSpec, item: _Item, reply: "Reply | None") -> str | None:
        """Keeps what counts of a reply, or drops the item; returns what a whole but unreadable reply is to be told."""
        if reply is not None:
            item.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        text = reply.text.strip() if reply is not None else ""
        item.detail = text
        problem = problem_of(reply)
        unread = None
        try:
            found, end = _read(step, text)
        except RowError as error:
            unread, found, end = error, {}, len(text)
        if problem and not (problem == CUT and end < len(text)):  # what counts may stand before the cut
            item.dropped = f"{step.name}: {problem}"
        elif unread is not None:
            item.dropped = f"{step.name}: {unread.reason}"
            return _AGAIN.format(unread)
        elif step.novel and (like := self._like(item, found[step.name])) is not None:
            item.dropped, item.detail = (
                f"{step.name}: much like an earlier one",
                f"{found[step.name]}\n\nlike: {like}",
            )
        else:
            if step.novel:
                self.known.add(found[step.name])
            item.values = item.values | found
            item.detail = ""
        return None

    def _like(self, item: _Item, text: str) -> str | None:
        """Returns what a reply says again: in the same words what it was made of, or much of an earlier reply."""
        words = words_in(text)
        echoed = (said for said in texts_of(item.values) if words and words_in(said) == words)
        return next(echoed, None) or self.known.like(text, self.spec.max_similarity)

    def _verify(self, check: Check | Preferred, items: Sequence[_Item]) -> None:
        """Drops items that do not pass; what could not be decided is dropped under a name of its own."""
        from .verifiers import VERIFIERS

        if isinstance(check, Preferred):
            assert check.over is not None, "the one that compares samples chooses, and does not verify"
            outcomes = self._duels(check, [(item, item.values[check.over]) for item in items])
            for item, outcome in zip(items, outcomes, strict=True):
                if outcome.how != "won":
                    item.dropped = _lost(check, outcome, check.over)
                    item.detail = f"{item.values[check.of]}\n\n{outcome.why}"
            return
        right = [item.values[check.column] for item in items]
        try:
            verdicts = VERIFIERS[check.verifier]([item.values[check.of] for item in items], right)
        except (ValueError, SyntaxError) as error:
            where = f"{self.spec.rows.title}, column '{check.column}'"
            raise DataError(f"cannot be verified by {check.verifier}: {error}", where=where) from error
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict != 1:
                reason = "could not be decided" if verdict is None else "wrong"
                item.dropped, item.detail = f"{check.of}: {reason} by {check.verifier}", item.values[check.of]

    def _choose(self, check: Preferred, items: Sequence[_Item]) -> None:
        """Keeps of each row's samples the last that won: each new one meets the best so far, which else stays."""
        rows: dict[tuple[str, ...], list[_Item]] = {}
        for item in items:
            rows.setdefault(tuple(item.where), []).append(item)
        while met := [samples for samples in rows.values() if len(samples) > 1]:
            outcomes = self._duels(check, [(new, best.values[check.of]) for best, new, *_ in met])
            for samples, outcome in zip(met, outcomes, strict=True):
                loser = samples.pop(0 if outcome.how == "won" else 1)
                loser.dropped, loser.detail = _lost(check, outcome, "another sample"), loser.values[check.of]

    def _duels(self, check: Preferred, pairs: Sequence[tuple[_Item, Any]]) -> "list[DuelOutcome]":
        """Asks a judge whether what items say is better than something else."""
        from ..evals.judging.duels import Duel

        request = compile_template(check.request)
        duels = []
        for item, other in pairs:
            right = item.values[check.column] if check.column else None
            try:
                asked, other = ("" if said is None else str(said).strip() for said in (request(item.values), other))
                duels.append(Duel(asked, item.values[check.of], other, None if right is None else str(right)))
            except RowError as error:
                raise DataError(f"verify: request: {error.reason}", where=item.where[0], hint=error.detail) from error
        return self.referees[check.title].decide(duels)

    def _keep(self, items: Sequence[_Item]) -> None:
        """Makes rows of items, of equal ones of a row the first."""
        for item in items:
            try:
                row = _filled(self.method.output, item.values)
            except RowError as error:
                item.dropped, item.detail = f"output: {error.reason}", error.detail
                continue
            once = hash_json(item.where if self.spec.keep == "first" and not self.method.examples else row)
            if once in self.seen:
                item.dropped = "another sample is kept" if self.spec.keep == "first" else "the same as another"
                continue
            self.seen.add(once)
            item.detail = json.dumps(row, ensure_ascii=False, indent=1)
            made = {"method": self.spec.method, "model": self.spec.model, "from": item.where, "sample": item.sample}
            made |= {"prompts": item.prompts, "parameters": self.spec.model_dump(include=_PARAMETERS)}
            made |= {"verified": [check.name for check in self.spec.verify]} if self.spec.verify else {}
            self.made.append(row | {"synthetic": made})

    def report(self) -> ToolReport:
        """Returns what is said of the work: what was kept and dropped, with examples, and what a kept row cost."""
        tally, shown, kept = Tally(), Tally(), len(self.made)
        for item in self.items:
            if item.dropped:
                tally.add(item.dropped, item.where[0], item.detail or item.values.get(self.method.steps[-1].name, ""))
            else:
                shown.add("kept", item.where[0], item.detail)
        tokens = sum(item.tokens for item in self.items)
        summary = [f"{self.spec.rows.title} → {ROWS}: {kept:,} of {len(self.items):,} rows that were begun are kept"]
        if self.unusable.counts:
            counts = ", ".join(f"{reason} ({count:,})" for reason, count in self.unusable.counts.items())
            summary.append(f"rows of {self.spec.rows.title} that could not be used: {counts}")
        if self.repairs:
            mended = len(_left(self.repairs))
            summary.append(
                f"{len(self.repairs):,} unreadable replies were asked for again; {mended:,} of them are kept"
            )
        if self.spec.count is not None and kept < self.spec.count:
            tries = f"fewer than {_DRY:.0%} of the last were kept" if self.dried else "four were begun for each"
            cut = (
                "; a higher max_new_tokens would leave more whole"
                if any(reason.endswith(CUT) for reason in tally.counts)
                else ""
            )
            summary.append(f"{self.spec.count:,} were asked for; no more were begun, since {tries}{cut}")
        cost = [["tokens of prompts and replies", tokens], ["of them for a kept row", tokens / kept if kept else "–"]]
        if self.spec.verify:
            cost.append(["found right, of those verified", percent(self.right, self.checked)])
        cost.append(["kept, of all that were begun", percent(kept, len(self.items))])
        for title, referee in self.referees.items():
            cost.append([f"tokens of {title}", referee.tokens])
            cost.append([f"turned with the order, of what {title} decided", percent(referee.turned, referee.decided)])
        judges = sorted({judge.model_name for referee in self.referees.values() for judge in referee.judges})
        unusable = {"Not usable": self.unusable} if self.unusable.counts else {}
        return ToolReport(
            f"Synthetic rows: {self.method.description}",
            self.spec.model_dump(mode="json"),
            summary,
            [Table("What it took", ["figure", "value"], cost)],
            tallies={"Kept": shown, "Dropped": tally} | unusable,
            more={"judged_by": judges} if judges else {},
            printed=[Table("Dropped", ["reason", "rows"], [[one, tally.counts[one]] for one in tally.counts])]
            if tally.counts
            else [],
        )


def _left(items: Sequence[_Item]) -> list[_Item]:
    """Returns the items that nothing has dropped so far."""
    return [item for item in items if not item.dropped]


def _lost(check: Preferred, outcome: "DuelOutcome", other: str) -> str:
    """Says why a judge left nothing of a reply, as the page counts it."""
    if outcome.how == "undecided":
        return f"{check.of}: could not be decided by {check.name}: {outcome.why.partition(':')[0]}"
    said = {
        "won": f"{other} is better by {check.name}",
        "not won": f"not better than {other} by {check.name}",
        "turned": f"what {check.name} says turns with the order",
    }
    return f"{check.of}: {said[outcome.how]}"


def _read(step: StepSpec, text: str) -> tuple[dict[str, str], int]:
    """Returns what counts of a reply, by name, and where it ends.

    Raises:
        RowError: The reply does not have what the step asks for.
    """
    end = len(text)
    if step.pattern is not None:
        found = re.search(step.pattern, text)
        if found is None or found[1] is None:  # an optional group that took no part
            raise RowError("the pattern is not in the reply", step.pattern)
        text, end = found[1].strip(), found.end()
    if not step.fields:
        return {step.name: text}, end
    begin = max(text.find("{"), 0)
    try:
        value, length = json.JSONDecoder().raw_decode(text[begin:])
        value = without_surrogates(value)
    except (ValueError, RecursionError) as error:
        raise RowError("no JSON object that can be read", str(error)) from error
    if not isinstance(value, dict) or any(name not in value for name in step.fields):
        raise RowError("no JSON object with all that was asked for", f"its keys must be {', '.join(step.fields)}")
    values = {name: value[name] for name in step.fields}
    told = {name: one if isinstance(one, str) else json.dumps(one) for name, one in values.items()}
    return {step.name: "\n".join(told.values())} | told, end if step.pattern else begin + length


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Returns the runs of three words of a text; a shorter one is one run."""
    words = words_in(text)
    runs = [tuple(words[at : at + _SHINGLE]) for at in range(len(words) - _SHINGLE + 1)]
    return frozenset(runs or [tuple(words)])


def _filled(output: Any, values: Mapping[str, Any]) -> Any:
    """Returns an output with its templates filled in."""
    return with_leaves(output, lambda one: compile_template(one)(dict(values)) if isinstance(one, str) else one)
