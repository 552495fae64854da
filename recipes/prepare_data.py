"""`data prepare`: the rows of a recipe as its training reads them, in a file, and a page on how they came to be."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_tools.files import explain_full_disk, locked, read_object
from ..data_tools.sources import refuse_own
from ..data_tools.spec import SourceSpec
from ..data_tools.tool_report import EXAMPLES, PAGE, REPORT, Plot, Spread, Table, Tally, ToolReport
from .load import RecipeTool
from .provenance import files_of, steps_to

if TYPE_CHECKING:
    from ..data_tools.dataset import PreparedReport, SourceSummary
    from ..data_tools.prepare import Prepared

_ROWS = 4096  # written at a time
_TITLE = "posttrain data prepare"


class Prepare(RecipeTool):
    """Mixes, tokenises and packs the rows of a recipe as its training reads them, and explains where they are from.

    Writes ``train.parquet``, and ``eval.parquet`` if the recipe has such rows: token ids, labels and what else its
    stage needs, for ``datasets.load_dataset("parquet", …)``. The page follows each source back through the data tools
    that made it.
    """

    def run(self, output_dir: Path) -> str:
        """Prepares the rows; what has been prepared for a training is taken from there.

        Raises:
            PosttrainError: The recipe or its data are wrong, or the folder cannot be written.
        """
        from .decisions import placed
        from .job import open_job
        from .rows import prepare_rows

        loaded = self.load()
        data = loaded.recipe.data
        written = [output_dir / f"{split}.parquet" for split in ("train", "eval")]
        refuse_own([*data.train, *(data.eval or ())], written, loaded.path.parent)
        with locked(output_dir / ".lock"), explain_full_disk(output_dir):
            with placed(loaded):
                job = open_job(loaded)
                splits = [(split, prepare_rows(job, split)) for split in ("train", "eval")]
            known = read_object(output_dir / REPORT)
            earlier = known["fingerprints"] if known.get("title") == _TITLE else ()
            reports = []
            for split, prepared in splits:
                if prepared is None:
                    if split in earlier:
                        (output_dir / f"{split}.parquet").unlink(missing_ok=True)
                    continue
                _write(prepared, output_dir / f"{split}.parquet")
                sources = data.train if split == "train" else data.eval or ()
                reports.append(_Split(split, prepared, sources, loaded.path.parent, job.tokenizer))
            report = _report(self.model_dump(mode="json"), reports)
            report.write(output_dir)
        return "\n".join([*report.summary, str(output_dir / PAGE)])


def _write(prepared: "Prepared", path: Path) -> None:
    from pyarrow import parquet

    temporary = path.with_name(f".{path.name}.part")
    tables: Any = prepared.dataset.with_format("arrow").iter(_ROWS)
    first = next(tables)
    with temporary.open("wb") as file:
        with parquet.ParquetWriter(file, first.schema.remove_metadata()) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table.replace_schema_metadata())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclass(frozen=True)
class _Split:
    """What there is to say of one split."""

    name: str
    prepared: "Prepared"
    sources: Sequence[SourceSpec]
    folder: Path
    tokenizer: Any

    @property
    def report(self) -> "PreparedReport":
        """Returns what its rows hold."""
        return self.prepared.report

    def summary(self) -> list[str]:
        """Returns the size of the split, and how its rows were read."""
        fill = f", rows {self.report.fill:.1%} full" if self.report.fill is not None else ""
        size = f"{self.report.rows:,} rows, {self.report.tokens:,} tokens, {self.report.loss_tokens:,} carry loss{fill}"
        return [f"{self.name}.parquet: {size}", *self.report.notes]

    def tables(self) -> list[Table]:
        """Returns the mixture, and the way of each source."""
        header = ["source", "rows read", "usable", "rows taken", "tokens", "carry loss", "epochs", "asked", "share"]
        mixture = Table(
            f"{self.name}: sources",
            header,
            [_source_row(source) for source in self.report.sources],
            "Shares are of tokens. More than one epoch: rows repeat.",
        )
        steps = [
            [_shown(source.title), *step]
            for source in self.sources
            for file in files_of(source, self.folder)
            for step in reversed(list(steps_to(file)))
        ]
        way = Table(
            f"{self.name}: how each source came to be",
            ["source", "step", "rows in", "rows out", "kept", "most went for"],
            steps,
            "From the reports of the data tools beside the files, the first step first.",
        )
        return [mixture, way] if steps else [mixture]

    def lengths(self) -> list[Plot]:
        """Returns how many tokens rows have: each part of them that is tokenised before training."""
        columns = [name for name in self.prepared.dataset.column_names if name.endswith("ids")]
        spreads = {name: Spread() for name in columns}
        batches: Any = self.prepared.dataset.select_columns(columns).iter(_ROWS) if columns else ()
        for batch in batches:
            for name, spread in spreads.items():
                for ids in batch[name]:
                    spread.add(len(ids))
        return [spread.plot(f"{self.name}: tokens of {name}", "tokens") for name, spread in spreads.items()]

    def dropped(self) -> Tally:
        """Returns why rows could not be used."""
        tally = Tally()
        for source in self.report.sources:
            for reason, count in source.dropped.items():
                for example in source.examples[reason]:
                    tally.add(reason, example)
                tally.counts[reason] += count - len(source.examples[reason])
        return tally

    def rows(self) -> Tally:
        """Returns the first rows as text, special tokens too."""
        tally = Tally()
        first: Any = self.prepared.dataset.select(range(min(EXAMPLES, len(self.prepared.dataset))))
        for number, row in enumerate(first):
            parts = [self.tokenizer.decode(ids) for name, ids in row.items() if name.endswith("ids")] or [str(row)]
            tally.add(f"the first rows of {self.name}.parquet", f"row {number}", "\n---\n".join(parts))
        return tally


def _source_row(source: "SourceSummary") -> list[Any]:
    counts = [source.rows, source.kept, source.documents, source.tokens, source.loss_tokens]
    return [_shown(source.name), *counts, round(source.epochs, 2), f"{source.target:.1%}", f"{source.share:.1%}"]


def _report(arguments: Mapping[str, Any], splits: Sequence[_Split]) -> ToolReport:
    dropped, rows = Tally(), Tally()
    for split in splits:
        dropped.merge(split.dropped())
        rows.merge(split.rows())
    return ToolReport(
        _TITLE,
        arguments,
        [line for split in splits for line in split.summary()],
        [table for split in splits for table in split.tables()],
        [plot for split in splits for plot in split.lengths()],
        ({"Not usable": dropped} if dropped.counts else {}) | {"As the model reads them": rows},
        {"fingerprints": {split.name: split.prepared.fingerprint for split in splits}},
    )


def _shown(title: str) -> str:
    """Returns a source's title, as a path from here if it is one below."""
    here = f"{Path.cwd()}{os.sep}"
    return title.removeprefix(here)
