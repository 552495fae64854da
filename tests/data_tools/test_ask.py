"""Prompts to answers: by a model in this process, and by an endpoint over real HTTP."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import ask
from posttrain.data_tools.endpoint import Reply
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.generate import Sampling
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals.checkpoints import model_hash
from posttrain.evals.models import load_language_model
from posttrain.evals.runs import locate

from ..evals.headed import headed_model, save_run
from ..fault_server import FaultServer, each


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(delay=0.02) as server:
        yield server


def prompts(folder: Path, number: int = 12) -> Path:
    rows = [{"prompt": [{"role": "user", "content": f"question {index}"}]} for index in range(number)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "prompts.jsonl"


def run(
    folder: Path, model: Path | str, base_url: str | None = None, source: Path | None = None, **options: Any
) -> Any:
    given = {"prompts": str(source or prompts(folder)), "model": str(model), "base_url": base_url}
    out = folder / "out"
    identify = lambda name: model_hash(locate(name))  # noqa: E731
    ask.answer(ask.AnswersSpec(**given, **options), out, loader=load_language_model, identify=identify)
    return [json.loads(line)["messages"] for line in (out / ask.ANSWERS).read_text().splitlines()]


def test_answers_come_in_the_order_of_the_prompts_and_train_as_messages(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.data_tools.dataset import load

    monkeypatch.setenv("MY_KEY", "secret")
    found = run(tmp_path, "m", server.url, api_key_env="MY_KEY", concurrency=3)
    assert found == [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"QUESTION {i}"}]
        for i in range(12)
    ]
    assert set(server.keys) == {"Bearer secret"}
    assert 1 < server.most_busy <= 3
    rows = load(SourceSpec(path=str(tmp_path / "out" / ask.ANSWERS)), tmp_path, ("messages",))
    assert len(list(rows)) == 12
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())


def test_a_killed_run_asks_only_what_is_left(tmp_path: Path, server: FaultServer) -> None:
    whole = run(tmp_path, "m", server.url)
    log, record = tmp_path / "out" / ask.LOG, tmp_path / "out" / ask.RECORD
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # as a kill leaves it
    (tmp_path / "out" / ask.ANSWERS).unlink()
    assert run(tmp_path, "m", server.url) == whole
    assert len(server.requests) == 12, "what was paid for is in the record"
    paid = [line for line in record.read_bytes().splitlines(keepends=True) if b'"got"' in line]
    log.write_bytes(b"".join(lines[:5]))
    record.write_bytes(b"".join(paid[:8]) + paid[8][:9])
    assert run(tmp_path, "m", server.url) == whole
    assert len(server.requests) == 12 + 4
    assert run(tmp_path, "m", server.url) == whole
    assert len(server.requests) == 12 + 4


def test_a_failed_request_is_repeated(tmp_path: Path, server: FaultServer) -> None:
    server.plan = each("503:0.005")
    assert len(run(tmp_path, "m", server.url)) == 12
    assert len(server.requests) == 24


def test_what_cannot_be_used_is_counted_by_its_reason(tmp_path: Path, server: FaultServer) -> None:
    faults = {"question 3": "length", "question 4": "empty", "question 5": "400", "question 6": "refusal"}
    server.plan = lambda body, times: faults.get(body["messages"][-1]["content"])
    with pytest.raises(DataError, match="4 of 12 rows cannot be used"):
        run(tmp_path, "m", server.url, concurrency=1)
    assert len(run(tmp_path, "m", server.url, concurrency=1, max_bad_share=0.5)) == 8
    report = json.loads((tmp_path / "out" / ask.REPORT).read_text())
    failed = {"the request failed (BadRequestError)": 1, "the model refused": 1}
    assert report["dropped"] == {ask.CUT: 1, ask.EMPTY: 1, **failed}
    assert len(server.requests) == 12 + 1, "only what cost nothing is asked again"


def test_an_endpoint_that_refuses_ends_the_run(tmp_path: Path, server: FaultServer) -> None:
    server.plan = each("401")
    with pytest.raises(PosttrainError, match=r"does not answer.*planted 401"):
        run(tmp_path, "m", server.url, concurrency=1)
    assert len(server.requests) == 1


def test_an_endpoint_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="does not answer"):
        run(tmp_path, "m", "http://127.0.0.1:9/v1", retries=0)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="base_url: not an endpoint"):
        run(tmp_path / "other", "m", "localhost:8000")


def test_a_missing_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NO_SUCH_KEY is not set"):
        run(tmp_path, "m", "http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")


def test_other_settings_need_another_folder(tmp_path: Path, server: FaultServer) -> None:
    run(tmp_path, "m", server.url)
    with pytest.raises(DataError, match="made with another temperature"):
        run(tmp_path, "m", server.url, temperature=1.0)
    assert len(run(tmp_path, "m", server.url, concurrency=2)) == 12, "speed changes no answer"


def test_prompts_are_not_written_over_by_answers(tmp_path: Path, server: FaultServer) -> None:
    (tmp_path / "out").mkdir()
    source = prompts(tmp_path).rename(tmp_path / "out" / ask.ANSWERS)
    before = source.read_bytes()
    with pytest.raises(DataError, match="would be written over by its own rows"):
        run(tmp_path, "m", server.url, source)
    assert source.read_bytes() == before
    assert not server.requests


def test_several_samples_are_asked_apart(tmp_path: Path) -> None:
    class Seeded(FaultServer):
        def answer(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
            messages = [{"role": "user", "content": f"seed {body.get('seed')}"}]
            return super().answer({**body, "messages": messages}, fault)

    with Seeded() as server:
        found = run(tmp_path, "m", server.url, temperature=1.0, seed=5, samples=2)
        assert [messages[-1]["content"] for messages in found[:4]] == ["SEED 5", "SEED 6", "SEED 5", "SEED 6"]
        with pytest.raises(DataError, match="greedy answers are all the same"):
            run(tmp_path, "m", server.url, samples=2)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with ChatML, fine-tuned until it answers a question with its own number."""
    import torch
    from posttrain import chat_templates
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("chat")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    template = chat_templates.load("chatml")
    chat_templates.install(template, tokenizer)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "yes " * (1 + i % 3)}],
            tokenize=False,
        )
        for i in range(12)
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_answers_as_it_would_alone_whatever_the_batch(tmp_path: Path, chat_model: Path) -> None:
    found = []
    for size in (1, 5, 12):
        folder = tmp_path / str(size)
        folder.mkdir()
        found.append(run(folder, chat_model, max_new_tokens=24, batch_size=size))
    assert found[0] == found[1] == found[2]
    answers = {messages[-1]["content"] for messages in found[0]}
    assert answers <= {"yes", "yes yes", "yes yes yes"}
    assert answers


