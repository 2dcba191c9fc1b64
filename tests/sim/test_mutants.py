"""That every known mistake can still be put into the production code, and that the simulator finds those that are quick
to find. `make mutants` hunts all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sim_mutants import MUTANTS
from sim_mutation import Mutant, Patch, patched

_HERE = Path(__file__).parent
_SEEDS = 30
_QUICK = ("published-before-stored", "early-ack", "repeats-applied", "ahead-before-all-is-there")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_applies_and_compiles(mutant: Mutant) -> None:
    for path, source in patched(mutant).items():
        compile(source, path, "exec")


def test_a_patch_that_does_not_apply_exactly_once_is_an_error() -> None:
    twice = Patch("fs3/errors.py", "class ", "class ")
    with pytest.raises(ValueError, match="occurs"):
        twice.applied("class A: ...\nclass B: ...\n")
    with pytest.raises(ValueError, match="occurs 0 times"):
        twice.applied("")


def test_there_are_enough_and_each_is_there_once() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert sum(not mutant.bug for mutant in MUTANTS) >= 20
    # 2 and 7 have no mechanism here; sim_mutants.py says why.
    assert {mutant.bug for mutant in MUTANTS if mutant.bug} == {1, 3, 4, 5, 6, 8, 9}


@pytest.mark.parametrize("name", _QUICK)
def test_a_quick_one_is_found(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(_HERE / "mutants.py"), "--hunt", name, "--seeds", str(_SEEDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["seed"] is not None, f"none of {_SEEDS} seeds finds {name}"
