"""A model of this machine compared with one that a server gives: by what the server says, and no further.

A server never shows its weights. Prompts are compared by their length, or token by token where their log-probabilities
are given (vLLM's ``prompt_logprobs``); what it generates by text, and by log-probabilities where it gives some (Ollama
since 0.12.11, vLLM). ``transformers serve`` gives none: there the likeliest next token is asked for at chosen places.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...chat_templates.errors import InputError, PosttrainError
from ...chat_templates.templates import is_single_token, load, names
from ...data_tools.encode import Talk, TextEncoder
from ...data_tools.endpoint import REJECTED, EndpointSpec, Reply, Request, one_line
from ...data_tools.endpoint_client import Endpoint
from ...data_tools.errors import RowError
from ..models import LoadedModel, load_model
from .compare import TOLERANCES, FirstDifference, ParityCheck, compare_answers, compare_logs
from .portrait import GreedyAnswer, Material, Portrait, ScoredSequence, gather, portray
from .record import Form, ParityReport
from .run import find_model, form_of, keep
from .weights import type_of

_ANSWER_TOKENS = 48  # so that some answers end, which shows the stop tokens
_PLACES = 4  # of a text at which the likeliest token is asked for
_RETRIES = 2
_SECONDS = 600.0  # for an answer: a server may load its model at the first
_LEADS = {"float16": 0.2, "bfloat16": 0.5}
"""A lead of the likeliest token, in nats, that rounding may turn: twice the largest difference of a log-probability
that was measured (.23 for passes in bfloat16; see ``benchmarks/real_run/parity.md``)."""
_PROMPT_LOGPROBS = {"prompt_logprobs": 1}


@dataclass(frozen=True)
class Served:
    """What a server said.

    Attributes:
        answers: To the questions.
        finishes: How each of them ended.
        scored: Log-probabilities that it gave of texts of ours, and of what it generated.
        lengths: Of texts that it read without a template; None where it does not count.
        places: What it takes to be the likeliest token at chosen places.
        lacks: What it does not give, by the name of the check that needs it.
    """

    answers: tuple[GreedyAnswer, ...]
    finishes: tuple[str | None, ...]
    scored: tuple[ScoredSequence, ...]
    lengths: dict[str, int | None]
    places: tuple[tuple["Place", str], ...]
    lacks: dict[str, str]


@dataclass(frozen=True)
class Place:
    """A place in a text at which the likeliest next token leads clearly.

    Attributes:
        text: The name of the text.
        position: The place of the token that is asked for.
        prompt: All before it, as text.
        token: The likeliest token, as text.
        lead: By how much it leads, in nats.
    """

    text: str
    position: int
    prompt: str
    token: str
    lead: float


def is_server(against: str) -> bool:
    """Says whether something to compare with is a server's address."""
    return against.startswith(("http://", "https://"))


def check_served(model: str, url: str, *, name: str | None = None, api_key_env: str | None = None) -> ParityReport:
    """Compares a model of this machine with what a server gives, and keeps the result beside the run.

    Args:
        model: A run folder, a checkpoint, a model folder or a Hub id.
        url: The server's address: Ollama's own API with ``/api`` at its end (or at its usual port), else an
            OpenAI-compatible one, ``/v1`` of which may be left out.
        name: What the server calls the model; by default as it is named here.
        api_key_env: The environment variable that holds the API key.

    Raises:
        InputError: There is no such model, or the server knows it by another name.
        PosttrainError: The model cannot be loaded, or the server does not answer.
    """
    folder, record, store = find_model(model)
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if not path:
        path = "/api" if parts.port == 11434 else "/v1"
    given = {"model": (name or model), "base_url": f"{parts.scheme}://{parts.netloc}{path}", "api_key_env": api_key_env}
    # One request at a time: in a batch a server may round otherwise.
    spec, ollama = EndpointSpec(**given, concurrency=1, retries=_RETRIES, timeout=_SECONDS), path.endswith("/api")
    loaded = load_model(str(folder), dtype="float32")
    if loaded.outputs is not None:
        raise InputError("a classifier has no answers that a server could give", where=model)
    material = replace(gather(loaded, record), max_new_tokens=_ANSWER_TOKENS)
    one = form_of(folder, store)
    ours = portray(one.name, loaded, material)
    kind = "bfloat16" if type_of(folder) not in ("float32", "float16") else "float16"
    with tempfile.TemporaryDirectory() as record_folder:  # the same address may give another model the next time
        theirs = _ask_all(_Server(spec, ollama, Path(record_folder)), loaded, ours, material, _LEADS[kind])
    checks, first = compare_served(loaded, ours, theirs, material, kind)
    other = Form("Ollama" if ollama else "server", f"{spec.address}, {spec.model}", None)
    notes = (*_notes(loaded), *material.notes)
    return keep(store, one, other, checks, first, kind, notes)


