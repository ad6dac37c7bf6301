"""The report: one file, no network, and it looks like something in a real browser."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_run import eval_line, make_run, write_lines

from gptoss_rl.metrics import METRICS
from gptoss_rl.report import CURVES, build, thinned

ROOT = Path(__file__).resolve().parent.parent
# Reports what the page is like after drawing; title and body are all that --dump-dom needs to carry.
PROBE = """<script type="module">
setTimeout(() => {
  const root = document.documentElement;
  document.body.dataset.probe = [root.scrollWidth <= innerWidth, document.querySelectorAll('figure svg').length,
    [...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().width > 150)].join(' ');
}, 1500);
</script></body>"""


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
    for word in ("33.5% (27.3% to 40.3%)", "75.0% (68.6% to 80.5%)", "policy version 203", "96 modules proven by 4 workers"):
        assert word in page, word
    assert all(name in page for name in METRICS)


def test_text_from_data_cannot_become_markup(page: str) -> None:
    assert "0 &lt;/script&gt; &lt;b&gt;&amp;amp;?" in page
    assert "</script> <b>" not in page


def test_problems_that_changed_come_first_with_their_answer_marked(page: str) -> None:
    section = page[page.index("Held-out problems") :]
    assert "step 0: wrong" in section
    assert "<mark>1</mark>" in section


def test_two_runs_are_compared_problem_by_problem(runs: list[Path]) -> None:
    page = build(runs)
    assert "against first" in page
    assert "0 / 0" in page  # the made-up runs solve the same problems
    write_lines(runs[1] / "eval.jsonl", [eval_line(50, p, True) for p in range(5)])
    assert "not the same problems: not compared" in build(runs)


def test_every_curve_is_registered_and_long_runs_are_thinned() -> None:
    assert {key for key, _ in CURVES} <= set(METRICS)
    assert thinned(list(range(5000)))[-1] == 4999
    assert len(thinned(list(range(5000)))) == 600
    assert thinned([1, 2]) == [1, 2]


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "run" in build([tmp_path / "run"])


def test_the_command_writes_it_beside_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5)
    command = [sys.executable, "-m", "gptoss_rl.report"]
    done = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").stat().st_size > 100_000
    missing = subprocess.run([*command, tmp_path / "no"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "is no run directory" in missing.stderr


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it_without_a_complaint(page: str, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("REPORT_NEEDS_BROWSER"):
            pytest.fail("no chromium here, and REPORT_NEEDS_BROWSER is set")
        pytest.skip("no chromium on this machine; CI has one")
    path = tmp_path / "report.html"
    end = page.rindex("</body>")  # the bundled library writes one, too
    path.write_text(page[:end] + PROBE + page[end + len("</body>") :])
    base = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},2400",
            "--virtual-time-budget=10000", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile"]  # fmt: skip
    done = subprocess.run([*base, "--dump-dom", f"file://{path}"], capture_output=True, text=True, check=False, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    probe = re.search(r'data-probe="(\w+) (\d+) (\w+)"', done.stdout)
    assert probe, done.stderr[-2000:]
    fits, drawn, wide_enough = probe.groups()
    assert (fits, wide_enough) == ("true", "true")
    assert int(drawn) == page.count("<figure>") >= 9
    shot = tmp_path / "shot.png"
    subprocess.run([*base, f"--screenshot={shot}", f"file://{path}"], capture_output=True, check=False, timeout=120)
    assert_looks_like_something(shot, width)


def assert_looks_like_something(shot: Path, width: int) -> None:
    """Text and curves in the upper part: neither blank nor a single colour."""
    from PIL import Image

    image = Image.open(shot).convert("L")
    assert image.width == width
    for top in (0, 400, 800):
        histogram = image.crop((0, top, width, top + 400)).histogram()
        assert sum(histogram[:128]) > 200, f"nothing drawn between {top} and {top + 400}"
        assert sum(count > 0 for count in histogram) > 20
