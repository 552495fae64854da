"""A step of pipeline.yaml: raw text of ten domains, a file of each, and a file of its documents that are held out."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
from posttrain.data_tools.files import write_atomic
from posttrain.data_tools.tool import Tool

# What the parts of near_dup_20k are: pages of Unix manuals, notes that come with packages, pages of a compiler's
# documentation with their menus, README files, code, docstrings, and tasks with answers.
DOMAINS = {
    "man": "manuals",
    "doc": "notes",
    "rust": "reference",
    "md": "readmes",
    "code": "code",
    "docstr": "docstrings",
    "instr": "instructions",
}
PART = 4000  # characters of a part of long documents, so that some of each can be held out


class Raw(Tool):
    """Writes ``DOMAIN.jsonl`` and ``held_out/DOMAIN.jsonl``: one document in twenty, by the hash of its text."""

    data: str
    """The folder that holds `dedup` and `text`."""

    def run(self, output_dir: Path) -> str:
        """Writes the files."""
        rows: dict[str, list[str]] = {}
        for domain, text in documents(Path(self.data)):
            chance = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] / 256
            rows.setdefault(f"held_out/{domain}.jsonl" if chance < 1 / 20 else f"{domain}.jsonl", []).append(text)
        for name, texts in rows.items():
            write_atomic(output_dir / name, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        sizes = {name: (len(texts), sum(map(len, texts))) for name, texts in sorted(rows.items())}
        return "\n".join(f"{name}: {count:,} documents, {size:,} characters" for name, (count, size) in sizes.items())


def documents(data: Path) -> Iterator[tuple[str, str]]:
    """Yields domain and text."""
    for row in parquet.read_table(data / "dedup" / "near_dup_20k.parquet", columns=["src", "text"]).to_pylist():
        yield DOMAINS[row["src"]], row["text"]
    for line in (data / "text" / "c4_wiki_demo" / "c4_demo.jsonl").read_bytes().splitlines():
        yield "web", json.loads(line)["text"]
    for line in (data / "text" / "c4_wiki_demo" / "wiki_demo.txt").read_text(encoding="utf-8").split("\n"):
        yield from (("encyclopedia", part) for part in parts(line, ". "))
    for line in gzip.decompress((data / "text" / "python_peps" / "peps.jsonl.gz").read_bytes()).splitlines():
        yield from (("proposals", part) for part in parts(json.loads(line)["text"], "\n\n"))


def parts(text: str, end: str) -> Iterator[str]:
    """Cuts a text behind an ``end`` once a part has 4,000 characters."""
    part = ""
    for piece in text.split(end):
        part += piece + end
        if len(part) >= PART:
            yield part
            part = ""
    if part.strip():
        yield part
