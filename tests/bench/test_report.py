"""The report: every number is the record's, its formats agree, and nothing breaks it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import record_file, report
from benchmarks.report import html
from benchmarks.report.__main__ import main
from benchmarks.report.contents import document
from benchmarks.report.document import Number
from tests.bench.page_reader import Page, csv_table, markdown_tables, shows, strangers

EXAMPLE = Path(__file__).with_name("example.jsonl")
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}",
           "=HYPERLINK()", "a|b\nc", "$x_", "\x1b[31mred\x1b[0m\x00\ud800", "[a](javascript:b)",
           "</svg></style></script>")  # fmt: skip


def lines() -> list[dict]:
    return [json.loads(line) for line in EXAMPLE.read_text().splitlines()]


def without_curves() -> list[dict]:
    """Drawing them takes longest."""
    return [line for line in lines() if line.get("group") != "scaling"]


def saved(found: list[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    written = report.write(EXAMPLE, folder)
    assert written[0].name == "report.html"
    assert {p for p in folder.rglob("*") if p.is_file()} == set(written)
    return folder


@pytest.fixture(scope="module")
def page(out) -> Page:
    return Page((out / "report.html").read_text())


def rendered(found: list[dict], folder: Path) -> Page:
    """The page alone."""
    return Page(html.page(document(record_file.read(saved(found, folder / "result.jsonl")))))


def test_every_number_is_in_the_record(page):
    assert strangers(page, EXAMPLE) == []
    figures = [v for table in page.tables.values() for row in table.values for v in row if v]
    assert len(figures) > 100 and page.pictures


@pytest.mark.parametrize(
    ("old", "new"),
    [(">2.31 s<", ">2.32 s<"), ('data-value="2.31"', 'data-value="2.313"'),
     ("exponent 0.97", "exponent 0.96"), ("<h1>", "<h1>9 times ")],
)  # fmt: skip
def test_a_number_of_no_record_is_found(out, old, new):
    text = (out / "report.html").read_text()
    assert old in text
    assert strangers(Page(text.replace(old, new, 1)), EXAMPLE)


@pytest.mark.parametrize("kind", ["seconds", "bytes", "times", "share", "rate", "plain", "figure"])
@pytest.mark.parametrize("value", [1.0, 0.9996, 9.995, 999.6, 1234.5, 0.0101, 2.9996])
def test_rounded_figures_are_near(kind, value):
    value = value * {"rate": 1e9, "bytes": 2**20}.get(kind, 1)
    assert shows(Number(value, kind).text, value)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [(5.1e-5, "seconds", "51.0 µs"), (0.41, "seconds", "410 ms"), (812.4, "seconds", "812 s"),
     (2e-9, "seconds", "0.00200 µs"), (0, "seconds", "0 µs"), (180000000, "bytes", "172 MiB"),
     (0.9704, "share", "97.0 %"), (1.2345, "times", "1.23×"), (5.9996, "figure", "6.000"),
     (5.9976, "figure", "5.998"), (32, "plain", "32"), (123.4e9, "rate", "123 GB/s")],
)  # fmt: skip
def test_figures_as_shown(value, kind, text):
    assert Number(value, kind).text == text


def test_html_markdown_and_csv_agree(out, page):
    written = markdown_tables((out / "report.md").read_text())
    assert len(written) == len(page.tables) > 15
    for (name, table), other in zip(page.tables.items(), written, strict=True):
        assert (other.head, other.rows) == (table.head, [[" ".join(c.split()) for c in row]
                                                         for row in table.rows]), name  # fmt: skip
        comma = csv_table(out / "csv" / f"{name}.csv")
        assert comma.head == table.head
        values = [[v or cell for cell, v in zip(*pair, strict=True)]
                  for pair in zip(table.rows, table.values, strict=True)]  # fmt: skip
        assert comma.rows == values, name
    assert {p.stem for p in (out / "csv").iterdir()} == set(page.tables)


def test_pictures_stand_in_every_format(out, page):
    pictures = {p.stem for p in (out / "png").iterdir()}
    assert {"attack-cpu-fp32", "scaling-growth-with-batch", "breakdown-shares"} <= pictures
    told = {attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "svg"}
    assert told == {f"{name}-told" for name in pictures}
    linked = re.findall(r"\]\(png/([\w-]+)\.png\)", (out / "report.md").read_text())
    assert set(linked) == pictures
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_page_needs_no_other_file(out, page):
    text = (out / "report.html").read_text()
    assert [a for t, a in page.tags if t in ("script", "img", "iframe") and a.get("src")] == []
    assert "@import" not in text and "default-src 'none'" in text
    # Names of XML vocabularies are fetched by nobody.
    outside = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_sections_and_verdicts(page):
    heads = [a["id"] for t, a in page.tags if t == "h2"]
    assert heads == [f"section-{name}" for name in (
        "environment", "targets", "attack", "op", "step", "autoattack", "memory", "scaling",
        "breakdown", "comparison", "rivals", "method")]  # fmt: skip
    verdicts = [row[1] for row in page.tables["targets"].rows]
    assert verdicts == ["reached", "not reached"]
    assert [row[1] for row in page.tables["targets-elsewhere"].rows] == ["not measured here"]
    assert ("summary", {"id": "targets-elsewhere"}) in page.tags
    attack = page.tables["attack"]
    state = dict(zip(attack.head, attack.rows[0], strict=True))
    assert state["torchattacks"] == "failed" and state["published"] == "1.28×"
    assert state["adversarial-robustness-toolbox"] == "not available"
    assert "not stable: foolbox: the machine was busy" in state["remarks"]
    parts = page.tables["step-parts"]
    assert dict(zip(parts.head, parts.rows[0], strict=True))["attack"] == "2.50 s"
    assert [row[1] for row in page.tables["comparison"].rows] == ["slower", "not slower"]
    missing = {row[0]: row[3] for row in page.tables["not-measured"].rows}
    assert "<that>" in missing["torchattacks"] and "may be 0.05" in missing["torch.compile"]


def test_every_column_can_be_sorted(out):
    text = (out / "report.html").read_text()
    heads = re.findall(r"<th scope=\"col\"[^>]*>(.)", text)
    assert heads and set(heads) == {"<"}
    assert text.count('<th scope="col" aria-sort="none"') == len(heads)
    assert text.count("<button type=") == len(heads) + 1


def test_nothing_measured_still_renders(tmp_path):
    page = rendered(lines()[:1], tmp_path)
    assert "The run was cut short: this is what it had measured until then." in page.words
    assert page.words.count("This run did not measure it.") == 7
    assert "The record names no target." in page.words
    assert set(page.tables) == {"environment", "versions"}


def test_crashed_contestants_and_missing_floor(tmp_path):
    found = without_curves()
    for line in found:
        if line["kind"] == "result":
            line["floor_seconds"] = line["over_floor"] = line["share_of_copy"] = None
            line["agreement"] = None
            if line["who"] != "fastard":
                line.update(status="failed", reason="it crashed", seconds=None, ratio=None,
                            memory_ratio=None, series=None)  # fmt: skip
    page = rendered(found, tmp_path)
    assert "over the floor" not in page.tables["attack"].head
    rivals = page.tables["attack"].rows[0]
    assert rivals.count("failed") == 5
    assert len(page.tables["not-measured"].rows) > 10


def test_fastard_itself_crashed(tmp_path):
    found = without_curves()
    for line in found:
        if line["kind"] == "result" and line["who"] == "fastard":
            line.update(status="failed", reason="it crashed", seconds=None, series=None,
                        breakdown=None)  # fmt: skip
        elif line["kind"] == "result":
            line["ratio"] = line["memory_ratio"] = None
    page = rendered(found, tmp_path)
    attack = page.tables["attack"].rows[0]
    assert attack[1] == "failed" and "2.95 s" in attack  # rivals' own figures, with no ratio


def test_hostile_strings_stay_words(tmp_path):
    found = without_curves()[:14]
    for line in found:
        if line["kind"] == "result":
            line["who"] = line["who"] if line["who"] == "fastard" else HOSTILE[0] + line["who"]
            line["case"] += "".join(HOSTILE)
            line["reason"] = line["reason"] and "".join(HOSTILE)
    found[0]["machine"]["cpu"] = found[0]["suite"] = "".join(HOSTILE)
    found[0]["versions"] |= {word: word for word in HOSTILE}
    report.write(saved(found, tmp_path / "result.jsonl"), tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and tags.count("style") == 1 and "img" not in tags
    assert any("alert(1)" in cell for row in page.tables["attack"].rows for cell in row)
    assert "49" not in "".join(page.words)
    written = markdown_tables((tmp_path / "out" / "report.md").read_text())
    for (name, table), other in zip(page.tables.items(), written, strict=True):
        assert [len(row) for row in other.rows] == [len(row) for row in table.rows], name
    text = re.sub("</?(details|summary)>", "", (tmp_path / "out" / "report.md").read_text())
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(javascript", text)
    cells = [row[0] for row in csv_table(tmp_path / "out" / "csv" / "versions.csv").rows]
    assert "'=HYPERLINK()" in cells and not any(cell.startswith("=") for cell in cells)


def test_command(tmp_path, capsys):
    path = saved(lines()[:1], tmp_path / "result.jsonl")
    assert main([str(path), "--out", str(tmp_path / "new" / "folder")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "new" / "folder" / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda path: path.unlink(), "No such file"),
     (lambda path: path.write_text(""), "is empty"),
     (lambda path: path.write_text("{}\n"), "bears no 'kind'"),
     (lambda path: saved([{**lines()[0], "schema": 99}], path), "schema 99"),
     (lambda path: shutil.copy(__file__, path), "is no JSON"),
     (lambda path: (path.parent / "out").write_text(""), "is a file")],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, capsys, change, told):
    path = tmp_path / "result.jsonl"
    shutil.copy(EXAMPLE, path)
    change(path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").is_dir()
