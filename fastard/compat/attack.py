"""What torchattacks' classes share: normalisation, targeted modes, the model's mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastard.compat.models import AsItIs, device_of
from fastard.engine import Inference, inner_model
from fastard.engine.unwrap import Model
from fastard.kinds import unknown

TargetMap = Callable[[Tensor, Tensor | None], Tensor]


class Attack:
    """Base of the attacks: ``adv_inputs = attack(inputs, labels)``.

    The model is attacked in eval mode unless `set_model_training_mode` says otherwise, and every
    module's own flag is put back (torchattacks puts the whole model into train mode).
    """

    supported_mode: ClassVar[tuple[str, ...]] = ("default",)

    def __init__(self, name: str, model: nn.Module) -> None:
        self.attack, self.attack_mode, self.targeted = name, "default", False
        self.normalization_used: dict[str, Tensor] | None = None
        self.return_type = "float"
        self._map: TargetMap | None = None
        self._modes = (False, False, False)
        self.set_model(model)
        self.device = device_of(model, torch.empty(0))

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The adversarial images of images in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define forward(images, labels).")

    def set_model(self, model: nn.Module) -> None:
        self.model, self.model_name = model, type(model).__name__

    def set_device(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    # Normalisation.

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Says that inputs come normalised: eps stays in pixels, results are normalised again."""
        mean, std = (torch.as_tensor(v, dtype=torch.float32).reshape(-1) for v in (mean, std))
        if len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} channels, but std has {len(std)}.")
        shape = (1, -1, 1, 1)
        self.normalization_used = {"mean": mean.reshape(shape), "std": std.reshape(shape)}

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

    # Targets.

    def get_mode(self) -> str:
        return self.attack_mode

    def set_mode_default(self) -> None:
        """Untargeted, away from the labels."""
        self.attack_mode, self.targeted, self._map = "default", False, None
        print("Attack mode is changed to 'default.'")

    def _set_targeted(self, mode: str, quiet: bool, mapping: TargetMap) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError(f"Targeted mode is not supported by {self.attack}.")
        self.attack_mode, self.targeted, self._map = mode, True, mapping
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    def set_mode_targeted_by_function(
        self, target_map_function: TargetMap, quiet: bool = False
    ) -> None:
        """Towards ``target_map_function(inputs, labels)``."""
        self._set_targeted("targeted(custom)", quiet, target_map_function)

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Towards the labels given to the call."""
        self._set_targeted("targeted(label)", quiet, _as_given)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Towards a random class other than the label (of the model, where none is given)."""
        self._set_targeted("targeted(random)", quiet, self._random_classes)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Towards the `kth_min`-th least likely class other than the label."""
        if kth_min < 1:
            raise ValueError(f"kth_min must be at least 1, but is {kth_min}.")

        def least_likely(images: Tensor, labels: Tensor | None) -> Tensor:
            logits, labels = self._clean(images, labels)
            others = logits.scatter(1, labels[:, None], torch.inf)
            return others.kthvalue(kth_min, dim=1).indices

        self._set_targeted("targeted(least-likely)", quiet, least_likely)

    def _clean(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = Inference(self.model, **self._statistics)(images)
        return logits, logits.argmax(1) if labels is None else labels.long()

    def _random_classes(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits, labels = self._clean(images, labels)
        # Drawn on the CPU, one number a sample, as torchattacks does.
        place = ((logits.shape[1] - 1) * torch.rand(len(images))).long().to(labels.device)
        return place + (place >= labels)

    def _target(self, images: Tensor, labels: Tensor | None) -> Tensor:
        found = labels if self._map is None else self._map(images, labels)
        if found is None:
            raise ValueError(f"{self.attack} needs labels, but they are None.")
        return found.to(images.device)

    # The model's mode, and the call.

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:  # fmt: skip
        """Attacks in train mode, BatchNorm and Dropout layers in theirs only where asked."""
        self._modes = (model_training, batchnorm_training, dropout_training)

    set_training_mode = set_model_training_mode

    def set_return_type(self, type: str) -> None:
        """ "float": images as they are; "int": uint8 of 0 to 255 (for inputs in [0, 1])."""
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
        images = inputs.detach().to(self.device)
        labels = None if labels is None else labels.detach().to(self.device)
        if self.normalization_used is not None:
            images = self.inverse_normalize(images)
            # What was rounded out of [0, 1] goes back; what was never inside is refused.
            images = images + (images.clamp(0, 1) - images).clamp(-1e-5, 1e-5)
        with self._in_mode():
            adv = self.forward(images, labels)
        if self.normalization_used is not None:
            return self.normalize(adv)
        return (adv * 255).to(torch.uint8) if self.return_type == "int" else adv

    def __repr__(self) -> str:
        hidden = ("model", "attack")
        shown = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in hidden}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{k}={v}' for k, v in shown.items())})"


def _as_given(images: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError("targeted(label) needs the target labels, but they are None.")
    return labels
