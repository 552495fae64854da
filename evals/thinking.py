"""What a model thought before it answered: told apart from the answer, which alone is judged."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

Tags = tuple[str, str]

TAGS: tuple[Tags, ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""The tags that models in the field put around their thoughts."""

MARKS = tuple(mark for pair in TAGS for mark in pair)
"""All of them, to be kept in a text where a tokenizer has them as special tokens."""


@dataclass(frozen=True)
class Stripped:
    """An answer without its thoughts.

    Attributes:
        text: The answer, without white space around it if thoughts were taken out.
        cut: Whether its thoughts never ended, so that there is no answer.
        thought: Whether there were thoughts.
    """

    text: str
    cut: bool
    thought: bool


def strip_thinking(raw: str, tags: Sequence[Tags] = TAGS, *, opened: Tags | None = None) -> Stripped:
    """Takes thoughts out of what a model wrote.

    A block counts where its opening tag starts the text or a line, and ends with the first closing tag of its kind. A
    block at the beginning that never ends was cut: there is no answer. A closing tag without an opening one ends
    thoughts that the chat template opened. A tag between backticks is spoken of, not used, and so is one in the
    middle of a line.

    Args:
        raw: What the model wrote.
        tags: The opening and the closing tag of each kind.
        opened: The kind that the prompt has already opened, if it is known to have.
    """
    text = opened[0] + raw if opened else raw
    thought = False
    for opening, closing in tags:
        starts = re.compile(rf"^[^\S\n]*{re.escape(opening)}", re.MULTILINE | re.IGNORECASE)
        follows = re.compile(rf"\s*{re.escape(opening)}", re.IGNORECASE)  # a block right behind another
        ends = re.compile(rf"(?<!`){re.escape(closing)}(?!`)", re.IGNORECASE)
        kept, at = [], 0
        while (start := (follows.match(text, at) if at else None) or starts.search(text, at)) is not None:
            end = ends.search(text, start.end())
            if end is None:
                if not any(part.strip() for part in kept) and not text[at : start.start()].strip():
                    return Stripped("", True, True)
                break
            kept.append(text[at : start.start()])
            at = end.end()
        text, thought = "".join(kept) + text[at:], thought or at > 0
        stray = ends.search(text)
        spoken_of = stray is not None and opening.lower() in text[: stray.start()].lower()
        if stray is not None and starts.search(text) is None and not spoken_of:
            text, thought = text[stray.end() :], True
    return Stripped(text.strip() if thought else text, False, thought)


def opened_by(prompt: str, tags: Sequence[Tags] = TAGS) -> Tags | None:
    """Returns the tags that a rendered prompt has opened at its end, as some chat templates do."""
    end = prompt.rstrip().lower()
    return next((pair for pair in tags if end.endswith(pair[0].lower())), None)


def answer_in(raw: str, prompt: str, stops: Sequence[str]) -> Stripped:
    """Returns the answer to a rendered prompt: thoughts are taken out first, and then it ends at the first stop string.

    In the other order a stop string such as a blank line ends the thoughts, and no answer is ever seen.
    """
    found = strip_thinking(raw, opened=opened_by(prompt))
    ends = [at for stop in stops if stop and (at := found.text.find(stop)) >= 0]
    return replace(found, text=found.text[: min(ends)]) if ends else found


def begins_with_thought(raw: str) -> bool:
    """Says whether what a model wrote opens with a thought, which may have been cut at a stop string in it."""
    return raw.lstrip().lower().startswith(tuple(opening for opening, _ in TAGS))


def may_think(template: str) -> bool:
    """Says whether a chat template knows of thoughts, so that a model that it is of may write some."""
    return any(opening in template for opening, _ in TAGS)
