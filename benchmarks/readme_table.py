"""The README's results tables, made from the recorded runs: make readme-table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastard.files import atomic_path

from . import autoattack_table, bench_table, gpu_table, training_table
from .attack_table import attack_rows, cost_rows
from .record_file import Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
TRAINING_BEGIN, TRAINING_END = "<!-- training: begin -->\n", "<!-- training: end -->\n"
AUTOATTACK_BEGIN, AUTOATTACK_END = "<!-- autoattack: begin -->\n", "<!-- autoattack: end -->\n"
GPU_BEGIN, GPU_END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->\n"

STEPS = {
    "test_pgd_step_linf": "`pgd_step_` Linf",
    "test_pgd_step_l2_l1": "`pgd_step_`",
    "test_logit_loss_kl": "`logit_loss` kl, loss + gradient",
}


def _label(name: str) -> str:
    function, _, case = name.rstrip("]").partition("[")
    shape, _, norm = case.partition("-")
    if function == "test_logit_loss_kl":
        return f"{STEPS[function]}, [{shape}, {norm}]"
    return f"{STEPS[function]}{' ' + norm if norm else ''} {shape.replace('x', '×')}"


def _against(extra: dict[str, Any], rival: str) -> str:
    ratio = extra["times_faster_than"].get(rival)
    if ratio is None:
        return ""
    target = extra["targets"].get(rival)
    if target is None:
        return f"{ratio:.1f}×"
    verdict = "" if ratio >= target else ", not reached"
    return f"{ratio:.1f}× (target {target:g}×{verdict})"


def kernel_rows(run: dict[str, Any]) -> list[str]:
    """One row a benchmark, fastest sample of each side."""
    rows = [
        "| CPU kernel, fp32 | time | against eager PyTorch | against `torch.compile` |",
        "|---|---|---|---|",
    ]
    for bench in run["benchmarks"]:
        extra = bench["extra_info"]
        ms = extra["seconds"]["fastard"]["min"] * 1e3
        cells = (f"{ms:.3g} ms", _against(extra, "eager"), _against(extra, "compile"))
        rows.append(f"| {_label(bench['name'])} | {' | '.join(cells)} |")
    return rows


def copy_rate(run: dict[str, Any]) -> str:
    """How near the Linf step is to the memory's limit."""
    shares = {
        bench["name"].partition("[")[2].rstrip("]"): bench["extra_info"]["share_of_copy_rate"]
        for bench in run["benchmarks"]
        if "share_of_copy_rate" in bench["extra_info"]
    }
    told = ", ".join(f"{share:.0%} at {shape.replace('x', '×')}" for shape, share in shares.items())
    return (
        f"The Linf step moves bytes at {told} of `copy_`'s rate (target 90 % on the larger). In "
        "place it can pass 100 %, because `copy_` also fetches the lines that it overwrites; "
        "eager's and `torch.compile`'s ratios are bounded by the same memory."
    )


def machine(run: dict[str, Any]) -> str:
    info = run["machine_info"]
    return (
        f"{info['cpu']}, {info['threads']} threads, {info['isa']}, torch {info['torch']}; the "
        f"fastest of interleaved rounds"
    )


ATTACK = (
    "Every attack follows a change of the weights; the floor is the network's convolutions and "
    "matrix products alone, each by the fastest algorithm at hand. Beside a missed ratio "
    "stands the floor's own: an attack that cost nothing else would reach no more, so that "
    "only faster convolutions could (`torch.compile` uses the same library's). On a shared "
    "machine the loops that move most memory vary most from run to run, the published one "
    "first. The bf16 targets are for CPUs with AMX."
)


def attack_lines(attack: dict[str, Any], bench: Run | None) -> list[str]:
    """The table of whole attacks, of `fastard bench` where its result is recorded."""
    if bench is not None:
        source = bench_table.source(bench, str(RESULTS))
        rows = attack_rows({"networks": bench_table.networks(bench)})
        picture = bench_table.picture(ROOT / RESULTS, str(RESULTS))
        return [*rows, "", *picture, f"{ATTACK} {source}"]
    info = attack["environment"]
    source = (
        f"Source: [`{RESULTS}/cpu_attack.json`]({RESULTS}/cpu_attack.json), `make "
        f"bench-attack` on {info['cpu']}, {info['threads']} threads, {info['isa']}, torch "
        f"{info['torch']}; the fastest of interleaved rounds."
    )
    return [*attack_rows(attack), "", f"{ATTACK} {source}"]


def demo_rows(run: dict[str, Any]) -> list[str]:
    """The demo's three networks."""
    rows = ["| digits, eps 0.15 | clean | FGSM | PGD-20 |", "|---|---|---|---|"]
    for network in run["networks"].values():
        title = f"{network['method']}, {network['architecture']}"
        cells = " | ".join(
            f"{network['accuracy'][key]:.1f} %" for key in ("clean", "fgsm", "pgd20")
        )
        rows.append(f"| {title} | {cells} |")
    return rows


def demo_attack(run: dict[str, Any]) -> str:
    """The whole attack beside the published loop."""
    attack = run["attack"]
    return (
        "The networks differ in size: nothing is claimed between TRADES and RSLAD. RSLAD's attack "
        f"on a batch of {attack['batch']} takes {attack['fastard_ms']:.1f} ms under `pgd_kl` and "
        f"{attack['published_ms']:.1f} ms under the published loop there: the network's own passes "
        "cost nearly all of it."
    )


def table() -> str:
    """The text between the README's two marks."""
    kernels = json.loads((ROOT / RESULTS / "cpu_kernels.json").read_text())
    demo = json.loads((ROOT / RESULTS / "demo.json").read_text())
    attack = json.loads((ROOT / RESULTS / "cpu_attack.json").read_text())
    costs = cost_rows(attack)
    lines = [
        *attack_lines(attack, bench_table.recorded(ROOT / RESULTS)), "",
        *costs, *([""] if costs else []),
        *kernel_rows(kernels), "",
        f"{copy_rate(kernels)} Source: [`{RESULTS}/cpu_kernels.json`]({RESULTS}/cpu_kernels.json), "
        f"`make bench` on {machine(kernels)}.", "",
        *demo_rows(demo), "",
        f"{demo_attack(demo)} Source: [`{RESULTS}/demo.json`]({RESULTS}/demo.json), `make demo`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with fresh tables."""
    gpu = gpu_table.paragraph(ROOT / RESULTS, str(RESULTS))
    readme = _between(readme, BEGIN, table(), END)
    training = training_table.paragraphs(ROOT / RESULTS, str(RESULTS))
    readme = _between(readme, TRAINING_BEGIN, training, TRAINING_END)
    evaluated = autoattack_table.paragraphs(ROOT / RESULTS, str(RESULTS))
    readme = _between(readme, AUTOATTACK_BEGIN, evaluated, AUTOATTACK_END)
    return _between(readme, GPU_BEGIN, gpu, GPU_END)


def _between(text: str, begin: str, inside: str, end: str) -> str:
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{inside}{end}{tail}"


def without_tables(readme: str) -> str:
    """What stands outside the marks."""
    marks = (
        (BEGIN, END), (TRAINING_BEGIN, TRAINING_END), (AUTOATTACK_BEGIN, AUTOATTACK_END),
        (GPU_BEGIN, GPU_END),
    )  # fmt: skip
    for begin, end in marks:
        readme = _between(readme, begin, "", end)
    return readme


def main() -> None:
    path = ROOT / "README.md"
    text = with_table(path.read_text())
    with atomic_path(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
