"""What a language model makes of rows of data: the likelihood of texts, and of answers with and without their prompts.

Texts are scored as ``perplexity`` scores documents, in windows where they are longer than the model reads at once. An
answer is scored from one tokenisation: its tokens are those that ``data_tools.encode`` puts behind the prompt, without
the token that ends the turn and what the template puts behind it. The very same ids are scored alone behind the token
that begins every text: BOS, or EOS where there is none; with neither, an answer's first token is scored in no pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat_templates.probes import end_of_turn
from ..data_tools.encode import Talk, TextEncoder
from ..data_tools.errors import RowError
from .forward import negative_log_likelihoods
from .perplexity import Window, encode, first_context, windows

if TYPE_CHECKING:
    from .models import LoadedModel

TOO_LONG = "longer than the model takes"
NO_TOKENS = "no token to score"
CERTAIN = "certain without its prompt"


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a text.

    Attributes:
        tokens: How many were scored.
        bytes: Of UTF-8 that they stand for.
        nats: The sum of their negative log-likelihoods, of an answer given its prompt.
        alone: The same of the answer without its prompt; None where that was not asked.
    """

    tokens: int
    bytes: int
    nats: float
    alone: float | None = None

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood of a token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that has no number."""
        return math.exp(self.loss) if self.loss < math.log(1e300) else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The sum in bits over the bytes."""
        return self.nats / math.log(2) / self.bytes

    @property
    def ifd(self) -> float:
        """The instruction-following difficulty: the loss given the prompt over the loss without it.

        Both are means over the tokens of the answer: the conditioned over the direct answer score (Li et al. 2024,
        arXiv:2308.12032). Superfiltering's ratio of perplexities (arXiv:2402.00530) ranks rows otherwise.
        """
        assert self.alone is not None, "the caller has asked for it"
        return self.nats / self.alone

    @property
    def ifd_perplexity(self) -> float:
        """The perplexity given the prompt over that without it (Li et al. 2024, Superfiltering, arXiv:2402.00530)."""
        assert self.alone is not None, "the caller has asked for it"
        return math.exp(min((self.nats - self.alone) / self.tokens, 700.0))


