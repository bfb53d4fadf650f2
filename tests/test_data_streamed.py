"""`data.Streamed`: worker processes, order, augmentation by pass and image, errors of a worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fastard import data
from fastard.data.decode import Decoder


@pytest.fixture
def streamed(tmp_path: Path) -> data.Streamed:
    """Eleven pictures of 20 x 24 and their positions as labels, seen at 16 pixels."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(11):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(files[-1])
    return data.Streamed(files, torch.arange(11), Decoder(16, 18), "resized-crop-flip", 0)


def run(images: data.Streamed, seed: int = 0, size: int = 4, **options) -> list[data.Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(images.batches(size, shuffle=True, generator=generator, **options))


def assert_same(ours: list[data.Batch], expected: list[data.Batch]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_worker_processes_give_the_same_bits_and_stay(streamed: data.Streamed) -> None:
    expected = [run(streamed, seed) for seed in (0, 1)]
    many = data.Streamed(streamed.files, streamed.y, streamed.decoder, streamed.augment, 2)
    before = torch.get_rng_state()
    assert_same(run(many), expected[0])
    (loader,) = many._loaders.values()
    workers = loader._loader._iterator._workers
    assert_same(run(many, 1), expected[1])
    assert_same(run(many, 1, start=2), expected[1][2:])
    assert loader._loader._iterator._workers is workers
    assert all(worker.is_alive() for worker in workers)
    assert torch.equal(torch.get_rng_state(), before)
    # An error of a worker arrives as a sentence, and the next pass works again.
    broken = Path(streamed.files[5])
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    with pytest.raises(ValueError, match="5.png is damaged") as error:
        run(many)
    assert "\n" not in str(error.value)
    # The traceback would keep the workers alive until a timeout.
    del error
    broken.write_bytes(whole)
    assert_same(run(many), expected[0])


def test_augmentation_belongs_to_the_pass_and_the_image(streamed: data.Streamed) -> None:
    def pictures(batches: list[data.Batch]) -> dict[int, torch.Tensor]:
        return {int(i): x for b in batches for i, x in zip(b.index, b.x, strict=True)}

    one, other_size, other = (pictures(run(streamed, s, n)) for s, n in ((0, 4), (0, 3), (1, 4)))
    assert sorted(one) == list(range(11))
    assert all(torch.equal(one[i], other_size[i]) for i in one)
    assert not any(torch.equal(one[i], other[i]) for i in one)
    whole = streamed.float()
    assert not any(torch.equal(one[i], whole[i]) for i in one)
    assert {int(v) for b in run(streamed) for v in b.view} == {-1}


def test_a_seed_is_torchvisions_seed(streamed: data.Streamed) -> None:
    move = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()])
    torch.manual_seed(77)
    expected = v2.functional.pil_to_tensor(move(Image.open(streamed.files[3])))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(streamed.decoder(streamed.files[3], 77), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop-flip"])
def test_a_pass_can_start_in_its_middle(streamed: data.Streamed, augment: str) -> None:
    whole = run(streamed, augment=augment)
    for start in range(4):
        assert_same(run(streamed, augment=augment, start=start), whole[start:])
    assert len(run(streamed, augment=augment, drop_last=True)) == 2


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop-flip"])
def test_a_part_reads_its_own_files_alone(
    streamed: data.Streamed, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(streamed, augment=augment)
    read, decode = [], Decoder.__call__

    def counted(self: Decoder, file: str, seed: int | None = None) -> torch.Tensor:
        read.append(file)
        return decode(self, file, seed)

    monkeypatch.setattr(Decoder, "__call__", counted)
    for rank in range(2):
        # Of the last batch, three images, the third is left out.
        rows = [slice(2 * rank, 2 * rank + 2), slice(rank, rank + 1)]
        expected = [
            data.Batch(*(t[mine] for t in b)) for b, mine in zip(whole[1:], rows, strict=True)
        ]
        read.clear()
        assert_same(run(streamed, augment=augment, part=(rank, 2), start=1), expected)
        positions = torch.cat([b.index for b in expected]).tolist()
        assert read == [streamed.files[i] for i in positions]
    # A batch of fewer images than parts is everyone's.
    assert len(run(streamed, size=11, part=(3, 12))[0].x) == 11


def test_the_kinds_of_images_in_memory_agree_with_them(streamed: data.Streamed) -> None:
    kept = streamed.decoded()
    assert torch.equal(kept.float(), streamed.float())
    for kind in ("none", "crop", "crop-flip"):
        assert_same(run(streamed, augment=kind), run(kept, augment=kind))
        assert_same(run(streamed, augment=kind, part=(1, 2)), run(kept, augment=kind, part=(1, 2)))


def test_parts(streamed: data.Streamed) -> None:
    assert streamed.first(3).y.tolist() == [0, 1, 2]
    assert len(streamed.first(99)) == 11
    chosen = streamed.select(torch.tensor([7, 2]), augment="none")
    assert torch.equal(chosen.float(), streamed.float(torch.tensor([7, 2])))
    assert torch.equal(streamed.float(slice(2, 4)), streamed.float()[2:4])
    assert (chosen.augment, chosen.y.tolist()) == ("none", [7, 2])
    assert list(streamed.first(0).batches(4)) == []
    assert streamed.first(0).float().shape == (0, 3, 16, 16)
    with pytest.raises(ValueError, match="n is -1"):
        streamed.first(-1)
    with pytest.raises(ValueError, match="there are 2 files but 11 labels"):
        data.Streamed(streamed.files[:2], streamed.y, streamed.decoder)


def test_a_second_pass_ends_the_first(streamed: data.Streamed) -> None:
    first = streamed.batches(4)
    next(first)
    assert len(list(streamed.batches(4))) == 3
    with pytest.raises(RuntimeError, match="another pass over these images has begun"):
        next(first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_reach_a_gpu_through_pinned_memory(streamed: data.Streamed) -> None:
    on_gpu = data.Streamed(streamed.files, streamed.y, streamed.decoder, streamed.augment, 2)
    on_gpu = on_gpu.to("cuda")
    before = torch.cuda.get_rng_state()
    for ours, expected in zip(run(on_gpu), run(streamed), strict=True):
        assert {t.device.type for t in ours} == {"cuda"}
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b)
    (loader,) = on_gpu._loaders.values()
    assert loader._loader.pin_memory
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_workers_end_at_a_signal_of_their_parent_alone(streamed: data.Streamed) -> None:
    many = data.Streamed(streamed.files, streamed.y, streamed.decoder, streamed.augment, 2)
    expected = run(many)
    (loader,) = many._loaders.values()
    workers = loader._loader._iterator._workers
    # Another process signals, as it does when a whole group of them is asked to end.
    kill = "import os, signal, sys; [os.kill(int(n), signal.SIGTERM) for n in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", kill, *(str(w.pid) for w in workers)], check=True)
    assert_same(run(many), expected)
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0
