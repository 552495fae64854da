"""Prompts to conversations with a model's answers: distillation from a teacher of which only the text is known.

The model runs in this process, or answers behind any endpoint that speaks OpenAI's chat protocol. Every answer is on
the disk before the next is waited for, so that a killed run goes on with the prompts that are left. What an endpoint
was paid for stays in ``requests.jsonl`` as it came, refused and empty answers too, and is not asked for again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dataset import DataReport, load
from .endpoint import EMPTY
from .errors import DataError
from .files import append_line, hash_json, locked, read_json, read_jsonl_log, write_atomic, write_json

if TYPE_CHECKING:
    from .spec import SourceSpec

ANSWERS = "answers.jsonl"
LOG = "answered.jsonl"
RECORD = "requests.jsonl"
SETTINGS = "settings.json"
REPORT = "report.json"
CUT = "the answer was cut at max_new_tokens"
TOO_LONG = "the prompt leaves no room for an answer"
_TIMEOUT = 600  # seconds; long answers of slow servers

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A prompt to be answered.

    Attributes:
        key: A hash of the messages and the number of the sample.
        messages: The conversation that the answer ends.
        sample: Which of several answers to the same prompt.
    """

    key: str
    messages: Messages
    sample: int


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        text: The answer.
        whole: Whether the model ended it, or the limit of tokens did.
    """

    text: str
    whole: bool


# Takes each answer as it comes; an error's text instead if there is none.
Take = Callable[[Question, "Answer | str"], None]
# Loads a model to run here: what it returns has a ``model`` and its ``tokenizer``.
Loader = Callable[[str], Any]
# Returns the hash of all that decides what such a model answers.
Identify = Callable[[str], str]


@dataclass(frozen=True)
class Answerer:
    """Who answers, and how.

    Attributes:
        model: A folder or Hub id; with ``base_url`` the name that the endpoint knows it by.
        base_url: The endpoint, such as ``http://localhost:8000/v1``; None to run the model here.
        api_key_env: The environment variable that holds the endpoint's key; None if it takes none.
        max_new_tokens: Tokens of an answer at most. Answers that it cuts are dropped.
        temperature: 0 is greedy.
        top_p: The mass of the likeliest tokens that are drawn from.
        seed: Of the draws.
        batch_size: Prompts at a time, here.
        concurrency: Requests at a time, there.
        retries: How often a request that failed is repeated, after growing pauses.
    """

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    concurrency: int = 8
    retries: int = 4

    def identity(self, identify: Identify) -> dict[str, Any]:
        """Returns what decides an answer, of a local model its contents, wherever it lies."""
        speed = ("batch_size", "concurrency", "retries", "api_key_env")
        decides = {key: value for key, value in asdict(self).items() if key not in speed}
        return decides | ({} if self.base_url else {"model": identify(self.model)})


def answer(
    source: "SourceSpec",
    output_dir: Path,
    answerer: Answerer,
    *,
    base_dir: Path,
    loader: Loader,
    identify: Identify,
    samples: int = 1,
    max_bad_share: float = 0.02,
) -> DataReport:
    """Writes ``answers.jsonl``, conversations that end with the model's answer, in the order of the prompts.

    Args:
        source: The prompts: rows of kind ``prompt``, or conversations, whose last answer is left out.
        output_dir: Where answers are collected; with other settings it must be another one.
        answerer: Who answers.
        base_dir: Where relative paths start.
        loader: What loads a model that answers here.
        identify: What tells such a model from others.
        samples: Answers to each prompt; more than one needs a temperature.
        max_bad_share: The largest share of the prompts that may stay without a usable answer.

    Returns:
        What became of the prompts; also in ``report.json``.

    Raises:
        DataError: The prompts cannot be read, too many stay unanswered, or the folder holds others' answers.
        PosttrainError: The model cannot be loaded, or the endpoint answers nothing.
    """
    if samples > 1 and answerer.temperature == 0:
        raise DataError("several samples of greedy answers are all the same", hint="give a temperature above 0")
    report = DataReport()
    rows = list(load(source, base_dir, ("prompt",), report=report, max_bad_share=max_bad_share))
    questions = [(where, question) for where, row in rows for question in _questions(row["prompt"], samples)]
    report.rows, report.kept = report.rows + len(questions) - len(rows), len(questions)
    with locked(output_dir / ".lock"):
        _claim(output_dir / SETTINGS, answerer.identity(identify))
        asked = {question.key: question for _, question in questions}
        failed = _collect(asked, output_dir / LOG, answerer, loader)
        found = _logged(output_dir / LOG)
        lines = []
        for where, question in questions:
            given = found.get(question.key)
            problem = failed.get(question.key, "no answer") if given is None else _problem(given)
            if given is None or problem:
                report.kept -= 1
                report.drop(problem or "no answer", where)
                continue
            messages = [*question.messages, {"role": "assistant", "content": given.text.strip()}]
            lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        report.check(max_bad_share)
        write_atomic(output_dir / ANSWERS, "".join(lines))
        write_json(output_dir / REPORT, asdict(report))
    return report


def _questions(prompt: str | Messages, samples: int) -> Iterator[Question]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for sample in range(samples):
        yield Question(hash_json([messages, sample]), messages, sample)


def _problem(given: Answer) -> str | None:
    if not given.whole:
        return CUT
    return None if given.text.strip() else EMPTY


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuses a folder in which another model answered, or the same one otherwise."""
    if path.exists() and (old := read_json(path)) != identity:
        changed = [key for key in identity if not isinstance(old, dict) or old.get(key) != identity[key]]
        raise DataError(
            f"the answers there were made with another {', '.join(changed)}",
            where=str(path.parent),
            hint="choose another folder, or remove that one",
        )
    write_json(path, identity)


