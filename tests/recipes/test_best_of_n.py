"""The tool best_of_n: a step of a pipeline whose rewards are a model and a checking function beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.model_tools import BestOfN
from posttrain.recipes.pipeline import load_pipeline, plan

GOLD = "def check(completions, **_):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture
def args(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    (tmp_path / "gold.py").write_text(GOLD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i} and {i}"}) + "\n" for i in range(3)))
    paths = {"policy": tiny_model_dir, "reward": tmp_path / "rm", "prompts": tmp_path / "prompts.jsonl"}
    return {**{key: str(path) for key, path in paths.items()}, "gold": f"{tmp_path}/gold.py:check", "n": 4}


def test_a_reward_model_chooses_and_a_function_checks(tmp_path: Path, args: dict[str, Any]):
    BestOfN(max_new_tokens=5, **args).run(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
    assert (found["reward"], found["gold"]) == ("rm", "check")
    assert [point["n"] for point in found["points"]] == [1, 2, 4]
    rewards = [point["reward"] for point in found["points"]]
    assert rewards == sorted(rewards)


def test_a_reward_that_is_none_is_one_clear_error(tmp_path: Path, args: dict[str, Any]):
    with pytest.raises(RecipeError, match="not a sequence classifier"):
        BestOfN(**args | {"reward": args["policy"]}).run(tmp_path / "out")
    with pytest.raises(InputError, match="no function nothing"):
        BestOfN(**args | {"gold": f"{tmp_path}/gold.py:nothing"}).run(tmp_path / "out")


def test_a_function_beside_the_pipeline_is_found_and_its_change_is_a_change(tmp_path: Path, args: dict[str, Any]):
    path = tmp_path / "pipeline.yaml"
    given = json.dumps(args | {"gold": "gold.py:check"})
    path.write_text(f"output_dir: {tmp_path}/out\nsteps:\n  - {{name: bon, tool: best_of_n, args: {given}}}\n")

    def planned() -> Any:
        pipeline, document = load_pipeline(path)
        return plan(document, pipeline)["bon"]

    first = planned()
    assert first.tool.gold == f"{tmp_path}/gold.py:check"
    (tmp_path / "gold.py").write_text(GOLD.replace("len(text)", "-len(text)"))
    assert planned().key != first.key
