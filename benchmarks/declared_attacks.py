"""The cases of whole attacks, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import attack_contests, networks, rivals
from .attack_contests import COMPILE, PUBLISHED
from .case import CPU, FULL, GPU, QUICK, Bound, Case

LIBRARIES = tuple(rivals.RIVALS)
AGREES = "x' in ball and box, its loss as high as the published loop's"


def attack(
    model: str, suites: tuple[str, ...], loss: str = "kl", precision: str = "fp32",
    batch: int = 32, steps: int = 10, norm: str = "Linf", device: str = "cpu",
    against: tuple[str, ...] = (), rounds: int = 4, most: float = 60.0,
    bounds: tuple[Bound, ...] = (), **settings: Any,
) -> Case:  # fmt: skip
    names = {"kl": "KL to a teacher's logits", "ce": "the cross-entropy", "trades": "TRADES' KL",
             "pair": "KL through student and teacher", "iad": "the cross-entropy in train mode"
             }  # fmt: skip
    where = " gpu" if device == "cuda" else ""
    kind = f"{loss} {norm}" if norm != "Linf" else loss
    shape = list(networks.image_shape(model, batch))
    classes = settings.get("classes", 10)
    shapes = {"x": shape}
    if loss == "kl":
        shapes["teacher_logits"] = [batch, classes]
    return Case(
        f"pgd-{steps} {kind} {model} {precision} b{batch}{where}", "attack",
        f"PGD-{steps} on {names[loss]}, {norm}, {model}", attack_contests.measure, AGREES,
        suites, device, model, norm, loss, precision, batch, steps, shapes,
        {"x": "float32", "teacher_logits": "float32"} if loss == "kl" else {"x": "float32"},
        rivals=against, rounds=rounds, most=most, warm_up=2 if device == "cuda" else 0,
        bounds=bounds, settings=settings,
    )  # fmt: skip


def bounds(published: float | None, compiled: float, floor: float, needs: str | None = None
           ) -> tuple[Bound, ...]:  # fmt: skip
    """design's performance targets of one attack."""
    first = () if published is None else (Bound("least", published, PUBLISHED, needs=needs),)
    return (*first, Bound("least", compiled, COMPILE), Bound("most", floor, figure="over_floor"))


def on_attacks() -> Iterator[Case]:
    cpu, full = (CPU, FULL), (FULL,)
    last = {"modes": ("default",), "forms": ("channels_last",)}
    aimed = {
        ("resnet18", "fp32"): bounds(1.25, 1.1, 1.25),
        ("resnet18", "bf16"): bounds(5.0, 1.3, 1.25, "AMX"),
        ("mobilenetv2", "fp32"): bounds(3.0, 1.3, 1.6),
        ("mobilenetv2", "bf16"): bounds(6.0, 1.3, 1.6, "AMX"),
    }
    for (model, precision), goals in aimed.items():
        yield attack(model, cpu, precision=precision, against=(COMPILE,), bounds=goals)
    # Of the quick suite: no compilation, fewer images, no targets.
    for model, precision in aimed:
        suites = (QUICK, *cpu) if (model, precision) == ("mobilenetv2", "fp32") else (QUICK,)
        yield attack(model, suites, precision=precision, batch=8, rounds=3, most=10.0)
    for precision in ("fp32", "bf16"):
        yield attack("preactresnet18", full, precision=precision, against=(COMPILE,), **last)
        yield attack("wrn-28-10", full, precision=precision, batch=8, steps=4, rounds=3,
                     against=(COMPILE,), **last)  # fmt: skip
    yield attack("preactresnet18", (CPU,), batch=16, rounds=3)
    yield attack("wrn-28-10", (CPU,), batch=4, steps=2, rounds=3)
    yield attack("wrn-34-10", cpu, batch=2, steps=2, rounds=3)
    yield attack("resnet50", cpu, batch=2, steps=2, rounds=3)
    yield attack("vit_small_patch16_224", cpu, batch=2, steps=2, rounds=3)
    yield attack("mobilenetv2", (QUICK,), "ce", batch=8, rounds=3, against=LIBRARIES)
    yield attack("resnet18", cpu, "ce", batch=16, rounds=3, against=LIBRARIES)
    for norm in ("L2", "L1"):
        yield attack("mobilenetv2", cpu, "ce", batch=16, norm=norm, rounds=3, against=LIBRARIES)
    yield attack("mobilenetv2", cpu, "trades", batch=16, rounds=3)
    yield attack("mobilenetv2", cpu, "pair", batch=16, rounds=3, teacher="resnet18")
    yield attack("mobilenetv2", cpu, "iad", batch=16, rounds=3)
    for batch in (1, 128, 512):
        yield attack("mobilenetv2", cpu if batch == 1 else full, batch=batch, rounds=3)
    yield from gpu_attacks()


def gpu_attacks() -> Iterator[Case]:
    gpu, full = (GPU, FULL), (FULL,)
    h200 = {"resnet18": (4.0, 8.0), "mobilenetv2": (6.0, 10.0)}
    for model, (tf32, bf16) in h200.items():
        for precision, published in (("tf32", tf32), ("bf16", bf16)):
            yield attack(model, gpu, precision=precision, batch=128, device="cuda", rounds=10,
                         against=(COMPILE,),
                         bounds=bounds(published, 1.3, 1.25, "H200"))  # fmt: skip
        for precision in ("fp32", "fp16"):
            yield attack(model, gpu, precision=precision, batch=128, device="cuda", rounds=10)
    yield attack("resnet18", gpu, "ce", "tf32", 128, device="cuda", rounds=5, against=LIBRARIES)
    for norm in ("L2", "L1"):
        yield attack("resnet18", gpu, "ce", "tf32", 128, norm=norm, device="cuda", rounds=5)
    yield attack("resnet18", gpu, "pair", "tf32", 128, device="cuda", teacher="wrn-34-10")
    yield attack("resnet18", gpu, "trades", "tf32", 128, device="cuda")
    for batch in (1, 8, 32, 512):
        yield attack("resnet18", gpu, precision="bf16", batch=batch, device="cuda", rounds=10)
    for model in ("preactresnet18", "wrn-28-10", "wrn-34-10"):
        yield attack(model, gpu, precision="bf16", batch=128, device="cuda", rounds=5)
    for model in ("resnet50", "vit_small_patch16_224"):
        yield attack(model, gpu, precision="bf16", batch=64, device="cuda", rounds=5)
        yield attack(model, full, precision="tf32", batch=64, device="cuda", rounds=5)
