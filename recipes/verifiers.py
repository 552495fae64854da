"""Rewards that check answers against what rows say is right: texts, numbers, expressions of mathematics, unit tests.

Each gives 1 for right and 0 for wrong; None, which leaves a term out of an answer's reward, where a row has nothing to
check by or where nothing could be decided.
"""

import ast
import builtins
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from ..data_tools.sandbox import Checks, Limits, find_sandbox
from ..evals.math_answers import MathVerifier
from ..evals.tasks.reasoning import last_number, said_last
from .errors import RecipeError

Answers = Sequence[str]
Rewards = list[float | None]

COLUMNS = {"exact": "answer", "numeric": "answer", "symbolic": "answer", "tests": "tests"}
"""The column of the rows that each verifier checks by, unless the recipe names another."""

# An answer in training is one of thousands, so a program has less time than one that is scored.
_LIMITS = Limits(wall=5.0, cpu=3, memory=1 << 29)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def exact(answers: Answers, right: Sequence[Any]) -> Rewards:
    """Compares an answer with the right one to the letter; blanks around either are forgiven.

    Args:
        answers: The texts.
        right: Of each the right text.
    """
    wanted = [_text(gold) for gold in right]
    return [float(answer.strip() == gold) if gold else None for answer, gold in zip(answers, wanted, strict=True)]


def numeric(answers: Answers, right: Sequence[Any]) -> Rewards:
    """Compares the number that an answer says last with the right one, as numbers: 18 is 18.00, and 1/2 is .5.

    Args:
        answers: The texts.
        right: Of each the right number; of a text that has ``####`` (GSM8K) what stands behind it.

    Raises:
        ValueError: What should be the right answer is no number.
    """
    rewards: Rewards = []
    for answer, gold in zip(answers, right, strict=True):
        wanted = _text(gold).rpartition("####")[2].strip().replace(",", "").lstrip("$")
        number, said = Fraction(wanted) if wanted else None, last_number(answer)
        rewards.append(None if number is None else float(said is not None and Fraction(said) == number))
    return rewards


def symbolic(answers: Answers, right: Sequence[Any]) -> Rewards:
    r"""Compares what an answer gives in its last ``\boxed{}``, or says last, with the right expression by math-verify.

    Args:
        answers: The texts.
        right: Of each the right expression, in LaTeX or plain.
    """
    pairs = [(_text(gold), said_last(answer)) for answer, gold in zip(answers, right, strict=True)]
    asked = list(dict.fromkeys((gold, said) for gold, said in pairs if gold and said))
    with MathVerifier() as verifier:
        told = verifier.compare((f"${gold}$", f"${said}$") for gold, said in asked)
        verdicts = dict(zip(asked, told, strict=True))
    known = {"equal": 1.0, "different": 0.0, "unread": 0.0, "undecided": None}
    return [None if not gold else known[verdicts[gold, said]] if said else 0.0 for gold, said in pairs]


def tests(answers: Answers, right: Sequence[Any]) -> Rewards:
    """Runs the program of an answer in the sandbox, and the row's tests on what it defines.

    Args:
        answers: The texts; of one with fenced blocks of code the first block is the program.
        right: Of each the tests: Python with ``assert``, or a list of such lines.

    Raises:
        SandboxError: Programs cannot be run on this machine.
        SyntaxError: What should be tests is no Python.
    """
    sandbox = find_sandbox()
    wanted = ["\n".join(lines) if isinstance(lines, list) else _text(lines) for lines in right]
    jobs = [(program_of(answer), checks(test)) for answer, test in zip(answers, wanted, strict=True) if test]
    outcomes = sandbox.run_all(jobs, _LIMITS)
    known = {"ended": 1.0, "failed": 0.0, "stopped": 0.0, "unknown": None}
    return [known[next(outcomes).status] if test else None for test in wanted]


VERIFIERS: dict[str, Callable[[Answers, Sequence[Any]], Rewards]] = {
    "exact": exact,
    "numeric": numeric,
    "symbolic": symbolic,
    "tests": tests,
}


def verifier_term(name: str, column: str | None) -> Callable[..., Rewards]:
    """Returns a verifier as the function that TRL calls, with the completions and the columns of the rows."""
    verify, column = VERIFIERS[name], column or COLUMNS[name]

    def term(completions: list[Any], **columns: Any) -> Rewards:
        texts = [answer if isinstance(answer, str) else _said(answer) for answer in completions]
        return verify(texts, columns[column])

    return term


def check_verifier(name: str, column: str | None, row: Any) -> None:
    """Refuses a verifier whose column or means are not there; asks it one question whose answer is known.

    Args:
        name: The verifier.
        column: The column that the recipe names.
        row: One of the data's.

    Raises:
        RecipeError: The rows have no such column, or what it holds is nothing to check by.
        PosttrainError: math-verify is not installed, or programs cannot be run here.
    """
    column = column or COLUMNS[name]
    if column not in row:
        others = ", ".join(sorted(row.keys() - {"prompt"})) or "no others"
        raise RecipeError(
            f"rewards: verifier {name} checks by the column '{column}', which the rows have not",
            hint=f"beside the prompt they have {others}; say `column:`, or add it in the data section",
        )
    try:
        VERIFIERS[name](["no answer"], [row[column]])
    except (ValueError, SyntaxError) as error:
        what = f"rewards: verifier {name} cannot check by {row[column]!r}, which a row has in '{column}'"
        raise RecipeError(what, hint=str(error)) from error


def program_of(answer: str) -> str:
    """Returns the first fenced block of code of an answer, or all of it where there is none."""
    found = _BLOCK.search(answer)
    return found[1] if found else answer


def checks(source: str) -> Checks:
    """Returns tests as the sandbox takes them: what they read and do not define is what they take from the program."""
    tree = ast.parse(source)
    read: dict[str, None] = {}
    known = set(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                read[node.id] = None
            else:
                known.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    return Checks(source, tuple(name for name in read if name not in known))


def _said(messages: Sequence[Any]) -> str:
    """Returns the text of the last message of a completion; with tools, those before it are calls and their results."""
    return str(messages[-1].get("content") or "") if messages else ""


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