def text_likelihoods(
    loaded: "LoadedModel", texts: Sequence[str], *, max_length: int, batch_size: int
) -> list[Likelihood | RowError]:
    """Scores whole texts, each by itself; one longer than ``max_length`` in windows that overlap by half.

    Args:
        loaded: A causal language model and its tokenizer.
        texts: The texts.
        max_length: Tokens that the model reads at once.
        batch_size: Rows at a time.

    Returns:
        For each text its likelihood, or why it has none.

    Raises:
        EvalError: A log-likelihood is not finite.
    """
    tokens = encode(texts, loaded.tokenizer)
    stride = max(1, max_length // 2)
    cut = [Window(number, *part) for number, ids in enumerate(tokens) for part in windows(len(ids), max_length, stride)]
    rows = [tokens[window.document][window.start : window.end] for window in cut]
    nats = negative_log_likelihoods(loaded.model, rows, [window.first - window.start for window in cut], batch_size)
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    for window, value in zip(cut, nats, strict=True):
        sums[window.document] += float(value)
        counts[window.document] += window.end - window.first
    return [
        Likelihood(count, len(text.encode(errors="surrogatepass")), total) if count else RowError(NO_TOKENS)
        for text, total, count in zip(texts, sums, counts, strict=True)
    ]


def answer_likelihoods(
    loaded: "LoadedModel", rows: Sequence[Mapping[str, Any]], *, alone: bool, max_length: int, batch_size: int
) -> list[Likelihood | RowError]:
    """Scores the answers of rows given their prompts.

    Args:
        loaded: A causal language model, its tokenizer and the template that this carries.
        rows: ``prompt``, ``completion`` and ``tools``, as ``formats.canonicalizer`` gives them.
        alone: Whether each answer is also scored without its prompt.
        max_length: Tokens of prompt and answer that the model reads at once; longer ones get no score.
        batch_size: Rows at a time.

    Returns:
        For each row its likelihood, or why it has none.

    Raises:
        DataError: There are conversations, but the tokenizer has no chat template.
        EvalError: A log-likelihood is not finite.
    """
    texts = TextEncoder.of(loaded.tokenizer)
    ends = _ends(texts)
    context = first_context(loaded.tokenizer)
    made = texts.split([Talk(row["prompt"], [row["completion"]], row.get("tools")) for row in rows])
    found: list[Likelihood | RowError | None] = [None] * len(rows)
    passes: list[list[int]] = []
    first: list[int] = []
    sizes: dict[int, tuple[int, int]] = {}
    for number, split in enumerate(made):
        if isinstance(split, RowError):
            found[number] = split
            continue
        prompt, [answer] = split
        answer = _without_end(answer, ends)
        given = [*(prompt or context), *answer]
        skipped = 0 if context else 1  # alone, nothing predicts the first token
        scored = answer[skipped:]
        text: Any = loaded.tokenizer.decode(scored, clean_up_tokenization_spaces=False)
        size = len(text.encode())
        if not size:
            found[number] = RowError(NO_TOKENS)
        elif len(given) > max_length:
            found[number] = RowError(TOO_LONG, f"{len(given)} tokens of {max_length}")
        else:
            sizes[number] = len(scored), size
            passes.append(given)
            first.append(len(given) - len(scored))
            if alone:
                passes.append([*context, *answer])
                first.append(len(context) + skipped)
    nats = iter(negative_log_likelihoods(loaded.model, passes, first, batch_size).tolist())
    for number, (tokens, size) in sizes.items():
        likely = Likelihood(tokens, size, next(nats), next(nats) if alone else None)
        found[number] = RowError(CERTAIN) if likely.alone == 0 else likely  # which nothing can be divided by
    return [one for one in found if one is not None]


def whole_tokens(
    loaded: "LoadedModel", rows: Sequence[Mapping[str, Any]], *, max_length: int
) -> list[tuple[list[int], bool] | RowError]:
    """Tokenises whole rows: a text behind its first context, a prompt with its answer and what ends that.

    Args:
        loaded: A language model, its tokenizer and the template that this carries.
        rows: ``text``, or ``prompt``, ``completion`` and ``tools``.
        max_length: Tokens at most; what is longer is cut.

    Returns:
        For each row its tokens and whether they were cut, or why it has none.

    Raises:
        DataError: There are conversations, but the tokenizer has no chat template.
    """
    texts = TextEncoder.of(loaded.tokenizer)
    made: list[Any] = [None] * len(rows)
    plain = [number for number, row in enumerate(rows) if "text" in row]
    for number, ids in zip(plain, encode([rows[number]["text"] for number in plain], loaded.tokenizer), strict=True):
        made[number] = ids
    talks = [number for number, row in enumerate(rows) if "text" not in row]
    split = texts.split([Talk(rows[n]["prompt"], [rows[n]["completion"]], rows[n].get("tools")) for n in talks])
    for number, parts in zip(talks, split, strict=True):
        made[number] = parts if isinstance(parts, RowError) else [*parts[0], *parts[1][0]]
    context = first_context(loaded.tokenizer)
    return [
        ids
        if isinstance(ids, RowError)
        else (ids[:max_length], len(ids) > max_length)
        if len(ids) > len(context)
        else RowError(NO_TOKENS)
        for ids in made
    ]


def _ends(texts: TextEncoder) -> frozenset[int]:
    """Returns the tokens that end an answer."""
    names = [texts.tokenizer.eos_token, texts.template and end_of_turn(texts.template, texts.tokenizer)]
    ids: Any = texts.tokenizer.convert_tokens_to_ids([str(name) for name in names if name])
    return frozenset(ids)


def _without_end(answer: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Cuts off the token that ends an answer and what the template puts behind it."""
    last = next((place for place in range(len(answer) - 1, -1, -1) if answer[place] in ends), len(answer))
    return list(answer[:last])
