"""``fastard doctor``: what is installed, what runs where and why, and whether every op is right."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import fastard
from fastard import (
    native,
    ops,
    reference,
    reference_apgd,
    reference_fab,
    reference_noise,
    reference_square,
)
from fastard.engine.precision import cpu_bf16
from fastard.kinds import LossKind, Norm

OPS = ("pgd_step_", "random_start_", "logit_loss", "distill_kl")
# fp32 against fp64: a dozen roundings, relative to the largest value where that is above 1.
TOLERANCE = 1e-5
OTHERS = ("triton", "reference")  # backends that do without the compiled module
NEEDED = ("torch", "torchvision", "numpy")
Check = Callable[[str], float]


def main(console: Console | None = None) -> int:
    """Prints versions, backends, machine and checks; returns 0, or 1 where anything is wrong.

    Wrong: a package missing, a torch that is too old, a compiled module that does not load unless
    FASTARD_BACKEND=triton or reference asks for none, a CUDA device that its kernels cannot use
    though nobody built them without CUDA, machine code missing from the binary, an op that fails or
    disagrees with `fastard.reference` in fp64. A machine without a CUDA device is not wrong.

    Raises:
        ValueError: FASTARD_BACKEND names no backend.
    """
    console = console or Console()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with warnings.catch_warnings():
        # The table of backends says what these warnings say.
        warnings.filterwarnings("ignore", "fastard.ops.* runs in ", RuntimeWarning)
        faults = [
            *_versions(console),
            *_machine(console),
            *_backends(console, devices),
            *_checks(console, devices),
        ]
    if not faults:
        console.print("Everything works.", style="green")
        return 0
    console.print(Text(f"Wrong: {len(faults)}", style="bold red"))
    for fault in faults:
        console.print(Text(f"  {fault}", style="red"), soft_wrap=True)
    return 1


def _show(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
    for row in rows:
        # Text, since a reason may hold the brackets that markup is written in.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _versions(console: Console) -> list[str]:
    rows = [("fastard", fastard.__version__), ("python", platform.python_version())]
    faults = []
    for name in ("torch", "torchvision", "triton", "numpy"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
            if name in NEEDED:
                faults.append(f"{name} is not installed.")
        rows.append((name, torch.__version__ if name == "torch" else version))
    _show(console, "Versions", ("", ""), rows)
    return faults


def _machine(console: Console) -> list[str]:
    module = native.module
    rows, faults = [("compiled module", native.reason)], []
    if module is None:
        too_old = native.torch_version() < native.OLDEST_TORCH
        if too_old or os.environ.get("FASTARD_BACKEND") not in OTHERS:
            faults.append(f"{native.reason}.")
    else:
        archs, faults = _architectures(module.cuda_archs, Path(module.__file__ or ""))
        rows += [
            ("compiler", module.compiler),
            ("CPU kernels", f"{module.cpu_isa()} of {', '.join(_isas())}"),
            ("CUDA kernels", archs if module.has_cuda else f"none: {module.cuda_reason}"),
        ]
    faster, reason = cpu_bf16()
    rows += [
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"),
        ("bf16 on this CPU", f"{'used where asked for' if faster else 'runs as fp32'}: {reason}"),
        ("CUDA device", _cuda_device()),
    ]
    _show(console, "Machine", ("", ""), rows)
    return faults


def _isas() -> list[str]:
    """The instruction sets this CPU offers the kernels."""
    found = ["base"]
    if torch.cpu._is_avx2_supported():
        found.append("avx2")
    if torch.cpu._is_avx512_supported():
        found.append("avx512")
    return found


def _cuda_device() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def _architectures(archs: str, binary: Path) -> tuple[str, list[str]]:
    """The architectures the build was asked for, and those whose machine code the binary lacks."""
    tool = _cuobjdump()
    if not archs or tool is None:
        return archs, []
    listed = subprocess.run([tool, "--list-elf", binary], capture_output=True, text=True)
    if listed.returncode:
        return archs, [f"cuobjdump cannot read {binary.name}: {listed.stderr.strip()}."]
    present = re.findall(r"sm_(\d+[a-z]?)\b", listed.stdout)
    # "90-virtual" is PTX alone; "native" and "all" promise nothing in particular.
    wanted = re.findall(r"(?<!\w)(\d+[a-z]?)(?=-real|[;, ]|$)", archs)
    faults = [
        f"{binary.name} holds no machine code for sm_{arch}."
        for arch in wanted if arch not in present
    ]  # fmt: skip
    return f"{archs} (machine code for {', '.join(dict.fromkeys(present))})", faults


def _cuobjdump() -> Path | None:
    """The one in the triton wheel."""
    try:
        files = importlib.metadata.files("triton") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(f.locate())) for f in files if f.name == "cuobjdump")
    return next((path for path in found if path.exists()), None)


def _backends(console: Console, devices: Sequence[str]) -> list[str]:
    rows, faults = [], []
    for device in devices:
        for op in OPS:
            try:
                name, reason = ops.backend(op, device)
            except RuntimeError as error:  # FASTARD_BACKEND names one that is not there
                name, reason = "none", str(error)
                faults.append(f"{op} on {device}: {error}")
            rows.append((op, device, name, reason))
    usable, reason = native.cuda()
    if "cuda" not in devices:
        rows.append(("every op", "cuda", "unused", reason))
    elif not usable and not _asked_for_no_cuda():
        faults.append(f"The compiled CUDA kernels cannot be used: {reason}.")
    _show(console, "Backends", ("op", "device", "backend", "reason"), rows)
    return faults


def _asked_for_no_cuda() -> bool:
    built_off = native.module is not None and not native.module.has_cuda
    if built_off and native.module.cuda_reason.lower() == "fastard_cuda=off":  # type: ignore[union-attr]
        return True
    return bool(torch.version.hip) or os.environ.get("FASTARD_BACKEND") in OTHERS


def _checks(console: Console, devices: Sequence[str]) -> list[str]:
    rows, faults = [], []
    for device in devices:
        for name, check in _every_check():
            try:
                error = check(device)
            except Exception as failure:  # whatever an op dies of is what this command is to say
                rows.append((name, device, type(failure).__name__, "WRONG"))
                faults.append(f"{name} on {device} failed: {failure}")
                continue
            right = error <= TOLERANCE
            rows.append((name, device, f"{error:.1e}", "OK" if right else "WRONG"))
            if not right:
                faults.append(f"{name} on {device} is off by {error:.1e}, allowed {TOLERANCE:g}.")
    title = "One call of every op against fastard.reference in fp64"
    _show(console, title, ("op", "device", "error", ""), rows)
    return faults


def _every_check() -> Iterator[tuple[str, Check]]:
    for norm in Norm:
        yield f"pgd_step_ {norm.name}", partial(_step_error, norm.name)
    for norm in Norm:
        yield f"random_start_ uniform {norm.name}", partial(_start_error, "uniform", norm.name)
    yield "random_start_ gaussian", partial(_start_error, "gaussian", "Linf")
    for kind in LossKind:
        yield f"logit_loss {kind.name}", partial(_loss_error, kind, False)
        yield f"logit_loss {kind.name} targeted", partial(_loss_error, kind, True)
    yield "distill_kl", _distill_error
    for norm in Norm:
        yield f"square_step_ {norm.name}", partial(_square_error, norm)
        yield f"fab_step_ {norm.name}", partial(_fab_error, norm.name)
        yield f"apgd_step_ {norm.name}", partial(_apgd_error, norm.name)
    for normal in (False, True):
        yield f"counter_noise {'normal' if normal else 'uniform'}", partial(_noise_error, normal)
    yield "pgd_kl attack", _attack_error


def _drawn(*shape: int, uniform: bool = False) -> Tensor:
    """The same numbers at every call, and none from the global generator."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand if uniform else torch.randn)(shape, generator=generator)


