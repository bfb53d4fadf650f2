"""What the seconds of the attack benchmark amount to: ratios of minima, each with its target."""

from __future__ import annotations

from typing import Any

LOOP = {
    ("mobilenetv2", "fp32"): 3.0, ("mobilenetv2", "bf16"): 6.0,
    ("resnet18", "fp32"): 1.25, ("resnet18", "bf16"): 5.0,
}  # fmt: skip
COMPILE = {("resnet18", "fp32"): 1.1}
FLOOR = {"mobilenetv2": 1.6}
REFRESH = 0.03
SET_UP = {"resnet18": 3.0}
MEMORY = {"resnet18": 0.5}


def line(what: str, value: float, target: float | None, most: bool = False) -> dict[str, Any]:
    reached = None if target is None else (value <= target if most else value >= target)
    return {"what": what, "value": round(value, 4), "target": target, "reached": reached}


def told(found: dict[str, Any]) -> None:
    """Prints a measured network: its seconds, then its figures with their verdicts."""
    for key, value in found["seconds"].items():
        print(f"  {key:42s} {value['min'] * 1e3:8.1f} ms")
    for row in found["lines"]:
        verdict = "reached" if row["reached"] else "NOT reached"
        target = "" if row["target"] is None else f" (target {row['target']:g}: {verdict})"
        print(f"  {row['what']:50s} {row['value']:.3f}{target}", flush=True)


def compiled(seconds: dict[str, dict[str, float]], precision: str) -> float | None:
    """The fastest `torch.compile` at this precision, if one was timed.

    Older records name no precision: theirs are fp32.
    """
    own = [f"compile {precision} "]
    if precision == "fp32":
        own += ["compile default", "compile max-autotune"]
    return min((v["min"] for k, v in seconds.items() if k.startswith(tuple(own))), default=None)


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a figure. The share of the renewed weights has its target at PGD-10 alone."""
    name, seconds, lines = found["model"], found["seconds"], []
    best = {key: value["min"] for key, value in seconds.items()}
    for precision in ("fp32", "bf16"):
        key = f"fastard {precision}"
        own, rival = best[key], compiled(seconds, precision)
        lines += [
            line(f"{key} against the published loop", best["published"] / own,
                 LOOP.get((name, precision))),
            line(f"{key} over the floor", own / best[f"floor {precision}"],
                 FLOOR.get(name, 1.25), True),
        ]  # fmt: skip
        if rival is not None:
            lines.append(line(f"{key} against the fastest torch.compile", rival / own,
                              COMPILE.get((name, precision), 1.3)))  # fmt: skip
    if costs := found.get("costs"):
        target = REFRESH if found["steps"] == 10 else None
        lines += [line(f"refresh {p}, share of an attack", c["share"], target, True)
                  for p, c in costs["refresh"].items()]  # fmt: skip
        lines.append(line("set-up, seconds", costs["set_up_seconds"], SET_UP.get(name), True))
        if costs["memory_share"] is not None:
            lines.append(line("peak memory over eager autograd's", costs["memory_share"],
                              MEMORY.get(name), True))  # fmt: skip
    return lines
