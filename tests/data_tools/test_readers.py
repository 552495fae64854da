"""Rows come out of every type of file as they were put in, and a damaged file says where."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from posttrain.data_tools import readers
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.readers import Row
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec

ROWS: list[dict[str, Any]] = [
    {"text": "plain", "label": "a"},
    {"text": 'comma, "quotes", tab\there', "label": "b"},
    {"text": "two\nlines\r\nand more", "label": "a"},
    {"text": "漢字 🙂 \u2028 é", "label": "b"},
    {"text": "", "label": "c"},
]


def spec(path: str, **keys: Any) -> SourceSpec:
    return SourceSpec.model_validate({"path": path, **keys})


def rows(base: Path, path: str, **keys: Any) -> list[Row]:
    return list(read_rows(spec(path, **keys), base))


def values(base: Path, path: str, **keys: Any) -> list[dict[str, Any]]:
    got = rows(base, path, **keys)
    assert [row.problem for row in got] == [None] * len(got)
    return [row.values for row in got]


def jsonl(items: list[Any]) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()


def table(kind: str) -> bytes:
    """ROWS as a file of a type."""
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink: Any = io.BytesIO()
    if kind == "jsonl":
        return jsonl(ROWS)
    if kind == "json":
        return json.dumps(ROWS, indent=2).encode()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
        return text.getvalue().encode()
    data = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(data, sink, row_group_size=2)
    else:
        make: Callable[..., Any] = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with make(sink, data.schema) as writer:
            writer.write_table(data, max_chunksize=2)
    return sink.getvalue()


@pytest.mark.parametrize("gz", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow file", "arrow stream"])
def test_every_type_gives_the_same_rows(tmp_path: Path, kind: str, gz: str):
    name = f"rows.{kind.split()[0]}{gz}"
    (tmp_path / name).write_bytes(gzip.compress(table(kind)) if gz else table(kind))
    assert values(tmp_path, name) == ROWS


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, kind: str, bom: bytes):
    (tmp_path / f"x.{kind}").write_bytes(bom + table(kind))
    assert values(tmp_path, f"x.{kind}") == ROWS


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson"])
def test_json_is_told_from_its_first_character_not_its_name(tmp_path: Path, name: str):
    for content in (table("json"), table("jsonl"), b"\n \n" + table("json"), b"\n" + table("jsonl")):
        (tmp_path / name).write_bytes(content)
        assert values(tmp_path, name) == ROWS


def test_rows_say_where_they_are(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, {"a": 2}]')
    (tmp_path / "a.csv").write_bytes(b'a\n"1\n1"\n2\n')
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n")
    assert [row.where for row in rows(tmp_path, "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]
    assert [row.where for row in rows(tmp_path, "a.json")] == ["a.json[0]", "a.json[1]"]
    assert [row.where for row in rows(tmp_path, "a.csv")] == ["a.csv:2", "a.csv:4"]
    assert [row.where for row in rows(tmp_path, "a.txt")] == ["a.txt:1", "a.txt:3"]


def test_a_bad_line_spoils_itself_only(tmp_path: Path):
    good = b'{"a": "x"}\n'
    bad = [b'{"a": \n', b'{"a": "\xff"}\n', b"[1]\n", b'{"a": "\\ud83d"}\n', b"[" * 100_000 + b"\n"]
    (tmp_path / "a.jsonl").write_bytes(good + good.join(bad) + good)
    got = rows(tmp_path, "a.jsonl")
    assert [row.problem.reason for row in got if row.problem] == [
        "not JSON",
        "not valid UTF-8",
        "not a JSON object",
        "lone surrogate",
        "not JSON",
    ]
    assert [row.values for row in got if not row.problem] == [{"a": "x"}] * 6
    assert [row.where for row in got if row.problem] == [f"a.jsonl:{line}" for line in (2, 4, 6, 8, 10)]


# Each is read by Python's json in a way of its own, or refused: numbers, escapes, bytes, depth, white space.
HOSTILE = [
    *(b'{"a": %s}' % number for number in b"""-0 -0.0 01 1. .5 +1 - 1e 1E5 1e400 -1e400 4.9e-324 2.2250738585072011e-308
        9007199254740993.0 18446744073709551616 NaN -Infinity Infinity nan tru None""".split()),
    *(b'{"a": -%s}' % (b"7" * digits) for digits in (4300, 4301)),
    *(b'{"a": "%s"}' % text for text in rb"\ud83d \ud83d\ude00 \ude00\ud83d \uD83D\u0041 \u0000 \x \u12".split()),
    *(b'{"a": "%s"}' % text for text in b"\0 \x7f \xff \xed\xa0\xbd \xc0\x80 \xe2\x80\xa8\xc2\x85".split()),
    *(b'{"a": %s}' % (b"[" * depth + b"]" * depth) for depth in (99, 100, 150, 250, 10_000)),
    b'{"a": 1, "b": 2, "a": 3}', b'{"a": {"b": 1, "b": [true]}}', b'{"\xff": 1}', b"{1: 2}", b"{'a': 1}", b'{"": null}',
    b'\xef\xbb\xbf{"a": 1}', b' \t{"a": 1} \r', b'\x0c{"a": 1}', b'{"a": 1}\xc2\xa0', b'{"a": 1}{}', b'{"a": 1,}',
    b'{"a": "\t"}', b"[1]", b'"a"', b"3", b"null", b" ", b"\xc2\xa0",
]  # fmt: skip


def assert_read_as_by_json(line: bytes, folder: Path) -> None:
    """A line gives the row that Python's json gives, to the types and the order of keys, or a problem where it may."""
    (folder / "a.jsonl").write_bytes(b'{"first": 1}\n' + line)
    got = rows(folder, "a.jsonl")[1:]
    try:
        text = line.decode()
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        blank = not isinstance(error, UnicodeDecodeError) and (not line or line.decode().isspace())
        assert [row.problem is None for row in got] == ([] if blank else [False])
        return
    (row,) = got
    if row.problem is None:
        assert repr(row.values) == repr(value)
    else:
        half = any("\ud800" <= one <= "\udfff" for one in json.dumps(value, ensure_ascii=False))
        deep = text.count("[") + text.count("{") > readers.MAX_LEVELS
        assert not isinstance(value, dict) or half or deep


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_line_is_read_as_by_python(tmp_path: Path, line: bytes):
    assert_read_as_by_json(line, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.booleans(), st.data())
