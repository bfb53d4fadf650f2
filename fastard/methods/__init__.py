"""Training methods: ``method = methods.build("rslad", student, teachers=[teacher])``."""

from __future__ import annotations

from fastard.methods.base import Method
from fastard.methods.logit_cache import LogitCache
from fastard.methods.recipes import Preset
from fastard.methods.registry import build, names, preset, presets

__all__ = ["LogitCache", "Method", "Preset", "build", "names", "preset", "presets"]
