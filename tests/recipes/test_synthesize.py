"""Rows that a model writes: by steps, with what is not new, cut or wrong left out by name, and nothing asked twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.spec import SourceSpec
from posttrain.recipes import synthesize
from posttrain.recipes.load import load
from posttrain.recipes.provenance import origins
from posttrain.recipes.schema import RewardSpec
from posttrain.recipes.synthesize import METHODS, Synthesize, load_method
from posttrain.recipes.tools import run_command
from posttrain.recipes.train import train

from ..fault_server import FaultServer, sometimes
from .kills import Command, Killer

QUESTIONS = [{"question": f"What is {a} plus {b}?", "answer": str(a + b)} for a, b in ((2, 3), (10, 7), (12, 30))]
STEPS = {
    "description": "A worked answer",
    "steps": [{"name": "hint", "prompt": "Hint for: {{ question }}"}, {"name": "worked", "prompt": "Use {{ hint }}"}],
    "output": {"prompt": "{{ question }}", "completion": "{{ worked }}", "all": ["{{ hint }}", "{{ answer }}"]},
}


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(folder: Path, reply: Callable[[str], str], rows: list[dict[str, Any]] = QUESTIONS, **given: Any) -> Any:
    """Makes rows with a server that replies to the last message; returns them, the report and the server."""
    method = given.pop("method", STEPS)
    if isinstance(method, dict):
        (folder / "method.yaml").write_text(yaml.safe_dump(method))
        method = str(folder / "method.yaml")
    plan = given.pop("plan", None)
    with FaultServer(plan=plan, reply=lambda messages: reply(messages[-1]["content"])) as server:
        given = {"base_url": server.url} | given | {"rows": rows_file(folder, rows), "method": method, "model": "m"}
        Synthesize.model_validate({"temperature": 1.0, "retries": 0} | given).run(folder / "out")
        made = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
        report = json.loads((folder / "out" / "report.json").read_text())
    return made, report, server


def reasons(report: dict[str, Any]) -> dict[str, int]:
    return {one["name"]: one["count"] for one in report["counts"]["Dropped"]}


def test_each_step_reads_the_row_and_the_replies_before_it(tmp_path: Path) -> None:
    made, report, server = make(tmp_path, str.upper)
    assert made[0] == {
        "prompt": "What is 2 plus 3?",
        "completion": "USE HINT FOR: WHAT IS 2 PLUS 3?",
        "all": ["HINT FOR: WHAT IS 2 PLUS 3?", "5"],
        "synthetic": {
            "method": str(tmp_path / "method.yaml"),
            "model": "m",
            "from": [f"{tmp_path}/seeds.jsonl:1"],
            "sample": 0,
            "prompts": {"hint": "Hint for: What is 2 plus 3?", "worked": "Use HINT FOR: WHAT IS 2 PLUS 3?"},
            "parameters": {"max_new_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": 0},
        },
    }
    assert len(made) == 3
    assert len(server.requests) == 6
    assert report["tables"][0]["rows"][0][1] == server.tokens


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    made, _, _ = make(tmp_path, str.upper)
    (tmp_path / "out" / "rows.jsonl").unlink()

    def never(text: str) -> str:
        raise AssertionError(text)

    log = (tmp_path / "out" / "answered.log").read_bytes()
    again = json.loads((tmp_path / "out" / "settings.json").read_text())
    with FaultServer(reply=lambda messages: never(messages[-1]["content"])) as server:
        again["base_url"] = server.url
        (tmp_path / "out" / "settings.json").write_text(json.dumps(again))
        given = {"rows": rows_file(tmp_path, QUESTIONS), "method": str(tmp_path / "method.yaml"), "model": "m"}
        Synthesize.model_validate(given | {"base_url": server.url, "temperature": 1.0}).run(tmp_path / "out")
        assert server.requests == []
    assert [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()] == made
    assert (tmp_path / "out" / "answered.log").read_bytes() == log


def test_a_reply_that_was_cut_is_dropped_and_asked_again_when_more_is_allowed(tmp_path: Path) -> None:
    cut = lambda body, times: "length" if body["max_tokens"] == 5 and "12 plus 30" in str(body["messages"]) else None  # noqa: E731
    with FaultServer(plan=cut) as server:
        given = {"rows": rows_file(tmp_path, QUESTIONS), "method": str(tmp_path / "method.yaml"), "model": "m"}
        (tmp_path / "method.yaml").write_text(yaml.safe_dump(STEPS))
        given |= {"base_url": server.url, "temperature": 1.0}
        Synthesize.model_validate(given | {"max_new_tokens": 5}).run(tmp_path / "out")
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert reasons(report) == {"hint: the answer was cut at max_new_tokens": 1}
        asked = len(server.requests)
        Synthesize.model_validate(given | {"max_new_tokens": 50}).run(tmp_path / "out")
        assert len(server.requests) == asked + 2, "the hint that was cut, and what comes after it"
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 3


def test_fewer_rows_than_asked_for_are_said_with_the_reason(tmp_path: Path) -> None:
    seeds = [{"instruction": f"Write about the {word} in some few words."} for word in ("sea", "sky", "sun", "wind")]
    made, report, _ = make(
        tmp_path, str.upper, seeds, method="self_instruct", count=3, plan=lambda body, times: "length"
    )
    assert made == []
    assert report["summary"][1].startswith("3 were asked for; no more were begun, since four were begun for each")
    assert report["summary"][1].endswith("; a higher max_new_tokens would leave more whole")


def test_what_is_much_like_an_earlier_reply_is_dropped_and_no_more_is_asked_for_when_nothing_new_comes(
    tmp_path: Path,
) -> None:
    seeds = [{"instruction": f"Write about the {word} in some few words."} for word in ("sea", "sky", "sun", "wind")]
    made, report, server = make(
        tmp_path, lambda text: "Name the planets of the sun in order.", seeds, method="self_instruct", count=200
    )
    assert [row["messages"][0]["content"] for row in made] == ["Name the planets of the sun in order."]
    assert reasons(report) == {"instruction: much like an earlier one": 63}
    assert "no more were begun, since fewer than" in report["summary"][1]
    assert len(server.requests) == 65, "one wave, and the one answer"


def test_a_reply_that_only_says_its_row_again_is_not_novel(tmp_path: Path) -> None:
    tasks = ["Name a river of Asia.", "Name two rivers of Asia, and say which of them is longer."]
    reply = lambda text: tasks[0].upper() if tasks[0] in text else "Name two rivers of Asia."  # noqa: E731
    seeds = [{"instruction": task} for task in tasks]
    made, report, _ = make(tmp_path, reply, seeds, method="evol_instruct")
    assert [row["messages"][0]["content"] for row in made] == ["Name two rivers of Asia."]
    assert reasons(report) == {"evolved: much like an earlier one": 1}


def test_new_instructions_come_until_there_are_as_many_as_asked_for(tmp_path: Path) -> None:
    seeds = [{"instruction": f"Write about the {word} in some few words."} for word in ("sea", "sky", "sun", "wind")]
    numbers = iter(range(1000))
    fresh = lambda text: " ".join(f"w{next(numbers)}" for _ in range(6)) if "Write one more" in text else "done"  # noqa: E731
    made, _, _ = make(tmp_path, fresh, seeds, method="self_instruct", count=70, concurrency=1)
    assert len(made) == 70
    assert all(len(row["synthetic"]["from"]) == 4 for row in made)


def test_equal_rows_do_not_count_towards_those_asked_for(tmp_path: Path) -> None:
    method = {"description": "d", "examples": 1, "steps": [{"name": "said", "prompt": "{{ examples[0].question }}"}]}
    numbers = iter(range(1000))
    every_other = lambda text: f"reply {next(numbers) // 2}"  # noqa: E731
    made, report, _ = make(
        tmp_path, every_other, method=method | {"output": {"text": "{{ said }}"}}, count=10, concurrency=1
    )
    assert len({row["text"] for row in made}) == len(made) == 10
    assert reasons(report)["the same as another"] >= 9


def test_a_reply_that_cannot_be_read_is_asked_for_once_more_with_what_is_wrong(tmp_path: Path) -> None:
    step = {"name": "task", "prompt": "Write {{ question }}", "fields": ["problem", "result"], "repair": True}
    output = {"prompt": "{{ problem }}", "completion": "{{ result }}"}

    def reply(text: str) -> str:
        if "is 2 plus" in text:
            return 'Here:\n```json\n{"problem": "2 + 3?", "result": 5, "why": {"a": 1}}\n```'
        if "10 plus 7" in text or "must be problem, result" in text:
            return '{"problem": "10 + 7?"}'
        return "{so be it" if "12 plus 30" in text else '{"problem": "12 + 30?", "result": "42"}'

    method = {"description": "d", "steps": [step], "output": output}
    made, report, server = make(tmp_path, reply, method=method, concurrency=1)
    assert [(row["prompt"], row["completion"]) for row in made] == [("2 + 3?", "5"), ("12 + 30?", "42")]
    assert reasons(report) == {"task: no JSON object with all that was asked for": 1}
    assert "2 unreadable replies were asked for again; 1 of them" in report["summary"][1]
    assert len(server.requests) == 5
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_half_a_character_in_json_that_the_model_wrote_spoils_no_row(tmp_path: Path) -> None:
    step = {"name": "made", "prompt": "{{ question }}", "fields": ["said"]}
    method = {"description": "d", "steps": [step], "output": {"text": "{{ said }}"}}
    made, _, _ = make(tmp_path, lambda _: '{"said": "so \\ud83d"}', QUESTIONS[:1], method=method)
    assert [row["text"] for row in made] == ["so ?"]


def test_rows_that_cannot_be_read_or_shown_are_counted_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    seeds = [{"instruction": f"Write about the {word}."} for word in ("sea", "sky")]
    path = Path(rows_file(tmp_path, [*seeds, {"text": "x"}]))
    path.write_text(path.read_text() + "{torn\n")
    given = {"rows": str(path), "method": "self_instruct", "model": "m", "temperature": 1.0, "count": 1}
    with FaultServer(reply=lambda messages: "Name the planets.") as server:
        Synthesize.model_validate(given | {"base_url": server.url}).run(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (shown, torn) = sorted(one["name"] for one in report["counts"]["Not usable"])
    assert shown == "as an example: missing column 'instruction'"
    assert all(f"{name} (1)" in report["summary"][1] for name in (torn, shown))
    with pytest.raises(
        PosttrainError, match=r"seeds\.jsonl: no row can be used: .*'instruction'.*the row has question"
    ):
        make(tmp_path, str.upper, method="self_instruct", count=2)


def test_as_many_rows_are_used_as_the_source_says(tmp_path: Path) -> None:
    rows = {"path": rows_file(tmp_path, QUESTIONS), "limit": 2}
    given = {"rows": rows, "method": "chain_of_thought", "model": "m"}
    with FaultServer() as server:
        Synthesize.model_validate(given | {"base_url": server.url}).run(tmp_path / "out")
        assert len(server.requests) == 2


def test_a_run_records_who_wrote_its_rows_and_what_they_were_chosen_to_be_like(
    tmp_path: Path, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, str.upper)
    (tmp_path / "wanted.jsonl").write_text('{"text": "What is 1 plus 1?"}\n')
    sample = ["sample", "out/rows.jsonl", "--by", "dsir", "--target", "wanted.jsonl", "--tokens", "60", "-o", "some"]
    for command in (sample, ["dedup", "some/rows.jsonl", "-o", "unique"]):
        with pytest.raises(SystemExit, match="0"):
            run_command(*command)
    recipe = make_recipe(sections={"data": {"train": {"path": "unique/rows.jsonl"}}})
    train(load(recipe))
    trained = json.loads((tmp_path / "run/run.json").read_text())["data"]["train"]
    assert trained["written_by"] == ["m"]
    assert trained["chosen_like"] == ["wanted.jsonl"]


def test_rows_chosen_by_an_earlier_classifier_are_known_to_be_like_what_it_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("tests", "how many apples"), ("web", "buy now"), ("more", "how many pears")):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{text} {n}"}}\n' for n in range(80)))
    learnt = ["web.jsonl", "--good", "tests.jsonl", "--bad", "web.jsonl", "-o", "learnt"]
    for arguments in (learnt, ["more.jsonl", "--classifier", "learnt", "-o", "chosen"]):
        with pytest.raises(SystemExit, match="0"):
            run_command("quality", *arguments)
    assert origins([SourceSpec(path="chosen/more.jsonl")], tmp_path)["chosen_like"] == ["tests.jsonl"]


def test_only_what_a_verifier_finds_right_is_kept_and_the_first_of_several(tmp_path: Path) -> None:
    calls = iter(range(100))

    def reply(text: str) -> str:
        right = {"2": 5, "10": 17, "12": 42}[text.split()[2]]
        return f"so it is {right + (next(calls) % 2)}" if right != 42 else "I cannot say"

    check = {"verifier": "numeric", "of": "reasoning", "column": "answer"}
    made, report, _ = make(
        tmp_path, reply, method="chain_of_thought", samples=8, keep="first", verify=[check], concurrency=1
    )
    assert [row["messages"][0]["content"] for row in made] == [row["question"] for row in QUESTIONS[:2]]
    assert all(row["synthetic"]["verified"] == ["numeric"] for row in made)
    found = reasons(report)
    assert found["reasoning: wrong by numeric"] >= 8
    assert sum(found.values()) == 22
    right = 24 - found["reasoning: wrong by numeric"]
    assert ["found right, of those verified", f"{right / 24:.1%}"] in report["tables"][0]["rows"]


@pytest.mark.parametrize("name", sorted(path.stem for path in METHODS.glob("*.yaml")))
def test_a_method_that_comes_with_us_is_whole(tmp_path: Path, name: str) -> None:
    """Its prompts name only columns that its head speaks of, earlier steps, examples and variables."""
    row = {"instruction": "Say it.", "output": "It.", "text": "It was said.", "persona": "a beekeeper"}
    row |= {"prompt": "Ask.", "question": "What?"}
    head = (METHODS / f"{name}.yaml").read_text()
    named = {key: value for key, value in row.items() if f"`{key}`" in head}
    more: dict[str, Any] = {"count": 1} if load_method(name).examples else {}
    made, report, _ = make(
        tmp_path,
        lambda text: f"1. reply to {len(text)}\n2. and more",
        [
            named | {"instruction": f"{named.get('instruction', '')} {n}"} if "instruction" in named else named
            for n in (1,)
        ],
        method=name,
        variables={"language": "German"},
        **more,
    )
    assert len(made) == 1, report["counts"]
    assert "{{" not in json.dumps(made[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "self_instrct"}, "did you mean 'self_instruct'"),
        ({"method": "self_instruct"}, "say --count"),
        ({"count": 3}, "say --samples"),
        ({"samples": 2, "temperature": 0.0}, "temperature above 0"),
        ({"verify": [{"verifier": "numeric", "of": "nothing", "column": "answer"}]}, "no step 'nothing'"),
        ({"budget": {"money": 5.0}}, "a budget in money needs `prices`"),
        ({"base_url": None, "budget": {"tokens": 5}}, "a budget and prices are of an endpoint"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises((PosttrainError, ValueError), match=said):
        make(tmp_path, str.upper, **given)


@pytest.mark.parametrize(
    ("step", "column", "said"),
    [
        ({"pattern": "(open"}, "answer", "pattern: .*no regular expression"),
        ({"pattern": "none"}, "answer", "pattern: .*no group"),
        ({"name": "answer"}, "answer", "hidden by the step of that name"),
        ({}, "nowhere", "seeds.jsonl:1: has no column 'nowhere'"),
    ],
)
def test_a_method_that_cannot_be_verified_or_read_is_refused_before_anything_is_asked(
    tmp_path: Path, step: dict[str, str], column: str, said: str
) -> None:
    asked: list[str] = []

    def reply(text: str) -> str:
        asked.append(text)
        return "17"

    step = {"name": "worked", "prompt": "{{ question }}"} | step
    method = {"description": "d", "steps": [step], "output": {"text": "{{ question }}"}}
    check = {"verifier": "numeric", "of": step["name"], "column": column}
    with pytest.raises(PosttrainError, match=said):
        make(tmp_path, reply, method=method, verify=[check])
    assert not asked


@pytest.mark.parametrize("verifier", ["numeric", "tests"])
def test_what_nothing_can_be_verified_by_is_one_clear_error(tmp_path: Path, verifier: str) -> None:
    check = {"verifier": verifier, "of": "worked", "column": "answer"}
    with pytest.raises(PosttrainError, match=rf"seeds\.jsonl, column 'answer': cannot be verified by {verifier}"):
        make(tmp_path, str.upper, [{"question": "Why?", "answer": "so it is"}], verify=[check])


@pytest.mark.parametrize(
    ("step", "output", "reason"),
    [
        ({"pattern": "(never)?WHAT"}, "{{ worked }}", "worked: the pattern is not in the reply"),
        ({}, "{{ wroked }}", "output: missing column 'wroked'"),
    ],
)
def test_a_group_that_took_no_part_and_an_output_that_names_nothing_are_reasons_to_drop(
    tmp_path: Path, step: dict[str, str], output: str, reason: str
) -> None:
    step = {"name": "worked", "prompt": "{{ question }}"} | step
    made, report, _ = make(
        tmp_path, str.upper, method={"description": "d", "steps": [step], "output": {"text": output}}
    )
    assert not made
    assert reasons(report) == {reason: 3}


def test_the_rows_that_are_read_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    method = tmp_path / "method.yaml"
    method.write_text(yaml.safe_dump(STEPS))
    for rows in ("rows.jsonl", "*.jsonl"):
        given = {"rows": str(tmp_path / rows), "method": str(method), "model": "m", "base_url": "http://127.0.0.1:9"}
        with pytest.raises(PosttrainError, match="written over by its own rows"):
            Synthesize.model_validate(given).run(tmp_path)


def test_a_row_without_what_a_prompt_names_is_dropped_by_name(tmp_path: Path) -> None:
    made, report, _ = make(tmp_path, str.upper, [*QUESTIONS, {"other": "x"}])
    assert len(made) == 3
    (reason,) = report["counts"]["Not usable"]
    assert (reason["name"], reason["examples"][0]["detail"]) == ("hint: missing column 'question'", "the row has other")
    with pytest.raises(PosttrainError, match="no row can be used: hint: missing column 'question'"):
        make(tmp_path, str.upper, [{"other": "x"}])


def test_a_column_that_is_null_says_nothing_in_a_prompt(tmp_path: Path) -> None:
    one = {"name": "a", "system": "{{ role }}", "prompt": "Q: {{ question }}{{ role }}"}
    method = {"description": "One step", "steps": [one], "output": {"text": "{{ a }}"}}
    *_, server = make(tmp_path, str.upper, [{"question": "Why?", "role": None}], method=method)
    assert not [turn for turn in server.requests[0]["messages"] if "None" in turn["content"]]


def test_no_more_is_spent_than_the_budget_and_whole_rows_come_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesize, "_WAVE", 4)
    rows = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(40)]
    made, report, server = make(tmp_path, str.upper, rows, budget={"tokens": 700}, max_new_tokens=32, concurrency=1)
    assert 0 < len(made) < 40
    assert server.tokens <= 700
    assert any("budget" in reason for reason in reasons(report))


@pytest.mark.slow
def test_ten_kills_beside_a_server_with_faults_leave_the_same_rows_and_the_budget_whole(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "method.yaml").write_text(yaml.safe_dump(STEPS))
    arguments = ["data", "synthesize", rows_file(work, QUESTIONS), "--method", work / "method.yaml", "--model", "m"]
    budget, judged = 2000, 20_000

    def reply(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        return judge(text) or f"so: {text}"

    with FaultServer(sometimes(0.2, "429:0.01", "cut"), reply=reply) as server:
        arguments += ["--base-url", server.url, "--max-new-tokens", "40", "--retries", "9", "--concurrency", "1"]
        check = preferring(server, of="worked", over="question", budget={"tokens": judged}, retries=9, concurrency=1)
        arguments += ["--budget", f"{{tokens: {budget}}}", "--verify", json.dumps(check), "-o", work / "out"]
        timed = ("requests.log", "judged.log", "worked-question-pairwise.jsonl")
        killer = Killer(Command(work, arguments, timed=timed), tmp_path)
        assert (work / "out/rows.jsonl").read_text().count("\n") == 1
        for at in killer.chosen(10):
            before = server.tokens
            killer.kill(at)
            assert server.tokens - before <= budget + judged
    assert server.met["cut"]


REVISE = {
    "description": "d",
    "steps": [{"name": "first", "prompt": "{{ question }}"}, {"name": "revision", "prompt": "Mend {{ first }}"}],
    "output": {"prompt": "{{ question }}", "chosen": "{{ revision }}", "rejected": "{{ first }}"},
}


def judge(text: str) -> str | None:
    """Prefers longer answers; but of those to 10 plus 7 the one it sees first, and for 12 plus 30 it says nothing."""
    if "begin answer A" not in text:
        return None
    first, second = (text.partition(f"[[begin answer {label}")[2].partition("[[end")[0] for label in "AB")
    if "12 plus 30" in text:
        return "I would rather not say."
    return "[[A]]" if "10 plus 7" in text or len(first) > len(second) else "[[B]]"


def preferring(server: FaultServer, **given: Any) -> dict[str, Any]:
    own = {"judge": "pairwise", "of": "revision", "request": "{{ question }}", "answer_by": "text", "max_tokens": 50}
    return own | {"model": "j", "base_url": server.url, "retries": 0} | given


def test_a_pair_is_kept_only_if_the_judge_prefers_it_in_both_orders(tmp_path: Path) -> None:
    with FaultServer(reply=lambda messages: judge(messages[-1]["content"])) as server:
        check = preferring(server, over="first")
        made, report, writer = make(tmp_path, lambda text: f"{text}!", method=REVISE, verify=check)
        asked, tokens = len(server.requests), server.tokens
        again, same, other = make(tmp_path, str.upper, method=REVISE, verify=check, base_url=writer.url)
        assert len(server.requests) == asked == 6  # three pairs, both orders; nothing is asked twice
        assert not other.requests
    assert [row["prompt"] for row in made] == ["What is 2 plus 3?"]
    assert made[0]["synthetic"]["verified"] == ["pairwise"]
    assert reasons(report) == {
        "revision: what pairwise says turns with the order": 1,
        "revision: could not be decided by pairwise: unparsed": 1,
    }
    cost = dict(report["tables"][0]["rows"])
    assert cost["tokens of revision-first-pairwise"] == tokens
    assert cost["turned with the order, of what revision-first-pairwise decided"] == "50.0%"
    assert origins([SourceSpec(path="rows.jsonl")], tmp_path / "out") == {"written_by": ["m"], "judged_by": ["j"]}
    assert (again, reasons(same)) == (made, reasons(report))


def test_of_several_samples_the_one_that_wins_in_both_orders_is_kept(tmp_path: Path) -> None:
    calls = iter(range(100))
    method = {"description": "d", "steps": [{"name": "worked", "prompt": "{{ question }}"}]}
    with FaultServer(reply=lambda messages: judge(messages[-1]["content"])) as server:
        made, report, _ = make(
            tmp_path,
            lambda text: "x" * (5, 9, 7)[next(calls) % 3],
            method=method | {"output": {"text": "{{ question }} {{ worked }}"}},
            verify=preferring(server, of="worked"),
            samples=3,
            keep="best",
            concurrency=1,
        )
    # the longest; where the place decides the first of them stands, and where nobody says so, too
    assert [row["text"].rpartition(" ")[2] for row in made] == ["x" * 9, "x" * 5, "x" * 5]
    assert reasons(report) == {
        "worked: another sample is better by pairwise": 1,
        "worked: not better than another sample by pairwise": 1,
        "worked: what pairwise says turns with the order": 2,
        "worked: could not be decided by pairwise: unparsed": 2,
    }


def test_a_judge_spends_no_more_than_its_own_budget(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} plus 3?", "answer": "0"} for n in range(2, 10)]
    with FaultServer(reply=lambda messages: judge(messages[-1]["content"])) as server:
        check = preferring(server, over="first")
        with pytest.raises(PosttrainError, match="the judge has no budget of its own"):
            make(
                tmp_path,
                str.upper,
                rows,
                method=REVISE,
                verify=check,
                base_url="http://localhost:1",
                budget={"tokens": 1},
            )
        check = preferring(server, over="first", budget={"tokens": 3000}, concurrency=1)
        made, report, _ = make(tmp_path, lambda text: f"{text}!", rows, method=REVISE, verify=check)
        assert 0 < server.tokens <= 3000
    assert 0 < len(made) < len(rows)
    assert any("budget" in reason for reason in reasons(report)), reasons(report)


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ({"over": "revision"}, {}, "over 'revision' is nothing to compare with"),
        ({"over": "nowhere"}, {}, "seeds.jsonl:1: verify: over 'nowhere' is nothing to compare with"),
        ({"over": "first", "request": "{{ nowhere }}"}, {}, "verify: request: missing column 'nowhere'"),
        ({"over": "first", "judge": "pairwse"}, {}, "did you mean 'pairwise'"),
        ({"over": "first", "judge": "rating"}, {}, "a judge that rates compares nothing"),
        ({"over": "first", "orders": "one"}, {}, "a verdict of one order decides nothing"),
        ({"over": "first", "base_url": ""}, {}, "needs `base_url`"),
        ({}, {}, "say --keep best, --samples"),
        ({}, {"keep": "best"}, "say --keep best, --samples"),
        ({"over": "first"}, {"keep": "best", "samples": 2}, "say --keep best, --samples"),
    ],
)
def test_a_judge_that_could_not_decide_is_refused_before_anything_is_asked(
    tmp_path: Path, given: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    asked: list[str] = []

    def reply(text: str) -> str:
        asked.append(text)
        return "17"

    with FaultServer() as server, pytest.raises(PosttrainError, match=said):
        make(tmp_path, reply, method=REVISE, verify=preferring(server, **given), **more)
    assert not asked


def test_what_gives_each_answer_a_value_chooses_the_best_of_n_without_orders(tmp_path: Path) -> None:
    calls = iter(range(100))
    (tmp_path / "rule.py").write_text("def rule(prompt, answer):\n    return len(answer)\n")
    check = {
        "judge": "rules-not-a-judge",
        "rule": f"{tmp_path}/rule.py:rule",
        "of": "worked",
        "request": "{{ question }}",
    }
    method = {"description": "d", "steps": [{"name": "worked", "prompt": "{{ question }}"}]}
    made, _, _ = make(
        tmp_path,
        lambda text: "x" * (next(calls) % 4),
        method=method | {"output": {"text": "{{ worked }}{{ question }}"}},
        verify=check,
        samples=4,
        keep="best",
        concurrency=1,
    )
    assert all(row["text"].startswith("xxx") for row in made)
    assert len(made) == 3


def test_a_judge_is_no_reward() -> None:
    with pytest.raises(ValueError, match=r"gives none a reward of its own: .* take a reward model"):
        RewardSpec.model_validate({"verifier": "judge"})


def test_what_a_judges_check_lacks_is_said_by_its_key(tmp_path: Path) -> None:
    lacking = ["--method", "critique_revise", "--model", "m", "--verify", "{judge: pairwise, of: revision}"]
    with pytest.raises(PosttrainError, match=r"verify\.request: this key is required"):
        run_command("synthesize", rows_file(tmp_path, QUESTIONS), *lacking, "-o", str(tmp_path / "out"))
