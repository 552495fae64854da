"""Log-probabilities of many continuations from as few tokens as there are, each computed once.

Tasks of multiple choice ask for one context with each option behind it, and few-shot tasks begin every context alike.
Here what many contexts begin with is run once and kept as keys and values. The rest of some requests is laid out as a
tree in one row, where what they begin with in common stands once: the attention mask lets a token see the tokens that
lead to it, and its position is its depth (the mask of tree decoding, Miao et al. 2024, arXiv:2305.09781, section 4.2).
Logits are computed where a token is asked for, and nowhere else.

The result is that of one row a request, layers with a sliding window included: their masks go by position. Models that
mix tokens otherwise (state spaces, linear attention, ALiBi) are told by :func:`unsupported`; :class:`Scorer` also
compares some of its answers with plain passes.
"""

import array
import functools
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError, first_line
from .block_attention import in_blocks
from .forward import batches
from .kept_passes import not_kept
from .models import has_virtual_tokens, under_adapter
from .sequences import grouped, shared_start
from .team import at_work, divided

if TYPE_CHECKING:
    import torch

Request = tuple[Sequence[int], Sequence[int]]  # a context and what may follow it, each at least one token
Log = tuple[float, bool]
Once = Callable[[Any, Callable[[], Any]], Any]  # of :class:`~.kept_passes.KeptPasses`

BUDGET = 1024  # tokens of a pass: more are no faster on a CPU, whose caches hold the activations of so many
_ELSEWHERE = "the same layers with another adapter's weights"
_LEAST_PREFIX = 32  # tokens that contexts share at least for a cache of their own
_PREFIX_COST = 256  # tokens that a cache costs: a pass that fills less, and smaller batches for what follows
_TOKEN_COST = 1024  # places of attention, masked ones too, that cost as much as one token more
_WIDTH = 192  # tokens up to about which rows are filled
_LAYOUTS = 12  # numbers of rows that are tried: more than tasks of a few items tell apart
_LOGIT_CHUNK = 1 << 25  # log-probabilities held at a time


def unsupported(model: Any) -> str | None:
    """Returns why a model cannot be run with masks and positions of our own, or None if nothing speaks against it."""
    import inspect

    if has_virtual_tokens(model):
        return "its adapter puts tokens of its own before a text"
    config = model.config.get_text_config()
    kinds = _layers(config)
    takes = inspect.signature(under_adapter(model).forward).parameters
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder"
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    if getattr(config, "alibi", False) or not {"attention_mask", "position_ids", "past_key_values"} <= takes.keys():
        return "its positions cannot be given"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention ({config._attn_implementation}) takes no mask of each token's own"
    return None if model.get_output_embeddings() is not None else "it has no output layer of its own"


