"""From a preset, a file and single settings to a `TrainConfig`, and back to TOML. Nothing is trained here.

A preset is a TOML file of `TrainConfig`'s keys: one of those in `presets/`, or the user's own. TOML has no
null, so "none" stands for it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flatq.errors import UsageError
from flatq.train.config import TrainConfig

__all__ = ["parse_settings", "preset_names", "read_preset", "resolve", "to_toml"]

_NONE = "none"
_PRESETS = files("flatq.train") / "presets"


def preset_names() -> tuple[str, ...]:
    """The presets that come with flatq, sorted."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _PRESETS.iterdir()))


def read_preset(preset: str) -> dict[str, Any]:
    """The keys and values of a preset, not yet validated.

    Args:
        preset: a name of `preset_names`, or the path of a file that ends in .toml.

    Raises:
        UsageError: no such preset or file, or no TOML.
    """
    names = preset_names()
    own = preset.endswith(".toml")
    if not own and preset not in names:
        raise UsageError(
            f"there is no preset {preset!r}",
            expected="one of " + ", ".join(names) + ", or a .toml file",
            got=preset,
            next_step=_suggestion(preset, names),
        )
    path = Path(preset) if own else _PRESETS / f"{preset}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"the preset {preset} cannot be read",
            expected="a TOML file",
            got=str(error),
            next_step="`flatq train RUN --preset digits --dry-run` prints a valid one",
        ) from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as keys and values; the value is TOML, a bare word, or numbers with commas.

    Raises:
        UsageError: no `=`, or a key given twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key or key in values:
            raise UsageError(
                f"--set {setting} is not valid",
                expected="key=value, each key once",
                got=f"{key} twice" if key in values else setting,
                next_step="such as --set lr=1e-4",
            )
        values[key] = _value(text.strip())
    return values


def _value(text: str) -> Any:
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            found = tomllib.loads(f"value = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        if set(found) == {"value"}:
            return found["value"]
    return text


def resolve(*layers: tuple[str, Mapping[str, Any]]) -> TrainConfig:
    """The configuration of several layers; a later one wins.

    Values must have their types: no text for a number, no number for true or false.

    Args:
        layers: (what the layer is called in messages, its keys and values), such as a preset and options.

    Raises:
        UsageError: an unknown key (with a suggestion), a value of a wrong type or out of range, options that
            contradict each other, or no `data`.
    """
    known = tuple(TrainConfig.model_fields)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, layer in layers:
        for key, value in layer.items():
            if key not in known:
                raise UsageError(
                    f"{name} has an unknown key {key!r}",
                    expected="a key of the training configuration",
                    got=key,
                    next_step=_suggestion(key, known),
                )
            values[key], origin[key] = (None if value == _NONE else value), name
    if "data" not in values:
        raise UsageError(
            "no images to train on",
            expected="an image source: digits, a folder, a .zip or a .npz",
            got="no data",
            next_step="name them with --data",
        )
    try:
        # as JSON, where strict types still let a list be a tuple and 1 be a float; TOML's dates become text
        return TrainConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UsageError(
                first["msg"].removeprefix("Value error, "), next_step="change one of the two"
            ) from error
        key = str(first["loc"][0])
        raise UsageError(
            f"{key} is not valid, from {origin.get(key, 'the defaults')}",
            expected=" or ".join(
                dict.fromkeys(e["msg"] for e in error.errors() if e["loc"][:1] == first["loc"][:1])
            ),
            got=repr(values.get(key)),
            next_step=f"correct {key}, or leave it out",
        ) from error


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)


def to_toml(config: TrainConfig) -> str:
    """Every key of a configuration as TOML that `read_preset` reads back."""
    lines = []
    for key, value in config.model_dump(mode="json").items():
        # a JSON number, word or list of numbers is TOML, and so is its text once DEL is escaped
        text = json.dumps(_NONE if value is None else value, ensure_ascii=False)
        lines.append(f"{key} = {text}".replace("\x7f", "\\u007f"))
    return "\n".join(lines) + "\n"
