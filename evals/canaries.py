"""What answers known beforehand score on a task: one that is always right, and one that is always the same.

A task that reads the wrong field gives figures like any other, and so does every other program that reads it so. But
then an answer that is always right does not score 1. Both answers go through the task's own ``process_results``, as
made-up log-probabilities or texts. A task whose answers are counted by a function of its own says in its YAML what a
right one is: ``metadata: {right_answer: "{{canonical_solution}}"}``.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import SuiteError
from .spec import TaskSpec

# Metrics of which 1 is a right answer and 0 a wrong one.
_ACCURACIES = ("acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info", "pass@1")
_CERTAIN, _RULED_OUT = 0.0, -1000.0  # log-probabilities; no option is so long that its length hides the difference
_SHOWN = 3
_TRIED = 20  # items of a task with a function of its own, which may run a program for each
_PHRASES = ("{}", "The answer is {}.", "So the answer is {}.", "#### {}")  # what filters of worked answers look for


@dataclass(frozen=True)
class Canaries:
    """What answers known beforehand score.

    Attributes:
        metric: The metric.
        oracle: The mean of the best that any answer to each item could score.
        majority: The mean of the best answer that is the same for all items; None where items share no answers.
        answer: That answer: the text of an option, or the place of an option, from 0, whose text differs by item.
        chance: The mean of all options of each item; None where text is written.
        tried: How many items were tried; None if all.
    """

    metric: str
    oracle: float
    majority: float | None = None
    answer: str | int | None = None
    chance: float | None = None
    tried: int | None = None

    @property
    def fault(self) -> str | None:
        """What there is to say of right answers that are not all counted as right."""
        if self.oracle >= 1:
            return None
        some = f" ({self.tried} items were tried)" if self.tried else ""
        return f"its own right answers score {self.oracle:.3f} on {self.metric}{some}"


def canaries(task: Any, spec: TaskSpec, primary: str | None = None) -> Canaries | None:
    """Scores answers known beforehand on the items of a task that take part.

    Args:
        task: lm-eval's, built.
        spec: What the suite says of it.
        primary: The metric that stands for the task where the suite names none.

    Returns:
        The figures, or None for a task whose metrics are no accuracies.

    Raises:
        SuiteError: An item cannot be answered right, or an option is not right as often as the labels say.
    """
    if not hasattr(task, "features"):  # a Python class, which reads its documents in its own way
        return None
    docs = list(itertools.islice(task.task_docs, spec.limit))
    wanted = (spec.metric or primary or "").split(",")[0]
    if task.OUTPUT_TYPE == "multiple_choice":
        return _of_choices(task, docs, spec, wanted)
    if task.OUTPUT_TYPE == "loglikelihood":
        figures = [task.process_results(doc, [(_CERTAIN, True)]) for doc in docs]
        return _checked(_accuracy(figures, wanted), figures, docs, spec)
    if task.OUTPUT_TYPE != "generate_until":
        return None
    if not callable(task.config.process_results):
        return _of_texts(task, docs, [_text(task, doc) for doc in docs], spec, wanted)
    if template := (task.config.metadata or {}).get("right_answer"):
        from jinja2 import UndefinedError
        from lm_eval.utils import apply_template

        tried = docs[:: -(-len(docs) // _TRIED)]
        with contextlib.suppress(UndefinedError):  # rows need not hold what only a person answers with
            found = _of_texts(task, tried, [apply_template(template, doc) for doc in tried], spec, wanted)
            return replace(found, tried=len(tried)) if found and len(tried) < len(docs) else found
    return None


def _of_choices(task: Any, docs: Sequence[Any], spec: TaskSpec, wanted: str) -> Canaries | None:
    """Chooses each option of each item once."""
    options = [task.doc_to_choice(doc) for doc in docs]
    twice = "acc_mutual_info" in task._metric_fn_list  # each option is asked without its question too
    scored = []
    for doc, choices in zip(docs, options, strict=True):
        chosen = [_choose(place, len(choices), twice) for place in range(len(choices))]
        scored.append([task.process_results(doc, results) for results in chosen])
    metric = _accuracy([figures[0] for figures in scored], wanted)
    if metric is None:
        return None
    values = [[float(figures[metric]) for figures in item] for item in scored]
    best = [{metric: max(item)} for item in values]
    found = _checked(metric, best, docs, spec)
    if found is None:
        return None
    most = max(map(len, values))
    shares = [sum(item[place] for item in values if place < len(item)) / len(values) for place in range(most)]
    chance = sum(sum(item) / len(item) for item in values) / len(values)
    if isinstance(task.config.doc_to_target, int):  # options are not in the order in which people see them
        return Canaries(metric, found.oracle, chance=chance)
    _check_shares(task, docs, options, shares, spec)
    place = shares.index(max(shares))
    texts = {choices[place] for choices in options if place < len(choices)}
    return Canaries(metric, found.oracle, shares[place], texts.pop() if len(texts) == 1 else place, chance)


def _choose(place: int, count: int, twice: bool) -> list[tuple[float, bool]]:
    """Returns log-probabilities by which one option is chosen."""
    results = [(_CERTAIN if index == place else _RULED_OUT, index == place) for index in range(count)]
    return results + [(_RULED_OUT, False)] * count if twice else results


def _check_shares(
    task: Any, docs: Sequence[Any], options: Sequence[Sequence[str]], shares: Sequence[float], spec: TaskSpec
) -> None:
    """Compares what a constant answer scores with how often the labels say that it is right."""
    if callable(task.config.process_results):  # which may count in a way of its own
        return
    labels: Counter[int] = Counter()
    for doc, choices in zip(docs, options, strict=True):
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        right = target if isinstance(target, list) else [target]
        labels.update({choices.index(one) if isinstance(one, str) else int(one) for one in right})
    for place, share in enumerate(shares):
        if abs(share - labels[place] / len(docs)) > 1e-9:
            told = (
                f"always choosing option {place} scores {share:.4f}, and the labels of {labels[place]} of {len(docs)}"
            )
            raise SuiteError(f"{told} items say that it is right", where=spec.title)


def _of_texts(task: Any, docs: Sequence[Any], targets: Sequence[str], spec: TaskSpec, wanted: str) -> Canaries | None:
    """Gives each item its own right answer as the text that was written, and all items the commonest one."""
    best = _written(task, docs, targets)
    metric = _accuracy(best, wanted)
    if metric is None:
        return None
    oracle = sum(float(figures[metric]) for figures in best) / len(best)
    if oracle == 0:
        what = f"its right answers score 0 on {metric}, given as the text that a model writes"
        raise SuiteError(what, where=spec.title, hint="do its filters and its targets fit each other?")
    (text, count), *_ = Counter(targets).most_common(1)
    if count == 1 or callable(task.config.process_results):  # whose items are not all tried
        return Canaries(metric, oracle)
    same = _written(task, docs, [text] * len(docs))
    return Canaries(metric, oracle, sum(float(figures[metric]) for figures in same) / len(same), text)


def _text(task: Any, doc: Any) -> str:
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        return str(task.doc_to_choice(doc)[target])
    return str(target[0] if isinstance(target, list) and target else target)


def _written(task: Any, docs: Sequence[Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the figures of texts in the phrase and under the filter that read them best."""
    readings = []
    ways: Any = itertools.product(_PHRASES, task._filters)
    for phrase, ensemble in ways:
        read: Any = [[phrase.format(text)] for text in texts]
        for make in ensemble.filters:
            read = list(make().apply(read, list(docs)))
        readings.append([task.process_results(doc, [one]) for doc, one in zip(docs, read, strict=True)])
        if all(value >= 1 for value in _accuracies(readings[-1])):
            return readings[-1]
    return max(readings, key=_total)


