# Every target works from a bare clone: it makes the environment that it needs and takes nothing for granted.
PYTHON ?= python3

# Compiled modules are kept: without them each of the many processes that the tests start compiles Beam anew, 7 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

# Two environments: what a user runs (no torch), and what the tests need.
RUN := .venv-run
DEV := .venv

define make_env
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python -c constraints.txt -e '.[$(2)]'
	touch $(1)/.ready
endef

$(RUN)/.ready: pyproject.toml constraints.txt
	$(call make_env,$(RUN),cpu)

$(DEV)/.ready: pyproject.toml constraints.txt
	$(call make_env,$(DEV),$(strip cpu,train,gcp,dataflow,s3,xarray,dev))

.PHONY: planet lock-image image image-smoke env fake-gcs-server prism-program prism demo test test-slow test-long lint types format real gate gate-full bench full-tile torture demo-model real-train ablate lock clean
env: $(DEV)/.ready

demo: $(RUN)/.ready
	$(RUN)/bin/tessera-beam demo demo-out

# The emulator that the tests of gs:// run against as well as their own double; they skip it where it is not built.
fake-gcs-server:
	@if command -v go >/dev/null; then \
	  GOBIN=$(CURDIR)/build/bin go install github.com/fsouza/fake-gcs-server@v1.56.1; \
	else echo "skipped: fake-gcs-server needs Go, which is not here"; fi

# Beam's portable runner, that the tests of engines and `make prism` run on.
prism-program:
	@if command -v go >/dev/null; then \
	  GOBIN=$(CURDIR)/build/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0; \
	else echo "skipped: Prism needs Go, which is not here"; fi

prism: $(DEV)/.ready prism-program
	$(DEV)/bin/python bench/engines.py --check

# Two workers with as many threads each are in one another's way.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

test: $(DEV)/.ready
	$(ONE_THREAD) $(DEV)/bin/python -m pytest -n auto --dist loadfile -m 'not slow'

test-slow: $(DEV)/.ready
	$(ONE_THREAD) $(DEV)/bin/python -m pytest -n auto --dist loadfile -m 'slow and not long'

test-long: $(DEV)/.ready
	$(ONE_THREAD) $(DEV)/bin/python -m pytest -m long

lint: $(DEV)/.ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

format: $(DEV)/.ready
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

types: $(DEV)/.ready
	$(DEV)/bin/mypy

real: $(RUN)/.ready
	$(RUN)/bin/python -m pipeline.real.run ../shared/real-data real-out

gate: $(RUN)/.ready
	mkdir -p build
	$(RUN)/bin/tessera-beam model gate pipeline/demo/model.onnx --report build/gate.html

gate-full: $(DEV)/.ready
	TESSERA_GATE_FAMILY=all $(DEV)/bin/python -m pytest -m slow tests/model

bench: $(DEV)/.ready
	$(DEV)/bin/python bench/encoder.py
	$(DEV)/bin/python bench/samplers.py
	$(DEV)/bin/python bench/dpixels.py
	$(DEV)/bin/python bench/reading.py
	$(DEV)/bin/python bench/enumeration.py
	$(DEV)/bin/python bench/writing.py
	$(DEV)/bin/python bench/loader.py

# A whole tile of 10,980 px, published from fragments and read over HTTP; some minutes each.
full-tile: $(DEV)/.ready fake-gcs-server
	$(DEV)/bin/python bench/full_tile.py --check
	$(DEV)/bin/python bench/full_tile.py --check --overviews --folder-alone

SEED ?= 1
ROUNDS ?= 100
torture: $(DEV)/.ready fake-gcs-server
	mkdir -p build
	$(DEV)/bin/python -m tests.torture.run --seed $(SEED) --rounds $(ROUNDS) --table build/torture.md

lock-image:
	deploy/image/lock.sh

image:
	DEVICE=$(or $(DEVICE),cuda) deploy/image/build.sh

image-smoke:
	deploy/image/smoke.sh $(IMAGE)

# The graph of a global year, receipts, a kill, status and report; some 40 minutes for all tiles.
TILES ?= 18400
planet: $(DEV)/.ready
	mkdir -p build
	$(DEV)/bin/python -m tests.planet.run --tiles $(TILES) --inventory build/planet-$(TILES).parquet

# Trains the shipped model in place, in minutes; it stays as it is where the new one is not proven or no better.
demo-model: $(DEV)/.ready
	$(DEV)/bin/python -m pipeline.demo.train_model

# Pre-trains on each of the real sets from scratch, exports, gates and probes: some ten minutes a set on two cores.
real-train: $(DEV)/.ready
	$(DEV)/bin/python -m pipeline.real.pretrain ../shared/real-data real-out/train

# One thing changed at a time, three seeds each; some 40 minutes.
ablate: $(DEV)/.ready
	$(DEV)/bin/python -m pipeline.demo.ablate

lock: $(DEV)/.ready
	$(DEV)/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 --extra cpu --extra train --extra gcp --extra dataflow \
	  --extra s3 --extra xarray --extra dev --no-annotate --no-header --upgrade -o constraints.txt

clean:
	rm -rf $(RUN) $(DEV) build demo-out real-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
