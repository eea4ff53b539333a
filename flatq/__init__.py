"""flatq: quantize diffusion models, export them, and know what it did to the pictures.

Importing this package loads neither torch nor any runtime.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
