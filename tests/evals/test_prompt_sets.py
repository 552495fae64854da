"""Prompt sets of every layout load as they are; nothing of them is lost or asked twice unseen."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import DataError, SpecError
from posttrain.evals.answers import Answer, answers_from_file, read_answers, to_parquet
from posttrain.evals.prompt_sets import PROMPTS, Prompt, PromptsSpec, load_prompts
from posttrain.evals.suite_files import load_suite

from .conftest import write_rows

HOSTILE = "nul \0 bell \a esc \x1b[31mred\x1b[0m bidi \u202eabc\u202c \u2028 {{ 7*7 }} </script> 🙂 \ufeff end"
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Rewrite it."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is second?", "And last?"], "reference": ["A", "B"]},
]
MT_BENCH_ANSWERS = [
    {"question_id": 101, "answer_id": "x", "model_id": "gpt-4", "tstamp": 1.5}
    | {"choices": [{"index": 0, "turns": ["You are.", "Nobody."]}]}
]
ALPACA_EVAL = [
    {"instruction": "Name a colour.", "dataset": "helpful_base", "output": "Red.", "generator": "m1"},
    {"instruction": "Name a fish.", "dataset": "koala", "output": "<think>hm</think>Cod.", "generator": "m1"},
]
ARENA_HARD = [
    {"uid": "a1", "category": "arena-hard-v0.1", "cluster": "ABC", "prompt": "Write a tune."},
    {"question_id": "b2", "category": "arena-hard", "cluster": "DEF", "turns": [{"content": "Solve it."}]},
]


def load(path: Path, **settings: Any) -> tuple[list[Prompt], tuple[str, ...]]:
    return load_prompts(PromptsSpec(name="set", path=str(path), **settings))[:2]


def test_own_rows_load_in_each_of_their_shapes(tmp_path: Path):
    path = write_rows(
        tmp_path / "own.jsonl",
        [
            {
                "id": "a",
                "prompt": "Hello?",
                "category": "chat",
                "reference": 4,
                "source": "me",
                "n": 3,
                "tree": {"x": 1},
            },
            {"id": "b", "turns": ["One?", "Two?"], "reference": ["1"]},
            {"id": "c", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
            {"id": "d", "prompt": "Hi", "system": "Be long."},
            {"prompt": "no id"},
        ],
    )
    a, b, c, d, e = load(path)[0]
    assert (a.turns, a.category, a.references) == (("Hello?",), "chat", ("4",))
    assert (b.turns, b.references) == (("One?", "Two?"), ("1", ""))
    assert (c.turns, c.system) == (("Hi",), "Be brief.")
    assert (d.turns, d.system) == (("Hi",), "Be long.")
    assert len({prompt.key for prompt in (a, b, c, d, e)}) == 5
    assert e.id == e.key[:12]


def test_mt_bench_alpaca_eval_and_arena_hard_files_load_as_they_are(tmp_path: Path):
    references = write_rows(tmp_path / "gpt-4.jsonl", MT_BENCH_ANSWERS)
    mt, notes = load(write_rows(tmp_path / "question.jsonl", MT_BENCH), references=str(references))
    assert notes == ()
    assert [(p.id, p.category, p.turns, p.references) for p in mt] == [
        ("81", "writing", ("Write a post.", "Rewrite it."), None),
        ("101", "reasoning", ("Who is second?", "And last?"), ("You are.", "Nobody.")),
    ]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA_EVAL, indent=2))
    alpaca, _ = load(tmp_path / "alpaca_eval.json")
    assert [(p.turns, p.category) for p in alpaca] == [
        (("Name a colour.",), "helpful_base"),
        (("Name a fish.",), "koala"),
    ]
    arena, _ = load(write_rows(tmp_path / "arena.jsonl", ARENA_HARD))
    assert [(p.id, p.turns) for p in arena] == [("a1", ("Write a tune.",)), ("b2", ("Solve it.",))]


def test_one_id_for_different_prompts_is_one_error_that_names_the_lines(tmp_path: Path):
    rows = [{"id": "x", "prompt": "one"}, {"id": "y", "prompt": "two"}, {"id": "x", "prompt": "three"}]
    path = write_rows(tmp_path / "twice.jsonl", [*rows, {"id": "y", "prompt": "four"}])
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert "'x' at" in message
    assert "twice.jsonl:1 and" in message
    assert "twice.jsonl:3" in message
    assert "twice.jsonl:4" in message


def test_a_prompt_that_is_there_again_is_dropped_and_counted(tmp_path: Path):
    rows = [{"id": "x", "prompt": "one"}, {"id": "x", "prompt": "one"}, {"id": "z", "prompt": "one"}]
    prompts, notes = load(write_rows(tmp_path / "again.jsonl", rows))
    assert [p.id for p in prompts] == ["x"]
    assert notes == ("2 prompts dropped: there already",)


def test_bad_rows_are_counted_by_reason_and_too_many_stop_the_run(tmp_path: Path):
    path = write_rows(
        tmp_path / "bad.jsonl",
        [
            {"id": 1, "prompt": "good"},
            {"id": 2, "prompt": "  "},
            {"id": 3, "prompt": ["text", 7]},
            {"id": 4, "answer": "no question"},
            {"id": 5.5, "prompt": "bad id"},
            {"id": 6, "prompt": "p", "reference": ["a", "b"]},
            {"id": 7, "messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]},
        ],
    )
    with path.open("a") as handle:
        handle.write("{not json\n")
    prompts, notes = load(path, max_bad_share=1.0)
    assert [p.id for p in prompts] == ["1"]
    assert len(notes) == 7
    assert all(note.startswith("1 prompts dropped: ") for note in notes)
    with pytest.raises(DataError, match=r"7 of 8 rows cannot be used.*max_bad_share"):
        load(path)


def test_hostile_text_is_kept_to_the_letter(tmp_path: Path):
    long = "漢" * 350_000  # about 1 MB
    prompts, _ = load(write_rows(tmp_path / "hostile.jsonl", [{"prompt": HOSTILE}, {"prompt": long}]))
    assert [p.turns for p in prompts] == [(HOSTILE,), (long,)]
    answers = [
        Answer(p.id, p.key, None, p.turns, None, 0, (HOSTILE,), (long,), ("stop",), 1, None, 0.5) for p in prompts
    ]
    (tmp_path / "answers.parquet").write_bytes(to_parquet(answers))
    assert list(read_answers(tmp_path / "answers.parquet")) == answers


def test_answers_of_a_version_without_system_messages_are_read(tmp_path: Path):
    import pyarrow.parquet

    (prompt,), _ = load(write_rows(tmp_path / "p.jsonl", [{"id": "a", "prompt": "Hi", "system": "Own"}]))
    said = Answer("a", prompt.key, None, prompt.turns, None, 0, ("x",), ("x",), ("stop",), 1, 1, 0.5, prompt.system)
    path = tmp_path / "answers.parquet"
    path.write_bytes(to_parquet([said]))
    assert read_answers(path) == (said,)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns("system"), path)
    assert read_answers(path) == (replace(said, system=None),)


def test_the_system_message_is_part_of_what_is_asked(tmp_path: Path):
    path = write_rows(tmp_path / "p.jsonl", [{"id": "a", "prompt": "Hi"}, {"id": "b", "prompt": "Ho", "system": "Own"}])
    plain, given = load(path)[0], load(path, system="Be kind.")[0]
    assert [p.system for p in given] == ["Be kind.", "Own"]
    assert plain[0].key != given[0].key
    assert plain[1].key == given[1].key


def test_limit_takes_the_first_prompts(tmp_path: Path):
    path = write_rows(tmp_path / "p.jsonl", [{"id": n, "prompt": f"prompt {n}"} for n in range(10)])
    assert [p.id for p in load(path, limit=3)[0]] == ["0", "1", "2"]
    specs = [PromptsSpec(name="set", path=str(path), limit=limit) for limit in (9, 10, 11)]
    assert [load_prompts(spec)[2] for spec in specs] == [True, False, False]


def test_our_own_prompt_set_is_whole_and_found_by_its_name(tmp_path: Path):
    (tmp_path / "suite.yaml").write_text("prompts:\n  - {name: talk, path: chat}\n")
    spec = load_suite(tmp_path / "suite.yaml").prompts[0]
    assert spec.path == str(PROMPTS / "chat.jsonl")
    prompts, notes, _ = load_prompts(spec)
    assert notes == ()
    assert 60 <= len(prompts) <= 80
    assert len({p.category for p in prompts}) >= 8
    assert sum(len(p.turns) == 2 for p in prompts) >= 5
    assert all(p.references for p in prompts if p.category == "maths")


def test_a_suite_names_every_mistake_of_its_prompts_with_its_line(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    write_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}])
    path.write_text(
        "prompts:\n"
        "  - {name: a, path: absent.jsonl}\n"  # 2
        "  - {name: b, path: p.jsonl, samples: 2}\n"  # 3
        "  - {name: c, path: p.jsonl, base_url: 'http://x'}\n"  # 4
        "  - {name: d, path: p.jsonl, backend: endpoint}\n"  # 5
        "  - {name: e, path: p.jsonl, backend: endpoint, base_url: 'http://x', model: '{modle}'}\n"  # 6
        "  - {name: f, path: p.jsonl, temprature: 1}\n"  # 7
    )
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    problems = {int(problem.split(":")[1]): problem for problem in caught.value.problems}
    assert {3, 4, 5, 6, 7} <= set(problems)
    assert "temperature" in problems[3]
    assert "backend: endpoint" in problems[4]
    assert "base_url" in problems[5]
    assert "{folder}" in problems[6]
    assert "'temperature'" in problems[7]
    path.write_text("prompts:\n  - {name: a, path: absent.jsonl}\n  - {name: a, path: p.jsonl, references: no.jsonl}\n")
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    assert len(caught.value.problems) == 3


def test_answers_of_other_models_are_joined_by_what_was_asked(tmp_path: Path):
    prompts, _ = load(write_rows(tmp_path / "alpaca.json", ALPACA_EVAL[::-1]))
    other = write_rows(tmp_path / "out.json", [*ALPACA_EVAL, ALPACA_EVAL[0] | {"instruction": "Else?"}, ALPACA_EVAL[0]])
    found, notes = answers_from_file(other, prompts, task="set", task_hash="h")
    assert [a.texts for a in found.answers] == [("Cod.",), ("Red.",)]
    assert found.answers[0].raw == ("<think>hm</think>Cod.",)
    assert (found.run, found.folder, found.task, found.task_hash) == ("m1", None, "set", "h")
    assert found.model_hash.startswith("file:")
    assert len(notes) == 2

    mt, _ = load(write_rows(tmp_path / "mt.jsonl", MT_BENCH))
    with gzip.open(tmp_path / "gpt-4.jsonl.gz", "wt") as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in MT_BENCH_ANSWERS))
    found, notes = answers_from_file(tmp_path / "gpt-4.jsonl.gz", mt)
    assert [(a.prompt_id, a.texts) for a in found.answers] == [("101", ("You are.", "Nobody."))]
    assert notes == ("gpt-4.jsonl.gz has no answer to 1 of 2 prompts",)

    (tmp_path / "own.parquet").write_bytes(to_parquet(found.answers))
    assert answers_from_file(tmp_path / "own.parquet", mt)[0].answers == found.answers
    with pytest.raises(InputError, match="same prompt set"):
        answers_from_file(other, mt)


def test_answers_are_not_joined_to_another_prompt_by_its_id_or_without_its_system_message(tmp_path: Path):
    asked = [{"prompt": "Name a fruit."}, {"prompt": "Greet.", "system": "Talk like a pirate."}]
    asked += [{"prompt": "Greet.", "system": "Talk like a lawyer."}, {"turns": ["Sum 2 and 2.", "And 3?"]}]
    prompts, _ = load(write_rows(tmp_path / "p.jsonl", [{"id": n, **row} for n, row in enumerate(asked, start=1)]))
    talk = [{"role": "user", "content": "Sum 2 and 2."}, {"role": "assistant", "content": "4"}]
    talk += [{"role": "user", "content": "And 3?"}, {"role": "assistant", "content": "7"}]
    rows = [
        {"id": 1, "prompt": "Translate 'dog'.", "output": "chien"},
        {"id": 2, "prompt": "Name a fruit.", "output": "apple"},
        {"id": 3, "prompt": "Greet.", "system": "Talk like a pirate.", "output": "Arr!"},
        {"id": 3, "prompt": "Greet.", "output": "Dear Sir"},  # whose file leaves the system message out
        {"id": 5, "prompt": "Greet.", "output": "Hi"},
        {"id": 6, "messages": talk},
    ]
    found, notes = answers_from_file(write_rows(tmp_path / "o.jsonl", rows), prompts)
    expected = [("1", ("apple",)), ("2", ("Arr!",)), ("3", ("Dear Sir",)), ("4", ("4", "7"))]
    assert [(answer.prompt_id, answer.texts) for answer in found.answers] == expected
    assert notes == (
        "1 rows of o.jsonl left aside: its prompt is not that of its id",
        "1 rows of o.jsonl left aside: its prompt is in the set under other system messages",
    )


def test_answers_under_another_system_message_are_left_aside_but_for_one_where_the_set_has_none(tmp_path: Path):
    asked = [{"prompt": "Greet.", "system": "Talk like a pirate.\n"}, {"prompt": "Name a fruit."}]
    prompts, _ = load(write_rows(tmp_path / "p.jsonl", [{"id": n, **row} for n, row in enumerate(asked, start=1)]))
    rows = [
        {"id": 1, "prompt": "Greet.", "system": "Talk like a lawyer.", "output": "Dear Sir"},
        {"id": 1, "prompt": "Greet.", "system": "Talk like a pirate.", "output": "Arr!"},
        {"id": 2, "prompt": "Name a fruit.", "system": "You are a helpful assistant.", "output": "apple"},
    ]
    found, notes = answers_from_file(write_rows(tmp_path / "o.jsonl", rows), prompts)
    assert [answer.texts for answer in found.answers] == [("Arr!",), ("apple",)]
    assert notes == (
        "1 rows of o.jsonl left aside: its prompt is in the set under other system messages",
        "1 rows of o.jsonl say a system message, and the set asks without one",
    )


def test_space_around_a_prompt_keeps_no_answer_from_it(tmp_path: Path):
    prompts, _ = load(write_rows(tmp_path / "p.jsonl", [{"id": 7, "prompt": "Name a fruit.\n"}]))
    rows = [{"id": 7, "prompt": "Name a fruit.", "output": "apple"}]
    found, notes = answers_from_file(write_rows(tmp_path / "o.jsonl", rows), prompts)
    assert ([answer.texts for answer in found.answers], notes) == ([("apple",)], ())


def test_references_that_join_no_prompt_or_cannot_be_read_are_told(tmp_path: Path):
    path = write_rows(tmp_path / "p.jsonl", [{"id": "a", "prompt": "Hi", "reference": "own"}])
    joined = write_rows(tmp_path / "r.jsonl", [{"id": "a", "reference": "theirs"}, {"id": "b"}])
    (prompt,), notes = load(path, references=str(joined))
    assert prompt.references == ("theirs",)
    assert notes == ("1 of 2 references cannot be read",)
    two = write_rows(tmp_path / "two.jsonl", [{"id": "a", "turns": ["Hi", "And?"]}])
    assert load(two, references=str(joined))[0][0].references == ("theirs", "")  # a judge reads one for each turn
    for rows in ([{"id": "z", "reference": "x"}], [{"id": "a"}]):
        with pytest.raises(DataError, match="no reference there has the id of a prompt"):
            load(path, references=str(write_rows(tmp_path / "other.jsonl", rows)))
