"""What a server is, what it is asked, and what its answer means; nothing here knows of sockets or files."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, field_validator, model_validator

from .plain_values import is_number
from .spec import ClosedSection, Count, NonEmpty

BUDGET_SPENT = "budget spent"
"""The error of a request that was not sent because the budget had no room for it."""
EMPTY = "the answer is empty"
REFUSAL = "refusal"
REJECTED = "rejected"
"""How a request ended that the server will never take: too long for its context, filtered, not valid."""

_TEMPLATE_TOKENS = 128  # that a chat template may put around the messages, such as a system prompt of its own
_OWN = ("input", "messages", "model", "n", "prompt", "stream", "logprobs", "top_logprobs")


class Prices(ClosedSection):
    """Money for a million tokens, in any one currency."""

    input: NonNegativeFloat
    """Of a million tokens of prompts."""
    output: NonNegativeFloat
    """Of a million tokens of answers."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Returns what a call costs."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class Budget(ClosedSection):
    """What may be spent over the whole life of a record, whatever is killed or started again."""

    tokens: NonNegativeInt | None = None
    """Tokens of prompts and answers together."""
    money: NonNegativeFloat | None = None
    """Money, in the currency of the prices."""
    hours: NonNegativeFloat | None = None
    """Hours of work, waiting included; of a pause between two calls no more than `timeout` counts. What is still on its
    way when they are over is given up."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tokens is None and self.money is None and self.hours is None:
            raise ValueError("a budget needs `tokens`, `money` or `hours`")
        return self


class EndpointSpec(ClosedSection):
    """An OpenAI-compatible server and one model on it."""

    model: NonEmpty
    """The name that the server knows the model by."""
    base_url: Annotated[str, Field(pattern=r"^https?://")]
    """Where it is, such as `http://localhost:8000/v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the API key; none if the server takes none."""
    concurrency: Count = 8
    """Requests at a time, at most."""
    requests_per_minute: Count | None = None
    """Requests sent in any minute, at most."""
    tokens_per_minute: Count | None = None
    """Tokens, of prompts and answers, in any minute, at most."""
    timeout: PositiveFloat = 120
    """Seconds after which a request is given up, and sent again."""
    retries: NonNegativeInt = 6
    """How often a request is sent again after 429, 5xx, a time-out, a lost connection or a body that is no answer."""
    prices: Prices | None = None
    """What tokens cost; without, no money is counted."""
    budget: Budget | None = None
    """What may be spent."""
    extra: dict[str, Any] = {}
    """Further fields of each request's body, such as `reasoning_effort: low`; null leaves a field out, so that
    `{max_tokens: null, max_completion_tokens: 64}` suits servers that want the newer name."""

    @property
    def address(self) -> str:
        """Returns where the server is, without a password that may stand in its URL."""
        return self.base_url.rpartition("@")[2]

    @field_validator("extra")
    @classmethod
    def _leaves_our_own(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := [name for name in extra if name in _OWN]:
            raise ValueError(f"`{own[0]}` is not for `extra` to say")
        return extra

    @model_validator(mode="after")
    def _can_count_money(self) -> Self:
        if self.budget is not None and self.budget.money is not None and self.prices is None:
            raise ValueError("a budget in money needs `prices`")
        return self


@dataclass(frozen=True)
class Request:
    """A question to a model.

    Attributes:
        messages: The conversation, as the chat protocol has it.
        max_tokens: Tokens of the answer at most.
        temperature: 0 is greedy.
        top_p: The mass of the likeliest tokens that are drawn from; not sent when it is 1.
        seed: Of the draws, for servers that know it.
        top_logprobs: How many of the likeliest tokens are wanted with their log-probabilities; None for none.
        stop: Texts that end the answer.
        salt: Sent to nobody, but part of what makes two requests the same one. A paid answer is never paid again;
            another salt (the number of a repeat, the hash of a model's weights) asks anew.
        prompt: A text, or tokens for servers that take them, that is gone on with as it is, under no template; in the
            place of the messages, which are then empty.
        protocol: ``ollama`` is that server's own API, which gives log-probabilities of what it generates; the base URL
            then ends in ``/api``. ``embeddings`` asks for the vector of the prompt; the answer is a list in JSON.
    """

    messages: tuple[dict[str, Any], ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    salt: str = ""
    prompt: str | tuple[int, ...] | None = None
    protocol: Literal["openai", "ollama", "embeddings"] = "openai"

    @property
    def path(self) -> str:
        """Returns where under the base URL it is sent to."""
        if self.protocol == "ollama":
            return "/chat" if self.prompt is None else "/generate"
        if self.protocol == "embeddings":
            return "/embeddings"
        return "/chat/completions" if self.prompt is None else "/completions"

    def body(self, spec: EndpointSpec) -> dict[str, Any]:
        """Returns what is sent; half characters (lone surrogates), which no server takes, become question marks."""
        asked = {"messages": list(self.messages)} if self.prompt is None else {"prompt": self.prompt}
        settings = {
            "temperature": self.temperature,
            "top_p": None if self.top_p == 1 else self.top_p,
            "seed": self.seed,
            "stop": list(self.stop) or None,
        }
        rivals = {"logprobs": None if self.top_logprobs is None else True, "top_logprobs": self.top_logprobs}
        if self.protocol == "embeddings":
            body = {"input": self.prompt}
        elif self.protocol == "ollama":
            options = {name: value for name, value in settings.items() if value is not None}
            raw = None if self.prompt is None else True  # under no template
            body = {**asked, "raw": raw, "stream": False, **rivals}
            body["options"] = {**options, "num_predict": self.max_tokens}
        elif self.prompt is not None:  # here `logprobs` is a number, and there is no second field
            body = {**asked, "max_tokens": self.max_tokens, **settings, "logprobs": self.top_logprobs}
        else:
            body = {**asked, "max_tokens": self.max_tokens, **settings, **rivals}
        body = {"model": spec.model, **body, **spec.extra}
        text = json.dumps({name: value for name, value in body.items() if value is not None}, ensure_ascii=False)
        return json.loads(text.encode(errors="replace"))

    def key(self, spec: EndpointSpec) -> str:
        """Returns 32 hexadecimal digits that two requests share if they ask the same of the same model and server."""
        identity = [self.body(spec), _plain_url(spec.base_url), self.salt]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        key: :meth:`Request.key`.
        text: The answer; empty if there is none.
        finish: How it ended: ``stop``, ``length`` (cut at ``max_tokens``; whatever text there is is kept),
            ``content_filter``, ``refusal``, ``rejected`` (the server would not take this request, and never will), or
            what else the server said; None if no answer came for the network's, the server's or the budget's sake.
        prompt_tokens: As the server counted, or None.
        completion_tokens: Likewise.
        cost: Money, or None without prices. What was paid once, also when it is read from the record.
        seconds: From sending to the whole answer, of the try that succeeded; 0 without an answer.
        logprobs: For each token of the answer, the log-probabilities by token of it and its rivals; None if the
            server gave none.
        error: Why there is no usable text, in one line; None if there is. A cut answer is no error unless it is empty.
            What stands before the first colon is the same for all errors of a kind.
        raw: The server's answer as JSON, or empty without an answer.
        recorded: Whether it was read from the record rather than asked for.
    """

    key: str
    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    seconds: float = 0.0
    logprobs: tuple[dict[str, float], ...] | None = None
    error: str | None = None
    raw: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False


def _plain_url(url: str) -> str:
    """Returns a server's address without a user's name and password."""
    scheme, _, rest = url.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def worst_case(body: dict[str, Any]) -> tuple[int, int]:
    """Returns the most tokens that the prompt and the answer of a request can have.

    A token stands for one byte at least, so the bytes of the request's JSON bound those of the messages; 128 more are
    for what the model's chat template adds.
    """
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    limits += [options.get("num_predict")] if isinstance(options := body.get("options"), dict) else []
    answer = max((limit for limit in limits if isinstance(limit, int)), default=0)
    return len(json.dumps(body, ensure_ascii=False).encode()) + _TEMPLATE_TOKENS, answer


def token_counts(raw: Any) -> tuple[int | None, int | None]:
    """Returns how many tokens a server counted in the prompt and the answer; None for what cannot be a count."""
    raw = as_chat(raw)
    usage = raw.get("usage") if isinstance(raw, dict) else None
    said = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, answer = (count if type(count) is int and count >= 0 else None for count in said)
    return prompt or None, answer  # no prompt is of no tokens


def read_reply(key: str, body: str, *, seconds: float, cost: float | None, recorded: bool = False) -> Reply:
    """Makes of a body, which may be anything, what it means; one that is no completion has no ``finish``."""
    raw = parse_json(body)
    prompt_tokens, completion_tokens = token_counts(raw)
    chat = as_chat(raw)
    text, finish, error = _meaning(chat)
    return Reply(
        key,
        text,
        finish,
        prompt_tokens,
        completion_tokens,
        cost,
        seconds,
        _logprobs(chat),
        error,
        raw if isinstance(raw, dict) else {},
        recorded,
    )


def as_chat(raw: Any) -> Any:
    """Puts a completion of a text, an embedding, or an answer of Ollama's API into the form of a chat completion."""
    if not isinstance(raw, dict):
        return raw
    vector = _vector(raw.get("data"))
    if vector is not None:
        return {**raw, "choices": [{"message": {"content": json.dumps(vector)}, "finish_reason": "stop"}]}
    choices = raw.get("choices")
    if isinstance(choices, list):
        made = [_with_message(choice) for choice in choices]
        return {**raw, "choices": made} if made != choices else raw
    if "done" not in raw or "error" in raw:
        return raw
    message = raw.get("message") if "message" in raw else {"role": "assistant", "content": raw.get("response")}
    logprobs = None if raw.get("logprobs") is None else {"content": raw["logprobs"]}
    choice = {"message": message, "finish_reason": raw.get("done_reason"), "logprobs": logprobs}
    usage = {"prompt_tokens": raw.get("prompt_eval_count"), "completion_tokens": raw.get("eval_count")}
    return {"choices": [choice], "usage": usage}


def _vector(data: Any) -> list[float] | None:
    """Returns the embedding that an answer holds; None if it holds none, or one that is no vector of numbers."""
    first = data[0] if isinstance(data, list) and data else None
    vector = first.get("embedding") if isinstance(first, dict) else None
    if not isinstance(vector, list) or not vector:
        return None
    return vector if all(is_number(one) and math.isfinite(one) for one in vector) else None


def _with_message(choice: Any) -> Any:
    if not isinstance(choice, dict) or "message" in choice or not isinstance(choice.get("text"), str):
        return choice
    given = choice.get("logprobs")
    tokens, chances = (given.get(name) if isinstance(given, dict) else None for name in ("tokens", "token_logprobs"))
    content = None
    if isinstance(tokens, list) and isinstance(chances, list):
        content = [{"token": token, "logprob": chance} for token, chance in zip(tokens, chances, strict=False)]
    message = {"role": "assistant", "content": choice["text"]}
    return {**choice, "message": message, "logprobs": content and {"content": content}}


def parse_json(body: str) -> Any:
    """Returns what a text says in JSON; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _meaning(raw: Any) -> tuple[str, str | None, str | None]:
    """Returns an answer's text, how it ended, and what is wrong with it; it did not end if it is no completion.

    Half of a body, a proxy's page or an error sent as a success are the network's or the server's fault, not the
    model's: asked again, it may well answer.
    """
    if not isinstance(raw, dict):
        return "", None, "the server's answer is no JSON object"
    choices = raw.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    if error := choice.get("error") if choice else raw.get("error"):
        return "", None, f"error: {one_line(str(error.get('message', error) if isinstance(error, dict) else error))}"
    message, finish = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict) or finish == "error":
        return "", None, "the server's answer holds no message"
    text, refusal = _text(message.get("content")), message.get("refusal")
    finish = finish if isinstance(finish, str) else "unknown"
    if isinstance(refusal, str) and refusal:
        return text, REFUSAL, f"the model refused: {one_line(refusal)}"
    if finish == "content_filter":
        return text, finish, "the server filtered the answer"
    # A model that thought until it was cut, or called a tool, has answered; one that just says nothing says "".
    said = finish == "length" or choice.get("logprobs")
    said = said or any(message.get(name) for name in ("reasoning_content", "reasoning", "tool_calls"))
    if not isinstance(message.get("content"), str | list) and not said:
        return "", None, "the server's answer holds no text"
    return text, finish, None if text else EMPTY


def _text(content: Any) -> str:
    """Returns the text of a message's content, which is a text or a list of parts; half characters become ``?``."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def one_line(text: str) -> str:
    """Returns a text of somebody else's as one printable line of limited length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 300 else line[:299] + "…"


def _logprobs(raw: Any) -> tuple[dict[str, float], ...] | None:
    """Returns log-probabilities by token for each token of the answer, or None."""
    try:
        tokens = raw["choices"][0]["logprobs"]["content"]
    except (TypeError, KeyError, IndexError):
        return None
    if not isinstance(tokens, list) or not tokens:
        return None
    found = []
    for token in tokens:
        chances: dict[str, float] = {}
        rivals = token.get("top_logprobs") if isinstance(token, dict) else None
        for rival in rivals if isinstance(rivals, list) else []:
            _add(chances, rival)
        if not isinstance(token, dict) or (token.get("token") not in chances and not _add(chances, token)):
            return None
        found.append(chances)
    return tuple(found)


def _add(chances: dict[str, float], token: Any) -> bool:
    """Adds a token's probability; different tokens may look the same as text, then their chances add up."""
    name, value = (token.get("token"), token.get("logprob")) if isinstance(token, dict) else (None, None)
    if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not math.isfinite(value) or value > 1e-3:
        return False
    old = chances.get(name)
    chances[name] = float(value) if old is None else max(old, value) + math.log1p(math.exp(-abs(old - value)))
    return True
