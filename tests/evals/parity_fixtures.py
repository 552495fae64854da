"""A tiny adapter run whose merged model is right, and ways to make it wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..conftest import build_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>"]


def make_run(folder: Path, dtype: str = "float32") -> Path:
    """Makes a run folder: a base beside it, an adapter in it, and at its root the two merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from posttrain.evals.checkpoints import write_manifest
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = build_tokenizer(SPECIALS, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>")
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,  # sharp enough for differences to show
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    base, run = folder / "base", folder / "run"
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    write_adapter(model, run / "adapter", seed=1)
    tokenizer.save_pretrained(run / "adapter")
    merge_into(run, base, run / "adapter")
    tokenizer.save_pretrained(run)
    write_manifest(run, step=1, resumable=False)
    record = {"schema": 1, "name": "run", "stage": "sft", "recipe": {}, "recipe_hash": "0" * 16, "finished": "2026"}
    (run / "run.json").write_text(json.dumps(record))
    return run


def write_adapter(model: Any, folder: Path, *, seed: int) -> None:
    """Draws an adapter's weights, those that peft begins at 0 too, and saves it."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)


def merge_into(folder: Path, base: Path, adapter: Path, **options: Any) -> None:
    """Merges an adapter into its base, loaded with some options, and saves the whole weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, **options)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if options:
        merged.dequantize()
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            if hasattr(merged, name):
                delattr(merged, name)
        if hasattr(merged.config, "quantization_config"):
            del merged.config.quantization_config
    merged.save_pretrained(folder)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def other_template(run: Path) -> None:
    (run / "chat_template.jinja").write_text(TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"))


def missing_bos(run: Path) -> None:
    edit(run / "tokenizer.json", lambda value: value.update(post_processor=None))


def four_bits(run: Path) -> None:
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    merge_into(run, run.parent / "base", run / "adapter", quantization_config=settings)


def other_eos(run: Path) -> None:
    edit(run / "tokenizer_config.json", lambda value: value.update(eos_token="</s>"))
    stop = {"eos_token_id": SPECIALS.index("</s>")}
    edit(run / "generation_config.json", lambda value: value.update(stop))


def lost_token(run: Path) -> None:
    def lose(value: dict[str, Any]) -> None:
        value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != "<tool>"]

    edit(run / "tokenizer.json", lose)
    edit(run / "tokenizer_config.json", lambda value: value.update(extra_special_tokens=["</s>", "<|im_start|>"]))


def wrong_rope(run: Path) -> None:
    edit(run / "config.json", lambda value: value["rope_parameters"].update(rope_theta=500.0))


def stale_adapter(run: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    newer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.parent / "base"), str(run / "adapter"))
    write_adapter(newer, run / "adapter", seed=2)


def write_modelfile(run: Path, change: Callable[[str], str] = str) -> str:
    """Writes the merged model as a GGUF file with a Modelfile, right but for a change; returns the latter's path."""
    from posttrain.chat_templates import from_tokenizer
    from posttrain.chat_templates.ollama import write_go_template
    from posttrain.evals.parity.modelfile import write_modelfile
    from transformers import AutoTokenizer

    from .tiny_converter import convert

    tokenizer = AutoTokenizer.from_pretrained(run)
    template, _ = write_go_template(from_tokenizer(tokenizer), tokenizer, "<s>")
    convert(run, run.parent / "model.gguf")
    path = run.parent / "Modelfile"
    path.write_text(change(write_modelfile("model.gguf", template, ["<|im_end|>"])))
    return str(path)


def wrong_stop(run: Path) -> str:
    return write_modelfile(run, lambda text: text.replace('stop "<|im_end|>"', 'stop "</s>"'))


def other_go_template(run: Path) -> str:
    return write_modelfile(run, lambda text: text.replace("<|im_start|>assistant\n", "<|im_start|>assistant"))


def copy_run(run: Path, folder: Path) -> Path:
    """Copies a run with its base, so that a test may spoil it."""
    shutil.copytree(run.parent, folder)
    edit(folder / "run/adapter/adapter_config.json", lambda v: v.update(base_model_name_or_path=str(folder / "base")))
    return folder / "run"
