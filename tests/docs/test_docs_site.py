"""The documentation site: it builds strictly, and its API pages name everything public."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastard
from fastard import data, engine, losses, methods, models, ops, train
from tests.docs.pages import DOCS, ROOT

WANTED = ("mkdocs", "material", "mkdocstrings")


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_strictly(tmp_path):
    missing = [name for name in WANTED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: pip install .[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    silent = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=silent)
    assert done.returncode == 0, done.stderr
    attacks = (tmp_path / "api" / "attacks.html").read_text()
    assert 'id="fastard.pgd_kl"' in attacks and "teacher_logits" in attacks
    # Each call's settings, return and errors are sections, and none is left as plain text.
    assert "Raises:</span>" in attacks and not re.search(r"<p>[^<]*\bRaises:", attacks)
    assert "not reached" not in (DOCS / "limits.md").read_text()
    assert (ROOT / "README.md").read_text().count("not reached") == (
        (tmp_path / "limits.html").read_text().count("not reached")
    )
    assert not list(tmp_path.glob("*.py"))


def named(path: str):
    """The object that a page names: the longest module in its path, then attributes."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise AssertionError(path)


def is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def hides(path: str) -> str | None:
    """The module that the site's builder, which runs nothing, would take for this object."""
    found, name = named(path), path.rpartition(".")[2]
    if inspect.ismodule(found) or path == f"{found.__module__}.{name}":
        return None
    above = found.__module__.split(".")
    parents = [path.rpartition(".")[0], *(".".join(above[:n]) for n in range(1, len(above)))]
    return next((f"{p}.{name}" for p in parents if is_module(f"{p}.{name}")), None)


def test_every_public_name_is_on_an_api_page():
    documented = set()
    for page in (DOCS / "api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)", page.read_text(), re.M):
            assert hides(path) is None, f"{page.name}: {path} must be named where it is defined"
            documented.add(named(path))
    assert hides("fastard.pgd") == "fastard.api.pgd"
    for name in re.findall(r"^\| `ops\.(\w+)\(", (ROOT / "README.md").read_text(), flags=re.M):
        assert getattr(ops, name) in documented, f"fastard.ops.{name} is on no page of docs/api"
    for module in (fastard, data, engine, losses, methods, models, train):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.ismodule(found) or not callable(found):
                continue
            assert found in documented, f"{module.__name__}.{name} is on no page of docs/api"


README = """
| op | a | b |
|---|---|---|
| x | 1 (target 2, not reached) | `p\\|q` |
| y | 2 | 3: NOT reached |

not reached, but in no table
<!-- gpu: begin -->
See [a file](results/a.json) and [a page](https://example.org).
<!-- gpu: end -->
"""


def test_readme_parts():
    made = hooks()
    assert made.missed(README) == "- x, a: 1 (target 2, not reached)\n- y, b: 3: NOT reached"
    assert made.missed("no table") == "None."
    assert made.part(README, "gpu") == "See a file and [a page](https://example.org).\n"
    with pytest.raises(ValueError, match="no part 'cpu'"):
        made.part(README, "cpu")


def test_every_page_finds_its_parts():
    for page in DOCS.rglob("*.md"):
        text = hooks().on_page_markdown(page.read_text())
        assert "<!-- readme:" not in text and "<!-- code" not in text, page


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": (\S+\.md)$", text, flags=re.M))
    assert listed == {Path(page).relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
