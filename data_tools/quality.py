"""`data quality`: a classifier trained on good and bad rows of the user's scores rows, and leaves out the worst."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from ..chat_templates.errors import did_you_mean
from .errors import DataError, RowError, listing
from .files import hash_file
from .hashed_classifier import L2_GRID, HashedClassifier, buckets_of, features, fit, log_loss, roc_area
from .kept_texts import KeptTexts
from .ngrams import mix_bits, ngrams, split_words, words_in
from .row_tool import (
    BLOCK_ROWS,
    Counts,
    Decide,
    Outcome,
    Plan,
    TextTool,
    canonical_reader,
    decide_readable,
    with_columns,
)
from .score_columns import Bounds, outside
from .sources import Row
from .spec import Count, NonEmpty, SourceSpec
from .tool import Sources
from .tool_report import EXAMPLES, Bar, Plot, Table, Tally, ToolReport, percent
from .word_list import WordList, path_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Hashes = NDArray[np.uint64]

CLASSIFIER = "classifier.npz"
LEAST_ROWS = 10
"""Held-out rows of each side without which no figure says anything."""
_SIDES = ("good", "bad")
_INNER = 5  # of so many training rows one is left out while the strength is chosen
_SHOWN_WORDS = 25
_SHOWN_FROM = 2000  # training rows of a side in which those words are looked for
_KEPT = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_BARS = 20
_FRESH = 100  # rows that the classifier was not trained on, so that quantiles are taken of them


def _as_labels(value: Any) -> Any:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(part).strip() for part in parts]


class Quality(TextTool):
    """Scores rows by a classifier that is trained on rows of yours, and leaves out those of low score.

    The classifier is linear, on words and pairs of neighbouring words. A share of the good and bad rows is held out:
    the report has the ROC curve on them with its area, and what each threshold keeps of them. Writes
    ``classifier.npz`` beside the rows, for further sources: `--classifier FOLDER` in place of good and bad rows.
    """

    good: Sources | None = None
    """Rows such as should stay, by their own layout."""
    bad: Sources | None = None
    """Rows such as should go: those of the sources themselves, as a rule a sample of them, or others."""
    labelled: Sources | None = None
    """Rows with a label each, in place of good and bad ones or beside them."""
    good_labels: Annotated[list[str], BeforeValidator(_as_labels)] = Field([])
    """The labels of labelled rows that are good, such as `1` or `positive,neutral`; the others are bad."""
    classifier: str | None = None
    """A folder of an earlier call, whose classifier scores these rows."""
    keep: Bounds | None = None
    """Which rows stay, such as `{min_quantile: .9}`, the tenth of highest score, or `{min: .5}`; all by default."""
    column: NonEmpty = "quality"
    """The column that the score is written to: the probability of good, were good and bad rows as many."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of the good and bad rows that the classifier is not trained on, chosen by their words' hash."""
    max_rows: Count = 100_000
    """The most good and the most bad rows that are used, drawn at random; each takes about 10 bytes a word."""
    l2: PositiveFloat | None = None
    """How strongly weights are held to zero; by default what serves a fifth of the training rows best, of 1e-3 to 1e-6,
    when trained on the others."""
    terms: str | None = None
    """A file of words, one a line, or `identity`, words for groups of people: the report has for each how often good
    rows held out would go that hold it, beside those that hold none. A classifier of toxicity must not go by them."""
    seed: NonNegativeInt = 0
    """Decides which rows are held out."""

    @model_validator(mode="after")
    def _has_a_classifier(self) -> Self:
        if bool(self.labelled) != bool(self.good_labels):
            raise ValueError("`labelled` rows need `good_labels`, and the other way round")
        if self.classifier is None and not self.labelled and (self.good is None or self.bad is None):
            raise ValueError("needs `good` and `bad` rows to learn from, `labelled` rows or a `classifier`")
        if self.classifier is not None and (self.good or self.bad or self.labelled):
            raise ValueError("`classifier` stands in place of rows to learn from; remove one")
        if self.classifier is not None and self.terms:
            raise ValueError("`terms` are counted in good and bad rows; a `classifier` keeps what it was asked for")
        return self

    def identity(self) -> Any:
        """Returns the hash of the classifier, or of the terms that it learns from beside sources."""
        if self.classifier is not None:
            return hash_file(self._classifier_file())
        return hash_file(path_of(self.terms)) if self.terms and path_of(self.terms).is_file() else None

    def _classifier_file(self) -> Path:
        path = Path(self.classifier or "")
        path = path / CLASSIFIER if path.is_dir() else path
        if not path.is_file():
            raise DataError("there is no classifier", where=str(path), hint="name the folder of a `data quality`")
        return path

    def plan(self, folder: Path) -> Plan:
        """Trains the classifier and scores all rows, so that quantiles are known."""
        path = self._classifier_file() if self.classifier else folder / CLASSIFIER
        if not path.exists():
            _Labelled(self, folder / "learnt from").train(path)
        trained = _Trained.load(path)
        scored = _Scored(self, trained.classifier, folder / "scores")
        bounds = self.keep.resolve(scored.fresh) if self.keep else None
        around = scored.around(bounds[0] if np.isfinite(bounds[0]) else bounds[1]) if bounds else Tally()

        def decider(source: SourceSpec) -> Decide:
            def decide(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
                scores = trained.classifier.scores(texts).tolist()
                return [self._outcome(row, score, bounds) for row, score in zip(rows, scores, strict=True)]

            return decide_readable(self.reader(source), decide)

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return _add(report, self.column, trained, scored, bounds, around)

        return Plan(decider, add, [] if self.classifier else [CLASSIFIER])

    def _outcome(self, row: Row, score: float, bounds: tuple[float, float] | None) -> Outcome:
        side = outside(score, bounds) if bounds else ""
        if side:
            return Outcome(None, f"{self.column} {side}", f"{score:.6g}")
        return Outcome(with_columns(row, {self.column: score}, "give the score another name: `column`"))


@dataclass(frozen=True)
class _Trained:
    """A classifier, and what is known of it.

    Attributes:
        classifier: The classifier.
        scores: Of held-out rows, shape (rows,).
        is_good: Which of them are good, likewise.
        words: How many each has, likewise.
        terms: Which terms each of them holds, shape (rows, terms).
        facts: What the report says of the training, as plain values.
    """

    classifier: HashedClassifier
    scores: "Floats"
    is_good: "Flags"
    words: "Floats"
    terms: "Flags"
    facts: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> "_Trained":
        """Reads a file that was trained by ``_Labelled``.

        Raises:
            DataError: It is something else.
        """
        classifier, more = HashedClassifier.load(path)
        try:
            held: dict[str, Any] = {name: more[f"held_{name}"] for name in ("scores", "is_good", "words", "terms")}
            return cls(classifier, **held, facts=json.loads(str(more["facts"])))
        except (KeyError, ValueError) as error:
            raise DataError("is no classifier that `data quality` wrote", where=str(path)) from error


class _Labelled:
    """Good and bad rows: each text once, none that is on both sides, a share of them held out by their hash.

    Raises:
        DataError: A good label is no row's: misspelt, it would make bad rows of good ones.
    """

    def __init__(self, spec: Quality, folder: Path):
        self.spec = spec
        own = spec.model_copy(update={"columns": None})
        self.terms = WordList.read(spec.terms) if spec.terms else WordList.of([])
        labelled = spec.labelled or []
        self.labels: set[str] = set()
        self.sides: list[KeptTexts] = []
        for side, (name, sources) in enumerate(zip(_SIDES, (spec.good or [], spec.bad or []), strict=True)):
            readers = [own.reader(source) for source in sources]
            readers += [self._reader_of_side(source, side) for source in labelled]
            kept = KeptTexts(folder / name, [*sources, *labelled], readers, _hashes_of, f"reading {name} rows")
            self.sides.append(kept)
        for label in spec.good_labels:
            if label not in self.labels:
                hint = did_you_mean(label, self.labels) or f"labels: {listing(sorted(self.labels))}"
                raise DataError(f"no row has the label '{label}'", where="good_labels", hint=hint)

    def _reader_of_side(self, source: SourceSpec, side: int) -> Callable[[Row], str]:
        """Returns what gives the text of a labelled row that is of a side; it raises RowError."""
        canonical = canonical_reader(source, ("classification",))

        def read(row: Row) -> str:
            found = canonical(row.values)
            self.labels.add(str(found["label"]))
            if (str(found["label"]) in self.spec.good_labels) != (side == 0):
                raise RowError("is of the other side")
            return "\n".join(found[name] for name in ("text", "text_pair") if name in found)

        return read

    def train(self, path: Path) -> None:
        """Trains a classifier and writes it with what was found on held-out rows.

        Raises:
            DataError: There are too few rows of a side.
        """
        hashes = [side.found("words") for side in self.sides]
        chosen = [self._choose(hashes[side], hashes[1 - side]) for side in (0, 1)]
        counts = [self._counts(hashes[side], hashes[1 - side], chosen[side]) for side in (0, 1)]
        found = [
            self._features(side, hashes[side], chosen[side], both=counts[side]["on both sides"]) for side in (0, 1)
        ]
        rows = _stack([rows for rows, _, _ in found])
        known = np.concatenate([hashes for _, hashes, _ in found])
        words = np.concatenate([counts for _, _, counts in found])
        is_good = np.repeat([True, False], [len(part[1]) for part in found])
        is_held = self._is_held(known)
        l2, tried = self._strength(rows[~is_held], is_good[~is_held], known[~is_held])
        weights, bias = fit(rows[~is_held], is_good[~is_held], l2)
        classifier = HashedClassifier(weights.astype(np.float32), bias, np.sort(known[~is_held]))
        terms = np.concatenate([self._terms(side, hashes[side], chosen[side]) for side in (0, 1)])
        facts = {"l2": l2, "tried": tried, "rows": counts, "terms": list(self.terms.entries)}
        facts |= {"words": self._strongest(classifier, hashes, chosen)}
        classifier.save(
            path,
            held_scores=classifier.scores_of(rows[is_held]),
            held_is_good=is_good[is_held],
            held_words=words[is_held],
            held_terms=terms,
            facts=np.array(json.dumps(facts)),
        )

    def _choose(self, hashes: "Hashes", other: "Hashes") -> "NDArray[np.int64]":
        """Returns the places of the texts of a side that are used, the first of each that is there several times."""
        distinct, first = np.unique(hashes, return_index=True)
        usable = (distinct != 0) & ~np.isin(distinct, other)
        distinct, first = distinct[usable], first[usable]
        drawn = np.argsort(self._draw(distinct), kind="stable")[: self.spec.max_rows]
        return np.sort(first[drawn])

    def _draw(self, hashes: "Hashes") -> "Hashes":
        """Returns random numbers, the same for the same text."""
        return mix_bits(hashes ^ mix_bits(np.array([self.spec.seed + 1], np.uint64)))

    def _is_held(self, hashes: "Hashes") -> "Flags":
        return mix_bits(self._draw(hashes)) < np.uint64(int(self.spec.held_out * 2**64))

    def _counts(self, hashes: "Hashes", other: "Hashes", chosen: "NDArray[np.int64]") -> dict[str, int]:
        """Returns what became of the rows of a side, and refuses too few of them."""
        distinct = np.unique(hashes[hashes != 0])
        both = int(np.isin(distinct, other).sum())
        held = int(self._is_held(hashes[chosen]).sum())
        return {
            "read": len(hashes),
            "without words": int((hashes == 0).sum()),
            "again": int((hashes != 0).sum()) - len(distinct),
            "on both sides": both,
            "not drawn": len(distinct) - both - len(chosen),
            "trained on": len(chosen) - held,
            "held out": held,
        }

    def _features(
        self, side: int, hashes: "Hashes", chosen: "NDArray[np.int64]", *, both: int
    ) -> tuple[Any, "Hashes", "Floats"]:
        """Returns the features of the chosen texts of a side, their hashes, and how many words they have.

        Texts that are on both sides are not chosen; ``both`` of them are named where too few are left.
        """
        if min(self._is_held(hashes[chosen]).sum(), (~self._is_held(hashes[chosen])).sum()) < LEAST_ROWS:
            what = (
                f"{len(chosen)} different rows with words are too few: {LEAST_ROWS} must be held out and as many left"
            )
            hint = "give more of them, or hold out another share: `held_out`"
            if both:
                what = f"{both} of its different rows stand on the other side too, which says nothing; {what}"
                hint = "see that `good` and `bad` are not the same rows"
            raise DataError(what, where=_SIDES[side], hint=hint)
        parts, words = [], []
        for texts in self._texts(side, chosen):
            parts.append(features(texts))
            words.append(split_words(texts).counts.astype(np.float64))
        return _stack(parts), hashes[chosen], np.concatenate(words)

    def _texts(self, side: int, chosen: "NDArray[np.int64]") -> Iterator[list[str]]:
        """Reads the chosen texts of a side again."""
        wanted = np.zeros(len(self.sides[side]), bool)
        wanted[chosen] = True
        for _, batch in self.sides[side].batches(BLOCK_ROWS, wanted):
            yield [text for _, text in batch]

    def _terms(self, side: int, hashes: "Hashes", chosen: "NDArray[np.int64]") -> "Flags":
        """Returns which terms the held-out texts of a side hold, shape (texts, terms)."""
        parts = []
        for texts in self._texts(side, chosen[self._is_held(hashes[chosen])]):
            held = np.zeros((len(texts), len(self.terms.entries)), bool)
            held[self.terms.find(texts)] = True
            parts.append(held)
        return np.concatenate(parts)

    def _strength(self, rows: Any, is_good: "Flags", known: "Hashes") -> tuple[float, list[tuple[float, float]]]:
        """Returns the strength that serves training rows best which were left out, and the loss of each."""
        if self.spec.l2 is not None:
            return self.spec.l2, []
        left = mix_bits(mix_bits(self._draw(known))) % np.uint64(_INNER) == 0
        if min(is_good[left].sum(), (~is_good)[left].sum()) == 0:
            return L2_GRID[1], []
        tried = []
        for l2 in L2_GRID:
            weights, bias = fit(rows[~left], is_good[~left], l2)
            tried.append((l2, round(log_loss(rows[left], is_good[left], weights, bias), 6)))
        return min(tried, key=lambda one: one[1])[0], tried

    def _strongest(
        self, classifier: HashedClassifier, hashes: Sequence["Hashes"], chosen: Sequence["NDArray[np.int64]"]
    ) -> list[list[list[Any]]]:
        """Returns the words and pairs that speak most for good and for bad, with their weights."""
        order = np.argsort(classifier.weights, kind="stable")
        wanted = [order[::-1][:_SHOWN_WORDS], order[:_SHOWN_WORDS]]
        counts: dict[int, dict[str, int]] = {int(bucket): {} for side in wanted for bucket in side}
        for side in (0, 1):
            trained = chosen[side][~self._is_held(hashes[side][chosen[side]])][:_SHOWN_FROM]
            for texts in self._texts(side, trained):
                _count_in_buckets(texts, classifier.bits, counts)
        found: list[list[list[Any]]] = []
        for side, buckets in enumerate(wanted):
            named = [(bucket, counts[int(bucket)]) for bucket in buckets]
            found.append(
                [
                    [max(seen, key=lambda text: (seen[text], text)), round(float(classifier.weights[bucket]), 3)]
                    for bucket, seen in named
                    if seen and (classifier.weights[bucket] > 0) == (side == 0)
                ]
            )
        return found


def _hashes_of(block: Sequence[tuple[str, str]]) -> "dict[str, Hashes]":
    """Returns a hash of each text's words, 0 where it has none."""
    return {"words": split_words([text for _, text in block]).wholes}


def _stack(parts: Sequence[Any]) -> Any:
    from scipy.sparse import csr_array, vstack

    return csr_array(vstack(parts, format="csr"))


def _count_in_buckets(texts: Sequence[str], bits: int, counts: Mapping[int, dict[str, int]]) -> None:
    """Counts the words and pairs of texts that lie in certain buckets."""
    wanted = np.array(sorted(counts), np.uint64)
    words = split_words(texts)
    pairs, bounds = ngrams(words, 2)
    for hashes, ends, length in ((words.hashes, words.bounds, 1), (pairs, bounds, 2)):
        buckets = buckets_of(hashes, bits)
        at = np.flatnonzero(np.isin(buckets, wanted))
        numbers = np.searchsorted(ends, at, "right") - 1
        for number in np.unique(numbers):
            spoken = words_in(texts[int(number)])
            for place in at[numbers == number]:
                start = int(place - ends[number])
                text = " ".join(spoken[start : start + length])
                seen = counts[int(buckets[place])]
                seen[text] = seen.get(text, 0) + 1


class _Scored(KeptTexts):
    """The scores of all rows of the sources, in their order.

    Attributes:
        scores: Shape (rows,).
        words: How many each has, likewise.
        known: Which the classifier was trained on, likewise.
        fresh: The scores of rows that it was not trained on, where there are enough; those are what it says.
    """

    def __init__(self, spec: Quality, classifier: HashedClassifier, folder: Path):
        self._classifier = classifier
        readers = [spec.reader(source) for source in spec.sources]
        super().__init__(folder, spec.sources, readers, self._describe, "scoring rows")
        self.scores, self.words, self.known = map(self.found, ("scores", "words", "known"))
        fresh = self.scores[~self.known]
        self.fresh: Floats = fresh if len(fresh) >= _FRESH else self.scores

    def _describe(self, block: Sequence[tuple[str, str]]) -> "dict[str, NDArray[Any]]":
        texts = [text for _, text in block]
        words = split_words(texts)
        known = np.isin(words.wholes, self._classifier.known)
        return {"scores": self._classifier.scores(texts), "words": words.counts, "known": known}

    def around(self, threshold: float) -> Tally:
        """Returns the rows on either side of a threshold, as examples of two counts."""
        order = np.argsort(self.scores, kind="stable")
        place = int(np.searchsorted(self.scores[order], threshold))
        sides = {"just below": order[max(place - EXAMPLES, 0) : place], "just above": order[place : place + EXAMPLES]}
        wanted = {int(number): name for name, numbers in sides.items() for number in numbers}
        tally = Tally()
        for number, (where, text) in self.pick(sorted(wanted)).items():
            tally.add(wanted[number], where, text, f"{self.scores[number]:.6g}")
        return tally


def _add(
    report: ToolReport,
    column: str,
    trained: _Trained,
    scored: _Scored,
    bounds: tuple[float, float] | None,
    around: Tally,
) -> ToolReport:
    """Adds how good the classifier is, what thresholds keep, and what speaks for good and bad."""
    good, bad = trained.scores[trained.is_good], trained.scores[~trained.is_good]
    area = roc_area(good, bad)
    by_length = roc_area(trained.words[trained.is_good], trained.words[~trained.is_good]).area
    summary = [
        *report.summary,
        f"ROC area {area} on {len(good):,} good and {len(bad):,} bad rows held out; by length alone "
        f"{max(by_length, 1 - by_length):.3f}",
    ]
    if count := int(scored.known.sum()):
        used = "not of them" if len(scored.fresh) < len(scored.scores) else "of them too, as there are few others"
        trained_on = f"{count:,} of {len(scored.known):,} rows were trained on"
        summary.append(f"{trained_on}, and their scores are too sure: quantiles are {used}")
    tables = [*report.tables, _labelled_table(trained)]
    if bounds is not None:
        low, high = bounds
        ends = [f"at least {low:.6g}"] * (low > -np.inf) + [f"at most {high:.6g}"] * (high < np.inf)
        summary.append(
            f"kept: {column} {' and '.join(ends)}, as have {_within(good, bounds)} of the good and "
            f"{_within(bad, bounds)} of the bad rows held out"
        )
        kept = (scored.scores >= low) & (scored.scores <= high)
        rows = [
            [name, len(words), round(float(words.mean()), 1), round(float(np.median(words)), 1)]
            for name, words in (("all", scored.words), ("kept", scored.words[kept]))
            if len(words)
        ]
        note = "Rows drawn at random would be as long as all. See that what is kept is not merely longer or shorter."
        tables.append(Table("What is kept, beside all", ["rows", "count", "words a row", "median"], rows, note))
    tables += [_threshold_table(trained, scored), _word_table(trained)]
    if trained.facts["terms"]:
        tables.append(_term_table(trained, bounds or (0.5, np.inf)))
    plots = [
        *report.plots,
        _roc(good, bad),
        *(
            _score_plot(title, scores)
            for title, scores in (
                ("Scores of good rows held out", good),
                ("Scores of bad rows held out", bad),
                ("Scores of the rows", scored.scores),
            )
        ),
    ]
    tallies = {**report.tallies, **({"Around the threshold": around} if around.counts else {})}
    more = {**report.more, "roc_area": dataclasses.asdict(area)}
    more["bounds"] = [float(end) if np.isfinite(end) else None for end in bounds] if bounds else None
    return dataclasses.replace(report, summary=summary, tables=tables, plots=plots, tallies=tallies, more=more)


def _within(scores: "Floats", bounds: tuple[float, float]) -> str:
    return percent(int(((scores >= bounds[0]) & (scores <= bounds[1])).sum()), len(scores))


def _labelled_table(trained: _Trained) -> Table:
    counts = trained.facts["rows"]
    rows = [[side, *found.values()] for side, found in zip(_SIDES, counts, strict=True)]
    tried = ", ".join(f"{l2:g} {loss:.4f}" for l2, loss in trained.facts["tried"])
    note = f"l2 is {trained.facts['l2']:g}" + (f"; log loss on training rows left out: {tried}." if tried else ".")
    return Table("Rows that the classifier knows", ["rows", *counts[0]], rows, note)


def _threshold_table(trained: _Trained, scored: _Scored) -> Table:
    """Returns what stays of rows, their words, and good and bad rows, by the share of rows that is kept."""
    rows: list[list[Any]] = []
    ranked = np.sort(scored.fresh)[::-1]
    total = int(scored.words.sum())
    for share in _KEPT if len(ranked) else ():
        least = float(ranked[max(int(np.ceil(share * len(ranked))) - 1, 0)])
        kept = scored.scores >= least
        ends = (least, np.inf)
        sides = [_within(trained.scores[trained.is_good == side], ends) for side in (True, False)]
        words = percent(int(scored.words[kept].sum()), total)
        rows.append([f"{least:.6g}", int(kept.sum()), percent(int(kept.sum()), len(kept)), words, *sides])
    header = ["least score", "rows", "of rows", "of words", "of good held out", "of bad held out"]
    return Table("At other thresholds", header, rows, "What would stay.")


def _term_table(trained: _Trained, bounds: tuple[float, float]) -> Table:
    """Returns how often good and bad rows would go that hold a term, the terms of most rows first."""
    goes = (trained.scores < bounds[0]) | (trained.scores > bounds[1])
    none = ~trained.terms.any(axis=1)
    named = list(zip(trained.facts["terms"], trained.terms.T, strict=True))
    named.sort(key=lambda one: -int((one[1] & trained.is_good).sum()))
    rows: list[list[Any]] = []
    for name, holds in [("none of them", none), ("any of them", ~none), *named]:
        good, bad = holds & trained.is_good, holds & ~trained.is_good
        if not good.any() and not bad.any():
            continue
        lost = int((good & goes).sum())
        rows.append([name, int(good.sum()), lost, _share_with_interval(lost, int(good.sum())), int(bad.sum())])
        rows[-1].append(percent(int((bad & goes).sum()), int(bad.sum())))
    note = (
        "Of rows held out, which would go by `keep`, or at .5 without it. A term whose good rows go more often than "
        "those without any is what the classifier goes by. 95% intervals by Wilson."
    )
    header = ["term", "good rows", "of them go", "share", "bad rows", "of them go, share"]
    return Table("By term", header, rows, note)


def _share_with_interval(part: int, whole: int) -> str:
    from scipy.stats import binomtest

    if not whole:
        return "–"
    ends = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{percent(part, whole)} ({100 * ends.low:.1f} to {100 * ends.high:.1f})"


def _word_table(trained: _Trained) -> Table:
    note = (
        "The words and pairs of largest weight. See that they are what makes a row good or bad, and not how the rows "
        "were collected: a heading, a name, a date."
    )
    pairs = itertools.zip_longest(*trained.facts["words"], fillvalue=["", ""])
    rows = [[*for_good, *for_bad] for for_good, for_bad in pairs]
    return Table("What speaks for good and bad", ["for good", "weight", "for bad", "weight"], rows, note)


def _roc(good: "Floats", bad: "Floats") -> Plot:
    """Returns the ROC curve as bars: what share of good rows stays where so large a share of bad ones does."""
    ranked = np.sort(bad)[::-1]
    bars = []
    for step in range(1, _BARS + 1):
        share = step / _BARS
        least = ranked[max(int(np.ceil(share * len(ranked) - 1e-9)) - 1, 0)]
        bars.append(Bar(f"bad rows kept {share:.2f}, good rows kept", float((good >= least).mean())))
    return Plot("ROC curve", "share of bad rows kept, from .05 to 1; height: share of good rows kept", bars)


def _score_plot(title: str, scores: "Floats") -> Plot:
    places = np.clip((scores * _BARS).astype(int), 0, _BARS - 1)
    counts = np.bincount(places, minlength=_BARS)
    bars = [Bar(f"{at / _BARS:.2f} to {(at + 1) / _BARS:.2f}", float(count)) for at, count in enumerate(counts)]
    return Plot(title, "score, from 0 to 1", bars)
