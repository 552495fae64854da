"""Variables of the chat template reach tasks and prompt sets, and are part of a score's identity."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.evals.checkpoints import write_manifest
from posttrain.evals.definitions import define as define_task
from posttrain.evals.errors import SuiteError
from posttrain.evals.generations import define as define_prompts
from posttrain.evals.records import ScoreStore
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

from .conftest import CHOICES, PROMPTS, write_rows

MakeRun = Callable[..., Path]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}thought about{% endif %}{% endif %}"
)


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    from transformers import AutoTokenizer

    folder = make_run((1,), final=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "checkpoint-1")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "checkpoint-1")
    write_manifest(folder / "checkpoint-1", step=1, resumable=True)
    return folder


def files(name: str) -> dict[str, Any]:
    return {"data_files": {"test": name}}


def suite(folder: Path, variables: dict[str, Any], **more: Any) -> Path:
    write_rows(folder / "sums.jsonl", PROMPTS)
    write_rows(folder / "choices.jsonl", CHOICES)
    tasks = [
        {
            "task": "exact_match",
            "name": "sums",
            "data_files": {"test": "sums.jsonl"},
            "gen_kwargs": {"max_gen_toks": 3},
        },
        {"task": "multiple_choice", "name": "choices", "data_files": {"test": "choices.jsonl"}},
    ]
    prompts = [{"name": "talk", "path": "sums.jsonl", "max_new_tokens": 3}]
    path = folder / "mine.yaml"
    value = {"tasks": tasks, "prompts": prompts, "template_variables": variables, "dtype": "float32"}
    path.write_text(json.dumps(value | more))
    return path


def test_they_reach_tasks_and_prompt_sets(run: Path, tmp_path: Path):
    def asked(variables: dict[str, Any]) -> tuple[list[str], list[Any]]:
        report = score([run], suite(tmp_path, variables), device="cpu")
        assert report.failed == ()
        found = {record.task: run / record.samples_name for record in ScoreStore(run).load()[-3:]}
        prompts = [
            text for task in ("sums", "choices") for text in pq.read_table(found[task]).column("prompt").to_pylist()
        ]
        return prompts, pq.read_table(found["talk"]).column("prompt_tokens").to_pylist()

    plain, plain_tokens = asked({})
    told, told_tokens = asked({"enable_thinking": False})
    assert [text.endswith("assistant\nthought about") for text in told] == [True] * len(told)
    assert not any("thought about" in text for text in plain)
    assert all(b[-1] > a[-1] if isinstance(a, list) else b > a for a, b in zip(plain_tokens, told_tokens, strict=True))
    assert score([run], suite(tmp_path, {"enable_thinking": False}), device="cpu").skipped == 3
    note = "template_variables: the chat template reads no 'enable_thinkin'; did you mean 'enable_thinking'?"
    misspelt = score([run], suite(tmp_path, {"enable_thinkin": False}), device="cpu").done
    assert [note in record.notes for record in misspelt] == [True] * 3
    assert not any(note in record.notes for record in ScoreStore(run).load()[:6])


def test_they_are_part_of_what_is_measured_where_a_template_may_be_applied(tmp_path: Path):
    def hashes(variables: dict[str, Any], **more: Any) -> list[str]:
        found = load_suite(suite(tmp_path, variables, **more))
        tasks = [define_task(task, found).task_hash for task in found.tasks]
        return [*tasks, define_prompts(found.prompts[0], found).task_hash]

    none, off, other = hashes({}), hashes({"enable_thinking": False}), hashes({"effort": "low"})
    assert all(len({a, b, c}) == 3 for a, b, c in zip(none, off, other, strict=True))
    assert hashes({}, chat="never") == hashes({"enable_thinking": False}, chat="never")


def test_options_are_not_asked_of_a_model_that_is_to_think_first(tmp_path: Path):
    found = load_suite(suite(tmp_path, {"enable_thinking": True}))
    sums, choices = found.tasks
    define_task(sums, found)
    with pytest.raises(SuiteError, match="choices: the likelihood of an option is asked before any thought"):
        define_task(choices, found)
    define_task(choices.model_copy(update={"chat": "never"}), found)


def test_options_are_not_asked_within_a_thought_that_the_template_has_opened(run: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(run / "checkpoint-1")
    tokenizer.chat_template = TEMPLATE.replace("{% if enable_thinking", "{{ '<think>\n' }}{% if enable_thinking")
    tokenizer.save_pretrained(run / "checkpoint-1")
    write_manifest(run / "checkpoint-1", step=1, resumable=True)
    report = score([run], suite(tmp_path, {}, prompts=[]), device="cpu")
    [failure] = report.failed
    assert failure.task == "choices"
    assert "within a thought: the template ends in <think>" in failure.reason
    assert "chat: never" in failure.reason
    assert score([run], suite(tmp_path, {}, prompts=[], chat="never"), device="cpu").failed == ()


def test_what_cannot_take_them_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="`messages` is set by what is asked"):
        load_suite(suite(tmp_path, {"messages": "x"}))
    server = [{"name": "talk", "path": "sums.jsonl", "backend": "endpoint", "base_url": "http://localhost:1/v1"}]
    found = load_suite(suite(tmp_path, {"effort": "low"}, prompts=server))
    with pytest.raises(SuiteError, match=r"do not reach a server; say `extra: \{chat_template_kwargs"):
        define_prompts(found.prompts[0], found)


@pytest.mark.parametrize("known", [True, False], ids=["its template knows of thoughts", "its template does not"])
def test_what_a_task_scores_is_the_answer_without_thoughts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
):
    """The texts of a model that thinks, since no tiny one does: with a blank line, a stop string, in its thoughts."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    folder = run / "checkpoint-1"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE + "{# <think> #}" * known
    tokenizer.save_pretrained(folder)
    write_manifest(folder, step=1, resumable=True)
    stops = []

    def generate_until(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        stops.extend(request.args[1]["until"] for request in requests)
        right = [f"<think>so\n\n{n}?</think>\n\n{2 * n}\n\nnext" for n in range(len(requests) - 1)]
        whole = [*right, "<think>so\n\nit goes on"]
        return [text if stops[-1] == [] else text.split("\n\n")[0] for text in whole]

    monkeypatch.setattr(HFLM, "generate_until", generate_until)
    path = suite(tmp_path, {}, prompts=[])
    score([run], path, device="cpu")
    [found] = [record for record in ScoreStore(run).load() if record.task == "sums"]
    assert stops == ([] if known else [["\n\n"]] * len(PROMPTS)) + [[]] * len(PROMPTS)
    assert found.metrics[0].value == 0.75
    assert found.detail is not None
    assert found.detail["thinking"] == {"answers": 4, "thought": 4, "cut": 1}
    assert "1 of 4 never ended their thoughts: no answer" in found.notes


def test_tags_around_thoughts_are_told_where_they_are_special_tokens(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a model writes is set, since no tiny one thinks; decoding would take the tags and leave the thoughts."""
    import torch
    from posttrain.data_tools import generate
    from posttrain.evals.harness_model import HarnessModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "checkpoint-1"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    write_manifest(folder, step=1, resumable=True)
    said = tokenizer("<think>7, or 8?</think>4", add_special_tokens=False)["input_ids"]

    def written(self: Any, context: Any, *_: Any, **__: Any) -> Any:
        return torch.cat([context, torch.tensor([said] * len(context))], 1)

    monkeypatch.setattr(HarnessModel, "_model_generate", written)
    monkeypatch.setattr(generate, "draw", lambda model, tokenizer, prompts, *_: [(said, False)] * len(prompts))
    score([run], suite(tmp_path, {}), device="cpu")
    found = {record.task: record for record in ScoreStore(run).load()}
    assert (found["sums"].detail or {})["thinking"] == {"answers": 4, "thought": 4, "cut": 0}
    assert json.loads(pq.read_table(run / found["sums"].samples_name)["responses"][0].as_py()[0]) == ["4"]
    assert pq.read_table(run / found["talk"].samples_name)["texts"].to_pylist() == [["4"]] * len(PROMPTS)
