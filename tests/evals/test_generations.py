"""Answers are had once, whatever kills the process, and are the same whatever stands beside them in a batch."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from posttrain.chat_templates import ChatTemplate
from posttrain.data_tools.ask import Query
from posttrain.data_tools.encode import TextEncoder
from posttrain.data_tools.endpoint import Reply
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.generate import Sampling
from posttrain.evals import score as scoring
from posttrain.evals.answers import Answer, AnswerSet, find_answers, read_answers
from posttrain.evals.checkpoints import write_manifest
from posttrain.evals.errors import SuiteError
from posttrain.evals.generations import (
    PromptTask,
    Said,
    define,
    figures,
    local,
    plain_text,
    run_prompts,
)
from posttrain.evals.prompt_sets import load_prompts
from posttrain.evals.records import Result, ScoreStore
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

from ..conftest import build_tokenizer
from ..fault_server import FaultServer, each
from .conftest import write_rows
from .test_prompt_sets import HOSTILE
from .test_score import CHATML

MakeRun = Callable[..., Path]
ROWS: list[dict[str, Any]] = [
    {"id": "fox", "prompt": "The quick brown"},
    {"id": "sum", "prompt": "Two and two make", "category": "maths", "reference": "four"},
    {"id": "talk", "turns": ["hello", "goodbye, and thanks"], "category": "chat"},
    {"id": "hostile", "prompt": HOSTILE},
    {"id": "long", "prompt": "漢字 and emoji " * 60_000},
    {"id": "tight", "prompt": "hello " * 236},  # some ten tokens short of what the model takes
]


def suite_of(folder: Path, rows: Sequence[dict[str, Any]] = ROWS, more: str = "", head: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "prompts.jsonl", list(rows))
    path = folder / "talk.yaml"
    entry = f"  - {{name: chat, path: prompts.jsonl, max_new_tokens: 12{more}}}\n"
    path.write_text(f"batch_size: 2\ndtype: float32\n{head}prompts:\n{entry}")
    return path


def with_template(run: Path, folder: str = "checkpoint-1") -> Path:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(run / folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(run / folder)
    write_manifest(run / folder, step=1, resumable=True)
    return run


def answers_of(run: Path) -> AnswerSet:
    [found] = find_answers([run], "chat")
    return found


def untimed(answers: Iterable[Answer]) -> list[Answer]:
    return [replace(answer, seconds=None) for answer in answers]


def test_a_checkpoint_answers_once_and_the_record_says_how(make_run: MakeRun, tmp_path: Path):
    run = with_template(make_run((1,), final=False))
    suite = suite_of(tmp_path / "suite")
    report = score([run], suite, device="cpu")
    assert report.failed == ()
    [record] = ScoreStore(run).load()
    assert record.detail is not None
    assert (record.task, record.template_fingerprint is None, record.judge_version) == ("chat", False, None)
    assert (record.detail["kind"], record.detail["prompts"], record.detail["too_long"]) == ("answers", 6, 1)
    assert record.detail["settings"]["max_new_tokens"] == 12
    assert [m.name for m in record.metrics] == ["answered", "characters", "tokens", "cut", "seconds"]
    assert list((run / ".scoring").glob("answers-*")) == []
    answers = {answer.prompt_id: answer for answer in answers_of(run).answers}
    assert list(answers) == [row["id"] for row in ROWS]
    assert answers["sum"].references == ("four",)
    assert answers["hostile"].turns == (HOSTILE,)
    assert (answers["long"].finish, answers["long"].texts) == (("too_long",), ("",))
    assert answers["long"].turns == (ROWS[4]["prompt"],)
    assert (answers["fox"].completion_tokens or 0) <= 12
    tight = answers["tight"]
    assert 0 < (tight.completion_tokens or 0) < 12  # what the model has room for
    assert (tight.prompt_tokens or 0) + (tight.completion_tokens or 0) <= 256
    again = score([run], suite, device="cpu")
    assert (again.done, again.skipped) == ((), 1)


def test_the_second_turn_is_said_after_the_models_own_first_answer(make_run: MakeRun, tmp_path: Path):
    from transformers import AutoTokenizer

    run = with_template(make_run((1,), final=False))
    score([run], suite_of(tmp_path / "suite"), device="cpu")
    answer = next(answer for answer in answers_of(run).answers if answer.prompt_id == "talk")
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "checkpoint-1")
    first = f"<|im_start|>user\n{answer.turns[0]}<|im_end|>\n<|im_start|>assistant\n"
    second = f"{first}{answer.texts[0]}<|im_end|>\n<|im_start|>user\n{answer.turns[1]}<|im_end|>\n"
    read = [len(tokenizer(text)["input_ids"]) for text in (first, f"{second}<|im_start|>assistant\n")]
    assert answer.texts[0]
    assert answer.prompt_tokens == sum(read)


@pytest.mark.parametrize("more", ["", ", temperature: 1.5, top_p: 0.9, samples: 2, seed: 3"])
def test_the_size_of_batches_changes_no_answer(make_run: MakeRun, tmp_path: Path, more: str):
    found = []
    for size in (1, 3, 16):
        run = make_run((1,), final=False, name=f"size-{size}")
        rows = [row for row in ROWS if row["id"] != "long"]
        suite = suite_of(tmp_path / f"suite-{size}", rows, f"{more}, batch_size: {size}")
        assert score([run], suite, device="cpu").failed == ()
        found.append(answers_of(run))
    assert untimed(found[0].answers) == untimed(found[1].answers) == untimed(found[2].answers)
    assert len({answers.task_hash for answers in found}) == 1
    if more:
        first, second = [a.texts for a in found[0].answers if a.prompt_id == "fox"]
        assert first != second


@pytest.mark.slow
def test_kills_lose_no_answer_and_change_none(make_run: MakeRun, tmp_path: Path):
    rows = [*ROWS[:4], *({"id": n, "turns": [f"{n} and {n} make", "and thanks"]} for n in range(12))]
    suite = suite_of(tmp_path / "suite", rows, more=", temperature: 1.0, samples: 2")
    run, undisturbed = make_run((1,), final=False), make_run((1,), final=False, name="undisturbed")
    script = Path(__file__).with_name("kill_answers_script.py")
    command = [sys.executable, str(script), str(run), str(suite)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500).stdout
    attempts = [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    assert [attempt["code"] for attempt in attempts] == [-signal.SIGKILL] * 12 + [0, 0]
    for before, after in itertools.pairwise(attempts[:11]):
        assert after["log"] >= before["log"]  # nothing that was said is lost
    assert attempts[9]["log"] > 5
    assert [(a["scores"], a["logs"]) for a in attempts[-4:]] == [(0, 1), (1, 1), (1, 0), (1, 0)]
    score([undisturbed], suite, device="cpu")
    assert untimed(answers_of(run).answers) == untimed(answers_of(undisturbed).answers)


TOKENIZER: Any = build_tokenizer()
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


class FakeEngine:
    """A fake model that says back what it was asked, and counts its batches."""

    def __init__(self, says: Callable[[str], str] = lambda prompt: f"You said: {prompt}"):
        self.says, self.batches = says, 0

    def __call__(self, prompts: list[list[int]], settings: Sampling, keys: list[str]) -> Iterable[Reply]:
        self.batches += 1
        for prompt in prompts:
            yield Reply("", self.says(TOKENIZER.decode(prompt)), "stop", len(prompt), 3, seconds=0.1)


def job_of(folder: Path, rows: Sequence[dict[str, Any]], more: str = "") -> tuple[PromptTask, Sampling]:
    suite = load_suite(suite_of(folder, rows, more))
    job = define(suite.prompts[0], suite)
    return job, job.sampling(suite)


def run_with(
    job: PromptTask, how: Sampling, log: Path, engine: FakeEngine, *, template: str | None = "t"
) -> tuple[Result, list[Answer]]:
    encoder = TextEncoder(TOKENIZER, ChatTemplate("brackets", TURNS))
    backend = local(encoder, engine, 200_000, how, job.spec, templated=template is not None)
    result = run_prompts(job, backend, log, template=template)
    path = log.with_suffix(".parquet")
    path.write_bytes(result.samples)
    return result, list(read_answers(path))


def test_a_torn_or_foreign_log_costs_only_the_answers_it_does_not_hold(tmp_path: Path):
    rows = [{"id": n, "prompt": "x" * n} for n in range(1, 9)]
    job, how = job_of(tmp_path, rows)
    log = tmp_path / "log.jsonl"
    engine = FakeEngine()
    whole = run_with(job, how, log, engine)[1]
    assert engine.batches == 4
    lines = log.read_bytes().splitlines(keepends=True)

    log.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    engine = FakeEngine()
    assert run_with(job, how, log, engine)[1] == whole
    assert engine.batches == 2
    engine = FakeEngine()
    run_with(job, how, log, engine)
    assert engine.batches == 0
    run_with(job, how, log, engine, template="other")
    assert engine.batches == 4  # another template's answers are not taken over
    log.write_bytes(b"no json\n" + lines[1])
    assert run_with(job, how, log, engine)[1] == whole


def test_thoughts_are_kept_and_not_part_of_the_conversation(tmp_path: Path):
    job, how = job_of(tmp_path, [{"id": "a", "turns": ["one", "two"]}, {"id": "b", "prompt": "cut"}])
    engine = FakeEngine(lambda prompt: "<think>hm" if "cut" in prompt else f"<think>hm</think>said {prompt}")
    result, answers = run_with(job, how, tmp_path / "log.jsonl", engine)
    assert answers[0].raw[0] == "<think>hm</think>said [user]one[assistant]"
    assert answers[0].texts[0] == "said [user]one[assistant]"
    asked = "[user]one[assistant]said [user]one[assistant][user]two[assistant]"
    assert answers[0].texts[1] == f"said {asked}"
    assert (answers[1].texts, answers[1].raw) == (("",), ("<think>hm",))
    assert any("still thought" in note for note in result.notes)
    assert {m.name: m.value for m in result.metrics}["answered"] == 0.5


def test_a_base_model_is_asked_in_plain_text_and_stops_where_the_user_would_speak(tmp_path: Path):
    rows = [{"id": "a", "turns": ["one", "two"], "system": "Be kind."}]
    job, how = job_of(tmp_path, rows)
    engine = FakeEngine(lambda prompt: " fine\n\nUser: and then?")
    _, answers = run_with(job, how, tmp_path / "log.jsonl", engine, template=None)
    assert (answers[0].texts, answers[0].finish) == (("fine", "fine"), ("stop", "stop"))
    assert answers[0].system == "Be kind."  # a judge has to see it
    messages = ({"role": "system", "content": "S"}, {"role": "user", "content": "U"})
    assert plain_text(messages, "dialogue") == "S\n\nUser: U\n\nAssistant:"


def test_a_bare_prompt_is_continued_to_the_end_of_its_line(tmp_path: Path):
    job, how = job_of(tmp_path, [{"id": "a", "turns": ["What is 1+1?", "And 2+2?"]}], ", plain: bare")
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return " fine\nWhat is 3+3?"

    _, answers = run_with(job, how, tmp_path / "log.jsonl", FakeEngine(reply), template=None)
    assert asked == ["What is 1+1?", "What is 1+1? fine\nAnd 2+2?"]
    assert (answers[0].texts, answers[0].finish) == (("fine", "fine"), ("stop", "stop"))


def test_a_template_that_refuses_the_conversation_is_an_error_in_one_line():
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok"
    encoder = TextEncoder(build_tokenizer(), ChatTemplate("strict", source))
    with pytest.raises(DataError, match=r"System role not supported; .*without a system message"):
        encoder.prompts([[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]])


def test_several_samples_of_a_prompt_are_one_cluster(tmp_path: Path):
    job, how = job_of(tmp_path, [{"id": n, "prompt": f"p{n}"} for n in range(3)], ", samples: 4, temperature: 1")
    engine = FakeEngine(lambda prompt: "" if "p0" in prompt else "yes")
    result, answers = run_with(job, how, tmp_path / "log.jsonl", engine)
    assert [answer.sample for answer in answers] == [0, 1, 2, 3] * 3
    first = result.metrics[0]
    assert (first.name, first.n) == ("answered", 3)
    assert first.value == pytest.approx(2 / 3)
    assert first.stderr == pytest.approx((2 / 3 * 1 / 3 / 2) ** 0.5)  # as of three prompts, not of twelve answers
    assert figures(answers[:1])[0].stderr is None


def test_a_server_answers_under_the_checkpoints_name_and_the_model_is_not_loaded(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scoring.Loader, "load", None)
    run = make_run((1,), final=False)
    rows = [{"id": "a", "turns": ["one", "two"]}, {"id": "b", "prompt": "three"}]
    with FaultServer(each("500", None, "length"), reply=lambda m: f"<think>x</think>{m[-1]['content']}!") as server:
        suite = suite_of(tmp_path / "suite", rows, f", backend: endpoint, base_url: '{server.url}'")
        report = score([run], suite, device="cpu")
        assert report.failed == ()
        assert {body["model"] for body in server.requests} == {str(run / "checkpoint-1")}
        assert all(times == 1 for times in server.paid.values())
        assert [m["content"] for m in server.requests[-1]["messages"]] == ["one", "one!", "two"]
    first, second = answers_of(run).answers
    assert (first.texts, first.raw[0]) == (("one!", "two!"), "<think>x</think>one!")
    assert second.texts == ("three!",)
    assert (first.prompt_tokens or 0) > 0
    assert list((run / ".scoring").glob("answers-*")) == []


def test_a_server_that_fails_leaves_what_it_answered_for_the_next_call(make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    rows = [{"id": n, "prompt": f"prompt {n}"} for n in range(6)]
    with FaultServer(lambda body, times: "400" if "prompt 5" in str(body["messages"]) else None) as server:
        more = f", backend: endpoint, base_url: '{server.url}', retries: 0"
        suite = suite_of(tmp_path / "suite", rows, more)
        [failure] = score([run], suite, device="cpu").failed
        assert "1 of 6 prompts got no answer" in failure.reason
        assert ScoreStore(run).load() == []
        server.plan = each()
        assert score([run], suite, device="cpu").failed == ()
        assert all(times == 1 for times in server.paid.values())
        lenient = suite_of(tmp_path / "lenient", rows, f"{more}, max_bad_share: 0.5, seed: 1")
        server.plan = lambda body, times: "malformed" if "prompt 5" in str(body["messages"]) else None
        [failure] = score([run], lenient, device="cpu").failed
        assert "1 of 6 prompts got no answer" in failure.reason, "the network's fault is no answer of the model's"
        server.plan = lambda body, times: "400" if "prompt 5" in str(body["messages"]) else None
        assert score([run], lenient, device="cpu").failed == ()
    record = ScoreStore(run).load()[-1]
    assert record.detail is not None
    assert (record.detail["failed"], len(record.notes)) == (1, 1)


def test_a_server_whose_budget_is_spent_goes_on_when_there_is_more(make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    rows = [{"id": n, "prompt": f"prompt {n}"} for n in range(6)]
    with FaultServer() as server:
        more = f", backend: endpoint, base_url: '{server.url}', concurrency: 1, model: m"
        suite = suite_of(tmp_path / "suite", rows, f"{more}, budget: {{tokens: 260}}")
        [failure] = score([run], suite, device="cpu").failed
        assert "budget" in failure.reason
        assert 0 < sum(server.paid.values()) < 6
        suite = suite_of(tmp_path / "suite", rows, f"{more}, budget: {{tokens: 100000}}")
        assert score([run], suite, device="cpu").failed == ()
        assert all(times == 1 for times in server.paid.values())
    assert len(answers_of(run).answers) == 6


def test_vllm_answers_where_it_is_installed(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a fake vLLM, which says back how many tokens it was given: what is asked of it, not what it is."""

    class FakeLLM:
        def __init__(self, model: str, **options: Any):
            self.options = options
            limits = SimpleNamespace(max_model_len=options.get("max_model_len", 256))
            self.llm_engine = SimpleNamespace(model_config=limits)

        def generate(self, prompts: list[dict[str, Any]], settings: list[Any], use_tqdm: bool) -> list[Any]:
            assert self.options["dtype"] == "float32"
            assert all(len(p["prompt_token_ids"]) + s.max_tokens <= 256 for p, s in zip(prompts, settings, strict=True))
            texts = [f"read {len(prompt['prompt_token_ids'])}" for prompt in prompts]
            return [
                SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason="stop", token_ids=[1, 2])])
                for text in texts
            ]

    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(scoring.Loader, "load", None)
    run = make_run((1,), final=False)
    assert score([run], suite_of(tmp_path / "suite", more=", backend: vllm"), device="cpu").failed == ()
    answers = {answer.prompt_id: answer for answer in answers_of(run).answers}
    assert answers["fox"].texts == (f"read {answers['fox'].prompt_tokens}",)
    assert answers["long"].finish == ("too_long",)


