"""A compact network for small grey images, such as 8x8 and 28x28 handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn

from fastard.models.layers import conv3x3


class SmallCNN(nn.Module):
    """Convolutions with batch norm and ReLU down to 4 to 7 pixels a side, then one linear layer.

    Input [N, in_channels, image_size, image_size], output logits [N, num_classes]. An 8x8 image
    passes one stage of stride 2 (three convolutions in all), a 28x28 image two. The stem has
    `width` planes, the other stages twice as many.

    Raises:
        ValueError: `image_size` is below 4 or `width` below 1.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, *, image_size: int = 28, width: int = 32
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size of small_cnn is {image_size} but must be >= 4")
        if width < 1:
            raise ValueError(f"width of small_cnn is {width} but must be >= 1")
        wide, size = 2 * width, image_size
        stages = [_conv_bn_relu(in_channels, width, stride=1)]
        planes = width
        while size >= 8:
            stages.append(_conv_bn_relu(planes, wide, stride=2))
            planes, size = wide, (size + 1) // 2
        stages.append(_conv_bn_relu(planes, wide, stride=1))
        self.features = nn.Sequential(*stages)
        self.linear = nn.Linear(wide * size * size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


def _conv_bn_relu(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_planes, planes, stride), nn.BatchNorm2d(planes), nn.ReLU())
