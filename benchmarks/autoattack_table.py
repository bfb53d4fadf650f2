"""The README's tables of AutoAttack: agreement and speed, from the recorded run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "cpu_autoattack.json"
NONE = (
    "No run beside the official package has been recorded yet: this page shows no number of it, "
    "and claims none.\n"
)
TITLES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


def radius(part: dict[str, Any]) -> str:
    """ "Linf 2/255", "L2 0.25"."""
    if part["norm"] == "Linf":
        return f"Linf {part['eps'] * 255:g}/255"
    return f"{part['norm']} {part['eps']:g}"


def of_kind(run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [part for part in run["parts"] if part["kind"] == kind]


def _verdicts(part: dict[str, Any]) -> str:
    """Differing verdicts, eager and on the engine, each named."""
    cells = []
    for mode in part["modes"].values():
        ids = mode["differing"]
        named = f" (image {', '.join(map(str, ids))})" if ids else ""
        cells.append(f"{len(ids)}{named}{'' if mode['agrees'] else ', too many'}")
    short = "".join(
        f", {part[what]} {what}"
        for what, usual in (("queries", 5000), ("targets", 9))
        if part[what] not in (None, usual)
    )
    return f"{part['official_robust']} of {part['images']}: {' / '.join(cells)}{short}"


def agreement_rows(run: dict[str, Any]) -> list[str]:
    """A row a network and norm, a column an attack."""
    parts = of_kind(run, "agreement")
    if not parts:
        return []
    rows = [
        f"| robust after, differing eager / engine | {' | '.join(TITLES.values())} |",
        "|---" * (len(TITLES) + 1) + "|",
    ]
    lines: dict[str, dict[str, str]] = {}
    for part in sorted(parts, key=lambda p: (p["norm"] != "Linf", p["norm"], p["network"])):
        lines.setdefault(f"{part['network']}, {radius(part)}", {})[part["attack"]] = _verdicts(part)
    for name, cells in lines.items():
        rows.append(f"| {name} | {' | '.join(cells.get(a, '') for a in TITLES)} |")
    return rows


def _ratio(part: dict[str, Any]) -> str:
    if part["target"] is None:
        return f"{part['ratio']:.2f}×"
    verdict = ""
    if not part["reached"]:
        most = part["seconds"]["official"] / part["seconds"]["passes_alone"]
        verdict = f", not reached; the passes alone: {most:.2f}×"
    return f"{part['ratio']:.2f}× (target {part['target']:g}×{verdict})"


def speed_rows(run: dict[str, Any]) -> list[str]:
    """A row a network: the whole, its parts, the passes per robust sample."""
    parts = of_kind(run, "speed")
    if not parts:
        return []
    rows = [
        "| AutoAttack standard, CPU | official | fastard | ratio | "
        f"{' | '.join(TITLES.values())} | forwards, gradients per robust image |",
        "|---" * (len(TITLES) + 5) + "|",
    ]
    for part in parts:
        cells = [f"{part['parts'][a]['ratio']:.2f}×" if a in part["parts"] else "" for a in TITLES]
        passes = []
        for side in ("official", "fastard"):
            found = part["per_robust_sample"][side]
            if found is not None:
                passes.append(f"{found['forwards']}, {found['gradients']} ({side})")
        seconds, robust = part["seconds"], part["robust"]["official"]
        rows.append(
            f"| {part['network']}, {radius(part)}, {part['images']} images, {robust} robust | "
            f"{seconds['official']:.1f} s | {seconds['fastard']:.1f} s | {_ratio(part)} | "
            f"{' | '.join(cells)} | {'; '.join(passes)} |"
        )
    return rows


def apgd_line(run: dict[str, Any]) -> str:
    """Our APGD beside others'."""
    told = []
    for part in of_kind(run, "apgd"):
        ratios = [f"{r:.2f}× {name}'s" for name, r in part["times_faster_than"].items()]
        if ratios:
            told.append(f"{part['network']} on {part['images']} images {', '.join(ratios)}")
    return f"APGD-CE alone, 100 steps: {'; '.join(told)}." if told else ""


def paragraphs(results: Path, shown: str) -> str:
    """What the recorded run says, or that there is none; `shown` names the folder."""
    path = results / NAME
    if not path.is_file():
        return NONE
    run = json.loads(path.read_text(encoding="utf-8"))
    info = run["environment"]
    speed_parts = of_kind(run, "speed")
    differing = sum(len(part["differing"]) for part in speed_parts)
    set_up = max((part["set_up_seconds"] for part in speed_parts), default=0.0)
    source = (
        "Agreement: each attack alone on every image, the official package's verdicts beside those "
        'of `compat="official"` with the same seed and batch, eager (0 may differ) and on the '
        "engine (1 may). Speed: one run each, the default draws, "
        f"{differing} verdicts differing, without the engine's set-up, once a network and process "
        f"(at most {set_up:.1f} s). The passes alone are the network's that the verdicts take, "
        "by the engine: an attack that cost nothing else would reach no more. resnet18 has fresh "
        "weights with the statistics of trained ones and its own answers for labels. "
        f"Source: [`{shown}/{NAME}`]({shown}/{NAME}), `make bench-autoattack` on {info['cpu']}, "
        f"{info['threads']} threads, {info['isa']}, torch {info['torch']}."
    )
    agreement, speed = agreement_rows(run), speed_rows(run)
    lines = [*agreement, *([""] if agreement else []), *speed, *([""] if speed else [])]
    return "\n".join([*lines, f"{apgd_line(run)} {source}".strip(), ""])


def told(part: dict[str, Any]) -> list[str]:
    """A part just measured, as it is printed."""
    took = f"{part['took_seconds']} s, idle share before {part['idle']}"
    if part["kind"] == "agreement":
        return [f"{part['part']}: robust {_verdicts(part)}; {part['seconds']}; {took}"]
    if part["kind"] == "apgd":
        return [f"{part['part']}: {part['times_faster_than']}, robust {part['robust']}; {took}"]
    parts = {name: found["ratio"] for name, found in part["parts"].items()}
    return [
        f"{part['part']}: {part['seconds']}, {_ratio(part)}; {parts}; differing "
        f"{part['differing']}; {took}"
    ]