def test_any_line_is_read_as_by_python_also_after_damage(
    tmp_path: Path, row: dict[str, Any], ascii_only: bool, data: st.DataObject
):
    line = json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass").replace(b"\n", b" ")
    assert_read_as_by_json(line, tmp_path)
    place = data.draw(st.integers(0, len(line)))
    inserted = data.draw(
        st.sampled_from([b"", b'"', b"\\", b"\\u", b"\xff", b"\0", b"-", b"0", b"e", b".", b",", b"{", b"]", b" "])
    )
    assert_read_as_by_json(line[:place] + inserted + line[place + data.draw(st.integers(0, 2)) :], tmp_path)


def test_escaped_emoji_and_the_text_of_an_escape_are_good(tmp_path: Path):
    items = [{"a": "🙂"}, {"a": "\\ud83d is half"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    assert values(tmp_path, "a.jsonl") == items


def test_arrays_are_read_right_wherever_the_window_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = [*ROWS, {"n": 12345, "deep": [{"x": [1, 2, {"y": "]},{"}]}], "long": "z" * 500}]
    text = json.dumps(items, ensure_ascii=False, indent=1) + "\n"
    (tmp_path / "a.json").write_text(text)
    for chunk in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(readers, "_CHUNK", chunk)
        assert values(tmp_path, "a.json") == items


def test_a_bad_element_of_an_array_spoils_itself_only(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}, {"a": "b"}, 3, 45, {"a": "\\udc00"}]')
    got = rows(tmp_path, "a.json")
    reasons = [row.problem and row.problem.reason for row in got]
    assert reasons == ["not valid UTF-8", None, "not a JSON object", "not a JSON object", "lone surrogate"]
    assert got[1].values == {"a": "b"}


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a"', '[{"a": 1}', '[{"a": 1},', '[{"a": 1} {"a": 2}]', "[1"])
def test_an_array_that_breaks_off_is_an_error_with_a_place(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json\[\d\]: not JSON.*is the file whole\?"):
        rows(tmp_path, "a.json")


def test_what_stands_behind_an_array_is_an_error(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"a": 1}]\n \n')
    assert len(rows(tmp_path, "a.json")) == 1
    for more in ('[{"a": 2}]', '{"a": 2}', "]"):
        (tmp_path / "a.json").write_text(f'[{{"a": 1}}]\n{more}\n')
        with pytest.raises(DataError, match=r"a\.json: more stands behind the array.*one object a line"):
            rows(tmp_path, "a.json")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_whose_header_is_no_utf8_is_an_error_that_says_so(tmp_path: Path, encoding: str):
    (tmp_path / "a.csv").write_bytes("größe,text\n1,a\n".encode(encoding))
    with pytest.raises(DataError, match=r"a\.csv:1: the names of the columns are not valid UTF-8.*save the file"):
        rows(tmp_path, "a.csv")


def test_empty_files_have_no_rows(tmp_path: Path):
    for name, content in (
        ("a.jsonl", b""),
        ("b.json", b"[]"),
        ("c.json", b"  \n"),
        ("d.csv", b"a,b\n"),
        ("e.txt", b"\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert rows(tmp_path, name) == []


def test_one_object_over_many_lines_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"data": ROWS}, indent=2))
    with pytest.raises(DataError, match="one JSON object over many lines"):
        rows(tmp_path, "a.json")


# tables


def test_a_table_without_a_header_has_numbered_columns(tmp_path: Path):
    (tmp_path / "a.csv").write_text('1,"a, b"\n0,c\n')
    (tmp_path / "a.tsv").write_text('1\t"a\n0\tc"\n')
    columns = {0: "label", 1: "text"}
    assert values(tmp_path, "a.csv", columns=columns) == [{"label": "1", "text": "a, b"}, {"label": "0", "text": "c"}]
    assert values(tmp_path, "a.tsv", columns=columns) == [{"label": "1", "text": '"a'}, {"label": "0", "text": 'c"'}]


def test_a_row_of_another_width_is_bad(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1\n1,2,3\n\n3,4\n")
    got = rows(tmp_path, "a.csv")
    assert [row.problem and row.problem.reason for row in got] == [
        None,
        "wrong number of fields",
        "wrong number of fields",
        None,
    ]


def test_an_unclosed_quote_does_not_swallow_rows_in_silence(tmp_path: Path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x\n2,y\n3,z\n')
    with pytest.raises(DataError, match=r"a\.csv:2: not CSV.*quotation mark"):
        rows(tmp_path, "a.csv")
    (tmp_path / "b.csv").write_text('a,b\n1,"x"y\n2,z\n')
    got = rows(tmp_path, "b.csv")
    assert [row.problem and row.problem.reason for row in got] == ["not CSV", None]


def test_long_fields_and_bad_bytes_in_a_table(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"a\n" + b"x" * 300_000 + b"\n\xff\ngood\n")
    got = rows(tmp_path, "a.csv")
    assert len(got[0].values["a"]) == 300_000
    assert [row.problem and row.problem.reason for row in got] == [None, "not valid UTF-8", None]


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("good,good\nx,y\n")
    with pytest.raises(DataError, match=r"two columns are named 'good'.*no header"):
        rows(tmp_path, "a.csv")


def test_columns_are_renamed_in_any_type(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"q": 1, "a": 2, "z": 3}, {"q": 1}]))
    good, bad = rows(tmp_path, "a.jsonl", columns={"q": "prompt", "a": "q"})
    assert good.values == {"prompt": 1, "q": 2, "z": 3}
    assert bad.problem is not None
    assert bad.problem.reason == "missing column 'a'"
    with pytest.raises(DataError, match=r"numbered `columns` are for \.csv"):
        rows(tmp_path, "a.jsonl", columns={0: "a"})


