"""Greedy answers by transformers' continuous batching, on a GPU and only where a timed check speaks for it.

A request that ends makes room for the next at once, where a padded batch waits for its longest. On a CPU that is exact
and twice as slow as padded batches, so it is not tried there. It knows no stop strings: an answer goes on to its end or
its limit and is cut afterwards, where it would have ended; the time for that is part of what is checked.
"""

import copy
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from ..chat_templates.errors import first_line
from ..data_tools.generate import decode_answer
from .errors import EvalError
from .team import at_work
from .thinking import MARKS

CHECKED = 4  # requests that are answered both ways
LEAST = 32  # requests for which the check pays

Write = Callable[[list[Any]], list[str]]


def on_gpu(model: Any) -> bool:
    """Says whether continuous batching may be faster where a model is."""
    return model.device.type == "cuda"


class Continuous:
    """Answers lm-eval's requests by continuous batching, or has them answered as before.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        encode: Makes a prompt's token ids.
        may_pay: Says whether it is tried on a model at all.
        clock: Gives the time in seconds.
        **memory: Of ``ContinuousBatchingConfig``; by default its cache takes most of the device's free memory.

    Attributes:
        record: How the last requests were answered: ``{"backend": "continuous_batching", "speedup": ...}`` with the
            times by which it was faster, or ``{"continuous": reason}``; None where it was not tried.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encode: Callable[[str], list[int]],
        may_pay: Callable[[Any], bool] = on_gpu,
        clock: Callable[[], float] = time.perf_counter,
        **memory: Any,
    ):
        self.model, self.tokenizer, self.encode = model, tokenizer, encode
        self.may_pay, self.clock, self.memory = may_pay, clock, memory
        self.record: dict[str, Any] | None = None
        self._speedup: float | None = None

    def texts(self, requests: Sequence[Any], limit: int, most: int, write: Write) -> list[str]:
        """Answers requests.

        Args:
            requests: lm-eval's, to be answered greedily.
            limit: Tokens that the model takes, prompt and answer together.
            most: Tokens of an answer where a request does not say it.
            write: Answers requests as before.

        Returns:
            The texts, in the order of the requests.
        """
        self.record = None
        how = self._settings(requests, limit, most)
        if how is None:
            return write(list(requests))
        try:
            prompts = [self.encode(request.args[0]) for request in requests]
            by_length = sorted(range(len(requests)), key=lambda i: len(prompts[i]))
            chosen = [by_length[i * (len(requests) - 1) // (CHECKED - 1)] for i in range(CHECKED)]
            known = dict(zip(chosen, self._checked(requests, prompts, chosen, how, write), strict=True))
            others = [i for i in range(len(requests)) if i not in known] if self.record is None else []
            known |= zip(others, self._answers([prompts[i] for i in others], how), strict=True)
        except Exception as error:  # it is new in transformers, and runs in threads and kernels of its own
            self.record, known = {"continuous": f"{type(error).__name__}: {first_line(error)}"}, {}
        if self.record is None:
            self.record = {"backend": "continuous_batching", "speedup": self._speedup}
        rest = [i for i in range(len(requests)) if i not in known]
        known |= zip(rest, write([requests[i] for i in rest]) if rest else (), strict=True)
        return [known[i] for i in range(len(requests))]

    def _settings(self, requests: Sequence[Any], limit: int, most: int) -> dict[str, Any] | None:
        """Returns the settings of requests that may be answered so: all the same, greedy, and none of them cut."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        same = all(request.args[1] == requests[0].args[1] for request in requests)
        if len(requests) < LEAST or not same or at_work() is not None or not self.may_pay(self.model):
            return None
        how: dict[str, Any] = dict(normalize_gen_kwargs(requests[0].args[1], most))
        eos = self.tokenizer.decode(self.tokenizer.eos_token_id, skip_special_tokens=False)
        how["until"] = handle_stop_sequences(how.pop("until", None), eos=eos)
        drawn = how.pop("do_sample", False) or how.pop("temperature", 0.0) or how.pop("num_beams", 1) > 1
        longest = max(len(self.encode(request.args[0])) for request in requests)
        plain = how.keys() <= {"until", "max_gen_toks"} and not drawn
        return how if plain and longest + how["max_gen_toks"] <= limit else None

    def _checked(
        self,
        requests: Sequence[Any],
        prompts: Sequence[list[int]],
        chosen: Sequence[int],
        how: dict[str, Any],
        write: Write,
    ) -> list[str]:
        """Returns some answers of the way before, and sets ``record`` if continuous batching differs or is no faster.

        The first pass of either warms it up, the second is timed.
        """
        asked, ids = [requests[i] for i in chosen], [prompts[i] for i in chosen]
        plain, mine = write(asked), self._answers(ids, how)
        if differing := sum(one != other for one, other in zip(plain, mine, strict=True)):
            self.record = {"continuous": f"{differing} of {len(chosen)} answers differed"}
            return plain
        seconds = []
        for run in (lambda: write(asked), lambda: self._answers(ids, how)):
            begun = self.clock()
            run()
            seconds.append(self.clock() - begun)
        before, now = seconds
        self._speedup = round(before / now, 2) if now else None
        if not now < before:
            self.record = {
                "continuous": f"it took {now:.3g} s for {len(chosen)} answers, padded batches {before:.3g} s"
            }
        return plain

    def _answers(self, prompts: Sequence[list[int]], how: dict[str, Any]) -> list[str]:
        """Returns the texts by continuous batching.

        Raises:
            EvalError: It did not answer a prompt.
        """
        from lm_eval.models.utils import postprocess_generated_text
        from transformers import ContinuousBatchingConfig

        distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
        config = copy.deepcopy(self.model.generation_config)
        config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None)
        config.max_new_tokens, config.max_length = how["max_gen_toks"], None
        batching = ContinuousBatchingConfig(
            drop_unsupported_processors=False, **self.memory
        )  # what it cannot do is an error
        attention = self.model.config.get_text_config()._attn_implementation
        try:
            found = self.model.generate_batch(distinct, config, batching)
        finally:
            if self.model.config.get_text_config()._attn_implementation != attention:
                self.model.set_attn_implementation(attention)
        tokens: dict[tuple[int, ...], list[int]] = {}
        for output in found.values():
            if output.error is not None:
                raise EvalError(f"continuous batching failed: {output.error}")
            tokens[tuple(output.prompt_ids)] = list(output.generated_tokens)
        if lost := sum(tuple(prompt) not in tokens for prompt in distinct):
            raise EvalError(f"continuous batching left {lost} of {len(distinct)} prompts without an answer")
        texts = {prompt: decode_answer(self.tokenizer, self._cut(ids, how), MARKS) for prompt, ids in tokens.items()}
        done = {prompt: postprocess_generated_text(text, how["until"], None) for prompt, text in texts.items()}
        return [done[tuple(prompt)] for prompt in prompts]

    def _cut(self, ids: Sequence[int], how: dict[str, Any]) -> Sequence[int]:
        """Returns the tokens up to the one that completes a stop string, where a padded batch would have ended."""

        def has_ended(count: int) -> bool:
            text = self.tokenizer.decode(ids[:count])
            return any(stop in text for stop in how["until"])

        return ids[: 1 + bisect_left(range(1, len(ids)), True, key=has_ended)]
