"""`data clean`: rows that rules find bad go, each with the rule's name; for web text, chats and code."""

import ast
import itertools
import re
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from .errors import DataError
from .files import hash_file
from .languages import MIN_PROBABILITY, check_codes, identifier, model_version
from .ngrams import words_in
from .row_tool import Decide, Outcome, TextTool, canonical_reader, decide_readable, first_rows, readable, with_columns
from .sources import Row
from .spec import Kind, SourceSpec
from .tool import comma_separated
from .web_rules import DATATROVE, PASSES, RuleVerdict, WebThresholds, above, below, c4, fineweb, gopher, words_of
from .word_list import WordList, path_of

Preset = Literal["gopher", "gopher_datatrove", "c4", "c4_datatrove", "fineweb", "fineweb_datatrove", "chat", "code"]
WEB: Mapping[str, Callable[..., Any]] = {"gopher": gopher, "c4": c4, "fineweb": fineweb}
COLUMN = "clean_reasons"
_DATATROVE = "_datatrove"
_BEGINNING = 1000  # characters in which a file says that it is generated


class Thresholds(WebThresholds):
    """What the rules allow. `null` switches a rule off; 0 is 0."""

    min_prose_words: int | None = 20
    """Chat: an answer of so many words that ends in the middle of a sentence is cut off; shorter ones need no end."""
    refusals: bool = True
    """Chat: whether an answer goes that begins by refusing what was asked; an excuse that was asked for stays."""
    self_reference: bool = True
    """Chat: whether an answer goes in which a model speaks of itself as one."""
    repeated_question: bool = True
    """Chat: whether an answer goes that only repeats the question."""
    max_line: int | None = 1000
    """Code: characters of the longest line; minified files have longer ones (Chen et al. 2021, section 3.1)."""
    max_mean_line: float | None = 100
    """Code: mean characters of a line (likewise)."""
    min_alphanumeric: float | None = 0.25
    """Code: the least share of letters and digits (the paper gives no figure; StarCoder's, Li et al. 2023)."""
    generated: bool = True
    """Code: whether a file that says it is generated goes."""
    syntax: bool = True
    """Code: whether Python goes that cannot be parsed, by the grammar of the Python that runs this."""
    max_listed_words: int | None = 0
    """Blocklist: how many words of the list a row may hold; C4's pages held none (Raffel et al. 2020, section 2.2)."""
    min_language_probability: float | None = MIN_PROBABILITY
    """Languages: the least probability of a text's language; of less it is `und`, undetermined."""


