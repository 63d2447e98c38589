"""Define small classifiers, each with one trait that the selection of stages and seeds must handle."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def positive_weights(layer: nn.Module) -> nn.Module:
    """Return the layer with mostly positive weights, so that no class has a CAM of zeros."""
    nn.init.uniform_(layer.weight, -0.5, 1.0)
    return layer


class Block(nn.Module):
    """A strided and a residual convolution; the last addition and ReLU are in place, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.down(x))
        out = self.conv(x)
        out += x
        return self.relu(out)


class Pyramid(nn.Module):
    """Strides 2, 4, 8, 16 in a ``ModuleList``, then pooling and a linear layer: a CAM is exact."""

    def __init__(self, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        widths = (channels, 8, 12, 16, 20)
        self.blocks = nn.ModuleList(Block(a, b, 2) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(0.5)
        self.fc = positive_weights(nn.Linear(widths[-1], classes))

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x).mean((2, 3))))


class DeepHead(Pyramid):
    """Two linear layers after the pooling, so that no CAM is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = positive_weights(nn.Linear(20, 20))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.hidden(self.features(x).mean((2, 3)))))


class ConvHead(Pyramid):
    """Pooling, then a 1x1 convolution to the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = positive_weights(nn.Conv2d(20, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1)).flatten(1)


class ClassMap(Pyramid):
    """A 1x1 convolution to the classes, then pooling: the class map itself is the CAM."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = positive_weights(nn.Conv2d(20, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)).mean((2, 3))


class ChannelsLast(Pyramid):
    """Its last map is (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(20)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(x).permute(0, 2, 3, 1)).mean((1, 2)))


class TokenBlock(nn.Module):
    """Attention over tokens; returns a tuple, as many transformer libraries do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        y = self.norm(x)
        return x + self.attention(y, y, y)[0], None


class Attention(nn.Module):
    """Attention in explicit steps: its matrix (B, heads, N, N), a module's output, resembles a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(-1)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out((self.softmax(q @ k.mT) @ v).transpose(1, 2).flatten(2))


class ExplicitAttention(nn.Module):
    """A plain transformer of ``Attention``: a class token and 14 x 14 patches of a 224 x 224 image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.layers = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), Attention(8)) for _ in range(4)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], dim=1)
        return self.head(self.layers(tokens)[:, 0])


class Tokens(nn.Module):
    """A plain transformer with a class token and ``registers`` on patches of 8 pixels, for any image size."""

    def __init__(self, registers: int = 0, pooled: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 1 + registers, 16))
        self.layers = nn.ModuleList(TokenBlock(16) for _ in range(6))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)
        self.pooled = pooled

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), patches], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)[0]
        tokens = self.norm(tokens)
        read = tokens[:, self.prefix.shape[1] :].mean(1) if self.pooled else tokens[:, 0]
        return {"logits": self.head(read)}
