"""Small models of PyTorch: `ZOO` maps names to functions that make one, with three examples."""

import torch
from torch import nn
from torch.nn import functional


def mlp(activation, *more):
    return lambda: (
        nn.Sequential(nn.Linear(8, 16), activation(*more), nn.Dropout(0.1), nn.Linear(16, 3)),
        torch.randn(3, 8),
    )


class Convolutions(nn.Module):
    """Convolutions with batch normalization, pooling and dropout of channels."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.2),
            nn.Conv2d(8, 8, 3, padding="same", groups=2),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((1, 2)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, x):
        return self.head(self.features(x))


class Residual(nn.Module):
    """A residual block with a projection, as in a ResNet."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm_1, self.norm_2 = norm(8), norm(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = functional.relu(self.norm_1(self.first(x)), inplace=True)
        y = functional.relu(self.norm_2(self.second(y)) + self.shortcut(x))
        return self.head(y.mean(dim=(2, 3)))


class Attention(nn.Module):
    """A transformer block written by hand, with `scaled_dot_product_attention`."""

    def __init__(self, causal=False):
        super().__init__()
        self.causal = causal
        self.tokens, self.places = nn.Embedding(11, 12), nn.Parameter(torch.randn(1, 6, 12) / 5)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm_1, self.norm_2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU("tanh"), nn.Linear(24, 12), nn.Dropout(0.1))
        self.embedding_dropout = nn.Dropout(0.05)
        self.head = nn.Linear(12, 4)

    def forward(self, ids):
        x = self.embedding_dropout(self.tokens(ids) + self.places)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, length, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        rate = 0.2 if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        x = x + self.mlp(self.norm_2(x))
        return self.head(x[:, -1] if self.causal else x.mean(1))


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(4, 6, num_layers=2, dropout=0.3, batch_first=True, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, x):
        outputs, _ = self.layer(x)
        return self.head(outputs[:, -1])


class Tied(nn.Module):
    """A language model whose output weights are those of its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.embedding(ids).mean(1)))


class Frozen(nn.Module):
    """A frozen layer and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.first.requires_grad_(False)
        self.register_buffer("shift", torch.arange(6) / 6)

    def forward(self, x):
        return self.last(functional.dropout(torch.sigmoid(self.first(x)) + self.shift, 0.25, self.training))


class Indexing(nn.Module):
    """Slices, masks, concatenation, einsum, padding, interpolation and other rearrangements."""

    def __init__(self):
        super().__init__()
        self.weight, self.mix = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a * 2, torch.where(b > 0, b, -0.5 * b), x[:, ::2]], dim=1)
        y = functional.pad(y, (1, 1), mode="replicate")[:, :8]
        y = y.masked_fill(y.abs() < 0.1, 0.0).reshape(-1, 2, 4) @ self.weight
        z = torch.einsum("npi,oij->noj", torch.stack(y.unbind(1), 1), self.mix)
        z = functional.interpolate(z, scale_factor=2, mode="linear", align_corners=False)
        z = torch.cat([z, functional.interpolate(z, size=4, mode="nearest")], dim=-1).flip(-1)
        return z.flatten(1).clamp(-3, 3).cumsum(1)[:, [0, 3, 7]] + z.var(dim=(1, 2), keepdim=True).squeeze(2)


class StochasticDepth(nn.Module):
    """As torchvision has it: the name and the attributes are what is known of it."""

    def __init__(self, p):
        super().__init__()
        self.p, self.mode = p, "row"

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class Branches(nn.Module):
    """Residual branches under stochastic depth."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.drops = nn.ModuleList([StochasticDepth(0.1), StochasticDepth(0.2)])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for layer, drop in zip(self.layers, self.drops, strict=True):
            x = x + drop(torch.tanh(layer(x)))
        return self.head(x)


class Decoder(nn.Module):
    """Transposed convolutions and other layers of decoders."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(1, 2, 3, dilation=2)
        self.norm = nn.InstanceNorm2d(6, affine=True)

    def forward(self, x):
        y = functional.interpolate(
            self.norm(self.up(x)), scale_factor=2.0, mode="bilinear", align_corners=True
        )
        y = self.shuffle(torch.cat([y, y[:, :2]], 1))[:, :1]
        return functional.max_pool2d(self.last(y), 3, 2, 1, ceil_mode=True).sum((1, 2, 3)).unsqueeze(1)


def encoder(batch_first=True):
    """`nn.TransformerEncoder`, behind a projection to four classes."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = x if batch_first else x.transpose(0, 1)
            y = self.layers(x)
            return self.head(y.mean(1 if batch_first else 0))

    return Encoder()


def images(channels, size, number=3):
    return torch.randn(number, channels, size, size)


ACTIVATIONS = (
    *(
        nn.ReLU,
        nn.LeakyReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Tanh,
        nn.Sigmoid,
        nn.Softplus,
    ),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.LogSigmoid, nn.Softsign, nn.Softshrink),
    *(nn.Hardshrink, nn.Tanhshrink, nn.PReLU),
)
ZOO = {
    **{activation.__name__: mlp(activation) for activation in ACTIVATIONS},
    "softmax layer": mlp(nn.Softmax, -1),
    "GLU": lambda: (nn.Sequential(nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 3)), torch.randn(3, 8)),
    "RMSNorm": lambda: (nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6), nn.Linear(6, 3)), torch.randn(3, 8)),
    "LayerNorm": lambda: (
        nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        torch.randn(3, 8),
    ),
    "BatchNorm1d": lambda: (
        nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        torch.randn(3, 8),
    ),
    "convolutions": lambda: (Convolutions(), images(1, 8)),
    "residual": lambda: (Residual(), images(4, 6)),
    "residual with GroupNorm": lambda: (Residual(lambda n: nn.GroupNorm(4, n)), images(4, 6)),
    "1d": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.MaxPool1d(2), nn.Dropout1d(0.1), nn.Flatten()
        ),
        torch.randn(3, 2, 12),
    ),
    "decoder": lambda: (Decoder(), images(4, 3)),
    "attention": lambda: (Attention(), torch.randint(0, 11, (3, 6))),
    "causal attention": lambda: (Attention(causal=True), torch.randint(0, 11, (3, 6))),
    "encoder": lambda: (encoder(), torch.randn(3, 5, 8)),
    "LSTM": lambda: (Recurrent(nn.LSTM), torch.randn(3, 5, 4)),
    "bidirectional LSTM": lambda: (Recurrent(nn.LSTM, bidirectional=True), torch.randn(3, 5, 4)),
    "GRU": lambda: (Recurrent(nn.GRU), torch.randn(3, 5, 4)),
    "RNN": lambda: (Recurrent(nn.RNN), torch.randn(3, 5, 4)),
    "tied": lambda: (Tied(), torch.randint(0, 9, (3, 4))),
    "frozen": lambda: (Frozen(), torch.randn(3, 4)),
    "indexing": lambda: (Indexing(), torch.randn(3, 4)),
    "stochastic depth": lambda: (Branches(), torch.randn(3, 6)),
    "rate zero": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.0), nn.Linear(5, 2)),
        torch.randn(3, 4),
    ),
}
