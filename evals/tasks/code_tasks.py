"""What the code tasks run and count: the functions that their YAML files name.

The prompts, stop strings and the programs made of answers are lm-eval's; its own files cannot be used, since they
fetch a metric and run programs as soon as they are read, without walls. Here every program of a task is run by
:class:`posttrain.data_tools.sandbox.ProgramSandbox`, apart from what checks it.
"""

import ast
import re
import warnings
from typing import Any

from posttrain.data_tools.sandbox import Checks, Limits, ProgramOutcome, find_sandbox
from posttrain.evals.errors import EvalError

KINDS = ("no_code", "syntax_error", "wrong", "timeout", "limit")
"""How a program can fail: there is none, it is no Python, a check does not hold or it raises an error, it is too slow,
or it wants more memory, output or processes than it may have."""
LIMITS = Limits(wall=10.0, cpu=5)

Answers = list[list[str]]
Outcomes = list[list[dict[str, str]]]


def run_humaneval(resps: Answers, docs: list[dict[str, Any]]) -> Outcomes:
    """Runs each prompt with its continuation."""
    return _run([[_continued(doc, answer) for answer in answers] for answers, doc in _each(resps, docs)], docs)


def run_humaneval_instruct(resps: Answers, docs: list[dict[str, Any]]) -> Outcomes:
    """Runs each prompt with the code block of its answer, which the prompt has opened."""
    programs = [
        [_continued(doc, _first_block(answer, doc["prompt"])) for answer in answers]
        for answers, doc in _each(resps, docs)
    ]
    return _run(programs, docs)


def run_mbpp(resps: Answers, docs: list[dict[str, Any]]) -> Outcomes:
    """Runs each answer as it is."""
    return _run(resps, docs)


def run_mbpp_instruct(resps: Answers, docs: list[dict[str, Any]]) -> Outcomes:
    """Runs the code block of each answer, which the prompt has opened."""
    return _run([[_first_block(answer) for answer in answers] for answers in resps], docs)


def count(doc: dict[str, Any], results: list[list[dict[str, str]]]) -> dict[str, float]:
    """Returns whether a program passed, and how it failed."""
    kind = results[0][0]["kind"]
    return {"pass@1": float(kind == "passed")} | {name: float(kind == name) for name in KINDS}


def mbpp_test_split(docs: Any) -> Any:
    """Leaves the rows of the test split, ids 11 to 510, in files that hold all (Austin et al. 2021, section 2.1)."""
    return docs.select([place for place, number in enumerate(docs["task_id"]) if 11 <= number <= 510])


def _each(resps: Answers, docs: list[dict[str, Any]]) -> Any:
    return zip(resps, docs, strict=True)


def _continued(doc: dict[str, Any], answer: str) -> str:
    """Returns a prompt with its continuation; nothing, where the continuation is."""
    return doc["prompt"] + answer if answer.strip() else ""


def _first_block(answer: str, prompt: str = "") -> str:
    """Returns what stands before the end of the block that the prompt has opened, or the answer's own first block.

    The latter where nothing or prose stands before it, as in chat answers from elsewhere, and a line follows its fence:
    an answer that ends behind "```python" holds no code. Behind HumanEval's prompt it may define the function anew.
    lm-eval's ``extract_code_blocks`` takes the first word for the name of a language, and so loses a ``def``.
    """
    code, _, rest = answer.partition("```")
    own = re.sub(r"\A[^\n`]*(?:\n|\Z)", "", rest).partition("```")[0]
    return "\n" + own if own.strip() and _statements(prompt + code) <= _statements(prompt) else code


def _statements(program: str) -> int:
    """Counts a program's statements, but bare expressions and annotations, for which words of prose may pass."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in strings
            nodes = list(ast.walk(ast.parse(program)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    return sum(isinstance(node, ast.stmt) and not isinstance(node, ast.Expr | ast.AnnAssign) for node in nodes)


def checks_of(doc: dict[str, Any]) -> Checks:
    """Returns what a row checks a program by; all but the names that were asked for is the row's own."""
    if "entry_point" in doc:
        test = f"{doc['test']}\ncheck({doc['entry_point']})"
        return Checks(test, (doc["entry_point"],), setup=doc["prompt"])
    tree = ast.parse(doc["code"])
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    # lm-eval leaves the set-up out, without which some rows have no right answer.
    lines = [doc.get("test_setup_code") or "", *doc["test_list"]]
    return Checks("\n".join(lines), tuple(defined), setup="\n".join(imports))


def _run(programs: Answers, docs: list[dict[str, Any]]) -> Outcomes:
    """Runs the programs of all rows; what the sandbox failed on is tried once more, one at a time."""
    sandbox = find_sandbox()
    jobs = [(program, checks_of(doc)) for of_doc, doc in _each(programs, docs) for program in of_doc]
    wanted = [job for job in jobs if job[0].strip()]
    ran = list(sandbox.run_all(wanted, LIMITS))
    ran = [
        sandbox.run(*job, LIMITS) if outcome.status == "unknown" else outcome
        for job, outcome in zip(wanted, ran, strict=True)
    ]
    unknown = [outcome.reason for outcome in ran if outcome.status == "unknown"]
    if unknown:
        what = f"the sandbox failed on {len(unknown)} of {len(ran)} programs, which are no wrong answers: {unknown[0]}"
        raise EvalError(what, hint="score again when the machine is less busy")
    outcomes = iter(ran)
    return [
        [_described(program, next(outcomes) if program.strip() else None) for program in of_doc] for of_doc in programs
    ]


def _described(program: str, outcome: ProgramOutcome | None) -> dict[str, str]:
    """Returns how a program ended, as the samples keep it."""
    if outcome is None:
        return {"kind": "no_code", "reason": "", "program": program}
    if outcome.status == "ended":
        kind = "passed"
    elif outcome.reason.startswith(("SyntaxError", "IndentationError", "TabError")):
        kind = "syntax_error"
    elif outcome.status == "stopped":
        kind = "timeout" if outcome.reason in ("time", "cpu") else "limit"
    else:
        kind = "limit" if outcome.reason in ("memory", "processes") else "wrong"
    return {"kind": kind, "reason": outcome.reason, "program": program}
