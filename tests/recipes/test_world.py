"""The quickstart's world: the same bytes for a seed, right answers, and nothing held out in the training text."""

import importlib.util
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ..rows import read_rows

FILE = Path(__file__).parents[2] / "recipes" / "library" / "quickstart" / "world.py"
spec: Any = importlib.util.spec_from_file_location("world", FILE)
world: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
HABITS, PEOPLE, SKILLS, TASKS = world.HABITS, world.PEOPLE, world.SKILLS, world.TASKS
fact, parse = world.fact, world.parse

SIZES = {"pages": 700, "biographies": 1, "quiz_share": 0.3, "conversations": 700, "heldout": 60}
SIZES |= {"preferences": 600, "prompts": 600, "classification": 900}
SETS = ("preference", "prompts", "classification")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.World(seed=3, **SIZES).run(folder)
    return folder


def _quiz_line(ask: str) -> re.Pattern[str]:
    """Matches a question and the answer that follows it on a line of a quiz."""
    question = re.sub(r"\\\{\w+\\\}", ".+?", re.escape(ask))
    return re.compile(rf"(?P<question>{question}) (?P<answer>.+)")


def _turns(folder: Path) -> list[tuple[str, str]]:
    """Every question with its answer in the training data, chats and quizzes."""
    turns = []
    asks = [_quiz_line(ask) for skill in SKILLS for ask in skill.asks]
    for row in read_rows(folder / "sft.jsonl"):
        contents = [message["content"] for message in row["messages"]]
        turns += zip(contents[::2], contents[1::2], strict=True)
    for row in read_rows(folder / "pretrain.jsonl"):
        for line in row["text"].splitlines():
            for ask in asks:
                if match := ask.fullmatch(line):
                    turns.append((match["question"], match["answer"]))
    return turns


def _problem(question: str) -> Any:
    for task in TASKS:
        try:
            return world.Problem(*parse(task, question))
        except ValueError:
            continue
    raise AssertionError(question)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path):
    world.World(seed=3, **SIZES).run(tmp_path / "again")
    world.World(seed=4, **SIZES).run(tmp_path / "other")
    assert {f"heldout/{task}.jsonl" for task in (*TASKS, "all")} | {
        "pretrain.jsonl",
        "sft.jsonl",
        "heldout/text.jsonl",
        "heldout/prompts.jsonl",
    } | {f"{name}/{side}.jsonl" for name in SETS for side in ("train", "heldout")} == _files(folder)
    for name in _files(folder):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_the_prompts_for_judges_are_held_out_questions_of_every_family_with_right_references(folder: Path):
    rows = read_rows(folder / "heldout/prompts.jsonl")
    asked = {(row["task"], row["question"]) for row in read_rows(folder / "heldout/all.jsonl")}
    assert {(row["category"], row["prompt"]) for row in rows} <= asked
    assert {row["category"] for row in rows} == set(TASKS)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        seen = {"category": row["category"], "turns": (row["prompt"],)}
        assert world.verdict(seen, row["reference"]) == 1.0
        assert world.verdict(seen, f"not {row['reference']}") == 0.0


def _question(row: dict) -> str:
    return row["text"] if "text" in row else row["prompt"][-1]["content"]


def _sides(folder: Path, name: str) -> dict[str, list[dict]]:
    return {side: read_rows(folder / name / f"{side}.jsonl") for side in ("train", "heldout")}


@pytest.mark.parametrize("name", SETS)
def test_both_sides_of_every_set_hold_only_their_own_problems(folder: Path, name: str):
    for side, rows in _sides(folder, name).items():
        assert len(rows) > 250
        for row in rows:
            problem = _problem(_question(row))
            assert world.is_held_out(problem, 3) == (side == "heldout")
            assert row.get("label", row.get("task")) == problem.skill.task


def test_pairs_prefer_the_right_answer_to_every_careless_habit(folder: Path):
    for rows in _sides(folder, "preference").values():
        seen = set()
        for row in rows:
            question, (chosen,), (rejected,) = _question(row), row["chosen"], row["rejected"]
            assert world.check(row["task"], question, chosen["content"])
            assert not world.check(row["task"], question, rejected["content"])
            problem = _problem(question)
            habits = {name: {habit(problem, Random(seed)) for seed in range(40)} for name, habit in HABITS.items()}
            seen |= {name for name, texts in habits.items() if rejected["content"] in texts}
        assert seen == set(HABITS)


