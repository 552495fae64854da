"""Languages: told where the text says enough, undetermined where it does not, and counted in reports."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools import languages
from posttrain.data_tools.clean import Clean
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.languages import UNDETERMINED, check_codes, identifier, letters_of, prose_of
from posttrain.data_tools.stats import StatsSpec
from pydantic import ValidationError

from ..rows import write_texts

TEXTS = {
    "en": "The harbour lies to the north of the town, and the road that leads there is old and narrow.",
    "de": "Der Hafen liegt im Norden der Stadt, und die Straße, die dorthin führt, ist alt und schmal.",
    "fr": "Le port se trouve au nord de la ville, et la route qui y mène est ancienne et étroite.",
    "ru": "Порт находится к северу от города, и дорога, которая туда ведёт, старая и узкая.",
    "zh": "港口位于城市的北面，通往那里的道路古老而狭窄，从前有很多船只停泊在这里。",
}
TOO_LITTLE = [
    "",
    "hello world",
    "want",
    "12345 67890 ... 42",
    "def f(x):\n    return x + 1\n\nfor name in names:\n    print(f(name))\n    total = total + len(name)",
    "SELECT name, id FROM users WHERE id = 3 AND name LIKE 'a%' ORDER BY created_at;",
    "```\nThe words of a block of code are no prose, however many of them stand there in a row.\n```",
    "https://example.org/the/words/of/an/address/are/no/prose/however/many/of/them/there/are",
]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_texts_are_told_apart_and_what_says_too_little_is_undetermined() -> None:
    identify = identifier(0.7)
    assert [code for code, _ in identify(list(TEXTS.values()))] == list(TEXTS)
    assert [code for code, _ in identify(TOO_LITTLE)] == [UNDETERMINED] * len(TOO_LITTLE)
    assert all(0.7 <= probability <= 1 for _, probability in identify(list(TEXTS.values())))


def test_many_texts_are_classified_as_the_package_classifies_each() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    draw = random.Random(1)
    words = [word for text in [*TEXTS.values(), "ÇA VA", "Ωμέγα", "\ud83d", "e\u0301te"] for word in text.split()]
    texts = [" ".join(draw.choices(words, k=draw.randrange(40))) for _ in range(60)]
    texts += [*TEXTS.values(), *[text.upper() for text in TEXTS.values()], "", "¤"]
    own = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model = languages._model()
    for together in (texts, texts[:1], texts[::-1]):
        for text, place, probability in zip(together, *model.classify(together), strict=True):
            code, expected = own.classify(text)
            assert (model.codes[place], float(probability)) == (code, pytest.approx(expected, abs=1e-4))
    assert len(model.classify([])[0]) == 0


def test_what_stands_around_prose_does_not_count() -> None:
    around = f"# x\n<div class='a'>\n{TEXTS['de']}\n```python\nfor the in what:\n    print(the)\n```\nsee `the` a@b.com"
    assert prose_of(around).split() == ["#", "x", *TEXTS["de"].split(), "see"]
    assert identifier(0.7)([around])[0][0] == "de"
    assert (letters_of("a1_b é"), letters_of("漢字")) == (4, 6)


def test_a_text_of_two_languages_is_undetermined_where_more_certainty_is_asked() -> None:
    mixed = TEXTS["fr"] + " " + TEXTS["de"]
    assert identifier(1.0)([mixed])[0][0] == UNDETERMINED
    assert identifier(None)([mixed])[0][0] in ("fr", "de")


def test_rows_of_other_languages_go_and_are_counted_by_language(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", [*TEXTS.values(), TEXTS["en"], "hello"])
    Clean.model_validate({"sources": [{"path": path, "name": "a"}], "languages": "en, de"}).run(tmp_path / "out")
    kept = [json.loads(line)["text"] for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines()]
    assert kept == [TEXTS["en"], TEXTS["de"], TEXTS["en"]]
    found = report(tmp_path / "out")
    assert {entry["name"] for entry in found["counts"]["Left out"]} == {
        f"language: {c}" for c in ("fr", "ru", "zh", "und")
    }
    [table] = [table for table in found["tables"] if table["title"] == "By language"]
    assert table["header"] == ["source", "language", "rows in", "share", "left out", "rows out", "kept"]
    assert table["rows"][:2] == [["a", "en", 2, "28.6%", 0, 2, "100.0%"], ["a", "de", 1, "14.3%", 0, 1, "100.0%"]]
    assert sorted(row[1] for row in table["rows"]) == ["de", "en", "fr", "ru", "und", "zh"]
    more = {"languages": ["en", "und"], "remove": False}
    Clean.model_validate({"sources": [path], **more}).run(tmp_path / "marked")
    rows = [json.loads(line) for line in (tmp_path / "marked" / "a.jsonl").read_text().splitlines()]
    assert [row["clean_reasons"] for row in rows] == [
        [],
        *([f"language: {c}"] for c in ("de", "fr", "ru", "zh")),
        [],
        [],
    ]


def test_stats_count_rows_by_language(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", [*TEXTS.values(), TEXTS["ru"]])
    sources = [{"path": path, "name": "a"}]
    StatsSpec.model_validate({"sources": sources, "languages": True, "duplicates": False}).run(tmp_path / "out")
    [table] = [table for table in report(tmp_path / "out")["tables"] if table["title"] == "By language"]
    assert table["header"] == ["source", "language", "rows in", "share"]
    assert table["rows"][0] == ["a", "ru", 2, "33.3%"]


def test_what_cannot_be_told_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no language 'english'.*known: .*\bde, "):
        check_codes(["english"])
    with pytest.raises(ValidationError, match="name `presets`, `languages`, a `blocklist` or several"):
        Clean.model_validate({"sources": ["a.jsonl"]})
    languages._model.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(DataError, match=r"pip install 'posttrain\[languages\]'"):
        identifier(0.7)
