"""The report: one file, no network, and it looks like something in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, open_browser
from made_run import FAILED_SYNC, eval_line, make_run, metrics_line, write_lines

from gptoss_rl.metrics import METRICS
from gptoss_rl.report import ReportError, build
from gptoss_rl.report.charts import CURVES, charts, curve, evaluation_chart, thinned
from gptoss_rl.report.page import distinguishing_names
from gptoss_rl.report.samples import EXCERPT, answer_span, marked
from gptoss_rl.watch.run_view import RunView

ROOT = Path(__file__).resolve().parent.parent
CANARY = {"parity/abs_diff_mean": 0.00127, "prompt_abs_diff_mean": 0.0172, "shift": 0.54, "correlation": 0.9999}
LONG = "Let us think about it carefully. " * 450  # 15,000 characters


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    first, second = make_run(folder / "first"), make_run(folder / "second", 50)
    return [first, second]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return build(runs[:1])


def test_it_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert len(page) < 3_000_000
    # The browser enforces it; an attempt would be a complaint on the console, which the test below looks for.
    assert "default-src 'none'" in page
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""\bsrc=|<link[^>]*href="(?!data:)|@import|url\(""", outside)


def test_it_says_what_the_run_says(page: str) -> None:
    for word in ("33.5% (27.3% to 40.3%)", "75.0% (68.6% to 80.5%)", "policy version 203", "1 proven",
                 "by 4 workers of 2 engines: 96 modules", "none: the run has no canary.json", "2 CPUs; no GPU",
                 "step 200 against step 0"):  # fmt: skip
        assert word in page, word
    assert all(name in page for name in METRICS)


def test_gates_that_passed_are_facts_and_hashes_are_short(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    (folder / "canary.json").write_text(json.dumps(CANARY))
    (folder / "environment.json").write_text(json.dumps({"git_commit": "0123456789abcdef" * 2, "patch_stack": "fedcba987654"}))
    page = build([folder])
    assert "parity 0.0013 nats on responses, 0.0172 on prompts" in page
    assert "correlation 1.000" in page
    assert "<td>0123456789ab</td>" in page
    assert "<td>hardware</td><td>unknown</td>" in page  # not `? CPUs; no GPU`
    assert "<td>versions</td><td>unknown</td>" in page


def test_a_failed_sync_is_an_incident(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    write_lines(folder / "sync.jsonl", [FAILED_SYNC])
    page = build([folder])
    assert "<td>syncs</td><td>none proven yet</td>" in page
    assert "at step 5 failed: [gate sync] engine 1, worker of TP rank 0: OutOfMemoryError" in page


def test_a_line_that_is_no_record_is_named_and_does_no_harm(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    for name in ("metrics", "eval", "samples", "sync"):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write("null\n")
    assert "eval.jsonl: 1 line passed over: no record of a run" in build([folder])


def test_text_from_data_cannot_become_markup(page: str) -> None:
    assert "0 &lt;/script&gt; &lt;b&gt;&amp;amp;?" in page
    assert "</script> <b>" not in page


def test_problems_that_changed_come_first_with_their_answer_marked(page: str) -> None:
    section = page[page.index("Held-out problems of first at step 0 and step 200") :]
    assert "step 0: wrong" in section
    assert "<mark>1</mark>" in section


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"so \boxed{7}, by 7", "7", r"so \boxed{<mark>7</mark>}, by 7"),
        ("a < b & 7", "7", "a &lt; b &amp; <mark>7</mark>"),
        ("x &", "amp", "x &amp;"),  # no mark within an entity
        ("nothing", None, "nothing"),
    ],
)
def test_the_answer_is_marked_in_its_box_and_only_as_text(text: str, answer: str | None, expected: str) -> None:
    assert marked(text, *answer_span(text, answer)) == expected


@pytest.mark.parametrize("text", [LONG + r"\boxed{7}", r"\boxed{7}" + LONG, LONG + r"\boxed{7}" + LONG, LONG])
def test_of_a_long_response_the_part_with_the_answer_is_shown(text: str) -> None:
    shown = marked(text, *answer_span(text, "7"))
    assert len(shown) < EXCERPT + 50
    assert ("<mark>7</mark>" in shown) == ("7" in text)


