"""What a model makes of rows is what a plain pass over each of them says, whatever else is in the batch."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals.models import load_model
from posttrain.evals.row_scores import Likelihood
from posttrain.recipes import model_rows, score_rows
from posttrain.recipes.score_rows import Bounds, ScoreRows
from pydantic import ValidationError

from ..conftest import TEXT
from ..rows import read_rows, write_rows

WORDS = TEXT[0].split() + TEXT[1].split()
ROWS: list[dict[str, Any]] = [
    {"instruction": " ".join(WORDS[: 1 + n % 7]), "output": " ".join(WORDS[n % 5 : n % 5 + 1 + 3 * n % 11]), "id": n}
    for n in range(12)
]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def score(path: str, model: Path, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """Scores a file of rows in float32 and returns what is written."""
    ScoreRows(sources=[SourceSpec(path=path)], model=str(model), **({"dtype": "float32"} | more)).run(folder)
    return read_rows(folder / Path(path).name)


def losses(model: Any, ids: list[int]) -> list[float]:
    """The negative log-likelihood of each token but the first, by a plain pass over one row."""
    with torch.inference_mode():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-log_p[place, token].item() for place, token in enumerate(ids[1:])]


@pytest.fixture
def alpaca(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_an_answer_is_scored_behind_its_prompt_and_alone_by_the_same_ids(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path
) -> None:
    """By the definition: the loss given the prompt over that without it, means over the answer's own tokens."""
    loaded = load_model(str(instruct_model_dir), device="cpu", dtype="float32")
    tokenizer: Any = loaded.tokenizer
    names = ["loss", "perplexity", "bits_per_byte", "ifd", "ifd_perplexity"]
    for row in score(alpaca, instruct_model_dir, tmp_path / "out", scores=names):
        messages = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        given = sum(losses(loaded.model, prompt_ids + answer)[-len(answer) :]) / len(answer)
        alone = sum(losses(loaded.model, [tokenizer.bos_token_id, *answer])) / len(answer)
        assert row["loss"] == pytest.approx(given, abs=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(given), rel=1e-5)
        bits = given * len(answer) / math.log(2) / len(row["output"].encode())
        assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        assert row["ifd"] == pytest.approx(given / alone, rel=1e-5)
        assert row["ifd_perplexity"] == pytest.approx(math.exp(given - alone), rel=1e-4)


def test_the_two_definitions_of_ifd_rank_rows_oppositely() -> None:
    """Losses of 1.0 given and 1.2 alone, and of 3.0 and 3.4: .833 before .882, but .819 behind .670."""
    one, other = Likelihood(10, 40, 10.0, 12.0), Likelihood(10, 40, 30.0, 34.0)
    assert (one.ifd, other.ifd) == (pytest.approx(0.8333, abs=1e-4), pytest.approx(0.8824, abs=1e-4))
    assert (one.ifd_perplexity, other.ifd_perplexity) == (
        pytest.approx(0.8187, abs=1e-4),
        pytest.approx(0.6703, abs=1e-4),
    )


@pytest.mark.parametrize("size", [1, 5])
def test_neither_the_batch_nor_the_order_of_rows_changes_a_score(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path, size: int
) -> None:
    names = ["loss", "ifd"]
    whole = {row["id"]: row for row in score(alpaca, instruct_model_dir, tmp_path / "a", scores=names)}
    path = write_rows(tmp_path / "turned.jsonl", ROWS[::-1])
    for row in score(path, instruct_model_dir, tmp_path / "b", scores=names, batch_size=size):
        for name in names:
            assert row[name] == pytest.approx(whole[row["id"]][name], abs=2e-6)


