"""What a model says of itself: its template, tokens and configuration, and what it makes of a fixed set of texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...chat_templates.errors import PosttrainError, TemplateError
from ...chat_templates.probes import Probe, default_probes
from ...chat_templates.rendering import render
from ...chat_templates.templates import ChatTemplate, from_tokenizer
from ...data_tools.dataset import load
from ...data_tools.encode import Talk, TextEncoder
from ...data_tools.errors import RowError
from ...data_tools.generate import Sampling, draw, ends_of, room
from ...data_tools.spec import SourceSpec
from ..forward import run
from ..models import LoadedModel

if TYPE_CHECKING:
    import numpy as np
    import torch

HARD_STRINGS = (
    "",
    " ",
    "  two spaces before,  two between, one after ",
    "\n\nlines\r\n\tand tabs\n",
    "don't, it's; we'll e.g. 3.14159, 1,000,000 and 2026-11-29",
    "Grüße, naïve café, 漢字かな交じり, Русский, العربية, हिन्दी",
    "🙂👩‍🚀🏳️‍🌈 ∀x∈ℝ: x²≥0",
    "e\u0301 and é, ﬁ and fi, ½, \u200b zero width, \u00a0 no break",
    "def f(n):\n    return {'a': [n ** 2] * 10}  # comment",
    "<think>so</think> <b>bold</b> [INST] &amp; {{ name }}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "=" * 32,
)
"""Texts on which tokenizers of one family are known to part: white space, digits, normal forms, bytes, code."""
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. Water boils at 100 degrees Celsius.",
    "def factorial(n):\n    if n <= 1:\n        return 1\n    return n * factorial(n - 1)\n\nprint(factorial(5))\n",
    "Grüße aus Zürich! 漢字 and emoji 🙂 fall back to bytes; 3.14159 and 1,001 are split into digits.",
    "It was a bright cold day in April, and the clocks were striking thirteen. " * 6,
)
"""Texts whose every token is scored; the last is long enough for the positions to matter."""
QUESTIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    (
        {"role": "user", "content": "Name three colours."},
        {"role": "assistant", "content": "Red, green and blue."},
        {"role": "user", "content": "And which of them is the colour of the sky?"},
    ),
    (
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "Why do cats sleep so much?"},
    ),
)
"""What is answered greedily, under the model's own template where it has one."""
_ROWS = 3  # of the run's own data
_ROW_TOKENS = 256  # of each at most
_NO_ANSWER = 1  # a row whose answer alone is scored has at least a token before it