def _notes(loaded: LoadedModel) -> Iterator[str]:
    """Names settings of the model that servers heed in a greedy answer, and this side does not."""
    settings = loaded.model.generation_config
    for field in ("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty"):
        value = getattr(settings, field, None)
        if value not in (None, 0, 1, 1.0):
            yield f"generation_config.json has {field} {value}, which a server heeds: its texts may be others"


@dataclass(frozen=True)
class _Server:
    """A server that is asked many things in order.

    Attributes:
        spec: Where it is.
        ollama: Whether it is asked through Ollama's own API.
        folder: Where what it answers is kept while it is asked.
    """

    spec: EndpointSpec
    ollama: bool
    folder: Path

    def ask(self, requests: Sequence[Request], **extra: Any) -> list[Reply]:
        """Returns a reply to each; one that the server would not take has the finish ``rejected``.

        Raises:
            PosttrainError: The server does not answer.
        """
        spec = self.spec.model_copy(update={"extra": extra})
        requests = [replace(request, protocol="ollama" if self.ollama else "openai") for request in requests]
        replies: dict[str, Reply] = {}
        Endpoint(spec, self.folder / "asked.jsonl").ask(requests, lambda _, reply: replies.update({reply.key: reply}))
        found = [replies[request.key(spec)] for request in requests]
        if silent := next((reply for reply in found if reply.finish is None), None):
            raise PosttrainError(f"the server does not answer: {silent.error}", where=spec.address)
        return found


# --- asking ---


def _ask_all(server: _Server, loaded: LoadedModel, ours: Portrait, material: Material, lead: float) -> Served:
    """Asks a server for all that it can give."""
    lacks: dict[str, str] = {}
    replies = _ask_questions(server, ours, material)
    if not any(reply.logprobs for reply in replies):
        lacks["log-probabilities"] = "the server gives none"
    prompts, scored = ({}, ()) if server.ollama else _ask_prompts(server, ours, material)
    generated = [
        made
        for number, (answer, reply) in enumerate(zip(ours.answers, replies, strict=True), start=1)
        if (made := _generated(f"answer {number}", answer, reply, loaded)) is not None
    ]
    answers = [
        GreedyAnswer(prompts.get(number), None, reply.text, reply.prompt_tokens) for number, reply in enumerate(replies)
    ]
    lengths, places = {}, ()
    try:
        lengths = _ask_lengths(server, ours)
        places = _ask_places(server, loaded.tokenizer, ours, lead)
    except PosttrainError as error:  # it has answered questions; many servers take no bare texts
        lacks |= dict.fromkeys(
            ("tokenisation", "likeliest tokens"), f"bare texts are not taken: {one_line(str(error))}"
        )
    return Served(
        tuple(answers),
        tuple(reply.finish for reply in replies),
        (*scored, *generated),
        lengths,
        tuple(places),
        lacks,
    )


def _ask_questions(server: _Server, ours: Portrait, material: Material) -> list[Reply]:
    """Asks the questions, with log-probabilities if the server takes such a request."""
    requests = [
        Request(messages, material.max_new_tokens, top_logprobs=2)
        if ours.template is not None
        else Request((), material.max_new_tokens, top_logprobs=2, prompt=messages[-1]["content"])
        for messages in material.questions
    ]
    replies = server.ask(requests[:1])
    if replies[0].finish == REJECTED:
        requests = [replace(request, top_logprobs=None) for request in requests]
        replies = server.ask(requests[:1])
    if replies[0].finish == REJECTED:
        hint = "--name is what the server calls the model"
        raise InputError(f"the server takes no question: {replies[0].error}", where=server.spec.address, hint=hint)
    return replies + server.ask(requests[1:])


