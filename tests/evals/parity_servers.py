"""Small local servers that speak the documented formats of servers that are not installed here: fakes, by name.

Each has a real tiny model behind it, so that what it says of tokens and probabilities is true; only the program around
the model is made up. ``FakeVllm`` follows vLLM's extension ``prompt_logprobs``, ``FakeOllama`` Ollama's own API with
log-probabilities of what is generated, ``FakePlain`` gives texts and lengths, as ``transformers serve`` does.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from posttrain.data_tools.generate import ends_of
from posttrain.evals.models import load_model


class FakePlain:
    """A server of texts and lengths, which refuses fields that it does not know and prompts that are tokens.

    Args:
        folder: The model.
        name: What it is called.
        doubles_bos: Whether the tokenizer puts a BOS before the one of the template, a well-known fault.
        chats_only: Whether it takes no bare texts.
    """

    root = "/v1"

    def __init__(self, folder: Path, name: str = "served", *, doubles_bos: bool = False, chats_only: bool = False):
        self.loaded = load_model(str(folder), dtype="float32")
        self.tokenizer: Any = self.loaded.tokenizer
        self.name, self.doubles_bos, self.chats_only = name, doubles_bos, chats_only
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}{self.root}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def prompt_of(self, body: dict[str, Any]) -> list[int]:
        """Returns the tokens that a request asks to go on with."""
        if "messages" in body:
            text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
            return self.tokenizer(text, add_special_tokens=self.doubles_bos)["input_ids"]
        prompt = body["prompt"]
        return self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)

    def generate(self, prompt: list[int], number: int) -> tuple[list[int], list[dict[int, float]], bool]:
        """Goes on greedily: the tokens, each one's two likeliest with their log-probabilities, and whether it ended."""
        import torch

        ids, chances, stops = list(prompt), [], ends_of(self.loaded.model, self.tokenizer)
        for _ in range(number):
            with torch.no_grad():
                logits: Any = self.loaded.model(torch.tensor([ids])).logits[0, -1]
            best = logits.log_softmax(-1).topk(2)
            chances.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            ids.append(next(iter(chances[-1])))
            if ids[-1] in stops:
                return ids[len(prompt) :], chances, True
        return ids[len(prompt) :], chances, False

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Returns a status and what is answered."""
        if body["model"] != self.name:
            return 400, {"error": {"message": f"Server is pinned to '{self.name}'; requested '{body['model']}'."}}
        if "prompt_logprobs" in body:
            return 422, {"detail": "Unexpected fields in the request: {'prompt_logprobs'}"}
        if not isinstance(body.get("prompt", ""), str):
            return 400, {"detail": "prompt must be a string."}
        return 200, self.completion(path, body)

    def completion(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.prompt_of(body)
        ids, _, ended = self.generate(prompt, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if ended else "length"}
        chat = path.endswith("/chat/completions")
        choice |= {"message": {"role": "assistant", "content": self.text(ids)}} if chat else {"text": self.text(ids)}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}}


class FakeVllm(FakePlain):
    """With vLLM's ``prompt_logprobs`` and the log-probabilities of the chat protocol."""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        made = self.completion(path, body)
        choice, prompt = made["choices"][0], self.prompt_of(body)
        ids, chances, _ = self.generate(prompt, body["max_tokens"])
        if body.get("logprobs") and "messages" in body:
            choice["logprobs"] = {"content": [self._token(*pair) for pair in zip(ids, chances, strict=True)]}
        if "prompt_logprobs" in body:
            (made if "messages" in body else choice)["prompt_logprobs"] = self._prompt(prompt)
        return 200, made

    def _token(self, token: int, chances: dict[int, float]) -> dict[str, Any]:
        rivals = [{"token": self.tokenizer.decode([rival]), "logprob": chance} for rival, chance in chances.items()]
        return {"token": self.tokenizer.decode([token]), "logprob": chances[token], "top_logprobs": rivals}

    def _prompt(self, prompt: list[int]) -> list[Any]:
        import torch

        with torch.no_grad():
            logits: Any = self.loaded.model(torch.tensor([prompt])).logits[0]
        places: list[Any] = [None]
        for log_p, token in zip(logits.log_softmax(-1)[:-1], prompt[1:], strict=True):
            rank = int((log_p > log_p[token]).sum()) + 1
            place = {str(token): {"logprob": float(log_p[token]), "rank": rank, "decoded_token": "…"}}
            best = int(log_p.argmax())
            place.setdefault(str(best), {"logprob": float(log_p[best]), "rank": 1, "decoded_token": "…"})
            places.append(place)
        return places


class FakeOllama(FakePlain):
    """Ollama's own API since 0.12.11: counts of the prompt, log-probabilities of what is generated."""

    root = "/api"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] != self.name:
            return 404, {"error": f"model '{body['model']}' not found"}
        assert body["stream"] is False
        assert body.get("raw") is (True if path == "/api/generate" else None)
        assert body["options"]["temperature"] == 0
        prompt = self.prompt_of(body)
        ids, chances, ended = self.generate(prompt, body["options"]["num_predict"])
        made: dict[str, Any] = {"model": self.name, "done": True, "done_reason": "stop" if ended else "length"}
        made |= {"prompt_eval_count": len(prompt), "eval_count": len(ids)}
        text = self.text(ids)
        made |= {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
        if body.get("logprobs"):
            pairs = zip(ids, chances, strict=True)
            made["logprobs"] = [
                {
                    "token": self.tokenizer.decode([token]),
                    "logprob": found[token],
                    "top_logprobs": [{"token": self.tokenizer.decode([r]), "logprob": c} for r, c in found.items()],
                }
                for token, found in pairs
            ]
        return 200, made


def _handler(fake: FakePlain) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = ("/chat/completions", "/chat") if fake.chats_only else ("/completions", "/chat", "/generate")
            status, said = (
                fake.answer(self.path, body) if self.path.endswith(known) else (404, {"error": "no such path"})
            )
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
