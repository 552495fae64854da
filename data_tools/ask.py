"""Asking a model many things, resumably: one loop for data answers, prompt sets, best-of-n and judges.

Here is also ``data answers``, prompts to conversations with a model's answers: distillation from a teacher of which
only the text is known. What an endpoint was paid for stays in ``requests.log`` as it came, refused and empty answers
too, and is not asked for again.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pydantic import NonNegativeFloat, NonNegativeInt, ValidationError, model_validator

from ..chat_templates.errors import PosttrainError
from .dataset import DataReport, load
from .endpoint import EMPTY, Budget, EndpointSpec, Prices, Reply, Request
from .endpoint_client import Endpoint
from .errors import DataError
from .files import append_line, hash_json, locked, read_json, read_jsonl_log, write_atomic, write_json
from .generate import Sampling, generate, room
from .sources import refuse_own
from .spec import Count, PositiveShare, Share
from .tool import Source, Tool

ANSWERS = "answers.jsonl"
LOG = "answered.log"  # not .jsonl, which `folder/*.jsonl` would take for rows
RECORD = "requests.log"
SETTINGS = "settings.json"
REPORT = "report.json"
CUT = "the answer was cut at max_new_tokens"
TOO_LONG = "too_long"
"""How a request ended that leaves the model no room for an answer."""
NO_ROOM = "the prompt leaves no room for an answer"
_TIMEOUT = 600  # seconds; long answers of slow servers

Messages = Sequence[dict[str, Any]]
# Takes answers by the keys of their requests, as they come.
Take = Callable[[Mapping[str, Any]], None]
# Takes all requests, the keys of those answered before, and what takes the answers to the others.
Backend = Callable[[Sequence[Any], Collection[str], Take], None]


# --- one loop ---


@dataclass(frozen=True)
class Query:
    """A conversation that a model is to go on with.

    Attributes:
        key: What tells it from all others in the same log.
        messages: The conversation so far.
        sample: Which of several answers to the same conversation.
    """

    key: str
    messages: Messages
    sample: int = 0


class Log:
    """Answers by key, in memory and on the disk: an append-only file with a line for each.

    A key, with the header or whatever else the file's name or folder stands for, says all that decides an answer.

    Args:
        path: A JSON Lines file, made when it is needed; a torn last line is dropped.
        read: Makes an answer of a line.
        write: Makes a line of an answer; None if it is to be asked for again by the next run.
        header: The first line, which says what all answers depend on; a file that begins with another, or cannot be
            read, is begun anew. Without, the file has none, and damage to it is an error.
        sync: Whether the disk is waited for; without, an answer survives a kill but not a power cut.

    Attributes:
        answers: What there is.
        failed: What is to be asked for again, as it came in this run.

    Raises:
        PosttrainError: The file is damaged, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[dict[str, Any]], Any],
        write: Callable[[Any], dict[str, Any] | None],
        *,
        header: dict[str, Any] | None = None,
        sync: bool = True,
    ):
        self._path, self._write, self._sync = path, write, sync
        try:
            lines = read_jsonl_log(path)
        except PosttrainError:
            if header is None:
                raise
            lines = []
        if header is not None and lines[:1] != [header]:
            path.unlink(missing_ok=True)
            append_line(path, json.dumps(header))
            lines = []
        self.answers: dict[str, Any] = {line["key"]: read(line) for line in lines if line != header}
        self.failed: dict[str, Any] = {}

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Adds answers, on the disk first; of several to one key the first stands."""
        new = {key: answer for key, answer in answers.items() if key not in self.answers}
        lines = {key: line for key, answer in new.items() if (line := self._write(answer)) is not None}
        for number, (key, line) in enumerate(lines.items(), start=1):
            text = json.dumps({"key": key, **line}, ensure_ascii=False)
            append_line(self._path, text, sync=self._sync and number == len(lines))
        self.answers.update({key: new[key] for key in lines})
        self.failed.update({key: answer for key, answer in new.items() if key not in lines})


def ask(
    requests: Iterable[Any], backend: Backend, log: Any, progress: Callable[[int, int], None] | None = None
) -> Mapping[str, Any]:
    """Asks what has no answer in the log yet; each answer is in the log before the next is waited for.

    Whatever kills the process, what was answered is not asked again. A judge fits as the others do: its requests are
    questions under the keys of their judgments, its backend a :class:`Server`, a :class:`Local`, or a function that
    gets label probabilities or rewards for a batch at a time, and its log anything with ``answers`` (those that are
    final, by key) and ``keep``, such as the judgments of one run folder.

    Args:
        requests: Frozen records with a ``key``, such as :class:`Query`. Those with equal keys are asked once.
        backend: Who answers; it is not called when nothing is left to ask. It gets all requests, so that what stands
            in a batch together can depend on them alone, and not on when an earlier run was killed.
        log: A :class:`Log`, or what has its ``answers`` and ``keep``.
        progress: Takes after each batch of answers how many requests have one, and how many there are.

    Returns:
        ``log.answers``: the answer to every request to which the backend gave any.

    Raises:
        PosttrainError: The backend cannot answer, or the log cannot be written; what was answered is kept.
    """
    unique = {request.key: request for request in requests}
    left = unique.keys() - log.answers.keys()

    def take(answers: Mapping[str, Any]) -> None:
        log.keep(answers)
        left.difference_update(key for key in answers if key in log.answers)
        if progress is not None:
            progress(len(unique) - len(left), len(unique))

    if left:
        backend(list(unique.values()), log.answers.keys(), take)
    return log.answers


# --- who answers ---


@dataclass(frozen=True)
class Local:
    """A model in this process.

    Attributes:
        encode: Returns the tokens of the prompts of queries.
        engine: Replies to prompts of tokens, given how to sample and what each prompt's draws depend on besides:
            :func:`generate` with its model and tokenizer.
        sampling: How to answer.
        room: Tokens that the model can hold, prompt and answer together; None if nobody knows.
        least: How many tokens of an answer there has to be room for. A prompt that leaves fewer is ``too_long``, one
            that leaves less than an answer may have gets what is left.
        read: Makes an answer of a prompt's tokens and the reply.
    """

    encode: Callable[[Sequence[Query]], list[list[int]]]
    engine: Callable[[list[list[int]], Sampling, list[str]], Iterable[Reply]]
    sampling: Sampling
    room: int | None
    least: int = 1
    read: Callable[[list[int], Reply], Any] = lambda prompt, reply: reply

    def __call__(self, queries: Sequence[Query], done: Collection[str], take: Take) -> None:
        """Answers, the longest prompts first, so that memory runs out early if at all."""
        fitting: list[tuple[Query, list[int], int]] = []
        for query, prompt in zip(queries, self.encode(queries), strict=True):
            most, tokens = self.sampling.max_new_tokens, len(prompt)
            limit = most if self.room is None else min(most, self.room - tokens)
            if limit >= self.least:
                fitting.append((query, prompt, limit))
            elif query.key not in done:
                reply = Reply(query.key, finish=TOO_LONG, prompt_tokens=tokens, completion_tokens=0, error=NO_ROOM)
                take({query.key: self.read(prompt, reply)})
        fitting.sort(key=lambda row: -len(row[1]))
        for limit, rows in groupby(fitting, key=lambda row: row[2]):
            how = replace(
                self.sampling, max_new_tokens=limit
            )  # one for a batch, so only prompts alike in room share it
            group = list(rows)
            for start in range(0, len(group), how.batch_size):
                batch = group[start : start + how.batch_size]
                if not all(query.key in done for query, _, _ in batch):
                    prompts, samples = [prompt for _, prompt, _ in batch], [str(query.sample) for query, _, _ in batch]
                    replies = zip(batch, self.engine(prompts, how, samples), strict=True)
                    take({query.key: self.read(prompt, reply) for (query, prompt, _), reply in replies})


@dataclass(frozen=True)
class Server:
    """A model behind an endpoint. It makes its prompts by itself, control tokens in messages included.

    Attributes:
        endpoint: Where it is; its record keeps every reply as it came, before anybody reads it.
        request: What is sent for a query.
        read: Makes an answer of a reply.
    """

    endpoint: Endpoint
    request: Callable[[Any], Request]
    read: Callable[[Reply], Any] = lambda reply: reply

    def __call__(self, queries: Sequence[Any], done: Collection[str], take: Take) -> None:
        """Asks what has no answer yet, many at a time."""
        left = [(query.key, self.request(query)) for query in queries if query.key not in done]
        keys = {id(request): key for key, request in left}
        requests = [request for _, request in left]
        self.endpoint.ask(requests, lambda request, reply: take({keys[id(request)]: self.read(reply)}))


def request_of(query: Query, sampling: Sampling, salt: str = "") -> Request:
    """Returns a query as a server is sent it; each sample has a seed of its own."""
    seed = sampling.seed + query.sample if sampling.temperature > 0 else None
    return Request(
        tuple(query.messages), sampling.max_new_tokens, sampling.temperature, sampling.top_p, seed, salt=salt
    )


# --- data answers ---


class AskSpec(Tool):
    """Who is asked, and how it answers."""

    model: str
    """A folder or Hub id, run in this process; with `base_url` the name that the endpoint knows it by."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key."""
    max_new_tokens: Count = 256
    """Tokens of an answer at most; answers that it cuts are dropped and counted."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    top_p: PositiveShare = 1.0
    """The mass of the likeliest tokens that are drawn from."""
    seed: int = 0
    """Of the draws."""
    batch_size: Count = 32
    """Prompts at a time in this process."""
    concurrency: Count = 8
    """Requests at a time."""
    retries: NonNegativeInt = 4
    """How often a failed request is repeated."""
    budget: Budget | None = None
    """What may be spent at the endpoint, reserved before a request is sent: `{tokens: 1000000}`, `{money: 5}`,
    `{hours: 2}`."""
    prices: Prices | None = None
    """What the endpoint's tokens cost, for a million: `{input: 0.15, output: 0.60}`; a budget in money needs them."""

    @model_validator(mode="after")
    def _spends_at_an_endpoint(self) -> Self:
        if self.base_url is None and (self.budget or self.prices):
            raise ValueError("a budget and prices are of an endpoint: give `base_url`, or drop them")
        return self

    @property
    def sampling(self) -> Sampling:
        """Returns how to answer."""
        top_p = self.top_p if self.temperature > 0 else 1.0  # greedy, a server is sent none
        return Sampling(self.max_new_tokens, self.temperature, top_p, self.seed, self.batch_size)


