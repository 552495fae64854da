"""A path means the files it seems to mean, or the data set on the Hub; a wrong one is guessed at."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from posttrain.data_tools.ask import SETTINGS
from posttrain.data_tools.embeddings import static_embeddings
from posttrain.data_tools.errors import DataError, HubError
from posttrain.data_tools.personal_data import person_finder
from posttrain.data_tools.readers import Row
from posttrain.data_tools.sources import content_hash, is_hub, local_files, read_rows
from posttrain.data_tools.spec import SourceSpec

ROWS = [{"text": "a"}, {"text": "b"}]


def spec(path: str, **keys: Any) -> SourceSpec:
    return SourceSpec.model_validate({"path": path, **keys})


def rows(base: Path, path: str, **keys: Any) -> list[Row]:
    return list(read_rows(spec(path, **keys), base))


def values(base: Path, path: str, **keys: Any) -> list[dict[str, Any]]:
    return [row.values for row in rows(base, path, **keys)]


def jsonl(items: list[Any]) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in items).encode()


# which files


def test_a_missing_file_is_guessed_at(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(jsonl(ROWS))
    for path, guess in (
        ("data/trian.jsonl", "train.jsonl"),
        ("dat/train.jsonl", "data"),
        (str(tmp_path / "data" / "tran.jsonl"), "train.jsonl"),
    ):
        with pytest.raises(DataError, match=f"no such file or folder; did you mean '{guess}'"):
            rows(tmp_path, path)
    with pytest.raises(DataError, match="no such file or folder; looked in"):
        rows(tmp_path, "data/unlike-anything")
    with pytest.raises(DataError, match="no file matches"):
        rows(tmp_path, "data/*.csv")
    (tmp_path / "data" / "x.md").write_text("")
    with pytest.raises(DataError, match="not a known type of data file"):
        rows(tmp_path, "data/x.md")


@pytest.mark.parametrize(
    ("path", "hub"),
    [
        ("org/name", True),
        ("org/name.v1-2", True),
        ("org/data.jsonl", False),
        ("org/data.json.gz", False),
        ("./org/name", False),
        ("/org/name", False),
        ("name", False),
        ("org/a/b", False),
        ("org/*", False),
        ("here/missing", False),
    ],
)
def test_a_path_is_told_from_a_hub_id(tmp_path: Path, path: str, hub: bool):
    (tmp_path / "here").mkdir()
    assert is_hub(spec(path), tmp_path) is hub


def test_folders_and_globs_are_read_in_order(tmp_path: Path):
    for number, name in enumerate(("b/2.jsonl", "a/1.jsonl.gz", "c.jsonl")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        data = jsonl([{"n": number}])
        (tmp_path / "d" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "d" / ".hidden.jsonl").write_text("nonsense")
    (tmp_path / "d" / "README.md").write_text("nonsense")
    assert [row["n"] for row in values(tmp_path, "d")] == [1, 0, 2]
    assert [row["n"] for row in values(tmp_path, "d/**/*.jsonl")] == [0, 2]
    assert [row["n"] for row in values(tmp_path, f"{tmp_path}/d/?/*")] == [1, 0]
    (tmp_path / "d" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"files of several types: \.jsonl, \.txt"):
        rows(tmp_path, "d")


def test_a_folder_with_splits_gives_the_one_asked_for(tmp_path: Path):
    for name in ("train-00000-of-00001.jsonl", "val.jsonl", "test/part.jsonl"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jsonl([{"name": name}]))
    assert [file.name for file in local_files(spec("d"), tmp_path)] == ["train-00000-of-00001.jsonl"]
    assert [file.name for file in local_files(spec("d", split="validation"), tmp_path)] == ["val.jsonl"]
    assert [file.name for file in local_files(spec("d", split="test"), tmp_path)] == ["part.jsonl"]
    with pytest.raises(DataError, match="no files of split 'holdout'; splits here: test, train, validation"):
        local_files(spec("d", split="holdout"), tmp_path)
    with pytest.raises(DataError, match="split 'test' of a file"):
        local_files(spec("d/val.jsonl", split="test"), tmp_path)


def test_what_a_step_of_a_pipeline_writes_beside_rows_is_no_file_of_rows(tmp_path: Path):
    for name in ("report.json", "manifest.json", ".step.json", SETTINGS):
        (tmp_path / name).write_text("{}")
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS))
    assert values(tmp_path, ".") == ROWS


def test_rows_that_a_selection_is_compared_with_are_none_of_its_own(tmp_path: Path):
    for folder, text in (("chosen", "best"), ("chosen/random", "any"), ("chosen/more", "too")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pool.jsonl").write_bytes(jsonl([{"text": text}]))
    (tmp_path / "chosen" / "report.json").write_text(json.dumps({"arguments": {"baselines": ["random", "longest"]}}))
    assert values(tmp_path, "chosen") == values(tmp_path, ".") == [{"text": "too"}, {"text": "best"}]
    assert values(tmp_path, "chosen/random") == [{"text": "any"}]


def test_what_datasets_keeps_beside_a_saved_data_set_is_not_read_with_it(tmp_path: Path):
    from datasets import Dataset, load_from_disk

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    load_from_disk(tmp_path / "saved").map(lambda row: {"text": row["text"].upper()})
    assert [*tmp_path.glob("saved/cache-*.arrow")]
    assert values(tmp_path, "saved") == ROWS


def test_documents_are_labelled_by_their_folders(tmp_path: Path):
    for name in ("neg/1.txt", "neg/2.txt", "pos/1.txt"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_text(f"A film.\nIt is {name}.")
    keys = {"format": "classification", "sample_by": "document"}
    assert [row["label"] for row in values(tmp_path, "films", **keys)] == ["neg", "neg", "pos"]
    assert values(tmp_path, "films", **keys)[2]["text"] == "A film.\nIt is pos/1.txt."
    assert "label" not in values(tmp_path, "films", sample_by="document")[0]
    before = content_hash(spec("films", **keys), tmp_path)
    (tmp_path / "films" / "pos").rename(tmp_path / "films" / "rave")
    assert content_hash(spec("films", **keys), tmp_path) != before


def test_a_file_is_read_as_what_the_source_says_it_is(tmp_path: Path):
    (tmp_path / "pairs.txt").write_text('Quality\t#1 String\n1\tHe said "no\n')
    (tmp_path / "rows.dat").write_bytes(jsonl(ROWS))
    columns = {"Quality": "label", "#1 String": "text"}
    assert values(tmp_path, "pairs.txt", file_type="tsv", columns=columns) == [{"label": "1", "text": 'He said "no'}]
    assert values(tmp_path, "rows.dat", file_type="jsonl") == ROWS
    assert not is_hub(spec("org/rows", file_type="jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"not a known type of data file; .*or say with `file_type`"):
        rows(tmp_path, "rows.dat")


def test_the_hash_of_a_source_follows_its_bytes(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    first = content_hash(spec("a.jsonl"), tmp_path)
    os.utime(tmp_path / "a.jsonl", (0, 0))
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS))
    assert content_hash(spec("b.jsonl"), tmp_path) == first == content_hash(spec("a.jsonl"), tmp_path)
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS[:-1]))
    assert content_hash(spec("a.jsonl"), tmp_path) != first


# the Hub


def test_a_hub_dataset_is_read_with_its_split_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"m": [{"x": 1}, {"y": "a"}]}, {"m": []}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    place = "org/name@v1[main/test]"
    got = rows(tmp_path, "org/name", subset="main", split="test", revision="v1")
    assert asked == [(("org/name", "main"), {"split": "test", "revision": "v1"})]
    assert got == [Row(f"{place}[0]", {"m": [{"x": 1}, {"y": "a"}]}), Row(f"{place}[1]", {"m": []})]
    others = ({"subset": "main"}, {"subset": "main", "split": "test"}, {"split": "test", "revision": "v1"}, {})
    assert len({got[0].where, *(rows(tmp_path, "org/name", **other)[0].where for other in others)}) == 5


def test_a_hub_dataset_out_of_reach_is_one_plain_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"org/nowhere: cannot load from the Hub: .*did you mean a local file"):
        rows(tmp_path, "org/nowhere")


def test_a_hub_that_does_not_answer_is_no_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=r"org/name: .*cannot be reached.*; try again") as found:
        rows(tmp_path, "org/name")
    assert found.value.exit_code == 1


@pytest.mark.parametrize(
    ("library", "load"),
    [("transformers.AutoModelForTokenClassification", person_finder), ("model2vec.StaticModel", static_embeddings)],
)
def test_nor_where_a_tool_loads_a_model(library: str, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        raise OSError("We couldn't connect to the Hub") from ConnectionError("refused")

    monkeypatch.setattr(f"{library}.from_pretrained", from_pretrained)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=r"org/name: .*cannot be reached"):
        load("org/name")
