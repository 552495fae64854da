"""Lists of words: whole words and phrases, whatever their case, and rows that go by them."""

import json
from pathlib import Path

import pytest
from posttrain.data_tools.clean import Clean
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.word_list import BUILT_IN, WordList


def found(listed: WordList, texts: list[str]) -> list[list[str]]:
    numbers, entries = listed.find(texts)
    return [
        [listed.entries[entry] for at, entry in zip(numbers, entries, strict=True) if at == n]
        for n in range(len(texts))
    ]


def test_words_and_phrases_are_found_whole_and_in_any_case() -> None:
    listed = WordList.of(["ass", "Son of a gun", "über", "ass", "...", "漢字"])
    texts = ["An ASS, a class; ass-like.", "son OF\n a gun!", "", "son of a", "ÜBER uber", "漢字かな", "of a gun ass"]
    assert found(listed, texts) == [["ass", "ass"], ["Son of a gun"], [], [], ["über"], ["漢字"], ["ass"]]
    assert found(listed, []) == []
    assert found(WordList.of([]), texts) == [[]] * 7


def test_a_list_is_a_file_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# remarks\n\ndarn\n  drat it  \n")
    assert list(WordList.read(str(path)).entries) == ["darn", "drat it"]
    path.write_text("# nothing\n...\n")
    with pytest.raises(DataError, match="holds no words"):
        WordList.read(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is no UTF-8 text"):
        WordList.read(str(path))
    with pytest.raises(DataError, match=r"cannot be read: No such file.*one of: profanity, identity"):
        WordList.read("profanities")


def test_no_word_for_a_group_of_people_is_a_swear_word() -> None:
    swear, identity = (WordList.read(name) for name in BUILT_IN)
    assert found(swear, list(identity.entries)) == [[]] * len(identity.entries)
    assert len(set(swear.entries)) == len(swear.entries) > 40


def test_rows_with_listed_words_go(tmp_path: Path) -> None:
    texts = ["Well, damn it.", "A dam.", "Damn, damn, drat!", "Nothing."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "list.txt").write_text("damn\ndrat\n")
    given = {"sources": [str(tmp_path / "a.jsonl")], "blocklist": str(tmp_path / "list.txt")}

    def kept(folder: str, **more: object) -> list[str]:
        Clean.model_validate(given | more).run(tmp_path / folder)
        return [json.loads(line)["text"] for line in (tmp_path / folder / "a.jsonl").read_text().splitlines()]

    assert kept("all") == [texts[1], texts[3]]
    [entry] = json.loads((tmp_path / "all" / "report.json").read_text())["counts"]["Left out"]
    assert (entry["name"], entry["count"]) == ("blocklist: listed words", 2)
    assert [example["detail"] for example in entry["examples"]] == ["1, at most 0: damn", "3, at most 0: damn, drat"]
    assert kept("two", thresholds={"max_listed_words": 2}) == [texts[0], texts[1], texts[3]]
    (tmp_path / "list.txt").write_text("nothing\n")
    assert kept("all") == texts[:3]