class AnswersSpec(AskSpec):
    """Which prompts are to be answered, by whom and how."""

    prompts: Source
    """Prompts, or conversations whose last answer is left out."""
    samples: Count = 1
    """Answers to each prompt."""
    max_bad_share: Share = 0.02
    """The largest share of the prompts that may stay without a usable answer."""


def answer(
    spec: AnswersSpec, output_dir: Path, *, loader: Callable[[str], Any], identify: Callable[[str], str]
) -> DataReport:
    """Writes ``answers.jsonl``, conversations that end with the model's answer, in the order of the prompts.

    Args:
        spec: What is asked, of whom.
        output_dir: Where answers are collected; with other settings it must be another one.
        loader: Loads a model that answers here: what it returns has a ``model`` and its ``tokenizer``.
        identify: Returns the hash of all that decides what such a model answers, wherever it lies.

    Returns:
        What became of the prompts; also in ``report.json``.

    Raises:
        DataError: The prompts cannot be read, too many stay unanswered, or the folder holds others' answers.
        PosttrainError: The model cannot be loaded, or the endpoint answers nothing.
    """
    if spec.samples > 1 and spec.temperature == 0:
        raise DataError("several samples of greedy answers are all the same", hint="give a temperature above 0")
    refuse_own([spec.prompts], [output_dir / ANSWERS])
    report = DataReport()
    rows = list(load(spec.prompts, Path(), ("prompt",), report=report, max_bad_share=spec.max_bad_share))
    asked = [(where, query) for where, row in rows for query in _queries(row["prompt"], spec.samples)]
    report.rows, report.kept = report.rows + len(asked) - len(rows), len(asked)

    def backend(queries: Sequence[Query], done: Collection[str], take: Take) -> None:
        chosen = answerer(spec, output_dir, loader)
        chosen([query for query in queries if query.key not in done], (), take)

    with locked(output_dir / ".lock"):
        decides = {"model", "base_url", "max_new_tokens", "temperature", "top_p", "seed"}
        own = {} if spec.base_url else {"model": identify(spec.model)}
        claim(output_dir / SETTINGS, spec.model_dump(include=decides) | own)
        log = Log(output_dir / LOG, _from_line, _to_line, sync=False)
        answers = ask((query for _, query in asked), backend, log)
        lines = []
        for where, query in asked:
            problem = problem_of(answers.get(query.key) or log.failed.get(query.key))
            if problem:
                report.kept -= 1
                report.drop(problem, where)
                continue
            messages = [*query.messages, {"role": "assistant", "content": answers[query.key].text.strip()}]
            lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        report.check(spec.max_bad_share)
        write_atomic(output_dir / ANSWERS, "".join(lines))
        write_json(output_dir / REPORT, {"arguments": spec.model_dump(mode="json"), **asdict(report)})
    return report


