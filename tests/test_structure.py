"""The project's own rules: who imports whom, how long files are, what they may not say."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib.util
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fastard

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastard"

# What any module may import: plain helpers that import nothing of ours themselves.
PLAIN = {"checks", "files", "kinds", "rows", "shapes"}
CORE = PLAIN | {"native", "reference", "ops", "settings", "losses", "attacks", "engine", "api"}
TRAINING = CORE | {"data", "device", "methods", "models", "progress"}

# Module or package of fastard -> the modules of fastard that it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "checks": set(),
    "files": set(),
    "kinds": set(),
    "rows": set(),
    "shapes": set(),
    "radius": {"kinds"},
    "reference": {"shapes"},
    "reference_fab": set(),
    "reference_apgd": {"reference", "shapes"},
    "reference_layers": set(),
    "reference_noise": set(),
    "reference_square": {"shapes"},
    "settings": set(),
    "device": PLAIN,
    "progress": PLAIN,
    "native": {"_C"},
    "triton_kernels": set(),
    "models": PLAIN,
    "data": PLAIN,
    "ops": PLAIN
    | {"reference", "reference_apgd", "reference_fab", "reference_layers", "reference_noise"}
    | {"reference_square", "native", "triton_kernels"},
    "losses": PLAIN | {"ops"},
    "attacks": PLAIN | {"ops", "reference_apgd", "reference_square"},
    "engine": PLAIN | {"ops"},
    "api": PLAIN | {"attacks", "engine", "ops", "settings"},
    "methods": PLAIN | {"api", "losses", "models", "ops"},
    "compat": PLAIN | {"api", "engine", "losses", "ops", "settings"},
    "autoattack": CORE | {"progress", "reference_apgd"},
    "evaluation": TRAINING | {"__init__", "autoattack", "radius", "scores"},
    "scores": set(),
    "transfer": CORE | {"data"},
    "teachers": TRAINING | {"radius", "transfer"},
    "training": TRAINING | {"__init__", "evaluation"},
    "__init__": CORE | {"autoattack", "compat", "data", "methods", "models"},
    "train": {"progress", "training"},
    "evaluate": TRAINING | {"evaluation", "radius", "training"},
    "doctor": TRAINING
    | {"__init__", "reference_apgd", "reference_fab", "reference_noise", "reference_square"},
    "export": PLAIN | {"models", "progress"},
    "bench": set(),
    "cli": {"__init__", "bench", "doctor", "evaluate", "export", "teachers", "train"} | PLAIN,
    "__main__": {"cli"},
}

SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh", ".inc"}
MOST_LINES, MEDIAN_LINES = 400, 150
# Split, so that this file does not hold them itself.
BANNED = [
    r"\bTO" r"DO\b",
    r"\bFIX" r"ME\b",
    r"\bNotImpl" r"ementedError\b",
    r"^\s*exc" r"ept\s*:",
    r"\bpass" r"  #",
]
MACHINE_PATHS = [r"(?<![\w.])/wo" r"rk/", r"(?<![\w.])/ro" r"ot/", r"(?<![\w.])/tm" r"p/"]


def package_files() -> dict[str, list[Path]]:
    """Module or package name -> its Python files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported_names(tree: ast.AST) -> set[str]:
    """Every dotted name that the code imports, inside functions and by import_module too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def edges(source: str, own: str, modules: set[str]) -> set[str]:
    """The modules of fastard that `source`, part of module `own`, imports."""
    found = set()
    for name in imported_names(ast.parse(source)):
        assert not name.startswith("."), f"{own}: relative import {name}"
        first, *rest = name.split(".")
        if first == "fastard":
            found.add(rest[0] if rest and rest[0] in modules | {"_C"} else "__init__")
    return found - {own}


def forbidden(source: str, own: str) -> set[str]:
    return edges(source, own, set(MAY_IMPORT)) - MAY_IMPORT[own]


def test_every_module_has_its_row():
    assert set(package_files()) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(package_files()))
def test_imports_follow_the_table(module):
    for path in package_files()[module]:
        assert forbidden(path.read_text(), module) == set(), path.relative_to(ROOT)


def test_the_table_has_no_cycle():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("attacks", "def attack():\n    from fastard.engine import Program", {"engine"}),
        ("ops", "import fastard.engine.program as p", {"engine"}),
        ("reference", "from fastard import checks, kinds", {"checks", "kinds"}),
        ("models", "if True:\n    importlib.import_module('fastard.ops')", {"ops"}),
        ("methods", "from fastard import pgd_kl", {"__init__"}),
        ("engine", "import fastard", {"__init__"}),
        ("losses", "from fastard._C import cpu_isa", {"_C"}),
        ("api", "from fastard.attacks import pgd\nimport torch", set()),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(module, source, found):
    assert forbidden(source, module) == found


@functools.cache
def project_files() -> tuple[Path, ...]:
    """What git does not ignore; in an export, what lies in the known folders."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert listed.returncode == 0, listed.stderr
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.iterdir() if p.suffix in {".py", ".md", ".toml", ".txt", ".in"}]
        for folder in ("fastard", "csrc", "tests", "benchmarks", "docs", "examples"):
            paths += (ROOT / folder).rglob("*")
    return tuple(sorted(p for p in paths if p.is_file() and "__pycache__" not in p.parts))


def sources() -> list[Path]:
    return [path for path in project_files() if path.suffix in SOURCES]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_long():
    long = {str(p.relative_to(ROOT)): lines(p) for p in sources() if lines(p) > MOST_LINES}
    assert long == {}


def test_most_files_are_short():
    counts = [lines(p) for p in sources() if p.relative_to(ROOT).parts[0] != "tests"]
    assert len(counts) > 50
    assert statistics.median(counts) < MEDIAN_LINES


def held(text: str, patterns: list[str]) -> list[str]:
    return [line for line in text.splitlines() if any(re.search(p, line) for p in patterns)]


def test_banned_words():
    found = {p.name: held(p.read_text(), BANNED) for p in sources()}
    assert {name: said for name, said in found.items() if said} == {}
    bad = ["# TO" + "DO: later", "    exc" + "ept:", "raise NotImpl" + "ementedError"]
    assert [held(line, BANNED) for line in bad] == [[line] for line in bad]


def test_no_paths_of_one_machine():
    texts = {}
    for path in project_files():
        try:
            texts[path.name] = path.read_text()
        except UnicodeDecodeError:  # an image or a checkpoint
            continue
    found = {name: held(text, MACHINE_PATHS) for name, text in texts.items()}
    assert {name: said for name, said in found.items() if said} == {}
    bad = ['open("/wo' + 'rk/x")', "cd /ro" + "ot/y", "/tm" + "p/z"]
    assert [held(line, MACHINE_PATHS) for line in bad] == [[line] for line in bad]


def test_no_python_statement_does_nothing():
    for path in sources():
        if path.suffix == ".py":
            nodes = ast.walk(ast.parse(path.read_text()))
            idle = [node.lineno for node in nodes if isinstance(node, ast.Pass)]
            assert idle == [], path.relative_to(ROOT)


@pytest.mark.parametrize("name", fastard.__all__)
def test_public_names_are_documented(name):
    doc = getattr(fastard, name).__doc__
    # A dataclass without a docstring is given its signature.
    assert doc and not doc.startswith(f"{name}("), name


def tool(module: str, *arguments: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install {module}")
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_ruff():
    done = tool("ruff", "check", ".")
    assert done.returncode == 0, done.stdout


def test_mypy():
    done = tool("mypy", "fastard")
    assert done.returncode == 0, done.stdout
