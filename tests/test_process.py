from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from flatq.errors import ModelError, UsageError
from flatq.process import Prediction, Process, ProcessConfig
from flatq.samplers import SAMPLERS
from flatq.schedule import beta_schedule, space_timesteps

LEARNED = ProcessConfig(schedule="cosine", variance="learned_range")
FIXED = ProcessConfig(schedule="cosine")
LINEAR = ProcessConfig(schedule="linear")

# The trajectories of data/guided_diffusion.npz: name, configuration, steps, eta (None: ancestral).
CASES = [
    ("p20_rand", LEARNED, 20, None),
    ("p20_toy", LEARNED, "20", None),
    ("p100_rand", LEARNED, 100, None),
    ("p100_toy", LEARNED, 100, None),
    ("p_on_ddim20_toy", LEARNED, "ddim20", None),
    ("fixed20_cosine_toy", FIXED, 20, None),
    ("fixed20_linear_toy", LINEAR, 20, None),
    ("ddim20_eta0_rand", LEARNED, "ddim20", 0.0),
    ("ddim20_eta0_toy", LEARNED, "ddim20", 0.0),
    ("ddim20_eta1_rand", LEARNED, "ddim20", 1.0),
    ("ddim20_eta1_toy", LEARNED, "ddim20", 1.0),
    ("ddim_on_respacing20_eta0_rand", LEARNED, 20, 0.0),
    ("ddim_on_respacing20_eta0_toy", LEARNED, 20, 0.0),
]

FloatArray = npt.NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(Path(__file__).parent / "data" / "guided_diffusion.npz") as stored:
        return dict(stored)


def one_step(process: Process, x: FloatArray, out: FloatArray, i: int, eta: float | None, noise: Any) -> Any:
    """x_{i-1}: the sampler's first step over a process that is cut to the timesteps up to i."""
    visited: list[Any] = []

    def denoise(x: FloatArray, at: int) -> Prediction:
        visited.append(x)
        return process.predict(out, x, at)

    kept = Process(process.config, process.timesteps[: i + 1], process.betas[: i + 1])
    sampler = SAMPLERS["ancestral" if eta is None else "ddim"]
    last = sampler.sample(denoise, x, kept, lambda draw: noise, eta or 0.0)
    return [*visited, last][1]


def images(seed: int, shape: tuple[int, ...] = (2, 3, 4, 4)) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- against the original code -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "steps", "eta"), CASES, ids=[case[0] for case in CASES])
def test_original_trajectories(
    vectors: dict[str, np.ndarray[Any, Any]],
    name: str,
    config: ProcessConfig,
    steps: int | str,
    eta: float | None,
) -> None:
    process = Process.from_config(config, steps)
    np.testing.assert_array_equal(process.timesteps[::-1], vectors[f"{name}_timesteps"])
    model_out, noise = vectors[f"{name}_model_out"], vectors[f"{name}_noise"]
    x, pred_xstart = vectors[f"{name}_x"], vectors[f"{name}_pred_xstart"]
    seen: list[FloatArray] = []

    def denoise(x_i: FloatArray, i: int) -> Prediction:
        call = len(seen)
        seen.append(x_i)
        predicted = process.predict(model_out[call], x[call], i)
        np.testing.assert_allclose(predicted.x0, pred_xstart[call], rtol=0, atol=1e-5)
        x_prev = one_step(process, x[call], model_out[call], i, eta, noise[call])
        assert x_prev.dtype == predicted.x0.dtype == np.float32
        np.testing.assert_allclose(x_prev, x[call + 1], rtol=0, atol=1e-5)
        return process.predict(model_out[call], x_i, i)

    sampler = SAMPLERS["ancestral" if eta is None else "ddim"]
    last = sampler.sample(denoise, x[0], process, lambda draw: noise[draw - 1], eta or 0.0)
    # |x| reaches 4.4; with model_out held fixed, unclipped entries amplify each step's rounding.
    np.testing.assert_allclose(np.stack([*seen, last]), x, rtol=1e-5, atol=1e-5)
    assert len(seen) == sampler.evaluations(process.steps)


def test_torch_tensors_are_sampled_as_numpy_arrays_are() -> None:
    process = Process.from_config(LEARNED, 7)
    x, noise = images(0).astype(np.float32), images(1).astype(np.float32)

    for name, sampler in SAMPLERS.items():
        arrays = sampler.sample(
            lambda x, i: process.predict(np.concatenate([x, 0.1 * x], 1), x, i), x, process,
            lambda draw: noise * np.float32(draw), 0.5,
        )  # fmt: skip
        tensors = sampler.sample(
            lambda x, i: process.predict(torch.cat([x, 0.1 * x], 1), x, i), torch.from_numpy(x), process,
            lambda draw: torch.from_numpy(noise) * draw, 0.5,
        )  # fmt: skip
        assert tensors.dtype == torch.float32
        np.testing.assert_allclose(tensors.numpy(), arrays, rtol=1e-5, atol=1e-6, err_msg=name)


