"""Reading what the steps of a GPU check leave: pytest's XML, compute-sanitizer's text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

OURS = {"fastard", "tests", "benchmarks"}
MESSAGE = 2000


def junit(path: Path) -> dict[str, Any]:
    """Counts, the failures' names and messages, and the modules that are not installed.

    What cannot be imported or run for want of a package of others is no failure of ours: it stands
    under `missing`, by package, and is counted nowhere else.

    Raises:
        ValueError: pytest wrote no report, or half of one.
    """
    if not path.exists():
        raise ValueError("pytest left no report")
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"pytest's report cannot be read: {error}") from error
    # A test that was interrupted has an element, but stands in no count.
    told = [{k: int(v) for k, v in s.items() if v.isdigit()} for s in root.iter("testsuite")]
    passed = sum(s["tests"] - s["failures"] - s["errors"] - s["skipped"] for s in told)
    counts = {"passed": passed, "failed": 0, "skipped": 0}
    failures, missing = [], {}  # type: list[dict[str, str]], dict[str, list[str]]
    skips: dict[str, int] = {}
    for case in root.iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            message = f"{bad.get('message') or ''}\n{bad.text or ''}".strip()
            if package := _absent(message):
                missing.setdefault(package, []).append(name)
                continue
            counts["failed"] += 1
            failures.append({"name": name, "message": message[:MESSAGE]})
        elif skipped is not None:
            counts["skipped"] += 1
            reason = skipped.get("message") or ""
            skips[reason] = skips.get(reason, 0) + 1
    return {**counts, "failures": failures, "missing": missing, "skip_reasons": skips}


def _absent(message: str) -> str | None:
    """The package of others whose absence a failure tells of."""
    found = re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", message)
    packages = {name.partition(".")[0] for name in found}
    return packages.pop() if len(packages) == 1 and not packages & OURS else None


def sanitizer(text: str) -> dict[str, Any]:
    """Errors and, of racecheck, hazards by compute-sanitizer's own count; what the program said.

    `errors` is None where the tool counted nothing, as when it cannot watch the device.
    """
    errors = [int(n) for n in re.findall(r"ERROR SUMMARY: (\d+) error", text)]
    hazards = re.findall(
        r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", text
    )
    found: dict[str, Any] = {"errors": sum(errors) if errors else None}
    if hazards:
        total, wrong, warnings = (sum(int(row[k]) for row in hazards) for k in range(3))
        found.update(errors=wrong + (found["errors"] or 0), hazards=total, warnings=warnings)
    smoke = re.search(r"gpu_smoke: (\d+) of (\d+) right, (\d+) left out", text)
    if smoke:
        found.update(zip(("right", "run", "left_out"), map(int, smoke.groups()), strict=True))
    found["wrong"] = re.findall(r"^WRONG (.*)$", text, flags=re.M)
    return found
