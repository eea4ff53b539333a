"""Samplers: from noise to images, one file each, which also says how many network evaluations it takes.

As in k-diffusion, a sampler is a function over a denoiser, the starting noise and the process. It works on
numpy arrays and torch tensors alike, and knows no networks, runtimes, labels or guidance. To add one, write
its file and name it in `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from flatq.samplers import ancestral, ddim
from flatq.samplers.base import Sampler

__all__ = ["SAMPLERS", "Sampler"]

SAMPLERS: Mapping[str, Sampler] = {"ancestral": ancestral, "ddim": ddim}
