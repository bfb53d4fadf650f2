"""torchattacks' targeted modes: which class an attack approaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastard.engine import Inference

TargetMap = Callable[[Tensor, Tensor | None], Tensor]


class Targets:
    """An attack's mode; "default" is away from the labels."""

    supported_mode: ClassVar[tuple[str, ...]] = ("default",)
    attack: str
    attack_mode: str
    targeted: bool
    model: nn.Module
    _map: TargetMap | None

    @property
    def _statistics(self) -> dict[str, Any]:
        """The mean and std that the model wants, if any."""
        return {}

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


def _as_given(images: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError("targeted(label) needs the target labels, but they are None.")
    return labels
