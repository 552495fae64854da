"""The report in a browser: it sorts, filters, compares, opens answers, prints, and trusts no text."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals.report import build, write

from ..evals.judged_fixtures import answer, judged_score, pair, save_answers, save_judgments, world
from ..evals.report_fixtures import lineage, make_run, score, share
from .pages import Watched, inaccessible, open_page

pytestmark = pytest.mark.browser

EVIL = (
    '<script>window.owned = 1; alert(1)</script></script><img src=x onerror="window.owned = 1">'
    "{{ 7*7 }}{% raw %}<svg onload=alert(2)>\"'><a href=javascript:alert(3)>x</a>"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of four judged runs."""
    root = tmp_path_factory.mktemp("judged")
    return write(build([world(root / "runs", prompts=20)]), root / "report")[0].as_uri()


@pytest.fixture
def board(browser: Any, address: str) -> Iterator[Watched]:
    with open_page(browser, address) as watched:
        yield watched
        assert watched.errors == []
        assert watched.dialogs == []
        assert watched.requests == [address], "a request left the page"


def shown(page: Any) -> list[str]:
    return page.locator("#board tbody tr:not([hidden])").evaluate_all("rows => rows.map((row) => row.id)")


def figures(page: Any, column: int) -> list[float | None]:
    """The figures of a column, from above; None where there is none."""
    script = """(rows, column) => rows.map((row) => {
        const figure = row.cells[column].querySelector('.figure:not([hidden])');
        return figure && figure.dataset.value !== '' ? Number(figure.dataset.value) : null;
    })"""
    return page.locator("#board tbody tr:not([hidden])").evaluate_all(script, column)


def test_every_column_sorts_both_ways_and_back(board: Watched):
    page = board.page
    first_order = shown(page)
    assert len(first_order) == 8
    lead = page.locator("th[data-lead]").get_attribute("data-column")
    heads = page.locator("th[data-column]")
    for column in range(2, heads.count()):
        head = heads.nth(column)
        led = head.get_attribute("data-column") == lead  # the page begins with its best first
        for turn in range(2):
            if led and not turn:
                pass
            elif turn:
                head.locator(".sort").focus()
                page.keyboard.press("Enter")  # a keyboard sorts too
            else:
                head.locator(".sort").click()
            known = [value for value in figures(page, column) if value is not None]
            rising = head.get_attribute("aria-sort") == "ascending"
            assert known == sorted(known, reverse=not rising)
            assert figures(page, column)[: len(known)] == known, "rows without a figure come last"
            sign = head.locator("[data-sign]").first.get_attribute("data-sign")
            assert rising == ((sign == "-1") != bool(turn)), "best first, then worst first"
        head.locator(".sort").click()
        assert shown(page) == first_order
    heads.first.locator(".sort").click()
    assert heads.first.get_attribute("aria-sort") == "ascending"
    assert shown(page) == sorted(first_order, key=lambda row: int(row[1:])), "along the lineage"


def test_columns_can_be_left_out_and_rows_made_one_line(board: Watched):
    page = board.page
    height = "document.querySelector('#board tbody').getBoundingClientRect().height"
    roomy = page.evaluate(height)
    page.check("#dense")
    assert page.evaluate(height) < roomy / 2
    page.click(".picker summary")
    page.uncheck("#columns input[value='0']")
    assert not page.locator("#board th[data-key='0']").is_visible()
    assert page.locator("#board th[data-key='1']").is_visible()
    page.click("#controls button[type=reset]")
    page.wait_for_selector("#board th[data-key='0']")
    assert page.evaluate(height) == roomy


def test_the_head_of_the_table_stays_in_sight(board: Watched):
    page = board.page
    page.set_viewport_size({"width": 1000, "height": 320})
    top = "element => element.getBoundingClientRect().top"
    scroller = page.locator("#ranking .scroll")
    assert scroller.evaluate("element => { element.scrollTop = 1e6; return element.scrollTop; }") > 100
    head = page.locator("#board th[data-key='0']").evaluate(top)
    assert 0 <= head - scroller.evaluate(top) < 3


def test_rows_are_filtered_by_text_stage_and_run(board: Watched):
    page = board.page
    every = shown(page)
    page.fill("#filter", "dpo 10")
    assert page.locator("#board tbody tr:not([hidden]) .open").all_inner_texts() == ["dpo"]
    assert page.inner_text("#count") == f"1 of {len(every)} rows"
    page.click("#controls button[type=reset]")
    page.wait_for_selector("#board tbody tr:not([hidden]) >> nth=7")
    page.check("#last")
    assert len(shown(page)) == 4
    page.click("#stages label:first-of-type")
    assert len(shown(page)) == 3
    page.select_option("#run", label="ppo")
    assert page.locator("#board tbody tr:not([hidden]) .open").all_inner_texts() == ["ppo"]
    page.click("#controls button[type=reset]")
    page.wait_for_selector("#board tbody tr:not([hidden]) >> nth=7")
    assert shown(page) == every


