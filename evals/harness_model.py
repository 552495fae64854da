"""A model as lm-evaluation-harness has it: HFLM with this project's prompts, shared contexts and parted passes.

Imported where a model is wrapped, since lm-eval's class of it brings torch and transformers with it.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from lm_eval.models import huggingface
from transformers import LogitsProcessorList

from ..chat_templates.rendering import is_mark, mark_special, with_strings
from ..data_tools.encode import TextEncoder
from ..data_tools.generate import FiniteLogits, decode_answer
from ..data_tools.progress import ProgressLine
from .continuous import Continuous
from .errors import EvalError
from .kept_passes import KeptPasses, not_kept
from .models import LoadedModel
from .sampling import Draws
from .sequences import grouped
from .shared_context import Once, Prompts, Scorer, Stops
from .spec import SamplingSpec, SuiteSpec
from .team import Calls, at_work, divided
from .thinking import MARKS, answer_in, begins_with_thought, may_think, opened_by

_HFLM: Any = huggingface.HFLM  # its registering decorator hides its type


class OwnPrompts:
    """Makes the prompts of lm-eval's models as prompts are made everywhere in this project; stands before their class.

    lm-eval passes prompts on as one text, in which a control token that a row holds looks like the template's. So the
    text of a chat begins with a mark, and has it around each that is text.

    Args:
        tokenizer: Of the model.
        suite: The suite that it is scored on.
        how: Arguments of lm-eval's class.

    Attributes:
        setting: How the task at work draws answers; None for greedy ones.
        draws: What draws them, if lm-eval's class does not.
        thinking: Of the task at work: how many answers there were, with thoughts, and with thoughts without end.
    """

    setting: SamplingSpec | None = None
    draws: Draws | None = None
    thinking: dict[str, int] | None = None

    def __init__(self, tokenizer: Any, suite: SuiteSpec, /, **how: Any):
        self.encoder = TextEncoder.of(tokenizer)  # lm-eval's models tokenise while they are made
        make: Any = super().__init__
        make(max_length=suite.max_length, **how)
        # Afterwards: lm-eval's vLLM would take some of the variables out, and make a tokenizer of its own.
        self.tokenizer, self.chat_template_args = tokenizer, dict(suite.template_variables)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a chat, with marks."""
        marked, mark = mark_special(chat_history, self.encoder.special)
        # HFLM's, which asks the tokenizer; others ask their server's libraries
        return mark + _HFLM.apply_chat_template(self, marked, add_generation_prompt)

    def tok_encode(
        self, string: Any, add_special_tokens: Any = None, left_truncate_len: int | None = None, **_: Any
    ) -> Any:
        """Tokenises a text, or each of several; what begins a sequence stands there once."""
        if not isinstance(string, str):
            return [self.tok_encode(one, add_special_tokens, left_truncate_len) for one in string]
        if is_mark(string[:1]):
            ids = self.encoder.marked(string[1:], string[0])
        else:
            [ids] = self.encoder.texts([string]) if add_special_tokens is False else self.encoder.begun([string])
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if is_mark(context[:1]):
            continuation = with_strings(continuation, self.encoder.special, rf"{context[0]}\g<0>{context[0]}")
        lm_eval_model: Any = super()
        return lm_eval_model._encode_pair(context, continuation)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Scores continuations.

        Raises:
            EvalError: The chat template has opened a thought, in which they would stand.
        """
        prompt = requests[0].args[0]
        if is_mark(prompt[:1]) and (tags := opened_by(unmarked(prompt))):
            hint = (
                "say `chat: never`, or give the template a variable that has it open none, as `enable_thinking: false`"
            )
            raise EvalError(f"options would be asked within a thought: the template ends in {tags[0]}", hint=hint)
        lm_eval_model: Any = super()
        return lm_eval_model.loglikelihood(requests, disable_tqdm)

    def without_thoughts(self, requests: Sequence[Any], write: Callable[[list[Any]], list[str]]) -> list[str]:
        """Has answers written, of a model that may think to their end, and takes its thoughts out.

        A model may think although its template does not know of it: then all is written anew without stop strings.
        """
        templated = is_mark(requests[0].args[0][:1])
        if not (templated and may_think(str(self.tokenizer.chat_template))):
            texts = write(list(requests))
            if not (templated and any(map(begins_with_thought, texts))):
                return texts
            if self.draws is not None:
                self.draws.seen.clear()  # the same draws once more
        texts, self.thinking = _answers(requests, write([_without_stops(request) for request in requests]))
        return texts


class HarnessModel(OwnPrompts, _HFLM):
    """HFLM with shared contexts. Log-probabilities are taken in float32 whatever the weights are.

    Args:
        loaded: The model.
        suite: The suite that it is scored on.

    Attributes:
        longest: Tokens that a context and its continuation may have together.
        shared: What scores continuations; its record says how.
        calls: The passes of the loop at work, which several processes share.
        once: Runs a pass of answers, or knows what it gave.
        task: The name of the task at work.
    """

    draws_itself = False  # answers are drawn by Draws

    def __init__(self, loaded: LoadedModel, suite: SuiteSpec):
        how = {"pretrained": loaded.model, "tokenizer": loaded.tokenizer, "batch_size": suite.batch_size}
        super().__init__(loaded.tokenizer, suite, **how, softmax_dtype="float32")
        self.longest = self.max_length + 1  # the last token is only predicted
        self.calls: Calls | None = None
        self.continuous = Continuous(loaded.model, loaded.tokenizer, self.tok_encode)
        self.shared = Scorer(loaded.model, self.max_length, suite.size_of_batch(), loaded.compared)
        self.once: Once = not_kept
        self.task = "requests"
        self._advance: Callable[[int], None] = lambda more: None

    def begin(self, task: str, passes: KeptPasses) -> None:
        """Names the task that comes next, whose passes are kept, and none run that are known."""
        self.task, self.once, self.shared.once = task, passes.once, passes.once

    @contextlib.contextmanager
    def _told(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Tells how much of a task is done, now and then if nobody looks on; yields what takes how much more is."""
        team, done = at_work(), 0
        line = ProgressLine(self.task, total)

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if team is None or team.leads:
                line.show(f"{done:,} of {total:,} {what}", done)

        try:
            yield advance
        finally:
            line.hide()

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[Any, Any]:
        """Tokenises texts to rows padded on the left; returns ids and mask."""
        rows = [self.tok_encode(string) for string in strings]
        if left_truncate_len:
            if self.calls is None or not self.calls.known:  # once
                for row in rows:
                    if len(row) > left_truncate_len:  # a warning each, as of continuations: they are counted
                        logging.getLogger("lm_eval").warning(f"Truncating context from {len(row)} tokens")
            rows = [row[-left_truncate_len:] for row in rows]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        padded = [[(pad, 0)] * (width - len(row)) + [(i, 1) for i in row] for row in rows]
        ids, mask = torch.tensor(padded).unbind(-1)
        return ids, mask

    # --- continuations ---

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        def passes(numbers: Sequence[int]) -> list[tuple[float, bool]]:
            some = [requests[i] for i in numbers]
            quiet = disable_tqdm or self.shared.refused is None
            return super(HarnessModel, self)._loglikelihood_tokens(some, quiet, override_bs)

        if override_bs is not None:  # windows of a text, of which every token is scored
            whole = range(len(requests))
            unknown = [(math.nan, False)] * len(requests)
            return passes(whole) if self.calls is None else self.calls.do(lambda: passes(whole), unknown)
        pairs = [(context, rest) for _, context, rest in requests]
        with self._told(len(requests), "continuations") as advance:
            return self.shared.logs(pairs, lambda numbers: self._parted(pairs, numbers, passes), advance)

    def _parted(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        numbers: Sequence[int],
        passes: Callable[[Sequence[int]], list[tuple[float, bool]]],
    ) -> list[tuple[float, bool]]:
        """Does plain passes, of which several processes do each a part, in the batches that HFLM would make."""
        rows = [pairs[i][0] + pairs[i][1] for i in numbers]
        cut = any(len(row) > self.max_length + 1 for row in rows)
        if at_work() is None or self.batch_size == "auto" or cut:  # what is cut is counted by warnings
            return passes(numbers)
        batches = batches_of_hflm(rows, self.batch_size)
        parts = divided([len(batch) for batch in batches], lambda n: passes([numbers[i] for i in batches[n]]))
        found = dict(zip(itertools.chain(*batches), itertools.chain(*parts), strict=True))
        return [found[i] for i in range(len(numbers))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts in windows."""
        return self._in_turns(lambda: super(HarnessModel, self).loglikelihood_rolling(requests, disable_tqdm))

    def _in_turns(self, loop: Callable[[], Any]) -> Any:
        """Runs a loop of HFLM's, of whose passes several processes do each a part, but if it seeks their size."""
        team = at_work()
        if team is None or self.batch_size == "auto":
            return loop()
        self.calls = Calls(team)
        try:
            return self.calls.run(loop)
        finally:
            self.calls = None

    # --- answers ---

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens, with the tags around thoughts."""
        return decode_answer(self.tokenizer, tokens, MARKS) if skip_special_tokens else self.tokenizer.decode(tokens)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Writes answers."""
        self.prompts = Prompts(self.model, [self.tok_encode(request.args[0]) for request in requests])
        generate = super().generate_until

        def write(asked: list[Any]) -> list[str]:
            with self._told(len(asked), "answers") as self._advance:
                return self._in_turns(lambda: generate(asked, disable_tqdm=True))

        def greedy(asked: list[Any]) -> list[str]:
            return self.continuous.texts(asked, self.max_length, self.max_gen_toks, write)

        texts = self.without_thoughts(requests, write if self.draws is not None else greedy)
        if self.prompts.refused is not None:
            self.shared.record = {"backend": "lm-eval", "reason": self.prompts.refused}
        elif self.prompts.shared and not self.prompts.undecided:  # prompts that were cut begin otherwise
            self.shared.record = {"backend": "shared_context", "shared_tokens": self.prompts.shared}
        if self.draws is None and self.continuous.record:
            self.shared.record = (self.shared.record or {}) | self.continuous.record
        return texts

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        mask = options["attention_mask"]
        drawn: list[Any] = []
        if self.calls is None or not self.calls.known:  # what goes by the batches before is the same in all processes
            if self.prompts.undecided and not _is_beam_search(options):
                self.prompts.cache(context, mask)
            if self.draws is not None:
                drawn = self.draws.processors(context, mask, max_length - context.shape[1])
        plain = {name: value for name, value in options.items() if name != "attention_mask"}
        what = [context.tolist(), mask.tolist(), max_length, stop, repr(plain), [_draws_of(one) for one in drawn]]

        # What torch's generator draws is another answer each time, and depends on all that was drawn before.
        once = self.once if options.get("do_sample") is False else not_kept

        def write() -> Any:
            answers = once(what, lambda: self._write(context, max_length, stop, drawn, **options).tolist())
            return torch.tensor(answers, dtype=context.dtype)

        written = write() if self.calls is None else self.calls.do(write, context)
        if self.calls is None or not self.calls.known:
            self._advance(len(context))
        return written.to(context.device)

    def _write(self, context: Any, max_length: int, stop: list[str], drawn: list[Any], **options: Any) -> Any:
        beams = _is_beam_search(options)
        if not beams and (cache := self.prompts.cache(context, options["attention_mask"])) is not None:
            options["past_key_values"] = cache

        def stops(*how: Any) -> list[Any]:
            # The rows of a beam search are no prompts, so each goes on to its end and is cut afterwards.
            return [] if beams else [Stops(*how)]

        finite = FiniteLogits()
        options["logits_processor"] = LogitsProcessorList([finite, *drawn])
        with mock.patch.object(huggingface, "stop_sequences_criteria", stops):
            written = super()._model_generate(context, max_length, stop, **options)
        finite.check()
        return written


def batches_of_hflm(rows: Sequence[list[int]], size: int) -> list[list[int]]:
    """Cuts requests as HFLM cuts them: longest first, and those that differ in their last token alone are one row."""
    groups = grouped(range(len(rows)), lambda number: tuple(rows[number][:-1]))
    ordered = sorted(groups.values(), key=lambda group: (-len(rows[group[0]]), tuple(rows[group[0]])))
    return [sorted(itertools.chain(*ordered[at : at + size])) for at in range(0, len(ordered), size)]


def _is_beam_search(options: dict[str, Any]) -> bool:
    return options.get("num_beams", 1) > 1


def _draws_of(drawn: Any) -> list[Any]:
    """Returns what tells a batch's draws from others."""
    return [drawn.temperature, drawn.top_p, drawn.uniform[:, 0].tolist()]


def unmarked(prompt: str) -> str:
    """Returns the text of a chat without its marks."""
    return prompt.replace(prompt[0], "") if is_mark(prompt[:1]) else prompt


def _without_stops(request: Any) -> Any:
    """Returns a request that goes on to the end of the answer: its stop strings may stand in thoughts."""
    prompt, settings = request.args
    return replace(request, arguments=(prompt, {**settings, "until": []}))


def _answers(requests: Sequence[Any], raw: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Takes the thoughts out of texts; with how many there were, held thoughts, and never ended them."""
    found = []
    for request, text in zip(requests, raw, strict=True):
        prompt, settings = request.args
        until = settings.get("until") or []
        found.append(answer_in(text, unmarked(prompt), [until] if isinstance(until, str) else until))
    counts = {"thought": sum(answer.thought for answer in found), "cut": sum(answer.cut for answer in found)}
    return [answer.text for answer in found], {"answers": len(found), **counts}
