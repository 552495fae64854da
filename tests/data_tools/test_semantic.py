"""Rows alike in meaning are flagged; what changes a meaning keeps a row from going."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.data_tools import endpoint_client
from posttrain.data_tools.embeddings import static_embeddings
from posttrain.data_tools.endpoint import EndpointSpec
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.explain import Explain
from posttrain.data_tools.semantic import Semantic, differences, most_alike
from posttrain.data_tools.spec import SourceSpec

from ..fault_server import FaultServer, sometimes
from ..rows import read_rows, write_texts

# Pairs that embeddings by a mean of static vectors cannot tell apart, or hardly, and whose meanings differ.
LONG = " ".join(f"word{number % 7}" for number in range(600))
TRAPS = [
    ("alice paid bob", "bob paid alice"),
    ("What is 17 plus 25?", "What is 25 plus 17?"),
    ("the patient has a history of cancer", "the patient has no history of cancer"),
    ("find the maximum of the list", "find the minimum of the list"),
    (f"{LONG} and then he said yes", f"{LONG} and then he said nothing"),
]
SAME = ("the cat sat on the mat", "the cat sat on a mat")


@pytest.fixture(scope="session")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Static vectors of the words above: unrelated ones, but for opposites and small words, which have small ones."""
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({word for pair in [*TRAPS, SAME] for text in pair for word in text.lower().strip("?").split()})
    vectors = np.random.default_rng(1).normal(size=(len(words) + 1, 32)).astype(np.float32)
    places = {word: place + 1 for place, word in enumerate(words)}
    vectors[[0, *(places[word] for word in ("a", "no", "the", "of"))]] *= 0.05
    vectors[places["minimum"]] = vectors[places["maximum"]] + 0.2
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | places, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("static")
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(folder)
    return str(folder)


def semantic(path: str, folder: Path, **more: Any) -> list[dict[str, Any]]:
    Semantic(sources=[SourceSpec(path=path)], **more).run(folder)
    return read_rows(folder / Path(path).name)


def test_another_model_in_the_same_folder_does_the_work_again(tmp_path: Path) -> None:
    tool = Semantic(sources=[SourceSpec(path="a.jsonl")], model=str(tmp_path))
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(b"one")
    before = tool.identity()
    (tmp_path / "part" / "model.safetensors").write_bytes(b"two")
    assert tool.identity() != before