def test_two_rows_are_compared(board: Watched):
    page = board.page
    assert not page.is_visible("#compare")
    page.check("[data-compare=r8]")
    assert page.is_visible("#compare")
    page.check("[data-compare=r2]")
    title = page.inner_text("#compare-title")
    assert "against" in title
    lines = page.locator("#compare-table tbody tr")
    assert lines.count() >= 4
    verdicts = set(page.locator("#compare-table .verdict").all_inner_texts())
    assert all(verdict.split(" ", 1)[1] in ("better", "worse", "no verdict") for verdict in verdicts)
    place = page.inner_text("#compare-place")
    page.focus("#compare-on")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#compare-place") != place
    assert page.locator("#compare-answers .answer").count() == 2
    page.check("[data-compare=r1]")  # a third choice replaces the first of two
    assert page.locator("[data-compare]:checked").count() == 2
    page.keyboard.press("Escape")
    assert not page.is_visible("#compare")
    assert page.locator("[data-compare]:checked").count() == 0


def test_an_answer_opens_with_what_the_judge_said(board: Watched):
    page = board.page
    sample = page.locator("[data-sample]").first
    assert not sample.locator(".answers").is_visible()
    sample.locator("summary").click()
    assert sample.locator(".answer").count() == 4
    assert "says it plainly" in sample.inner_text()
    page.fill("#sample-text", "note 13.")
    assert page.locator("[data-sample]:not([hidden])").count() == 1
    assert page.inner_text("#sample-count").startswith("1 to 1 of 1 prompts")
    page.fill("#sample-text", "")
    page.locator("[data-answers]").last.click()
    assert sample.locator(".answer:not([hidden])").count() == 1


def test_a_name_opens_where_its_row_comes_from(board: Watched):
    page = board.page
    page.locator("#board .name .open").last.click()
    drawer = page.locator("[popover]:popover-open")
    assert "posttrain train" in drawer.inner_text()
    page.keyboard.press("Escape")
    assert drawer.count() == 0


def test_the_print_holds_the_table_and_none_of_the_controls(board: Watched):
    page = board.page
    page.emulate_media(media="print")
    assert page.is_visible("#board")
    for control in ("#controls", "#theme", ".tools", "[data-compare]"):
        assert not page.locator(control).first.is_visible(), control
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    document = page.pdf()
    assert document.startswith(b"%PDF")
    assert b"/Type /Page" in document


def test_dark_is_the_systems_choice_until_the_reader_has_one(browser: Any, address: str):
    colour = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, address, color_scheme="dark") as watched:
        dark = watched.page.evaluate(colour)
        watched.page.click("#theme")
        light = watched.page.evaluate(colour)
        watched.page.reload()
        assert watched.page.evaluate(colour) == light != dark
    with open_page(browser, address, color_scheme="light") as watched:
        assert watched.page.evaluate(colour) == light


def test_the_metric_of_a_column_can_be_chosen(tmp_path: Path, browser: Any):
    with open_page(browser, write(build([lineage(tmp_path / "runs")]), tmp_path)[0].as_uri()) as watched:
        page = watched.page
        assert figures(page, 2) == [0.8, 0.75, 0.4, 0.3]
        head = page.locator("th[data-column]").nth(2)
        head.locator("select").select_option(index=1)
        assert figures(page, 2) == [0.4, 0.375, 0.2, 0.15]
        charts = page.locator('figure[data-column="0"]')
        assert [charts.nth(i).is_visible() for i in range(2)] == [False, True]
        assert watched.errors == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 420), ("dark", 1400)])
def test_axe_finds_nothing(browser: Any, address: str, scheme: str, width: int):
    with open_page(browser, address, color_scheme=scheme, width=width) as watched:
        page = watched.page
        page.evaluate("for (const item of document.querySelectorAll('details:not(.sample)')) item.open = true")
        page.locator("[data-sample] summary").first.click()
        for row in (1, 3):
            page.locator("[data-compare]").nth(row).check()
        page.locator("#board .name .open").last.click()
        page.wait_for_timeout(100)  # for what follows a change of size
        assert inaccessible(page) == []