# Fields of a configuration that no output depends on, or that another check compares.
_IDLE = {
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}
_DROPOUTS = ("dropout", "pdrop", "layerdrop", "router_jitter_noise", "aux_loss_coef")


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence of tokens under a model.

    Attributes:
        name: What it is, for people.
        ids: The tokens.
        logs: The log-probability of each token but the first, in nats, float64 ``[tokens - 1]``; of a classifier, its
            outputs ``[outputs]``.
        margins: By how much the likeliest token leads the next one, in nats, at each of those places.
        best: The likeliest token at each of those places; empty if unknown.
    """

    name: str
    ids: tuple[int, ...]
    logs: "np.ndarray"
    margins: "np.ndarray"
    best: tuple[int, ...] = ()


@dataclass(frozen=True)
class GreedyAnswer:
    """What a model answers greedily.

    Attributes:
        prompt: The tokens that it reads; None where a server counts them only.
        ids: The tokens that it writes, the one that ends it included; None where a server gives text only.
        text: The same as text.
        length: How many tokens it reads.
        margins: By how much each token leads the next likeliest, in nats; empty if unknown.
        logs: The log-probability of each token; empty if unknown.
    """

    prompt: tuple[int, ...] | None
    ids: tuple[int, ...] | None
    text: str
    length: int | None
    margins: tuple[float, ...] = ()
    logs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Portrait:
    """What one form of a model says of itself.

    Attributes:
        name: What this form is called.
        template: The fingerprint of its chat template; None if it has none.
        template_source: The template's text.
        rendered: What the template makes of each probe; None where it refuses it.
        special: The text and id of its bos, eos and pad token.
        stops: What ends an answer, text by id.
        added: The added tokens, text by id.
        tokens: The tokens of each hard string, as text.
        requests: The tokens of a plain text and of a chat as the model gets them, by the kind of request.
        config: The configuration, without what no output depends on.
        quantized: How its weights are quantised; None if they are not.
        scored: Texts, token by token.
        answers: Greedy answers.
    """

    name: str
    template: str | None
    template_source: str | None
    rendered: dict[str, str | None]
    special: dict[str, tuple[str, int] | None]
    stops: dict[int, str]
    added: dict[int, str]
    tokens: dict[str, tuple[int, ...]]
    requests: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    quantized: str | None
    scored: tuple[ScoredSequence, ...]
    answers: tuple[GreedyAnswer, ...]


@dataclass(frozen=True)
class Material:
    """What both forms are tried on: the same tokens and the same questions.

    Attributes:
        strings: Hard strings to tokenise.
        rows: Names and tokens of what is scored; those of the first form.
        questions: What is answered.
        max_new_tokens: Of an answer at most.
        probes: Conversations that the templates render.
        notes: What could not be used.
    """

    strings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    questions: tuple[tuple[dict[str, str], ...], ...]
    max_new_tokens: int
    probes: tuple[Probe, ...]
    notes: tuple[str, ...]


def gather(loaded: LoadedModel, record: Mapping[str, Any], *, quick: bool = False) -> Material:
    """Chooses what both forms of a model are tried on, by the tokenizer of the first.

    Args:
        loaded: The first form, the one that is taken to be right.
        record: The run's record, for rows of its own data; empty for none.
        quick: Whether a few texts and questions are enough.
    """
    encoder = TextEncoder.of(loaded.tokenizer)
    added = [token.content for _, token in sorted(loaded.tokenizer.added_tokens_decoder.items())]
    texts = TEXTS[::2] if quick else TEXTS
    rows = [(f"text {number}", tuple(ids)) for number, ids in enumerate(encoder.begun(texts), start=1)]
    if encoder.template is not None:
        for number, talk in enumerate(QUESTIONS[:1] if quick else QUESTIONS, start=1):
            made = encoder.split([Talk(talk, [[{"role": "assistant", "content": "That is a good question."}]])])[0]
            if not isinstance(made, RowError):
                rows.append((f"chat {number}", tuple(made[0] + made[1][0])))
    own, notes = _own_rows(encoder, record)
    rows += own[:1] if quick else own
    rows = [(name, ids[: room(loaded.model)]) for name, ids in rows if len(ids) > _NO_ANSWER]
    strings = (*HARD_STRINGS, *(f"a{token}b {token}" for token in added[:64]))
    asked = [talk for talk in QUESTIONS if encoder.template is None or _renders(encoder, talk)]
    probes = default_probes(encoder.template, loaded.tokenizer) if encoder.template is not None else []
    asked, most = (asked[:1], 12) if quick else (asked, 24)
    return Material(strings, tuple(rows), tuple(asked), most, tuple(probes), notes)


def _renders(encoder: TextEncoder, talk: Sequence[dict[str, str]]) -> bool:
    """Says whether the template takes a conversation; some have no system role."""
    return not isinstance(encoder.split([Talk(talk)])[0], RowError)


def _own_rows(encoder: TextEncoder, record: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    """Returns the first rows of a run's training data as tokens, and why there are none."""
    sources = ((record.get("recipe") or {}).get("data") or {}).get("train")
    source = sources[0] if isinstance(sources, list) and sources else sources
    if not isinstance(source, dict):
        return [], ()
    known = {name: value for name, value in source.items() if name in SourceSpec.model_fields}
    step, _, rest = str(known.get("path")).removeprefix("@").partition("/")
    folder = (record.get("references") or {}).get(step)
    if str(known.get("path")).startswith("@") and folder:
        known["path"] = f"{folder}/{rest}"
    rows = []
    try:
        found = load(SourceSpec.model_validate(known), Path(), ("text", "messages", "prompt_completion"))
        for number, (_, row) in zip(range(1, _ROWS + 1), found, strict=False):
            made = _row_ids(encoder, row)
            rows += [(f"training row {number}", tuple(made[:_ROW_TOKENS]))] if made else []
    except (PosttrainError, ValueError, OSError) as error:
        return [], (f"no rows of the run's own data: {str(error).partition(chr(10))[0]}",)
    return rows, ()


def _row_ids(encoder: TextEncoder, row: Mapping[str, Any]) -> list[int]:
    if "text" in row:
        return encoder.documents([str(row["text"])])[0]
    if "messages" in row:
        messages = list(row["messages"])
        answers = [messages[-1:]] if messages[-1].get("role") == "assistant" else []
        made = encoder.split([Talk(messages[: -1 if answers else None], answers)])[0]
    else:
        made = encoder.split([Talk(row["prompt"], [row["completion"]])])[0]
    return [] if isinstance(made, RowError) else made[0] + (made[1][0] if made[1] else [])


def portray(name: str, loaded: LoadedModel, material: Material) -> Portrait:
    """Asks a model of this process for all that can be compared.

    Args:
        name: What this form is called.
        loaded: The model.
        material: What it is tried on.

    Raises:
        EvalError: It is a masked language model.
    """
    loaded.refuse_masked(name)
    tokenizer: Any = loaded.tokenizer
    template = from_tokenizer(tokenizer) if tokenizer.chat_template else None
    encoder = TextEncoder(tokenizer, template)
    named = {kind: getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "pad")}
    ids = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in named}
    writes = loaded.outputs is None
    stops = ends_of(loaded.model, tokenizer) if writes else set()
    quantized = getattr(loaded.model.config, "quantization_config", None)
    config = quantized if isinstance(quantized, dict) or quantized is None else quantized.to_dict()
    return Portrait(
        name=name,
        template=loaded.template_fingerprint,
        template_source=None if template is None else template.source,
        rendered=_render_probes(template, tokenizer, material.probes),
        special={kind: None if ids[kind] is None else (str(named[kind]), ids[kind]) for kind in named},
        stops={stop: str(tokenizer.convert_ids_to_tokens(stop)) for stop in sorted(stops)},
        added={number: token.content for number, token in sorted(tokenizer.added_tokens_decoder.items())},
        tokens=dict(zip(material.strings, map(tuple, _plain(tokenizer, material.strings)), strict=True)),
        requests=_requests(encoder, material),
        config=_decisive(loaded.model.config.to_dict()),
        quantized=None if config is None else _quantization(config),
        scored=score(loaded, material.rows),
        answers=answer(loaded, encoder, material) if writes else (),
    )


