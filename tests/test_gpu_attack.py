"""What a GPU check's attacks and steps amount to, from a record alone."""

from __future__ import annotations

import sys

from benchmarks import gpu_attack_rivals, gpu_attack_summary, gpu_steps, gpu_summary
from benchmarks.gpu_steps import Context


def case(**seconds: float) -> dict:
    return {"failures": [], "median_seconds": {k.replace("_", " "): v for k, v in seconds.items()}}


def record() -> dict:
    attack = case(published=8.0, fastard_tf32=2.0, fastard_bf16=1.5, floor_tf32=1.8, floor_bf16=1.0)
    rivals = {
        "resnet18 bf16 default channels_last": case(compile=3.0, fastard_bf16=1.5),
        "resnet18 bf16 max-autotune channels_last": case(compile=1.5, fastard_bf16=1.25),
        "resnet18 tf32 default nchw": {"failures": [], "refused": "no compiler"},
    }
    return {"attack": {"cases": {"resnet18": attack}},
            "attack rivals": {"cases": rivals, "left_out": ["mobilenetv2 bf16 default nchw"]},
            "training step": {"cases": {"rslad resnet18": case(published=9.0, fastard_bf16=2.0)}},
            }  # fmt: skip


def verdicts(of: dict) -> dict:
    return {(r["case"], r["figure"]): (r["value"], r["reached"])
            for r in gpu_attack_summary.targets(of)}  # fmt: skip


def test_ratios_and_targets():
    found = verdicts(record())
    name, loop, rival, floor = "PGD-10 resnet18", *(
        "times faster than the published loop", "times faster than the fastest torch.compile",
        "of the floor's time")  # fmt: skip
    assert found[f"{name} tf32", loop] == (4.0, True)
    assert found[f"{name} bf16", loop] == (8.0 / 1.5, False)
    assert found[f"{name} bf16", rival] == (1.2, False)
    assert found[f"{name} tf32", rival] == (None, False)
    assert found[f"{name} tf32", floor][1] and not found[f"{name} bf16", floor][1]
    assert found["RSLAD step bf16", "times faster than the published step"] == (4.5, True)


def test_what_was_not_measured_is_not_reached():
    found = verdicts({})
    assert len(found) == 13 and set(found.values()) == {(None, False)}
    said = gpu_summary.lines({})
    assert ("PGD-10 mobilenetv2 bf16: not measured of the floor's time, target at most 1.25: NOT "
            "reached") in said  # fmt: skip


def test_the_summary_shows_every_rival():
    said = gpu_summary.lines(record())
    assert "attack rivals, resnet18 tf32 default nchw: no compiler" in said
    assert "attack rivals, mobilenetv2 bf16 default nchw: left out, no time was left" in said
    assert any(line.startswith("attack, resnet18: published 8000.0 ms, fastard") for line in said)


def test_rivals_come_in_the_order_of_their_promise():
    order = list(gpu_attack_rivals.variants(("a", "b"), ("tf32", "bf16")))
    assert len(order) == 16
    assert order[0] == ("channels_last", "default", "a", "tf32")
    assert {(form, mode) for form, mode, *_ in order[:4]} == {("channels_last", "default")}
    assert {form for form, *_ in order[:8]} == {"channels_last"}


def test_rivals_begin_none_late(tmp_path):
    command = gpu_steps.rivals(Context(tmp_path / "r.json", tmp_path, 100.0))
    assert command[0] == sys.executable and command[-2:] == ["--seconds", "60"]
    late = ["--record", str(tmp_path / "r.json"), "--seconds", "-1"]
    assert gpu_attack_rivals.main(late) == 0
    left = gpu_steps.load(tmp_path / "r.json")["attack rivals"]["left_out"]
    assert len(left) == 16 and left[0] == "resnet18 tf32 default channels_last"