def _ask_prompts(
    server: _Server, ours: Portrait, material: Material
) -> tuple[dict[int, tuple[int, ...]], tuple[ScoredSequence, ...]]:
    """Asks for the log-probabilities of prompts, an extension of vLLM's; nothing where they are not given.

    Returns:
        The tokens of each question's prompt as the server has them, by its number, and texts of ours, token by token.
    """
    talks = material.questions if ours.template is not None else ()
    requests = [Request(messages, 1) for messages in talks] or [Request((), 1, prompt=ours.scored[0].ids)]
    first = server.ask(requests[:1], **_PROMPT_LOGPROBS)
    if _prompt_logprobs(first[0]) is None:
        return {}, ()
    prompts = {}
    for number, reply in enumerate(first + server.ask(requests[1:], **_PROMPT_LOGPROBS) if talks else ()):
        if (found := _prompt_logprobs(reply)) is not None and ours.answers[number].prompt:
            begun = (ours.answers[number].prompt or ())[:1]  # the first token is given no probability, and no name
            prompts[number] = (*begun, *map(_token_of, found[1:]))
    texts = server.ask([Request((), 1, prompt=text.ids) for text in ours.scored], **_PROMPT_LOGPROBS)
    scored = []
    for text, reply in zip(ours.scored, texts, strict=True):
        if (found := _prompt_logprobs(reply)) is not None and len(found) == len(text.ids):
            pairs = zip(text.ids[1:], found[1:], strict=True)
            scored.append(_scored(text.name, text.ids, [_entry(place, token) for token, place in pairs]))
    return prompts, tuple(scored)


def _prompt_logprobs(reply: Reply) -> list[Any] | None:
    """Returns what vLLM gives for each token of a prompt, at the root of a chat's answer or in a text's choice."""
    choices = reply.raw.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    found = reply.raw.get("prompt_logprobs") or choice.get("prompt_logprobs")
    whole = isinstance(found, list) and len(found) > 1 and all(isinstance(place, dict) and place for place in found[1:])
    return found if whole else None


def _token_of(place: Mapping[str, Any]) -> int:
    """Returns the token that stands at a place; beside it is the likeliest one, if that is another."""
    return int(max(place, key=lambda token: place[token].get("rank") or 0))


def _entry(place: Mapping[str, Any], token: int) -> tuple[float, float]:
    """Returns a token's log-probability, and by how much it leads or is led."""
    own = float((place.get(str(token)) or {}).get("logprob", math.nan))
    others = [float(entry["logprob"]) for key, entry in place.items() if key != str(token)]
    return own, max(others) - own if others else math.nan


def _scored(name: str, ids: Sequence[int], entries: Sequence[tuple[float, float]]) -> ScoredSequence:
    import numpy as np

    logs, margins = np.array(entries, dtype=float).reshape(-1, 2).T
    return ScoredSequence(name, tuple(ids), logs, margins)


def _generated(name: str, answer: GreedyAnswer, reply: Reply, loaded: LoadedModel) -> ScoredSequence | None:
    """Returns the log-probabilities of what a server generated, as far as it is what this side did."""
    decode = loaded.tokenizer.decode
    entries = []
    for token, chances in zip(answer.ids or (), reply.logprobs or (), strict=False):
        text = str(decode([token]))
        # Parts of a character all look alike as text, and their chances would be added up.
        if "\ufffd" in text or text not in chances or chances[text] < max(chances.values()):
            break
        rivals = [chance for rival, chance in chances.items() if rival != text]
        entries.append((chances[text], chances[text] - max(rivals) if rivals else math.nan))
    if not entries:
        return None
    return _scored(name, ((answer.prompt or (0,))[-1], *(answer.ids or ())[: len(entries)]), entries)


def _ask_lengths(server: _Server, ours: Portrait) -> dict[str, int | None]:
    """Asks how many tokens hard strings have."""
    strings = [text for text in ours.tokens if text.strip()]
    first = server.ask([Request((), 1, prompt=strings[0])])
    if first[0].finish == REJECTED:
        raise PosttrainError(str(first[0].error))
    replies = first + server.ask([Request((), 1, prompt=text) for text in strings[1:]])
    return {text: reply.prompt_tokens for text, reply in zip(strings, replies, strict=True)}


def _ask_places(server: _Server, tokenizer: Any, ours: Portrait, lead: float) -> tuple[tuple[Place, str], ...]:
    """Asks for the likeliest token at places where a small change of the weights would make it another."""
    places = [place for text in ours.scored for place in _places(text, tokenizer, lead)]
    replies = server.ask([Request((), 1, prompt=place.prompt) for place in places])
    return tuple((place, reply.text) for place, reply in zip(places, replies, strict=True) if reply.finish != REJECTED)


