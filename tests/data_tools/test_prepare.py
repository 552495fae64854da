"""From a recipe's data section to rows on disk: nothing lost, nothing stale, nothing done twice."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from posttrain import chat_templates
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools import prepare as module
from posttrain.data_tools.dataset import PreparedReport
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.prepare import prepare
from posttrain.data_tools.spec import DataSpec

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "says",
    "hello",
    "to",
    "user",
    "17",
    "of",
    "42",
]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def run(tmp_path, tokenizer):
    """Calls prepare on a data section, with defaults for all else."""

    def call(data: dict, split: str = "train", **options):
        settings = {
            "base_dir": tmp_path,
            "tokenizer": tokenizer,
            "template": chat_templates.load("chatml"),
            "accepts": ("text", "messages", "prompt_completion"),
            "max_length": 64,
            "packing": None,
            "loss_on": "assistant",
            "cache_dir": tmp_path / "cache",
        }
        return prepare(DataSpec.model_validate(data), split, **(settings | options))

    return call


@pytest.fixture
def texts(tmp_path):
    texts = make_texts(300)
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    return texts


def expected_ids(tokenizer, texts):
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]


@pytest.mark.parametrize(
    ("packing", "split"), [("bfd_split", "train"), ("wrapped", "train"), ("bfd_split", "eval"), (None, "train")]
)
def test_every_token_of_every_text_is_trained_on_once(run, texts, tokenizer, packing, split):
    data = {"train": {"path": "texts.jsonl"}, "eval": {"path": "texts.jsonl"}, "too_long": "split"}
    prepared = run(data, split, packing=packing, max_length=32)
    ids = [token for row in prepared.dataset["input_ids"] for token in row]
    expected = [token for document in expected_ids(tokenizer, texts) for token in document]
    assert len(ids) == len(expected) == prepared.report.tokens
    assert np.bincount(ids, minlength=600).tolist() == np.bincount(expected, minlength=600).tolist()
    assert max(map(len, prepared.dataset["input_ids"])) <= 32
    assert prepared.report.dropped == {}


def test_sequences_of_packed_rows_are_the_documents(run, texts, tokenizer):
    prepared = run({"train": {"path": "texts.jsonl"}}, packing="bfd", max_length=128)
    found = []
    for row in prepared.dataset:
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"])
        parts = np.split(row["input_ids"], ends[:-1])
        for ids, labels in zip(parts, np.split(row["labels"], ends[:-1]), strict=True):
            found.append(ids.tolist())
            assert labels.tolist() == [-100, *ids[1:].tolist()]
    assert sorted(found) == sorted(expected_ids(tokenizer, texts))
    assert prepared.report.fill > 0.95
    assert len(prepared.dataset) == prepared.report.rows < len(texts)


def test_wrapped_rows_are_one_sequence_each(run, texts):
    prepared = run({"train": {"path": "texts.jsonl"}}, packing="wrapped", max_length=50)
    assert all(row["seq_lengths"] == [len(row["input_ids"])] for row in prepared.dataset)
    assert {len(ids) for ids in prepared.dataset["input_ids"][:-2]} == {
        50
    }  # the last two make sure that none is of one token


def test_rows_are_mapped_int32_arrow(run, texts):
    prepared = run({"train": {"path": "texts.jsonl"}}, packing="bfd", max_length=128)
    assert {name: str(column.feature.dtype) for name, column in prepared.dataset.features.items()} == dict.fromkeys(
        ("input_ids", "labels", "seq_lengths"), "int32"
    )
    assert prepared.dataset.cache_files[0]["filename"].endswith("rows.arrow")


def test_evaluation_rows_keep_their_order_and_ignore_the_budget(run, texts, tokenizer):
    prepared = run({"train": {"path": "x"}, "eval": {"path": "texts.jsonl"}, "tokens": 10}, "eval", max_length=None)
    assert prepared.dataset["input_ids"][:] == expected_ids(tokenizer, texts)


def test_training_rows_are_shuffled_by_the_seed(run, texts, tokenizer):
    def rows(seed):
        return run({"train": {"path": "texts.jsonl"}, "seed": seed}, max_length=None).dataset["input_ids"][:]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert sorted(rows(0)) == sorted(expected_ids(tokenizer, texts))


def test_labels_are_the_answers_and_the_report_counts_them(run, tmp_path, tokenizer):
    write_jsonl(tmp_path / "chat.jsonl", [chat("hello user", "the lazy dog"), chat("fox", "quick brown")])
    prepared = run({"train": {"path": "chat.jsonl"}})
    learnt = {tokenizer.decode([t for t in labels if t != -100]).strip() for labels in prepared.dataset["labels"]}
    assert {text.replace("\n", "") for text in learnt} == {"the lazy dog<|im_end|>", "quick brown<|im_end|>"}
    assert prepared.report.loss_tokens == sum(t != -100 for labels in prepared.dataset["labels"] for t in labels)
    assert prepared.report.tokens == sum(map(len, prepared.dataset["input_ids"]))


def test_mixture_shares_are_shares_of_tokens(run, tmp_path):
    write_jsonl(tmp_path / "short.jsonl", [{"text": text} for text in make_texts(900, 1, 6)])
    write_jsonl(tmp_path / "long.jsonl", [{"text": text} for text in make_texts(100, 2, 60)])
    data = {
        "train": [{"path": "short.jsonl", "weight": 0.25}, {"path": "long.jsonl", "weight": 0.75}],
        "tokens": 8000,
    }
    sources = run(data, max_length=None).report.sources
    for source, target in zip(sources, (2000, 6000), strict=True):
        assert abs(source.tokens - target) <= 60
        assert source.target == target / 8000
    assert sources[1].epochs > 1 > sources[0].epochs
    assert run(data | {"seed": 7}, max_length=None).report.sources[1].tokens != 0


# --- rows that do not fit


@pytest.fixture
def one_long(tmp_path):
    rows = [{"text": "fox"}] * 99  # three tokens and EOS
    rows += [{"text": "fox " * 100}]
    write_jsonl(tmp_path / "long.jsonl", rows)
    return {"train": {"path": "long.jsonl"}}


@pytest.mark.parametrize("packing", [None, "bfd"])
def test_a_row_that_is_too_long_is_dropped_and_named(run, one_long, packing):
    report = run(one_long, packing=packing).report
    assert report.dropped == {"longer than max_length": 1}
    assert report.sources[0].examples["longer than max_length"][0].startswith("long.jsonl:100: ")
    assert (report.sources[0].rows, report.sources[0].kept) == (100, 99)


def test_too_many_long_rows_stop_the_run_even_if_the_rows_are_cached(run, one_long):
    run(one_long)
    with pytest.raises(DataError, match="1 of 100 rows cannot be used: longer than max_length") as caught:
        run(one_long | {"max_bad_share": 0.001})
    assert "long.jsonl:100" in str(caught.value)


def test_too_long_truncate_cuts_and_counts(run, one_long):
    prepared = run(one_long | {"too_long": "truncate"})
    assert sorted(map(len, prepared.dataset["input_ids"]))[-2:] == [4, 64]
    assert prepared.report.sources[0].truncated == 1
    assert prepared.report.dropped == {}


def test_too_long_split_keeps_every_token(run, one_long, tokenizer):
    prepared = run(one_long | {"too_long": "split"})
    whole = len(tokenizer("fox " * 100)["input_ids"]) + 1
    assert sum(map(len, prepared.dataset["input_ids"])) == whole + 99 * 4
    assert max(map(len, prepared.dataset["input_ids"])) == 64


def test_too_long_error_says_where(run, one_long):
    with pytest.raises(DataError, match="1 rows are longer than 64 tokens") as caught:
        run(one_long | {"too_long": "error"})
    assert str(caught.value).startswith("long.jsonl:100")


def test_conversations_are_never_split_by_length_alone(run, tmp_path):
    write_jsonl(tmp_path / "chat.jsonl", [chat("fox", "dog " * 200)])
    with pytest.raises(DataError, match="only text can be split, not messages"):
        run({"train": {"path": "chat.jsonl"}, "too_long": "split"})


def test_truncation_that_leaves_nothing_to_learn_drops_the_row(run, tmp_path):
    write_jsonl(tmp_path / "chat.jsonl", [chat("fox " * 200, "dog"), *[chat("fox", "dog " * 100)] * 60])
    report = run({"train": {"path": "chat.jsonl"}, "too_long": "truncate"}).report
    assert report.dropped == {"no token carries loss": 1}
    assert report.sources[0].truncated == 60
    assert report.rows_without_loss == 0


def test_bad_rows_of_reader_and_tokeniser_are_counted_together(run, tmp_path):
    lines = [json.dumps(chat("fox", "dog"))] * 97 + ["{torn", json.dumps(chat("fox", ""))]
    lines.append(json.dumps({"messages": [{"role": "user", "content": "fox"}]}))
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n")
    report = run({"train": {"path": "chat.jsonl"}, "max_bad_share": 0.05}).report
    assert report.sources[0].rows == 100
    assert report.sources[0].kept == 100 - sum(report.dropped.values())
    assert 2 <= sum(report.dropped.values()) <= 3
    assert all(report.sources[0].examples.values())


# --- the cache


CHANGES = {
    "weights": {"data": {"mix": "weights"}},
    "seed": {"data": {"seed": 1}},
    "tokens": {"data": {"tokens": 500}},
    "too_long": {"data": {"too_long": "truncate"}},
    "limit": {"source": {"limit": 10}},
    "max_length": {"options": {"max_length": 63}},
    "packing": {"options": {"packing": "bfd"}},
    "loss_on": {"options": {"loss_on": "all"}},
    "template": {"options": {"template": chat_templates.load("zephyr")}},
    "no template": {"options": {"template": None}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_the_rows_changes_the_fingerprint(run, texts, change):
    source = {"path": "texts.jsonl"}
    before = run({"train": source})
    after = run({"train": source | change.get("source", {}), **change.get("data", {})}, **change.get("options", {}))
    assert before.fingerprint != after.fingerprint
    assert not after.cached


def test_the_second_call_reads_nothing_again(run, texts, monkeypatch):
    first = run({"train": {"path": "texts.jsonl"}}, packing="bfd")
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("read again"))
    second = run({"train": {"path": "texts.jsonl"}}, packing="bfd")
    assert (first.cached, second.cached) == (False, True)
    assert second.dataset[:] == first.dataset[:]
    assert second.report == first.report
    # another mixture or packing takes other rows, but the same tokens
    assert run({"train": {"path": "texts.jsonl"}, "tokens": 900, "seed": 3}, packing="wrapped").report.tokens > 0


def test_changed_content_is_read_again(run, tmp_path, texts):
    first = run({"train": {"path": "texts.jsonl"}})
    path = tmp_path / "texts.jsonl"
    stat = path.stat()
    path.write_text(path.read_text().replace("fox", "dog"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    second = run({"train": {"path": "texts.jsonl"}})
    assert second.fingerprint != first.fingerprint
    assert second.dataset[:] != first.dataset[:]


def test_a_tokenizer_with_other_specials_or_merges_has_its_own_tokens(run, texts, tokenizer):
    first = run({"train": {"path": "texts.jsonl"}})
    tokenizer.eos_token = "<|im_end|>"
    second = run({"train": {"path": "texts.jsonl"}})
    tokenizer.add_tokens(["quick brown"])
    third = run({"train": {"path": "texts.jsonl"}})
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    assert third.dataset[:] != second.dataset[:] != first.dataset[:]


def test_using_a_tokenizer_with_truncation_does_not_change_its_key(run, texts, tokenizer):
    first = run({"train": {"path": "texts.jsonl"}})
    tokenizer("fox", truncation=True, max_length=2, padding="max_length")
    assert run({"train": {"path": "texts.jsonl"}}).cached
    assert first.fingerprint == run({"train": {"path": "texts.jsonl"}}).fingerprint


@pytest.mark.parametrize("part", ["rows.arrow", "ids.int32", "meta.json"])
def test_damage_is_mended(run, tmp_path, texts, part):
    first = run({"train": {"path": "texts.jsonl"}})
    expected, rows = first.dataset[:], first.dataset.cache_files[0]["filename"]
    for path in (tmp_path / "cache").rglob(part):
        os.truncate(path, path.stat().st_size // 2)
    if part == "ids.int32":
        Path(rows).unlink()  # so that the tokens are needed
    second = run({"train": {"path": "texts.jsonl"}})
    assert second.dataset[:] == expected


def _race(call, queue):
    prepared = call()
    queue.put((prepared.cached, prepared.fingerprint, prepared.report.tokens))


def test_two_processes_may_ask_at_once(run, texts):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    racers = [
        context.Process(target=_race, args=(lambda: run({"train": {"path": "texts.jsonl"}}), queue)) for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    results = [queue.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sorted(cached for cached, _, _ in results) == [False, True]
    assert len({result[1:] for result in results}) == 1


def test_a_report_survives_json(run, texts):
    report = run({"train": {"path": "texts.jsonl"}}, packing="bfd").report
    assert PreparedReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.slow
def test_processes_change_nothing(run, tmp_path, texts):
    write_jsonl(tmp_path / "chat.jsonl", [chat(text, text) for text in texts * 4])
    data = {
        "train": [{"path": "texts.jsonl"}, {"path": "chat.jsonl", "limit": 1000}],
        "too_long": "truncate",
        "max_bad_share": 0.1,
    }
    one = run(data, cache_dir=tmp_path / "one")
    two = run(data, cache_dir=tmp_path / "two", num_proc=2)
    assert one.dataset[:] == two.dataset[:]
    assert one.report == two.report


@pytest.mark.slow
def test_another_process_finds_the_rows(tmp_path, texts, tiny_model_dir, monkeypatch):
    code = """