def test_without_javascript_everything_can_still_be_read(browser: Any, address: str):
    with open_page(browser, address, java_script_enabled=False) as watched:
        page = watched.page
        assert page.locator("#board tbody tr").count() == 8
        assert page.is_visible("#board")
        assert not page.is_visible("#controls")
        sample = page.locator("[data-sample]").first
        sample.locator("summary").click()
        assert "says it plainly" in sample.inner_text()


def hostile(root: Path) -> Path:
    """Runs whose every text is an attack."""
    folders = {}
    answers = {}
    for name in ("sft", "dpo"):
        weights = f"{name}-weights"
        records = [
            score("final", 20, "arc", share(60, 100), weights_hash=weights),
            score("final", 20, EVIL, share(3, 9, EVIL), weights_hash=weights),
        ]
        folders[name] = make_run(
            root / name,
            f"{name} {EVIL}",
            records,
            stage=EVIL,
            command=EVIL,
            recipe={"k": EVIL},
            final=weights,
            losses=3,
        )
        fields: dict[str, Any] = {"turns": (EVIL,), "references": (EVIL,), "category": EVIL, "prompt_id": EVIL}
        answers[name] = [answer(i, f"{name} {i} {EVIL}", **fields, prompt_key=f"key{i}") for i in range(12)]
        save_answers(folders[name], weights, answers[name])
    said = []
    for i in range(12):
        mine, theirs = (("dpo-weights", EVIL, answers["dpo"][i]), ("sft-weights", EVIL, answers["sft"][i]))
        said += pair(mine, theirs, 1.0, reason=EVIL, judge=EVIL, judge_model=EVIL)
    save_judgments(folders["dpo"], said)
    judged_score(folders["dpo"], "dpo-weights", [1.0] * 11 + [0.5], "sft-weights")
    for folder in folders.values():
        (folder / "scores.jsonl").open("a").write(EVIL + "\n")
    return root


def test_hostile_texts_run_nothing_and_no_request_leaves(tmp_path: Path, browser: Any):
    url = write(build([hostile(tmp_path / "runs")], title=f"A title {EVIL}"), tmp_path / "report")[0].as_uri()
    with open_page(browser, url) as watched:
        page = watched.page
        page.evaluate("for (const item of document.querySelectorAll('details')) item.open = true")
        for box in page.locator("[data-compare]").all()[:2]:
            box.check()
        page.locator("th[data-column] .sort").last.click()
        page.fill("#filter", "<script>")
        page.fill("#sample-text", "onerror")
        page.click("#controls button[type=reset]")
        page.fill("#sample-text", "")
        page.locator("#board .name .open").last.click()
        page.emulate_media(media="print")
        page.pdf()
        assert page.evaluate("window.owned") is None
        assert watched.dialogs == []
        assert watched.requests == [url]
        for tag in ("img", "svg[onload]", "a[href^=javascript]", "iframe", "object"):
            assert page.locator(tag).count() == 0, tag
        text = page.locator(".answer .text").first.inner_text()
        assert "<script>window.owned = 1; alert(1)</script>" in text
        assert "{{ 7*7 }}" in text
        assert "49" not in page.locator("#board th.name .open").first.inner_text()
        assert watched.errors == []
        # Even markup that gets in is refused by the page's own policy.
        image = '<img src="https://example.org/x.png" onerror="window.owned = 1">'
        button = '<button id="bad" onclick="window.owned = 1">'
        page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", image + button)
        page.evaluate("document.getElementById('bad').click()")
        page.wait_for_timeout(100)
        assert page.evaluate("window.owned") is None
        assert watched.requests == [url]
        assert watched.blocked == ["https://example.org/x.png"]


def test_a_megabyte_of_answer_stays_in_its_place(tmp_path: Path, browser: Any):
    folder = make_run(tmp_path / "run", "run", [score("final", 20, "arc", share(60, 100), weights_hash="w")])
    long = dataclasses.replace(answer(0, "word " * 200_000), finish=("length",))
    save_answers(folder, "w", [long, answer(1, ""), answer(2, "\x00\x1b[2J\u202egnp.exe"), answer(3, "x" * 10_000)])
    path = write(build([folder]), tmp_path / "report")[0]
    assert path.stat().st_size < 2_000_000
    with open_page(browser, path.as_uri()) as watched:
        page = watched.page
        page.evaluate("for (const item of document.querySelectorAll('details')) item.open = true")
        assert "more characters" in page.inner_text("#samples")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page scrolls sideways"
        assert "\u202e" not in page.inner_text("body")
        assert watched.errors == []
