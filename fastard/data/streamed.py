"""Images that stay in their files and are decoded by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastard.data.augment import apply_views, decode_views, draw_views, encode_views
from fastard.data.batches import NO_VIEW, Batch, Pass, Passes
from fastard.data.decode import Decoder
from fastard.data.images import Images, to_float

RESIZED_CROP = "resized-crop-flip"


@dataclass(frozen=True, eq=False)
class Streamed(Passes):
    """Labelled image files behind the interface of `Images`.

    `files` are paths, `y` their labels int64 [N] on the device of the batches. `workers` processes
    of a torch DataLoader read ahead, into pinned memory for a CUDA device, and stay from pass to
    pass; 0 decodes in the calling process. `augment` is one of `Images`' kinds, applied on the
    device to the image as an evaluation sees it, or "resized-crop-flip": torchvision's
    `v2.RandomResizedCrop` and `v2.RandomHorizontalFlip`, in the workers. Its random numbers depend
    on the pass and the image alone, not on the worker, and its views on no code (-1): of it one
    number is drawn for the pass, after the order.

    Files are read at most a few batches ahead; a pass ends when another begins on the same images:
    the first one then raises RuntimeError, as it raises ValueError for a file that is damaged or
    missing.

    Raises:
        ValueError: there is not one label a file.
    """

    files: Sequence[str]
    y: Tensor
    decoder: Decoder
    augment: str = "none"
    workers: int = 4
    _loaders: dict[int, _Loader] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.files) != len(self.y):
            raise ValueError(f"there are {len(self.files)} files but {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.y.device

    def to(self, device: str | torch.device) -> Streamed:
        """Return the same images with their batches on `device`."""
        return replace(self, y=self.y.to(device))

    def float(self, index: Tensor | slice | None = None) -> Tensor:
        """Return the images, or those at `index`, as float32 in [0, 1].

        Raises:
            ValueError: a file is damaged or missing.
        """
        positions = torch.arange(len(self))
        picked = positions if index is None else positions[_on_cpu(index)]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            found = list(pool.map(lambda i: self.decoder(self.files[i]), picked.tolist()))
        size = self.decoder.size
        stacked = torch.stack(found) if found else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return to_float(stacked.to(self.device))

    def first(self, n: int) -> Streamed:
        """Return the first `n` images in dataset order, or all where there are fewer.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n} but must be >= 0")
        return replace(self, files=self.files[:n], y=self.y[:n])

    def select(self, index: Tensor, *, augment: str | None = None) -> Streamed:
        """Return the images at `index` int64 [M], in that order."""
        kind = self.augment if augment is None else augment
        files = [self.files[i] for i in index.tolist()]
        return replace(self, files=files, y=self.y[index.to(self.device)], augment=kind)

    def decoded(self) -> Images:
        """Return the images in memory, on the same device, as an evaluation sees them.

        Raises:
            ValueError: a file is damaged or missing.
        """
        size = self.decoder.size
        x = torch.empty(len(self), 3, size, size, dtype=torch.uint8, device=self.device)
        order = torch.arange(len(self)).split(256)
        for step, part in enumerate(self._loader(256).run(order, None)):
            x[step * 256 : step * 256 + len(part)] = part.to(self.device)
        self._loaders.clear()
        return Images(x, self.y, self.augment)

    def _count(self) -> int:
        return len(self)

    def _pass(self, asked: Pass) -> Iterator[Batch]:
        kind = asked.kind(self.augment)
        order = asked.order(len(self))
        seed = codes = None
        if kind == RESIZED_CROP:
            seed = int(torch.randint(2**32, (), generator=asked.generator))
        else:
            codes = encode_views(draw_views(len(self), kind, asked.generator))
        moved = kind not in ("none", RESIZED_CROP)
        return self._iterate(list(asked.split(order)), codes, seed, asked.batch_size, moved=moved)

    def _iterate(
        self,
        parts: list[Tensor],
        codes: Tensor | None,
        seed: int | None,
        batch_size: int,
        *,
        moved: bool,
    ) -> Iterator[Batch]:
        found = self._loader(batch_size).run(parts, seed)
        for index, x in zip(parts, found, strict=False):
            view = torch.full_like(index, NO_VIEW) if codes is None else codes[index]
            index, view = index.to(self.device), view.to(self.device)
            x = x.to(self.device, non_blocking=True)
            if moved:
                x = apply_views(x, decode_views(view))
            yield Batch(to_float(x), self.y[index], index, view)

    def _loader(self, batch_size: int) -> _Loader:
        if batch_size not in self._loaders:
            # One at a time: worker processes are dear.
            self._loaders.clear()
            pinned = self.device.type == "cuda"
            loader = _Loader(_Files(self.files, self.decoder), self.workers, pinned)
            self._loaders[batch_size] = loader
        return self._loaders[batch_size]


def _on_cpu(index: Tensor | slice) -> Tensor | slice:
    return index.cpu() if isinstance(index, Tensor) else index


class _Files(torch.utils.data.Dataset):
    """What a worker holds."""

    def __init__(self, files: Sequence[str], decoder: Decoder) -> None:
        self.files, self.decoder = files, decoder

    def __getitems__(self, keys: list[tuple[int, int | None]]) -> Tensor | str:
        try:
            return torch.stack([self.decoder(self.files[i], seed) for i, seed in keys])
        except ValueError as error:
            # Raised in a worker, it would arrive wrapped in the worker's traceback.
            return str(error)


class _Order:
    """The batches of the coming pass, as lists of keys for the workers."""

    # Apart from the loader: in a cycle with it, workers would outlive it until a timeout.
    def __init__(self) -> None:
        self.parts: Sequence[Tensor] = ()
        self.seed: int | None = None

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        for part in self.parts:
            yield [(i, None if self.seed is None else _mixed(self.seed, i)) for i in part.tolist()]


class _Loader:
    """A DataLoader whose order is set anew for every pass."""

    def __init__(self, files: _Files, workers: int, pinned: bool) -> None:
        self._passes, self._order = 0, _Order()
        self._loader: DataLoader[Any] = DataLoader(
            files,
            batch_sampler=self._order,  # type: ignore[arg-type]  # any iterable of lists of keys
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            worker_init_fn=_obey_the_parent_alone,
            # Its own generator: the loader would draw a seed from the global one.
            generator=torch.Generator(),
        )

    def run(self, parts: Sequence[Tensor], seed: int | None) -> Iterator[Tensor]:
        self._passes += 1
        this_pass = self._passes
        self._order.parts, self._order.seed = parts, seed
        for found in self._loader if parts else ():
            if isinstance(found, str):
                raise ValueError(found)
            yield found
            if self._passes != this_pass:
                raise RuntimeError("another pass over these images has begun, which ended this one")


def _obey_the_parent_alone(worker: int) -> None:
    """Leaves SIGTERM to the process that has started this one, which may have steps to finish.

    What a whole group of processes is sent reaches workers too; what the parent sends, ends them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_on_the_parent_s_signal, daemon=True).start()


def _end_on_the_parent_s_signal() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker was started by another process"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        continue
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _mixed(seed: int, index: int) -> int:
    # An odd factor: no two images of a pass get the same seed, and neighbours get distant ones.
    return (seed + index * 2654435761) % 2**32
