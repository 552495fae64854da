"""Continuous batching: taken where its answers are the same and come sooner, else left with the reason said.

It runs on a CPU too, so the answers are real; that the device is a GPU, and the time, are given.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.evals import harness_model
from posttrain.evals.continuous import Continuous
from posttrain.evals.score import score

from .conftest import write_rows

MakeRun = Callable[..., Path]
FASTER, SLOWER = (0.0, 3.0, 10.0, 11.0), (0.0, 1.0, 10.0, 13.0)  # begin and end of padded batches, then of ours

# Without limits the cache takes most of the memory that is free.
MEMORY = {"page_size": 32, "num_blocks": 64, "max_batch_tokens": 256, "max_requests_per_batch": 16}


def answered(
    make_run: MakeRun, folder: Path, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], **settings: Any
) -> tuple[Any, list[str]]:
    """Scores a task of 36 prompts; returns its score and the texts."""
    folder.mkdir()
    write_rows(folder / "sums.jsonl", [{"prompt": "hello " * (n % 7) + f"{n} and", "answer": "1"} for n in range(36)])
    task = {"task": "exact_match", "name": "sums", "data_files": {"test": "sums.jsonl"}}
    task["gen_kwargs"] = {"max_gen_toks": 8, "until": ["e", "\n"]} | settings
    (folder / "mine.yaml").write_text(json.dumps({"tasks": [task], "chat": "never", "dtype": "float32"}))
    if times:
        given = partial(Continuous, may_pay=lambda model: True, clock=iter(times).__next__, **MEMORY)
        monkeypatch.setattr(harness_model, "Continuous", given)
    run = make_run((1,), final=False, name=f"run-{folder.name}")
    report = score([run], folder / "mine.yaml", device="cpu")
    assert report.failed == ()
    rows = pq.read_table(run / report.done[0].samples_name).column("responses").to_pylist()
    return report.done[0], [json.loads(row[0])[0] for row in rows]


def test_it_gives_the_same_texts_and_is_taken_where_it_is_faster(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, expected = answered(make_run, tmp_path / "a", monkeypatch, ())
    assert "continuous" not in (plain.detail or {})
    faster, texts = answered(make_run, tmp_path / "b", monkeypatch, FASTER)
    assert texts == expected
    assert len(set(texts)) > 10
    assert min(map(len, texts)) < 8 < max(map(len, texts))  # stop strings end some
    assert faster.detail is not None
    assert (faster.detail["backend"], faster.detail["speedup"]) == ("continuous_batching", 3.0)
    assert faster.metrics == plain.metrics
    assert faster.notes == plain.notes
    slower, texts = answered(make_run, tmp_path / "c", monkeypatch, SLOWER)
    assert texts == expected
    assert (slower.detail or {}).get("backend") != "continuous_batching"
    told = "generated without continuous batching: it took 3 s for 4 answers, padded batches 1 s"
    assert told in slower.notes


def test_other_texts_or_an_error_leave_it(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import LlamaForCausalLM

    _, expected = answered(make_run, tmp_path / "a", monkeypatch, ())
    generate: Any = LlamaForCausalLM.generate_batch

    def changed(self: Any, *args: Any) -> Any:
        found = generate(self, *args)
        for output in found.values():
            output.generated_tokens = [5, *output.generated_tokens]
        return found

    def failing(self: Any, *args: Any) -> Any:
        found = generate(self, *args)
        next(iter(found.values())).error = "no memory"
        return found

    for number, (broken, told) in enumerate(
        [(changed, "4 of 4 answers differed"), (failing, "no memory"), (lambda *_: {}, "without an answer")]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(LlamaForCausalLM, "generate_batch", broken)
            found, texts = answered(make_run, tmp_path / f"b{number}", patch, FASTER)
        assert texts == expected
        assert any("without continuous batching" in note and told in note for note in found.notes)


def test_it_is_not_tried_on_what_is_drawn_or_on_few_requests(tiny_model_dir: Path):
    from lm_eval.api.instance import Instance

    def asked(count: int, **settings: Any) -> list[Any]:
        return [Instance("generate_until", {}, (f"{n}", {"until": [], **settings}), n) for n in range(count)]

    def write(requests: list[Any]) -> list[str]:
        return [request.args[0] for request in requests]

    def refuse(_: Any) -> bool:
        pytest.fail("a device is asked for last")

    few = Continuous(None, None, lambda text: [1], refuse)
    assert few.texts(asked(5), 256, 8, write) == [*"01234"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    engine = Continuous(model, tokenizer, lambda text: [1], lambda model: True, iter(()).__next__)
    for settings in ({"do_sample": True, "temperature": 0.5}, {"num_beams": 3}, {"repetition_penalty": 1.2}):
        assert len(engine.texts(asked(40, **settings), 256, 8, write)) == 40
        assert engine.record is None
    assert len(engine.texts(asked(40), 8, 8, write)) == 40  # no room for prompt and answer
    assert engine.record is None
    assert Continuous(model, tokenizer, lambda text: [1]).texts(asked(40), 256, 8, write)[39] == "39"  # on a CPU
