"""The step log: read while it grows, attempts told apart, equality of what ran twice to the bit."""

import dataclasses
import json

from fs3_trainer.demo.step_log import StepLog, ran_twice

LINE = {
    "step": 1,
    "loss": 8.25,
    "mtp_loss": None,
    "lr": 0.1,
    "grad_norm": 2.0,
    "tokens": 64,
    "step_s": 0.5,
    "data_wait_s": 0.25,
    "expert_load_max_over_mean": None,
    "time": 1.0,
}


def line(step: int) -> bytes:
    return json.dumps(LINE | {"step": step}).encode() + b"\n"


def test_a_line_counts_when_it_is_whole(tmp_path):
    log = StepLog(tmp_path / "metrics.jsonl")
    log.look()
    assert log.last is None
    text = line(1) + line(2)
    seen = []
    with log.path.open("ab", buffering=0) as file:
        for i in range(len(text)):
            file.write(text[i : i + 1])
            log.look()
            seen.append(len(log.all_steps))
    assert seen == [0] * (len(line(1)) - 1) + [1] * len(line(2)) + [2]


def test_a_step_that_goes_back_begins_another_attempt(tmp_path):
    log = StepLog(tmp_path / "metrics.jsonl")
    log.path.write_bytes(b"".join(map(line, (1, 2, 3, 4, 3, 4, 5))))
    log.look()
    assert [[step.step for step in attempt] for attempt in log.attempts] == [[1, 2, 3, 4], [3, 4, 5]]
    assert [a.step for a, _ in ran_twice(*log.attempts)] == [3, 4]


def test_a_resumed_run_computes_the_same_bits(step_log):
    first, second = step_log.attempts
    twice = ran_twice(first, second)
    assert [a.step for a, _ in twice] == [4, 5, 6]
    assert all(a.bits == b.bits for a, b in twice)


def test_bits_tell_the_smallest_difference(step_log):
    step = step_log.last
    for name in ("loss", "mtp_loss", "grad_norm"):
        value = getattr(step, name)
        other = dataclasses.replace(step, **{name: value * (1 + 2**-52)})
        assert other.bits != step.bits, name
