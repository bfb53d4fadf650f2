"""Runs over several processes: equal to one process, and whole when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scale_runs import DIVIDED, EXACT, SLOW
from small_runs import assert_same_weights, quick, without_times

from fastard import models, rows
from fastard.train import TrainConfig, Trainer, train
from fastard.training.config_file import to_dict
from fastard.training.folder import RunFolder
from fastard.training.ranks import Ranks

HERE = Path(__file__).parent
ALONE = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
ALONE |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
TWO = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(*command: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**ALONE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of one process and of two that together trained the same."""
    folder = tmp_path_factory.mktemp("scale")
    for number in range(2):
        torch.manual_seed(number)
        helper = models.build("small_cnn-4", 10, in_channels=1, image_size=8)
        models.save(
            folder / f"{number}.safetensors",
            helper,
            name="small_cnn-4",
            num_classes=10,
            in_channels=1,
            image_size=8,
        )
    for name in ("one", "two"):
        (folder / name).mkdir()
    script, port = HERE / "scale_runs.py", free_port()
    started = [start(script, folder / "one")]
    for rank in "01":
        started.append(start(script, folder / "two", RANK=rank, MASTER_PORT=port, **TWO))
    for process in started:
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
    return folder / "one", folder / "two"


@pytest.mark.parametrize("name", [*EXACT, *(f"{method}-fsdp" for method in DIVIDED)])
def test_two_processes_train_as_one(runs, name):
    one, two = runs
    method = name.removesuffix("-fsdp")
    losses = json.loads((one / f"{method}.0.json").read_text())
    assert len(losses) == 3
    for rank in (0, 1):
        found = json.loads((two / f"{name}.{rank}.json").read_text())
        assert found == pytest.approx(losses, rel=1e-9)
    weights = [
        load_file(one / method / "last.safetensors"),
        load_file(two / name / "last.safetensors"),
    ]
    own = [torch.load(one / f"{method}.0.pt")]
    own += [torch.load(two / f"{name}.{rank}.pt") for rank in (0, 1)]
    for a, b in (weights, own[:2], own[::2]):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-8, atol=1e-10)


def test_an_attack_on_a_divided_student_communicates_nothing(runs):
    seen = json.loads((runs[1] / "trades-fsdp.collectives.json").read_text())
    assert seen["attack"] == [[], []]
    assert seen["renew"] == [["all_gather_into_tensor"]] * 2
    assert all({"all_reduce", "all_gather_into_tensor"} <= set(step) for step in seen["step"])


def test_what_a_method_keeps_is_of_the_whole_batch(runs):
    own = {name: torch.load(runs[1] / f"{name}.1.pt") for name in EXACT}
    for name in ("free", "rice"):
        (kept,) = own[name].values()
        assert len(kept) == 16 and kept.abs().sum() > 0
    assert any(part.numel() for part in own["lbgat"].values())
    assert (own["b-mtard"]["temperatures"] > 1).any() and own["b-mtard"]["natural_weight"] != 0.5


def test_the_first_process_writes_what_one_would(runs):
    for method in EXACT:
        one, two = (sorted(p.name for p in (f / method).iterdir()) for f in runs)
        assert two == one
        configs = [(f / method / "config.yaml").read_text() for f in runs]
        assert configs[1].replace(str(runs[1]), str(runs[0])) == configs[0]
        # Nine images are judged in parts of five and four.
        (row,) = RunFolder(runs[1] / method).read_metrics()
        assert (9 * row["val_clean"]) == pytest.approx(round(9 * row["val_clean"]))


def test_one_process_ends_all(runs):
    said = [json.loads((runs[1] / f"stopped.{rank}.json").read_text()) for rank in (0, 1)]
    assert said == [["another process", 2], ["a wish", 2]]
    assert torch.load(runs[1] / "stopped" / "state.pt")["step"] == 2


def second_process(agent: int) -> int | None:
    """The process of rank 1 among torchrun's children."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    return None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process in /proc")
def test_a_dead_process_ends_all_and_torchrun_resumes(runs, tmp_path):
    out, config = tmp_path / "run", tmp_path / "run.yaml"
    values = {k: v for k, v in to_dict(quick(out, **SLOW)).items() if v is not None}
    config.write_text(json.dumps(values))  # JSON is YAML.
    agent = start(
        *("-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 1),
        *("--master-addr", "127.0.0.1", "--master-port", free_port(), "-m", "fastard"),
        *("train", "--config", config),
    )
    give_up = time.monotonic() + 60
    while not (out / "state.pt").exists():
        assert agent.poll() is None, agent.communicate()[1]
        assert time.monotonic() < give_up, "no state was saved"
        time.sleep(0.01)
    dead = second_process(agent.pid)
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    printed, complaints = agent.communicate(timeout=60)
    assert agent.returncode == 0, complaints
    assert "process 0 of 2 (from 0) has lost another one" in complaints
    assert f"--resume continues from {out / 'state.pt'}" in complaints
    assert printed.count("epochs 1 to 5") == 1 and printed.count("to 5, eps") == 2
    whole = runs[1] / "whole"
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_weights(whole, out, name)
    metrics = [without_times(RunFolder(f).read_metrics()) for f in (whole, out)]
    assert metrics[0] == metrics[1]


def test_noise_is_cut_from_one_draw():
    whole = rows.drawn(torch.rand, (6, 3), generator=torch.Generator().manual_seed(1))
    for rank in range(2):
        generator = torch.Generator().manual_seed(1)
        with rows.part_of_batch(rank, 2):
            part = rows.drawn(torch.rand, (3, 3), generator=generator)
        assert torch.equal(part, whole[3 * rank : 3 * rank + 3])
        after = torch.Generator().manual_seed(1)
        torch.rand(6, 3, generator=after)
        assert torch.equal(generator.get_state(), after.get_state())


def two_ranks() -> Ranks:
    ranks = Ranks()
    ranks.rank, ranks.world = 1, 2
    return ranks


def test_processes_and_settings_must_fit(tmp_path):
    two_ranks().require_divisible(quick(tmp_path))
    with pytest.raises(ValueError, match="batch_size .* multiple of the 2 processes, but is 7"):
        two_ranks().require_divisible(quick(tmp_path, batch_size=7))
    with pytest.raises(ValueError, match="parallel must be ddp in one process, but is fsdp"):
        Trainer(quick(tmp_path, parallel="fsdp"))
    for setting in ({"awp_gamma": 0.01}, {"compile": True}):
        with pytest.raises(
            ValueError, match=f"{next(iter(setting))} must be .* with parallel fsdp"
        ):
            Trainer(quick(tmp_path, parallel="fsdp", **setting))


def test_a_restart_resumes_its_own_run_alone(tmp_path, monkeypatch):
    config = quick(tmp_path / "run", epochs=1)

    def started(count, job):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"logs/{job}/attempt_{count}/0/error.json")

    started(1, "none_a")
    first = train(config)  # There was nothing to resume.
    started(2, "none_a")
    assert Trainer(config).epoch == 1
    with pytest.raises(ValueError, match="lr was"):
        Trainer(quick(tmp_path / "run", epochs=1, lr=0.5))
    before = (first.out / "state.pt").read_bytes()
    for count, job in ((0, "none_a"), (0, "none_b"), (1, "none_b")):
        started(count, job)
        with pytest.raises(FileExistsError, match="holds a run already"):
            Trainer(TrainConfig(**{**vars(config), "out": first.out}))
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    with pytest.raises(FileExistsError, match="holds a run already"):
        Trainer(config)
    assert (first.out / "state.pt").read_bytes() == before