def test_texts_are_scored_whole_in_windows_where_they_are_longer_than_the_model(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    loaded = load_model(str(instruct_model_dir), device="cpu", dtype="float32")
    tokenizer: Any = loaded.tokenizer
    texts = ["The lazy dog.", " ".join(WORDS * 2)]
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    short, long = score(path, instruct_model_dir, tmp_path / "out", scores=["loss"], max_length=16)
    ids = [tokenizer.bos_token_id, *tokenizer(texts[0], add_special_tokens=False)["input_ids"]]
    assert short["loss"] == pytest.approx(sum(losses(loaded.model, ids)) / (len(ids) - 1), abs=1e-5)
    ids = [tokenizer.bos_token_id, *tokenizer(texts[1], add_special_tokens=False)["input_ids"]]
    by_hand, scored = losses(loaded.model, ids[:16]), 16
    while scored < len(ids):
        end = min(scored + 8, len(ids))
        by_hand += losses(loaded.model, ids[end - 16 : end])[scored - end :]
        scored = end
    assert long["loss"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)


def test_of_a_conversation_the_last_answer_is_scored_and_with_text_all_that_it_says(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    talk = [("user", "hello"), ("assistant", "hello"), ("user", "Two and two make"), ("assistant", "four")]
    messages = [{"role": role, "content": content} for role, content in talk]
    path = write_rows(tmp_path / "talks.jsonl", [{"messages": messages}, {"messages": messages[2:]}])
    first, second = score(path, instruct_model_dir, tmp_path / "a", scores=["loss"])
    assert first["loss"] != second["loss"]
    said = write_rows(tmp_path / "said.jsonl", [{"text": "hello\nhello\nTwo and two make\nfour"}])
    [text] = score(said, instruct_model_dir, tmp_path / "b", scores=["loss"])
    whole, _ = score(path, instruct_model_dir, tmp_path / "c", scores=["loss"], of="text")
    assert whole["loss"] == pytest.approx(text["loss"], abs=1e-6)


def test_rows_are_kept_by_quantile_and_threshold_and_every_other_is_counted(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path
) -> None:
    every = score(alpaca, instruct_model_dir, tmp_path / "all", scores=["ifd", "loss"])
    ranked = sorted(row["ifd"] for row in every)
    keep: Any = {"ifd": Bounds(min_quantile=0.5)}
    upper = score(alpaca, instruct_model_dir, tmp_path / "upper", scores=["ifd", "loss"], keep=keep)
    assert upper == [row for row in every if row["ifd"] >= ranked[6]]
    found = report(tmp_path / "upper")
    [left] = found["counts"]["Left out"]
    assert (left["count"], left["name"]) == (12 - len(upper), f"ifd below {ranked[6]:.6g}")
    assert any("IFD is above 1" in line for line in found["summary"])
    ends = {entry["name"]: entry["examples"] for entry in found["counts"]["Rows at either end"]}
    assert len(ends["lowest ifd"]) == 10
    assert {one["detail"] for one in ends[f"ifd just below {ranked[6]:.6g}"]} == {f"ifd {x:.6g}" for x in ranked[:6]}
    assert {one["detail"] for one in ends[f"ifd at {ranked[6]:.6g} and just above"]} == {
        f"ifd {value:.6g}" for value in ranked[6:]
    }
    table = next(table for table in found["tables"] if table["title"] == "What is kept, beside all")
    assert [row[:2] for row in table["rows"]] == [["all", 12], ["kept", len(upper)]]
    both: Any = {"ifd": Bounds(max=ranked[8]), "loss": Bounds(min=0.0, max=100.0)}
    lower = score(alpaca, instruct_model_dir, tmp_path / "lower", scores=["ifd", "loss"], keep=both)
    assert lower == [row for row in every if row["ifd"] <= ranked[8]]


def test_a_row_without_a_score_stays_with_null_unless_rows_are_kept_by_score(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    rows = [*ROWS[:3], {"instruction": "Say", "output": " ".join(WORDS * 20)}, {"instruction": "Say", "output": ""}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = score(path, instruct_model_dir, tmp_path / "all", scores=["loss"])
    assert [row["loss"] is None for row in found] == [False, False, False, True, True]
    counted = {entry["name"]: entry["count"] for entry in report(tmp_path / "all")["counts"]["Changed"]}
    assert sorted(counted.values()) == [1, 1]
    assert "no score: longer than the model takes" in counted
    keep: Any = {"loss": Bounds(max=1e9)}
    assert len(score(path, instruct_model_dir, tmp_path / "kept", scores=["loss"], keep=keep)) == 3
    left = report(tmp_path / "kept")["counts"]["Left out"]
    assert {entry["name"]: entry["count"] for entry in left} == counted


def test_scores_of_two_models_stand_side_by_side(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(alpaca, instruct_model_dir, tmp_path / "once")
    once = str(tmp_path / "once" / "rows.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr("posttrain.evals.row_scores.answer_likelihoods", lambda *_, **__: pytest.fail("was scored"))
        with pytest.raises(
            DataError, match="has a column perplexity already; give these scores another name: `suffix`"
        ):
            score(once, instruct_model_dir, tmp_path / "twice")
    twice = score(once, instruct_model_dir, tmp_path / "twice", suffix="_b", output_format="jsonl")
    assert all(row["perplexity"] == row["perplexity_b"] for row in twice)


def test_what_cannot_be_scored_is_said(
    tmp_path: Path, alpaca: str, tiny_model_dir: Path, instruct_model_dir: Path
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: is a conversation, and the model has no chat template"):
        score(alpaca, tiny_model_dir, tmp_path / "a")
    assert len(score(alpaca, tiny_model_dir, tmp_path / "a", chat_template="alpaca")) == 12
    with pytest.raises(
        InputError, match=r"has not learnt tokens of the chat template llama3: <|start_header_id|>, <|end"
    ):
        score(alpaca, tiny_model_dir, tmp_path / "b", chat_template="llama3")
    with pytest.raises(InputError, match="made for 256 tokens"):
        score(alpaca, instruct_model_dir, tmp_path / "c", max_length=257)
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "The lazy dog."}])
    with pytest.raises(DataError, match="cannot be used here"):
        score(texts, instruct_model_dir, tmp_path / "d", scores=["ifd"])


def test_a_killed_call_scores_nothing_twice_and_ends_with_the_same_bytes(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_rows, "CHUNK_ROWS", 3)
    score(alpaca, instruct_model_dir, tmp_path / "whole", scores=["ifd"])
    plain, seen = score_rows._Scorer._score, []

    def counted(scorer: Any, rows: Any, read: Any) -> Any:
        seen.extend(row.values["id"] for row in rows)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return plain(scorer, rows, read)

    monkeypatch.setattr(score_rows._Scorer, "_score", counted)
    with pytest.raises(KeyboardInterrupt):
        score(alpaca, instruct_model_dir, tmp_path / "out", scores=["ifd"])
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    score(alpaca, instruct_model_dir, tmp_path / "out", scores=["ifd"])
    assert seen == [*range(9), *range(6, 12)]
    for name in ("rows.jsonl", "report.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_template_in_the_same_file_does_the_work_again(
    tmp_path: Path, alpaca: str, instruct_model_dir: Path
) -> None:
    template = tmp_path / "own.jinja"
    source = (Path(__file__).parents[2] / "chat_templates" / "alpaca.jinja").read_text()
    tool = ScoreRows(sources=[SourceSpec(path=alpaca)], model=str(instruct_model_dir), chat_template=str(template))
    template.write_text(source)
    before = tool.identity()
    template.write_text(source.replace("Response", "Answer"))
    assert tool.identity() != before


def test_bounds_by_quantile_keep_the_share_that_is_named() -> None:
    values = np.random.default_rng(0).permutation(100).astype(np.float64)
    for share in (0.0, 0.29, 0.5, 0.9):
        assert Bounds(min_quantile=share).resolve(values) == (round(100 * share), math.inf)
        if share:
            assert Bounds(max_quantile=share).resolve(values) == (-math.inf, round(100 * share) - 1)
    assert Bounds(max_quantile=1).resolve(values) == (-math.inf, 99)
    nothing: dict[str, float] = {}
    for wrong, what in (
        (nothing, "give one of min, max"),
        ({"min": 1.0, "min_quantile": 0.5}, "give min or min_quantile, not both"),
        ({"max_quantile": 1.5}, "less than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=what):
            Bounds(**wrong)
