"""Options scored behind one shared context have the log-likelihoods that lm-eval gives each in a row of its own."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.evals import shared_context
from posttrain.evals.harness_model import HarnessModel
from posttrain.evals.models import LoadedModel, load_model
from posttrain.evals.records import ScoreStore
from posttrain.evals.score import score
from posttrain.evals.shared_context import Request, Scorer, Stops, continuation_logs, unsupported
from posttrain.evals.spec import SuiteSpec

from ..conftest import build_tokenizer

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def build(kind: str, vocabulary: int = VOCABULARY) -> Any:
    """Builds a tiny model of a family whose attention differs."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | {"vocab_size": vocabulary}
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    elif kind == "gemma3":  # three layers of four see 16 tokens
        kinds = ["sliding_attention"] * 3 + ["full_attention"]
        config = transformers.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=16, layer_types=kinds)
    elif kind == "gemma2":  # a cap on logits and on attention
        config = transformers.Gemma2Config(**sizes, head_dim=8, sliding_window=16)
    elif kind == "mistral":  # all layers see 16 tokens, and nothing says so by layer
        config = transformers.MistralConfig(**sizes, sliding_window=16)
    elif kind == "granite":  # logits are scaled behind the output layer
        config = transformers.GraniteConfig(**sizes, logits_scaling=3.0)
    else:
        config = transformers.LlamaConfig(**sizes)
    how = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **how).eval()
    for weight in model.parameters():  # so that the likeliest token depends on what was read
        torch.nn.init.normal_(weight, std=0.3 if weight.dim() > 1 else 0.1)
    return model


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3", "gemma2", "mistral", "granite"])
def model(request: Any) -> Any:
    return build(request.param)


def tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1, VOCABULARY) for _ in range(count)]


def requests(kind: str) -> list[Request]:
    """Makes contexts with options of many lengths; some are the same, or begin alike."""
    draw = random.Random(0)
    fixed = tokens(draw, 70)
    found: list[Request] = []
    for _ in range(12):
        before = {"fixed": fixed, "varying": tokens(draw, draw.randrange(20, 60)), "none": []}[kind]
        context = [*before, *tokens(draw, draw.randrange(1, 20))]
        first = tokens(draw, draw.randrange(1, 9))
        options = [first, [*first, *tokens(draw, 3)], tokens(draw, 1), tokens(draw, 1), tokens(draw, 12), first]
        found += [(context, option) for option in options[: draw.randrange(1, 7)]]
    draw.shuffle(found)
    return found


def alone(model: Any, request: Request) -> tuple[float, bool]:
    """Scores one request in a plain pass."""
    context, continuation = request
    with torch.inference_mode():
        ids = torch.tensor([[*context, *continuation]])
        log_p = model(ids).logits[0, len(context) - 1 : -1].float().log_softmax(-1)
    targets = torch.tensor(list(continuation))
    return float(log_p.gather(-1, targets[:, None]).sum()), bool((log_p.argmax(-1) == targets).all())


def likely(model: Any, asked: list[Request]) -> list[Request]:
    """Adds for some contexts what the model itself goes on with, so that some continuations are the likeliest."""
    found = []
    for context, _ in asked[::6]:
        ids = list(context)
        for _ in range(3):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append((context, ids[len(context) :]))
    return asked + found


