"""Tasks by vLLM: lm-eval's class for it over a fake vLLM with a real tiny model, beside transformers."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.evals.checkpoints import write_manifest
from posttrain.evals.definitions import define
from posttrain.evals.errors import SuiteError
from posttrain.evals.report import build
from posttrain.evals.score import define_all, score
from posttrain.evals.suite_files import load_suite
from posttrain.recipes.cli import app
from typer.testing import CliRunner

from . import fake_vllm
from .conftest import CHOICES, PROMPTS, write_rows

MakeRun = Callable[..., Path]
LONG = "hello " * 400  # the tiny model takes 256 tokens


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A fake vLLM, installed; what it was asked."""
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name, module in fake_vllm.install(folder).items():
        monkeypatch.setitem(sys.modules, name, module)
    fake_vllm.asked.clear()
    yield fake_vllm.asked
    fake_vllm.forget()


def suite(folder: Path, more: dict[str, Any] | None = None, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "choices.jsonl", [*CHOICES, CHOICES[1] | {"question": LONG}])
    write_rows(folder / "sums.jsonl", [*PROMPTS, PROMPTS[1] | {"prompt": LONG}])
    tasks: list[dict[str, Any]] = [
        {"task": "multiple_choice", "name": "choices", "data_files": {"test": "choices.jsonl"}},
        {"task": "exact_match", "name": "sums", "data_files": {"test": "sums.jsonl"}, "gen_kwargs": {"max_gen_toks": 4}}
        | (more or {}),
    ]
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tasks": tasks, "dtype": "float32", "too_long": "skip"} | keys))
    return path


def responses(run: Path, record: Any) -> list[Any]:
    rows = pq.read_table(run / record.samples_name).to_pylist()
    return [[json.loads(text) for text in row["responses"]] for row in rows]


