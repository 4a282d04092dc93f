"""Small CNNs with the constructs that people's networks are made of; each takes num_classes and in_channels."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class OwnCNN(nn.Module):
    """Three convolutions with pooling between them; a construct replaces `block` or `act`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def act(self, x: Tensor) -> Tensor:
        return functional.relu(x)

    def block(self, x: Tensor) -> Tensor:
        return self.act(self.second(x))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.act(self.norm(self.first(x))), 2)
        return self.fc(self.act(self.third(self.block(x))).mean((2, 3)))


class Residual(OwnCNN):
    def block(self, x):
        return self.act(self.second(x) + x)


class InvertedResidual(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.wide, self.narrow = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def block(self, x):
        return x + self.narrow(functional.relu6(self.depthwise(functional.relu6(self.wide(x)))))


class Dense(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.join = nn.Conv2d(16, 8, 1)

    def block(self, x):
        return self.join(torch.cat([x, self.act(self.second(x))], 1))


class ChannelShuffle(OwnCNN):
    def block(self, x):
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, int(channels * 0.5), height, width).permute(0, 2, 1, 3, 4)
        return self.act(self.second(x.reshape(batch, channels, height, width)))


class SplitByShape(OwnCNN):
    def block(self, x):
        half = int(x.size(1) * 0.5)
        return self.act(self.second(torch.cat([x[:, half:], x[:, :half]], 1)))


class SqueezeExcite(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.squeeze = nn.Linear(8, 8)

    def block(self, x):
        gate = torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)))
        return self.act(self.second(x)) * gate.view(x.size(0), x.size(1), 1, 1)


class Grouped(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=4)


class Swish(OwnCNN):
    def act(self, x):
        return x * torch.sigmoid(x)


class Tanh(OwnCNN):
    def act(self, x):
        return torch.tanh(x)


class Clamp(OwnCNN):
    def act(self, x):
        return x.clamp(0, 6)


class Maximum(OwnCNN):
    def act(self, x):
        return torch.maximum(x, torch.zeros_like(x))


class Selu(OwnCNN):
    def act(self, x):
        return functional.selu(x)


class Softplus(OwnCNN):
    def act(self, x):
        return functional.softplus(x)


class ReluMadeInForward(OwnCNN):
    def act(self, x):
        return nn.ReLU(inplace=True)(x)


class DropoutInForward(OwnCNN):
    def block(self, x):
        return functional.dropout(super().block(x), 0.5, training=self.training)


class AdaptivePooling(OwnCNN):
    def block(self, x):
        return functional.adaptive_avg_pool2d(super().block(x), 4)


class AsymmetricPadding(OwnCNN):
    def block(self, x):
        height = x.shape[-1]
        return self.act(functional.conv2d(functional.pad(x, (0, height % 2 + 1, 1, 1)), self.second.weight))


class StochasticDepth(OwnCNN):
    def block(self, x):
        if self.training and torch.rand(1).item() < 0.5:
            return x
        return x + super().block(x)


class OldWeightNorm(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.second = nn.utils.weight_norm(self.second)


class OptionalArgument(OwnCNN):
    def forward(self, x, return_features=False, mask=None):
        if mask is not None:
            x = x * mask
        features = self.act(self.third(self.block(self.act(self.first(x))))).mean((2, 3))
        return features if return_features else self.fc(features)


class Asserts(OwnCNN):
    def forward(self, x):
        assert x.shape[1] in (1, 3), "grey or colour"
        if len(x.shape) != 4 or x.dim() != 4:
            raise ValueError("expected a batch")
        return super().forward(x)


class NumpyConstant(OwnCNN):
    def forward(self, x):
        return super().forward(np.sqrt(2.0) * x * np.float32(0.5))


class LazyLayers(OwnCNN):
    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.second, self.fc = nn.LazyConv2d(8, 3, padding=1), nn.LazyLinear(num_classes)


class MaxFeatureMap(OwnCNN):
    def act(self, x):
        return torch.max(*x.chunk(2, 1)).repeat(1, 2, 1, 1)


@torch.jit.script
def compiled_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class CompiledFunction(OwnCNN):
    def act(self, x):
        return compiled_swish(x)


class ZeroPaddedShortcut(OwnCNN):
    def block(self, x):
        zeros = torch.zeros(x.size(0), 4, x.size(2), x.size(3), device=x.device)
        return self.act(self.second(x) + torch.cat((x[:, :4], torch.autograd.Variable(zeros)), 1))


class BatchSizeFromTheBeginning(OwnCNN):
    def forward(self, x):
        batch, _, height, width = x.shape
        x = self.act(self.third(self.block(self.act(self.first(x)))))
        return self.fc(functional.avg_pool2d(x, (height, width)).view(batch, -1))


class ParameterAndShape(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.7))

    def block(self, x):
        return self.act(self.second(x if x.shape[-1] < 4 else x * self.scale))


class NumberOutOfAParameter(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = nn.Parameter(1 + torch.rand(()))

    def forward(self, x):
        assert x.shape[1] == 3
        return super().forward(x) / self.temperature.item()


class LooksAtItsValues(nn.Module):
    """Decides by what the images show, and works in place."""

    def forward(self, x):
        if x.abs().max() > 1e6:
            return x
        x += 1
        return functional.relu_(x)


class DecidingBlock(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.looks = LooksAtItsValues()

    def block(self, x):
        return self.act(self.looks(x) + self.second(x))


class SlicesOfASequential(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.features = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())

    def block(self, x):
        return self.features[2:](self.features[:2](x))


class LengthOfTheBatch(OwnCNN):
    def forward(self, x):
        x = functional.max_pool2d(self.act(self.first(x)), 2)
        x = self.act(self.third(self.block(x)))
        weights = x.view(len(x), 16, -1).sum(1).softmax(1)
        return self.fc((x * weights.view(len(x), 1, *x.shape[2:])).sum((2, 3)))


class FunctionalBatchNorm(OwnCNN):
    def block(self, x):
        mean, variance = self.norm.running_mean, self.norm.running_var
        return self.act(functional.batch_norm(self.second(x), mean, variance, training=self.training))


class TiedLayers(OwnCNN):
    def block(self, x):
        for _ in range(3):
            x = self.act(self.second(x))
        return x


class LayersByTheirNames(OwnCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for number in range(3):
            setattr(self, f"layer{number}", nn.Conv2d(8, 8, 3, padding=1))
        self.scales = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def block(self, x):
        for number, scale in enumerate(self.scales):
            x = x + self.act(scale(getattr(self, f"layer{number}")(x)))
        return x


class SquareRelu(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(min=0) ** 2

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * 2 * x.clamp(min=0)


class OwnAutogradFunction(OwnCNN):
    def act(self, x):
        return SquareRelu.apply(x)


CONSTRUCTS = [
    *(Residual, InvertedResidual, Dense, ChannelShuffle, SplitByShape, SqueezeExcite, Grouped, Swish, Tanh, Clamp),
    *(Maximum, Selu, Softplus, ReluMadeInForward, DropoutInForward, AdaptivePooling, AsymmetricPadding),
    *(StochasticDepth, OldWeightNorm, OptionalArgument, Asserts, NumpyConstant, LazyLayers, MaxFeatureMap),
    *(CompiledFunction, ZeroPaddedShortcut, BatchSizeFromTheBeginning, ParameterAndShape, NumberOutOfAParameter),
    *(DecidingBlock, SlicesOfASequential, LengthOfTheBatch, FunctionalBatchNorm, TiedLayers, LayersByTheirNames),
    *(OwnAutogradFunction,),
]