def _places(text: ScoredSequence, tokenizer: Any, lead: float) -> list[Place]:
    """Chooses places by the smallest lead that rounding cannot turn, of those whose prompt a text can say."""
    found = []
    for at in sorted(range(len(text.margins)), key=lambda at: text.margins[at]):
        if text.margins[at] <= lead or len(found) == _PLACES:
            continue
        prompt = _as_prompt(text.ids[: at + 1], tokenizer)
        token = str(tokenizer.decode([text.best[at]], skip_special_tokens=True))
        if prompt is not None and token.strip() and token.isprintable() and "\ufffd" not in token:
            found.append(Place(text.name, at + 1, prompt, token, float(text.margins[at])))
    return found


def _as_prompt(ids: Sequence[int], tokenizer: Any) -> str | None:
    """Returns a text that a server's tokenizer makes these tokens of; None if there is none."""
    begun = [ids, ids[1:]] if ids[0] == tokenizer.bos_token_id else [ids]  # many tokenizers put it there themselves
    for part in begun:
        text = str(tokenizer.decode(part, clean_up_tokenization_spaces=False))
        if text and list(tokenizer(text)["input_ids"]) == list(ids):
            return text
    return None


# --- comparing ---


def compare_served(
    loaded: LoadedModel, ours: Portrait, theirs: Served, material: Material, kind: str
) -> tuple[list[ParityCheck], FirstDifference | None]:
    """Compares what a server said with what this side says.

    Args:
        loaded: The model of this side.
        ours: What it says of itself.
        theirs: What the server said.
        material: What both were asked.
        kind: Which of the tolerances holds.

    Returns:
        The checks, what the server cannot show among them, and the first token that differs.
    """
    decode = lambda token: str(loaded.tokenizer.decode([token]))  # noqa: E731
    given = [_trimmed(a, b, decode) for a, b in zip(ours.answers, theirs.answers, strict=True)]
    theirs = replace(theirs, answers=tuple(given))
    found = [
        _prompts(loaded, ours, theirs, material),
        _lengths(ours, theirs),
        _stops(ours, theirs, decode),
    ]
    causes = [check.cause for check in found if check.cause]
    outer = next(iter(causes), None)
    inner = None if causes else "other weights, or weights of a coarser type"
    most, mean = TOLERANCES[kind]
    scored = (*ours.scored, *_scored_answers(ours))
    logs, first = compare_logs(scored, theirs.scored, most, mean, inner, decode)
    lacking = theirs.lacks.get("log-probabilities", "none could be compared")
    logs = logs or ParityCheck("log-probabilities", "not compared", lacking)
    if logs.status == "differs":
        logs = replace(logs, cause=inner)
    places, forced = _compare_places(theirs, inner)
    texts, parted = compare_answers(ours.answers, theirs.answers, _LEADS[kind] / 2, (outer, outer or inner), decode)
    assert texts is not None, "a server that answers nothing is an error before"
    hidden = ParityCheck("weights, configuration", "not compared", "no server shows them")
    return [*found, logs, places, texts, hidden], first or forced or parted


def _scored_answers(ours: Portrait) -> Iterator[ScoredSequence]:
    """Yields what this side answered as texts that were scored, for servers that score what they generate."""
    for number, answer in enumerate(ours.answers, start=1):
        if answer.prompt and answer.ids:
            entries = list(zip(answer.logs, answer.margins, strict=True))
            yield _scored(f"answer {number}", (answer.prompt[-1], *answer.ids), entries)


def _trimmed(ours: GreedyAnswer, theirs: GreedyAnswer, decode: Any) -> GreedyAnswer:
    """Takes white space around a text for nothing, and the token that ended it, which some servers leave there."""
    whole = "".join(map(decode, ours.ids or ()))
    return replace(theirs, text=ours.text) if theirs.text.strip() in (ours.text.strip(), whole.strip()) else theirs


def _prompts(loaded: LoadedModel, ours: Portrait, theirs: Served, material: Material) -> ParityCheck:
    """Compares the prompts that the template makes: token by token where a server shows them, else by length."""
    name = "chat template"
    if ours.template is None:
        return ParityCheck(name, "not compared", "this model has none")
    pairs = list(zip(ours.answers, theirs.answers, strict=True))
    if all(b.length is None for _, b in pairs):
        return ParityCheck(name, "not compared", "the server does not count the tokens of a prompt")
    lengths = [b.length for _, b in pairs]
    said = ", ".join(map(str, lengths))
    shown = [(a, b) for a, b in pairs if b.prompt is not None]
    if shown and all(a.prompt == b.prompt for a, b in shown):
        return ParityCheck(name, "same", f"prompts of {said} tokens, token by token")
    own = [a.length for a, _ in pairs]
    if not shown and all(b.length in (None, a.length) for a, b in pairs):
        return ParityCheck(name, "same", f"by the length of the prompts alone, {said} tokens")
    what = f"prompts of {', '.join(map(str, own))} tokens have {said}"
    return ParityCheck(name, "differs", what, cause=_why_prompts(loaded, theirs, material, own, lengths))


