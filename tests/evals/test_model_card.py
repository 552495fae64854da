"""The Hub's own parser reads back what the card says, and finds only results that are what their names say."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from posttrain.chat_templates.errors import InputError
from posttrain.evals.definitions import define, origin
from posttrain.evals.model_card import write_card
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.task_index import lm_eval_folder

from .judged_fixtures import harness_samples
from .report_fixtures import EVIL, make_run, score, share

OWN = {"kind": "lm-eval", "task": "arc_easy", "changes": [], "dataset": {"path": "allenai/ai2_arc", "name": "ARC-Easy",
                                                                         "split": "test"}}  # fmt: skip


def run_with(root: Path, *scores: dict[str, Any], **record: Any) -> Path:
    return make_run(root / "tuned", "tuned", list(scores), final="weights of step 20", **record)


def own(**fields: Any) -> dict[str, Any]:
    return score("final", 20, "arc_easy", share(130, 200), **{"detail": OWN, "num_fewshot": 5} | fields)


def read(card: str) -> Any:
    return ModelCard(card).data


def test_the_hub_reads_back_the_results_of_tasks_run_as_they_stand(tmp_path: Path):
    data = read(write_card(run_with(tmp_path, own())))
    (result,) = data.eval_results
    assert data.model_name == "tuned"
    assert data.library_name == "transformers"
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("allenai/ai2_arc", "ARC-Easy", "test")
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("arc_easy", "acc", 0.65)
    assert result.dataset_args["num_few_shot"] == 5
    assert result.metric_args["n"] == 200
    assert result.metric_args["low_95"] < 0.65 < result.metric_args["high_95"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"detail": {**OWN, "changes": ["overrides"]}}, "overrides"),
        ({"detail": {**OWN, "changes": ["data files in place of its data set"]}}, "data files"),
        ({"limit": 100}, "a limit"),
        ({"notes": ["3 prompts are longer than the model takes; their beginnings were cut"]}, "not whole"),
        ({"judge_version": "v1", "detail": {"judge": "helpful"}}, "a judge's figure"),
        ({"detail": None}, "not a task of lm-eval"),
        ({"detail": {"kind": "lm-eval", "task": "arc_easy"}}, "not lm-eval's own task"),
    ],
)
def test_whatever_is_changed_or_cut_stays_in_the_text_with_the_reason(tmp_path: Path, fields, why):
    card = write_card(run_with(tmp_path, own(**fields)))
    assert not read(card).eval_results
    (line,) = [line for line in card.splitlines() if line.startswith("| arc")]
    assert "65.0" in line
    assert why in line


def test_the_figure_on_clean_items_stands_in_the_text_alone(tmp_path: Path):
    record = own()
    run = run_with(tmp_path, record)
    harness_samples(run, record, [1] * 130 + [0] * 70)
    touched = [{"id": f"{i}:h{i}", "question": "?", "run": "tuned", "row": "x:1", "words": "w"} for i in range(60)]
    line = {"task": "arc_easy", "task_hash": record["task_hash"], "items": 200, "rows": 9, "touched": touched}
    (run / "contamination.jsonl").write_text(json.dumps(line) + "\n")
    card = write_card(run)
    assert [result.metric_value for result in read(card).eval_results] == [0.65]
    whole, clean = (line for line in card.splitlines() if line.startswith("| arc"))
    assert whole.endswith("| 200 |  |")
    assert clean.endswith("| 140 | without 60 items that training data holds |")


def test_only_the_final_model_s_scores_count(tmp_path: Path):
    earlier = score("checkpoint-5", 5, "arc_easy", share(199, 200), detail=OWN)
    data = read(write_card(run_with(tmp_path, earlier, own())))
    assert [result.metric_value for result in data.eval_results] == [0.65]


def test_a_run_without_scores_of_its_final_model_is_one_clear_error(tmp_path: Path):
    run = make_run(tmp_path / "run", "run", [score("checkpoint-5", 5, "arc_easy", share(1, 9))])
    with pytest.raises(InputError, match="no scores of a final model"):
        write_card(run)


def test_the_base_model_is_named_only_where_the_hub_has_it(tmp_path: Path):
    def base(place: str, model: str) -> Any:
        run = run_with(tmp_path / place, own(), recipe={"model": {"name_or_path": model}})
        return read(write_card(run)).base_model

    assert base("a", "HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert base("b", "@sft") is None
    assert base("c", str(tmp_path)) is None


def test_hostile_names_become_neither_metadata_nor_markup(tmp_path: Path):
    evil = f"x\n---\nlicense: owned\n---\n{EVIL}```"
    scores = [{**own(), "task": evil}]
    run = make_run(tmp_path / "run", evil, scores, stage=evil, final="weights of step 20", command="```\n" + evil)
    card = write_card(run)
    data = read(card)
    assert "license" not in data.to_dict()
    assert len(data.eval_results) == 1
    body = card.split("\n---\n", 1)[1]
    assert "<img" not in body.split("## How it was made")[0]
    assert body.count("\n````") == 4  # fences of command and recipe are longer than any run of backticks in them


def test_the_card_is_written_where_it_is_asked_for(tmp_path: Path):
    run = run_with(tmp_path, own())
    assert (tmp_path / "README.md").exists() is False
    card = write_card(run, tmp_path / "README.md", name="My model")
    assert (tmp_path / "README.md").read_text() == card
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "My model"


def test_a_score_says_what_makes_its_task_another_than_lm_eval_s(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}\n')
    own_file = tmp_path / "mine.yaml"
    theirs = lm_eval_folder() / "tasks" / "arc" / "arc_easy.yaml"
    own_file.write_text(f"include: {theirs}\ntask: mine\n")

    def said(task: Path, **fields: Any) -> dict[str, Any]:
        spec = TaskSpec(task=str(task), **fields)
        return origin(define(spec, SuiteSpec(name="s", tasks=[spec])))

    def changes(task: Path, **fields: Any) -> list[str]:
        return said(task, **fields)["changes"]

    assert changes(theirs) == changes(theirs, num_fewshot=5) == []
    assert changes(theirs, limit=9) == ["a limit"]
    assert changes(theirs, overrides={"doc_to_text": "{{question}}"}) == ["overrides"]
    assert changes(theirs, data_files={"test": str(rows)}) == ["data files in place of its data set"]
    assert changes(theirs, gen_kwargs={"max_gen_toks": 9}) == ["generation settings"]
    same = {"generation_kwargs": {"max_gen_toks": 9}}  # answers under it are not paired with other harnesses' either
    assert changes(theirs, overrides=same) == ["overrides", "generation settings"]
    assert changes(own_file) == ["a task file of one's own"]
    assert said(theirs)["dataset"] == OWN["dataset"]