class Clean(TextTool):
    """Leaves out rows that rules find bad, each with the rule's name.

    Presets: `gopher`, `c4` and `fineweb` for web text, as their papers mean them; the same with `_datatrove`, as
    datatrove has them to the letter; `chat` for conversations; `code` for source files and for Python in answers.
    Several are applied in turn. C4's cut lines out of texts, which is counted apart from rows left out.
    """

    presets: Annotated[list[Preset], BeforeValidator(comma_separated)] = Field([])
    """Which rules, in turn: one or several of `gopher`, `c4`, `fineweb` (also with `_datatrove`), `chat`, `code`."""
    languages: Annotated[list[str] | None, BeforeValidator(comma_separated)] = None
    """Languages whose rows stay, such as `en,de`. Texts of fewer than 50 letters beside code and addresses, and those
    of which the model is not sure, are of the language `und`, which is named where they should stay."""
    blocklist: str | None = None
    """A file of words and phrases, one a line, whose rows go; `profanity` is a short list of English swear words. They
    are looked for as whole words. Lists of words are known to take more of what minorities say of themselves (Dodge et
    al. 2021, arXiv:2104.08758): see by `--no-remove` what goes."""
    thresholds: Thresholds | None = None
    """Thresholds other than the presets' own, such as `{min_words: 20, max_bullet_lines: null}`; `null` is off."""
    python: bool | None = None
    """Whether texts are Python files; by default those are whose `path` ends in `.py` or whose `language` is Python."""
    remove: bool = True
    """Whether such rows are left out; else all are written as they are, with a column `clean_reasons`."""

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if not self.presets and not self.languages and not self.blocklist:
            raise ValueError("name `presets`, `languages`, a `blocklist` or several of them")
        return self

    @property
    def limits(self) -> Thresholds:
        """Returns the thresholds, the presets' own where none is named."""
        return self.thresholds or Thresholds()

    def identity(self) -> list[str | None]:
        """Returns the model of languages and the hash of the list of words, if they decide."""
        listed = path_of(self.blocklist) if self.blocklist else None
        digest = hash_file(listed) if listed is not None and listed.is_file() else None
        return [model_version() if self.languages else None, digest]

    def decider(self, source: SourceSpec) -> Decide:
        """Refuses presets that do not fit the source's rows.

        Raises:
            DataError: Rules for web text meet conversations or short rows, or those for conversations meet texts; a
                language is unknown.
        """
        check_codes(self.languages or ())
        identify = identifier(self.limits.min_language_probability) if self.languages else None
        self._refuse_unfit(source)
        read = self.reader(source)
        canonical = canonical_reader(source, get_args(Kind)) if {"chat", "code"} & set(self.presets) else None
        checks = [(name, self._check(name, canonical)) for name in self.presets]
        if self.blocklist:
            checks.append(("blocklist", blocklist_check(WordList.read(self.blocklist), self.limits.max_listed_words)))

        def decide(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
            found: list[list[tuple[str, RuleVerdict]]] = [[] for _ in texts]
            now = list(texts)
            told = identify(texts) if identify else []
            for place, (code, probability) in enumerate(told):
                if code not in (self.languages or ()):
                    found[place].append(("language", RuleVerdict(code, f"probability {probability:.2f}")))
            for name, check in checks:
                left = [place for place, one in enumerate(found) if not (self.remove and one and one[-1][1].reason)]
                verdicts = check([rows[place] for place in left], [now[place] for place in left])
                for place, verdict in zip(left, verdicts, strict=True):
                    found[place].append((name, verdict))
                    if self.remove and verdict.text is not None:
                        now[place] = verdict.text
            outcomes = list(map(self._outcome, rows, texts, now, found))
            for place, (code, _) in enumerate(told):
                outcomes[place] = outcomes[place]._replace(groups={"language": code})
            return outcomes

        return decide_readable(read, decide)

    def _outcome(self, row: Row, before: str, after: str, found: Sequence[tuple[str, RuleVerdict]]) -> Outcome:
        reasons = [f"{name}: {verdict.reason}" for name, verdict in found if verdict.reason]
        measures = {"characters of a text": len(before)}
        if not self.remove:
            marks = dict.fromkeys(reasons, 1)
            return Outcome(with_columns(row, {COLUMN: reasons}), edits=marks, measures=measures)
        if reasons:
            return Outcome(None, reasons[0], found[-1][1].detail, measures=measures)
        edits = {f"{name}: {what} cut": count for name, verdict in found for what, count in verdict.edits.items()}
        values = row.values if after == before else row.values | {self.text_column: after}
        return Outcome(values, edits=edits, measures=measures)

    @property
    def text_column(self) -> str:
        """Returns the column that rules which cut lines write to."""
        return self.columns[0] if self.columns else "text"

    def _check(self, name: str, canonical: Any) -> "Callable[[Sequence[Row], Sequence[str]], Sequence[RuleVerdict]]":
        """Returns the rules of a preset."""
        limits = self.limits
        if name == "chat":
            return lambda rows, texts: [chat_verdict(conversation_of(canonical(row.values)), limits) for row in rows]
        if name == "code":
            return lambda rows, texts: [self._code(row, text, canonical) for row, text in zip(rows, texts, strict=True)]
        if name.endswith(_DATATROVE):
            limits = Thresholds(**{**DATATROVE, **limits.model_dump(exclude_unset=True)})
        web = WEB[name.removesuffix(_DATATROVE)](limits, name.endswith(_DATATROVE))
        return lambda rows, texts: web(texts)

    def _code(self, row: Row, text: str, canonical: Any) -> RuleVerdict:
        found = {} if self.columns else canonical(row.values)
        if not self.columns and "text" not in found:
            answers = "\n".join(turn["content"] for turn in conversation_of(found) if turn["role"] == "assistant")
            return next(filter(None, map(python_error, fenced_python(answers))), PASSES)
        python = self.python
        if python is None:
            language = str(row.values.get("language") or row.values.get("lang") or "").lower()
            python = language == "python" or str(row.values.get("path", "")).endswith(".py")
        return code_verdict(text, python, self.limits)

    def _refuse_unfit(self, source: SourceSpec) -> None:
        """Refuses rules for pages on conversations and short rows, which they would drop for being such."""
        if self.columns is not None and "chat" not in self.presets:
            _refuse_edits(self, source)
            return
        canonical = canonical_reader(source, get_args(Kind))
        first = readable(first_rows(source), lambda row: canonical(row.values))
        texts = [found["text"] for _, found in first if "text" in found]
        if "chat" in self.presets and texts:
            raise DataError("rows of text hold no conversations", where=source.title, hint="leave `chat` out")
        web = [name for name in self.presets if name.removesuffix(_DATATROVE) in WEB]
        if web and self.columns is None and not texts:
            what = f"`{web[0]}` is made for web pages, and these are conversations"
            raise DataError(
                what, where=source.title, hint="take `chat`, or name the columns that hold pages: `columns`"
            )
        _refuse_edits(self, source)
        least = self.limits.min_words
        if any(name.startswith("gopher") for name in web) and "min_words" not in self.limits.model_fields_set:
            words = statistics.median(len(words_of(text)) for text in texts) if texts else least
            if least is not None and words is not None and words < least:
                what = f"half of the first rows have fewer than {least} words: `{web[0]}` is made for pages"
                hint = "leave it out, or say how short a row may be: `thresholds: {min_words: ...}`"
                raise DataError(what, where=source.title, hint=hint)


def _refuse_edits(spec: Clean, source: SourceSpec) -> None:
    """Refuses to cut lines out of a text that is not what one column holds, to which it could be written back."""
    edits = next((name for name in spec.presets if name.startswith("c4")), None)
    if edits is None or not spec.remove:
        return
    for row, text in readable(first_rows(source), spec.reader(source)):
        if text and row.values.get(spec.text_column) != text:
            what = (
                f"`{edits}` cuts lines out of one column, and what counts of this row is not its {spec.text_column!r}"
            )
            raise DataError(what, where=row.where, hint="name one column of text in `columns`, or convert first")


def conversation_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of canonical columns: those of a preference end with the chosen answer."""
    parts = [("messages", "user"), ("prompt", "user"), ("completion", "assistant"), ("chosen", "assistant")]
    messages: list[dict[str, Any]] = []
    for name, role in parts:
        value = found.get(name)
        messages += [{"role": role, "content": value}] if isinstance(value, str) else (value or [])
    return messages


def blocklist_check(
    listed: WordList, most: int | None
) -> "Callable[[Sequence[Row], Sequence[str]], Sequence[RuleVerdict]]":
    """Returns the rule that texts hold few words of a list."""

    def check(rows: Sequence[Row], texts: Sequence[str]) -> list[RuleVerdict]:
        numbers, entries = listed.find(texts)
        bounds = np.searchsorted(numbers, np.arange(len(texts) + 1))
        verdicts = []
        for start, end in itertools.pairwise(bounds.tolist()):
            if most is None or end - start <= most:
                verdicts.append(PASSES)
                continue
            words = ", ".join(dict.fromkeys(str(listed.entries[entry]) for entry in entries[start:end]))
            verdicts.append(RuleVerdict("listed words", f"{end - start}, at most {most}: {words}"))
        return verdicts

    return check


_CANNOT = r"(?:can['’]?t|cannot|can not|unable|won['’]?t|will not|not able|not allowed)\b"
_MODEL = r"(?:ai|artificial intelligence|(?:large )?language model|llm|chatbot)\b"
_SPEAKER_CANNOT = rf"(?:\b(?:i|we)(?:['’]?m|['’]?re| am| are)?(?: \w+)?|\b(?:and|but)) {_CANNOT}"
# Behind a quotation mark somebody else speaks.
_REFUSAL = re.compile(
    r"[^\w\"'“”‘’„«]*(?:"
    rf"(?:(?:i['’]?m|i am|we['’]?re|we are) (?:\w+ )?(?:sorry|afraid)|sorry|unfortunately|apologies|i apologi[sz]e)\b"
    rf"[^.\n]{{0,60}}?{_SPEAKER_CANNOT}"
    r"|i(?:['’]m| am) (?:unable|not able|not allowed) to\b"
    r"|(?P<bare>i (?:can['’]?t|cannot|can not|won['’]?t|will not)\b))",
    re.IGNORECASE,
)
_HELP = re.compile(
    r"(?: to)? (?:\w+ )?(?:assist|help(?! but\b| it\b| \w+ing\b)|provide|fulfill|fulfil|comply|answer|engage|create"
    r"|write|generate|support|do (?:that|this)\b|discuss|comment)",
    re.IGNORECASE,
)
# What people say they cannot do to each other: an excuse that was asked for, or a role.
_EXCUSE = re.compile(
    r"(?: to)? (?:\w+ )?(?:come\b(?! up with)|attend|join|be (?:there|here|at|with|in|home)|go (?:to|out|with|home)"
    r"|stay|wait|meet (?:you|up|with|for|at|on)|visit (?:you|him|her|them)|believe|make it\b(?! \w+er\b| more))\b",
    re.IGNORECASE,
)
_ASKS_FOR_WORDS = re.compile(
    r"\b(?:say|write|draft|compose|generate|phrase|express|translat\w+|re(?:phrase|write)|paraphrase|excuses?|apologi[sz]e)\b",
    re.IGNORECASE,
)
_OF_REFUSING = re.compile(
    r"\b(?:sorry|apolog\w+|excuses?|declin\w+|turn(?:ing)? down|reject\w*|refus\w+|resign\w*|regrets?)\b", re.IGNORECASE
)
_SELF = re.compile(
    rf"(?<!such )\bas an? {_MODEL}[^.\n]{{0,40}}?\b(?:i|my)\b|\bi,? as an? {_MODEL}"
    rf"|\bi(?:['’]?m| am) (?:just |only |merely )?an? {_MODEL}"
    r"|\bi(?:['’]?m| am) (?:chatgpt|gpt-\d|claude|gemini|bard|llama|qwen|deepseek)\b"
    r"|\bi was (?:trained|developed|created|made) by\b"
    r"|\bmy (?:training data|knowledge cutoff|knowledge cut-off)\b",
    re.IGNORECASE,
)
# One of these stands wherever the pattern finds anything; looking for them is faster.
_SELF_SIGNS = (" ai", "artificial intelligence", "language model", "llm", "chatbot", "i am ", "im ", "i'm ", "i’m ")
_SELF_SIGNS += ("i was ", "my training data", "my knowledge cut")
_PROSE = 6  # words of a line that is no heading
_WHOLE_SENTENCES = 3
_ENDS = frozenset(".!?:;…)]\"'”’*`。！？")
_NEVER_LAST = frozenset({"a", "an", "the", "and", "or", "but", "of", "with", "from", "than", "because", "if", "their"})
_CODE_OR_TAG = re.compile(r"[{}=<>`]|//|(?:^|\s)[#@]\S*$")
_LIST_OR_HEADING = re.compile(r"\s*(?:[-*•+#>|]|\d+[.)]|[A-Za-z][.)]\s)")


def chat_verdict(messages: Sequence[Mapping[str, Any]], limits: Thresholds) -> RuleVerdict:
    """Returns what the rules for conversations say."""
    return (
        _turn_order(messages)
        or _empty_turn(messages)
        or next(
            (
                verdict
                for place, turn in enumerate(messages)
                if turn["role"] == "assistant" and (verdict := _answer(turn, messages[:place], limits))
            ),
            PASSES,
        )
    )


def _turn_order(messages: Sequence[Mapping[str, Any]]) -> RuleVerdict | None:
    """Finds turns that do not follow each other: system first, user and assistant in turns, tools after calls."""
    roles = [turn["role"] for turn in messages if turn["role"] not in ("system", "developer")]
    shown = ", ".join(str(turn["role"]) for turn in messages[:12])
    if any(turn["role"] in ("system", "developer") for turn in messages[1:]):
        return RuleVerdict("system message behind other turns", shown)
    if not roles or "assistant" not in roles:
        return RuleVerdict("no answer", shown)
    if roles[0] != "user":
        return RuleVerdict("does not begin with the user", shown)
    after = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
    if any(right not in after.get(left, ()) for left, right in itertools.pairwise(roles)):
        return RuleVerdict("turns out of order", shown)
    return RuleVerdict("ends without an answer", shown) if roles[-1] != "assistant" else None


def _empty_turn(messages: Sequence[Mapping[str, Any]]) -> RuleVerdict | None:
    for turn in messages:
        if not str(turn.get("content") or "").strip() and not turn.get("tool_calls") and turn["role"] != "system":
            return RuleVerdict(f"empty {turn['role']} turn")
    return None


def _answer(turn: Mapping[str, Any], before: Sequence[Mapping[str, Any]], limits: Thresholds) -> RuleVerdict | None:
    """Returns what is wrong with an answer."""
    text = str(turn.get("content") or "").strip()
    question = str(before[-1].get("content") or "") if before and before[-1]["role"] == "user" else ""
    refusal = _refusal(text, question) if limits.refusals else None
    if refusal:
        return RuleVerdict("refusal", refusal)
    own = _own_words(text) if limits.self_reference else None
    if own:
        return RuleVerdict("speaks of itself as a model", text[max(own.start() - 40, 0) : own.end() + 40])
    if limits.repeated_question and text and words_in(text) == words_in(question) and words_in(text):
        return RuleVerdict("answer repeats the question")
    if limits.min_prose_words is not None and is_cut_off(text, limits.min_prose_words):
        return RuleVerdict("cut off", text[-80:])
    return None


def _refusal(text: str, question: str) -> str | None:
    """Returns how an answer begins in which the speaker refuses what was asked.

    Where words of apology or refusal were asked for, an answer may hold them, and must deny help to be a refusal.
    """
    begins = _REFUSAL.match(text)
    if begins is None or _EXCUSE.match(text, begins.end()):
        return None
    asked_for = _ASKS_FOR_WORDS.search(question) and _OF_REFUSING.search(question)
    denied = _HELP.match(text, begins.end())
    if not denied and (begins["bare"] or asked_for):
        return None
    return text[: denied.end() if denied else begins.end()]


def _own_words(text: str) -> "re.Match[str] | None":
    """Finds where a model speaks of itself as one."""
    lower = text.lower()
    return _SELF.search(text) if any(sign in lower for sign in _SELF_SIGNS) else None


def is_cut_off(text: str, least: int) -> bool:
    """Tells whether a text stops in the middle: in a block of code, or in a sentence after whole ones.

    Lists, headings, tables, code and verse need no full stop, nor does what a writer ends without one elsewhere too.
    Scripts without spaces are not looked at.
    """
    if text.count("```") % 2:
        return True
    *lines, last = text.split("\n")
    if len(text.split()) < least or not _is_prose(last) or _CODE_OR_TAG.search(last):
        return False
    if text[-1] in ",-–—(" or last.split()[-1].lower() in _NEVER_LAST:
        return True
    whole = all(line.rstrip()[-1] in _ENDS for line in lines if _is_prose(line))
    return text[-1].isalnum() and whole and len(re.findall(r"[.!?]\s", text)) >= _WHOLE_SENTENCES


def _is_prose(line: str) -> bool:
    return len(line.split()) >= _PROSE and not _LIST_OR_HEADING.match(line)


_GENERATED = re.compile(
    r"auto-?generated|automatically generated|do not edit|@generated|this (?:file|code) (?:was|is|has been) generated"
    r"|^\W*generated by\b",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|--|;|<!--|%|\"\"\"|''')")


def code_verdict(text: str, python: bool, limits: Thresholds) -> RuleVerdict:
    """Returns what the rules for source files say."""
    lines = text.split("\n")
    letters = sum(map(str.isalnum, text))
    if not text.strip():
        return RuleVerdict("empty")
    return (
        (_generated(text) if limits.generated else None)
        or above("long line", max(map(len, lines)), limits.max_line)
        or above("long lines", len(text) / len(lines), limits.max_mean_line)
        or below("few letters and digits", letters / len(text), limits.min_alphanumeric)
        or (python_error(text) if python and limits.syntax else None)
        or PASSES
    )


def _generated(text: str) -> RuleVerdict | None:
    """Finds a comment at the beginning that says so; in code the same words mean nothing."""
    for line in text[:_BEGINNING].split("\n"):
        if _COMMENT.match(line) and _GENERATED.search(line):
            return RuleVerdict("generated", line.strip())
    return None


_NO_PYTHON = f"cannot be parsed as Python {sys.version_info[0]}.{sys.version_info[1]}"


def python_error(text: str) -> RuleVerdict | None:
    """Returns where Python cannot be parsed, by the grammar of the Python that runs this."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubtful escapes and comparisons
            ast.parse(text)
    except SyntaxError as error:
        return RuleVerdict(_NO_PYTHON, f"line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return RuleVerdict(_NO_PYTHON, str(error) or "nested too deeply")
    return None


_FENCE = re.compile(r"^[ ]{0,3}```(?:python|py)\d?[ \t]*\n(.*?)^[ ]{0,3}```", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def fenced_python(text: str) -> list[str]:
    """Returns the blocks of Python in Markdown; sessions of an interpreter are none."""
    return [block for block in _FENCE.findall(text) if not block.lstrip().startswith((">>>", "$", "!", "%"))]
