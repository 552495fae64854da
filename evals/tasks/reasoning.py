"""How the answer is read from reasoning, and what it is compared by: the functions that YAML files name."""

import ast
import contextlib
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from posttrain.evals.math_answers import MathVerifier
from posttrain.evals.task_index import lm_eval_folder

Answers = list[list[str]]

# A minus behind a digit or before a space takes away, and is no sign: 5-10, 3 - 1.
_NUMBER = r"(?:(?<![\w)])[-\u2212])?(?:\$\s?)?(?<![\d.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/[1-9]\d*)?"
_BARE = r"(?:\s|\*\*|\\boxed\{|\$)*+"  # what may stand between words and a number
_TERM = rf"\(*{_NUMBER}(?: ?[A-Za-z%]+)?\)*"  # of arithmetic, with its unit
_OPERATOR = r" *(?:[-+*/^x\u00d7\u00f7\u2212]|\*\*(?=\d)|\\times|\\cdot|of\b) *"
# The number said first is the answer, but where it is the first term of a calculation: then what that comes to is.
_CALCULATION = rf"{_TERM}(?:{_OPERATOR}{_TERM})+(?:\*\*)? *="
_SAID = re.compile(rf"[Tt]he (?:final )?answer is:?(?:{_BARE}[a-z] *=)?(?:{_BARE}{_CALCULATION})*{_BARE}({_NUMBER})")
_LAST = re.compile(_NUMBER)
_MARKED = re.compile(rf"####\s*({_NUMBER})")


def cot_shots() -> list[dict[str, str]]:
    """Returns the eight worked examples of Wei et al. (2022, arXiv:2201.11903, table 20) from lm-eval's GSM8K."""
    import yaml

    path = lm_eval_folder() / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    samples = yaml.safe_load(path.read_text())["fewshot_config"]["samples"]
    return [
        {"context": sample["question"], "question": sample["question"], "target": sample["target"]}
        for sample in samples
    ]


def minerva_shots() -> list[dict[str, str]]:
    """Returns the four worked examples of Minerva (Lewkowycz et al. 2022, arXiv:2206.14858, appendix D.1) from lm-eval.

    They are read from its source: importing it needs an older runtime of antlr than math-verify does.
    """
    source = (lm_eval_folder() / "tasks" / "minerva_math" / "utils.py").read_text()
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    [listed] = [node for node in functions if node.name == "list_fewshot_samples"]
    [returned] = [node.value for node in ast.walk(listed) if isinstance(node, ast.Return) and node.value]
    return ast.literal_eval(returned)


def read_numbers(resps: Answers, docs: Sequence[dict[str, Any]]) -> list[list[dict[str, str | None]]]:
    """Reads the last number that an answer calls its answer, of an equation the result, and the last number of all."""
    return [[_numbers(_last(_SAID, text), last_number(text)) for text in texts] for texts in resps]


def read_marked_numbers(resps: Answers, docs: Sequence[dict[str, Any]]) -> list[list[dict[str, str | None]]]:
    """Reads the last number behind ``####``, as GSM8K's own answers end, and :func:`last_number` without one."""
    read = []
    for texts in resps:
        strict = [_last(_MARKED, text) for text in texts]
        pairs = zip(strict, texts, strict=True)
        read.append([_numbers(number, number or last_number(text)) for number, text in pairs])
    return read


def _numbers(strict: str | None, flexible: str | None) -> dict[str, str | None]:
    """Returns a reading with what it votes for among several samples: a value, so that 18 and 18.00 are one."""
    vote = flexible
    with contextlib.suppress(ValueError):  # Python spells no number of thousands of digits
        vote = str(_value(flexible)) if flexible else None
    return {"strict": strict, "flexible": flexible, "vote": vote}