def test_a_long_response_can_be_unfolded_whole(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    write_lines(folder / "eval.jsonl", [{**eval_line(0, 7, True), "response": LONG + r"\boxed{7}"}])
    page = build([folder])
    assert "Held-out problems of run at step 0<" in page
    assert f"<summary>Whole response, {len(LONG) + 9:,} characters</summary>" in page
    assert page.count(LONG) == 1


def test_two_runs_are_compared_problem_by_problem(runs: list[Path]) -> None:
    page = build(runs)
    assert "<td>second</td><td>step 50 against first step 200</td>" in page
    assert "0 / 0" in page  # the made-up runs solve the same problems
    write_lines(runs[1] / "eval.jsonl", [eval_line(50, p, True) for p in range(150)])
    assert "not the same problems: not compared" in build(runs)


def test_runs_of_one_name_are_told_apart_and_one_is_not_compared_with_itself(tmp_path: Path, monkeypatch) -> None:
    folders = [make_run(tmp_path / name, 5) for name in ("a/x/run", "b/x/run", "b/x/other")]
    assert distinguishing_names(folders) == ["a/x/run", "b/x/run", "other"]
    page = build(folders)
    assert "a/x/run, b/x/run, other" in page
    with pytest.raises(ReportError, match="more than once"):
        build([folders[0], tmp_path / "a" / "x" / ".." / "x" / "run"])
    monkeypatch.chdir(folders[0])
    assert distinguishing_names([Path()]) == ["run"]


def test_colours_are_in_the_order_of_the_command_line_everywhere(runs: list[Path]) -> None:
    views = {"second": RunView(runs[1]), "first": RunView(runs[0])}
    for name, (_, _, chart) in charts(views).items():
        for encoding in (layer["encoding"] for layer in chart.get("layer", [chart])):
            if name != "phases":
                assert encoding["color"]["scale"]["domain"] == ["second", "first"]
                assert encoding["color"]["legend"] is None  # the page has one, and a band's would be drawn at its opacity
    key = re.search(r'<p class="key">(.*?)</p>', build(runs))
    assert re.findall(r"</i>(\w+)<", key.group(1)) == ["first", "second"]


@pytest.mark.parametrize(("value", "low", "high"), [(5e-7, 2.5e-7, 7.5e-7), (0.0, 0.0, 1.0), (-2.0, -3.0, -1.0)])
@pytest.mark.parametrize("count", [1, 20])
def test_a_curve_that_never_changes_has_an_axis_around_its_value(
    tmp_path: Path, value: float, low: float, high: float, count: int
) -> None:
    """Vega's own axis for one value is labelled 0, wherever the value lies."""
    folder = make_run(tmp_path / "run", count)
    lines = [metrics_line(i + 1, float(i), **{"optimizer/learning_rate": value}) for i in range(count)]
    write_lines(folder / "metrics.jsonl", lines)
    found = curve({"run": RunView(folder)}, "optimizer/learning_rate").to_dict()
    assert found["encoding"]["y"]["scale"]["domain"] == pytest.approx([low, high])


def test_the_axis_of_a_curve_that_never_changes_holds_its_interval(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    write_lines(
        folder / "metrics.jsonl", [metrics_line(i, float(i), **{"parity/kl": 1e-4, "parity/kl_se": 0.5}) for i in range(3)]
    )
    for layer in curve({"run": RunView(folder)}, "parity/kl").to_dict()["layer"]:
        assert "domain" not in layer["encoding"]["y"]["scale"]  # Vega's own: around what is drawn


def test_an_axis_is_titled_with_its_unit_if_there_is_one(runs: list[Path]) -> None:
    views = {"first": RunView(runs[0])}
    assert curve(views, "optimizer/gradient_norm").to_dict()["encoding"]["y"]["title"] is None
    assert curve(views, "policy/entropy").to_dict()["encoding"]["y"]["title"] == "nats"


def test_intervals_of_a_single_run_have_its_colour(runs: list[Path]) -> None:
    """A rule without a colour of its own is black, on black."""
    bars, line = evaluation_chart({"first": RunView(runs[0])}).to_dict()["layer"]
    assert bars["encoding"]["color"] == line["encoding"]["color"]


def test_every_score_has_its_tier_and_a_small_set_ranks_nothing(page: str, tmp_path: Path) -> None:
    assert page.count("stability, ±3.4 %") == 2
    folder = make_run(tmp_path / "run", 3)
    write_lines(folder / "eval.jsonl", [eval_line(step, p, step > 0) for step in (0, 3) for p in range(18)])
    small = build([folder])
    assert small.count("sanity only, ±11.2 %") == 2
    assert small.count("not compared: too few problems") == 1


def test_runs_that_were_evaluated_differently_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(runs[0], tmp_path / name) for name in ("a", "b")]
    for folder, length in zip(folders, (4096, 512), strict=True):
        (folder / "config.json").write_text(json.dumps({"generate_max_len": length}))
    assert "not compared: generate_max_len 512 against 4096" in build(folders)
    (folders[1] / "config.json").write_text(json.dumps({"generate_max_len": 4096}))
    assert "not compared" not in build(folders)


def test_every_curve_is_registered_and_long_runs_are_thinned() -> None:
    assert {key for key, _ in CURVES} <= set(METRICS)
    assert thinned(list(range(5000)))[-1] == 4999
    assert len(thinned(list(range(5000)))) == 600
    assert thinned([1, 2]) == [1, 2]


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "command.txt").write_text("python -m openrlhf.cli.train_ppo_ray\n")
    assert "starting, step 0" in build([tmp_path / "run"])


