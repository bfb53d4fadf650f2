"""One image file as a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoder:
    """Read an image file as uint8 [3, size, size].

    Without a seed, the shorter side is resized to `resize` and the centre cut out; with one, a
    random part is resized and flipped at random. `resize` None takes only files of that very size.
    """

    size: int
    resize: int | None = None

    def __call__(self, file: str, seed: int | None = None) -> Tensor:
        """Decode `file`, augmented by the random numbers of `seed` where one is given.

        Equivalent to: `v2.Resize(resize)` and `v2.CenterCrop(size)` on the RGB image, or
        `v2.RandomResizedCrop(size)` and `v2.RandomHorizontalFlip()` after
        `torch.manual_seed(seed)`. The global generator stays as it was.

        Raises:
            ValueError: the file is missing, damaged, or not of the only size.
        """
        # Imported here: torchvision takes longer to import than the rest of the library.
        from PIL import Image
        from torchvision.transforms import v2

        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        # Damaged bytes surface as SyntaxError, struct.error and others besides OSError.
        except Exception as error:
            raise ValueError(f"{file} is damaged or no image: {error}") from error
        if self.resize is None and image.size != (self.size, self.size):
            width, height = image.size
            raise ValueError(
                f"{file} is {width} x {height} pixels but must be {self.size} x {self.size}"
            )
        if seed is not None:
            moves = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
            with torch.random.fork_rng(devices=[]):
                # The CPU's alone: `torch.manual_seed` would reach CUDA's generators too.
                torch.default_generator.manual_seed(seed)
                for move in moves:
                    image = move(image)
        elif self.resize is not None:
            image = v2.functional.resize(image, [self.resize])
            image = v2.functional.center_crop(image, [self.size])
        return v2.functional.pil_to_tensor(image)
