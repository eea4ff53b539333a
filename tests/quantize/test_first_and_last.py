"""The layers that read the image and those that yield the prediction, found in traced networks."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flatq.layer_decisions import decide_layers
from flatq.network import build_network
from flatq.network_config import ModelConfig
from flatq.quantize.skip_connections import split_skip_connections
from flatq.quantize.trace import find_layers, trace
from flatq.recipe import PRESETS, Candidate

SHAPE = ModelConfig(image_size=8, image_channels=3, out_channels=3, unet={})


def _candidates(network: nn.Module, model: ModelConfig = SHAPE) -> list[Candidate]:
    return [layer.candidate for layer in find_layers(trace(network.eval(), model))]


def _ends(candidates: list[Candidate]) -> tuple[list[str], list[str]]:
    first = [candidate.node for candidate in candidates if candidate.reads_image]
    return first, [candidate.node for candidate in candidates if candidate.predicts]


class _DiT(nn.Module):
    """Patches by a convolution or a linear layer, a block with modulation, a linear head."""

    def __init__(self, *, convolution: bool = True, out: int = 3) -> None:
        super().__init__()
        self.convolution, self.out = convolution, out
        self.patches: nn.Module = nn.Conv2d(3, 16, 2, 2) if convolution else nn.Linear(12, 16)
        self.time, self.modulation = nn.Linear(1, 16), nn.Linear(16, 32)
        self.qkv, self.proj, self.mlp = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4 * out)
        self.place = nn.Parameter(torch.zeros(1, 16, 16))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.convolution:
            h = self.patches(x).flatten(2).transpose(1, 2)
        else:
            h = self.patches(F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1).reshape(-1, 16, 12))
        h = h + self.place
        shift, scale = self.modulation(F.silu(self.time(t[:, None].float())))[:, None].chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm(h) * (1 + scale) + shift).chunk(3, dim=-1)
        h = h + self.proj(F.scaled_dot_product_attention(q, k, v))
        h = h + self.mlp(F.gelu(self.norm(h)))
        h = self.head(self.norm(h)).reshape(-1, 4, 4, 2, 2, self.out)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(-1, self.out, 8, 8)


class _TwoReaders(nn.Module):
    """The image goes, scaled, to a layer and, halved, to a skip connection; two heads yield two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.skip = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.time, self.middle = nn.Linear(1, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.noise, self.variance = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = t[:, None].float()
        h = self.conv_in((2 * x - 1) / (1 + time[:, :, None, None])) + self.time(time)[:, :, None, None]
        h = self.middle(F.silu(h)) + F.interpolate(self.skip(F.avg_pool2d(x, 2)), scale_factor=2.0)
        noise = self.noise(h) * time[:, :, None, None] + x
        return torch.cat([noise, self.variance(h).contiguous()], dim=1)


class _JoinedBeforeTheHead(nn.Module):
    """Learned variance: the output's halves change places. The head reads features beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(11, 6, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.middle(F.silu(self.conv_in(x))) + 0.0 * t[:, None, None, None]
        variance, noise = self.head(torch.cat([h, x], dim=1)).chunk(2, dim=1)
        return torch.cat([noise, variance], dim=1)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_unet_has_those_that_it_runs_first_and_last(name: str) -> None:
    # digits: patches by pixel_unshuffle; imported64: the variance is learned.
    config = ModelConfig(**NETWORKS[name])
    candidates = _candidates(build_network(config), config)
    convolutions = [c.node for c in candidates if c.kind == "conv2d"]
    assert _ends(candidates) == ([convolutions[0]], [convolutions[-1]])
    assert (convolutions[0], convolutions[-1]) == ("unet.conv_in", "unet.conv_out")


@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("out", [3, 6])
def test_a_transformer_has_its_patch_embedding_and_its_head(convolution: bool, out: int) -> None:
    candidates = _candidates(_DiT(convolution=convolution, out=out))
    assert _ends(candidates) == (["patches"], ["head"])
    bits = {(d.node, d.port): d.scheme and d.scheme.bits for d in decide_layers(PRESETS["w4a4"], candidates)}
    assert [bits["patches", port] for port in ("weight", "input", "output")] == [8, None, None]
    assert [bits["head", port] for port in ("weight", "input", "output")] == [8, 8, None]
    assert [bits["qkv", port] for port in ("weight", "input", "output")] == [4, 4, 8]


@pytest.mark.parametrize(
    ("network", "first", "last"),
    [
        (_TwoReaders(), ["conv_in", "skip"], ["noise", "variance"]),
        (_JoinedBeforeTheHead(), ["conv_in", "head"], ["head"]),
    ],
)
def test_there_may_be_several(network: nn.Module, first: list[str], last: list[str]) -> None:
    assert _ends(_candidates(network)) == (first, last)


def test_both_halves_of_a_split_head_predict() -> None:
    graph = trace(_JoinedBeforeTheHead().eval(), SHAPE)
    split_skip_connections(graph, ["head"])
    found = _ends([layer.candidate for layer in find_layers(graph)])
    assert found == (["conv_in", "head.half1"], ["head.half0", "head.half1"])
