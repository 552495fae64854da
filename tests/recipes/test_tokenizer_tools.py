"""A tokenizer is extended so that nothing costs more, and its model is the one it was, with rows to train."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.compare_tokenizers import Named
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.extend_tokenizer import count_words, extend, read_backend
from posttrain.evals.models import make_room
from posttrain.recipes.check import check_all
from posttrain.recipes.load import load
from posttrain.recipes.tokenizer_tools import ExtendTokenizer, add_rows, refuse_costs, token_cost
from posttrain.recipes.train import train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

WORDS = [
    "Geschwindigkeit",
    "Begrenzung",
    "Straßenverkehr",
    "Verordnung",
    "übermorgen",
    "Bundesrat",
    "Höhe",
    "42",
    "1001",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "german.jsonl"
    texts = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def extended(rows: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    said = extend_model(rows, tiny_model_dir, folder)
    assert "% saved" not in said
    assert (folder / "report.html").is_file()
    return folder


def extend_model(rows: Path, model: Path, folder: Path, **options: object) -> str:
    return ExtendTokenizer.model_validate(
        {"sources": [str(rows)], "model": str(model), "new_tokens": 24, "measure": 4} | options
    ).run(folder)


def test_texts_like_those_learnt_from_cost_less_and_all_come_back(extended: Path, tiny_model_dir: Path) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_model_dir, extended))
    for text in ("Geschwindigkeit Begrenzung", "The quick brown fox.", "漢字 🙂\x00", "Straßen-Höhe 42", "<|im_end|>"):
        ids = after(text).input_ids
        assert after.decode(ids) == text == before.decode(before(text).input_ids)
        assert len(ids) <= len(before(text).input_ids)
    assert len(after("Geschwindigkeit").input_ids) < 0.5 * len(before("Geschwindigkeit").input_ids)
    assert len(after) == len(before) + 24
    report = json.loads((extended / "report.json").read_text())
    assert report["new_tokens"] == 24
    assert {"before", "after"} == report["bits_per_byte"].keys()


def test_the_reloaded_model_gives_old_texts_their_old_logits(extended: Path, tiny_model_dir: Path) -> None:
    old, new = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tiny_model_dir, extended))
    first = old.config.vocab_size
    ids = torch.arange(first)[None, -200:]
    with torch.inference_mode():
        assert torch.equal(new(input_ids=ids).logits[..., :first], old(input_ids=ids).logits)
    assert new.config.tie_word_embeddings
    assert new.config.vocab_size == first + 24
    assert new.lm_head.weight is new.model.embed_tokens.weight
    pieces = json.loads((extended / "extension.json").read_text())["pieces"]
    table = old.model.embed_tokens.weight
    means = torch.stack([table[some].mean(0) for some in pieces])
    torch.testing.assert_close(new.model.embed_tokens.weight[first:], means)
    tokenizer = AutoTokenizer.from_pretrained(extended)
    for place, some in enumerate(pieces):
        assert tokenizer.decode(some) == tokenizer.decode([first + place])


def test_tables_of_their_own_and_rows_for_speed_are_filled_each_by_its_own_means() -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).bfloat16()
    add_rows(model, 38, [[1, 2], [3, 4, 5], [38, 2]])
    for table in (model.model.embed_tokens.weight, model.lm_head.weight):
        assert table.shape[0] == 41
        for row, pieces in ((38, [1, 2]), (39, [3, 4, 5]), (40, [38, 2])):
            assert torch.equal(table[row], table[pieces].float().mean(0).to(torch.bfloat16))
    assert not torch.equal(model.lm_head.weight[38], model.model.embed_tokens.weight[38])


def test_another_order_of_rows_gives_the_same_model(
    extended: Path, rows: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    reversed_rows = tmp_path / rows.name
    reversed_rows.write_text("\n".join(rows.read_text().splitlines()[::-1]) + "\n")
    folder = tmp_path / "out"
    (folder / ".work" / "model").mkdir(parents=True)  # of a call that was killed
    extend_model(reversed_rows, tiny_model_dir, folder)
    extend_model(reversed_rows, tiny_model_dir, folder)  # and again, where it stands
    for name in ("model.safetensors", "tokenizer.json", "config.json", "extension.json"):
        assert (folder / name).read_bytes() == (extended / name).read_bytes()


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), {"r": 2}])
def test_any_recipe_trains_it_and_its_new_rows_in_float32(
    lora: dict | None, extended: Path, rows: Path, make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = extended.parent / f"half-{lora is None}"
    shutil.copytree(extended, model)
    AutoModelForCausalLM.from_pretrained(extended, dtype=torch.bfloat16).save_pretrained(model)
    data = {"train": {"path": str(rows), "format": "text"}}
    sections = {"model": {"name_or_path": str(model)}, "data": data} | ({"lora": lora} if lora else {})
    recipe = make_recipe("pretrain", f"run-{lora is None}", sections, max_steps=2, save_steps=2)
    assert check_all([recipe], [], {}, read_data=True) == 0
    said = capsys.readouterr().out
    assert "and 16 more, by which its tokenizer was extended and the model has to learn" in said
    loaded = load(recipe)
    train(loaded)
    run = Path(loaded.recipe.output_dir)
    before: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    after: Any = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
    first = before.config.vocab_size - 24
    moved = (after.get_input_embeddings().weight - before.get_input_embeddings().weight).abs().amax(1)
    assert (moved[first:] > 0).float().mean() > 0.5
    assert bool((moved[:first] > 0).any()) is (lora is None)
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
    if lora:
        from safetensors.torch import load_file

        trained = load_file(run / "adapter" / "adapter_model.safetensors")
        (grown,) = [tensor for name, tensor in trained.items() if "lora_" not in name]
        assert grown.dtype == torch.float32
        assert grown.shape == (24, 32)


def test_added_tokens_cost_tokens_and_are_refused(tiny_model_dir: Path) -> None:
    texts = ["The better hat of the otter: at the letter, brown."] * 3
    before, after = (Named(name, AutoTokenizer.from_pretrained(tiny_model_dir)) for name in ("before", "after"))
    after.tokenizer.add_tokens(["row", "qu"])
    costs = {"held-out texts": token_cost(before, after, ["The quick brown fox.", *texts])}
    with pytest.raises(DataError, match=r"held-out texts: the new tokens cost tokens, \d+ become \d+: more in 'The"):
        refuse_costs(costs, 0.0)


def test_merges_go_on_where_the_old_ones_end_and_never_make_a_control_token(tokenizer) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = read_backend(content)
    spelt = tuple(tokenizer.convert_tokens_to_ids(list("<|im_end|>")))
    found = extend(content, Counter({spelt: 100}), 50, 2)
    assert "<|im_end|" in found.tokens or "|im_end|>" in found.tokens
    ids = found.backend().model.tokenize("<|im_end|>")
    assert len(ids) > 1
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in [token.id for token in ids]
    words = count_words(backend, ["in 42 hello-hello, 1001 <|im_end|>tool🙂"] * 2)
    text = [backend.decode(list(word), skip_special_tokens=False) for word in words]
    assert "<|im_end|>" not in " ".join(text)


def test_digits_stay_alone_where_they_are(tmp_path: Path) -> None:
    from posttrain.data_tools.tokenizer import Tokenizer

    texts = [f"number {number} of 77" for number in range(1000)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Tokenizer(sources=[str(path)], vocab_size=262).run(tmp_path / "tok")
    content = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())
    found = extend(content, count_words(read_backend(content), texts), 20, 2)
    assert found.tokens
    assert not any(map(str.isdigit, "".join(found.tokens)))


def test_tokens_added_later_get_ids_behind_the_new_ones(extended: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(extended)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|later|>"], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<|later|>") == size
    model = AutoModelForCausalLM.from_pretrained(extended)
    assert make_room(model, tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_gain": 0.9}, r"% saved, of at least 90.0% wanted"),
        ({"min_frequency": 10_000}, "no two tokens stand side by side 10000 times"),
        ({"held_out": 1e-9}, "none of the texts is held out"),
    ],
)
def test_what_gains_too_little_is_refused_and_nothing_is_written(
    options: dict, message: str, rows: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        extend_model(rows, tiny_model_dir, tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_other_tokenizers_and_folders_of_other_models_are_refused(
    rows: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unigram"
    shutil.copytree(tiny_model_dir, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<|pad|>", 0.0], ["a", -1.0]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PosttrainError, match="only BPE tokenizers can be extended by merges, and this is Unigram"):
        extend_model(rows, folder, tmp_path / "out")
    with pytest.raises(PosttrainError, match="holds another model"):
        extend_model(rows, tiny_model_dir, folder)
