"""Folded copies of the model's weights in one arena, renewed from the live parameters."""

from __future__ import annotations

import math
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastard import ops
from fastard.engine.layers import Norm, Param

Held = list[Tensor | None]
CODES = {dtype: code for code, dtype in enumerate(ops.layers.DTYPES)}
ALIGNMENT = 64


class StaleProgram(Exception):
    """The model's tensors no longer have the shapes, dtypes or devices the program was made for."""


def live(model: nn.Module, param: Param) -> Tensor:
    """The tensor that the model holds now."""
    return getattr(model.get_submodule(param.path), param.attribute)


def _held(module: weakref.ref[nn.Module], attribute: str) -> Tensor:
    owner = module()
    if owner is None:
        raise StaleProgram("a module of the model is gone")
    return getattr(owner, attribute)


def _where(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    """Address and strides: another layout may come to lie where the first one lay."""
    return (0, ()) if t is None else (t.data_ptr(), t.stride())


@dataclass
class Folded:
    """One layer's copies, views into the arena: the weight [O, I, kh, kw] (or [O, I]) with the
    normalisations in it, bias and scale [O]."""

    out_channels: int
    weight_of: Param | None = None
    bias_of: Param | None = None
    before: Norm | None = None
    after: Norm | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: Tensor | None = None


@dataclass
class Table:
    """What `fold_bn_` reads, and the copies of tensors with gaps that it points to."""

    rows: Tensor
    copies: Held | None


class Weights:
    """All folded copies of a program."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.folded: list[Folded] = []
        self.arena: Tensor | None = None
        self._where: list[tuple[int, tuple[int, ...]]] = []
        self._expected: list[tuple[tuple[int, ...], torch.dtype]] = []
        self._table: Table | None = None
        # Where each tensor of the table is found: a module and the attribute's name.
        self._places: list[tuple[weakref.ref[nn.Module], str] | None] = []
        self._strided = False
        self._offsets: list[tuple[int, int, int]] = []

    def convolution(
        self, weight: Param, bias: Param | None, before: Norm | None, after: Norm | None,
        shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool,
    ) -> Folded:  # fmt: skip
        """Registers a weight to be folded; call `allocate` when all are registered."""
        entry = Folded(
            shape[0], weight, bias, before, after, shape, dtype, channels_last)  # fmt: skip
        self.folded.append(entry)
        return entry

    def affine(self, norm: Norm, channels: int) -> Folded:
        """Registers a normalisation that stays one: its scale and shift per channel, in fp32."""
        entry = Folded(channels, after=norm)
        self.folded.append(entry)
        return entry

    def allocate(self) -> None:
        size = 0

        def place(elements: int, dtype: torch.dtype) -> int:
            nonlocal size
            at, size = size, size + -(-elements * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            return at

        for f in self.folded:
            count = math.prod(f.shape)
            self._offsets.append(
                (
                    place(count, f.dtype) if f.shape else -1,
                    place(f.out_channels, torch.float32),
                    -1 if f.shape else place(f.out_channels, torch.float32),
                )
            )
        self.arena = torch.zeros(size, dtype=torch.uint8, device=self.device)
        for f, (w, b, s) in zip(self.folded, self._offsets, strict=True):
            f.bias = self._view(b, (f.out_channels,), torch.float32, False)
            if s >= 0:
                f.scale = self._view(s, (f.out_channels,), torch.float32, False)
            if w >= 0:
                f.weight = self._view(w, f.shape, f.dtype, f.channels_last)

    def _view(
        self, at: int, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        assert self.arena is not None
        flat = self.arena[at : at + math.prod(shape) * dtype.itemsize].view(dtype)
        if channels_last and len(shape) == 4:
            o, i, h, w = shape
            return flat.view(o, h, w, i).permute(0, 3, 1, 2)
        return flat.view(shape)

    def _params(self, f: Folded) -> list[Param | None]:
        found: list[Param | None] = [f.weight_of, f.bias_of]
        for norm in (f.after, f.before):
            found += (
                [None] * 4 if norm is None else [norm.gain, norm.shift, norm.mean, norm.var]
            )  # fmt: skip
        return found

    def refresh(self, model: nn.Module) -> None:
        """Renews every copy from the model's tensors as they are now: `look`, then `renew`."""
        self.look(model)
        self.renew()

    def look(self, model: nn.Module) -> None:
        """Finds the model's tensors, without a look at their values.

        The modules must be those of the first look.

        Raises:
            StaleProgram: a tensor has another shape, dtype or device than before.
        """
        if not self._places:
            self._places = [
                None if p is None else (weakref.ref(model.get_submodule(p.path)), p.attribute)
                for f in self.folded
                for p in self._params(f)
            ]
        tensors = [None if place is None else _held(*place) for place in self._places]
        where = [_where(t) for t in tensors]
        if where != self._where or self._table is None or self._strided:
            tensors = self._checked(tensors)
            where = [_where(t) for t in tensors]
            table, copies = self._build_table(tensors, [at for at, _ in where]), None
            if self._strided:
                copies = tensors
            if self._table is None or copies is not None:
                # One object with what it points to: another thread may look before this one renews.
                self._table = Table(table.to(self.device), copies)
            else:
                # Where it is: a recorded launch reads the table that it was recorded with.
                self._table.rows.copy_(table)
                self._table.copies = None
            self._where = where

    def renew(self) -> None:
        """Writes every copy from the tensors of the last look, in one launch."""
        table = self._table
        assert self.arena is not None and table is not None
        tensors = table.copies
        if tensors is None:
            tensors = [None if place is None else _held(*place) for place in self._places]
        ops.fold_bn_(self.arena, table.rows, [t for t in tensors if t is not None])

    def unrecordable(self) -> str | None:
        """Why the launch may not be recorded, if so."""
        if self._strided:
            return "a bias or statistic with gaps is copied at every attack"
        if not ops.offered("fold_bn_", self.device.type):
            return f"there is no compiled fold_bn_ on {self.device.type}"
        return None

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """What a launch reads and writes where it lies, beside the model's own tensors."""
        assert self.arena is not None and self._table is not None
        return self.arena, self._table.rows

    def _checked(self, tensors: list[Tensor | None]) -> list[Tensor | None]:
        """The tensors, vectors made dense, if they are what the arena was laid out for."""
        if any(t is not None and t.device != self.device for t in tensors):
            raise StaleProgram("the model has moved to another device")
        found = [((), torch.float32) if t is None else (tuple(t.shape), t.dtype) for t in tensors]
        if self._expected and found != self._expected:
            raise StaleProgram("a parameter has changed its shape or dtype")
        self._expected = found
        # A strided vector is copied at every refresh; the copy must outlive the launch.
        self._strided = any(
            t is not None and t.dim() == 1 and not t.is_contiguous() for t in tensors
        )
        return [t.contiguous() if t is not None and t.dim() == 1 else t for t in tensors]

    def _build_table(self, tensors: list[Tensor | None], pointers: list[int]) -> Tensor:
        rows = []
        for k, (f, offsets) in enumerate(zip(self.folded, self._offsets, strict=True)):
            own, at = tensors[10 * k : 10 * k + 10], pointers[10 * k : 10 * k + 10]
            weight = own[0]
            shape, strides, kind = [f.out_channels, 0, 0, 0], [0, 0, 0, 0], 0
            if weight is not None:
                shape, strides = padded(weight.shape), padded(weight.stride())
                kind = CODES[weight.dtype]
                for d in (3, 2, 1, 0):
                    if shape[d] == 1:  # any stride will do: the dense one is the fast one
                        strides[d] = 1 if d == 3 else strides[d + 1] * shape[d + 1]
            types = [kind, *(0 if t is None else CODES[t.dtype] for t in own[1:])]
            epsilons = [bits(0.0 if n is None else n.eps) for n in (f.after, f.before)]
            rows.append(
                [
                    *at, *types, *shape, *strides, *epsilons, *offsets, CODES[f.dtype],
                    int(f.channels_last),
                ]
            )  # fmt: skip
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)


def padded(values: Sequence[int]) -> list[int]:
    """Four numbers, ones behind."""
    return [*values, *[1] * (4 - len(values))]


def bits(value: float) -> int:
    """A double's bits as an int64."""
    return struct.unpack("<q", struct.pack("<d", value))[0]
