"""Rooms of the museum: scores, verdicts and figures."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.evals.judges import JudgeSettings
from posttrain.evals.judging.parse import parse
from posttrain.evals.stats.intervals import wilson
from posttrain.evals.stats.samples import pass_at_k

from ..conftest import build_tokenizer, save_model


def test_answers_of_another_model(tmp_path: Path) -> None:
    """lm-eval's cache of answers knows the request and not the model: a second checkpoint gets the first one's answers.

    Source: EleutherAI/lm-evaluation-harness#2715, #4063. Stock: lm-eval 0.4.13.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, CachingLM
    from posttrain.evals.records import Score

    class Constant(LM):
        def __init__(self, value: float):
            super().__init__()
            self.value = value

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return [(self.value, True) for _ in requests]

        loglikelihood_rolling = generate_until = loglikelihood

    def ask(value: float) -> Any:
        request = Instance("loglikelihood", {}, ("question", " answer"), 0)
        return CachingLM(Constant(value), str(tmp_path / "cache.db")).loglikelihood([request])

    assert ask(-1.0) == ask(-2.0) == [(-1.0, True)]
    common = {"run": "", "run_id": "", "checkpoint": "", "step": None, "suite": "", "suite_version": "", "task": "t"}
    common |= {"task_hash": "h", "num_fewshot": 0, "metrics": (), "template_fingerprint": None, "judge_version": None}
    common |= {"limit": None, "versions": {}, "seconds": 0.0, "created": ""}
    one, other = (Score(weights_hash=name, model_hash=name, **common) for name in ("one", "other"))
    assert one.key != other.key


def test_twenty_of_twenty_are_not_certain() -> None:
    """The standard error of a score of 0 or 1 is 0: an interval without width, of however few items.

    Source: Agresti and Coull, The American Statistician 52 (1998). Stock: lm-eval 0.4.13.
    """
    from lm_eval.api.metrics import mean_stderr

    assert mean_stderr([1.0] * 20) == 0
    assert wilson(20, 20).low == pytest.approx(0.839, abs=1e-3)


def test_at_least_one_of_k_is_biased() -> None:
    """`1 - (1 - p)^k` of the share of right samples is too low on average.

    Source: Chen et al. 2021, arXiv:2107.03374, figure 13.
    """
    n, k, p = 10, 5, 0.2
    rights = np.random.default_rng(0).binomial(n, p, 20_000)
    truth = 1 - (1 - p) ** k
    naive = np.mean([1 - (1 - right / n) ** k for right in rights])
    ours = np.mean([pass_at_k(n, int(right), k) for right in rights])
    assert truth - naive > 0.02
    assert abs(ours - truth) < 0.01


def test_equations_that_are_all_one() -> None:
    """math-verify reads an equation as the truth of its sides, so that two different ones are equal.

    Source: huggingface/Math-Verify#60, #65; measured 2026-11-28. Stock: math-verify 0.9.
    """
    math_verify = pytest.importorskip("math_verify")
    from posttrain.evals.math_answers import MathVerifier

    right, given = "$x + y = 5 + 1$", "$x + y = 3 + 1$"
    stock = math_verify.verify(math_verify.parse("$2 = 3$"), math_verify.parse("$5 = 7$"))
    with MathVerifier() as verifier:
        ours = list(verifier.compare([("2 = 3", "5 = 7"), (right, given)]))
    assert stock
    assert ours[0] != "equal"
    assert ours[1] != "equal"


def test_a_program_that_leaves_early() -> None:
    """An exit code of 0 is no pass: a program that ends itself before the checks has one.

    Source: verl-project/verl#7853. Stock: Python's own exit code, as scripts of asserts are run.
    """
    from posttrain.data_tools.sandbox import Checks, find_sandbox

    program = "import os\ndef add(a, b):\n    return 0\nos._exit(0)\n"
    checks = "assert add(1, 2) == 3\n"
    assert subprocess.run([sys.executable, "-c", program + checks], check=False).returncode == 0
    assert find_sandbox().run(program, Checks(checks, ("add",))).status == "failed"


def test_a_verdict_that_nobody_sees() -> None:
    """A pattern finds the verdict that is quoted first, and not the last one, which has a character of no width in it.

    Source: UKGovernmentBEIS/inspect_ai#4283, #5145. Stock: a pattern as judges' scripts have it.
    """
    import re

    said = "At first [[B]], finally [[\u200bA]]"
    assert re.findall(r"\[\[([AB])\]\]", said)[-1] == "B"
    verdict = parse(said, JudgeSettings())
    assert verdict.preference == parse("[[A]]", JudgeSettings()).preference


def test_a_text_that_pays_for_its_beginning(tmp_path: Path) -> None:
    """lm-eval puts BOS before a text whose tokenizer puts it there too, and counts how unlikely the second one is.

    Source: measured 2026-11-29, benchmarks/real_run/suites.md: 1.099 bits per byte of Gemma 3 270M in place of 1.083.
    Stock: lm-eval 0.4.13, perplexities by `loglikelihood_rolling`.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models import huggingface
    from posttrain.evals.perplexity import Window, encode, score_windows
    from tokenizers import processors

    tokenizer: Any = build_tokenizer(["<|pad|>", "<|endoftext|>", "<s>"], pad_token="<|pad|>", bos_token="<s>")
    bos, text = tokenizer.bos_token_id, "Hello world"
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    hflm: Any = huggingface.HFLM
    stock = hflm(pretrained=str(save_model(tmp_path, tokenizer)), dtype="float32", device="cpu")
    ids = tokenizer.encode(text, add_special_tokens=False)

    def likelihood(beginning: list[int]) -> float:
        rows = [beginning + ids]
        return -float(score_windows(stock.model, rows, [Window(0, 0, len(rows[0]), 1)], 1)[0][0])

    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    assert stock.loglikelihood_rolling([request]) == [pytest.approx(likelihood([bos, bos]), abs=1e-4)]
    assert encode([text], tokenizer) == [[bos, *ids]]
    assert likelihood([bos]) - likelihood([bos, bos]) > 1


def test_an_optimizer_that_stops_early() -> None:
    """Chinchilla's own fit averaged its objective over the runs, so that L-BFGS stopped before its minimum.

    Source: Besiroglu et al. 2024, arXiv:2404.10102, section 3. Stock: scipy's L-BFGS-B with its own tolerances.
    """
    from posttrain.evals.stats.scaling import fit
    from scipy.optimize import minimize

    from ..evals.test_scaling import planted

    n, d, y = planted(noise=0.002)

    def mean_objective(x: Any) -> float:
        e, a, alpha, b, beta = x
        off = np.abs(np.logaddexp.reduce([0 * n + e, a - alpha * np.log(n), b - beta * np.log(d)]) - np.log(y))
        return float(np.where(off <= 1e-3, off**2 / 2, 1e-3 * (off - 5e-4)).mean())

    start = [0.5, 5.0, 0.5, 5.0, 0.5]
    stock = minimize(mean_objective, start, method="L-BFGS-B")
    ours = fit(n, d, y, draws=0)
    assert stock.success
    assert stock.fun * len(y) > 2 * ours.objective
