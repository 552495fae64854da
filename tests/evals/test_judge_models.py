"""Judges in this process: a language model's label probabilities are exact, a reward model never judges its pupil."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates import load as load_template
from posttrain.evals.judging.backends import label_logs
from posttrain.evals.judging.run import judge, pending_judgments
from posttrain.evals.models import LoadedModel, load_model
from posttrain.evals.spec import SuiteSpec
from posttrain.evals.suite_files import load_suite

from .headed import headed_model, save_run
from .judged import add_answers, judgments, metrics, scores, write_suite

SHORT = "{{ turns[0] }}\n{{ block('1', answers_first[0]) }}\n{{ block('2', answers_second[0]) }}\n"
CHATML = load_template("chatml").source


def one_by_one(loaded: LoadedModel, prompt: list[int], label: list[int]) -> float:
    """The log-probability of a label, a token at a time, without batches or padding."""
    import torch

    total, ids = 0.0, list(prompt)
    for token in label:
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids.append(token)
    return total


def test_label_probabilities_are_those_of_the_labels_one_by_one(tiny_model_dir: Path):
    loaded = load_model(str(tiny_model_dir), device="cpu")
    prompts = [loaded.tokenizer(text)["input_ids"] for text in ("Two and two", "a", "The quick brown fox jumps over")]
    labels: list[list[int]] = [[65], [66, 67], [66, 70, 71]]
    found = label_logs(loaded, prompts, labels, batch_size=2)  # type: ignore[arg-type]
    for prompt, logs in zip(prompts, found, strict=True):
        assert logs == pytest.approx([one_by_one(loaded, prompt, label) for label in labels], abs=1e-4)  # type: ignore[arg-type]


def test_of_labels_that_begin_each_other_each_has_to_end(tiny_model_dir: Path):
    loaded = load_model(str(tiny_model_dir), device="cpu")
    prompt: Any = loaded.tokenizer("A mark")["input_ids"]
    end = loaded.tokenizer.eos_token_id
    [logs] = label_logs(loaded, [prompt], [[20], [20, 19]], batch_size=8)
    assert logs == pytest.approx([one_by_one(loaded, prompt, [*label, end]) for label in ([20], [20, 19])], abs=1e-4)


def prepare(tmp_path: Path, entry: str, **record: Any) -> tuple[list[Path], SuiteSpec]:
    own = tmp_path / "s" / "mine"
    own.mkdir(parents=True, exist_ok=True)
    (own / "judge.yaml").write_text("kind: pairwise\nbackend: model\n")
    (own / "prompt.jinja").write_text(SHORT)
    suite = load_suite(write_suite(tmp_path / "s", entry, prompts=4))
    folders = [tmp_path / "runs" / name for name in ("base", "one")]
    add_answers(folders[0], suite, lambda prompt: "The lazy dog.")
    add_answers(folders[1], suite, lambda prompt: f"hello {prompt.id}", **record)
    return folders, suite


def mine(model: Path, extra: str = "") -> str:
    return f"  - {{judge: mine, prompts: chat, baseline: ../runs/base, canary: false, model: '{model}'{extra}}}\n"


def test_a_model_in_this_process_judges_by_its_probabilities(tmp_path: Path, tiny_model_dir: Path):
    folders, suite = prepare(tmp_path, mine(tiny_model_dir))
    assert pending_judgments(folders, suite) == 8
    report = judge(folders, suite, device="cpu")
    assert (report.exit_code, report.judged) == (0, 8)
    said = judgments(folders[1])
    assert all(0 < (j.preference or 0) < 1 and j.preference != 0.5 for j in said)
    assert all(j.prompt_tokens and "of the probability" in j.reason for j in said)
    shown = {j.order: j.preference or 0.0 for j in said if j.prompt_id == "p0"}
    assert abs(shown["candidate-first"] - (1 - shown["candidate-second"])) > 1e-6  # an order changes what it reads
    assert 0 < metrics(scores(folders[1], "chat-mine")[0])["win_rate"].value < 1


def test_a_prompt_that_the_model_cannot_hold_is_counted(tmp_path: Path, tiny_model_dir: Path):
    folders, suite = prepare(tmp_path, mine(tiny_model_dir))
    add_answers(tmp_path / "runs" / "long", suite, lambda prompt: "long " * (500 if prompt.id == "p2" else 1))
    judge([*folders, tmp_path / "runs" / "long"], suite, device="cpu")
    (score,) = scores(tmp_path / "runs" / "long", "chat-mine")
    assert metrics(score)["win_rate"].n == 3
    assert "2 replies or prompts too long" in score.notes
    assert score.detail is not None
    assert score.detail["bounds"]["low"] < metrics(score)["win_rate"].value < score.detail["bounds"]["high"]


def test_a_model_that_writes_no_verdict_gives_no_figure(tmp_path: Path, tiny_model_dir: Path):
    folders, suite = prepare(tmp_path, mine(tiny_model_dir, ", answer_by: text, max_tokens: 4"))
    report = judge(folders, suite, device="cpu")
    assert report.exit_code == 1
    assert "none of 8 judgments gave a verdict" in report.problems[0]
    assert {j.status for j in judgments(folders[1])} <= {"unparsed", "truncated"}
    assert not scores(folders[1], "chat-mine")


def reward(model: Path) -> str:
    return f"  - {{judge: reward, prompts: chat, baseline: ../runs/base, canary: false, model: '{model}'}}\n"


@pytest.fixture
def reward_model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir, template=CHATML)


def test_a_reward_model_prefers_what_it_rewards(tmp_path: Path, reward_model: Path):
    import torch

    folders, suite = prepare(tmp_path, reward(reward_model))
    assert judge(folders, suite, device="cpu").exit_code == 0
    said = judgments(folders[1])
    assert len(said) == 4  # it sees no order
    loaded = load_model(str(reward_model), device="cpu")
    for judgment in said:
        values = []
        for text in (f"hello {judgment.prompt_id}", "The lazy dog."):
            talk = [
                {"role": "user", "content": f"Question {judgment.prompt_id[1:]}?"},
                {"role": "assistant", "content": text},
            ]
            ids: Any = loaded.tokenizer.apply_chat_template(talk, return_dict=False)
            with torch.inference_mode():
                values.append(float(loaded.model(input_ids=torch.tensor([ids])).logits[0, 0]))
        assert judgment.preference == float(values[0] > values[1])
        share = 1 / (1 + math.exp(values[1] - values[0]))
        assert judgment.reason.endswith(f"probability {share:.4f}")


def test_an_answer_that_the_reward_model_cannot_hold_is_counted(tmp_path: Path, reward_model: Path):
    folders, suite = prepare(tmp_path, reward(reward_model))
    long = tmp_path / "runs" / "long"
    add_answers(long, suite, lambda prompt: "long " * (500 if prompt.id == "p2" else 1))
    judge([*folders, long], suite, device="cpu")
    assert {j.prompt_id: j.status for j in judgments(long)}["p2"] == "truncated"
    (score,) = scores(long, "chat-reward")
    assert metrics(score)["win_rate"].n == 3
    assert "1 replies or prompts too long" in score.notes


def test_a_reward_model_is_refused_what_it_trained(tmp_path: Path, reward_model: Path):
    from posttrain.evals.checkpoints import weights_hash

    used = {"name": "rm", "path": "/moved/away", "weights_hash": weights_hash(reward_model), "recipe_hash": "x"}
    folders, suite = prepare(
        tmp_path, reward(reward_model), models=[used], recipe={"rewards": [{"model": "/moved/away"}]}
    )
    child = tmp_path / "runs" / "child"
    add_answers(child, suite, lambda prompt: "child", parent={"name": "one", "path": str(folders[1])})
    watched = tmp_path / "runs" / "watched"
    gold = {"model": "/moved/away"}  # it only looked on
    add_answers(watched, suite, lambda prompt: "gold", models=[used], recipe={"gold": gold})
    report = judge([*folders, child, watched], suite, device="cpu")
    assert report.exit_code == 1
    assert len(report.problems) == 2
    for problem, name in zip(report.problems, ("one/final", "child/final"), strict=True):
        assert str(reward_model) in problem
        assert "trained one" in problem
        assert name in problem
    assert not judgments(folders[1], child)
    assert len(judgments(watched)) == 4
    assert pending_judgments([*folders, child, watched], suite) == 2, "the refused are told of again, by every call"


def test_another_checkpoint_of_the_same_reward_run_is_refused_too(tmp_path: Path, reward_model: Path):
    record = json.loads((reward_model / "run.json").read_text())
    used = {"name": "rm", "path": "/elsewhere", "weights_hash": "other", "recipe_hash": record["recipe_hash"]}
    folders, suite = prepare(tmp_path, reward(reward_model), models=[used])
    report = judge(folders, suite, device="cpu")
    assert report.exit_code == 1
    assert "trained one" in report.problems[0]


def test_a_language_model_is_no_reward_model(tmp_path: Path, tiny_model_dir: Path):
    folders, suite = prepare(tmp_path, reward(tiny_model_dir))
    report = judge(folders, suite, device="cpu")
    assert report.exit_code == 1
    assert "a reward model is needed" in report.problems[0]
    assert "LlamaForCausalLM, a language model" in report.problems[0]
