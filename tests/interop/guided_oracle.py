"""guided-diffusion's UNet as one function of a state dict: what imported networks are held against.

Written from the architecture (Dhariwal, Nichol 2021, appendix; Ho et al. 2020): no diffusers and none of
flatq. Every parameter is asked for by name and shape, so the same walk also draws a random state dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Unet:
    """One network, its flags already worked out.

    Attributes:
        attention: the downsampling rates (1, 2, 4, ...) of the levels with attention.
        heads, heads_up: their number on the way down and in the middle, and on the way up.
        head_channels: width of a head; stands above both numbers where it is given.
    """

    mult: tuple[float, ...]
    channels: int = 32
    blocks: int = 1
    attention: tuple[int, ...] = ()
    heads: int = 4
    heads_up: int | None = None
    head_channels: int | None = None
    new_order: bool = False
    scale_shift: bool = True
    updown: bool = False
    image_channels: int = 3
    out_channels: int = 3
    classes: int | None = None

    def __call__(
        self, state: State, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output, in the dtype of x; every tensor of the state dict is used."""
        used = set()

        def parameter(name: str, *shape: int) -> torch.Tensor:
            used.add(name)
            assert tuple(state[name].shape) == shape, name
            return state[name].to(x.dtype)

        output = self._forward(parameter, x, t, label)
        assert used == set(state)
        return output

    def random_state(self, seed: int) -> State:
        """Every parameter random, those that training starts at zero too; the network keeps its scale."""
        generator = torch.Generator().manual_seed(seed)
        state: State = {}

        def parameter(name: str, *shape: int) -> torch.Tensor:
            value = torch.randn(shape, generator=generator)
            if len(shape) == 1:
                value = 0.2 * value + (1.0 if _is_norm(name) and name.endswith("weight") else 0.0)
            elif not name.startswith("label_emb"):
                value /= math.sqrt(math.prod(shape[1:]))
            state[name] = value
            return value

        side = 2 ** len(self.mult)
        x, zero = torch.zeros(1, self.image_channels, side, side), torch.zeros(1, dtype=torch.int64)
        self._forward(parameter, x, zero, None if self.classes is None else zero)
        return state

    def _forward(
        self, p: Callable[..., torch.Tensor], x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None
    ) -> torch.Tensor:
        def linear(h: torch.Tensor, name: str, out: int) -> torch.Tensor:
            return F.linear(h, p(f"{name}.weight", out, h.shape[-1]), p(f"{name}.bias", out))

        def conv(h: torch.Tensor, name: str, out: int, size: int = 3, stride: int = 1) -> torch.Tensor:
            weight = p(f"{name}.weight", out, h.shape[1], size, size)
            return F.conv2d(h, weight, p(f"{name}.bias", out), stride=stride, padding=size // 2)

        def norm(h: torch.Tensor, name: str) -> torch.Tensor:
            c = h.shape[1]
            return F.group_norm(h, 32, p(f"{name}.weight", c), p(f"{name}.bias", c), eps=1e-5)

        def block(h: torch.Tensor, name: str, out: int, resample: int = 0) -> torch.Tensor:
            inner = F.silu(norm(h, f"{name}.in_layers.0"))
            if resample:
                move = _halve if resample < 0 else _double
                h, inner = move(h), move(inner)
            inner = conv(inner, f"{name}.in_layers.2", out)
            told = linear(F.silu(emb), f"{name}.emb_layers.1", 2 * out if self.scale_shift else out)
            told = told[:, :, None, None]
            if self.scale_shift:
                inner = norm(inner, f"{name}.out_layers.0") * (1 + told[:, :out]) + told[:, out:]
            else:
                inner = norm(inner + told, f"{name}.out_layers.0")
            inner = conv(F.silu(inner), f"{name}.out_layers.3", out)
            return inner + (h if h.shape[1] == out else conv(h, f"{name}.skip_connection", out, 1))

        def attend(h: torch.Tensor, name: str, heads: int) -> torch.Tensor:
            n, c, *sides = h.shape
            heads = c // self.head_channels if self.head_channels else heads
            d = c // heads
            flat = h.reshape(n, c, -1)
            weight, bias = p(f"{name}.qkv.weight", 3 * c, c, 1), p(f"{name}.qkv.bias", 3 * c)
            qkv = F.conv1d(norm(flat, f"{name}.norm"), weight, bias)
            outs = []
            for head in range(heads):  # the rows of q, k and v of one head after the other
                rows = range(3)
                starts = (
                    [i * c + head * d for i in rows] if self.new_order else [(3 * head + i) * d for i in rows]
                )
                q, k, v = (qkv[:, start : start + d] for start in starts)
                outs.append(v @ ((q.mT @ k) / math.sqrt(d)).softmax(dim=-1).mT)
            weight, bias = p(f"{name}.proj_out.weight", c, c, 1), p(f"{name}.proj_out.bias", c)
            return h + F.conv1d(torch.cat(outs, dim=1), weight, bias).reshape(n, c, *sides)

        # The sinusoids are float32 in the original, whatever the network's precision.
        half = self.channels // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = t.float()[:, None] * rates
        emb = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        emb = linear(
            F.silu(linear(emb, "time_embed.0", 4 * self.channels)), "time_embed.2", 4 * self.channels
        )
        if self.classes is not None:
            assert label is not None
            emb = emb + p("label_emb.weight", self.classes, 4 * self.channels)[label]

        widths = [int(m * self.channels) for m in self.mult]
        top = len(widths) - 1
        h = conv(x, "input_blocks.0.0", widths[0])
        skips, index = [h], 1
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                h = block(h, f"input_blocks.{index}.0", width)
                if 2**level in self.attention:
                    h = attend(h, f"input_blocks.{index}.1", self.heads)
                skips.append(h)
                index += 1
            if level < top:
                name = f"input_blocks.{index}.0"
                h = block(h, name, width, -1) if self.updown else conv(h, f"{name}.op", width, stride=2)
                skips.append(h)
                index += 1
        h = block(h, "middle_block.0", widths[-1])
        h = block(attend(h, "middle_block.1", self.heads), "middle_block.2", widths[-1])
        index = 0
        for level in range(top, -1, -1):
            for i in range(self.blocks + 1):
                h = block(torch.cat([h, skips.pop()], dim=1), f"output_blocks.{index}.0", widths[level])
                part = 1
                if 2**level in self.attention:
                    h = attend(h, f"output_blocks.{index}.1", self.heads_up or self.heads)
                    part = 2
                if level and i == self.blocks:
                    name = f"output_blocks.{index}.{part}"
                    up = self.updown
                    h = (
                        block(h, name, widths[level], 1)
                        if up
                        else conv(_double(h), f"{name}.conv", widths[level])
                    )
                index += 1
        assert not skips
        return conv(F.silu(norm(h, "out.0")), "out.2", self.out_channels)


def _halve(h: torch.Tensor) -> torch.Tensor:
    n, c, height, width = h.shape
    return h.reshape(n, c, height // 2, 2, width // 2, 2).mean(dim=(3, 5))


def _double(h: torch.Tensor) -> torch.Tensor:
    return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _is_norm(name: str) -> bool:
    return ".norm." in name or name.split(".")[-3:-1] in (
        ["in_layers", "0"],
        ["out_layers", "0"],
        ["out", "0"],
    )