@pytest.mark.parametrize("kind", ["fixed", "varying", "none"])
@pytest.mark.parametrize("budget", [40, 10_000])
def test_each_continuation_has_the_log_probability_that_it_has_alone(model: Any, kind: str, budget: int) -> None:
    asked = likely(model, requests(kind))
    found = continuation_logs(model, asked, budget)
    expected = [alone(model, request) for request in asked]
    assert [log for log, _ in found] == pytest.approx([log for log, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {True, False} == {greedy for _, greedy in found}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[int]]:
    """Returns a model, and the places of each pass that it will have run."""
    model, run = build("llama"), []
    plain = type(model).forward

    def count(self: Any, input_ids: Any, **options: Any) -> Any:
        run.append(input_ids.numel())
        return plain(self, input_ids, **options)

    monkeypatch.setattr(type(model), "forward", count)
    return model, run


def test_few_contexts_of_unlike_length_leave_little_padding(counted: tuple[Any, list[int]]) -> None:
    model, run = counted
    draw = random.Random(2)
    lengths = [190, *[40] * 11]
    continuation_logs(model, [([n, *tokens(draw, length)], tokens(draw, 9)) for n, length in enumerate(lengths, 1)])
    needed = sum(1 + length + 8 for length in lengths)  # a continuation's last token is only predicted
    assert needed <= sum(run) < 1.1 * needed


def test_what_requests_begin_with_in_common_is_run_once(counted: tuple[Any, list[int]]) -> None:
    model, run = counted
    draw = random.Random(1)
    block, question, words = tokens(draw, 100), tokens(draw, 10), tokens(draw, 5)
    asked: list[Request] = [
        ([*block, *question, n], option) for n in range(1, 9) for option in (words, [*words, 7], [3])
    ]
    continuation_logs(model, asked)
    # the block and the question once, then for each last token of a context the five words
    assert sum(run) == 110 + 8 * (1 + 5)


def test_it_agrees_with_lm_eval_whose_requests_it_takes(tiny_model_dir: Path) -> None:
    loaded = load_model(str(tiny_model_dir), device="cpu")
    lm: Any = HarnessModel(loaded, SuiteSpec(name="toy", batch_size=4, max_length=64, tasks=[{"task": "x.yaml"}]))
    shots = "Numbers such as 17 and 42. " * 3
    texts = [
        (shots + text, option) for text in ("The quick", "A fox ", "user") for option in (" brown", " dog", " a b c")
    ]
    texts += [("", " brown fox"), ("", " dog"), (shots * 3, " too long"), (shots * 3, " by far")]
    asked = [Instance(*pair) for pair in texts]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert lm.shared.record["backend"] == "shared_context"
    assert lm.shared.record["largest_difference"] <= 1e-4
    lm.shared.refused = "the test says so"
    expected = lm.loglikelihood(asked, disable_tqdm=True)
    assert lm.shared.record == {"backend": "lm-eval", "reason": "the test says so"}
    assert [log for log, _ in found] == pytest.approx([log for log, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


class Instance:
    """A request as lm-eval hands it over."""

    def __init__(self, *args: Any):
        self.args = args
        self.task_name = "task"


def test_contexts_up_to_the_limit_are_shared_and_only_longer_ones_left_to_plain_passes() -> None:
    model, draw = build("gemma3"), random.Random(2)
    context = tokens(draw, 90)
    asked: list[Request] = [(context, tokens(draw, count)) for count in (1, 2, 10, 11, 12, 30)] + [(context, [])]
    left: list[list[int]] = []

    def plain(numbers: Any) -> list[tuple[float, bool]]:
        left.append(list(numbers))
        return [alone(model, asked[i]) if asked[i][1] else (0.0, True) for i in numbers]

    scorer = Scorer(model, 100, 4)
    found = scorer.logs(asked, plain)
    assert left[-1] == [4, 5, 6]  # of 11 tokens the last is only predicted
    assert set(left[0]) < {0, 1, 2, 3}  # what was compared
    assert [log for log, _ in found[:6]] == pytest.approx([alone(model, one)[0] for one in asked[:6]], abs=1e-4)


@pytest.mark.parametrize("fault", ["mask", "positions", "window", "raises"])
def test_a_model_that_takes_the_masks_otherwise_is_found_out_and_scored_by_plain_passes(
    fault: str, monkeypatch: Any
) -> None:
    model = build("gemma3")
    plain = type(model.model).forward

    def spoilt(self: Any, *args: Any, attention_mask: Any = None, **options: Any) -> Any:
        if isinstance(attention_mask, dict):
            if fault == "raises":
                raise ValueError("only masks of two dimensions")
            if fault == "mask":
                attention_mask = None
            if fault == "positions":
                options["position_ids"] = None
            if fault == "window":
                attention_mask = attention_mask["full_attention"]
        return plain(self, *args, attention_mask=attention_mask, **options)

    asked = requests("fixed")
    expected = [alone(model, request) for request in asked]
    spoilt.__signature__ = __import__("inspect").signature(plain)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model.model), "forward", spoilt)
    scorer = Scorer(model, 256, 4)
    assert scorer.refused is None
    found = scorer.logs(asked, lambda numbers: [alone(model, asked[i]) for i in numbers])
    assert [log for log, _ in found] == pytest.approx([log for log, _ in expected], abs=1e-4)
    assert scorer.refused is not None
    assert ("only masks of two dimensions" if fault == "raises" else "off by") in scorer.refused
    assert scorer.record == {"backend": "lm-eval", "reason": scorer.refused}


def test_a_comparison_stands_for_other_weights_of_the_same_layers_on_the_same_requests_only(monkeypatch: Any) -> None:
    model, asked = build("gemma3"), requests("fixed")
    rounds: list[int] = []

    def logs(scorer: Scorer, asked: list[Request]) -> list[tuple[float, bool]]:
        def plain(numbers: Any) -> list[tuple[float, bool]]:
            rounds.append(len(numbers))
            return [alone(model, asked[i]) for i in numbers]

        return scorer.logs(asked, plain)

    compared: dict[str, float] = {}
    first = Scorer(model, 256, 4, compared)
    found = logs(first, asked)
    assert first.record is not None
    second = Scorer(model, 256, 4, compared)
    assert logs(second, asked) == found
    assert second.record == first.record | {"compared_on": "the same layers with another adapter's weights"}
    assert rounds == [2]
    logs(second, asked[:-1])  # others
    logs(Scorer(model, 200, 4, compared), asked)  # of another limit
    assert len(rounds) == 3

    monkeypatch.setattr(shared_context, "continuation_logs", lambda *_: [(math.nan, False)] * len(asked))
    third = Scorer(model, 256, 4, compared)
    logs(third, asked)
    assert "off by nan" in str(third.refused)


def test_a_refusal_is_not_carried_over_and_a_fault_is_found_on_the_first_of_several(monkeypatch: Any) -> None:
    masks = shared_context._masks

    def to_row_end(model: Any, shared: int, depths: Any, ends: Any) -> Any:
        return masks(model, shared, depths, torch.full_like(ends, ends.shape[1]))

    monkeypatch.setattr(shared_context, "_masks", to_row_end)
    model, asked, compared = build("llama"), requests("fixed"), {}
    for _ in range(2):
        scorer = Scorer(model, 256, 4, compared)
        scorer.logs(asked, lambda numbers: [alone(model, asked[i]) for i in numbers])
        assert "off by" in str(scorer.refused)
        assert compared == {}


@pytest.mark.parametrize("fault", [False, True])
def test_in_bfloat16_a_wrong_mask_is_told_from_rounding(fault: bool, monkeypatch: Any) -> None:
    model = build("llama").bfloat16()
    masks = shared_context._masks

    def to_row_end(model: Any, shared: int, depths: Any, ends: Any) -> Any:
        return masks(model, shared, depths, torch.full_like(ends, ends.shape[1]))  # an option sees those before it

    if fault:
        monkeypatch.setattr(shared_context, "_masks", to_row_end)
    asked = requests("fixed")
    scorer = Scorer(model, 256, 4)
    scorer.logs(asked, lambda numbers: [alone(model, asked[i]) for i in numbers])
    assert (scorer.refused is not None) == fault
    assert not fault or "off by" in str(scorer.refused)


STOPS = ["Q:", "fox", "4"]


def written(lm: Any, prompts: list[str]) -> list[str]:
    how = {"until": STOPS, "max_gen_toks": 24, "do_sample": False}
    return lm.generate_until([Instance(prompt, how) for prompt in prompts], disable_tqdm=True)


@pytest.fixture(params=["llama", "gemma3", "mistral"])
def writers(request: Any) -> tuple[Any, Any]:
    """One model as ours and as lm-eval's own, which in a batch keeps what a row writes behind its end."""
    from lm_eval.models import huggingface

    stock: Any = huggingface.HFLM  # its registering decorator hides its type
    tokenizer = build_tokenizer()
    model = build(request.param, len(tokenizer))
    suite = SuiteSpec(name="toy", batch_size=3, max_length=250, tasks=[{"task": "x.yaml"}])
    own = HarnessModel(LoadedModel(model, tokenizer, None), suite)
    return own, stock(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=250)


SHOTS = "Q: Numbers such as 17, 42 and 1001?\nA: hello goodbye thanks please sorry\n\n" * 4
ENDS = ["The", "Two and two make", "A fox jumps over the lazy dog. Numbers", "x", "hello goodbye thanks", "system tool"]


def test_texts_behind_a_shared_beginning_are_those_of_lm_eval(writers: tuple[Any, Any], monkeypatch: Any) -> None:
    own, stock = writers
    prompts = [f"{SHOTS}Q: {end}?\nA:" for end in ENDS]
    expected = written(stock, prompts)
    assert len(set(expected)) > 1
    run = 0
    plain = type(own.model).forward

    def count(self: Any, input_ids: Any, **options: Any) -> Any:
        nonlocal run
        run += input_ids.numel()
        return plain(self, input_ids, **options)

    count.__signature__ = __import__("inspect").signature(plain)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(own.model), "forward", count)
    assert written(own, prompts) == expected
    shared = own.shared.record["shared_tokens"]
    assert shared > 64  # more than any window
    assert own.shared.record["backend"] == "shared_context"
    rest = max(len(own.tok_encode(prompt)) for prompt in prompts) - shared
    assert run < shared + 8 * rest + 24 * len(prompts)  # the beginning once, in the prompt that is compared


