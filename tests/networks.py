"""Small networks with every kind of layer that surgery supports, for the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(i, o, k=3, stride=1, groups=1):
    conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


class Run(nn.Module):
    """Modules by name, and a forward written as a function of them and the inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class PlainCNN(nn.Module):
    shape = (2, 3, 9, 9)

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5),
            nn.Conv2d(8, 7, 3, padding="same"), nn.BatchNorm2d(7), nn.LeakyReLU(),
            nn.Conv2d(7, 6, 3, dilation=2, padding=2, padding_mode="reflect"), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class Block(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.a, self.b = conv_bn(i, o, stride=stride), conv_bn(o, o)
        self.short = conv_bn(i, o, 1, stride) if stride != 1 or i != o else nn.Identity()

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        y += self.short(x)
        return F.relu_(y)


class Residual(nn.Module):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 9, 2), Block(9, 9))
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNetV2-like."""

    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.up, self.dw, self.down = (
            conv_bn(6, 12, 1),
            conv_bn(12, 12, groups=12),
            conv_bn(12, 6, 1),
        )
        self.wide = nn.Conv2d(6, 12, 3, groups=6)  # channel multiplier 2
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        x = x + self.down(F.relu6(self.dw(F.relu6(self.up(x)))))
        return self.head(F.hardswish(self.wide(x))).flatten(2).amax(-1)


class SqueezeExcite(nn.Module):
    shape = (2, 3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = F.silu(self.a(x))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.b(x)
        n, c, _, _ = x.shape
        x = x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3)))))).view(n, c, 1, 1)
        return self.head(torch.flatten(F.avg_pool2d(x, 6), 1))


class Dense(nn.Module):
    """DenseNet-like: norm, activation and convolution over everything before."""

    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(5 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(5 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.last = nn.BatchNorm2d(14)
        self.head = nn.Linear(14 * 4 * 4, 3)

    def forward(self, x):
        kept = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            kept.append(conv(F.relu(norm(torch.cat(kept, 1)))))
        x = F.max_pool2d(F.elu(self.last(torch.cat(kept, 1))), 2)
        return self.head(x.reshape(x.shape[0], -1))


class CatResidual(nn.Module):
    """A convolution is added to a concatenation: it writes into two groups."""

    shape = (2, 3, 5, 5)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.both = (nn.Conv2d(3, n, 3) for n in (3, 5, 8))
        self.bn, self.out = nn.BatchNorm2d(8), nn.Linear(2 * 8 * 9 + 4, 3)
        self.side = nn.Linear(27, 4)

    def forward(self, x):
        y = self.bn(torch.cat([self.a(x), self.b(x)], 1) + self.both(x))
        flat = torch.cat([y.flatten(1), self.side(x[:, :, 1:4, :3].flatten(1)), y.flatten(1)], 1)
        return self.out(flat)


class Flattened(nn.Module):
    shape = (3, 2, 6, 5)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(30, 7), nn.Linear(30, 7), nn.Linear(7, 2)
        self.norm = nn.BatchNorm1d(30)

    def forward(self, x):
        x = torch.tanh(self.b(torch.selu(self.a(x))))
        channels_first = self.norm(x.view(x.size(0), -1))
        channels_last = x.permute(0, 2, 3, 1).flatten(1)
        return self.fc3(F.relu(self.fc1(channels_first) + self.fc2(channels_last)))


class ConvNeXtBlock(nn.Module):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.dw = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.gamma = nn.Parameter(torch.rand(6))
        self.out_norm, self.head = nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        x = x + y.movedim(-1, 1)
        return self.head(self.out_norm(x.mean([-2, -1])))


class TokenMLP(nn.Module):
    """Embeddings, positions, layer norms and residuals; mixes channels, then tokens."""

    shape = (2, 6)

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 6, 8))
        self.n1, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.n2, self.mix, self.unmix = nn.RMSNorm(8), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = self.tokens(x) + self.places
        x = x + self.down(F.gelu(self.up(self.n1(x))))
        x = x + self.unmix(F.relu(self.mix(self.n2(x).transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))


class Signal(nn.Module):
    shape = (2, 2, 16)

    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Conv1d(2, 6, 3), nn.PReLU(6)
        self.bn, self.shared = nn.BatchNorm1d(6), nn.PReLU()
        self.dw = nn.Conv1d(6, 6, 3, groups=6)
        self.b, self.up = nn.Conv1d(6, 5, 1), nn.ConvTranspose1d(5, 4, 3, 2)
        self.c = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        x = self.shared(self.dw(self.bn(F.pad(self.act(self.a(x)), (1, 2), value=0.3))))
        x = self.up(F.max_pool1d(self.b(x), 2))
        return self.c(F.interpolate(x, scale_factor=2, mode="linear"))


class Volume(nn.Module):
    shape = (2, 1, 5, 6, 7)

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv3d(1, 5, 3, padding=1), nn.BatchNorm3d(5)
        self.b, self.g = nn.Conv3d(5, 4, 2), nn.GroupNorm(1, 4)
        self.c, self.d = nn.ConvTranspose3d(4, 3, 2, 2), nn.ConvTranspose3d(3, 3, 2, groups=3)
        self.e = nn.Conv3d(3, 2, 1)

    def forward(self, x):
        x = F.softplus(self.g(self.b(F.relu(self.n(self.a(x))))))
        return self.e(self.d(F.avg_pool3d(self.c(x), 2)))


class AutoEncoder(nn.Module):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 2, 1)
        self.code, self.decode = nn.Linear(16, 5), nn.Linear(5, 16)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.updw = nn.ConvTranspose2d(6, 12, 2, 2, groups=6)  # two channels from each
        self.norm, self.out = nn.InstanceNorm2d(12, affine=True), nn.Conv2d(18, 3, 1)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        y = self.decode(torch.sigmoid(self.code(y.flatten(1)))).reshape(y.shape[0], -1, 2, 2)
        y = F.mish(self.up(y))
        wide = self.norm(self.updw(y))
        return self.out(torch.cat([wide, F.interpolate(y, size=(8, 8))], 1))


class UNet(nn.Module):
    shape = (2, 2, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 1, 1), None
        self.plain, self.tracked = (
            nn.InstanceNorm2d(4),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        )
        self.up, self.d = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 5, 3, 1, 1)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        skip = F.relu(self.plain(self.a(x)))
        y = F.relu(self.tracked(self.b(F.max_pool2d(skip, 2))))
        return self.out(F.relu(self.d(torch.cat((skip, self.up(y)), dim=1))))


class Tied(nn.Module):
    """An autoencoder with transposed weights, two layers with one weight, a layer used twice."""

    shape = (4, 7)

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 6), nn.Linear(6, 7)
        self.weight = nn.Parameter(torch.randn(9, 6) / 3)
        self.bias = nn.Parameter(torch.randn(9))
        self.first, self.second, self.again = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.second.weight = self.first.weight
        self.back = nn.Parameter(torch.randn(6))

    def forward(self, x):
        h = F.gelu(F.linear(self.enter(x), self.weight, self.bias))
        h = self.second(F.relu(self.first(h)))
        h = self.again(F.relu(self.again(h)))
        h = torch.addmm(self.back, h, self.weight)
        return self.leave(h * self.weight.new_ones(h.shape[1]))


class Products(nn.Module):
    """Weights used without modules, stacking and broadcasting over new axes."""

    shape = (3, 5)

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8, 6))
        self.scale, self.out = nn.Parameter(torch.randn(1, 8)), nn.Linear(6, 2)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x):
        h = (x @ self.w1) * self.scale + self.shift
        both = torch.stack([torch.sin(h), torch.cos(h)], dim=1)
        mask = torch.zeros(x.shape[0], 2, h.shape[1], dtype=h.dtype) + 0.5
        both = torch.where(both > 0, both, mask) + h.unsqueeze(1).expand(-1, 2, -1)
        return self.out(torch.matmul(both, self.w2).sum(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Conv2d(3, 6, 3), nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, image, *, text, scale=1.0):
        y = self.image(image) + self.text(text)[..., None, None]
        return {"logits": self.head(F.relu(y).mean((-1, -2)) * scale), "aux": (text,)}


MODELS = [
    PlainCNN, Residual, Inverted, SqueezeExcite, Dense, CatResidual, Flattened, ConvNeXtBlock,
    TokenMLP, Signal, Volume, AutoEncoder, UNet, Tied, Products,
]  # fmt: skip


def make(kind, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = kind().to(dtype).eval()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 1.0) if "weight" in name else nn.init.normal_(
                parameter
            )
    return model


def inputs(kind, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if kind is TokenMLP:
        return torch.randint(0, 11, kind.shape, generator=generator)
    return torch.randn(kind.shape, generator=generator, dtype=torch.float64).to(dtype)
