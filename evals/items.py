"""The items of lm-eval's tasks as texts, to be looked for in training data: what is asked, and the right answer."""

import json
from collections.abc import Sequence
from typing import Any

from ..data_tools.ngrams import words_in
from ..data_tools.overlap import Item
from .sequences import shared_start

_ENOUGH = 10  # items from which on words that all begin or end with are the task's and not the items' own
_LEFT = 3  # words that nine of ten questions must keep
_LETTER = 2  # characters of an answer that may only name an option, as "B" and "(B" do


def items_of(task: Any, limit: int | None) -> list[Item]:
    """Returns the items of a task that take part, as the task words them.

    Words that the questions of all items begin and end with ("Question: … Answer:") are left out, and so are options
    that stand in a question: training data that holds an item seldom has them. Where the answer is a letter, it is the
    option that it names.

    Args:
        task: lm-eval's, built.
        limit: Only so many items take part; None is all.

    Returns:
        The items; the id is the number and lm-eval's hash of the document, as in its samples.
    """
    from lm_eval.utils import handle_non_serializable, hash_string

    found = []
    for number, doc in enumerate(task.eval_docs):
        if number == limit:
            break
        question, answer = _asked(task, doc)
        text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
        found.append((f"{number}:{hash_string(text)}", words_in(question), answer))
    first, last = _frame([words for _, words, _ in found])
    return [Item(key, " ".join(words[first : len(words) - last]), answer) for key, words, answer in found]


def _asked(task: Any, doc: Any) -> tuple[str, str]:
    """Returns the question of a document and its right answer."""
    text: Any = task.doc_to_text(doc)
    target: Any = task.doc_to_target(doc)
    has_options = getattr(task.config, "doc_to_choice", None) is not None
    options = [str(option) for option in task.doc_to_choice(doc)] if has_options else []
    if isinstance(text, int):  # the options are beginnings, and the question is the right one
        return options[text], str(target)
    target = target[0] if isinstance(target, list | tuple) and target else target
    named = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(options)
    answer = options[target] if named else str(target)
    if named and len(answer.strip(" ().")) <= _LETTER:
        for spelt in _lists(doc):
            if len(spelt) == len(options):
                answer = spelt[target]
                for option in reversed(spelt):
                    before, found, after = str(text).rpartition(option)
                    text = f"{before} {after}" if found else text
                break
    return str(text), answer


def _lists(value: Any) -> list[list[str]]:
    """Returns the lists of texts in a document, those of whole options before those of their letters."""
    if isinstance(value, dict):
        return sorted(
            (found for part in value.values() for found in _lists(part)), key=lambda texts: -len("".join(texts))
        )
    return [value] if isinstance(value, list) and value and all(isinstance(part, str) for part in value) else []


def _frame(questions: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Returns how many words all questions begin with alike, and how many they end with."""
    if len(questions) < _ENOUGH:
        return 0, 0
    first, last = (
        min(shared_start(some[0], words) for words in some)
        for some in (questions, [words[::-1] for words in questions])
    )
    left = sorted(len(words) - first - last for words in questions)
    is_frame = left[0] >= 0 and left[len(left) // 10] >= _LEFT  # of sums in words, say, it would be half of each
    return (first, last) if is_frame else (0, 0)
