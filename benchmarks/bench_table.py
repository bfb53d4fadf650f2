"""The README's table of whole attacks from a result of `fastard bench`, where one is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import record_file
from .record import OURS, Result
from .record_file import Run

FILE = "bench_cpu.jsonl"
REPORT = "bench_cpu"
PRECISIONS = ("fp32", "bf16")
SIZE = ("model", "batch", "steps")


def recorded(results: Path) -> Run | None:
    path = results / FILE
    return record_file.read(path) if path.is_file() else None


def networks(run: Run) -> list[dict[str, Any]]:
    """The run's attacks on KL as attack_table takes them: a network that has every precision."""
    cases: dict[tuple[Any, ...], dict[str, list[Result]]] = {}
    for result in run.results:
        if result.group == "attack" and result.loss == "kl" and result.device == "cpu":
            size = tuple(getattr(result, name) for name in SIZE)
            cases.setdefault(size, {}).setdefault(str(result.precision), []).append(result)
    found = [_network(run, size, by_precision) for size, by_precision in cases.items()
             if by_precision.keys() >= set(PRECISIONS)]  # fmt: skip
    return [network for network in found if network is not None]


def _network(
    run: Run, size: tuple[Any, ...], cases: dict[str, list[Result]]
) -> dict[str, Any] | None:
    """None where the published loop or fastard was not measured."""
    seconds: dict[str, dict[str, float]] = {}
    lines: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        timed = {result.who: result for result in cases[precision] if result.seconds}
        own = timed.get(OURS)
        loop = next((r for who, r in timed.items() if who.startswith("published")), None)
        if own is None or own.seconds is None or loop is None or loop.seconds is None:
            return None
        name, rival = f"fastard {precision}", timed.get("torch.compile")
        seconds.setdefault("published", {"min": loop.seconds.min})
        seconds[name] = {"min": own.seconds.min}
        lines.append(_line(run, loop, f"{name} against the published loop", loop.ratio))
        if own.floor_seconds is not None:
            seconds[f"floor {precision}"] = {"min": own.floor_seconds}
            lines.append(_line(run, own, f"{name} over the floor", own.over_floor))
        if rival is not None and rival.seconds is not None:
            seconds[f"compile {precision} {rival.variant}"] = {"min": rival.seconds.min}
            what = f"{name} against the fastest torch.compile"
            lines.append(_line(run, rival, what, rival.ratio))
    return {**dict(zip(SIZE, size, strict=True)), "seconds": seconds, "lines": lines}


def _line(run: Run, result: Result, what: str, value: float | None) -> dict[str, Any]:
    """The figure with the bound that the record sets it, if any."""
    bound = next((t for t in run.targets if t.case == result.case and t.value == value), None)
    return {"what": what, "value": value, "target": bound and bound.bound,
            "reached": bound and bound.reached}  # fmt: skip


def picture(results: Path, shown: str) -> list[str]:
    """The report's picture of the attacks, where it is recorded."""
    name = f"{REPORT}/png/attack-cpu-fp32.png"
    told = "Each rival's time over fastard's, attack by attack, fp32 on the CPU"
    return [f"![{told}]({shown}/{name})", ""] if (results / name).is_file() else []


def source(run: Run, shown: str) -> str:
    """Where the figures come from; `shown` is how the README calls the results' folder."""
    machine, versions = run.environment.machine, run.environment.versions
    commit = str(run.environment.commit.get("id"))[:12]
    return (
        f"Source: [`{shown}/{FILE}`]({shown}/{FILE}), with its "
        f"[report]({shown}/{REPORT}/report.md), `fastard bench --suite {run.environment.suite}` "
        f"on {machine.get('cpu')}, {machine.get('threads')} threads, {machine.get('isa')}, torch "
        f"{versions.get('torch')}, commit {commit}; the fastest of interleaved rounds."
    )