def report(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gptoss_rl.report", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_writes_it_beside_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").stat().st_size > 100_000


def test_what_cannot_be_reported_on_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5)
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.rglob("*"))
    for words, message in (
        ([tmp_path / "no"], "no run directory"),
        ([tmp_path / "empty"], "no command.txt is in it"),
        (["tests"], "no command.txt is in it"),
        ([folder, folder], "more than once"),
        ([folder, "--output", tmp_path], "is a directory; name a file in it"),
    ):
        done = report(*words)
        assert done.returncode != 0, words
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert "usage: python -m gptoss_rl.report " in done.stderr
    assert set(tmp_path.rglob("*")) == before  # no half-made file either


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, Path]:
    """A report of one run with long responses, and one of three runs, two of them of one name."""
    folder = tmp_path_factory.mktemp("drawn")
    runs = [make_run(folder / name, 60) for name in ("a/run", "b/run", "other")]
    for run in runs:
        (run / "canary.json").write_text(json.dumps(CANARY))
        rows = [{**r, "response": LONG + r["response"]} for r in map(json.loads, (run / "eval.jsonl").read_text().splitlines())]
        write_lines(run / "eval.jsonl", rows)
    pages = {"one": folder / "one.html", "three": folder / "three.html"}
    pages["one"].write_text(build(runs[:1]))
    pages["three"].write_text(build(runs))
    return pages


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "three"])
def test_a_browser_draws_it_without_a_complaint(
    drawn: dict[str, Path], browser: Page, name: str, width: int, dark: bool
) -> None:
    figures = drawn[name].read_text().count("<figure>")
    assert figures >= 9
    browser.show(drawn[name], width, dark, f"document.querySelectorAll('figure svg').length === {figures}")
    assert browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    boxes = browser.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().toJSON())")
    assert all(box["width"] > 150 and box["right"] <= width and box["height"] < 300 for box in boxes), boxes
    # What one came for is in sight without scrolling sideways, and every answer within its box.
    assert browser.evaluate("document.querySelector('.figures th:nth-last-child(5)').getBoundingClientRect().right") <= width
    hidden = """[...document.querySelectorAll('mark')].filter(m => {
      const box = m.closest('pre').getBoundingClientRect(), own = m.getBoundingClientRect();
      return own.bottom > box.bottom || own.right > box.right || box.height > 400; }).length"""
    assert browser.evaluate("document.querySelectorAll('mark').length") == 12
    assert browser.evaluate(hidden) == 0
    bars = "[...document.querySelectorAll('#evaluation .mark-rule.role-mark line')]"
    strokes = browser.evaluate(f"{bars}.map(line => line.getAttribute('stroke'))")
    assert set(strokes) == {"one": {"#4c78a8"}, "three": {"#4c78a8", "#f58518", "#e45756"}}[name]
    assert_looks_like_something(browser, width, dark)


def assert_looks_like_something(browser: Page, width: int, dark: bool) -> None:
    """Text and curves in the upper part, on paper of the scheme's colour: neither blank nor a single colour."""
    image = browser.picture()
    assert image.width == width
    assert (image.getpixel((2, 2)) < 64) == dark
    for top in (0, 400, 800):
        histogram = image.crop((0, top, width, top + 400)).histogram()
        ink = sum(histogram[128:] if dark else histogram[:128])
        assert ink > 200, f"nothing drawn between {top} and {top + 400}"
        assert sum(count > 0 for count in histogram) > 20


def test_the_page_is_drawn_again_when_the_scheme_changes(drawn: dict[str, Path], browser: Page) -> None:
    ink = "document.querySelector('#evaluation .role-axis-label text').getAttribute('fill')"
    browser.show(drawn["one"], 1280, False, "document.querySelectorAll('figure svg').length > 8")
    assert browser.evaluate(ink) == "#24292f"
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.evaluate(f"new Promise(done => setTimeout(() => done({ink}), 1000))") == "#d7dae0"
