"""Rooms of the museum: batches, losses, adapters and checkpoints."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from posttrain.chat_templates.errors import PosttrainError

from ..conftest import build_tokenizer


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(config).eval()


def test_an_end_that_is_never_learnt() -> None:
    """Where pad and end of text are one token, the stock collator takes the end out of the loss with the padding.

    The model then never learns to stop.

    Source: huggingface/transformers#23530, 2023-05-20; huggingface/trl#976, 2023-11-09. Stock: transformers 5.23.
    """
    from posttrain.chat_templates import ensure_pad
    from transformers import DataCollatorForLanguageModeling

    tokenizer = build_tokenizer(pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    end = tokenizer.eos_token_id
    rows = [{"input_ids": [5, 6, 7, end]}, {"input_ids": [5, end]}]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    assert not (labels == end).any()
    ensure_pad(tokenizer)
    assert tokenizer.pad_token_id != end


def test_a_class_read_from_the_wrong_token() -> None:
    """A sequence classifier reads the last token that is no padding: where pad is the end, the one before the end.

    Source: measured 2026-11-28. Stock: transformers 5.23.
    """
    from posttrain.chat_templates import ensure_pad
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = build_tokenizer(pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    end = tokenizer.eos_token_id
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.pad_token_id = config.eos_token_id = end
    model = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        with_end = model(input_ids=torch.tensor([[5, 6, 7, end]])).logits
        without = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert torch.allclose(with_end, without, atol=1e-6)
        ensure_pad(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
        assert not torch.allclose(model(input_ids=torch.tensor([[5, 6, 7, end]])).logits, without, atol=1e-4)


def test_a_misspelt_size_of_a_model() -> None:
    """A configuration of transformers takes any key: one that is misspelt is kept, and the default is used.

    Source: measured 2026-11-29. Stock: transformers 5.23.
    """
    from posttrain.recipes.model import new_config
    from posttrain.recipes.schema import ModelSpec
    from transformers import LlamaConfig

    misspelt: Any = {"hiden_size": 64}
    assert LlamaConfig(**misspelt).hidden_size == 4096
    spec = ModelSpec.model_validate({"config": {"model_type": "llama", "hiden_size": 64}, "tokenizer": "any"})
    with pytest.raises(PosttrainError, match="llama has no hiden_size"):
        new_config(spec, build_tokenizer())


def test_documents_that_read_each_other() -> None:
    """Packed documents told apart by position ids see each other as soon as the model keeps its cache, the default.

    Source: measured 2026-11-28. Stock: transformers 5.23, SDPA.
    """
    model = tiny_llama()
    alone, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10, 11]])
    packed, positions = torch.cat([other, alone], 1), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        right = model(input_ids=alone).logits
        stock = model(input_ids=packed, position_ids=positions).logits[:, 3:]
        ours = model(input_ids=packed, position_ids=positions, use_cache=False).logits[:, 3:]
    assert (stock - right).abs().max() > 1e-3
    assert (ours - right).abs().max() < 1e-5


def test_positions_that_count_the_padding() -> None:
    """GPT-2 numbers its positions from the padding on, unless it is given position ids: left padding changes a text.

    Source: huggingface/transformers#3021; huggingface/trl#469, 2023-06-26. Stock: transformers 5.23.
    """
    from posttrain.evals.forward import negative_log_likelihoods
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    row, mask = torch.tensor([[0, 0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        alone = model(input_ids=row[:, 3:]).logits
        padded = model(input_ids=row, attention_mask=mask).logits[:, 3:]
    assert (alone - padded).abs().max() > 1e-3
    rows = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
    together = negative_log_likelihoods(model, rows, [1, 1], 2)
    apart = [float(negative_log_likelihoods(model, [one], [1], 1)[0]) for one in rows]
    assert list(together) == pytest.approx(apart, rel=1e-5)


def test_the_newest_checkpoint_is_damaged(tmp_path: Path) -> None:
    """`get_last_checkpoint` takes the folder with the highest number, whatever is left of it.

    Without its optimizer a run goes on from it with exit code 0 and other losses.

    Source: huggingface/transformers#35525, 2025-01-06, and #35782. Stock: transformers 5.23.
    """
    from posttrain.evals.checkpoints import write_manifest
    from posttrain.recipes.rundir import find_resume
    from transformers.trainer_utils import get_last_checkpoint

    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            (folder / name).write_bytes(bytes(100))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        write_manifest(folder, step=step, resumable=True)
    (tmp_path / "checkpoint-20" / "optimizer.pt").unlink()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-20")
    said: list[str] = []
    find_resume(tmp_path, said.append)
    assert "checkpoint-20" in said[0]
    assert "optimizer.pt" in said[0]


def test_an_adapter_that_never_prunes() -> None:
    """AdaLoRA's ranks are pruned only by `update_and_allocate`, which neither transformers nor TRL calls.

    It runs as an adapter of a fixed rank.

    Source: read 2026-11-28. Stock: transformers 5.23, trl 1.16, peft 0.21.
    """
    import transformers.trainer
    import trl.trainer.sft_trainer
    from peft import AdaLoraConfig, get_peft_model
    from posttrain.recipes.callbacks import RankAllocation

    for module in (transformers.trainer, trl.trainer.sft_trainer):
        assert "update_and_allocate" not in inspect.getsource(module)
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10)
    model: Any = get_peft_model(tiny_llama(), config)
    called: list[int] = []
    model.base_model.update_and_allocate = called.append
    state: Any = SimpleNamespace(global_step=4)
    nothing: Any = None
    RankAllocation().on_optimizer_step(nothing, state, nothing, model=model)
    assert called == [5]


def test_packed_documents_behind_virtual_tokens(tmp_path: Path) -> None:
    """Prompt tuning drops the position ids with a warning, so that packed documents read each other.

    Source: peft 0.21.2, peft_model.py; measured 2026-11-28.
    """
    from peft import PromptTuningConfig, get_peft_model
    from posttrain.data_tools.errors import SpecError
    from posttrain.recipes.load import load

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model: Any = get_peft_model(tiny_llama(), config).eval()
    after, positions = torch.tensor([[8, 10, 11]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    found = []
    for before in ([[5, 6, 7]], [[5, 6, 9]]):
        ids = torch.cat([torch.tensor(before), after], 1)
        with torch.no_grad(), pytest.warns(UserWarning, match="position"):
            found.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -3:])
    assert (found[0] - found[1]).abs().max() > 1e-4
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "stage: sft\nmodel: {name_or_path: org/model}\nadapter: {type: prompt_tuning, num_virtual_tokens: 2}\n"
        "data: {train: {path: org/rows}}\ntrainer: {packing: true}\noutput_dir: out\n"
    )
    with pytest.raises(SpecError, match=r"does not go with trainer\.packing"):
        load(file)