def _plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises texts as a server would that is sent them, added tokens and all."""
    return [tokenizer(text, add_special_tokens=True)["input_ids"] for text in texts]


def _requests(encoder: TextEncoder, material: Material) -> dict[str, tuple[int, ...]]:
    """Returns what the model gets for each kind of request."""
    found = {"text": tuple(encoder.begun(["Hello."])[0])}
    found["text, by the tokenizer"] = tuple(encoder.tokenizer("Hello.")["input_ids"])  # type: ignore[arg-type]
    if encoder.template is not None:
        for number, talk in enumerate(material.questions, start=1):
            made = encoder.split([Talk(talk)])[0]
            found[f"chat {number}"] = () if isinstance(made, RowError) else tuple(made[0])
    return found


def _render_probes(template: ChatTemplate | None, tokenizer: Any, probes: Sequence[Probe]) -> dict[str, str | None]:
    """Renders conversations, whole and up to where the assistant is to go on."""
    if template is None:
        return {}
    found: dict[str, str | None] = {}
    for probe in probes:
        messages, tools = probe.conversation["messages"], probe.conversation.get("tools")
        for name, part, go_on in ((probe.name, messages, False), (f"{probe.name}, to go on", messages[:-1], True)):
            try:
                found[name] = render(template, part, tokenizer=tokenizer, tools=tools, add_generation_prompt=go_on).text
            except TemplateError:
                found[name] = None
    return found


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out of a configuration what no output depends on."""
    kept = {
        name: value for name, value in config.items() if name not in _IDLE and not any(d in name for d in _DROPOUTS)
    }
    return {name: _decisive(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _quantization(config: Mapping[str, Any]) -> str:
    method = str(config.get("quant_method") or "quantised")
    return f"{method} {config['bnb_4bit_quant_type']}" if config.get("load_in_4bit") else method


def score(loaded: LoadedModel, rows: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[ScoredSequence, ...]:
    """Scores every token of some sequences; tokens that the model has no embedding for end a sequence."""
    import numpy as np
    import torch

    size = loaded.model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    ids = [[*row[: next((at for at, token in enumerate(row) if token >= size), len(row))]] for _, row in rows]
    ids = [row or [0] for row in ids]

    def read(i: int, logits: "torch.Tensor") -> tuple["np.ndarray", "np.ndarray", tuple[int, ...]]:
        if loaded.outputs is not None:
            return logits.double().cpu().numpy(), np.zeros(0), ()
        log_p = logits[:-1].float().log_softmax(-1)
        targets = torch.as_tensor(ids[i][1:], device=logits.device)
        two, best = log_p.topk(2, dim=-1)
        margins = (two[:, 0] - two[:, 1]).cpu().numpy()
        logs = log_p.gather(-1, targets[:, None])[:, 0].double().cpu().numpy()
        return logs, margins, tuple(best[:, 0].tolist())

    first = None if loaded.outputs is not None else [0] * len(ids)
    found = run(loaded.model, ids, 4, read, first=first)
    return tuple(
        ScoredSequence(name, tuple(row), logs, margins, best)
        for (name, _), row, (logs, margins, best) in zip(rows, ids, found, strict=True)
    )


def answer(loaded: LoadedModel, encoder: TextEncoder, material: Material) -> tuple[GreedyAnswer, ...]:
    """Answers the questions greedily, under the template where there is one, and measures each token's lead."""
    model, tokenizer = loaded.model, loaded.tokenizer
    if encoder.template is None:
        prompts = encoder.begun([talk[-1]["content"] for talk in material.questions])
    else:
        made = encoder.split([Talk(talk) for talk in material.questions])
        prompts = [[] if isinstance(one, RowError) else list(one[0]) for one in made]
    sampling = Sampling(material.max_new_tokens)
    answers = []
    for prompt in prompts:
        if not prompt:
            answers.append(GreedyAnswer((), (), "", 0))
            continue
        (ids, ended), *_ = draw(model, tokenizer, [prompt], sampling, [0])
        (scored,) = score(loaded, [("", tuple(prompt + ids))])
        text: Any = tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True)
        begin = len(prompt) - 1
        answers.append(
            GreedyAnswer(
                tuple(prompt),
                tuple(ids),
                text,
                len(prompt),
                tuple(map(float, scored.margins[begin:])),
                tuple(map(float, scored.logs[begin:])),
            )
        )
    return tuple(answers)


def as_json(value: Any) -> str:
    """Spells a value of a configuration."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