def add_bos(run: Path) -> int:
    """Has the tokenizer of a run's checkpoint begin every text; returns with what."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = run / "checkpoint-1"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"
    begin = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    write_manifest(folder, step=1, resumable=False)
    return tokenizer.bos_token_id


@pytest.mark.parametrize("chat", ["never", "always"])
def test_it_is_asked_what_transformers_is_asked(vllm: list[Any], make_run: MakeRun, tmp_path: Path, chat: str):
    run = make_run((1,), final=False)
    begin = add_bos(run)
    plain = score([run], suite(tmp_path / "a", chat=chat), device="cpu")
    found = score([run], suite(tmp_path / "a", chat=chat, backend="vllm"), device="cpu")
    assert (plain.failed, found.failed, len(found.done)) == ((), (), 2)
    for one, other in zip(plain.done, found.done, strict=True):
        assert one.key != other.key
        assert other.detail is not None
        assert (other.detail["backend"], other.detail["version"]) == ("vllm", fake_vllm.VERSION)
        assert [metric.name for metric in one.metrics] == [metric.name for metric in other.metrics]
        for first, second in zip(responses(run, one), responses(run, other), strict=True):
            flat = [[value for part in row for value in (part if isinstance(part, list) else [part])] for row in first]
            same = [[value for part in row for value in (part if isinstance(part, list) else [part])] for row in second]
            assert [
                [v if isinstance(v, str | bool) else pytest.approx(v, abs=1e-4) for v in row] for row in flat
            ] == same
        assert "1 of 5 items are longer than the model takes: left out" in other.notes
    assert [ids.count(begin) for ids, _ in vllm] == [1] * len(vllm)
    assert all(ids[0] == begin for ids, _ in vllm)
    titles = [column.variant for column in build([run]).columns]
    assert sum(f"vLLM {fake_vllm.VERSION}" in title for title in titles) == 2
    assert len(titles) == 4


def test_thoughts_are_not_stopped_in(vllm: list[Any], make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    folder = run / "checkpoint-1"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    )
    write_manifest(folder, step=1, resumable=False)
    path = suite(tmp_path / "a", chat="always", backend="vllm", template_variables={"enable_thinking": True})
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"tasks": value["tasks"][1:]}))
    [done] = score([run], path, device="cpu").done
    assert (done.detail or {})["thinking"] == {"answers": 4, "thought": 4, "cut": 4}
    assert all(list(how.stop) == ["<|endoftext|>"] for _, how in vllm)


def test_samples_are_drawn_apart_and_alike_from_call_to_call(vllm: list[Any], make_run: MakeRun, tmp_path: Path):
    drawn = {"sampling": {"name": "warm", "temperature": 0.7, "top_p": 0.9, "samples": 3}}
    run = make_run((1,), final=False)
    assert score([run], suite(tmp_path / "a", drawn, backend="vllm"), device="cpu").failed == ()
    settings = [how for _, how in vllm if not how.prompt_logprobs]
    assert len({how.seed for how in settings}) == len(settings) == 12
    assert {(how.temperature, how.top_p) for how in settings} == {(0.7, 0.9)}
    with pytest.raises(SuiteError, match="beam search"):
        define_all(load_suite(suite(tmp_path / "b", {"sampling": {"name": "beam", "beams": 2}}, backend="vllm")))


def test_an_adapter_is_refused_with_what_to_do(vllm: list[Any], make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    folder = run / "checkpoint-1"
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    write_rows(folder / "adapter_config.json", [{"base_model_name_or_path": str(folder), "peft_type": "LORA"}])
    write_manifest(folder, step=1, resumable=False)
    failed = score([run], suite(tmp_path / "a", backend="vllm"), device="cpu").failed
    assert [failure.exit_code for failure in failed] == [1, 1]
    assert all("this is an adapter" in failure.reason and "posttrain export" in failure.reason for failure in failed)
    assert vllm == []


def test_the_version_is_part_of_what_identifies_a_score(
    vllm: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import posttrain.evals.definitions as definitions

    hashes = []
    for version in ("0.11.0", "0.12.0"):
        monkeypatch.setattr(definitions, "vllm_version", lambda version=version: version)
        spec = load_suite(suite(tmp_path / "a", backend="vllm"))
        hashes.append(define(spec.tasks[0], spec).task_hash)
    spec = load_suite(suite(tmp_path / "a"))
    assert len({*hashes, define(spec.tasks[0], spec).task_hash}) == 3


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("command", ["check", "score"])
def test_it_is_asked_for_where_it_is_missing(make_run: MakeRun, tmp_path: Path, command: str):
    path = str(suite(tmp_path / "a", backend="vllm"))
    arguments = [path] if command == "check" else [str(make_run((1,))), "--suite", path]
    found = CliRunner().invoke(app, [command, *arguments])
    told = found.output + (str(found.exception) if command == "score" else "")
    assert told.count("vLLM is not installed") == 1
    assert "pip install vllm" in told
    assert (found.exit_code if command == "check" else getattr(found.exception, "exit_code", None)) == 2


def test_lm_evals_class_is_what_it_was(vllm: list[Any]):
    """Fails when lm-eval changes what ``evals/vllm_tasks.py`` relies on."""
    from lm_eval.models.vllm_causallms import VLLM

    kind: Any = VLLM
    takes = inspect.signature(kind.__init__).parameters
    assert {"pretrained", "dtype", "max_length", "seed"} <= takes.keys()
    parameters = {
        "apply_chat_template": ["self", "chat_history", "add_generation_prompt"],
        "tok_encode": ["self", "string", "add_special_tokens", "kwargs"],
        "_encode_pair": ["self", "context", "continuation"],
        "loglikelihood": ["self", "requests", "disable_tqdm"],
        "loglikelihood_rolling": ["self", "requests", "disable_tqdm"],
        "generate_until": ["self", "requests", "disable_tqdm"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(kind, name)).parameters) == expected, name
    assert "max_cxt_len = self.max_length - 1" in inspect.getsource(kind._loglikelihood_tokens)
