"""What of a model a trace takes for constant: its modules, hooks and plain attributes."""

from __future__ import annotations

import operator
import types
import weakref
from typing import Any

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


def _plain(value: Any) -> Any:
    """The value if it is one that a trace would keep, containers by their contents."""
    if type(value) in _PLAIN:
        return value
    if type(value) in (tuple, list):
        return tuple(_plain(v) for v in value)
    if type(value) in (dict, set, frozenset):
        return repr(value) if len(value) < 64 else len(value)
    return None


def attributes(module: nn.Module) -> tuple[Any, ...]:
    """The module's own plain attributes."""
    return tuple(
        (name, _plain(value))
        for name, value in module.__dict__.items()
        if name[0] != "_" or name not in _REGISTRIES
    )


_REGISTRIES = frozenset(nn.Module().__dict__) - {"training"}


class _Seen:
    """One module as it was, quick to compare: its plain values are the same objects."""

    def __init__(self, module: nn.Module) -> None:
        own = module.__dict__
        self.module, self.size, self.hooked = weakref.ref(module), len(own), hooked(module)
        plain = {name: v for name, v in own.items() if type(v) in _PLAIN or type(v) is tuple}
        self.names, self.values = tuple(plain), tuple(plain.values())
        self.attributes = attributes(module)
        self.holds_containers = any(type(v) in (list, dict, set) for name, v in own.items()
                                    if name not in _REGISTRIES)  # fmt: skip

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
    """Every module's plain attributes, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept = [
            (m, {k: v for k, v in m.__dict__.items() if type(v) in _PLAIN}) for m in model.modules()
        ]
        self._before = [attributes(m) for m, _ in self._kept]

    def restore(self) -> bool:
        """Puts them back; whether any had changed."""
        changed = False
        for (module, kept), before in zip(self._kept, self._before, strict=True):
            if attributes(module) != before:
                changed = True
                for name in [n for n, v in module.__dict__.items()
                             if type(v) in _PLAIN and n not in kept]:  # fmt: skip
                    del module.__dict__[name]
                module.__dict__.update(kept)
        return changed
