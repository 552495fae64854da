"""Rewards that check answers, rewards that do not apply, asynchronous ones, and TRL's environments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.recipes import rewards, verifiers
from posttrain.recipes.check import check_all
from posttrain.recipes.errors import RecipeError, RunError
from posttrain.recipes.load import load
from posttrain.recipes.train import train
from posttrain.recipes.trainers.sampling import RowSampling

from .conftest import log
from .test_resume import resume_before_last_save


@pytest.mark.parametrize(
    ("answer", "right", "reward"),
    [
        ("6 and 6, so the answer is 12.00.", "so 5 + 7\n#### 12", 1.0),
        ("It is 1,200", 1200, 1.0),
        ("1/2", ".5", 1.0),
        ("I cannot say.", "12", 0.0),
        ("13", 12, 0.0),
        ("12", None, None),
        ("12", " ", None),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, right: Any, reward: float | None) -> None:
    assert verifiers.numeric([answer], [right]) == [reward]


def test_texts_are_compared_to_the_letter() -> None:
    assert verifiers.exact([" red\n", "Red", "red.", "42", "red"], ["red", "red", "red", 42, None]) == [
        1,
        0,
        0,
        1,
        None,
    ]


def test_expressions_are_compared_by_what_they_mean() -> None:
    answers = [r"So \boxed{\frac{2}{4}}", r"\boxed{x+1}", "The answer is 3.", "Who knows", r"\boxed{7}"]
    right = [r"\frac{1}{2}", "1 + x", "4", "4", None]
    assert verifiers.symbolic(answers, right) == [1.0, 1.0, 0.0, 0.0, None]


def test_programs_are_run_against_the_rows_tests() -> None:
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    answers = [f"Here it is:\n{right}\nDone.", right.replace("+", "-"), "def add(a, b): return a + b", "no", right]
    asserts = ["def same(x): return x", "assert same(add(1, 2)) == 3"]
    assert verifiers.tests(answers, [asserts] * 4 + [None]) == [1.0, 0.0, 1.0, 0.0, None]
    assert verifiers.checks("\n".join(asserts)).names == ("add",)


def test_what_a_verifier_needs_is_looked_for_before_the_run() -> None:
    with pytest.raises(RecipeError, match=r"'answer', which the rows have not.*they have solution"):
        verifiers.check_verifier("numeric", None, {"prompt": "1+1?", "solution": "2"})
    with pytest.raises(RecipeError, match="cannot check by 'two'"):
        verifiers.check_verifier("numeric", "solution", {"prompt": "1+1?", "solution": "two"})
    with pytest.raises(RecipeError, match=r"cannot check by 'assert add\('"):
        verifiers.check_verifier("tests", None, {"prompt": "Add.", "tests": "assert add("})


INPUTS: dict[str, Any] = {"prompts": ["a", "b"], "completions": ["x", "yy"], "completion_ids": [[1], [2, 3]]}


def test_none_says_that_a_term_does_not_apply() -> None:
    term = rewards.function_term(lambda completions: [None, 2], "f")
    assert term(**INPUTS) == [None, 2.0]
    with pytest.raises(RunError, match="every answer needs a number; row 0"):
        rewards.for_each(term, "f")(**INPUTS)


def test_a_gold_reward_makes_no_zero_of_an_answer_that_has_no_reward() -> None:
    class Scored:
        def _calculate_rewards(self) -> torch.Tensor:
            return torch.tensor([[torch.nan, 5.0], [1.0, 5.0], [2.0, torch.nan]])

    class Trainer(RowSampling, Scored):
        reward_weights = torch.tensor([1.0, 0.0])
        model = torch.nn.Identity().eval()  # whose sources are not counted

    found = Trainer.__new__(Trainer)._calculate_rewards()
    assert found.isnan().tolist() == [[True, True], [False, False], [False, True]]


FUNCTIONS = '''
import asyncio


async def later(completions, answer):
    await asyncio.sleep(0)
    pairs = zip(completions, answer)
    return [float(len(text[0]["content"]) % 3) if int(right) % 4 == 1 else None for text, right in pairs]


async def broken(completions):
    raise ValueError("no server")


class Room:
    def reset(self, **row):
        self.said = "Say it loud."
        return self.said

    def get_reward(self):
        return float(len(self.said))


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def in_room(environments, completions):
    return [float(room.said == "Say it loud.") for room in environments]


def rollout(prompts, trainer):
    tokenizer = trainer.processing_class
    read = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
    written = [tokenizer.encode("It is " + "so " * (row % 2 + 1), add_special_tokens=False) for row in range(len(read))]
    return {"prompt_ids": read, "completion_ids": written, "logprobs": None, "moves": [len(ids) for ids in written]}


def by_moves(completion_ids, moves):
    assert moves == [len(ids) for ids in completion_ids]
    return [float(each) for each in moves]
'''


def edit(recipe: Path, **sections: Any) -> Path:
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **sections}))
    (recipe.parent / "functions.py").write_text(FUNCTIONS)
    return recipe


def with_tools(recipe: Path, template: str = "qwen3") -> Path:
    """Gives a recipe a template that renders tools, as TRL asks of whoever trains in environments."""
    value = yaml.safe_load(recipe.read_text())
    value["model"]["chat_template"] = template
    recipe.write_text(yaml.safe_dump(value))
    return recipe


SHORT = {"max_steps": 2, "save_strategy": "no"}


def test_an_asynchronous_reward_trains_beside_a_verifier_that_does_not_apply_to_all(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    terms = [{"function": "functions.py:later"}, {"verifier": "numeric", "weight": 0.5}]
    train(load(edit(make_recipe("grpo", **SHORT), rewards=terms)))
    line = next(line for line in log(tmp_path / "run") if "loss" in line)
    assert {"rewards/later/mean", "rewards/numeric/mean"} <= line.keys()


def test_an_asynchronous_reward_that_fails_is_one_error(make_recipe: Callable[..., Path]) -> None:
    recipe = edit(make_recipe("grpo", **SHORT), rewards=[{"function": "functions.py:broken"}])
    with pytest.raises(RunError, match="reward broken: raised ValueError: no server"):
        train(load(recipe))


def test_ppo_refuses_an_answer_without_any_reward(make_recipe: Callable[..., Path]) -> None:
    recipe = edit(make_recipe("ppo", **SHORT), rewards=[{"function": "functions.py:later"}])
    with pytest.raises(RunError, match="no reward applies to an answer"):
        train(load(recipe))


def test_an_environment_may_score_what_happens_in_it(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = edit(make_recipe("grpo", **SHORT), rewards=[], environment="functions.py:Room")
    train(load(with_tools(recipe)))
    line = next(line for line in log(tmp_path / "run") if "loss" in line)
    assert line["rewards/Room/mean"] == len("Say it loud.")


def test_an_environment_is_given_to_rewards_and_belongs_to_grpo(make_recipe: Callable[..., Path]) -> None:
    terms = [{"function": "functions.py:in_room"}]
    recipe = edit(make_recipe("grpo", **SHORT), rewards=terms, environment="functions.py:Room")
    with pytest.raises(RecipeError, match="template does not support tool calling"):
        train(load(recipe))
    train(load(with_tools(recipe)))
    with pytest.raises(Exception, match="is not a section of the stage rloo"):
        load(edit(make_recipe("rloo", **SHORT), environment="functions.py:Room"))


def test_a_rollout_function_writes_the_answers_tells_rewards_more_and_resumes(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    # a checkpoint in the middle of a generation keeps what the function gave
    fields = {"max_steps": 4, "save_steps": 1, "steps_per_generation": 2, "num_iterations": 2}
    rewards = [{"function": "functions.py:by_moves"}]
    recipe = edit(make_recipe("grpo", **fields), rewards=rewards, rollout_func="functions.py:rollout")
    assert check_all([recipe], [], {}, read_data=True) == 0
    train(load(recipe))
    first = next(line for line in log(tmp_path / "run") if "loss" in line)
    assert first["rewards/by_moves/std"] > 0  # the answers of a prompt differ as the function made them
    resume_before_last_save(recipe, tmp_path / "run")


def test_tools_need_a_template_whose_calls_can_be_read(make_recipe: Callable[..., Path]) -> None:
    recipe = edit(make_recipe("grpo", **SHORT), tools=["functions.py:add"])
    with pytest.raises(RecipeError, match="Unrecognized chat template, failed to add response schema"):
        train(load(with_tools(recipe)))


def test_the_policy_is_told_of_its_tools(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    import trl

    recipe = edit(make_recipe("grpo", **SHORT), tools=["functions.py:add"])
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    train(load(with_tools(recipe, str(template))))
    line = next(line for line in log(tmp_path / "run") if "loss" in line)
    assert line["tools/call_frequency"] == 0.0  # a model without training calls none