@pytest.mark.parametrize("change", ["weights", "merges", "generation config", "template"])
def test_another_model_under_the_same_name_needs_another_folder(
    tmp_path: Path, chat_model: Path, tiny_model_dir: Path, change: str
) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "model")
    run(tmp_path, folder, max_new_tokens=24)
    if change == "weights":
        shutil.copy(tiny_model_dir / "model.safetensors", folder)
    elif change == "merges":
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    elif change == "template":
        (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    else:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    with pytest.raises(DataError, match="made with another model"):
        run(tmp_path, folder, max_new_tokens=24)


def test_a_model_that_was_moved_is_the_same_model(tmp_path: Path, chat_model: Path) -> None:
    first = shutil.copytree(chat_model, tmp_path / "model")
    found = run(tmp_path, first, max_new_tokens=24)
    moved = shutil.move(first, tmp_path / "elsewhere")
    log = (tmp_path / "out" / ask.LOG).read_text()
    assert run(tmp_path, moved, max_new_tokens=24) == found
    assert (tmp_path / "out" / ask.LOG).read_text() == log, "nothing is asked twice"


def test_a_prompt_without_room_for_an_answer_is_dropped(tmp_path: Path, chat_model: Path) -> None:
    rows = [{"prompt": "question 1"}, {"prompt": "question " * 400}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = tmp_path / "long.jsonl"
    assert len(run(tmp_path, chat_model, source=source, max_new_tokens=24, max_bad_share=0.5)) == 1
    assert json.loads((tmp_path / "out" / ask.REPORT).read_text())["dropped"] == {ask.NO_ROOM: 1}


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="no chat template"):
        run(tmp_path, str(tiny_model_dir))


def test_a_model_that_is_missing_or_writes_no_text_is_one_clear_error(tmp_path: Path, tiny_model_dir: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(PosttrainError, match=f"{missing}: neither a run folder nor a model"):
        run(tmp_path, str(missing))
    classifier = save_run(tmp_path / "classifier", headed_model(tiny_model_dir, 2), tiny_model_dir)
    (tmp_path / "other").mkdir()
    with pytest.raises(PosttrainError, match="the checkpoint is a classifier"):
        run(tmp_path / "other", classifier)


def test_a_prompt_needs_room_for_the_whole_of_an_answer_or_for_what_it_may_be_cut_to() -> None:
    def engine(prompts: list[list[int]], how: Sampling, keys: list[str]) -> list[Reply]:
        return [Reply("", str(how.max_new_tokens), "stop") for _ in prompts]

    def finishes(least: int) -> list[tuple[str, str | None]]:
        found: dict[str, Reply] = {}
        queries = [ask.Query(str(length), [], length) for length in (246, 247, 255, 256)]
        encode = lambda queries: [[5] * query.sample for query in queries]  # noqa: E731
        ask.Local(encode, engine, Sampling(10), 256, least)(queries, (), found.update)
        return [(found[query.key].text, found[query.key].finish) for query in queries]

    too_long = ("", ask.TOO_LONG)
    assert finishes(10) == [("10", "stop"), too_long, too_long, too_long]
    assert finishes(1) == [("10", "stop"), ("9", "stop"), ("1", "stop"), too_long]


def test_batches_hold_only_prompts_with_equal_room() -> None:
    asked: list[list[str]] = []

    def engine(prompts: list[list[int]], how: Sampling, keys: list[str]) -> list[Reply]:
        asked.append(keys)
        return [Reply("", "", "stop") for _ in prompts]

    queries = [ask.Query(str(number), [], number) for number in range(4)]
    lengths = [13, 3, 2, 1]  # of which the first leaves room for 3 tokens, the others for all 8
    ask.Local(lambda _: [[5] * length for length in lengths], engine, Sampling(8, batch_size=2), 16)(queries, (), dict)
    assert asked == [["0"], ["1", "2"], ["3"]]
