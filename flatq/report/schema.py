"""The JSON Schemas of report.json and of `flatq gate --json`, as published in `schemas/` beside this file.

`python -m flatq.report.schema` writes them anew after a change of the models; a test tells when that was
forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from flatq.report.model import Report
from flatq.report.result import GateResult

__all__ = ["FOLDER", "MODELS", "schema_text"]

FOLDER = Path(__file__).with_name("schemas")
MODELS: dict[str, type[BaseModel]] = {"report": Report, "gate": GateResult}
"""Published as NAME.schema.json."""


class _Schema(GenerateJsonSchema):
    def float_schema(self, schema: Any) -> JsonSchemaValue:
        """What is not finite is written as a string, as JSON has no number for it."""
        return {"anyOf": [super().float_schema(schema), {"enum": ["Infinity", "-Infinity", "NaN"]}]}


def schema_text(name: str) -> str:
    """The schema (draft 2020-12) of the named model's output."""
    schema = MODELS[name].model_json_schema(schema_generator=_Schema, mode="serialization")
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for known in MODELS:
        (FOLDER / f"{known}.schema.json").write_text(schema_text(known), encoding="utf-8")