import sys
from pathlib import Path
from posttrain import chat_templates
from posttrain.data_tools.prepare import prepare
from posttrain.data_tools.spec import DataSpec
from transformers import AutoTokenizer
folder = Path(sys.argv[1])
prepared = prepare(DataSpec.model_validate({"train": {"path": "texts.jsonl"}}), "train", base_dir=folder,
    tokenizer=AutoTokenizer.from_pretrained(sys.argv[2]), template=chat_templates.load("chatml"), accepts=("text",),
    max_length=64, packing="bfd", loss_on="assistant", cache_dir=folder / "cache")
print(prepared.fingerprint, prepared.cached)
"""
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path), str(tiny_model_dir)])
    exec(code, made := {})
    theirs = subprocess.run(
        [sys.executable, "-c", code, *sys.argv[1:]],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not made["prepared"].cached
    assert theirs == [made["prepared"].fingerprint, "True"]


def test_wrong_calls_are_refused(run, texts):
    with pytest.raises(ValueError, match="max_length"):
        run({"train": {"path": "texts.jsonl"}}, packing="bfd", max_length=None)
    with pytest.raises(ValueError, match="no evaluation data"):
        run({"train": {"path": "texts.jsonl"}}, "eval")
    with pytest.raises(ValueError, match="made here"):
        run({"train": {"path": "texts.jsonl"}}, accepts=("preference", "text"))
    with pytest.raises(InputError):
        run({"train": {"path": "nowhere.jsonl"}})


@pytest.mark.parametrize("packing", [None, "bfd_split", "wrapped"])
def test_rows_come_in_the_order_of_a_column(run, tmp_path, tokenizer, packing):
    texts = make_texts(40, longest=12)
    marks = np.random.default_rng(1).permutation(40).tolist()
    write_jsonl(tmp_path / "a.jsonl", [{"text": t, "mark": m} for t, m in zip(texts[:25], marks[:25], strict=True)])
    write_jsonl(tmp_path / "b.jsonl", [{"text": t, "mark": m} for t, m in zip(texts[25:], marks[25:], strict=True)])
    data = {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl"}], "order": {"column": "mark", "descending": True}}
    prepared = run(data, packing=packing)
    found = [token for row in prepared.dataset for token in row["input_ids"]]
    expected = [expected_ids(tokenizer, [text])[0] for _, text in sorted(zip(marks, texts, strict=True), reverse=True)]
    if packing == "bfd_split":  # 40 short texts are one window of rows, in which neighbours change places
        assert sorted(found) == sorted(token for ids in expected for token in ids)
        assert found != [token for ids in expected for token in ids]
    else:
        assert found == [token for ids in expected for token in ids]
    assert prepared.report.order == "by column mark, descending"
    assert "not read" not in str(prepared.report.notes)


@pytest.mark.parametrize(("order", "ascending"), [("length", True), ({"by": "length", "descending": True}, False)])
def test_rows_come_by_length(run, texts, order, ascending):
    lengths = [len(row["input_ids"]) for row in run({"train": {"path": "texts.jsonl"}, "order": order}).dataset]
    assert lengths == sorted(lengths, reverse=not ascending)


def test_rows_come_as_given(run, texts, tokenizer):
    rows = run({"train": {"path": "texts.jsonl"}, "order": "given"}, max_length=200).dataset
    assert [row["input_ids"] for row in rows] == expected_ids(tokenizer, texts)


def test_a_column_that_is_not_there_or_no_number_is_an_error(run, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "hello", "quality": 0.5}] * 9 + [{"text": "hello", "quality": "good"}])
    with pytest.raises(DataError, match=r"missing column 'qualty' of data.order.*did you mean 'quality'"):
        run({"train": {"path": "a.jsonl"}, "order": {"column": "qualty"}})
    with pytest.raises(DataError, match=r"no number in column 'quality' \(1, as in a.jsonl:10: it has 'good'\)"):
        run({"train": {"path": "a.jsonl", "row_weight": "quality"}})
    write_jsonl(tmp_path / "a.jsonl", [{"text": "hello", "quality": 0.5}] * 3 + [{"text": "hello", "quality": -1}])
    with pytest.raises(DataError, match=r"a.jsonl:4: row_weight: the column 'quality' holds -1; 0 is the least"):
        run({"train": {"path": "a.jsonl", "row_weight": "quality"}})


def test_row_weights_are_times(run, tmp_path, tokenizer):
    texts = make_texts(30)
    write_jsonl(tmp_path / "a.jsonl", [{"text": text, "times": number % 3} for number, text in enumerate(texts)])
    rows = run({"train": {"path": "a.jsonl", "row_weight": "times"}}).dataset
    expected = [ids for number, ids in enumerate(expected_ids(tokenizer, texts)) for _ in range(number % 3)]
    assert sorted(row["input_ids"] for row in rows) == sorted(expected)


def test_a_schedule_is_in_the_rows_and_in_the_report(run, tmp_path, tokenizer):
    for name, word in (("web", "fox"), ("maths", "17")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": " ".join([word] * 9)} for _ in range(400)])
    sources = [{"path": "web.jsonl", "name": "web"}, {"path": "maths.jsonl", "name": "maths"}]
    schedule = [{"share": 3, "weights": {"web": 1}}, {"share": 1, "weights": {"web": 1}, "to": {"maths": 1}}]
    prepared = run({"train": sources, "schedule": schedule, "tokens": 4000}, packing="bfd_split", max_length=50)
    first, second = prepared.report.phases
    assert (first.share, first.target) == ((1.0, 0.0), (1.0, 0.0))
    assert second.share == pytest.approx((0.5, 0.5), abs=0.02)
    assert first.rows + second.rows == len(prepared.dataset)
    fox = tokenizer(" fox")["input_ids"][-1]
    shares = [row["input_ids"].count(fox) > 0 for row in prepared.dataset]
    assert all(shares[: first.rows])
    assert not all(shares[first.rows :])
    assert PreparedReport.from_dict(json.loads(json.dumps(prepared.report.to_dict()))) == prepared.report
    assert "phase 2, from row" in prepared.report.notes[-1]
