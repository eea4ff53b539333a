"""Measure several checkpoints on the same draws, and write flatness.json, flatness.md and the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flatq.checkpoint import load_checkpoint
from flatq.errors import ArtifactError, UsageError
from flatq.files import replacing
from flatq.flatness.measure import measure_flatness
from flatq.flatness.report import save_plots, to_markdown
from flatq.flatness.settings import FlatnessSettings
from flatq.images import Resize, load_images
from flatq.progress import Progress
from flatq.quantize.artifact import read_manifest

__all__ = ["flatness_settings", "run_flatness"]


def run_flatness(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[str],
    artifacts: Sequence[Path],
    data: str,
    resize: Resize | None,
    settings: FlatnessSettings,
    progress: Progress,
) -> None:
    """Measure each checkpoint and variant and write the results.

    Args:
        checkpoints: files of one image shape.
        out: folder of the results.
        weights: variants to measure of each; empty for each one's default.
        artifacts: folders of `flatq quantize`; each belongs to one of the checkpoints and variants.
        data, resize: images of the draws, as `flatq.images.load_images`.

    Raises:
        InputError: checkpoints, artifacts, weights or images that do not fit together.
    """
    loaded = [load_checkpoint(path) for path in checkpoints]
    models = [(c, c.choose(v)) for c in loaded for v in (weights or (None,))]
    by_parent: dict[tuple[str | None, str], list[Path]] = {(c.digest, variant): [] for c, variant in models}
    for path in artifacts:
        parent = read_manifest(path).parent
        key = (parent["sha256"], parent["weights"])
        if key not in by_parent:
            raise ArtifactError(
                f"{path} was not made from the weights that are measured",
                expected="an artifact of one of " + ", ".join(f"{c.source} ({v})" for c, v in models),
                got=f"{key[1]} weights of {parent['file']}, sha256 {str(key[0])[:16]}...",
                next_step="choose the weights with --weights, or name the checkpoint it was made from",
            )
        by_parent[key].append(path)
    shapes = {checkpoint.model.image_shape for checkpoint in loaded}
    if len(shapes) > 1:
        raise UsageError(
            "the checkpoints take images of different shapes",
            expected="one image shape, since all are measured on the same draws",
            got=", ".join(str(list(shape)) for shape in sorted(shapes)),
        )
    channels, size, _ = shapes.pop()
    images = load_images(data, size=size, resize=resize, channels=channels)
    results = []
    for checkpoint, variant in models:
        stage = f"{checkpoint.source.name if checkpoint.source else ''} ({variant})"
        found = measure_flatness(
            checkpoint,
            images,
            settings,
            weights_variant=variant,
            artifacts=by_parent[checkpoint.digest, variant],
            progress=lambda _, done, total, stage=stage: progress(stage, done, total),  # type: ignore[misc]
        )
        results.append(found)
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps([result.model_dump(mode="json") for result in results], indent=1)
    for name, text in (("flatness.json", content + "\n"), ("flatness.md", to_markdown(results))):
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    save_plots(results, out)


def flatness_settings(given: Mapping[str, Any]) -> FlatnessSettings:
    """Settings from options; a `UsageError` names the one that is not valid."""
    try:
        return FlatnessSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"the flatness setting {first['loc'][0]} is not valid",
            expected=first["msg"],
            got=str(first["input"]),
        ) from error
