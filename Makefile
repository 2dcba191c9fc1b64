# make demo, make test: everything from nothing but Python 3.11 and make. The other targets are for those who work on fs3.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help demo test sim mutants hostile soak failover slow-links lint types house proto bench profile clean venv

help:
	@echo 'make demo   the whole of fs3 in about five minutes, with a report at the end'
	@echo 'make test   the tests'
	@echo 'make sim    whole clusters with faults, simulated: SEEDS=500 of them, or SEED=n alone (tests/sim)'
	@echo 'make mutants  known mistakes put into the code one by one: the simulator must find each'
	@echo 'make hostile  CASES=1000000 malformed frames and calls against every port of a cluster (tests/process)'
	@echo 'make soak   MINUTES=30 of a real cluster under load with faults at random, then a check (tests/soak; needs root)'
	@echo 'make failover  what clients feel of a killed daemon, and what recovery moves'
	@echo 'make lint   ruff;  make types  mypy;  make house  the import and style rules of the house'
	@echo 'make slow-links MEGABITS=1000  what large writes cost where links are slow (network namespaces; needs root)'
	@echo 'make bench  throughput beside the limits of this machine (docs/benchmarks.md)'
	@echo 'make profile  where the time goes of a client and of a storage daemon: a table and flame graphs in bench-out'
	@echo 'make proto  regenerate fs3/pb from proto/'

venv:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo 'fs3: no $(PYTHON) here; install Python 3.11 or newer, or say make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) .ci/venv.py

demo: venv
	@$(RUN) -m fs3_trainer.demo $(DEMO_ARGS)

test: venv
	@$(RUN) -m compileall -q fs3 loader trainer tests benchmarks # for all processes that the tests start
	$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

sim: venv
	@$(RUN) tests/sim/run.py $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),500)) $(SIM_ARGS)

mutants: venv
	@$(RUN) tests/sim/mutants.py $(if $(MUTANT),--mutant $(MUTANT)) --seeds $(or $(SEEDS),2000) $(MUTANTS_ARGS)

hostile: venv
	@$(RUN) tests/process/hostile_run.py --cases $(or $(CASES),1000000) --seed $(or $(SEED),1)

soak: venv
	@$(RUN) tests/soak/run.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) $(SOAK_ARGS)

failover: venv
	@$(RUN) tests/soak/failover.py --times $(or $(TIMES),5) $(FAILOVER_ARGS)

slow-links: venv
	@$(RUN) tests/soak/slow_links.py --megabits $(or $(MEGABITS),1000) --times $(or $(TIMES),15)

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	proto/generate.sh --check

types: venv
	$(RUN) -m mypy

house: venv
	$(RUN) -m pytest -q tests/test_house.py

bench: venv
	$(RUN) benchmarks/run.py $(BENCH_ARGS)

profile: venv
	$(RUN) benchmarks/hot_spots.py $(PROFILE_ARGS)

proto: venv
	proto/generate.sh

clean:
	rm -rf .venv demo-out bench-out soak-out .mypy_cache .ruff_cache .pytest_cache