def test_one_model_on_a_server_does_not_answer_for_two_checkpoints(make_run: MakeRun, tmp_path: Path):
    suite = suite_of(tmp_path / "suite", more=", backend: endpoint, base_url: 'http://127.0.0.1:9', model: mine")
    with pytest.raises(SuiteError, match="would answer for"):
        score([make_run((1, 2))], suite, device="cpu")


def test_what_decides_the_answers_is_in_the_hash_and_what_does_not_is_not(tmp_path: Path):
    base = job_of(tmp_path / "a", ROWS[:2])[0].task_hash
    assert job_of(tmp_path / "b", ROWS[:2], ", batch_size: 7")[0].task_hash == base
    changed = [", temperature: 0.5", ", seed: 5", ", chat: never", ", system: Hi", ", thinking: []", ", limit: 1"]
    hashes = {job_of(tmp_path / f"c{n}", ROWS[:2], more)[0].task_hash for n, more in enumerate(changed)}
    hashes |= {job_of(tmp_path / "d", [ROWS[0], ROWS[1] | {"reference": "five"}])[0].task_hash}
    assert len(hashes | {base}) == len(changed) + 2


def test_the_keys_of_answers_join_a_prompt_set(tmp_path: Path):
    job, how = job_of(tmp_path, ROWS[:3])
    _, answers = run_with(job, how, tmp_path / "log.jsonl", FakeEngine())
    prompts, *_ = load_prompts(job.spec)
    assert [a.prompt_key for a in answers] == [p.key for p in prompts]
    queries: list[Query] = []

    def listen(found: Sequence[Query], done: Any, take: Callable[[dict[str, Said]], None]) -> None:
        queries.extend(found)
        take({query.key: Said("r", "t", "stop", 1, 1, 0.1) for query in found})

    run_prompts(job, listen, tmp_path / "other.jsonl", template=None)
    assert [query.key.partition("/")[0] for query in queries] == sorted(p.key for p in prompts for _ in p.turns)
