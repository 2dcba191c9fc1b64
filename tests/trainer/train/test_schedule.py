"""The learning rate's corners, and that it never jumps up after warm-up."""

import itertools

import pytest

from fs3_trainer.train.config import TrainConfig
from fs3_trainer.train.schedule import learning_rate, mtp_weight


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warm_up_peak_and_end(schedule):
    config = TrainConfig(schedule=schedule, peak_lr=1.0, warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))


def test_wsd_stays_until_its_last_part():
    config = TrainConfig(schedule="wsd", peak_lr=1.0, warmup_steps=0, decay_fraction=0.25, final_lr_fraction=0.0)
    assert learning_rate(config, 74, 100) == 1.0
    assert learning_rate(config, 87, 100) == pytest.approx(0.48)


def test_runs_shorter_than_the_warm_up_only_warm_up():
    config = TrainConfig(peak_lr=1.0, warmup_steps=10)
    assert [learning_rate(config, step, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_the_mtp_weight_falls_late():
    config = TrainConfig(mtp_weight=0.3, mtp_weight_late=0.1, mtp_late_from=0.5)
    assert [mtp_weight(config, step, 4) for step in range(4)] == [0.3, 0.3, 0.1, 0.1]
