"""Perplexity against closed forms and against a full forward pass."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.evals.errors import EvalError, SuiteError
from posttrain.evals.models import LoadedModel, load_model
from posttrain.evals.perplexity import Window, define, encode, figures, score_windows, windows
from posttrain.evals.spec import PerplexitySpec, SuiteSpec
from posttrain.evals.stats.intervals import ratio
from posttrain.evals.task import Checkpoint


class Fake(torch.nn.Module):
    """Logits from a table indexed by the last token: a model with a context of one token."""

    def __init__(self, table: torch.Tensor, length: int = 16):
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=length))
        self.longest = 0

    def can_generate(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return self.table.device

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        self.longest = max(self.longest, input_ids.shape[1])
        return SimpleNamespace(logits=self.table[input_ids])


def measure(model: Any, tokenizer: Any, tmp_path: Path, text: str, **keys: Any) -> dict[str, Any]:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    spec = PerplexitySpec(name="text", path=str(path), **keys)
    suite = SuiteSpec(name="s", perplexity=[spec], batch_size=3)
    nowhere: Any = None
    checkpoint = Checkpoint(nowhere, suite, lambda: LoadedModel(model, tokenizer, None), print)
    result = define(spec, suite).run(checkpoint, None)
    return {metric.name: metric for metric in result.metrics}


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(tokenizer: Any, tmp_path: Path):
    size = len(tokenizer)
    text = "The quick brown fox: 漢字, 17 and 42.\nhello\n" * 20
    found = measure(Fake(torch.zeros(size, size)), tokenizer, tmp_path, text)
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert found["perplexity"].value == pytest.approx(size, rel=1e-6)
    assert found["bits_per_token"].value == pytest.approx(math.log2(size), rel=1e-6)
    assert found["entropy_per_token"].value == pytest.approx(math.log2(size), rel=1e-6)
    assert found["bits_per_byte"].value == pytest.approx(math.log2(size) * tokens / len(text.encode()), rel=1e-6)
    assert found["tokens_per_byte"].value == pytest.approx(tokens / len(text.encode()))
    assert found["bits_per_token"].stderr == pytest.approx(0, abs=1e-6)


def test_a_certain_model_has_no_entropy_whatever_the_text_says(tokenizer: Any, tmp_path: Path):
    size = len(tokenizer)
    table = torch.zeros(size, size)
    table[:, 5] = 1000.0  # sure of token 5: the other probabilities underflow to 0, and 0 log 0 is 0
    found = measure(Fake(table), tokenizer, tmp_path, "hello goodbye")
    assert found["entropy_per_token"].value == pytest.approx(0, abs=1e-9)
    assert found["bits_per_token"].value == pytest.approx(1000 / math.log(2), rel=1e-6)


@pytest.mark.parametrize(("max_length", "stride"), [(2, 1), (5, 1), (5, 4), (16, 3), (64, 32)])
def test_the_stride_does_not_matter_to_a_model_with_one_token_of_context(
    tokenizer: Any, tmp_path: Path, max_length: int, stride: int
):
    torch.manual_seed(0)
    model = Fake(torch.randn(len(tokenizer), len(tokenizer)))
    text = "The quick brown fox jumps over the lazy dog. " * 4
    found = measure(model, tokenizer, tmp_path, text, max_length=max_length, stride=stride)
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]])
    exact = -model.table[ids[:-1]].log_softmax(-1)[range(len(ids) - 1), ids[1:]].mean().item() / math.log(2)
    assert found["bits_per_token"].value == pytest.approx(exact, rel=1e-6)
    assert model.longest <= max_length


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 100])
@pytest.mark.parametrize(("max_length", "stride"), [(8, 1), (8, 4), (8, 7), (2, 1)])
def test_each_token_is_scored_exactly_once_with_its_context(length: int, max_length: int, stride: int):
    scored = []
    for start, end, first in windows(length, max_length, stride):
        assert 0 <= start < first < end <= length
        assert end - start <= max_length
        assert first - start >= min(first, max_length - stride)  # the promised context, or all there is
        scored.extend(range(first, end))
    assert scored == list(range(1, length))


def test_windows_that_fit_give_what_one_forward_pass_gives(tiny_model_dir: Path, tmp_path: Path):
    loaded = load_model(str(tiny_model_dir), device="cpu")
    text = "The quick brown fox jumps over the lazy dog. Numbers such as 17, 42."
    found = measure(loaded.model, loaded.tokenizer, tmp_path, text)
    ids = torch.tensor(encode([text], loaded.tokenizer))
    with torch.no_grad():
        log_p = loaded.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    nll = -log_p[range(ids.shape[1] - 1), ids[0, 1:]].sum().item()
    entropy = -(log_p.exp() * log_p).sum().item()
    count = ids.shape[1] - 1
    assert found["perplexity"].value == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert found["entropy_per_token"].value == pytest.approx(entropy / count / math.log(2), rel=1e-5)
    assert found["bits_per_byte"].value == pytest.approx(nll / math.log(2) / len(text.encode()), rel=1e-5)


def test_batches_and_kept_logits_do_not_change_a_windows_sum(tiny_model_dir: Path):
    loaded = load_model(str(tiny_model_dir), device="cpu")
    tokens = encode(["The quick brown fox jumps. " * 9, "short", "hello goodbye thanks please"], loaded.tokenizer)
    cut = [Window(i, *part) for i, ids in enumerate(tokens) for part in windows(len(ids), 24, 10)]
    alone = score_windows(loaded.model, tokens, cut, 1)
    together = score_windows(loaded.model, tokens, cut, 5)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    window = cut[1]
    with torch.no_grad():
        ids = torch.tensor([tokens[0][window.start : window.end]])
        log_p = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
    at = range(window.first - window.start, window.end - window.start)
    assert alone[0][1] == pytest.approx(-sum(log_p[i - 1, ids[0, i]].item() for i in at), rel=1e-5)


def test_coverage_counts_unknown_tokens_and_pieces_of_characters(tokenizer: Any, tmp_path: Path):
    model = Fake(torch.zeros(len(tokenizer), len(tokenizer)))
    plain = measure(model, tokenizer, tmp_path, "hello goodbye")
    pieces = measure(model, tokenizer, tmp_path, "中中")  # not in the tokenizer's training text: three bytes each
    assert plain["byte_fallback_rate"].value == 0
    assert pieces["byte_fallback_rate"].value == 1
    assert pieces["tokens_per_byte"].value == 1
    words = word_tokenizer(["[UNK]", "[EOS]", "one", "two"])
    found = measure(Fake(torch.zeros(4, 4)), words, tmp_path, "one two three four one")
    assert found["unknown_rate"].value == pytest.approx(2 / 5)


def word_tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]")


def test_documents_do_not_see_each_other(tokenizer: Any, tmp_path: Path):
    torch.manual_seed(0)
    model = Fake(torch.randn(len(tokenizer), len(tokenizer)))
    lines = [f"line {i} of the fox" for i in range(10)]
    together = measure(model, tokenizer, tmp_path, "\n".join(lines), sample_by="line")
    assert together["bits_per_byte"].n == 10
    alone = [measure(model, tokenizer, tmp_path, line, sample_by="line")["bits_per_byte"].value for line in lines]
    sizes = [len(line) for line in lines]
    assert together["bits_per_byte"].value == pytest.approx(np.average(alone, weights=sizes), rel=1e-6)


def test_the_ratios_error_is_that_of_a_mean_where_clusters_are_equal():
    values = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    value, error = ratio(values * 10, np.full(5, 10.0))
    assert value == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(5))
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, None)


def test_the_ratios_error_matches_its_spread_over_fresh_samples():
    rng = np.random.default_rng(0)

    def draw() -> tuple[float, float]:
        x = rng.gamma(2.0, 50.0, 200)
        value, error = ratio(x * rng.normal(3.0, 0.5, 200), x)
        assert error is not None
        return value, error

    values, errors = np.array([draw() for _ in range(800)]).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_few_documents_are_told_apart_by_their_windows(tokenizer: Any, tmp_path: Path):
    torch.manual_seed(0)
    model = Fake(torch.randn(len(tokenizer), len(tokenizer)))
    found = measure(model, tokenizer, tmp_path, "The quick brown fox jumps. " * 20, max_length=16, stride=8)
    assert found["bits_per_byte"].n > 8
    assert found["bits_per_byte"].stderr is not None


def test_bytes_of_the_windows_add_up_to_the_text(tokenizer: Any, tmp_path: Path):
    table = {"document": np.array([0, 0, 1]), "where": ["a"] * 3, "tokens": np.array([2, 1, 4])}
    table |= {"bytes": np.array([4.0, 2.0, 9.0]), "nll": np.array([3.0, 1.0, 2.0]), "entropy": np.ones(3)}
    table |= {"unknown": np.zeros(3), "byte_fallback": np.zeros(3), "first_token": np.ones(3)}
    by_window = {m.name: m.value for m in figures(table, by_document=False)}
    by_document = {m.name: m.value for m in figures(table, by_document=True)}
    assert by_window == pytest.approx(by_document)
    assert by_window["bits_per_byte"] == pytest.approx(6 / math.log(2) / 15)


def test_nan_in_the_weights_is_an_error_not_a_score(tokenizer: Any, tmp_path: Path):
    with pytest.raises(EvalError, match="not finite"):
        measure(Fake(torch.full((len(tokenizer), len(tokenizer)), math.nan)), tokenizer, tmp_path, "hello")


def test_a_stride_without_context_is_refused(tokenizer: Any, tmp_path: Path):
    with pytest.raises(SuiteError, match="no context"):
        measure(Fake(torch.zeros(len(tokenizer), len(tokenizer))), tokenizer, tmp_path, "hello", stride=16)
