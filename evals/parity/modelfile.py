"""Ollama's Modelfile: written, read back, and compared with the model that it is to serve."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...chat_templates.errors import InputError, TemplateError, first_line
from ...chat_templates.ollama import compare_prompts
from ...chat_templates.templates import from_tokenizer
from ..models import gguf_reader
from .compare import ParityCheck, compare_stops

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMMAND = re.compile(r"[ \t]*(#[^\n]*|([A-Za-z]+)[ \t]+)?")
_NOT_COMPARED = ("adapter", "message", "renderer", "parser", "draft")
# Where llama.cpp (src/llama-vocab.cpp) adds BOS if the file does not say: kinds of vocabulary, and of its splitting.
_BOS_KINDS = ("llama", "bert")
_BOS_SPLITS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken", "chameleon")


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says of a model, as far as it decides what is asked and where an answer ends.

    Attributes:
        weights: The GGUF file behind FROM.
        template: TEMPLATE; None if there is none.
        stops: Each ``PARAMETER stop``.
        system: SYSTEM; None if there is none.
    """

    weights: Path
    template: str | None
    stops: tuple[str, ...]
    system: str | None = None


def write_modelfile(weights: str, template: str, stops: Sequence[str]) -> str:
    """Returns the text of a Modelfile.

    Args:
        weights: The name of the GGUF file beside it.
        template: Ollama's template.
        stops: The texts of all tokens that end an answer.

    Raises:
        InputError: A text cannot stand in a Modelfile.
    """
    for text in (template, *stops):
        if any(not (c.isprintable() or c in "\n\t") for c in text) or '"""' in text:
            what = "the chat template or a stop token has characters that a Modelfile cannot hold"
            raise InputError(what, where=repr(text[:60]))
    lines = [f"FROM ./{weights}", f'TEMPLATE """{template}"""', *(f'PARAMETER stop "{stop}"' for stop in stops)]
    return "\n".join(lines) + "\n"


def read_modelfile(path: Path) -> Modelfile:
    """Reads a Modelfile as Ollama does (ollama/ollama, ``parser/parser.go``); FROM must name a GGUF file.

    Raises:
        InputError: It cannot be read, or holds what cannot be compared.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the Modelfile: {first_line(error)}", where=str(path)) from error
    found: dict[str, str] = {}
    stops: list[str] = []
    for name, value in _commands(text, path):
        if name in _NOT_COMPARED:
            raise InputError(f"a Modelfile with {name.upper()} cannot be compared", where=str(path))
        if name != "parameter":
            found[name] = value
        elif (said := value.split(None, 1))[0] == "stop" and len(said) == 2:
            stops.append(_unquoted(said[1]))
    weights = path.parent / Path(found.get("from", "")).expanduser()
    if not weights.is_file():
        raise InputError(f"FROM names no file here: {found.get('from', 'it is missing')!r}", where=str(path))
    return Modelfile(weights, found.get("template"), tuple(stops), found.get("system"))


def _commands(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yields the commands with their values; of a value in triple quotes, its lines."""
    at = 0
    while at < len(text):
        found = _COMMAND.match(text, at)
        assert found, "the pattern matches an empty text too"
        if not found[2]:
            end = text.find("\n", at)
            line = text[at : end if end >= 0 else len(text)]
            if line.strip() and not found[1]:
                raise InputError(f"a line of the Modelfile is no command: {line[:40]!r}", where=str(path))
            at = end + 1 if end >= 0 else len(text)
            continue
        at = found.end()
        quotes = next((quotes for quotes in ('"""', '"') if text.startswith(quotes, at)), None)
        if quotes is None:
            end = text.find("\n", at)
            end = end if end >= 0 else len(text)
            yield found[2].lower(), text[at:end].strip() if found[2].lower() == "parameter" else _unquoted(text[at:end])
        else:  # it ends with the first such quotes that a line ends with
            closed = re.compile(rf"{quotes}[ \t]*(\n|$(?!.))", re.DOTALL).search(text, at + len(quotes))
            if closed is None:
                raise InputError(f"{found[2].upper()} of the Modelfile has quotes that are not closed", where=str(path))
            yield found[2].lower(), text[at + len(quotes) : closed.start()]
            end = closed.end() - len(closed[1])
        at = end + 1


def _unquoted(value: str) -> str:
    value = value.strip()
    for quotes in ('"""', '"'):
        if len(value) >= 2 * len(quotes) and value.startswith(quotes) and value.endswith(quotes):
            return value[len(quotes) : -len(quotes)]
    return value


def compare_modelfile(
    modelfile: Modelfile, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]
) -> list[ParityCheck]:
    """Compares a Modelfile with the model: what it makes of conversations, and what ends an answer.

    Args:
        modelfile: What was read.
        tokenizer: The model's own, with its chat template.
        stops: The texts of all tokens that end an answer of the model.
    """
    end = compare_stops(stops, modelfile.stops, "stops of the Modelfile")
    if end.status == "differs":
        end = ParityCheck(end.name, "differs", end.detail, cause="a wrong stop token in the Modelfile")
    return [_prompts(modelfile, tokenizer), end]


def _prompts(modelfile: Modelfile, tokenizer: "PreTrainedTokenizerBase") -> ParityCheck:
    name, cause = "TEMPLATE of the Modelfile", "another TEMPLATE in the Modelfile"
    if not tokenizer.chat_template:
        return ParityCheck(name, "not compared", "the model has no chat template")
    if modelfile.template is None:
        return ParityCheck(name, "differs", "there is none", cause=cause)
    bos = str(tokenizer.bos_token) if adds_bos(modelfile.weights) else None
    try:
        own = from_tokenizer(tokenizer)
        found = compare_prompts(modelfile.template, own, tokenizer, bos, modelfile.system)
    except TemplateError as error:
        return ParityCheck(name, "differs", error.what, cause="BOS that Ollama adds")
    wrong = [difference for difference in found if difference.required]
    if wrong:
        return ParityCheck(name, "differs", f"{len(wrong)} probes, first {wrong[0].detail}", cause=cause)
    if found:
        return ParityCheck(name, "close", f"but for {'; '.join(difference.probe for difference in found)}")
    return ParityCheck(name, "same", "rendered alike on all probes")


def adds_bos(weights: Path) -> bool:
    """Whether llama.cpp and Ollama put BOS before every prompt for a GGUF file.

    Raises:
        EvalError: The package ``gguf`` is not installed, or the file cannot be read.
    """
    said = gguf_value(weights, "tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    kind, split = (gguf_value(weights, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return kind in _BOS_KINDS or (kind == "gpt2" and split in _BOS_SPLITS)


def gguf_value(weights: Path, key: str) -> object:
    """Returns a value of a GGUF file's head, None if it has none of this name; raises as :func:`gguf_reader`."""
    field = gguf_reader(weights).get_field(key)
    return None if field is None else field.contents()
