"""How many steps the demo trains: what the machine does in the time, within bounds, in whole checkpoints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3_trainer.demo.settings import CHECKPOINTS, FEWEST_STEPS, MOST_STEPS, checkpoint_every, steps_for


@given(st.floats(0, 100), st.floats(1, 1_000))
def test_steps_are_bounded_and_end_with_a_checkpoint(step_s, train_s):
    steps = steps_for(step_s, train_s)
    assert FEWEST_STEPS - CHECKPOINTS < steps <= MOST_STEPS
    assert steps == checkpoint_every(steps) * CHECKPOINTS


@pytest.mark.parametrize(("step_s", "steps"), [(0.33, 390), (0.1, 1296), (30.0, 60), (1e-4, 6000)])
def test_steps_fill_the_time(step_s, steps):
    assert steps_for(step_s, 130.0) == steps