# --- the schedules and respacing ----------------------------------------------------------------------------


def test_cosine_betas_are_eq_17() -> None:
    betas = beta_schedule("cosine", 1000)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    # eq. 17 wherever no beta is clipped; only the last is (f is 0 there)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], (f / f[0])[1:-1], rtol=1e-9)
    assert betas[-1] == 0.999
    assert betas[-2] < 0.999


@pytest.mark.parametrize("train_steps", [21, 100, 1000, 4000])
def test_linear_betas_scale_with_the_steps(train_steps: int) -> None:
    betas = beta_schedule("linear", train_steps)
    assert betas.shape == (train_steps,)
    np.testing.assert_allclose([betas[0], betas[-1]], [0.1 / train_steps, 20 / train_steps], rtol=1e-12)
    np.testing.assert_allclose(np.diff(betas), np.diff(betas)[0], rtol=1e-9)


def test_alphas_cumprod_is_the_product() -> None:
    process = Process.from_config(LINEAR)
    np.testing.assert_array_equal(process.timesteps, np.arange(1000))
    for i in (0, 1, 500, 999):
        product = math.prod(1 - (1e-4 + j * (0.02 - 1e-4) / 999) for j in range(i + 1))
        assert process.alphas_cumprod[i] == pytest.approx(product, rel=1e-10)
    assert process.alphas_cumprod_prev[0] == 1
    np.testing.assert_array_equal(process.alphas_cumprod_prev[1:], process.alphas_cumprod[:-1])


