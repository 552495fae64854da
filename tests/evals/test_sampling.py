"""Sampling as an axis: pass@k and maj@k against closed forms, and samples that are scored each by itself."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from lm_eval.api.metrics import mean
from posttrain.data_tools.specfile import SpecError
from posttrain.evals.models import load_model
from posttrain.evals.records import Metric
from posttrain.evals.runs import find_targets
from posttrain.evals.sampling import Samples
from posttrain.evals.score import define_all, score
from posttrain.evals.spec import SamplingSpec
from posttrain.evals.stats.samples import majority_at_k, pass_at_k
from posttrain.evals.suite_files import load_suite
from posttrain.evals.task import Checkpoint

SUITE = """
batch_size: {batch}
seed: {seed}
sampling:
  - {{name: greedy}}
  - {{name: beam, beams: 2}}
  - {{name: nucleus, temperature: 1.0, top_p: 0.9, samples: 4, k: [2, 4]}}
groups:
  - {{name: all, tasks: [sums]}}
tasks:
  - {{task: exact_match, name: sums, data_files: {{test: prompts.jsonl}}, gen_kwargs: {{max_gen_toks: 2}}}}
  - {{task: multiple_choice, name: choices, data_files: {{test: choices.jsonl}}}}
"""


@pytest.mark.parametrize(("samples", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (8, 3)])
def test_pass_at_k_is_the_hypergeometric_chance_of_at_least_one(samples: int, right: int) -> None:
    marks = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        chosen = list(itertools.combinations(marks, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    with pytest.raises(ValueError, match="k = "):
        pass_at_k(samples, right, samples + 1)


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not() -> None:
    chance, samples, k = 0.3, 6, 3
    weights = [math.comb(samples, c) * chance**c * (1 - chance) ** (samples - c) for c in range(samples + 1)]
    mean = sum(weight * pass_at_k(samples, c, k) for c, weight in enumerate(weights))
    plain = sum(weight * (1 - (1 - c / samples) ** k) for c, weight in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - chance) ** k)
    assert plain < mean - 0.01


def test_majority_is_the_mean_of_all_votes() -> None:
    answers, right = ["4", "5", "4", None, "6"], [1.0, 0.0, 1.0, 0.0, 0.0]
    for k in range(1, 6):
        votes = []
        for places in itertools.combinations(range(5), k):
            counted = Counter(answers[place] for place in places if answers[place])
            tops = [answer for answer in counted if counted[answer] == max(counted.values())]
            votes.append(sum(answer == "4" for answer in tops) / len(tops) if tops else 0.0)
        assert majority_at_k(answers, right, k) == pytest.approx(sum(votes) / len(votes))
    assert majority_at_k(answers, right, 5) == 1.0
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0.0


def test_many_voters_are_drawn_close_to_all_of_them() -> None:
    answers, right = [str(n % 3) for n in range(30)], [float(n % 3 == 0) for n in range(30)]
    assert majority_at_k(answers, right, 5) == pytest.approx(1 / 3, abs=0.02)


class FakeTask:
    """A task of lm-eval that reads each answer as a value of its metrics."""

    def __init__(self, metric: str):
        self.config, self.metric = SimpleNamespace(filter_list=[{"name": "read"}]), metric
        self._aggregation_list, self._higher_is_better = {metric: mean}, {}
        self._filters = [SimpleNamespace(name="read")]

    def aggregation(self) -> dict[str, Callable]:
        return self._aggregation_list

    def set_config(self, key: str, value: int) -> None:
        pass

    def apply_filters(self) -> None:
        pass

    def process_results(self, doc: int, results: list[dict]) -> dict[str, float]:
        return {self.metric: results[0]["right"]}


def figures_of(metric: str, items: list[list[float]]) -> list[str]:
    """Returns the names of the figures of a task whose samples of each item are as right as said."""
    several = Samples(FakeTask(metric), SamplingSpec(name="drawn", temperature=1.0, samples=2), metric, seed=0)
    found = [
        several.process_results(n, [[{"right": right, "vote": "4"} for right in rights]])
        for n, rights in enumerate(items)
    ]
    names = dict.fromkeys(name for one in found for name in one)
    metrics = [Metric(name, 0.0, None, sum(name in one for one in found), True) for name in names]
    return [one.name for one in several.told(metrics)]


def test_a_graded_metric_has_no_pass_at_k_of_those_items_alone_that_are_0_or_1() -> None:
    assert figures_of("exact_match", [[0.0, 1.0], [1.0, 1.0]]) == [
        "exact_match", "pass@2", "maj@2", "exact_match_sample_sd"
    ]  # fmt: skip
    assert figures_of("f1", [[0.0, 1.0], [0.4, 1.0]]) == ["f1", "f1_sample_sd"]


def test_votes_are_not_counted_by_another_reading_than_they_are_of() -> None:
    assert not [name for name in figures_of("strict_match", [[0.0, 1.0]]) if name.startswith("maj@")]


def write(folder: Path, rows: Path, *, seed: int = 0, batch: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("prompts.jsonl", "choices.jsonl"):
        (folder / name).write_bytes((rows / name).read_bytes())
    path = folder / f"sampled-{seed}-{batch}.yaml"
    path.write_text(SUITE.format(seed=seed, batch=batch))
    return path


def samples_of(run: Path, task: str) -> list[dict]:
    [path] = run.glob(f"samples/*-{task}-*.parquet")
    return pyarrow.parquet.read_table(path).to_pylist()


def test_each_setting_is_a_column_of_its_own(suite_file: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run((1,), final=False)
    report = score([run], write(tmp_path / "s", suite_file.parent))
    assert not report.failed
    lines = {line.task: line for line in report.done}
    assert list(lines) == [
        "sums-greedy",
        "sums-beam",
        "sums-nucleus",
        "choices",
        "all-greedy",
        "all-beam",
        "all-nucleus",
    ]
    assert len({line.task_hash for line in lines.values()}) == len(lines)
    drawn = lines["sums-nucleus"]
    names = [metric.name for metric in drawn.metrics]
    assert names == ["exact_match", "pass@2", "maj@2", "pass@4", "maj@4", "unparsed", "exact_match_sample_sd"]
    assert [metric.n for metric in drawn.metrics] == [4] * 7
    assert (drawn.detail or {})["sampling"]["top_p"] == 0.9
    rows = samples_of(run, "sums-nucleus")
    assert [len(json.loads(row["responses"][0])) for row in rows] == [4] * 4
    answers = json.loads(rows[0]["filtered"])[0]
    assert len(answers) == 4
    assert len(set(itertools.chain(*(json.loads(row["responses"][0]) for row in rows)))) > 4  # they do differ


def test_samples_depend_on_the_seed_and_not_on_the_batch(
    suite_file: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    texts = {}
    for seed, batch in ((0, 1), (0, 3), (7, 3)):
        run = make_run((1,), final=False, name=f"run-{seed}-{batch}")
        report = score([run], write(tmp_path / "s", suite_file.parent, seed=seed, batch=batch))
        assert not report.failed
        texts[seed, batch] = [row["responses"] for row in samples_of(run, "sums-nucleus")]
    assert texts[0, 1] == texts[0, 3]
    assert texts[0, 1] != texts[7, 3]


def test_the_seed_is_part_of_a_task(suite_file: Path, tmp_path: Path) -> None:
    hashes = [
        [task.task_hash for task in define_all(load_suite(write(tmp_path / "s", suite_file.parent, seed=seed)))]
        for seed in (0, 1)
    ]
    assert not set(hashes[0]) & set(hashes[1])


def test_known_answers_are_scored_on_the_task_that_takes_one_answer_an_item(
    suite_file: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Without the check of the task before, which keeps what they score."""
    suite = load_suite(write(tmp_path / "s", suite_file.parent))
    [task] = [task for task in define_all(suite) if task.spec.title == "sums-nucleus"]
    [target], _ = find_targets([make_run((1,), final=False)], None, offline=True)
    checkpoint = Checkpoint(target, suite, lambda: load_model(str(target.folder), device="cpu"), lambda line: None)
    detail = task.run(checkpoint, None).detail or {}
    assert detail["canaries"]["oracle"] == 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{name: a, samples: 2}", "give a `temperature` above 0"),
        ("{name: a, temperature: 1, samples: 2, k: [3]}", "pass@3 needs as many `samples`"),
        ("{name: a, temperature: 1, beams: 2}", "a beam search draws nothing"),
        ("{name: a, top_p: 0.5}", "`top_p` does nothing to greedy answers"),
        ("{name: a}, {name: a}", "the setting 'a' of `sampling` stands twice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(suite_file: Path, setting: str, message: str) -> None:
    suite_file.write_text(f"sampling: [{setting}]\n{suite_file.read_text()}")
    with pytest.raises(SpecError, match=message):
        load_suite(suite_file)