# text


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("line", ["one", "  two", "three", "four"]),
        ("paragraph", ["one\n  two", "three\nfour"]),
        ("document", ["\none\n  two\n \n\nthree\nfour"]),
    ],
)
def test_a_text_is_lines_paragraphs_or_a_document(tmp_path: Path, by: str, expected: list[str]):
    (tmp_path / "a.txt").write_bytes(b"\none\n  two\n \n\nthree\nfour")
    assert [row["text"] for row in values(tmp_path, "a.txt", sample_by=by)] == expected


def test_sample_by_is_for_text_only(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(DataError, match=r"`sample_by` is for \.txt files"):
        rows(tmp_path, "a.jsonl", sample_by="document")


# columnar files


def test_columnar_files_do_not_merge_the_arguments_of_tools(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    calls = [[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": [{"z": "a"}, {"w": 1}]}}], None]
    data = pa.Table.from_pylist([{"calls": call, "note": None} for call in calls], schema=pa.schema([
        ("calls", pa.Table.from_pylist([{"c": calls[0]}]).schema.field("c").type), ("note", pa.string())
    ]))  # fmt: skip
    pq.write_table(data, tmp_path / "a.parquet")
    assert values(tmp_path, "a.parquet") == [{"calls": calls[0], "note": None}, {"calls": None, "note": None}]


def test_json_members_of_a_saved_dataset_keep_their_keys_and_nulls(tmp_path: Path):
    from datasets import Dataset, Features, Json, List, Value

    items = [{"messages": [{"role": "a", "args": {"x": 1, "n": None}}, {"role": "b", "args": {"y": [2]}}]}]
    features = Features({"messages": List({"role": Value("string"), "args": Json()})})
    Dataset.from_list(items, features=features).save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path, "saved") == items


def test_damaged_files_are_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(table("parquet")[:-20])
    (tmp_path / "b.arrow").write_bytes(table("arrow file")[:-20])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS))[:-20])
    (tmp_path / "d.jsonl.gz").write_bytes(jsonl(ROWS))
    for name in ("a.parquet", "b.arrow", "c.jsonl.gz", "d.jsonl.gz"):
        with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')}: (not a whole|damaged)"):
            rows(tmp_path, name)


# memory


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv", "txt"])
def test_a_file_far_larger_than_the_limit_of_memory_streams(tmp_path: Path, kind: str):
    """Reads 64 MB in a process that may take no more than 32 MB beyond what it starts with."""
    row = {"text": "x" * 1000}
    line = {"csv": b"x" * 1000, "txt": b"x" * 1000}.get(kind, json.dumps(row).encode())
    count, path = 64_000, tmp_path / f"a.{kind}"
    with gzip.open(path, "wb", 1) if kind.endswith("gz") else path.open("wb") as handle:
        handle.write(b"[" if kind == "json" else b"text\n" if kind == "csv" else b"")
        for start in range(0, count, 1000):
            handle.write((b",\n" if kind == "json" else b"\n").join([line] * 1000))
            handle.write(b"]" if kind == "json" and start + 1000 == count else b",\n" if kind == "json" else b"\n")
    script = f"""
import resource, pathlib
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
print(sum(1 for row in read_rows(SourceSpec(path="a.{kind}"), pathlib.Path({str(tmp_path)!r})) if row.problem is None))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(count), done.stderr