class Scorer:
    """Scores continuations with shared contexts, and with plain passes once those are found to differ on this model.

    Args:
        model: A causal language model, in evaluation mode.
        limit: Tokens that it takes at once.
        batch_size: Sequences in a plain pass; an accelerator runs as many tokens at a time as those would have.
        compared: The differences found so far on the model's layers, by a hash of what was asked; it is added to. It
            may come from a model of the same base and the same layers whose adapter had other weights, and from no
            other: a comparison tells whether the model takes masks and positions as they are meant, which is up to its
            code, its attention and its dtype. An adapter's layers take each token by itself, so their weights have no
            part in it. What was refused, or is not a number, is not carried over.

    Attributes:
        refused: Why plain passes do it all, or None.
        once: Runs a pass, or knows what it gave.
        record: How the last call was done: the ``backend``, with the ``reason`` why not this one, or with the
            ``largest_difference`` from plain passes, in nats, None where nothing was left to compare; ``compared_on``
            is there if that was found on another adapter of the same layers.
    """

    def __init__(self, model: Any, limit: int, batch_size: int, compared: dict[str, float] | None = None):
        self.model, self.limit, self.batch_size = model, limit, batch_size
        self.compared = {} if compared is None else compared
        self._before = dict(self.compared)  # what was compared on other models
        self.refused = unsupported(model)
        self.once: Once = not_kept
        self.record: dict[str, Any] | None = None

    def logs(
        self,
        requests: Sequence[Request],
        plain: Callable[[Sequence[int]], Sequence[Log]],
        progress: Callable[[int], Any] = lambda count: None,
    ) -> list[Log]:
        """Scores continuations, and compares some of the results with those of plain passes.

        Two :func:`_telling` requests are compared, unless the very same requests have been on these layers. In float32
        their sums may differ by 1e-4 for up to 16 tokens, and in proportion for more. In half precision they may
        differ by what :func:`_bound` allows.

        Args:
            requests: Token ids of contexts and continuations.
            plain: Scores the requests of some numbers, one row each. It gets what cannot be shared: requests without a
                continuation, and those of more tokens than the model takes.
            progress: Takes how many requests have been scored.

        Returns:
            As :func:`continuation_logs`.
        """
        found: dict[int, Log] = {}
        largest: float | None = None
        is_known = False
        if self.refused is None:
            fitting = [i for i, (context, rest) in enumerate(requests) if self._fits(context, rest)]
            try:
                some = [requests[i] for i in fitting]
                logs = continuation_logs(self.model, some, self._budget(requests), progress, self.once)
            except PosttrainError:  # such as a full disk, which is no fault of the model's
                raise
            except Exception as error:  # a model of unknown make may take no such masks, and raise what it likes
                self.refused = f"{type(error).__name__}: {first_line(error)}"
            else:
                found = dict(zip(fitting, logs, strict=True))
                key = self._key(requests)
                # Several processes run plain passes together, so none may leave them out by itself.
                is_known = key in self._before and at_work() is None and not any(math.isnan(log) for log, _ in logs)
                largest = self._before[key] if is_known else self._compare(requests, found, plain)
                if largest is not None and self.refused is None:
                    self.compared[key] = largest
        if self.refused is None:
            self.record = {"backend": "shared_context", "largest_difference": largest}
            self.record |= {"compared_on": _ELSEWHERE} if is_known else {}
        else:
            self.record = {"backend": "lm-eval", "reason": self.refused}
            found = {}
        others = [i for i in range(len(requests)) if i not in found]
        found |= zip(others, plain(others) if others else (), strict=True)
        return [found[i] for i in range(len(requests))]

    def _key(self, requests: Sequence[Request]) -> str:
        """Returns a hash of all that decides how requests are laid out in passes, and of their tokens."""
        digest = hashlib.sha256(f"{self.limit} {self._budget(requests)}".encode())
        for context, rest in requests:
            digest.update(array.array("q", [len(context), len(rest), *context, *rest]).tobytes())
        return digest.hexdigest()

    def _fits(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        """Says whether a request can be shared; a continuation's last token is only predicted."""
        return bool(context and continuation) and len(context) + len(continuation) <= self.limit + 1

    def _budget(self, requests: Sequence[Request]) -> int:
        if self.model.device.type == "cpu":
            return BUDGET
        return max(BUDGET, self.batch_size * max(len(context) + len(rest) for context, rest in requests))

    def _compare(
        self, requests: Sequence[Request], found: Mapping[int, Log], plain: Callable[[Sequence[int]], Sequence[Log]]
    ) -> float | None:
        """Returns the largest difference from plain passes; one that is too large refuses the model."""
        chosen = _telling(requests, found)
        if not chosen:
            return None
        bound = _bound(self.model, requests[chosen[0]][0])
        differences = []
        for i, (expected, _) in zip(chosen, plain(chosen), strict=True):
            differences.append(0.0 if found[i][0] == expected else abs(found[i][0] - expected))  # both may be -inf
            if not differences[-1] <= bound * max(1, len(requests[i][1]) / 16):  # nor is NaN
                self.refused = f"shared contexts were off by {differences[-1]:.2g}"
        return max(differences)


def continuation_logs(
    model: Any,
    requests: Sequence[Request],
    budget: int = BUDGET,
    progress: Callable[[int], Any] = lambda count: None,
    once: Once = not_kept,
) -> list[Log]:
    """Scores continuations.

    Args:
        model: A causal language model for which :func:`unsupported` is None, in evaluation mode.
        requests: Token ids of contexts and continuations, at least one of each.
        budget: Tokens of a pass, if one row has not more.
        progress: Takes how many requests a pass has scored.
        once: Runs a pass, or knows what it gave.

    Returns:
        For each request the sum of the log-probabilities of its continuation's tokens, in nats, taken in float32, and
        whether each of them is the likeliest.
    """
    import torch

    by_context = grouped(range(len(requests)), lambda number: tuple(requests[number][0]))
    passes: list[tuple[tuple[int, ...], list[_Row]]] = []  # what the rows of a pass stand behind, and the rows
    for shared, contexts in _clusters(sorted(by_context)):
        members = [number for context in contexts for number in by_context[context]]
        rows = _rows(requests, members, shared, budget)
        for batch in _in_budget([row.tokens for row in rows], budget):
            passes.append((contexts[0][:shared], [rows[i] for i in batch]))
    prefix_of = functools.lru_cache(1)(lambda tokens: _Prefix(model, tokens))

    def logs_of(number: int) -> dict[int, Log]:
        prefix, rows = passes[number]
        what = [prefix, [[row.tokens, row.ends, [[requests[i][1], row.reads[i]] for i in row.reads]] for row in rows]]
        gave = once(what, lambda: list(_run(model, prefix_of(prefix), rows, requests).values()))
        return {i: (log, greedy) for i, (log, greedy) in zip((i for row in rows for i in row.reads), gave, strict=True)}

    with torch.inference_mode():
        logs = divided(
            [sum(len(row.tokens) for row in rows) for _, rows in passes],
            logs_of,
            lambda number: progress(sum(len(row.reads) for row in passes[number][1])),
        )
    found = {number: log for part in logs for number, log in part.items()}
    return [found[number] for number in range(len(requests))]


def _telling(requests: Sequence[Request], numbers: Iterable[int]) -> list[int]:
    """Chooses the shortest request whose continuation has another before it in its row, and the longest of all."""
    by_context = grouped(numbers, lambda i: tuple(requests[i][0]))

    def size(i: int) -> int:
        return sum(map(len, requests[i]))

    last, behind_others = [], []
    for members in by_context.values():
        run = [i for i in members if len(requests[i][1]) > 1]  # a single token is only predicted
        last.append(max(run or members, key=lambda i: list(requests[i][1])))
        if any(requests[i][1][0] != requests[last[-1]][1][0] for i in run):
            behind_others.append(last[-1])
    return sorted({min(behind_others or last, key=size), max(last, key=size)}) if last else []


# --- text that is written ---


class Prompts:
    """Prompts that a model is to go on from: what all of them begin with is run once.

    The keys and values of that beginning are put where a prompt that is padded on the left has it. So every pass sees
    what a plain one sees, at the same places, layers with a window too. Of a prompt that is padded by k tokens the last
    k of the beginning are run again.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids, ``[prompts][tokens]``.

    Attributes:
        shared: How many tokens are run once; 0 where that would not pay or cannot be done.
        refused: Why it cannot be done where it would pay, or None.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]):
        self.model = model
        first, last = min(map(list, prompts)), max(map(list, prompts))
        shared = min(shared_start(first, last), min(map(len, prompts)) - 1)
        pays = shared >= _LEAST_PREFIX and shared * (len(prompts) - 1) > _PREFIX_COST
        self.refused = unsupported(model) if pays else None
        self.shared = shared if pays and self.refused is None else 0
        self._tokens = first[:shared]
        self._layers: list[tuple[Any, Any]] = []  # their keys and values, [1, heads, tokens, size of a head]

    @property
    def undecided(self) -> bool:
        """Whether sharing is still to be compared with not sharing."""
        return self.shared > 0 and not self._layers

    def cache(self, ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
        """Returns a cache of what a batch begins with, for ``generate``, or None if its prompts begin otherwise.

        The first time one prompt is run without, which gives what is shared, and with it; if the likeliest token's
        log-probabilities differ, nothing is shared any more.

        Args:
            ids: Prompts, padded on the left, ``[prompts, tokens]``.
            mask: 0 where there is padding, else 1.
        """
        from transformers import DynamicCache

        pads = (mask == 0).sum(-1).tolist()
        begin = [row[pad : pad + self.shared] for row, pad in zip(ids.tolist(), pads, strict=True)]
        if not self.shared or any(tokens != self._tokens for tokens in begin):
            return None
        if self.undecided:
            most = max(range(len(pads)), key=pads.__getitem__)
            one, begun = (ids[most, None], mask[most, None]), slice(pads[most], pads[most] + self.shared)
            try:
                whole: Any = DynamicCache()  # without the configuration its layers keep more than their window
                plain = self._likeliest(*one, whole)
                self._layers = [(layer.keys[:, :, begun], layer.values[:, :, begun]) for layer in whole.layers]
                shared = self._likeliest(*one, self._placed([pads[most]]))
                if not (plain - shared).abs().max() <= _bound(self.model, self._tokens):
                    self.refused = f"shared prompts were off by {float((plain - shared).abs().max()):.2g}"
            except Exception as error:  # as in Scorer.logs
                self.refused = f"{type(error).__name__}: {first_line(error)}"
            if self.refused is not None:
                self.shared = 0
                return None
        return self._placed(pads)

    def _likeliest(self, ids: "torch.Tensor", mask: "torch.Tensor", cache: Any) -> "torch.Tensor":
        """Returns the log-probability of the token that each prompt goes on with; a cache takes the prompts in."""
        how = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        found = self.model.generate(**inputs, pad_token_id=0, **how)
        return found.logits[0].float().log_softmax(-1).amax(-1)

    def _placed(self, pads: Sequence[int]) -> Any:
        """Returns the beginning's keys and values behind so many places of padding, as the model itself caches them."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for number, layer in enumerate(self._layers):
            placed = []
            for states in layer:
                rows = states.new_zeros(len(pads), *states.shape[1:])
                for row, pad in zip(rows, pads, strict=True):
                    row[:, pad:] = states[0, :, : max(self.shared - pad, 0)]
                placed.append(rows)
            cache.update(*placed, number)
        return cache


class Stops:
    """A stopping criterion that ends each row at its first stop string, whichever that is.

    So a row writes what it writes alone. lm-eval's own ends a batch when all of its rows have come to the same string,
    and keeps what one has written behind the tokenizer's end of text if the model's configuration names another.

    Args:
        tokenizer: Of the model.
        stops: The strings.
        start: Where in a row its answer begins.
        rows: How many rows there are.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int, rows: int):
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        sizes = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        self.reach = max(sizes, default=0) + 2  # the model may write a stop string in other tokens
        self.done = [False] * rows

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor", **_: Any) -> "torch.Tensor":
        """Takes the rows so far and says which have ended."""
        import torch

        ends = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -self.reach :])
        self.done = [done or any(stop in end for stop in self.stops) for done, end in zip(self.done, ends, strict=True)]
        return torch.tensor(self.done, device=input_ids.device)


# --- which tokens stand where ---


@dataclass
class _Row:
    """The tokens of some sequences, depth first, so that each beginning that several have in common stands once.

    Attributes:
        tokens: Their ids.
        depths: How far behind the prefix each stands in its sequences.
        ends: Where the tokens that it leads to end: it is seen from its own place up to there.
        path: The places of the last sequence's tokens.
        reads: For each request the places whose logits predict its continuation's tokens.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    reads: dict[int, list[int]] = field(default_factory=dict)

    def add(self, sequence: Sequence[int], kept: int) -> None:
        """Adds a sequence that shares its first so many tokens with the last one, and no more with any other."""
        start, end = len(self.tokens), len(self.tokens) + len(sequence) - kept
        self.path[kept:] = range(start, end)
        self.tokens += sequence[kept:]
        self.depths += range(kept, len(sequence))
        self.ends += [end] * (end - start)
        for place in self.path[:kept]:
            self.ends[place] = end

    def join(self, other: "_Row") -> None:
        """Adds another row's sequences, which none of its own sees."""
        start = len(self.tokens)
        self.tokens += other.tokens
        self.depths += other.depths
        self.ends += [start + end for end in other.ends]
        self.reads |= {i: [start + place for place in places] for i, places in other.reads.items()}


def _rows(requests: Sequence[Request], members: Sequence[int], shared: int, budget: int) -> list[_Row]:
    """Lays some requests, whose first tokens are in the prefix, out in rows.

    A sequence stands in the row of the one before it, in the order of their tokens, where that costs less than a row
    of its own: it saves the tokens that the two share, but attention passes over the row's other tokens in vain.
    """
    sequences = {i: [*requests[i][0][shared:], *requests[i][1][:-1]] for i in members}  # the last is only predicted
    rows: list[_Row] = []
    last: Sequence[int] = []
    for i in sorted(members, key=sequences.__getitem__):
        kept = shared_start(last, sequences[i])
        size, new = (len(rows[-1].tokens) if rows else 0), len(sequences[i]) - kept
        if not rows or size * new > _TOKEN_COST * kept or (new and size + new > budget):
            rows.append(_Row())
            kept = 0
        rows[-1].add(sequences[i], kept)
        rows[-1].reads[i] = rows[-1].path[len(requests[i][0]) - shared - 1 :]
        last = sequences[i]
    return _filled(rows, max(_WIDTH, shared // 4), budget)  # the prefix is copied for each row


def _filled(rows: Sequence[_Row], width: int, budget: int) -> list[_Row]:
    """Joins rows up to about a width, into as many as make the cheapest batches."""
    sizes = [len(row.tokens) for row in rows]
    fewest = min(len(rows), -(-sum(sizes) // (width * 4 // 3)))
    layouts = (_spread(sizes, count) for count in range(fewest, min(len(rows), fewest + _LAYOUTS) + 1))

    def cost(layout: Sequence[Sequence[int]]) -> int:
        lengths = [range(sum(sizes[number] for number in members)) for members in layout]
        shapes = ((len(batch), len(lengths[batch[0]])) for batch in _in_budget(lengths, budget))
        return sum(count * width * (_TOKEN_COST + width) for count, width in shapes)  # each place sees its row

    filled = []
    for members in min(layouts, key=cost):
        filled.append(_Row())
        for number in members:
            filled[-1].join(rows[number])
    return filled


def _spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Shares sizes out as evenly as they allow; returns the numbers of those that come together."""
    shares: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, share) for share in range(count)]  # a heap: the largest first, each to what is smallest so far
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        total, share = shortest[0]
        shares[share].append(number)
        heapq.heapreplace(shortest, (total + sizes[number], share))
    return shares


def _in_budget(rows: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Cuts rows into the batches of passes."""
    return batches(rows, [0] * len(rows), len(rows), budget)


def _clusters(contexts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """Parts sorted contexts by what they begin with, so that keeping that saves most.

    Yields:
        How many tokens a part's contexts share (never a whole context: its last token is run to be read), and those
        contexts. The part that shares none comes last.
    """
    common = [shared_start(*pair) for pair in itertools.pairwise(contexts)]
    most, best = 0, []
    least = _LEAST_PREFIX
    while least <= max(common, default=0):
        cuts = [0, *(place + 1 for place, length in enumerate(common) if length < least), len(contexts)]
        parts = []
        for start, end in itertools.pairwise(cuts):
            shared = min(common[start : end - 1] + [len(context) - 1 for context in contexts[start:end]])
            if shared * (end - start - 1) > _PREFIX_COST:
                parts.append((shared, contexts[start:end]))
        saved = sum(shared * (len(part) - 1) - _PREFIX_COST for shared, part in parts)
        if saved > most:
            most, best = saved, parts
        least *= 2
    for shared, part in best:
        yield shared, list(part)
    kept = {context for _, part in best for context in part}
    if rest := [context for context in contexts if context not in kept]:
        yield 0, rest


# --- running them ---


class _Prefix:
    """The keys and values of what some contexts begin with."""

    def __init__(self, model: Any, tokens: Sequence[int]):
        import torch

        self.length = len(tokens)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        if tokens:
            cache = self.cache(1)
            _logits(model, [0], [0], input_ids=torch.tensor([tokens], device=model.device), past_key_values=cache)
            self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, rows: int) -> Any:
        """Returns them as a cache for so many rows, which a pass may add to; None for no tokens."""
        from transformers import DynamicCache

        if not self.length:
            return None
        cache = DynamicCache()  # made without the configuration, all of its layers keep more than their window
        for number, states in enumerate(self.layers):
            cache.update(*states, number)
            layer: Any = cache.layers[number]
            layer.keys, layer.values = (one.expand(rows, -1, -1, -1) for one in states)  # a pass makes the copies
        return cache


def _run(model: Any, prefix: _Prefix, rows: Sequence[_Row], requests: Sequence[Request]) -> dict[int, Log]:
    """Runs a batch of rows behind a prefix."""
    import torch

    width = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    depths = torch.zeros(len(rows), width, dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(len(rows), 1)  # what lies behind a row's end sees itself alone
    for line, row in enumerate(rows):
        size = len(row.tokens)
        ids[line, :size] = torch.tensor(row.tokens)
        depths[line, :size] = torch.tensor(row.depths)
        ends[line, :size] = torch.tensor(row.ends)
    # What predicts the first tokens of a context's options is one place, whose logits are computed once.
    asked = [
        (i, [(line, place) for place in places]) for line, row in enumerate(rows) for i, places in row.reads.items()
    ]
    read = {place: number for number, place in enumerate(dict.fromkeys(place for _, some in asked for place in some))}
    lines, places = zip(*read, strict=True)
    logits = _logits(
        model,
        lines,
        places,
        input_ids=ids.to(model.device),
        position_ids=(depths + prefix.length).to(model.device),
        attention_mask=_masks(model, prefix.length, depths, ends),
        past_key_values=prefix.cache(len(rows)),
    )
    where = torch.tensor([read[place] for _, some in asked for place in some], device=model.device)
    targets = torch.tensor([token for i, _ in asked for token in requests[i][1]], device=model.device)
    log_p, likeliest = _read(logits, where, targets)
    sizes = [len(some) for _, some in asked]
    parts = zip(asked, log_p.split(sizes), likeliest.split(sizes), strict=True)
    return {i: (float(part.double().sum()), bool(greedy.all())) for (i, _), part, greedy in parts}


def _logits(model: Any, lines: Sequence[int], places: Sequence[int], **inputs: Any) -> "torch.Tensor":
    """Runs a model and returns its logits at some places only, ``[places, vocabulary]``.

    What comes between the output layer and the logits (a cap, a scale) is the model's own.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][lines, places][None],))
    with hook, in_blocks(model):
        return model(**inputs, use_cache=inputs.get("past_key_values") is not None).logits[0]


def _masks(model: Any, shared: int, depths: "torch.Tensor", ends: "torch.Tensor") -> Any:
    """Returns what is added to attention, ``[rows, 1, tokens, shared + tokens]``; one for each kind of layer if mixed.

    A layer with a window sees what is nearer than that in the sequence, wherever it stands in the row.
    """
    import torch

    config = model.config.get_text_config()
    count, width = ends.shape
    places = torch.arange(width)
    seen = (places <= places[:, None]) & (places[:, None] < ends[:, None, :])
    seen = torch.cat([torch.ones(count, width, shared, dtype=torch.bool), seen], -1)

    def added(allowed: "torch.Tensor") -> "torch.Tensor":
        mask = torch.zeros(allowed.shape, dtype=model.dtype)
        return mask.masked_fill_(~allowed, torch.finfo(model.dtype).min)[:, None].to(model.device)

    kinds = _layers(config)
    masks = {"full_attention": added(seen)} if "full_attention" in kinds else {}
    if "sliding_attention" in kinds:
        keys = torch.cat([torch.arange(-shared, 0).expand(count, -1), depths], 1)
        near = depths[:, :, None] - keys[:, None, :] < config.sliding_window
        masks["sliding_attention"] = added(seen & near)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _read(
    logits: "torch.Tensor", where: "torch.Tensor", targets: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns each target's log-probability in one of the rows of logits, and whether it is the likeliest there."""
    import torch

    log_p = torch.empty(len(targets), device=logits.device)
    likeliest = torch.empty(len(targets), dtype=torch.bool, device=logits.device)
    size = max(1, _LOGIT_CHUNK // logits.shape[-1])
    for start, part in zip(range(0, len(logits), size), logits.split(size), strict=True):
        own = (where >= start) & (where < start + size)
        at = where[own] - start
        log_p[own] = part.float().log_softmax(-1)[at, targets[own]]
        likeliest[own] = part.argmax(-1)[at] == targets[own]
    return log_p, likeliest


def _bound(model: Any, context: Sequence[int]) -> float:
    """Returns by how much log-probabilities may differ that are the same but for the order of sums.

    In half precision these are four steps of the largest logit behind a context, .5 nats in bfloat16 and .1 in float16
    at most. SmolLM2-135M's of 32 continuations are .12 apart in root mean square in bfloat16, about one step; with a
    mask by which options see each other they are 3.1 apart in the median.
    """
    import torch

    most = {torch.bfloat16: 0.5, torch.float16: 0.1}.get(model.dtype)
    if most is None:
        return 1e-4
    with torch.inference_mode():
        logits = _logits(model, [0], [len(context) - 1], input_ids=torch.tensor([list(context)], device=model.device))
    return min(most, 4 * torch.finfo(model.dtype).eps * float(logits.abs().max()))


def _layers(config: Any) -> set[str]:
    """Returns the kinds of attention that a model's layers have."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    return set(kinds or ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"])