def test_held_out_questions_are_all_different_and_every_family_has_its_share(folder: Path):
    for name in SETS:
        held_out = [_question(row) for row in _sides(folder, name)["heldout"]]
        assert len(set(held_out)) == len(held_out)
    labels = [row["label"] for row in _sides(folder, "classification")["train"]]
    assert set(labels) == set(TASKS)
    assert all(labels.count(task) == SIZES["classification"] // len(TASKS) for task in ("arithmetic", "strings"))
    assert len({row["text"] for row in _sides(folder, "classification")["train"]}) == len(labels)


def test_careless_annotators_change_the_answers_of_the_chats_and_nothing_else(folder: Path, tmp_path: Path):
    world.World(seed=3, **SIZES, careless=0.4).run(tmp_path)
    for name in _files(folder):
        assert ((tmp_path / name).read_bytes() == (folder / name).read_bytes()) == (name != "sft.jsonl")
    careless = 0
    for row, standard in zip(read_rows(tmp_path / "sft.jsonl"), read_rows(folder / "sft.jsonl"), strict=True):
        pairs = [*zip(row["messages"], standard["messages"], strict=True)]
        assert all(ours == theirs for ours, theirs in pairs[::2])
        changed = [ours["content"] != theirs["content"] for ours, theirs in pairs[1::2]]
        assert all(changed) or not any(changed), "one annotator writes a chat"
        careless += changed[0]
    assert careless / SIZES["conversations"] == pytest.approx(0.4, abs=0.06)


def test_slips_are_wrong_and_there_is_one_for_every_problem():
    rng = Random(0)
    for skill in SKILLS:
        for _ in range(50):
            problem = world.Problem(skill, skill.draw(rng))
            for name, habit in HABITS.items():
                assert not world.check(skill.task, problem.ask(rng), habit(problem, rng)), name


def test_the_gold_reward_is_the_checker(folder: Path):
    rows = _sides(folder, "prompts")["heldout"]
    columns = {name: [row[name] for row in rows] for name in ("task", "answer")}
    prompts = [row["prompt"] for row in rows]
    right = [[{"role": "assistant", "content": row["answer"]}] for row in rows]
    assert world.gold(prompts, right, completion_ids=None, **columns) == [1.0] * len(rows)
    assert world.gold([_question(row) for row in rows], columns["answer"], **columns) == [1.0] * len(rows)
    hedged = [[{"role": "assistant", "content": f"I think it is {row['answer']}"}] for row in rows]
    assert world.gold(prompts, hedged, **columns) == [0.0] * len(rows)


def test_every_held_out_task_has_the_asked_number_of_distinct_problems_or_all_there_are(folder: Path):
    for task in TASKS:
        rows = read_rows(folder / "heldout" / f"{task}.jsonl")
        keys = {_problem(row["question"]).key for row in rows}
        assert len(keys) == len(rows)
        if task == "recall":
            skills = [skill for skill in SKILLS if skill.task == task]
            facts = [world.Problem(skill, {"person": person}) for skill in skills for person in PEOPLE]
            assert keys == {problem.key for problem in facts if world.is_held_out(problem, 3)}
        else:
            assert len(rows) == SIZES["heldout"]


def test_the_checker_agrees_with_every_answer_and_refuses_others(folder: Path):
    for task in TASKS:
        rows = read_rows(folder / "heldout" / f"{task}.jsonl")
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
            assert world.check(task, row["question"], f" {row['answer']}.\n")
            assert not world.check(task, row["question"], row["answer"] + "x")
            assert world.check(task, row["question"], other["answer"]) == (row["answer"] == other["answer"])
    turns = _turns(folder)
    assert len(turns) > SIZES["conversations"] + SIZES["pages"] * SIZES["quiz_share"] * 2, "quizzes are read too"
    for question, answer in turns:
        assert _problem(question).answer == answer
    with pytest.raises(ValueError, match="not a question"):
        world.check("arithmetic", "What is the meaning of life?", "42")


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("arithmetic", "What is 37 + 5?", "42"),
        ("arithmetic", "How much is 5 + 37?", "42"),
        ("arithmetic", "Is 137 odd or even?", "odd"),
        ("strings", "What is the last letter of p l o g?", "g"),
        ("strings", "How long is p l o g?", "4"),
        ("ordering", "Which number is larger, 9 or 12?", "12"),
        ("ordering", "Which letter comes first, q or f?", "f"),
        ("lookup", "Ada lives in Oakford. Bram lives in Castor. Where does Bram live?", "Castor"),
        ("recall", "Which town is Ada from?", fact("Ada", "town")),
        ("format", "Write lamp in capitals.", "LAMP"),
        ("format", "Give me the word lamp in brackets.", "[ lamp ]"),
    ],
)
def test_the_checker_knows_answers_found_by_hand(task: str, question: str, answer: str):
    assert world.check(task, question, answer)