def test_a_cache_that_changes_what_is_written_is_not_used(writers: tuple[Any, Any], monkeypatch: Any) -> None:
    own, stock = writers
    prompts = [f"{SHOTS}Q: {end}?\nA:" for end in ENDS]
    placed = shared_context.Prompts._placed

    def spoilt(self: Any, pads: Any) -> Any:
        cache = placed(self, pads)
        cache.layers[-1].values *= 0.5
        return cache

    monkeypatch.setattr(shared_context.Prompts, "_placed", spoilt)
    assert written(own, prompts) == written(stock, prompts)
    assert own.shared.record["backend"] == "lm-eval"
    assert "off by" in own.shared.record["reason"]


def test_a_batch_ends_when_each_row_has_come_to_a_stop_string_of_its_own() -> None:
    tokenizer = build_tokenizer()
    prompt, ends = [1, 2, 3], ("so Q: and and and", "the fox jumps and and and", "hello 17 and and and")
    rows = [[*prompt, *tokenizer.encode(end)] for end in ends]
    stops = Stops(tokenizer, ["Q:", "fox"], len(prompt), 3)
    found = []
    for size in range(len(prompt) + 1, min(map(len, rows)) + 1):
        found.append(stops(torch.tensor([row[:size] for row in rows]), torch.empty(0)).tolist())
    assert found[0] == [False, False, False]
    assert found[-1] == [True, True, False]


