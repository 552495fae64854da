"""Prompts to answers: by a model in this process, and by an endpoint over real HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import ask
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.spec import SourceSpec

Reply = Callable[[dict[str, Any], int], tuple[int, dict[str, Any]]]


class Endpoint:
    """An OpenAI-compatible server on a real socket; ``reply`` makes a status and a body of each request."""

    def __init__(self, reply: Reply):
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busy = self.most_busy = 0
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.requests.append(body)
                    endpoint.keys.append(self.headers["Authorization"])
                    endpoint.busy += 1
                    endpoint.most_busy = max(endpoint.most_busy, endpoint.busy)
                    times = sum(other["messages"] == body["messages"] for other in endpoint.requests)
                try:
                    threading.Event().wait(0.02)
                    status, answer = reply(body, times)
                    data = json.dumps(answer).encode()
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    if status >= 500:
                        self.send_header("retry-after-ms", "5")
                    self.end_headers()
                    self.wfile.write(data)
                finally:
                    with lock:
                        endpoint.busy -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Endpoint]]:
    started: list[Endpoint] = []

    def start(reply: Reply) -> Endpoint:
        started.append(Endpoint(reply))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def says(text: str, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def upper(body: dict[str, Any], times: int) -> tuple[int, dict[str, Any]]:
    return says(body["messages"][-1]["content"].upper())


def prompts(folder: Path, number: int = 12) -> SourceSpec:
    rows = [{"prompt": [{"role": "user", "content": f"question {index}"}]} for index in range(number)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSpec(path="prompts.jsonl")


def run(folder: Path, answerer: ask.Answerer, source: SourceSpec | None = None, **options: Any) -> list[Any]:
    ask.answer(source or prompts(folder), folder / "out", answerer, base_dir=folder, **options)
    return [json.loads(line)["messages"] for line in (folder / "out" / ask.ANSWERS).read_text().splitlines()]


def test_answers_come_in_the_order_of_the_prompts_and_train_as_messages(
    tmp_path: Path, serve: Callable[[Reply], Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.data_tools.dataset import load

    monkeypatch.setenv("MY_KEY", "secret")
    endpoint = serve(upper)
    answerer = ask.Answerer("m", endpoint.url, api_key_env="MY_KEY", concurrency=3)
    found = run(tmp_path, answerer)
    assert found == [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"QUESTION {i}"}]
        for i in range(12)
    ]
    assert set(endpoint.keys) == {"Bearer secret"}
    assert 1 < endpoint.most_busy <= 3
    rows = load(SourceSpec(path=str(tmp_path / "out" / ask.ANSWERS)), tmp_path, ("messages",))
    assert len(list(rows)) == 12
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())


def test_a_killed_run_asks_only_what_is_left(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(upper)
    answerer = ask.Answerer("m", endpoint.url)
    whole = run(tmp_path, answerer)
    log = tmp_path / "out" / ask.LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # as a kill leaves it
    (tmp_path / "out" / ask.ANSWERS).unlink()
    endpoint.requests.clear()
    assert run(tmp_path, answerer) == whole
    assert len(endpoint.requests) == 7
    endpoint.requests.clear()
    assert run(tmp_path, answerer) == whole
    assert endpoint.requests == []


def test_a_failed_request_is_repeated(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(lambda body, times: upper(body, times) if times > 1 else (503, {"error": {"message": "busy"}}))
    assert len(run(tmp_path, ask.Answerer("m", endpoint.url))) == 12
    assert len(endpoint.requests) == 24


def test_what_cannot_be_used_is_counted_by_its_reason(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    def reply(body: dict[str, Any], times: int) -> tuple[int, dict[str, Any]]:
        number = int(body["messages"][-1]["content"].split()[1])
        special = {3: says("and so on and", "length"), 4: says("  "), 5: (400, {"error": {"message": "no"}})}
        return special.get(number) or upper(body, times)

    endpoint = serve(reply)
    answerer = ask.Answerer("m", endpoint.url, concurrency=1)
    with pytest.raises(DataError, match="3 of 12 rows cannot be used"):
        run(tmp_path, answerer)
    assert len(run(tmp_path, answerer, max_bad_share=0.5)) == 9
    report = json.loads((tmp_path / "out" / ask.REPORT).read_text())
    assert report["dropped"] == {ask.CUT: 1, ask.EMPTY: 1, "the request failed (BadRequestError)": 1}


def test_an_endpoint_that_refuses_ends_the_run(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(lambda body, times: (401, {"error": {"message": "wrong key"}}))
    with pytest.raises(PosttrainError, match=r"does not answer.*wrong key"):
        run(tmp_path, ask.Answerer("m", endpoint.url, concurrency=1))
    assert len(endpoint.requests) < 4


def test_an_endpoint_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="does not answer"):
        run(tmp_path, ask.Answerer("m", "http://127.0.0.1:9/v1", retries=0))


def test_a_missing_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NO_SUCH_KEY is not set"):
        run(tmp_path, ask.Answerer("m", "http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"))


def test_other_settings_need_another_folder(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(upper)
    run(tmp_path, ask.Answerer("m", endpoint.url))
    with pytest.raises(DataError, match="made with another temperature"):
        run(tmp_path, ask.Answerer("m", endpoint.url, temperature=1.0))
    assert len(run(tmp_path, ask.Answerer("m", endpoint.url, concurrency=2))) == 12, "speed changes no answer"


def test_several_samples_are_asked_apart(tmp_path: Path, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(lambda body, times: says(f"seed {body['seed']}"))
    found = run(tmp_path, ask.Answerer("m", endpoint.url, temperature=1.0, seed=5), samples=2)
    assert [messages[-1]["content"] for messages in found[:4]] == ["seed 5", "seed 6", "seed 5", "seed 6"]
    with pytest.raises(DataError, match="greedy answers are all the same"):
        run(tmp_path, ask.Answerer("m", endpoint.url), samples=2)


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
        found.append(run(folder, ask.Answerer(str(chat_model), max_new_tokens=24, batch_size=size)))
    assert found[0] == found[1] == found[2]
    answers = {messages[-1]["content"] for messages in found[0]}
    assert answers <= {"yes", "yes yes", "yes yes yes"}
    assert answers


def test_other_weights_under_the_same_name_need_another_folder(
    tmp_path: Path, chat_model: Path, tiny_model_dir: Path
) -> None:
    import shutil

    folder = shutil.copytree(chat_model, tmp_path / "model")
    run(tmp_path, ask.Answerer(str(folder), max_new_tokens=24))
    shutil.copy(tiny_model_dir / "model.safetensors", folder)
    with pytest.raises(DataError, match="made with another weights"):
        run(tmp_path, ask.Answerer(str(folder), max_new_tokens=24))


def test_a_prompt_without_room_for_an_answer_is_dropped(tmp_path: Path, chat_model: Path) -> None:
    rows = [{"prompt": "question 1"}, {"prompt": "question " * 400}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSpec(path="long.jsonl")
    assert len(run(tmp_path, ask.Answerer(str(chat_model), max_new_tokens=24), source, max_bad_share=0.5)) == 1
    assert json.loads((tmp_path / "out" / ask.REPORT).read_text())["dropped"] == {ask.TOO_LONG: 1}


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="no chat template"):
        run(tmp_path, ask.Answerer(str(tiny_model_dir)))
