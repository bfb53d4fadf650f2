"""The report's page in a browser: no errors, sorting, colours, phones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import record_file
from benchmarks.report import html
from benchmarks.report.contents import document

EXAMPLE = Path(__file__).with_name("example.jsonl")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on PATH"
)

LOOK = """
<script>
(() => {
const found = {};
function column(table, name) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const k = heads.findIndex((head) => head.textContent === name);
  const cells = () => Array.from(table.tBodies[0].rows, (row) => row.cells[k].textContent);
  const sorts = () => heads.map((head) => head.getAttribute("aria-sort"));
  return { head: heads[k], cells, sorts };
}
function sorted(id, name) {
  const table = document.querySelector(`table[aria-labelledby="${id}"]`);
  const it = column(table, name), seen = [it.cells()];
  for (let turn = 0; turn < 2; turn++) {
    it.head.querySelector("button").click();
    seen.push(it.cells(), it.head.getAttribute("aria-sort"));
  }
  return { seen, sorts: it.sorts() };
}
function rgb(words) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = words;
  canvas.fillRect(0, 0, 1, 1);
  return Array.from(canvas.getImageData(0, 0, 1, 1).data).slice(0, 3);
}
function colours() {
  const of = (selector, what) => rgb(getComputedStyle(document.querySelector(selector))[what]);
  return {
    paper: of("body", "backgroundColor"), raised: of("thead th", "backgroundColor"),
    ink: [of("body", "color"), of("a[href^='#section']", "color"), of("td.reached", "color"),
          of("td.missed", "color"), of("td.unmeasured", "color"), of("figcaption", "color"),
          of("svg text", "fill")],
    series: of("svg use", "fill"),
  };
}
for (const details of document.querySelectorAll("details")) details.open = true;
found.times = sorted("attack-lines", "fastest");
found.names = sorted("attack-lines", "who");
found.targets = sorted("targets", "measured");
found.colours = [colours()];
const theme = document.getElementById("theme");
found.pressed = [theme.getAttribute("aria-pressed")];
theme.click();
found.colours.push(colours());
found.pressed.push(theme.getAttribute("aria-pressed"));
found.focusable = Array.from(document.querySelectorAll("button, a, summary, .scroll"),
                             (element) => element.tabIndex >= 0 && !element.hidden).every(Boolean);
found.boxes = Array.from(document.querySelectorAll("svg"), (svg) => {
  const box = svg.getBoundingClientRect();
  return [box.width, box.height];
});
found.scripts = document.scripts.length;
const text = document.createElement("pre");
text.id = "found";
text.textContent = JSON.stringify(found);
document.body.append(text);
})();
</script>
"""

# A page in a frame as wide as a phone says how wide it would be.
PHONE = """
<script>
const frame = document.createElement("iframe");
frame.width = 380;
frame.height = 800;
frame.srcdoc = document.getElementById("page").textContent;
frame.onload = () => {
  const inner = frame.contentDocument, body = getComputedStyle(inner.body);
  const small = Array.from(inner.querySelectorAll("svg text"), (words) => {
    const scale = words.ownerSVGElement.getScreenCTM().a;
    return scale * parseFloat(getComputedStyle(words).fontSize);
  });
  const text = document.createElement("pre");
  text.id = "found";
  text.textContent = JSON.stringify({ wide: inner.documentElement.scrollWidth,
    font: parseFloat(body.fontSize), pictures: Math.min(...small) });
  document.body.append(text);
};
document.body.append(frame);
</script>
"""


def looked(path: Path, *options: str) -> dict:
    """What the page's added script found; fails for whatever the console was told."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=3000",
               *options, "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.S)
    assert found, done.stdout[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def text() -> str:
    return html.page(document(record_file.read(EXAMPLE)))


@pytest.fixture(scope="module")
def found(text, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text.replace("</body>", f"{LOOK}</body>"))
    return looked(path, "--blink-settings=preferredColorScheme=1")


def measured(name: str) -> list[float]:
    lines = map(json.loads, EXAMPLE.read_text().splitlines())
    return [line["seconds"]["min"] for line in lines
            if line.get("group") == name and line["seconds"]]  # fmt: skip


def test_figures_are_sorted_by_value_in_both_directions(found):
    before, up, ascending, down, descending = found["times"]["seen"]
    assert (ascending, descending) == ("ascending", "descending")
    # 410 ms comes before 2.31 s, and what was not measured comes last either way.
    empty = before.count("")
    assert up[-empty:] == down[-empty:] == [""] * empty and empty
    assert up[:-empty] == down[:-empty][::-1] and sorted(up) == sorted(before)
    assert [float(t.split()[0]) * (1e-3 if "ms" in t else 1) for t in up[:-empty]] == pytest.approx(
        sorted(measured("attack")), rel=0.01
    )
    assert found["times"]["sorts"].count("descending") == 1
    assert found["times"]["sorts"].count("none") == len(found["times"]["sorts"]) - 1


def test_words_are_sorted_too(found):
    before, up, _, down, _ = found["names"]["seen"]
    assert up == sorted(before) and down == up[::-1]
    assert found["targets"]["seen"][1] == ["1.277", "5.976"]


def luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[int], b: list[int]) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_both_themes_can_be_read(found, dark):
    colours = found["colours"][dark]
    assert (luminance(colours["paper"]) < 0.1) == dark
    assert found["pressed"][dark] == str(dark).lower()
    for ink in colours["ink"]:
        assert contrast(ink, colours["paper"]) >= 4.5  # WCAG's AA for text
    assert contrast(colours["ink"][0], colours["raised"]) >= 4.5
    assert contrast(colours["series"], colours["paper"]) >= 3  # and for graphics


def test_the_keyboard_reaches_everything(found):
    assert found["focusable"] is True


def test_pictures_are_drawn(found):
    assert found["boxes"] and all(width > 200 and high > 40 for width, high in found["boxes"])


def test_the_system_may_ask_for_dark(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", f"{LOOK}</body>"))
    colours = looked(path, "--blink-settings=preferredColorScheme=0")["colours"]
    assert luminance(colours[0]["paper"]) < 0.1 < luminance(colours[1]["paper"])


def test_a_phone_is_wide_enough(text, tmp_path):
    path = tmp_path / "phone.html"
    inside = text.replace("&", "&amp;").replace("<", "&lt;")
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="page" hidden>{inside}</pre>{PHONE}'
    )
    found = looked(path)
    assert found["wide"] <= 380
    assert found["font"] >= 16 and found["pictures"] >= 8
