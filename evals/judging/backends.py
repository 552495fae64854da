"""Judges opened for work: a server, a language model, a reward model or a rule, all identified and asked alike."""

import gc
import inspect
import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...chat_templates.errors import first_line
from ...data_tools.ask import TOO_LONG, Backend, Local, Query, Server, Take
from ...data_tools.endpoint import REJECTED, Budget, EndpointSpec, Reply, Request
from ...data_tools.endpoint_client import Endpoint
from ...data_tools.files import hash_file, hash_json, write_json
from ...data_tools.functions import load_function
from ...data_tools.generate import Sampling, ends_of, generate
from ..answers import Answer, AnswerSet
from ..checkpoints import model_hash, weights_hash
from ..errors import EvalError, SuiteError
from ..forward import negative_log_likelihoods
from ..judges import Judge
from ..runs import known_record, lineage, rewards_of, run_of
from ..shared_context import Scorer
from ..thinking import MARKS
from .parse import PARSER, Verdict, from_labels, from_tokens, labels_of, parse
from .prompt import JudgePrompt
from .questions import Question

if TYPE_CHECKING:
    from ...data_tools.encode import Ids
    from ..models import LoadedModel
    from ..reward import RewardReader

METHOD = 2
"""A part of every judge's version: raise it when a change here changes verdicts."""
READER = 1
"""Likewise of reward models, of how they read answers."""
RECORDS = ".judging"
_TOP = 20  # as many likeliest tokens as OpenAI's protocol gives
_BATCHES = 8  # of a language model between two looks at the disk
_PART = 256  # questions about values, likewise


class OpenJudge:
    """One judge at work for one entry of a suite.

    Args:
        judge: Who is asked.
        name: What its records are called: the entry's title, and the member of a jury.
        homes: The run folders that keep its judgments.
        device: Where a model in this process runs; the first GPU if there is one.
    """

    def __init__(self, judge: Judge, name: str, homes: Sequence[Path], device: str | None = None):
        self.spec, self.settings, self.name, self.homes, self.device = judge, judge.settings, name, list(homes), device
        self.where = f"judge {judge.name}"

    def check(self) -> None:
        """Finds what is wrong before anything is sent: a prompt that does not render, a model that is not there.

        Raises:
            InputError: The judge cannot work.
        """
        model, local = self.settings.model, self.settings.backend in ("model", "reward")
        if local and model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise SuiteError(f"there is no model {model}", where=self.where)

    def refuse(self, candidate: AnswerSet) -> None:
        """Refuses a candidate that this judge cannot be impartial about.

        Raises:
            SuiteError: It is a reward model that trained the candidate.
        """

    def known_way(self) -> str | None:
        """Returns how the judge answers if that is known without asking anybody, else None."""
        return ""

    @cached_property
    def way(self) -> str:
        """Returns how the judge answers, ``logprobs`` or ``text``; empty for values."""
        return self.known_way() or ""

    def known_version(self) -> str | None:
        """Returns the version without asking anybody; None if the server has still to be probed."""
        way = self.known_way()
        return None if way is None else self._version(way)

    @cached_property
    def version(self) -> str:
        """Returns the hash of everything that decides a verdict, but the order and the number of repeats."""
        return self._version(self.way)

    def _version(self, way: str) -> str:
        own = {"method": METHOD, "kind": self.settings.kind, "backend": self.settings.backend}
        return hash_json(own | self._identity | self._decides(way))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Returns what the model is, wherever it lies."""
        folder = Path(self.settings.model)
        return {"model": model_hash(folder) if folder.is_dir() else self.settings.model}

    def _decides(self, way: str) -> dict[str, Any]:
        """Returns what else decides a verdict."""
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """Returns what judgments call the model: its name at the endpoint, its folder, or the rule."""
        return self.settings.model

    def backend(self, home: Path) -> Backend:
        """Returns what answers questions whose judgments one run folder keeps with a :class:`Verdict` each."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets a model in this process go."""
        if self.__dict__.pop("model", None) is not None:
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def open_judges(
    title: str, judges: Sequence[Judge], homes: Sequence[Path], device: str | None = None
) -> tuple[OpenJudge, ...]:
    """Opens an entry's judge, or the members of its jury.

    Raises:
        SuiteError: Two members are the same judge.
    """
    names = [title] if len(judges) == 1 else [f"{title}-{judge.name}" for judge in judges]
    found = tuple(BACKENDS[j.settings.backend](j, name, homes, device) for j, name in zip(judges, names, strict=True))
    known = [version for judge in found if (version := judge.known_version()) is not None]
    if len(set(known)) < len(known):
        hint = "give them different models, prompts or seeds"
        raise SuiteError("two members of the jury are the same judge", where=title, hint=hint)
    return found


