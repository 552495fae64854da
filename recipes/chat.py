"""``posttrain chat``: a conversation in the terminal, under the model's own template.

Encoding is :mod:`posttrain.data_tools.encode`'s, so that a control token written out stays text, and draws are
:mod:`posttrain.data_tools.generate`'s, so that the same lines under the same seed get the same answers.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..chat_templates import fingerprint, recognise
from ..chat_templates.errors import InputError
from ..data_tools.encode import TextEncoder
from ..data_tools.files import without_surrogates
from ..data_tools.generate import Sampling, generate, room
from ..evals.checkpoints import list_checkpoints
from ..evals.models import load_language_model
from ..evals.runs import is_run, locate


@dataclass
class _Conversation:
    """What was said so far, and the model that answers."""

    model: Any
    encoder: TextEncoder
    sampling: Sampling
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system is not None else []

    def answer(self, text: str) -> None:
        """Prints the answer to a message as it is drawn; a message that leaves no room for one is left out."""
        asked = [*self.messages, {"role": "user", "content": text}]
        (prompt,) = self.encoder.prompts([asked])
        most = room(self.model)
        left = self.sampling.max_new_tokens if most is None else most - len(prompt)
        if left < 1:
            _say(f"the conversation has {len(prompt)} tokens and the model takes {most}: /reset begins anew")
            return
        sampling = replace(self.sampling, max_new_tokens=min(left, self.sampling.max_new_tokens))
        tokenizer = self.encoder.tokenizer
        key = f"turn {len(self.messages)}"
        (reply,) = generate(self.model, tokenizer, [prompt], sampling, [key], streamer=_streamer(tokenizer))
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]
        if reply.finish == "length":
            _say(f"(cut after {reply.completion_tokens} tokens)")


def talk(source: str, sampling: Sampling, *, system: str | None = None) -> None:
    """Answers what is typed until the input ends; what is no answer goes to stderr.

    Args:
        source: A run folder, a checkpoint, a model folder or a Hub id.
        sampling: How answers are drawn.
        system: A system message.

    Raises:
        InputError: There is no such model, it has no chat template, or its template takes no system message.
        EvalError: The model cannot be loaded, or writes no text.
    """
    folder = _newest(source)
    loaded = load_language_model(str(folder))
    encoder = TextEncoder.of(loaded.tokenizer)
    if encoder.template is None:
        hint = "train it with model.chat_template, or put a chat_template.jinja beside its tokenizer"
        raise InputError("the model has no chat template", where=str(folder), hint=hint)
    conversation = _Conversation(loaded.model, encoder, sampling, system)
    conversation.reset()
    encoder.prompts([[*conversation.messages, {"role": "user", "content": "Hello"}]], where=str(folder))
    known = recognise(encoder.template, loaded.tokenizer)
    name = known.name if known else "the model's own"
    _say(f"model: {folder} ({type(loaded.model).__name__}, {loaded.model.device})")
    _say(f"template: {name} (fingerprint {fingerprint(encoder.template, loaded.tokenizer)})")
    _say(f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {sampling.seed}; /reset, /quit, Ctrl-D")
    for text in _lines():
        if text == "/quit":
            return
        if text == "/reset":
            conversation.reset()
            _say("a new conversation")
            continue
        try:
            conversation.answer(text)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            _say("\n(interrupted: the message and its answer are left out)")


def _newest(source: str) -> Path:
    """Returns the model's folder; of a run that has not ended, its last checkpoint."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if checkpoints := list_checkpoints(folder):
            return checkpoints[-1]
        if is_run(folder):
            raise InputError("the run has no checkpoint yet", where=source)
    return locate(source)


def _lines() -> Iterator[str]:
    """Yields what is typed, line by line, without empty lines."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # `input` edits lines and remembers them
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        if text := without_surrogates(line.strip()):
            yield text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _streamer(tokenizer: Any) -> Any:
    """Returns what prints an answer as it is drawn; what would move the terminal's cursor is spelt out."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
            print("".join(shown), end="\n" if stream_end else "", flush=True)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)