def last_number(text: str) -> str | None:
    """Returns what an answer says last after "the answer is", or else its last number; None without one."""
    return _last(_SAID, text) or _last(_LAST, text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return re.sub(r"[$,\s]", "", found[-1]).replace("\u2212", "-") if found else None


def count_numbers(doc: dict[str, Any], results: list[list[dict[str, str | None]]]) -> dict[str, float]:
    """Compares as numbers, so that 18 is 18.00 and 1/2 is .5; GSM8K's right answer stands behind ``####``."""
    read, gold = results[0][0], _value(str(doc["answer"]).rpartition("####")[2].strip().replace(",", ""))
    right = {name: (text := read[name]) is not None and _value(text) == gold for name in ("strict", "flexible")}
    return {
        "exact_match": float(right["flexible"]),
        "strict_match": float(right["strict"]),
        "unparsed": float(read["flexible"] is None),
    }


def _value(text: str) -> Fraction:
    """Returns what a number means that an answer spells; Fraction itself refuses 2.5/10 and thousands of digits."""
    number, _, divisor = text.partition("/")
    return Fraction(Decimal(number)) / Fraction(Decimal(divisor or 1))


def with_answer(docs: Any) -> Any:
    """Adds to the rows of MATH the right answer: what stands in the last box of the solution, where there is one."""

    def add(doc: dict[str, Any]) -> dict[str, Any]:
        gold = last_boxed(doc["solution"]) if doc.get("solution") else None
        return {"answer": gold if gold is not None else doc["answer"]}

    return docs.map(add)


def verify_math(resps: Answers, docs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Reads each answer in two ways and compares it with the right one.

    Among several samples all that are equal to the right answer vote as one. Others vote by their spelling in lm-eval's
    ``hendrycks_math``: equal wrong answers of unlike spellings, not compared with each other, split their votes.
    """
    read = [[(boxed_or_final(text), said_last(text)) for text in texts] for texts in resps]
    wanted = {
        (f"${doc['answer']}$", f"${text}$")
        for texts, doc in zip(read, docs, strict=True)
        for pair in texts
        for text in pair
        if text
    }
    with MathVerifier() as verifier:
        ordered = sorted(wanted)
        verdicts = dict(zip(ordered, verifier.compare(ordered), strict=True))

    def described(pair: tuple[str | None, str | None], gold: str) -> dict[str, Any]:
        found = {
            name: {"text": text, "verdict": verdicts[f"${gold}$", f"${text}$"] if text else "unread"}
            for name, text in zip(("strict", "flexible"), pair, strict=True)
        }
        right = found["flexible"]["verdict"] == "equal"
        return found | {"vote": f"= {gold}" if right else _spelling(pair[1] or "")}

    return [[described(pair, doc["answer"]) for pair in texts] for texts, doc in zip(read, docs, strict=True)]


def _spelling(text: str) -> str:
    """Returns how lm-eval's ``hendrycks_math`` spells an answer, which is as it is where that fails."""
    from lm_eval.tasks.hendrycks_math.utils import strip_string

    try:
        return strip_string(text)
    except (AssertionError, IndexError, ValueError):
        return text


def count_math(doc: dict[str, Any], results: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Counts what was equal; what could not be read or decided stands beside it."""
    read = results[0][0]
    return {
        "exact_match": float(read["flexible"]["verdict"] == "equal"),
        "strict_match": float(read["strict"]["verdict"] == "equal"),
        "unparsed": float(read["flexible"]["verdict"] == "unread"),
        "undecided": float(read["flexible"]["verdict"] == "undecided"),
    }


_FINAL = re.compile(r"[Ff]inal [Aa]nswer is:?\s*\$?(.+?)\$?\.?(?:\s*I hope it is correct|\n|$)")
_ANSWER = re.compile(r"[Aa]nswer(?: is)?:?\s*(?!not\b)(.+?)(?:\.\s|\.?$)", re.MULTILINE)
_DOLLARS = re.compile(r"\$([^$]+)\$")


def boxed_or_final(text: str) -> str | None:
    r"""Returns what stands in the last ``\boxed{}``, or else in the last sentence "the final answer is"."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    found = _FINAL.findall(text)
    return found[-1].strip("$ ") if found else None


def said_last(text: str) -> str | None:
    """Returns :func:`boxed_or_final`, or else what follows the last "answer", the last formula, the last number.

    math-verify itself takes the first number of a text that says none of these, and all boxes as one set.
    """
    if (strict := boxed_or_final(text)) is not None:
        return strict
    for pattern in (_ANSWER, _DOLLARS):
        if found := pattern.findall(text):
            return found[-1].strip("$ ")
    return _last(_LAST, text)


def last_boxed(text: str) -> str | None:
    r"""Returns what stands in the last ``\boxed{}`` or ``\fbox{}`` whose braces close, or after a bare ``\boxed``."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)", text)]):
        if text[start : start + 1] != "{":
            bare = re.match(r"\s+([^\s$]+)", text[start:])
            if bare:
                return bare[1]
            continue
        depth = 0
        for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # a brace behind a backslash is text
            depth += (brace[0] == "{") - (brace[0] == "}")
            if depth == 0:
                return text[start + 1 : start + brace.start()]
    return None