def _accuracies(figures: Sequence[dict[str, Any]]) -> list[Any]:
    return [value for figure in figures for name, value in figure.items() if name in _ACCURACIES]


def _total(figures: Sequence[dict[str, Any]]) -> float:
    return float(sum(_accuracies(figures)))


def _accuracy(figures: Sequence[dict[str, Any]], wanted: str) -> str | None:
    """Returns the metric to look at: the one that stands for the task, if it is an accuracy, or the first that is."""
    there = [name for name in figures[0] if name in _ACCURACIES] if figures else []
    return wanted if wanted in there else next(iter(there), None)


def _checked(
    metric: str | None, best: Sequence[dict[str, Any]], docs: Sequence[Any], spec: TaskSpec
) -> Canaries | None:
    """Refuses a task in which the best answer is not right."""
    if metric is None:
        return None
    values = [float(figures[metric]) for figures in best]
    lost = [place for place, value in enumerate(values) if not value >= 1 - 1e-9]
    if lost:
        shown = "; ".join(f"item {place}: {str(docs[place])[:150]}" for place in lost[:_SHOWN])
        what = f"no answer to {len(lost)} of {len(values)} items is right by {metric}: {shown}"
        raise SuiteError(what, where=spec.title, hint="does the task read the column that holds the label?")
    return Canaries(metric, sum(values) / len(values))