def _why_prompts(
    loaded: LoadedModel, theirs: Served, material: Material, own: Sequence[int | None], lengths: Sequence[int | None]
) -> str:
    """Finds what makes prompts as long as a server says that they are."""
    more = {b - a for a, b in zip(own, lengths, strict=True) if a is not None and b is not None}
    bos, plain = loaded.tokenizer.bos_token_id, loaded.tokenizer("Hello.")["input_ids"]
    writes = bos is not None and (plain[:1] == [bos] or theirs.lengths.get("Hello.") == len(plain) + 1)
    if more == {1} and writes:
        return "an extra BOS: the template writes one and the tokenizer another"
    if more == {-1} and bos is not None and plain[:1] != [bos]:
        return "missing BOS"
    for name in names():
        known = load(name)
        if not all(is_single_token(loaded.tokenizer, token) for token in known.special_tokens):
            continue
        made = TextEncoder(loaded.tokenizer, known).split([Talk(talk) for talk in material.questions])
        if [None if isinstance(one, RowError) else len(one[0]) for one in made] == list(lengths):
            return f"another chat template: prompts are as long as under the built-in {name}"
    return "another chat template"


def _lengths(ours: Portrait, theirs: Served) -> ParityCheck:
    """Compares how many tokens bare texts have."""
    name = "tokenisation"
    counted = {text: length for text, length in theirs.lengths.items() if length is not None}
    if not counted:
        return ParityCheck(
            name, "not compared", theirs.lacks.get(name, "the server does not count the tokens of a text")
        )
    more = {text: length - len(ours.tokens[text]) for text, length in counted.items()}
    parted = [text for text in counted if more[text]]
    if not parted:
        return ParityCheck(name, "same", f"{len(counted)} bare texts, by their length alone")
    at = parted[0]
    what = f"{len(parted)} of {len(counted)} bare texts, first {at[:40]!r}: "
    what += f"{len(ours.tokens[at])} tokens are {counted[at]}"
    cause, gaps = "another tokenisation", set(more.values())
    if ours.special["bos"] is not None and gaps in ({1}, {-1}):
        cause = "an extra BOS" if gaps == {1} else "missing BOS"
    return ParityCheck(name, "differs", what, cause=cause)


def _stops(ours: Portrait, theirs: Served, decode: Any) -> ParityCheck:
    """Compares where answers end, of those that begin alike."""
    name, proved = "stop tokens", 0
    for number, (a, b, finish) in enumerate(zip(ours.answers, theirs.answers, theirs.finishes, strict=True), start=1):
        one, other = a.text.strip(), b.text.strip()
        last = a.ids[-1] if a.ids else None
        ended = last in ours.stops
        if a.length is not None and b.length is not None and a.length != b.length:
            continue
        if ended and other.startswith(one) and (len(other) > len(one) or finish == "length"):
            what = f"answer {number} goes on after {decode(last)}"
            return ParityCheck(name, "differs", what, cause="another EOS: the server does not stop there")
        if not ended and finish == "stop" and one.startswith(other) and len(other) < len(one):
            what = f"answer {number} ends after {other[-20:]!r}"
            return ParityCheck(name, "differs", what, cause="another stop token: the server stops too early")
        proved += ended and one == other
    if not proved:
        return ParityCheck(name, "not compared", "no answer that both give ended")
    return ParityCheck(name, "same", f"{proved} of {len(ours.answers)} answers end with the same text")


def _compare_places(theirs: Served, cause: str | None) -> tuple[ParityCheck, FirstDifference | None]:
    """Compares the likeliest tokens at the places that were asked for."""
    name = "likeliest tokens"
    if not theirs.places:
        return ParityCheck(name, "not compared", theirs.lacks.get(name, "no text whose next token is clear")), None
    wrong = [(place, text) for place, text in theirs.places if text.strip() != place.token.strip()]
    smallest = min(place.lead for place, _ in theirs.places)
    what = f"at {len(theirs.places)} places, the smallest lead {smallest:.2g} nats"
    if not wrong:
        return ParityCheck(name, "same", what), None
    place, text = wrong[0]
    first = FirstDifference(place.text, place.position, (place.token, text), (place.lead, None), cause)
    return ParityCheck(name, "differs", f"{len(wrong)} of {what[3:]}", cause=cause), first
