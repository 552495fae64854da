"""The client for endpoints against a real server: `transformers serve` with a model that was built in code."""

from pathlib import Path
from typing import Any

import pytest
from posttrain import chat_templates
from posttrain.data_tools.endpoint import EndpointSpec, Reply, Request
from posttrain.data_tools.endpoint_client import Endpoint

from ..model_server import serving


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_real_server_answers_once_and_its_lack_of_logprobs_is_found(tmp_path: Path, chat_model: Path) -> None:
    requests = [Request(({"role": "user", "content": f"question {i}"},), 6) for i in range(5)]
    record = tmp_path / "record.jsonl"
    with serving(chat_model) as url:
        spec = EndpointSpec(
            model=str(chat_model), base_url=url, concurrency=2, timeout=60, budget={"tokens": 100_000}, retries=2
        )
        endpoint = Endpoint(spec, record)
        replies: list[Reply] = []
        endpoint.ask(requests, lambda _, reply: replies.append(reply))
        assert [reply.error for reply in replies] == [None] * 5
        assert {reply.finish for reply in replies} <= {"stop", "length"}
        assert all(0 < (reply.completion_tokens or 0) <= 6 < (reply.prompt_tokens or 0) for reply in replies)
        assert endpoint.spent.calls == 5
        counted = sum((reply.prompt_tokens or 0) + (reply.completion_tokens or 0) for reply in replies)
        assert endpoint.spent.tokens == counted
        assert not endpoint.probe_logprobs(), "if it has learnt to, say so in the documentation"
    again: list[Reply] = []
    after = Endpoint(spec, record)
    after.ask(requests, lambda _, reply: again.append(reply))
    assert sorted(reply.text for reply in again) == sorted(reply.text for reply in replies)
    assert not after.probe_logprobs(), "the server is gone, but the record knows"
