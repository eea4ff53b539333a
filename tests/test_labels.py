"""Labels of image indices, guidance, and what a network with classes refuses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from toy_runtime import Toy

from flatq.errors import UsageError
from flatq.labels import Classes
from flatq.process import ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings

SHAPE = (3, 4, 4)
CONFIG = ProcessConfig(schedule="cosine")
CLASSES = Classes(count=4, null=1)


class Labelled(Toy):
    """Its output depends on the label; every call is kept."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__(channels)
        self.labels: list[list[int]] = []

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        self.labels.append(cond["label"].tolist())
        return super().__call__(x, t) * (1 + cond["label"].astype(np.float32))[:, None, None, None]


def test_classes_take_turns_by_index_without_the_null_label() -> None:
    assert CLASSES.assign(range(7)).tolist() == [0, 2, 3, 0, 2, 3, 0]
    assert CLASSES.assign([2**63 + 1]).tolist() == CLASSES.assign([(2**63 + 1) % 3]).tolist()
    assert Classes(count=3).assign(range(4)).tolist() == [0, 1, 2, 0]
    assert CLASSES.assign(range(3), 1).tolist() == [1, 1, 1]
    assert "modulo 3 " in CLASSES.describe()
    assert CLASSES.assign(range(2)).dtype == np.int64


@pytest.mark.parametrize("fields", [{"count": 0}, {"count": 3, "null": 3}, {"count": 1, "null": 0}])
def test_classes_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Classes(**fields)


def test_an_image_keeps_its_label_in_any_batch() -> None:
    settings = SamplingSettings(steps=2)
    together = sample(Labelled(), CONFIG, settings, range(5), SHAPE, classes=CLASSES)
    apart = sample(Labelled(), CONFIG, settings, range(5), SHAPE, classes=CLASSES, batch_size=2)
    np.testing.assert_array_equal(together, apart)


def test_guidance_is_the_formula_and_1_costs_nothing() -> None:
    plain = Labelled()
    sample(plain, CONFIG, SamplingSettings(steps=3), range(2), SHAPE, classes=CLASSES)
    assert plain.labels == [[0, 2]] * 3

    class Guided(Labelled):
        """What guidance 2.5 gives, in one call."""

        def __call__(
            self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
        ) -> NDArray[np.float32]:
            null = super().__call__(x, t, {"label": np.ones_like(cond["label"])})
            return null + np.float32(2.5) * (super().__call__(x, t, cond) - null)

    settings = SamplingSettings(steps=3, guidance=2.5)
    guided = Labelled()
    images = sample(guided, CONFIG, settings, range(2), SHAPE, classes=CLASSES)
    assert guided.labels == [[0, 2], [1, 1]] * 3
    expected = sample(Guided(), CONFIG, SamplingSettings(steps=3), range(2), SHAPE, classes=CLASSES)
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_guidance_leaves_a_learned_variance_to_the_label() -> None:
    learned = ProcessConfig(schedule="cosine", variance="learned_range")

    class Split(Labelled):
        """Noise 0 for every label, variance values that depend on it."""

        def __call__(
            self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
        ) -> NDArray[np.float32]:
            output = super().__call__(x, t, cond)
            output[:, :3] = 0
            return output

    one = sample(Split(6), learned, SamplingSettings(steps=3), range(3), SHAPE, classes=CLASSES)
    guided = sample(
        Split(6), learned, SamplingSettings(steps=3, guidance=4), range(3), SHAPE, classes=CLASSES
    )
    np.testing.assert_array_equal(one, guided)


@pytest.mark.parametrize(
    ("settings", "classes", "message"),
    [
        (SamplingSettings(label=4), CLASSES, "out of range"),
        (SamplingSettings(label=0), None, "takes no labels"),
        (SamplingSettings(guidance=2), None, "takes no labels"),
        (SamplingSettings(guidance=2), Classes(count=4), "no null label"),
    ],
)
def test_labels_that_the_network_does_not_have(
    settings: SamplingSettings, classes: Classes | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        sample(Labelled(), CONFIG, settings, range(2), SHAPE, classes=classes)
    assert caught.value.next_step
