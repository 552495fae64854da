"""The arena's page, and a question as the page is given it: texts only, and nothing of whose they are."""

import re
from pathlib import Path
from typing import Any

from ...data_tools.tool_report import page_templates
from ..judging.judgments import Order
from ..report.text import source_hash
from .schedule import Matchup

MOST_CHARACTERS = 100_000
"""More of one answer is not sent to the page; it says so."""

# Invisible characters that could reorder or hide text; joiners stay, since scripts and emoji need them.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def page(title: str) -> tuple[str, str]:
    """Returns the page and its Content-Security-Policy. It holds no answer: its script asks for each as JSON."""
    folder = Path(__file__).parent
    environment = page_templates(folder, folder.parent / "report")  # whose palette is the arena's too
    style = "".join(environment.get_template(name).render() for name in ("palette.css.jinja", "arena.css.jinja"))
    script = (folder / "arena.js.jinja").read_text()
    html = environment.get_template("arena.html.jinja").render(title=title, style=style, script=script)
    policy = (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def question_view(matchup: Matchup, order: Order) -> dict[str, Any]:
    """Returns what a voter may see of a matchup: the prompt, and the answers by the side on which they stand."""
    straight = order == "candidate-first"
    left, right = (matchup.own, matchup.other) if straight else (matchup.other, matchup.own)
    references = left.references or ()
    turns = [
        {
            "user": readable(user),
            "left": readable(_at(left.texts, i)),
            "right": readable(_at(right.texts, i)),
            "reference": readable(references[i]) if i < len(references) else None,
        }
        for i, user in enumerate(left.turns)
    ]
    return {"id": matchup.id, "category": left.category, "turns": turns}


def _at(texts: tuple[str, ...], index: int) -> str:
    return texts[index] if index < len(texts) else ""


def readable(text: str) -> dict[str, Any]:
    """Returns a text to show: what is invisible and could deceive made visible, and no longer than a page bears.

    Returns:
        ``text``, and ``cut``: how many characters there are in all if some are left out, else None.
    """
    shown = text[:MOST_CHARACTERS].replace("\r\n", "\n")
    shown = _HIDDEN.sub(_visible, shown)
    return {"text": shown, "cut": len(text) if len(text) > MOST_CHARACTERS else None}


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0D:
        return "\n"
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