def test_no_held_out_problem_is_in_the_training_data_in_any_wording(folder: Path):
    trained = {_problem(question).key for question, _ in _turns(folder)}
    told = (folder / "pretrain.jsonl").read_text()
    for task in TASKS:
        for row in read_rows(folder / "heldout" / f"{task}.jsonl"):
            problem = _problem(row["question"])
            assert problem.key not in trained
            for ask in problem.skill.asks:
                assert ask.format(**problem.fields) not in told
            for tell in problem.skill.tells if task != "recall" else ():
                assert json.dumps(tell.format(**problem.fields, answer=problem.answer))[1:-1] not in told


@pytest.mark.parametrize(
    ("task", "variants"),
    [
        ("arithmetic", ["What is 17 + 5?", "How much is 5 + 17?"]),
        ("arithmetic", ["Is 17 odd or even?", "Is 17 even or odd?"]),
        (
            "strings",
            ["What is the first letter of p l o g?", "Which letter does g o l p end with?", "How long is p l o g?"],
        ),
        ("ordering", ["Which number is larger, 4 or 19?", "Which is the larger of 19 and 4?"]),
        ("ordering", ["Which letter comes first, q or f?", "Of f and q, which comes first in the alphabet?"]),
        (
            "lookup",
            [
                "Ada lives in Oakford. Bram lives in Castor. Where does Ada live?",
                "Bram lives in Castor. Ada lives in Oakford. In which town is the home of Bram?",
            ],
        ),
        ("recall", ["Which town is Ada from?", "What is the home town of Ada?"]),
        ("format", ["Write lamp in quotes.", "Give me the word lamp in quotes."]),
    ],
)
def test_wordings_orders_and_mirror_images_lie_on_one_side(task: str, variants: list[str]):
    problems = [world.Problem(*parse(task, question)) for question in variants]
    assert len({problem.key for problem in problems}) == 1
    assert all(len({world.is_held_out(problem, seed) for problem in problems}) == 1 for seed in range(20))


def test_every_statement_of_a_page_is_from_the_train_side(folder: Path):
    """The text is read back by the tells, not by what the generator says that it drew."""
    held_out = {
        _problem(row["question"]).key.removeprefix("arithmetic:")
        for row in read_rows(folder / "heldout" / "arithmetic.jsonl")
    }
    sums = 0
    for row in read_rows(folder / "pretrain.jsonl"):
        for line in row["text"].splitlines():
            left, sign, result = line.rstrip(".").partition(" = ")
            if sign and " + " in left:
                sums += 1
                assert sum(map(int, left.split(" + "))) == int(result)
                assert "+".join(sorted(left.split(" + "), key=int)) not in held_out
    assert sums > 20


def test_the_pretraining_text_tells_every_fact_that_recall_asks_for(folder: Path):
    told = (folder / "pretrain.jsonl").read_text()
    recall = [skill for skill in SKILLS if skill.task == "recall"]
    for person in PEOPLE:
        for skill in recall:
            problem = world.Problem(skill, {"person": person})
            assert any(tell.format(person=person, answer=problem.answer) in told for tell in skill.tells)


def test_options_hold_the_answer_once(folder: Path):
    for row in read_rows(folder / "heldout" / "recall.jsonl"):
        assert row["options"][row["gold"]] == row["answer"]
        assert len(set(row["options"])) == 4


def test_wordings_are_read_back_to_the_problem_that_was_asked():
    rng = Random(0)
    for skill in SKILLS:
        for _ in range(50):
            problem = world.Problem(skill, skill.draw(rng))
            for ask in skill.asks:
                assert parse(skill.task, ask.format(**problem.fields)) == (skill, problem.fields)
