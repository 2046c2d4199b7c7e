"""Report pages in a headless browser: nothing fails or is fetched, tables sort, it can be read by all, and printed.

`make browser-tests` fetches the browser, and runs them.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cli_tools import in_process
from run_maker import choices, make_run, programs, three_models

ROOT = Path(__file__).resolve().parents[2]
BROWSER = ROOT / "tests/browser"
if shutil.which("node") is None or not (BROWSER / "node_modules").is_dir():
    pytest.skip("run `make browser-tests`, which fetches a browser", allow_module_level=True)

pytestmark = pytest.mark.browser
HOSTILE = "<script>console.error(1)</script><img src=https://example.org/x.png> \u202egnp \x1b[31m " + "long" * 60


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything on it: two runs, of which one was measured by `bench` and has a hostile reply."""
    folder = tmp_path_factory.mktemp("browser")
    runs = []
    for name, right in (("kda", 14), ("$gla$ <b>", 6)):
        models = three_models({"choice": choices(right, 24 - right), "programs": programs(6)})
        models["1-logit_distillation"]["choice"][20] |= {"reply": HOSTILE, "parsed": HOSTILE}
        runs.append(make_run(folder / name, models))
    (runs[0] / "bench").mkdir()
    shutil.copy(ROOT / "results/cpu/bench/smollm2-135m-window.json", runs[0] / "bench/bench.json")
    shutil.copy(ROOT / "results/window/placements/beam7.json", runs[0] / "placement.json")
    code, said = in_process("report", *runs, "--output", folder / "report")
    assert code == 0, said
    return folder / "report/report.html"


@pytest.fixture(scope="module")
def seen(page):
    """What the browser says of it, see tests/browser/look.mjs."""
    done = subprocess.run(["node", BROWSER / "look.mjs", page, page.parents[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_fails_and_nothing_is_fetched(seen):
    for view in ("light", "dark", "phone", "after"):
        assert (seen[view]["errors"], seen[view]["requests"]) == ([], []), view


def test_it_can_be_read_by_all(seen):
    """By axe-core's rules, in both colour schemes and at phone width, where nothing sticks out."""
    assert {view: seen[view]["violations"] for view in ("light", "dark", "phone")} == dict(light=[], dark=[], phone=[])
    assert seen["phone"]["overflow"] <= 0


def test_tables_sort_by_mouse(seen):
    numbers = [float(cell) for cell in seen["before"]["cells"]]
    assert seen["before"]["order"] is None and numbers != sorted(numbers)
    assert seen["clicked"]["order"] == "ascending"
    assert [float(cell) for cell in seen["clicked"]["cells"]] == sorted(numbers)
    assert seen["clicked_again"]["order"] == "descending"
    assert [float(cell) for cell in seen["clicked_again"]["cells"]] == sorted(numbers, reverse=True)


def test_tables_sort_by_keyboard(seen):
    tasks = seen["entered"]["cells"]
    assert seen["entered"]["order"] == "ascending" and tasks == sorted(tasks) and len(set(tasks)) > 1
    assert seen["spaced"]["order"] == "descending" and seen["spaced"]["cells"] == sorted(tasks, reverse=True)


def test_it_prints(seen, page):
    assert seen["pdf"]["begins"] == "%PDF-" and seen["pdf"]["bytes"] > 50_000
    assert {"light.png", "dark.png", "phone.png"} <= {path.name for path in page.parents[1].iterdir()}