# --- judges that read a prompt ---


class PromptedJudge(OpenJudge):
    """A judge that reads a prompt with the answers in it, and says a label or a mark."""

    def check(self) -> None:
        """Renders the prompt, in every way in which the judge may be asked."""
        ways = ("logprobs", "text") if self.settings.answer_by == "auto" else (self.settings.answer_by,)
        for way in ways:
            JudgePrompt(self.spec, way)
        super().check()

    def _decides(self, way: str) -> dict[str, Any]:
        settings, served = self.settings, self.settings.backend == "endpoint"
        keys = {"labels", "scale", "reference", "system", "max_characters"}
        if way == "text":
            keys |= {"pattern", "temperature", "max_tokens", "extra", *(("seed",) if settings.temperature > 0 else ())}
        if served:  # a server may heed these even where it is asked for one label
            keys |= {name for name in ("temperature", "extra") if getattr(settings, name)}
        said = settings.model_dump(mode="json", include=keys)
        parser = {"parser": PARSER} if way == "text" or served else {}  # else no reply is read: what was judged stands
        return parser | {"prompt": self.spec.prompt, "by": way, "settings": said}


class EndpointJudge(PromptedJudge):
    """A judge behind an OpenAI-compatible server. What it replied is kept raw, beside the run, before it is read.

    The budget is that of a suite's entry: what its records in all given run folders have spent counts.
    """

    @cached_property
    def _endpoints(self) -> dict[Path, Endpoint]:
        return {}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {"model": [self.settings.model, self.settings.base_url.rstrip("/")]}

    def known_way(self) -> str | None:
        """Returns how the judge answers, if the configuration or an earlier probe says so, else None."""
        if self.settings.answer_by != "auto":
            return self.settings.answer_by
        if self.settings.kind == "rating":
            return "text"
        for home in self.homes:
            try:
                probed = json.loads(self._file(home, "probe.json").read_text())
                if probed["server"] == self._probed:
                    return str(probed["by"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    @cached_property
    def way(self) -> str:
        """Returns how the judge answers; the server is probed once, and its answer is kept."""
        known = self.known_way()
        if known is None:
            home = self.homes[0]
            known = "logprobs" if self._endpoint(home).probe_logprobs() else "text"
            write_json(self._file(home, "probe.json"), {"server": self._probed, "by": known})
        return known

    @property
    def _probed(self) -> dict[str, Any]:
        return self.settings.model_dump(include={"model", "base_url", "extra"})

    def _file(self, home: Path, kind: str) -> Path:
        """Returns where the server's replies for a run's answers are kept, and what its probe found."""
        return home / RECORDS / f"{self.name}.{kind}"

    def _endpoint(self, home: Path) -> Endpoint:
        """Returns the server, with what the other run folders' records leave of the budget."""
        spec: EndpointSpec = self.settings
        if spec.budget is not None:
            others = [Endpoint(spec, self._file(o, "jsonl")).spent for o in self.homes if o != home]
            left = {
                name: max(0, most - sum(getattr(spent, name) or 0 for spent in others))
                for name, most in spec.budget.model_dump(exclude_none=True).items()
            }
            spec = spec.model_copy(update={"budget": Budget(**left)})
        if home not in self._endpoints or self._endpoints[home].spec != spec:
            known = next(iter(self._endpoints.values()), None)  # what was sent for another run counts in the minute
            limits = known.limits if known else None
            self._endpoints[home] = Endpoint(spec, self._file(home, "jsonl"), limits=limits)
        return self._endpoints[home]

    def backend(self, home: Path) -> Backend:
        """Returns the server; see :meth:`OpenJudge.backend`."""
        settings, prompt, labels = self.settings, JudgePrompt(self.spec, self.way), self.way == "logprobs"
        paid: set[str] = set()

        def request(question: Question) -> Request:
            return Request(
                prompt.render(*question.sides),
                max_tokens=1 if labels else settings.max_tokens,
                temperature=settings.temperature,
                seed=settings.seed + question.repeat if settings.temperature > 0 else None,
                top_logprobs=_TOP if labels else None,
                salt=str(question.repeat),
            )

        def read(reply: Reply) -> Verdict:
            spent: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "cost": None, "seconds": 0.0}
            if reply.key not in paid:  # one reply that stands for several questions was paid for once
                spent = {name: getattr(reply, name) for name in spent}
            paid.add(reply.key)
            return replace(self._verdict(reply), **spent)

        return Server(self._endpoint(home), request, read)

    def _verdict(self, reply: Reply) -> Verdict:
        if reply.finish is None:
            return Verdict("failed", reason=reply.error or "no answer")
        if reply.finish == REJECTED:
            return Verdict("rejected", reason=reply.error or "the server does not take it")
        if reply.finish in ("refusal", "content_filter"):
            return Verdict("refused", reason=reply.text or reply.error or reply.finish)
        if self.way == "logprobs":
            if not reply.logprobs:
                none = "no log-probabilities came with this answer"
                return Verdict("unparsed", reason=reply.error or none)
            return from_tokens(reply.logprobs[0], self.settings)
        if reply.error is not None:  # paid for and kept: asking again would bring the same
            return Verdict("truncated" if reply.finish == "length" else "unparsed", reason=reply.error)
        return parse(reply.text, self.settings, finish=reply.finish)


class ModelJudge(PromptedJudge):
    """A language model in this process: the exact probabilities of its labels are read, or what it writes."""

    def known_way(self) -> str:
        """Returns how the judge answers."""
        return "logprobs" if self.settings.answer_by == "auto" else self.settings.answer_by

    @cached_property
    def model(self) -> "LoadedModel":
        """Returns the model, loaded when the first question comes.

        Raises:
            EvalError: It cannot be loaded.
        """
        from ..models import load_model

        loaded = load_model(self.settings.model, device=self.device)
        loaded.needs_language_model(self.where)
        return loaded

    def backend(self, home: Path) -> Backend:
        """Returns the model, which is asked in parts; see :meth:`OpenJudge.backend`."""
        prompt, answer = JudgePrompt(self.spec, self.way), self._labelled if self.way == "logprobs" else self._written

        def backend(questions: Sequence[Question], done: Collection[str], take: Take) -> None:
            left = [question for question in questions if question.key not in done]
            for part in _parts(left, self.settings.batch_size * _BATCHES):
                answer([Query(one.key, prompt.render(*one.sides), one.repeat) for one in part], take)

        return backend

    def tokens(self, queries: Sequence[Query]) -> "list[Ids]":
        """Returns the tokens of prompts; without a chat template they are text.

        Raises:
            DataError: The template does not take one.
        """
        from ...data_tools.encode import TextEncoder

        prompts: list[Any] = [query.messages for query in queries]
        if self.model.template_fingerprint is None:
            prompts = ["".join(f"{message['content']}\n\n" for message in messages) for messages in prompts]
        return TextEncoder.of(self.model.tokenizer).prompts(prompts, where=self.where)

    def _labelled(self, queries: Sequence[Query], take: Take) -> None:
        """Reads the probabilities of the labels."""
        settings, names = self.settings, labels_of(self.settings)
        labels: list[Any] = [self.model.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
        ids = {query.key: tokens for query, tokens in zip(queries, self.tokens(queries), strict=True)}
        started = time.perf_counter()
        fitting = {key: tokens for key, tokens in ids.items() if len(tokens) + max(map(len, labels)) <= self._room}
        found = label_logs(self.model, list(fitting.values()), labels, settings.batch_size)
        verdicts = {key: _too_long(len(tokens), self._room) for key, tokens in ids.items()}
        for (key, tokens), logs in zip(fitting.items(), found, strict=True):
            verdict = from_labels(dict(zip(names, logs, strict=True)), settings)
            verdicts[key] = replace(verdict, prompt_tokens=len(tokens), completion_tokens=0)
        seconds = (time.perf_counter() - started) / len(ids)
        take({key: replace(verdict, seconds=seconds) for key, verdict in verdicts.items()})

    def _written(self, queries: Sequence[Query], take: Take) -> None:
        """Lets the model write."""
        settings = self.settings
        how = Sampling(settings.max_tokens, settings.temperature, seed=settings.seed, batch_size=settings.batch_size)

        def read(prompt: list[int], reply: Reply) -> Verdict:
            if reply.finish == TOO_LONG:
                return replace(_too_long(len(prompt), self._room - settings.max_tokens), seconds=0.0)
            verdict = parse(reply.text, settings, finish=reply.finish)
            counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
            return replace(verdict, seconds=reply.seconds, **counts)

        engine = partial(generate, self.model.model, self.model.tokenizer, kept=MARKS)
        Local(self.tokens, engine, how, self._room, settings.max_tokens, read)(queries, (), take)

    @property
    def _room(self) -> int:
        from ..models import model_length

        return model_length(self.model.model)


def _too_long(tokens: int, limit: int) -> Verdict:
    return Verdict("truncated", reason=f"the prompt has {tokens} tokens, and the judge takes {limit}")


def _parts(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """Cuts questions into what is asked between two looks at the disk."""
    return (questions[at : at + size] for at in range(0, len(questions), size))


def label_logs(
    loaded: "LoadedModel", prompts: Sequence["Ids"], labels: Sequence[Sequence[int]], batch_size: int
) -> list[list[float]]:
    """Returns the log-probability of each label as the continuation of each prompt, ``[prompts][labels]``, in nats.

    Where one label begins another (``1`` and ``10``), each also has to be followed by the end of the answer, by
    whichever token. What the prompts begin with in common is run once.
    """
    parts = [tuple(label) for label in labels]
    ended = any(a != b and b[: len(a)] == a for a in parts for b in parts)
    ends = [[end] for end in sorted(ends_of(loaded.model, loaded.tokenizer))] if ended else [[]]
    requests = [(prompt, [*label, *end]) for prompt in prompts for label in parts for end in ends]

    def plain(numbers: Sequence[int]) -> list[tuple[float, bool]]:
        rows = [[*requests[i][0], *requests[i][1]] for i in numbers]
        first = [len(requests[i][0]) for i in numbers]
        return [(-value, False) for value in negative_log_likelihoods(loaded.model, rows, first, batch_size)]

    scorer = Scorer(loaded.model, max(len(prompt) + len(label) for prompt, label in requests), batch_size)
    logs = np.array([log for log, _ in scorer.logs(requests, plain)])
    return np.logaddexp.reduce(logs.reshape(len(prompts), len(parts), len(ends)), axis=-1).tolist()


# --- judges that give each answer a value ---


class ValueJudge(OpenJudge):
    """A judge that gives each answer a value by itself and prefers the higher one.

    The preference is all or nothing, as a judge's is; a tie where the values are equal. A rating is the value.
    """

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """Returns the value of each answer; NaN of one that is too long."""
        raise NotImplementedError

    def backend(self, home: Path) -> Backend:
        """Returns what compares values, each computed once; see :meth:`OpenJudge.backend`."""
        known: dict[str, float] = {}

        def backend(questions: Sequence[Question], done: Collection[str], take: Take) -> None:
            for part in _parts([question for question in questions if question.key not in done], _PART):
                sides = {question.key_of(side): side for question in part for side in question.sides}
                new = {key: side for key, side in sides.items() if key not in known}
                started = time.perf_counter()
                if new:
                    known.update(zip(new, self.values(list(new.values())), strict=True))
                seconds = (time.perf_counter() - started) / len(part)
                values = {one.key: [known[one.key_of(side)] for side in one.sides] for one in part}
                take({key: replace(self._verdict(found), seconds=seconds) for key, found in values.items()})

        return backend

    def _verdict(self, values: Sequence[float]) -> Verdict:
        if any(map(math.isnan, values)):
            return Verdict("truncated", reason="an answer is longer than the reward model can hold")
        reason = " and ".join(f"{value:.6g}" for value in values)
        if len(values) == 1:
            return Verdict("judged", rating=values[0], reason=reason)
        first, second = values
        return Verdict("judged", 0.5 if first == second else float(first > second), reason=reason)


class RewardJudge(ValueJudge):
    """A reward model; it never judges what it trained."""

    def refuse(self, candidate: AnswerSet) -> None:
        """Refuses what the model trained, or what descends from that; see :meth:`OpenJudge.refuse`.

        It is recognised by its weights, its folder, its name on the Hub, or as another checkpoint of the same run.
        """
        for run, record in lineage(candidate.folder) if candidate.folder else ():
            if any(self._is(used) for used in rewards_of(record)):
                via = "" if run == candidate.folder else ", which it descends from"
                raise SuiteError(
                    f"the reward model {self.settings.model} trained {record.get('name') or run.name}{via}, so it "
                    f"cannot judge {candidate.name}",
                    where=self.where,
                    hint="take a reward model of other data, or another judge",
                )

    def _is(self, used: dict[str, Any]) -> bool:
        """Says whether a run's record describes this model."""
        return any(value and value == self._marks.get(name) for name, value in _resolved(used).items())

    @cached_property
    def _marks(self) -> dict[str, Any]:
        folder = Path(self.settings.model)
        if not folder.is_dir():
            return {"name": self.settings.model}
        recipe = known_record(run_of(folder)).get("recipe_hash")
        return _resolved({"path": folder, "weights_hash": weights_hash(folder), "recipe_hash": recipe})

    def _decides(self, way: str) -> dict[str, Any]:
        return {"reader": READER}

    @cached_property
    def model(self) -> "RewardReader":
        """Returns the model, loaded when the first question comes."""
        from ..reward import RewardReader, load

        return RewardReader(load(self.settings.model, device=self.device), self.settings.batch_size, self.where)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """Returns the reward of each answer to the last turn, the turns before it given; NaN if it is too long.

        Raises:
            EvalError: It is no reward model, or its template does not take a conversation.
        """
        from ..models import model_length
        from ..reward import completion_of

        templated, longest = self.model.encoder.template is not None, model_length(self.model.loaded.model)
        rows = self.model.ids([completion_of(answer, templated=templated) for answer in answers])
        found = iter(self.model.values([row for row in rows if len(row) <= longest]))
        return [next(found) if len(row) <= longest else math.nan for row in rows]

    def _verdict(self, values: Sequence[float]) -> Verdict:
        verdict = super()._verdict(values)
        if verdict.preference is None:
            return verdict
        gap = values[0] - values[1]
        share = 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0
        return replace(verdict, reason=f"{verdict.reason}; Bradley-Terry probability {share:.4f}")


def _resolved(model: dict[str, Any]) -> dict[str, Any]:
    """Returns what a model is known by: its weights, its run's recipe, its folder, its name."""
    place = {"path": str(Path(model["path"]).resolve())} if model.get("path") else {}
    return {name: model.get(name) for name in ("weights_hash", "recipe_hash", "name")} | place


class RuleJudge(ValueJudge):
    """A user's function; it is no judge, and every row says so."""

    def check(self) -> None:
        """Imports the rule."""
        load_function(self._rule, "rule")

    @property
    def _rule(self) -> str:
        return self.settings.rule or ""

    @property
    def model_name(self) -> str:
        """Returns the rule, without the folder that its file lies in."""
        source, _, name = self._rule.rpartition(":")
        return f"{Path(source).name}:{name}"

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Returns the rule's path and the content of the file that it stands in."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(load_function(self._rule, "rule")))
        except TypeError:  # a built-in
            file = None
        return {"rule": {"name": self.model_name, "source": hash_file(Path(file)) if file else ""}}

    def _decides(self, way: str) -> dict[str, Any]:
        return {}

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """Returns what the rule says of each answer.

        Raises:
            EvalError: The rule fails, or gives no finite number.
        """
        rule, found = load_function(self._rule, "rule"), []
        for answer in answers:
            where, hint = f"rule {self._rule}", f"prompt {answer.prompt_id}: {answer.texts[-1][:120]!r}"
            prompt = {
                "id": answer.prompt_id,
                "system": answer.system,
                "turns": list(answer.turns),
                "category": answer.category,
                "references": list(answer.references) if answer.references else None,
                "answers": list(answer.texts),
            }
            try:
                value = rule(prompt, answer.texts[-1])
            except Exception as error:  # whatever a user's function may raise
                what = f"raised {type(error).__name__}: {first_line(error)}"
                raise EvalError(what, where=where, hint=hint) from error
            if isinstance(value, str | bytes) or not _finite(value):
                raise EvalError(f"returned {value!r}, which is not a finite number", where=where, hint=hint)
            found.append(float(value))
        return found


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


BACKENDS = {"endpoint": EndpointJudge, "model": ModelJudge, "reward": RewardJudge, "rules": RuleJudge}