@pytest.mark.parametrize("config", [LINEAR, FIXED, LEARNED], ids=["linear", "cosine", "learned"])
@pytest.mark.parametrize("steps", [1, 2, 7, 33, 999, 1000, None, "10,15,20", "ddim2", "ddim100"])
def test_any_number_of_steps(config: ProcessConfig, steps: int | str | None) -> None:
    process = Process.from_config(config, steps)
    kept = process.timesteps
    assert kept.dtype == np.int64
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0
    assert kept[-1] <= 999
    if isinstance(steps, int):
        assert process.steps == steps
    full = np.cumprod(1 - beta_schedule(config.schedule, 1000))
    # absolute 1e-15: beta near 1 leaves alpha = 1 - beta few digits at the noisy end of the cosine
    np.testing.assert_allclose(process.alphas_cumprod, full[kept], rtol=1e-9, atol=1e-15)
    for table in (
        process.betas,
        process.alphas_cumprod,
        process.posterior_variance,
        process.posterior_mean_coef1,
        process.posterior_mean_coef2,
        process.posterior_log_variance_clipped,
        process.fixed_large_log_variance,
    ):
        assert table.shape == (process.steps,)
        assert table.dtype == np.float64
        assert np.all(np.isfinite(table))
        assert not table.flags.writeable
    x = images(0).astype(np.float32)
    out = images(1, (2, config.output_channels(3), 4, 4)).astype(np.float32)
    for i in {0, process.steps // 2, process.steps - 1}:
        noise = images(2).astype(np.float32)
        assert np.abs(process.predict(out, x, i).x0).max() <= 1
        for eta in (None, 0.0, 1.0):
            x_prev = one_step(process, x, out, i, eta, noise)
            assert x_prev.shape == x.shape
            assert x_prev.dtype == np.float32
            assert np.all(np.isfinite(x_prev))


def test_every_count_is_spread_over_the_whole_range() -> None:
    for train_steps in (1, 2, 50, 1000):
        for steps in range(1, train_steps + 1):
            kept = space_timesteps(train_steps, steps)
            assert len(kept) == steps
            assert kept[0] == 0
            assert np.all(np.diff(kept) > 0)
            if steps > 1:
                assert kept[-1] == train_steps - 1
                # within one of the ideal grid: half for the rounding, the rest for the summed stride
                assert np.abs(kept - np.linspace(0, train_steps - 1, steps)).max() < 0.5 + 1e-6


def test_sections_and_strides() -> None:
    # The example of the original docstring: 300 steps, sections of 100, of which 10, 15 and 20 are kept.
    kept = space_timesteps(300, "10,15,20")
    assert [int(np.sum((kept >= low) & (kept < low + 100))) for low in (0, 100, 200)] == [10, 15, 20]
    np.testing.assert_array_equal(kept[:10], np.arange(0, 100, 11))
    np.testing.assert_array_equal(space_timesteps(1000, "ddim20"), np.arange(0, 1000, 50))


@pytest.mark.parametrize("steps", [0, -3, 1001, "0", "1001", "600,10"])
def test_count_out_of_range(steps: int | str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Process.from_config(FIXED, steps)


@pytest.mark.parametrize("steps", ["", "twenty", "ddim", "20,", "2.5", "ddim-4", "-3"])
def test_spec_that_cannot_be_read(steps: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Process.from_config(FIXED, steps)


def test_ddim_count_without_a_stride_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="no integer stride") as caught:
        Process.from_config(FIXED, "ddim60")
    assert caught.value.expected is not None
    for name in ("ddim59", "ddim63"):
        assert name in caught.value.expected
        assert len(space_timesteps(1000, name)) == int(name[4:])


def test_linear_with_too_few_training_steps() -> None:
    with pytest.raises(UsageError, match="linear schedule"):
        Process.from_config(ProcessConfig(schedule="linear", train_steps=20))


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine", "steps": 20},
        {"schedule": "sqrt"},
        {"schedule": "table"},
        {"schedule": "cosine", "betas": [0.1]},
        {"schedule": "table", "train_steps": 2, "betas": [0.1, 1.0]},
        {"schedule": "cosine", "clip_range": 0},
        {"schedule": "cosine", "train_steps": 0},
        {"schedule": "cosine", "variance": "fixed"},
        {},
    ],
)
def test_config_is_strict(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProcessConfig(**fields)


# --- the formulas, in float64 against independent ones ------------------------------------------------------


@pytest.mark.parametrize("steps", [20, 1000])
def test_posterior_by_bayes(steps: int) -> None:
    """q(x_{i-1} | x_i, x_0) as the product of the Gaussians q(x_i | x_{i-1}) and q(x_{i-1} | x_0)."""
    process = Process.from_config(LINEAR, steps)
    x, x0 = 0.7, -0.3
    for i in range(1, steps):
        beta, prior_variance = process.betas[i], 1 - process.alphas_cumprod[i - 1]
        precision = (1 - beta) / beta + 1 / prior_variance
        mean = (
            math.sqrt(1 - beta) / beta * x + math.sqrt(process.alphas_cumprod[i - 1]) / prior_variance * x0
        ) / precision
        assert process.posterior_variance[i] == pytest.approx(1 / precision, rel=1e-9)
        ours = process.posterior_mean_coef1[i] * x0 + process.posterior_mean_coef2[i] * x
        assert ours == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert process.posterior_variance[0] == 0


def test_variances() -> None:
    process = Process.from_config(FIXED, 20)
    np.testing.assert_allclose(np.exp(process.fixed_large_log_variance[1:]), process.betas[1:])
    assert process.fixed_large_log_variance[0] == pytest.approx(math.log(process.posterior_variance[1]))
    learned = Process.from_config(LEARNED, 20)
    x = images(0)
    for v, table in ((-1.0, learned.posterior_log_variance_clipped), (1.0, np.log(learned.betas))):
        out = np.concatenate([images(1), np.full_like(x, v)], axis=1)
        for i in (0, 7, 19):
            found = learned.predict(out, x, i).log_variance
            np.testing.assert_allclose(found, np.full_like(x, table[i]), rtol=1e-12)


def test_one_step() -> None:
    process = Process.from_config(FIXED, 1)
    assert process.timesteps.tolist() == [0]
    assert process.fixed_large_log_variance[0] == pytest.approx(math.log(process.betas[0]))
    assert process.posterior_log_variance_clipped[0] == process.fixed_large_log_variance[0]
    assert process.posterior_mean_coef1[0] == pytest.approx(1)
    assert process.posterior_mean_coef2[0] == 0


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_predict_inverts_add_noise(variance: Literal["fixed_large", "learned_range"]) -> None:
    process = Process.from_config(ProcessConfig(schedule="linear", variance=variance), 50)
    x0, noise = np.clip(images(0, (3, 2, 4, 4)), -0.9, 0.9), images(1, (3, 2, 4, 4))
    i = np.array([0, 20, 49])
    x = process.add_noise(x0, noise, i)
    for n in range(3):
        a = process.alphas_cumprod[i[n]]
        np.testing.assert_allclose(x[n], math.sqrt(a) * x0[n] + math.sqrt(1 - a) * noise[n], rtol=1e-12)
        np.testing.assert_array_equal(process.add_noise(x0[n : n + 1], noise[n : n + 1], int(i[n]))[0], x[n])
    out = noise if variance == "fixed_large" else np.concatenate([noise, noise], axis=1)
    for clip in (False, True):
        pred_x0 = process.predict(out, x, i, clip).x0
        np.testing.assert_allclose(pred_x0, x0, rtol=0, atol=1e-10)
        np.testing.assert_allclose(process.epsilon(pred_x0, x, i), noise, rtol=0, atol=1e-9)


def test_clipping_carries_over_to_eps() -> None:
    process = Process.from_config(FIXED, 20)
    x, out = 3 * images(0), images(1)
    free, pred_x0 = (process.predict(out, x, 15, clip).x0 for clip in (False, True))
    eps = process.epsilon(pred_x0, x, 15)
    assert np.abs(free).max() > 1
    np.testing.assert_array_equal(pred_x0, np.clip(free, -1, 1))
    np.testing.assert_allclose(process.add_noise(pred_x0, eps, 15), x, rtol=1e-10)


@pytest.mark.parametrize("i", [1, 10, 19])
def test_ddim_with_eta_1_is_the_posterior(i: int) -> None:
    """Song et al. 2021, section 4.1: at eta = 1, DDIM is DDPM with variance beta-tilde."""
    process = Process.from_config(FIXED, 20)
    x, out, noise = images(0), images(1), images(2)
    zero = np.zeros_like(x)
    mean = one_step(process, x, out, i, 1.0, zero)
    posterior_mean = process.posterior_mean(process.predict(out, x, i).x0, x, i)
    np.testing.assert_allclose(mean, posterior_mean, rtol=0, atol=1e-10)
    sampled = one_step(process, x, out, i, 1.0, noise)
    np.testing.assert_allclose(
        sampled - mean, math.sqrt(process.posterior_variance[i]) * noise, rtol=0, atol=1e-12
    )
    # the variance scales with eta**2, and the marginal of x_{i-1} keeps its variance
    half, half_mean = (one_step(process, x, out, i, 0.5, drawn) for drawn in (noise, zero))
    np.testing.assert_allclose(half - half_mean, (sampled - mean) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("i", [0, 1, 12])
def test_ddim_with_eta_0_moves_along_one_noise(i: int) -> None:
    process = Process.from_config(FIXED, 20)
    x0, noise = np.clip(images(0), -0.9, 0.9), images(1)
    x_prev = one_step(process, process.add_noise(x0, noise, i), noise, i, 0.0, None)
    expected = process.add_noise(x0, noise, i - 1) if i > 0 else x0
    np.testing.assert_allclose(x_prev, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [None, 0.0])
def test_the_last_step_gives_pred_x0(eta: float | None) -> None:
    process = Process.from_config(FIXED, 20)
    x_prev = one_step(process, images(0), images(1), 0, eta, images(2))
    pred_x0 = process.predict(images(1), images(0), 0).x0
    np.testing.assert_allclose(x_prev, pred_x0, rtol=1e-12, atol=1e-12)


def test_ancestral_noise() -> None:
    process = Process.from_config(FIXED, 20)
    x, out, noise = images(0), images(1), images(2)
    sampled, mean = (one_step(process, x, out, 9, None, drawn) for drawn in (noise, np.zeros_like(x)))
    np.testing.assert_allclose(sampled - mean, math.sqrt(process.betas[9]) * noise, rtol=0, atol=1e-12)


def test_results_do_not_depend_on_the_batch() -> None:
    process = Process.from_config(LEARNED, 20)
    x = images(0).astype(np.float32)
    out, noise = images(1, (2, 6, 4, 4)).astype(np.float32), images(2).astype(np.float32)
    together = one_step(process, x, out, 5, None, noise)
    alone = [one_step(process, x[n : n + 1], out[n : n + 1], 5, None, noise[n : n + 1]) for n in (0, 1)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_half_precision_outputs_are_taken() -> None:
    process = Process.from_config(FIXED, 20)
    x, out = images(0).astype(np.float32), images(1).astype(np.float16)
    pred_x0 = process.predict(out, x, 5).x0
    assert pred_x0.dtype == np.float32
    np.testing.assert_array_equal(pred_x0, process.predict(out.astype(np.float32), x, 5).x0)


# --- refusals ----------------------------------------------------------------------------------------------


def test_output_channels() -> None:
    assert FIXED.output_channels(3) == 3
    assert LEARNED.output_channels(1) == 2


@pytest.mark.parametrize(("config", "channels"), [(FIXED, 6), (LEARNED, 3), (LEARNED, 5)])
def test_model_output_must_fit(config: ProcessConfig, channels: int) -> None:
    process = Process.from_config(config, 20)
    with pytest.raises(ModelError, match="does not fit") as caught:
        process.predict(images(1, (2, channels, 4, 4)), images(0), 0)
    assert str([2, config.output_channels(3), 4, 4]) in str(caught.value.expected)
    assert str([2, channels, 4, 4]) in str(caught.value.got)
