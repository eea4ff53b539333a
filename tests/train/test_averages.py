"""EMA, Switch EMA and SWA against their closed forms, alone and inside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flatq.checkpoint import load_checkpoint
from flatq.train import TrainConfig
from flatq.train.averages import Averages, Ema, Swa
from flatq.train.distributed import Workers
from flatq.train.loop import Trainer

VALUES = [2.0, -3.0, 5.0, 7.0, 0.5]


def _model() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    return model


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_closed_form(warmup: bool) -> None:
    model = _model()
    ema = Ema(model, 0.25, warmup=warmup)
    decays = [min(0.25, (1 + n) / (10 + n)) if warmup else 0.25 for n in range(1, len(VALUES) + 1)]
    expected = 1.0
    for w, d in zip(VALUES, decays, strict=True):
        nn.init.constant_(model.weight, w)
        ema.update()
        expected = d * expected + (1 - d) * w
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-12)


def test_swa_is_the_mean_however_many_weights_went_in() -> None:
    # a float32 running mean would drift over so many weights
    torch.manual_seed(0)
    model = nn.Linear(50, 1, bias=False)
    swa = Swa(model)
    assert swa.average() == {}
    shown = []
    for _ in range(500):
        nn.init.normal_(model.weight, mean=1.0)
        shown.append(model.weight.detach().double())
        swa.update()
    expected = torch.stack(shown).mean(0).float()
    found = swa.average()["weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1.2e-7, atol=0)  # a unit in the last place


def test_switching_copies_the_average_into_the_weights() -> None:
    model = _model()
    config = TrainConfig(data="x", ema_decays=(0.5,), ema_warmup=False, switch_ema=2)
    averages = Averages(model, config)
    ema, w = 1.0, 1.0
    for step, change in enumerate(VALUES, start=1):
        w += change
        with torch.no_grad():
            model.weight += change
        averages.update(step, epoch_ended=True)
        ema = 0.5 * ema + 0.5 * w
        if step % 2 == 0:
            w = ema
        assert model.weight.item() == pytest.approx(w, rel=1e-12)
        assert averages.weights()["ema"]["weight"].item() == pytest.approx(ema, rel=1e-12)


def test_switching_at_the_end_of_an_epoch() -> None:
    model = _model()
    averages = Averages(model, TrainConfig(data="x", ema_decays=(0.5,), switch_ema="epoch"))
    nn.init.constant_(model.weight, 3.0)
    averages.update(1, epoch_ended=False)
    assert model.weight.item() == 3.0
    averages.update(2, epoch_ended=True)
    assert model.weight.item() == averages.weights()["ema"]["weight"].item() != 3.0


@pytest.mark.parametrize("method", ["adm", "sam"])
def test_averages_in_a_run_take_the_unperturbed_weights(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": method, "rho": 5.0}
    config = TrainConfig(
        data="digits:train", steps=9, batch_size=4, channels=(8, 16), patch_size=2, threads=1,
        ema_decays=(0.5, 0.9), swa_start=4, swa_period=2, **options,
    )  # fmt: skip
    trainer = Trainer(config, tmp_path, Workers(torch.device("cpu")))

    def weights() -> dict[str, torch.Tensor]:
        return {n: v.detach().double() for n, v in trainer.network.unet.state_dict().items()}

    history = [weights()]
    for _ in range(config.steps):
        trainer.advance()
        history.append(weights())
    trainer.run()
    held = load_checkpoint(tmp_path / "ckpt.pt").weights
    assert list(held) == ["ema", "raw", "swa", "ema_0.9"]
    for name in history[0]:
        for average, decay in (("ema", 0.5), ("ema_0.9", 0.9)):
            expected = history[0][name]
            for n, taken in enumerate(history[1:], start=1):
                d = min(decay, (1 + n) / (10 + n))
                expected = d * expected + (1 - d) * taken[name]
            torch.testing.assert_close(held[average][name].double(), expected, rtol=1e-5, atol=1e-7)
        swa = torch.stack([history[step][name] for step in (4, 6, 8)]).mean(0)
        torch.testing.assert_close(held["swa"][name].double(), swa, rtol=1e-7, atol=1e-9)
        assert torch.equal(held["raw"][name].double(), history[-1][name])


def test_further_averages_open_by_name(tmp_path: Path) -> None:
    config = TrainConfig(
        data="digits:train", steps=1, batch_size=4, channels=(8, 16), patch_size=2, ema_decays=(0.5, 0.9)
    )
    Trainer(config, tmp_path, Workers(torch.device("cpu"))).run()
    checkpoint = load_checkpoint(tmp_path / "ckpt.pt")
    assert checkpoint.choose() == "ema"
    checkpoint.network("ema_0.9")
