import base64
import hashlib
import json
import re
from difflib import unified_diff
from pathlib import Path

import pytest
from posttrain.evals.report import build
from posttrain.evals.report.html import to_html
from posttrain.evals.report.svg import Point, Segment, Series, chart, thin, ticks

from .golden_page import FILE, golden_world, page_text
from .report_fixtures import EVIL, lineage, make_run, score, share


def test_the_page_says_what_it_should(tmp_path: Path):
    """Every section of the page, as a reader finds it without JavaScript."""
    found = page_text(to_html(build([golden_world(tmp_path / "runs")], title="Golden")))
    (tmp_path / FILE.name).write_text(found)
    changed = list(unified_diff(FILE.read_text().splitlines(), found.splitlines(), FILE.name, "now", lineterm="", n=1))
    assert not changed, "\n".join([*changed, "", f"if that is meant: cp {tmp_path / FILE.name} {FILE}"])


def test_the_page_is_sealed_and_stands_alone(tmp_path: Path):
    page = to_html(build([lineage(tmp_path)]))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    for kind in ("style", "script"):
        content = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert content
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\(|@import|style=["']|\son\w+=["']""", page)


def test_embedded_data_cannot_end_its_element(tmp_path: Path):
    make_run(tmp_path / "run", EVIL + "\u2028", [score("final", 1, "arc", share(3, 9))])
    page = to_html(build([tmp_path]))
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    assert not set("<>&\u2028") & set(data[1])
    assert json.loads(data[1])["runs"][0]["name"] == EVIL + "\u2028"


@pytest.mark.parametrize(
    ("most", "lost", "rows"),
    [
        (560_000, [], 40),
        (215_000, ["other than each task's first"], 40),
        (150_000, ["details of each row"], 40),
        (70_000, ["details of each row", "all but the first"], 20),
    ],
)
def test_a_page_too_large_loses_the_least_needed_first_and_says_so(tmp_path: Path, monkeypatch, most, lost, rows):
    scores = [
        score(f"checkpoint-{i}", i, "arc", share(i, 50, "acc"), share(i // 2, 50, "acc_norm")) for i in range(1, 41)
    ]
    make_run(tmp_path / "run", "run", scores)
    monkeypatch.setattr("posttrain.evals.report.html.MOST_BYTES", most)
    page = to_html(build([tmp_path]))
    assert len(page.encode()) < most
    assert page.count('<tr id="r') == rows
    assert ("left out to keep this page" in page) == bool(lost)
    for clause in lost:
        assert clause in page.replace("&#39;", "'")


def test_curves_join_child_to_parent_and_carry_intervals(tmp_path: Path):
    page = to_html(build([lineage(tmp_path)]))
    arc = page[page.index("<figcaption><strong>arc</strong>") :]
    arc = arc[: arc.index("</svg>")]
    assert arc.count('class="join"') == 1
    assert arc.count('class="band"') == 2
    assert arc.count("<title>") == 4
    assert "<strong>Loss</strong>" in page


def test_a_chart_needs_two_places_and_escapes_its_labels():
    segment = Segment(0, 1, 10, EVIL)
    one = Series("run1", 0, (Point(0, 1.0, label=EVIL),))
    assert chart([one], [segment], name=EVIL, x_label="steps") is None
    two = Series("run1", 9, (Point(0, 1.0, 0.5, 1.5, EVIL), Point(1, 90.0)))
    svg = chart([two], [segment], name=EVIL, x_label="steps")
    assert svg
    assert "<img" not in svg
    assert "<script" not in svg
    assert "log scale" in svg


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2613, 0.2614), (-5, 1200), (1e-9, 3e-9), (0, 123456)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert all(low <= value <= high * (1 + 1e-9) for value in found)


def test_thinning_keeps_the_mean_and_the_order():
    log = [(i, float(i % 7)) for i in range(1000)]
    thinned = thin(log, 100)
    assert len(thinned) == 100
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in log) / 1000)
    assert thinned == sorted(thinned)
