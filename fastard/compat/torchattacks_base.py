"""What torchattacks' classes share: normalisation, the model's mode, the call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastard.compat.shared import AsItIs, device_of
from fastard.compat.torchattacks_targets import TargetMap, Targets
from fastard.engine import inner_model
from fastard.engine.unwrap import Model
from fastard.kinds import unknown


class Attack(Targets, ABC):
    """Base of the attacks: ``adv_inputs = attack(inputs, labels)``.

    The model is attacked in eval mode unless `set_model_training_mode` says otherwise, and every
    module's own flag is put back (torchattacks puts the whole model into train mode).
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        self.attack, self.attack_mode, self.targeted = name, "default", False
        self.normalization_used: dict[str, Tensor] | None = None
        self.return_type = "float"
        self._map: TargetMap | None = None
        self._modes = (False, False, False)
        self.set_model(model)
        self.device = device_of(model)

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The adversarial images of images in [0, 1]."""

    def set_model(self, model: nn.Module) -> None:
        self.model, self.model_name = model, type(model).__name__

    def set_device(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    # Normalisation.

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Says that inputs come normalised: eps stays in pixels, results are normalised again."""
        if len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} channels, but std has {len(std)}.")
        self.normalization_used = {
            name: torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
            for name, values in (("mean", mean), ("std", std))
        }

    def _own(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalization_used is None:
            raise ValueError("call set_normalization_used(mean, std) first.")
        mean, std = self.normalization_used["mean"], self.normalization_used["std"]
        return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)

    def normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._own(inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._own(inputs)
        return inputs * std + mean

    @property
    def _statistics(self) -> dict[str, Any]:
        used = self.normalization_used or {}
        return {name: value.flatten() for name, value in used.items()}

    # The model's mode, and the call.

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:  # fmt: skip
        """Attacks in train mode, BatchNorm and Dropout layers in theirs only where asked."""
        self._modes = (model_training, batchnorm_training, dropout_training)

    set_training_mode = set_model_training_mode

    def set_return_type(self, type: str) -> None:
        """Takes "float", images as the inputs were, or "int", uint8 pixels from 0 to 255."""
        if type not in ("float", "int"):
            raise unknown("return type", type, ("float", "int"))
        self.return_type = type

    @property
    def _attacked(self) -> Model:
        return AsItIs(inner_model(self.model)[0]) if self._modes[0] else self.model

    @contextmanager
    def _in_mode(self) -> Iterator[None]:
        training, batchnorm, dropout = self._modes
        inside = inner_model(self.model)[0]
        if not training or not isinstance(inside, nn.Module):
            yield
            return
        flags = [(m, m.training) for m in inside.modules()]
        try:
            for module, _ in flags:
                name = type(module).__name__
                module.training = not (
                    ("BatchNorm" in name and not batchnorm) or ("Dropout" in name and not dropout)
                )
            yield
        finally:
            for module, flag in flags:
                module.training = flag

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        device = self.device or inputs.device
        images = inputs.detach().to(device)
        labels = None if labels is None else labels.detach().to(device)
        if self.normalization_used is not None:
            images = self.inverse_normalize(images)
            # What was rounded out of [0, 1] goes back; what was never inside is refused.
            images = images + (images.clamp(0, 1) - images).clamp(-1e-5, 1e-5)
        with self._in_mode():
            adv = self.forward(images, labels)
        if self.return_type == "int":
            return (adv * 255).to(torch.uint8)
        return adv if self.normalization_used is None else self.normalize(adv)

    def __repr__(self) -> str:
        hidden = ("model", "attack")
        shown = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in hidden}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{k}={v}' for k, v in shown.items())})"
