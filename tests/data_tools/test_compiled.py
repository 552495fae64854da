"""What numba hashes is, bit for bit, what numpy hashes: which of the two is installed decides about no row."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from posttrain.data_tools import dedup, row_tool
from posttrain.data_tools.near_duplicates import Bands, Shingles, jaccard
from posttrain.data_tools.ngrams import Core, fastest_core, split_words
from posttrain.data_tools.spec import SourceSpec

pytest.importorskip("numba")

CHARACTERS = [*"abcXYZ019_ \n\t.,-é漢ßＡदि\u0301", " ", "\u2028", "\0", "\ud83d", "👍"]
TEXTS = [
    "",
    " ",
    "9",
    "a",
    "Grüße, 漢字!",
    *("".join(random.Random(seed).choices(CHARACTERS, k=seed)) for seed in range(300)),
]


def test_words_are_hashed_to_the_same_bits() -> None:
    numpy, numba = split_words(TEXTS), split_words(TEXTS, "numba")
    assert np.array_equal(numpy.hashes, numba.hashes)
    assert np.array_equal(numpy.bounds, numba.bounds)
    assert len(numpy.hashes) > 5000
    assert len(split_words([], "numba")) == 0


@pytest.mark.parametrize("n", [1, 5, 32])
def test_bands_are_hashed_to_the_same_bits(n: int) -> None:
    words, bands = split_words(TEXTS), Bands(20, 7, seed=n)
    keys = bands.keys(words, n)
    assert np.array_equal(keys, bands.keys(words, n, "numba"))
    assert (keys[words.counts == 0] == 0).all()
    assert keys[words.counts > 0].all()


def test_shared_shingles_are_counted_alike() -> None:
    shingles = Shingles.of(split_words(TEXTS), 1)
    pairs = np.random.default_rng(3).integers(0, len(TEXTS), (2000, 2))
    found = jaccard(shingles, pairs)
    assert np.array_equal(found, jaccard(shingles, pairs, "numba"))
    assert (found[(pairs[:, 0] == pairs[:, 1]) & (shingles.counts[pairs[:, 0]] > 0)] == 1).all()
    assert len(np.unique(found)) > 100
    assert len(jaccard(shingles, pairs[:0], "numba")) == 0


def test_the_faster_core_removes_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 32)
    draw = random.Random(2)
    texts = [
        " ".join(draw.choices(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"], k=40))
        for _ in range(100)
    ]
    texts += [text + " at the end" for text in texts[:30]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cores: list[Core] = ["numpy", "numba"]
    assert fastest_core() == "numba"
    for core in cores:
        monkeypatch.setattr(dedup, "fastest_core", lambda core=core: core)
        dedup.Dedup(sources=[SourceSpec(path=str(tmp_path / "a.jsonl"))]).run(tmp_path / core)
        assert f"hashed by {core}" in (tmp_path / core / "report.json").read_text()
    for name in ("a.jsonl", "removed.log"):
        assert (tmp_path / "numpy" / name).read_bytes() == (tmp_path / "numba" / name).read_bytes()
    assert len((tmp_path / "numba" / "removed.log").read_text().splitlines()) == 30
