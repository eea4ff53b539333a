"""What a training step costs: SAM against ADM, averages, and the loop against bare torch.

Every variant is a run of its own with the same preset. They take turns, one step each in a random order, so
that whatever else the machine does falls on all of them alike; ratios are taken within a round (over five
rounds for what comes at every fifth step). Times are wall and CPU time of this process.

    python benchmarks/train.py [--preset cifar10-small] [--data PATH] [--rounds 40] [--threads 1] [-o FILE]

Without --data the images are random: a step costs the same on any. The targets below hold for the preset
cifar10-small.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import mark, write_json

from flatq.train.configure import parse_settings, read_preset, resolve
from flatq.train.distributed import open_workers
from flatq.train.loop import Trainer

__all__ = ["main", "measure"]

TARGETS = {
    "sam / adm": 2.05,
    "sam_every_5 / adm": 1.25,
    "averages / adm": 0.03,
    "adm / bare": 1.05,
    "adm_without_averages / bare": 1.05,
}
"""What the ratios should stay below."""

VARIANTS: dict[str, dict[str, Any]] = {
    "bare": {},
    "adm_without_averages": {"ema_decays": [], "swa_start": "none"},
    "adm": {"swa_start": 1, "swa_period": 5},
    "sam": {"method": "sam", "swa_start": 1, "swa_period": 5},
    "sam_every_5": {"method": "sam", "sam_every": 5, "swa_start": 1, "swa_period": 5},
}
"""SWA takes the weights at every fifth step, many times as often as in a preset."""

_WINDOWS = {"sam_every_5 / adm": 5, "averages / adm": 5}


def measure(
    preset: str, data: str, rounds: int, settings: dict[str, Any], note: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of each variant's steps, of its averages alone, and the ratios.

    Args:
        rounds: measured, after five that are not; a multiple of five.
        settings: on top of the preset.
    """
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in (*VARIANTS, "averages")} for clock in ("wall", "cpu")
    }
    base = {"data": data, "save_minutes": "none", "grid_every": "none", "tensorboard": False}
    configs = {
        name: resolve(("preset", read_preset(preset)), ("benchmark", base | settings | change))
        for name, change in VARIANTS.items()
    }
    with open_workers(configs["adm"].device) as workers, tempfile.TemporaryDirectory() as folder:
        runs = {name: Trainer(config, Path(folder), workers) for name, config in configs.items()}
        steps: dict[str, Callable[[], Any]] = {name: run.advance for name, run in runs.items()}
        steps["bare"] = _bare_step(runs["bare"])
        timed = _Clock(workers.device)
        averages = runs["adm"].averages
        update, spent = averages.update, [0.0, 0.0]

        def timed_update(step: int, *, epoch_ended: bool) -> None:
            spent[:] = timed(lambda: update(step, epoch_ended=epoch_ended))

        averages.update = timed_update  # type: ignore[method-assign]
        order = random.Random(0)
        names = list(VARIANTS)
        for number in range(-5, rounds):
            order.shuffle(names)
            for name in names:
                found = timed(steps[name])
                for clock, value in zip(seconds, found, strict=True):
                    if number >= 0:
                        seconds[clock][name].append(value)
            if number >= 0:
                for clock, value in zip(seconds, spent, strict=True):
                    seconds[clock]["averages"].append(value)
            note(f"round {number + 1}/{rounds}")
    ratios = {
        clock: {
            ratio: _ratio(
                *(by_name[part] for part in ratio.split(" / ")), window=5 if "every" in ratio else 1
            )
            for ratio in TARGETS
        }
        for clock, by_name in seconds.items()
    }
    times = {
        f"{clock}_ms": {
            name: {"median": 1e3 * float(np.median(v)), "p90": 1e3 * float(np.quantile(v, 0.9))}
            for name, v in by_name.items()
        }
        for clock, by_name in seconds.items()
    }
    config = configs["adm"].model_dump(mode="json", exclude={"data"})
    return {"ratios": ratios, "targets": TARGETS, **times, "config": config}


def _bare_step(run: Trainer) -> Callable[[], None]:
    """Forward, backward and the optimizer's step on one batch that is already there, with the same loss."""
    batch = run.batches.draw(run.timesteps).part(0, 1, run.workers.device)

    def step() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        losses = run.objective(run.network, batch.x0, batch.t, batch.noise)
        losses.total.mean().backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()

    return step


class _Clock:
    """Times one call: (wall, CPU) seconds, with what it left on the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __call__(self, work: Callable[[], Any]) -> tuple[float, float]:
        if self._cuda:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu


def _ratio(above: list[float], below: list[float], *, window: int) -> dict[str, float]:
    """Median, quartiles and p90 of the ratios of sums over `window` rounds."""
    sums = [np.reshape(values, (-1, window)).sum(1) for values in (above, below)]
    values = sums[0] / sums[1]
    return {
        "median": float(np.median(values)),
        "low_quartile": float(np.quantile(values, 0.25)),
        "high_quartile": float(np.quantile(values, 0.75)),
        "p90": float(np.quantile(values, 0.9)),
    }


def main() -> None:
    """Measure, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--data", help="images; random ones by default")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    if options.rounds < 5 or options.rounds % 5:
        parser.error("--rounds must be a multiple of 5")
    torch.set_num_threads(options.threads)
    before = mark()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if data is None:
            preset = read_preset(options.preset)
            shape = (1024, preset["size"], preset["size"], preset["image_channels"])
            data = str(Path(folder) / "random.npz")
            np.savez(data, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        settings = parse_settings(options.set)
        result = measure(
            options.preset, data, options.rounds, settings, lambda text: print(text, end="\r", flush=True)
        )
    result = {
        "preset": options.preset,
        "settings": settings,
        "rounds": options.rounds,
        "data": "random" if options.data is None else Path(options.data).name,
        **before,
        "threads": options.threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_after": os.getloadavg(),
        **result,
    }
    for clock in ("wall", "cpu"):
        for name, found in result["ratios"][clock].items():
            print(
                f"{clock:5} {name:30} {found['median']:.3f} (quartiles {found['low_quartile']:.3f} to "
                f"{found['high_quartile']:.3f}, p90 {found['p90']:.3f}; target at most {TARGETS[name]})"
            )
    for clock in ("wall", "cpu"):
        for name, found in result[f"{clock}_ms"].items():
            print(f"{clock:5} {name:30} {found['median']:.1f} ms, p90 {found['p90']:.1f} ms")
    write_json(options.out, result)


if __name__ == "__main__":
    main()
