"""A CNN of a few thousand parameters for 28 px characters: figures at smoke scale show that the way works, no more."""

from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.normalisation(self.convolution(x)))
        return out


def build(num_classes: int, in_channels: int) -> nn.Module:
    """Return the untrained network."""
    blocks = [_Block(in_channels, 8), _Block(8, 16), _Block(16, 32), _Block(32, 48)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes))
