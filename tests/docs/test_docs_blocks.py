"""Every code block of the documentation runs, or says in its source why it cannot."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import pytest
import torch

from fastard import cli
from tests.docs import given, pages
from tests.docs.pages import PAGES, Block

# Pages about single calls; every other page makes whatever it uses.
TAKES_FOR_GRANTED = {"README.md", "docs/methods.md"}

MIGRATIONS = [page for page in PAGES if page.startswith("docs/migrate/")]


@pytest.fixture(autouse=True)
def a_readers_machine(tmp_path, monkeypatch):
    """An empty folder, and the packages that the reader comes from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTARD_DEBUG", raising=False)
    for name, module in given.origins().items():
        monkeypatch.setitem(sys.modules, name, module)


class Runner:
    """The names that a page's Python blocks leave behind, and what the last one printed."""

    def __init__(self, page: str):
        self.page = page
        self.names: dict[str, Any] = self.fresh()
        self.before: list[str] = []
        self.printed = ""

    def fresh(self) -> dict[str, Any]:
        torch.manual_seed(0)
        return given.names() if self.page in TAKES_FOR_GRANTED else {}

    def run(self, block: Block, capsys: pytest.CaptureFixture) -> None:
        text = block.small()
        if block.language == "python":
            capsys.readouterr()
            exec(compile(text, block.where, "exec"), self.names)
            self.before.append(text)
            self.printed = capsys.readouterr().out
        elif block.language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "fastard", f"{block.where}: {program} needs a reason not to run"
                assert cli.main(arguments) == 0, line
        elif block.language == "diff":
            self.compare(block)
        else:
            assert block.mark in ("printed", "printed but for"), block.where
            told = pages.names(block)
            shown, found = (pages.without(t, told) for t in (block.text, self.printed))
            assert shown == found, block.where

    def compare(self, block: Block) -> None:
        """Each side of a diff, from the same seed, behind the page's Python so far."""
        assert block.mark == "same" and block.told, f"{block.where} says nothing to compare"
        results = []
        before, after = pages.sides(block.small())
        for side in (before, self.damage(after)):
            names = self.fresh()
            for text in (*self.before, side):
                exec(compile(text, block.where, "exec"), names)
            results.append(names)
        for name in pages.names(block):
            assert_like(results[0][name], results[1][name], f"{block.where}: {name}")
        self.names = results[1]

    def damage(self, after: str) -> str:
        """What `test_a_weaker_attack_is_found` overrides."""
        return after


def assert_like(before: Any, after: Any, where: str) -> None:
    """Equal up to rounding, and up to the few pixels whose gradient is rounding."""
    before, after = (torch.as_tensor(value).detach() for value in (before, after))
    assert before.shape == after.shape and before.numel() > 0, where
    off = (before - after).abs() > 5e-4 * before.abs().max()
    assert off.float().mean() < 2e-3, f"{where}: {off.float().mean():.2%} differ"


@pytest.mark.parametrize("page", [page for page in PAGES if pages.read(page)])
def test_every_block_runs(page, tmp_path, capsys):
    runner = Runner(page)
    if page == "README.md":
        given.checkpoints(tmp_path)
    for block in pages.read(page):
        assert block.language in pages.LANGUAGES, f"{block.where}: {block.language}"
        assert block.mark in pages.MARKS, f"{block.where}: {block.mark}"
        if block.mark == "not run":
            assert len(block.told.split()) > 3, f"{block.where} does not say why it is not run"
        else:
            runner.run(block, capsys)


class Weaker(Runner):
    """Runs the side after a change with a smaller radius."""

    def damage(self, after: str) -> str:
        changed = after
        for radius, smaller in (("8 / 255", "4 / 255"), ("0.031", "0.015"), ("=0.1,", "=0.05,")):
            changed = changed.replace(radius, smaller)
        assert changed != after
        return changed


@pytest.mark.parametrize("page", MIGRATIONS)
def test_a_weaker_attack_is_found(page, capsys):
    runner = Weaker(page)
    for block in pages.read(page):
        if block.language == "python":
            runner.run(block, capsys)
        else:
            with pytest.raises(AssertionError, match="differ"):
                runner.run(block, capsys)


def test_no_fence_is_overlooked():
    for page in PAGES:
        fences = sum(line.lstrip().startswith("```") for line in pages.lines(page))
        assert fences == 2 * len(pages.read(page)), page


SAMPLE = """
<!-- code small: epochs=9 -> epochs=1; data -> -->
```python
epochs=9 # data
```

<!-- code same: a, b small: n=5 -> n=1 -->
```diff
 same n=5
-old
+new
```

```
make
```
"""


def test_blocks_and_their_marks_are_read():
    python, diff, bare = pages.blocks_of("page", SAMPLE)
    assert (python.line, python.mark) == (3, "small")
    assert python.small() == "epochs=1 # \n"
    assert pages.sides(diff.small()) == ("same n=1\nold", "same n=1\nnew")
    assert pages.names(diff) == ["a", "b"]
    assert (bare.language, bare.mark) == ("sh", "")


def test_what_a_machine_measures_is_left_out():
    printed = "kept  1\nfloor  2\n       3\nlast 4\n"
    assert pages.without(printed, ["floor"]) == ["kept 1", "last 4"]


def test_unequal_sides_are_found(capsys):
    block = Block("page", 1, "diff", "-a = [1.0, 2.0]\n+a = [1.0, 3.0]\n", "same", "a")
    with pytest.raises(AssertionError, match="page:1: a: 50.00% differ"):
        Runner("page").run(block, capsys)