def _error(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, relative where values exceed 1; NaN where an output holds one."""
    worst = [
        (out.detach().cpu().double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        for out, wanted in zip(outputs, exact, strict=True)
    ]
    return torch.stack(worst).max().item()


def _step_error(norm: str, device: str) -> float:
    x, grad = _drawn(4, 3, 9, 7, uniform=True), _drawn(4, 3, 9, 7)
    x_adv = (x + 0.02 * _drawn(4, 3, 7, 9).view_as(x)).clamp(0, 1)
    eps, alpha = torch.tensor([0.03, 0.3, 1.0, 3.0]), 0.02
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    exact = reference.pgd_step(
        x_adv.double(), grad.double(), x.double(), eps.double(), alpha, norm)  # fmt: skip
    x_adv, grad, x, eps, mean_there, std_there = (
        t.to(device) for t in (x_adv, grad, x, eps, mean, std))  # fmt: skip
    feed = torch.empty_like(x_adv)
    ops.pgd_step_(x_adv, grad, x, eps, alpha, norm, feed=feed, mean=mean_there, std=std_there)
    exact_feed = reference.feed(exact, torch.float64, mean.double(), std.double())
    return _error((x_adv, feed), (exact, exact_feed))


def _start_error(kind: str, norm: str, device: str) -> float:
    x, radius = _drawn(4, 3, 9, 7, uniform=True), _drawn(4, uniform=True)
    noise = _drawn(3, 4, 9, 7, uniform=kind == "uniform" and norm == "Linf").view_as(x)
    exact = reference.random_start(
        x.double(), noise.double(), 0.5, kind, norm, radius.double())  # fmt: skip
    x, noise, radius = (t.to(device) for t in (x, noise, radius))
    x_adv = torch.empty_like(x)
    ops.random_start_(x_adv, x, noise, 0.5, kind, norm, radius=radius)
    return _error((x_adv,), (exact,))


def _fab_error(norm: str, device: str) -> float:
    at, x = _drawn(2, 4, 3, 9, 7, uniform=True)
    grad = 0.01 * _drawn(4, 3, 9, 7)
    gap = -0.02 * grad.abs().flatten(1).sum(1)
    size, tests = torch.full((4,), 1e10), torch.ones(4, dtype=torch.int32)
    trying, fooled = torch.tensor([[True, True, False, False], [True, False, True, False]])
    given = [at, x, size, tests, trying, x, grad, gap, fooled]
    there = [t.clone().to(device) for t in given]
    # Calls of lists, which a type checker cannot count.
    plain: Callable[..., Sequence[Tensor]] = reference_fab.iteration
    step: Callable[..., Tensor] = ops.fab_step_
    wide = (t.double() if t.is_floating_point() else t for t in given)
    exact = plain(*wide, norm, 9, -1.0, 0.1, 1.05, 0.9, 0.0, 1.0)
    step(*there, norm, 9)
    return _error(there[:3], exact[:3])


def _loss_error(kind: LossKind, targeted: bool, device: str) -> float:
    logits, teacher = 3 * _drawn(6, 17), 3 * _drawn(17, 6).T
    labels, goals = torch.arange(6), torch.arange(6) + 5
    soft = kind in (LossKind.kl, LossKind.mixture)
    aimed = kind == LossKind.dlr and targeted
    exact = reference.logit_loss(
        logits.double(), teacher.double() if soft else None, kind.name,
        labels, goals if aimed else None, targeted)  # fmt: skip
    target = teacher if soft else (goals if aimed else labels)
    named = labels.to(device) if aimed or kind == LossKind.mixture else None
    got = ops.logit_loss(
        logits.to(device), target.to(device), kind, labels=named, targeted=targeted)  # fmt: skip
    return _error(got, exact[:2])  # type: ignore[arg-type]


def _distill_error(device: str) -> float:
    student, teacher = 3 * _drawn(6, 17), 3 * _drawn(17, 6).T
    rows, *gradients = reference.distill_kl(student.double(), teacher.double(), 2.0, 1e-5)
    student, teacher = (t.to(device).requires_grad_() for t in (student, teacher))
    with torch.enable_grad():
        loss = ops.distill_kl(student, teacher, 2.0, "sum", log_floor=1e-5)
        got = torch.autograd.grad(loss, (student, teacher))
    return _error((loss, *got), (rows.sum(), *gradients))


def _square_error(norm: Norm, device: str) -> float:
    x, labels, eps, side = _drawn(4, 3, 9, 7, uniform=True), torch.arange(4), torch.ones(1), 5
    draws = _drawn(4, 1, reference_square.PLACES[norm.name] + 3, uniform=True)
    heap = None
    if norm != Norm.Linf:
        heap = reference_square.pyramid(side, norm.name, torch.device("cpu"))
    best = (x + 0.02 * _drawn(4, 3, 7, 9).view_as(x)).clamp(0, 1)
    rest = (labels, torch.ones(4), torch.zeros(4), torch.ones(4, dtype=torch.int64))
    wide = [t.double() for t in (best, best, x, eps)]
    exact = reference_square.step(
        wide[0], wide[1], wide[2], wide[3], draws, *rest, norm.name, False, False, -1, 0, 0, side,
        0.0, 1.0, None, heap, None, None)  # fmt: skip
    own, trial, x, eps, draws = (t.clone().to(device) for t in (best, best, x, eps, draws))
    labels, margin, loss, queries = (t.to(device) for t in rest)
    ops.square_step_(
        own, trial, x, eps, draws, labels, margin, loss, queries, norm, proposed=0,
        proposed_side=side, pyramid=None if heap is None else heap.to(device))  # fmt: skip
    return _error((own, trial), exact[:2])


def _apgd_error(norm: str, device: str) -> float:
    """A step and its bookkeeping."""
    x, grad = _drawn(4, 3, 9, 7, uniform=True), _drawn(4, 3, 9, 7)
    x_adv, x_old = ((x + 0.02 * _drawn(4, 3, *s).view_as(x)).clamp(0, 1) for s in ((7, 9), (9, 7)))
    eps, share = torch.tensor([0.03, 0.3, 1.0, 3.0]), torch.tensor([0.1, 0.3, 0.6, 1.0])
    exact = reference_apgd.apgd_step(
        x_adv, x_old, grad, x, eps, 2 * eps, norm, 0.75, 0.0, 1.0, share)  # fmt: skip
    state = (x, torch.zeros_like(x), x, eps > 0, 0.1 * torch.ones(9, 4))
    told = (grad, x, eps, eps > 0.1)
    wanted = reference_apgd.apgd_keep(exact, *told, *state, norm == "L1", 3, 0.75)
    v, old, g, c, radii, size, part = (
        t.clone().to(device) for t in (x_adv, x_old, grad, x, eps, 2 * eps, share))  # fmt: skip
    ops.apgd_step_(v, old, g, c, radii, size, norm, share=part if norm == "L1" else None)
    kept = [t.clone().to(device) for t in state]
    # From the same point on, so that no comparison turns by rounding.
    ops.apgd_keep_(
        exact.to(device), *(t.to(device) for t in told), *kept, sparse=norm == "L1", window=3
    )
    return _error((v, *kept), [t.double() for t in (exact, *wanted)])


def _noise_error(normal: bool, device: str) -> float:
    ids, key = torch.tensor([0, 7, 2**32 - 1]), (2**63 + 1, 3, 5)
    exact = reference_noise.counter_noise(ids, 1030, *key, normal)
    return _error((ops.counter_noise(ids.to(device), 1030, *key, normal),), (exact.double(),))


def _attack_error(device: str) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(140, 10))
    x, teacher = _drawn(4, 3, 9, 7, uniform=True), 3 * _drawn(4, 10)
    exact, oracle = x.double(), copy.deepcopy(model).double()
    for _ in range(3):
        leaf = exact.clone().requires_grad_()
        with torch.enable_grad():
            logits = oracle(leaf)
            _, seed, _ = reference.logit_loss(logits.detach(), teacher.double())
            grad = torch.autograd.grad(logits, leaf, seed)[0]
        exact = reference.pgd_step(exact, grad, x.double(), 8 / 255, 4 / 255)
    x_adv = fastard.pgd_kl(
        model.to(device), x.to(device), teacher.to(device), 8 / 255, 4 / 255, 3,
        random_start=False, precision="fp32")  # fmt: skip
    return _error((x_adv,), (exact,))