def _logged(path: Path) -> dict[str, Answer]:
    return {line["key"]: Answer(line["text"], line["whole"]) for line in read_jsonl_log(path)}


def _collect(questions: Mapping[str, Question], log: Path, answerer: Answerer, loader: Loader) -> dict[str, str]:
    """Asks what has no answer yet; returns why the questions without one have none."""
    done = _logged(log)
    left = [question for key, question in questions.items() if key not in done]
    failed: dict[str, str] = {}

    def take(question: Question, given: Answer | str) -> None:
        if isinstance(given, str):
            failed[question.key] = given
        else:
            append_line(log, json.dumps({"key": question.key, **asdict(given)}, ensure_ascii=False), sync=False)

    if left:
        if answerer.base_url is None:
            _ask_here(left, answerer, take, loader)
        else:
            _ask_there(left, answerer, take, log.with_name(RECORD))
    return failed


def _ask_here(questions: list[Question], answerer: Answerer, take: Take, loader: Loader) -> None:
    """Runs the model in this process, the longest prompts first, so that memory runs out early if at all."""
    from .encode import TextEncoder
    from .generate import Sampling, fits, generate

    loaded = loader(answerer.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    sampling = Sampling(
        answerer.max_new_tokens, answerer.temperature, answerer.top_p, answerer.seed, answerer.batch_size
    )
    made = TextEncoder.of(tokenizer).prompts([question.messages for question in questions], where=answerer.model)
    ids = {question.key: tokens for question, tokens in zip(questions, made, strict=True)}
    fitting = []
    for question in sorted(questions, key=lambda question: -len(ids[question.key])):
        if fits(model, ids[question.key], sampling):
            fitting.append(question)
        else:
            take(question, TOO_LONG)
    drawn = generate(
        model,
        tokenizer,
        [ids[question.key] for question in fitting],
        sampling,
        key=[str(question.sample) for question in fitting],
    )
    for question, given in zip(fitting, drawn, strict=True):
        take(question, Answer(given.text, given.finish == "stop"))


def _ask_there(questions: list[Question], answerer: Answerer, take: Take, record: Path) -> None:
    """Sends requests to the endpoint."""
    from pydantic import ValidationError

    from .endpoint import EndpointSpec, Reply, Request
    from .endpoint_client import Endpoint

    try:
        spec = EndpointSpec(
            model=answerer.model,
            base_url=str(answerer.base_url),
            api_key_env=answerer.api_key_env,
            concurrency=answerer.concurrency,
            retries=answerer.retries,
            timeout=_TIMEOUT,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise DataError(f"not an endpoint: {problem['msg']}", where=str(problem["loc"][0])) from error
    asked: dict[int, Question] = {}
    requests = []
    for question in questions:
        drawn: Any = {}
        if answerer.temperature > 0:
            drawn = {"top_p": answerer.top_p, "seed": answerer.seed + question.sample}
        messages = tuple(question.messages)
        requests.append(Request(messages, answerer.max_new_tokens, temperature=answerer.temperature, **drawn))
        asked[id(requests[-1])] = question

    def taken(request: Request, reply: Reply) -> None:
        answered = reply.error is None or reply.finish == "length" or reply.error == EMPTY
        given = Answer(reply.text, reply.finish != "length") if answered else str(reply.error).partition(":")[0]
        take(asked[id(request)], given)

    Endpoint(spec, record).ask(requests, taken)