def _queries(prompt: str | Messages, samples: int) -> Iterator[Query]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for sample in range(samples):
        yield Query(hash_json([messages, sample]), messages, sample)


def _from_line(line: dict[str, Any]) -> Reply:
    return Reply("", line["text"], "stop" if line["whole"] else "length")


def _to_line(reply: Reply) -> dict[str, Any] | None:
    """What the model said is kept, even if it is nothing or cut; what it did not say is asked for again."""
    if reply.error in (None, EMPTY) or reply.finish == "length":
        return {"text": reply.text, "whole": reply.finish != "length"}
    return None


def problem_of(reply: Reply | None) -> str | None:
    """Says why there is no usable answer."""
    if reply is None:
        return "no answer"
    if reply.finish == "length":
        return CUT
    error = str(reply.error or "").partition(":")[0]
    return error or (None if reply.text.strip() else EMPTY)


def claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuses a folder in which another model answered, or the same one otherwise."""
    if path.exists() and (old := read_json(path)) != identity:
        changed = [key for key in identity if not isinstance(old, dict) or old.get(key) != identity[key]]
        raise DataError(
            f"the answers there were made with another {', '.join(changed)}",
            where=str(path.parent),
            hint="choose another folder, or remove that one",
        )
    write_json(path, identity)


def answerer(spec: AskSpec, output_dir: Path, loader: Callable[[str], Any]) -> Local | Server:
    """Returns who answers: a model that is loaded here, or an endpoint, whose record is in the folder.

    Raises:
        PosttrainError: The model cannot be loaded, or the arguments describe no endpoint.
    """
    return _local(spec, loader) if spec.base_url is None else _server(spec, output_dir / RECORD)


def _local(spec: AskSpec, loader: Callable[[str], Any]) -> Local:
    """Loads the model."""
    from .encode import TextEncoder

    loaded = loader(spec.model)
    encoder = TextEncoder.of(loaded.tokenizer)
    return Local(
        lambda queries: encoder.prompts([query.messages for query in queries], where=spec.model),
        partial(generate, loaded.model, loaded.tokenizer),
        spec.sampling,
        room(loaded.model),
        least=spec.max_new_tokens,
    )


def _server(spec: AskSpec, record: Path) -> Server:
    """Opens the endpoint."""
    names = {"model", "base_url", "api_key_env", "concurrency", "retries", "budget", "prices"}
    given = spec.model_dump(include=names)
    try:
        server = EndpointSpec(**given, timeout=_TIMEOUT)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or None  # none of what follows from several keys
        raise DataError(f"not an endpoint: {problem['msg'].removeprefix('Value error, ')}", where=where) from error
    return Server(Endpoint(server, record), lambda query: request_of(query, spec.sampling))
