"""vLLM's place taken by transformers: what lm-eval's class imports of it, with a real tiny model behind.

It takes the arguments that vLLM documents and no others, and refuses what is longer than the model takes, as vLLM does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

VERSION = "0.11.0"
asked: list[tuple[list[int], "SamplingParams"]] = []  # all prompts of all engines, with their settings


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: Sequence[str] = field(default_factory=list)
    max_tokens: int = 16
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    repetition_penalty: float = 1.0


class LLM:
    def __init__(self, model: str, dtype: str, max_model_len: int | None, **_: Any):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        limit = max_model_len or self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=limit))

    def generate(
        self, prompts: Sequence[dict[str, Any]], sampling_params: Sequence[SamplingParams], use_tqdm: bool, **_: Any
    ) -> list[Any]:
        limit = self.llm_engine.model_config.max_model_len
        found = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            ids = prompt["prompt_token_ids"]
            assert len(ids) + how.max_tokens <= limit, f"{len(ids)} + {how.max_tokens} tokens"
            asked.append((ids, how))
            found.append(self._read(ids) if how.prompt_logprobs else self._written(ids, how))
        return found

    def _read(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            logs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows: list[Any] = [None]
        for row, token in zip(logs[:-1], ids[1:], strict=True):
            rows.append({i: SimpleNamespace(logprob=float(row[i])) for i in (token, int(row.argmax()))})
        return SimpleNamespace(prompt_logprobs=rows)

    def _written(self, ids: list[int], how: SamplingParams) -> Any:
        import torch

        torch.manual_seed(how.seed or 0)
        drawn = {"temperature": how.temperature, "top_p": how.top_p} if how.temperature else {}
        limits = {"max_new_tokens": how.max_tokens, "do_sample": bool(drawn)}
        prompt = torch.tensor([ids])
        made = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **limits, **drawn)
        text = self.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=how.skip_special_tokens)
        for stop in how.stop:
            text = text.split(stop)[0]
        return SimpleNamespace(outputs=[SimpleNamespace(text=text)])


def install(folder: Path) -> dict[str, ModuleType]:
    """Returns the modules to put into ``sys.modules``; a folder to put on ``sys.path`` gets what names the version."""
    (folder / f"vllm-{VERSION}.dist-info").mkdir()
    (folder / f"vllm-{VERSION}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n"
    )
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": object},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **_: None},
        "vllm.tokenizers": {"get_tokenizer": _tokenizer},
    }
    modules = {}
    for name, members in parts.items():
        modules[name] = ModuleType(name)
        modules[name].__dict__.update(members, __spec__=ModuleSpec(name, None), __path__=[])
    return modules


def _tokenizer(name: str, **_: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def forget() -> None:
    """Takes back what the import of lm-eval's class left, but for the class itself."""
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]
    asked.clear()