def state_space() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=len(build_tokenizer()), hidden_size=16, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config).eval()


def alibi() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)).eval()


def local_attention() -> Any:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    kinds = {"attention_types": [[["global", "local"], 1]], "num_layers": 2}
    return GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, hidden_size=16, num_heads=2, **kinds)).eval()


def encoder_decoder() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, num_layers=1, num_heads=2))


@pytest.mark.parametrize(
    ("build_model", "reason"),
    [
        (state_space, "layers are linear_attention"),
        (alibi, "positions cannot be given"),
        (local_attention, "layers are global, local"),
        (encoder_decoder, "encoder with a decoder"),
    ],
)
def test_architectures_that_cannot_share_contexts_are_known_without_a_pass(
    build_model: Callable[[], Any], reason: str
) -> None:
    assert reason in (unsupported(build_model()) or "")


def test_a_score_says_which_passes_gave_it_and_is_the_same_score(
    make_run: Callable[..., Path], suite_file: Path, monkeypatch: Any
) -> None:
    runs = [make_run((1,), name=name, final=False) for name in ("shared", "plain")]
    score([runs[0]], suite_file, device="cpu")
    monkeypatch.setattr(shared_context, "unsupported", lambda model: "its layers are linear_attention")
    score([runs[1]], suite_file, device="cpu")
    one, other = ({s.task: s for s in ScoreStore(run).load()} for run in runs)
    assert one["choices"].key == other["choices"].key
    assert one["choices"].metrics == other["choices"].metrics
    assert (one["choices"].detail or {})["backend"] == "shared_context"
    assert (other["choices"].detail or {})["backend"] == "lm-eval"
    assert one["choices"].notes == ()
    assert other["choices"].notes == ("scored without shared contexts: its layers are linear_attention",)
    assert other["sums"].notes == ()  # which are written, not chosen
    assert "backend" not in (one["sums"].detail or {})
