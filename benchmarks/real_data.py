"""Converts and measures every file of a folder of public data sets, and writes down what became of their rows.

    python benchmarks/real_data.py DATA OUT > benchmarks/real_data.md

DATA holds ``sft``, ``preference``, ``text`` and ``classification``, as published. Files whose layout no tool can know
are described below as a recipe would, and as ``posttrain data convert '{…}'`` takes it. Pages of statistics are in OUT.
"""

import fnmatch
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.convert import Convert
from posttrain.data_tools.spec import SourceSpec
from posttrain.recipes.model_tools import Stats

HEAD = """# Public files, converted

    python benchmarks/real_data.py DATA OUT > benchmarks/real_data.md

Every file of a folder of public data sets through `data convert` and `data stats`. Rows are left out by name; the first
row of each reason is shown (a line, or a place from 0). Repeats are rows that say what an earlier one says, as `data
dedup` finds them.
"""
FOLDERS = ("sft", "preference", "text", "classification")
SELF_INSTRUCT = {
    "prompt": "{{ instruction }}{% if instances[0].input %}\n\n{{ instances[0].input }}{% endif %}",
    "completion": "{{ instances[0].output }}",
}
JUDGED = {
    "prompt": "{{ instruction }}",
    "chosen": "{{ output_1 if preference == 1 else output_2 if preference == 2 else '' }}",
    "rejected": "{{ output_2 if preference == 1 else output_1 }}",
}
LLMBAR = {
    "prompt": "{{ input }}",
    "chosen": "{{ output_1 if label == 1 else output_2 }}",
    "rejected": "{{ output_2 if label == 1 else output_1 }}",
}
PAIR = {"0": "text", "1": "text_pair", "2": "label"}
TREC = {"text": "{{ text.split(' ', 1)[1] }}", "label": "{{ text.split(' ', 1)[0] }}"}
# What cannot be known from columns and names, by pattern.
DESCRIBED: dict[str, dict[str, Any]] = {
    "sft/gsm8k_train/*": {"columns": {"question": "prompt", "answer": "completion"}},
    "sft/self_instruct/*": SELF_INSTRUCT,
    "preference/alpacaeval1_gpt4_labels/*": JUDGED,
    "preference/hhh_alignment/*": {
        "prompt": "{{ chosen_instruction.split('###Response to evaluate:')[0] }}",
        "chosen": "{{ chosen_instruction.split('###Response to evaluate:')[1].split('###Score Rubrics:')[0] }}",
        "rejected": "{{ rejected_instruction.split('###Response to evaluate:')[1].split('###Score Rubrics:')[0] }}",
    },
    "preference/llmbar/*": LLMBAR,
    "preference/rm_bench/*": {"prompt": "{{ prompt }}", "chosen": "{{ chosen[0] }}", "rejected": "{{ rejected[0] }}"},
    "text/gutenberg/*": {"sample_by": "paragraph"},
    "text/tinyshakespeare/*": {"sample_by": "paragraph"},
    "classification/ag_news/test.csv": {
        "columns": {"0": "label", "1": "title", "2": "body"}, "text": "{{ title }}. {{ body }}", "label": "{{ label }}",
    },
    "classification/banking77/*": {"columns": {"category": "label"}},
    "classification/mrpc/*": {
        "file_type": "tsv", "columns": {"Quality": "label", "#1 String": "text", "#2 String": "text_pair"},
    },
    "classification/sms_spam/*": {"columns": {"0": "label", "1": "text"}},
    "classification/sst2/*": {"columns": {"0": "text", "1": "label"}},
    "classification/stsb_en/*": {"columns": PAIR},
    "classification/trec/*": TREC,
}  # fmt: skip


def describe(name: str) -> dict[str, Any]:
    """Returns what has to be said of a file."""
    return next((keys for pattern, keys in DESCRIBED.items() if fnmatch.fnmatch(name, pattern)), {})


def reasons(counts: list[dict[str, Any]]) -> str:
    """Returns why rows were left out, each with the place of the first."""
    return "; ".join(
        f"{one['count']} × {one['name']} ({one['examples'][0]['where'].rpartition('/')[2]})" for one in counts
    )


def convert(path: Path, name: str, out: Path) -> list[Any]:
    """Converts and measures a file; returns its line of the table."""
    source = SourceSpec.model_validate({"path": str(path), "name": name, **describe(name)})
    began = time.process_time()
    try:
        Convert(sources=[source]).run(out / "converted" / name)
    except PosttrainError as error:
        return [name, "", "", "", f"refused: {error}", ""]
    seconds = time.process_time() - began
    report = json.loads((out / "converted" / name / "report.json").read_text())
    [file] = report["files"]
    written = out / "converted" / name / file["file"]
    columns = ", ".join(json.loads(written.read_text().partition("\n")[0]))
    Stats(sources=[SourceSpec(path=str(written), name=name)]).run(out / "stats" / name)
    stats = json.loads((out / "stats" / name / "report.json").read_text())
    duplicates = {row[0]: row[1] for table in stats["tables"] if "say what" in table["title"] for row in table["rows"]}
    alike = sum(count for count in duplicates.values() if isinstance(count, int))
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return [
        name,
        columns,
        f"{file['rows']:,}",
        f"{file['kept']:,}",
        reasons(report["counts"]["Left out"]),
        f"{alike:,}",
    ]


def main() -> None:
    """Prints the tables."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    names = [
        path.relative_to(data).as_posix()
        for folder in FOLDERS
        for path in sorted((data / folder).rglob("*"))
        if path.is_file()
    ]
    lines = [convert(data / name, name, out) for name in names]
    print(HEAD)
    header = ["file", "becomes", "rows", "converted", "left out, and the first such row", "repeats"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for line in lines:
        print("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |")
    print("\nWhat was said of files whose layout cannot be known, as an argument (`*` for a file's name):\n")
    for pattern, keys in DESCRIBED.items():
        print(f"    {shlex.quote(json.dumps({'path': pattern, **keys}, ensure_ascii=False))}")


if __name__ == "__main__":
    main()
