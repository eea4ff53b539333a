"""The base class of what a study finds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Found"]


class Found(BaseModel):
    """Frozen; unknown keys are refused, and numbers that are not finite are strings in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
