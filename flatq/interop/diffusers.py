"""Models of diffusers, in and out: a `UNet2DModel` with a `DDPMScheduler` or `DDIMScheduler`.

Here the parts are put together; finding them is `diffusers_source`'s work, the network `diffusers_unet`'s and
the process `diffusers_scheduler`'s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flatq.checkpoint import Checkpoint, file_digest
from flatq.errors import CheckpointError, UsageError
from flatq.files import check_free_folder, replacing
from flatq.interop.diffusers_scheduler import process_of_scheduler, scheduler_arguments
from flatq.interop.diffusers_source import DiffusersSource, locate, quiet_diffusers, read_json, scheduler_file
from flatq.interop.diffusers_unet import UnetConfig, read_unet_config, read_unet_weights, same_network
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.progress import Note
from flatq.version import __version__

__all__ = ["export_diffusers", "import_diffusers"]


def import_diffusers(
    source: str, *, ema: Path | None = None, scheduler: Path | None = None, note: Note
) -> Checkpoint:
    """Read a model of diffusers.

    Args:
        source: a `UNet2DModel`'s folder, a `DDPMPipeline`'s or `DDIMPipeline`'s folder, or a hub id.
        ema: the folder of a second `UNet2DModel` with averaged weights; by default the `unet_ema/` of a
            pipeline's folder, if it is the same network.
        scheduler: scheduler_config.json, or a folder with it, in place of the pipeline's. A bare UNet
            without one takes the defaults of `DDPMScheduler`.
        note: told in one line each what was taken, left aside or would sample differently.

    Returns:
        A checkpoint that is not saved yet, with raw and maybe ema weights. The network with these weights
        gives what diffusers' gives.

    Raises:
        CheckpointError: anything that flatq cannot read, or could not sample as diffusers does, by its name.
        MissingRuntimeError: diffusers is not installed.
    """
    import torch

    found = locate(source, note)
    config = read_unet_config(found.unet)
    model = config.model()
    process, scheduler_path = _process(found, scheduler, note)
    wanted = process.output_channels(model.image_channels)
    if model.out_channels != wanted:
        raise CheckpointError(
            f"the out_channels in {config.file} contradict the scheduler's variance_type",
            expected=f"{wanted} for {model.image_channels} image channels and {process.variance}",
            got=str(model.out_channels),
            next_step="give the scheduler that the model was trained with by --scheduler",
        )
    raw, unet_files = read_unet_weights(found.unet, note)
    weights: dict[str, dict[str, torch.Tensor]] = {"raw": raw}
    files = {f"unet/{file.name}": file for file in (config.file, *unet_files)}
    if scheduler_path is not None:
        files[f"scheduler/{scheduler_path.name}"] = scheduler_path
    if found.index is not None:
        files[found.index.name] = found.index
    average = _average(found, ema, config, note)
    if average is not None:
        weights["ema"], ema_files = read_unet_weights(average.file.parent, note)
        files |= {f"ema/{file.name}": file for file in (average.file, *ema_files)}
    with quiet_diffusers() as diffusers:
        versions = {"flatq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    given = "the model" if scheduler is None else "--scheduler"
    provenance = {
        "method": "imported",
        "source": {
            "kind": "diffusers",
            "name": found.name,
            "revision": found.revision,
            "pipeline": found.pipeline,
            "scheduler": str(read_json(scheduler_path)["_class_name"]) if scheduler_path else "DDPMScheduler",
            "scheduler_from": given if scheduler_path else "defaults",
            "written_by": config.version,
            "files": {name: file_digest(file) for name, file in files.items()},
        },
        "versions": {name: str(version) for name, version in versions.items()},
    }
    checkpoint = Checkpoint(model, process, weights, provenance, source=Path(source))
    # refuses what does not fit flatq's own network, and NaN
    fitting = {name: checkpoint.network(name).unet.state_dict() for name in weights}
    return replace(checkpoint, weights=fitting, source=None)


def _process(found: DiffusersSource, given: Path | None, note: Note) -> tuple[ProcessConfig, Path | None]:
    file = found.scheduler
    if given is not None:
        file = scheduler_file(given)
        if found.scheduler is not None:
            note(f"the scheduler is that of {file}, not the model's own")
    elif found.index is not None:
        file = scheduler_file(found.index.parent)
    if file is None:
        return process_of_scheduler(None, "", note), None
    content = read_json(file)
    if given is None and found.scheduler_class not in (None, content.get("_class_name")):
        raise CheckpointError(
            f"{found.name} contradicts itself about its scheduler",
            expected=f"{found.scheduler_class}, as model_index.json says",
            got=f"{content.get('_class_name')} in {file}",
            next_step="give the scheduler that the model was trained with by --scheduler",
        )
    return process_of_scheduler(content, str(file), note), file


def _average(found: DiffusersSource, given: Path | None, config: UnetConfig, note: Note) -> UnetConfig | None:
    """The averaged UNet: the one given has to be the same network; unet_ema is left aside if it is not."""
    folder = given or found.ema
    if folder is None:
        return None
    try:
        average = read_unet_config(folder)
        different = same_network(config, average)
        if different:
            raise CheckpointError(
                f"{folder} is another network than {found.unet}: other {', '.join(different)}",
                expected="the same config.json but for dropout",
                got="other " + ", ".join(different),
                next_step="name the average of this model with --ema, or leave it out",
            )
    except CheckpointError as error:
        if given is not None:
            raise
        note(f"unet_ema is left aside: {error.what}")
        return None
    if given is None:
        note("ema weights from unet_ema, beside the unet")
    elif found.ema is not None:
        note(f"ema weights from {given}; the model's own unet_ema is left aside")
    return average


def export_diffusers(checkpoint: Checkpoint, folder: Path, *, average: str | None = None, note: Note) -> None:
    """Write a folder that `DDPMPipeline.from_pretrained` loads, under a temporary name first.

    Args:
        average: the weights to write; None as in `Checkpoint.choose`.

    Raises:
        UsageError: the folder exists and is not empty, the network is one that `UNet2DModel` has no
            arguments for, or the checkpoint does not hold the weights.
        CheckpointError: the weights do not fit the configuration or are not finite.
        MissingRuntimeError: diffusers is not installed.
    """
    model = checkpoint.model
    for field, why in (
        ("patch_size", "it takes the image as it is, not folded into patches"),
        ("attention_heads", "its heads follow from one attention_head_dim"),
        ("timestep_channels", "its sinusoids are as wide as the first level"),
        ("timestep_scale", "it is given the timestep as it is"),
    ):
        value, plain = getattr(model, field), ModelConfig.model_fields[field].default
        if value != plain:
            raise UsageError(
                "a UNet2DModel of diffusers cannot be this network",
                expected=f"{field} {plain}: {why}",
                got=f"{field} {value}",
                next_step="keep the checkpoint, or train a network without it",
            )
    name = checkpoint.choose(average)
    check_free_folder(folder)
    arguments = scheduler_arguments(checkpoint.process, note)
    if model.classes is not None:
        note(
            f"{model.num_classes} classes: DDPMPipeline passes no labels, so call the UNet with class_labels "
            "yourself"
        )
        if model.null_label is not None:
            note(f"null label {model.null_label}: diffusers has no setting that holds it, so keep it in mind")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial, quiet_diffusers() as diffusers:
        scheduler = diffusers.DDPMScheduler(**arguments)
        pipeline = diffusers.DDPMPipeline(unet=checkpoint.network(name).unet, scheduler=scheduler)
        pipeline.save_pretrained(partial)
