"""What of a model a trace takes for constant: its modules, hooks and plain attributes."""

from __future__ import annotations

import enum
import operator
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks",
)  # fmt: skip
_PLAIN = (int, float, bool, str, bytes, complex, type(None), type, types.FunctionType,
          types.MethodType)  # fmt: skip


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    own = module.__dict__
    return any(own.get(name) for name in HOOKS)


def globally_hooked() -> bool:
    """Whether calling any module does more than its forward."""
    return any(getattr(nn.modules.module, name, None) for name in _GLOBAL_HOOKS)


_BY_IDENTITY = (torch.Tensor, nn.Module, weakref.ref, type, enum.Enum, types.ModuleType)


def _plain(value: Any, depth: int = 0) -> Any:
    """The value if it is one that a trace would keep, containers and objects by their contents."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, _BY_IDENTITY) or depth > 4:
        return id(value)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v, depth + 1) for v in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_plain(v, depth + 1) for v in value)
    if isinstance(value, dict):
        return tuple((_plain(k, depth + 1), _plain(v, depth + 1)) for k, v in value.items())
    if isinstance(value, np.generic):
        return value.item()
    own = getattr(value, "__dict__", None)
    return id(value) if own is None else (id(value), _plain(dict(own), depth + 1))


def attributes(module: nn.Module) -> tuple[Any, ...]:
    """The module's own plain attributes."""
    return tuple(
        (name, _plain(value)) for name, value in module.__dict__.items() if name not in _REGISTRIES
    )


_REGISTRIES = frozenset(nn.Module().__dict__) - {"training"}
_TENSORS = ("_parameters", "_buffers", "_modules")


class _Seen:
    """One module as it was, quick to compare: its plain values are the same objects."""

    def __init__(self, module: nn.Module) -> None:
        own = module.__dict__
        self.module, self.size, self.hooked = weakref.ref(module), len(own), hooked(module)
        plain = {name: v for name, v in own.items() if type(v) in _PLAIN or type(v) is tuple}
        self.names, self.values = tuple(plain), tuple(plain.values())
        self.attributes = attributes(module)
        # Tensors and modules apart, whatever is none of these may change inside.
        self.holds_containers = any(
            name not in _REGISTRIES and name not in plain
            and not isinstance(v, (torch.Tensor, nn.Module))
            for name, v in own.items()
        )  # fmt: skip

    def changed(self, module: nn.Module) -> bool:
        own = module.__dict__
        same = len(own) == self.size and not self.holds_containers
        if same and all(map(operator.is_, map(own.get, self.names), self.values)):
            return False
        return attributes(module) != self.attributes


class Fingerprint:
    """A model as it was when it was traced; modules are held weakly."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = [_Seen(m) for m in model.modules()]

    def change(self, model: nn.Module) -> str | None:
        """What is no longer as it was."""
        now = list(model.modules())
        if len(now) != len(self._seen):
            return "a module of the model was added or removed"
        if globally_hooked():
            return "hooks were added to all modules"
        for seen, module in zip(self._seen, now, strict=True):
            if seen.module() is not module:
                return "a module of the model was replaced"
            if hooked(module) != seen.hooked:
                return "hooks were added or removed"
            if seen.changed(module):
                return f"an attribute of a {type(module).__name__} has changed"
        return None


class Snapshot:
    """Every module's plain attributes and registries and every buffer's value, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (m, {k: v for k, v in m.__dict__.items() if type(v) in _PLAIN},
             {n: dict(v) for n, v in m.__dict__.items() if n in _TENSORS and isinstance(v, dict)})
            for m in model.modules()
        ]  # fmt: skip
        self._before = [attributes(m) for m, _, _ in self._kept]
        self._buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]

    def restore(self) -> bool:
        """Puts them back; whether any had changed."""
        changed = False
        for (module, kept, registries), before in zip(self._kept, self._before, strict=True):
            own = module.__dict__
            if attributes(module) != before:
                changed = True
                for name in [n for n, v in own.items() if type(v) in _PLAIN and n not in kept]:
                    del own[name]
                own.update(kept)
            for name, held in registries.items():
                now = own[name]
                if list(now) != list(held) or any(now[k] is not v for k, v in held.items()):
                    changed = True
                    now.clear()
                    now.update(held)
        with torch.no_grad(), torch.inference_mode(False):
            for buffer, value in self._buffers:
                if not torch.equal(buffer.nan_to_num(), value.nan_to_num()):
                    changed = True
                    buffer.copy_(value)
        return changed