def test_what_is_alike_is_flagged_and_stays(tmp_path: Path, static_model: str) -> None:
    path = write_texts(tmp_path / "a.jsonl", [*SAME, "alice said nothing"])
    rows = semantic(path, tmp_path / "out", model=static_model)
    assert rows == [
        {"text": SAME[0], "similar_to": None},
        {"text": SAME[1], "similar_to": f"{path}:1"},
        {"text": "alice said nothing", "similar_to": None},
    ]
    [flag] = read_rows(tmp_path / "out" / "flagged.log")
    vectors = static_embeddings(static_model)(SAME)
    assert flag["similarity"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    assert (flag["row"], flag["like"], flag["differs"], flag["removed"]) == (f"{path}:2", f"{path}:1", [], False)
    said = Explain(folder=str(tmp_path / "out"), row="a.jsonl:2").run(tmp_path)
    assert "nothing that is looked at differs" in said
    assert SAME[0] in said


def test_rows_of_an_earlier_call_are_looked_at_again_and_what_it_said_stays(
    tmp_path: Path, static_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_texts(tmp_path / "a.jsonl", SAME)
    kept = semantic(path, tmp_path / "one", model=static_model, remove=True)
    assert semantic(str(tmp_path / "one" / "a.jsonl"), tmp_path / "two", model=static_model, remove=True) == kept
    flagged = semantic(path, tmp_path / "flagged", model=static_model)
    again = SourceSpec(path=str(tmp_path / "flagged" / "a.jsonl"), columns={"similar_to": "similar_to_before"})
    Semantic(sources=[again], model=static_model).run(tmp_path / "again")
    rows = read_rows(tmp_path / "again" / "a.jsonl")
    assert [row["similar_to_before"] for row in rows] == [row["similar_to"] for row in flagged]
    monkeypatch.setattr("posttrain.data_tools.semantic.static_embeddings", lambda _: pytest.fail)
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: has a column similar_to already; .*{similar_to: similar_to_before}"
    ):
        semantic(again.path, tmp_path / "refused", model=static_model)


def test_only_what_agrees_may_go(tmp_path: Path, static_model: str) -> None:
    rows = [text for pair in [*TRAPS, SAME] for text in pair]
    kept = semantic(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out", model=static_model, remove=True)
    flags = read_rows(tmp_path / "out" / "flagged.log")
    assert [int(flag["row"].split(":")[-1]) for flag in flags] == [2, 4, 6, 8, 10, 12], "the vectors tell none apart"
    assert [flag["differs"] for flag in flags] == [
        ["order of words"],
        ["numbers", "order of words"],
        ["negations"],
        ["opposites"],
        ["negations", "opposites"],
        [],
    ]
    assert [row["text"] for row in kept] == rows[:-1]


def test_a_chat_with_other_tools_does_not_go(tmp_path: Path, static_model: str) -> None:
    talk = [{"role": "user", "content": SAME[0]}, {"role": "assistant", "content": SAME[1]}]
    tools = [{"type": "function", "function": {"name": name}} for name in ("calc", "search")]
    rows = [{"messages": talk, "tools": some} for some in (tools, tools[:1], tools)]
    path = write_texts(tmp_path / "a.jsonl", rows)
    kept = semantic(path, tmp_path / "out", model=static_model, remove=True)
    assert [row["tools"] for row in kept] == [tools, tools[:1]]


def test_tools_are_no_part_of_what_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(texts: list[str]) -> Any:
        return np.array([[0, 1] if "[tools" in text else [1, 0] for text in texts], np.float32)

    monkeypatch.setattr("posttrain.data_tools.semantic.static_embeddings", lambda model: embed)
    tools = [{"type": "function", "function": {"name": "calc"}}]
    talk = [{"role": "user", "content": "nothing"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": talk} | more for more in ({}, {"tools": tools})]
    semantic(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out", model="any")
    [flag] = read_rows(tmp_path / "out" / "flagged.log")
    assert (flag["similarity"], flag["differs"]) == (1, ["numbers"])


def test_rows_of_one_template_do_not_go_for_the_template(tmp_path: Path, static_model: str) -> None:
    frame = "the patient has a history of cancer and then he said"
    rows = [f"{frame} cat", f"{frame} mat", f"{frame} the cat"]
    path = write_texts(tmp_path / "a.jsonl", rows)
    kept = semantic(path, tmp_path / "out", model=static_model, remove=True, threshold=0.7)
    assert [row["text"] for row in kept] == rows[:2]
    assert [flag["differs"] for flag in read_rows(tmp_path / "out" / "flagged.log")] == [["other words"], []]


@pytest.mark.parametrize(
    ("text", "other", "differs"),
    [
        ("Who was Ada Lovelace?", "Who was Alan Turing?", ["names"]),
        ("Anna left. Everyone slept.", "Berta left. Everyone slept.", ["names"]),
        ("It costs 3 euros.", "It costs three euros.", []),
        ("It costs 3.5 euros.", "It costs 3 euros.", ["numbers"]),
        ("It is possible to win.", "It is impossible to win.", ["negations"]),
        ("They don't eat meat.", "They do eat meat.", ["negations"]),
        ("Solve x + 2 = 5.", "Now solve x + 2 = 5.", ["mathematics"]),
        ("Run `f()` now", "Please run `f()` now", ["code"]),
        ("```\na\n```", "```\nb\n```", ["code"]),
        ("Fly from Rome.", "Fly to Rome.", ["opposites"]),
        ("Describe a sunny day.", "Please describe a sunny day.", []),
    ],
)
def test_what_differs_is_named(text: str, other: str, differs: list[str]) -> None:
    common = {"who", "it", "they", "solve", "run", "fly", "describe", "please", "now", "everyone"}
    assert differences(text, other, common) == differs
    assert differences(other, text, common) == differs
    assert differences(text, text, common) == [name for name in differs if name in ("mathematics", "code")]


def test_a_row_is_flagged_for_one_that_is_not_flagged() -> None:
    draw = np.random.default_rng(2)
    vectors = draw.normal(size=(3000, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    like, similarity = most_alike(vectors, 0.95)
    flagged = similarity >= 0.95
    stays: list[int] = []
    for place in range(len(vectors)):
        cosines = vectors[stays] @ vectors[place] if stays else np.array([-1.0])
        assert similarity[place] == pytest.approx(max(cosines.max(), 0), abs=1e-5)
        assert bool(flagged[place]) == bool(cosines.max() >= 0.95) or abs(cosines.max() - 0.95) < 1e-5
        if not flagged[place]:
            stays.append(place)
        else:
            assert not flagged[like[place]]
    assert 20 < len(stays) < 200


def test_a_server_gives_embeddings_and_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "FIRST_PAUSE", 0.01)
    path = write_texts(tmp_path / "a.jsonl", ["abc abc", "xyz zyx", "cab cab", "qqq"])
    with FaultServer(sometimes(0.4, "429", "500", "malformed", "truncated")) as server:
        spec = EndpointSpec(model="m", base_url=server.url, retries=20)
        rows = semantic(path, tmp_path / "out", endpoint=spec, threshold=0.95)
        assert [row["similar_to"] for row in rows] == [None, None, f"{path}:1", None]
        assert set(server.paid.values()) == {1}
        sent = len(server.requests)
        semantic(path, tmp_path / "out", endpoint=spec, threshold=0.8)
        assert len(server.requests) == sent


def test_what_cannot_be_is_one_error(tmp_path: Path, static_model: str) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["a", "b", "c"])
    with pytest.raises(ValueError, match="one of the two"):
        Semantic(sources=[SourceSpec(path=path)])
    with pytest.raises(DataError, match="more than 2 rows"):
        semantic(path, tmp_path / "out", model=static_model, max_rows=2)
    with pytest.raises(DataError, match="there is no such folder"):
        semantic(path, tmp_path / "out", model=str(tmp_path / "nowhere" / "at" / "all"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no static embeddings"):
        semantic(path, tmp_path / "out", model=str(tmp_path / "empty"))


def test_long_texts_are_embedded_whole(static_model: str) -> None:
    embed = static_embeddings(static_model)
    words = random.Random(1).choices(["cat", "mat", "sat"], k=600)
    one, other = embed([" ".join(words), " ".join([*words, *["alice"] * 200])])
    assert float(one @ other) < 0.95
