# `make demo` and `make test` are all that a fresh machine needs; both work inside ./.venv. `make gpu` is for a GPU.
# TORCH is installed only where .venv has no torch >= 2.6; override it for another build of torch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find csrc -type f)
CLANG_FORMATTED := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
TORCH_IS_THERE := import sys, torch; sys.exit(tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6))

.PHONY: demo test pytest test-all lint docs bench gpu gpu-env wheel clean

demo: $(VENV)/.installed
	@$(BIN)/flashjanus demo --out demo

# A worker a core, each with one thread; what needs more threads asks for them itself.
test: lint pytest

pytest: $(VENV)/.test-tools
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile \
		--cov=engine --cov=python/flashjanus --cov-report=term --cov-fail-under=90

# What takes minutes as well: loads, clusters, browsers.
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CLANG_FORMATTED)
	rm -rf build/typing && mkdir -p build/typing/flashjanus
	ln -s $(CURDIR)/python/flashjanus/* $(CURDIR)/engine $(CURDIR)/triton_kernels build/typing/flashjanus/
	MYPYPATH=build/typing $(BIN)/mypy --strict -p flashjanus

# The documents as a website: build/site/index.html opens without a server. What is generated of it is written first.
docs: $(VENV)/.docs-tools
	$(BIN)/python docs/reference.py
	$(BIN)/mkdocs build --strict --clean
	@echo "the website: $(CURDIR)/build/site/index.html; its search needs a server: $(PYTHON) -m http.server -d build/site"

# Each stage of a model of the published sizes, random weights, in turns with other implementations: a table, all samples
# as JSON, a picture. Beside the official code and diffusers: BENCH_PEERS="--peer official --peer diffusers
# --official-repo JANUS --official-script SCRIPT --official-python PYTHON". No round is begun that would end after 13 minutes.
BENCH_PEERS ?= --peer torch

bench: $(VENV)/.installed
	mkdir -p build
	$(BIN)/flashjanus bench latency --random-weights full --dtype bfloat16 --stages prepare,step,VAE,SigLIP,prefill,token \
		--rounds 5 --repeats 1 --minutes 13 $(BENCH_PEERS) --json build/bench.json --plot build/bench.svg

# Two calls on the GPU present, each within its seconds (benchmarks/gpu.py --time-plan), with kernels built for it alone.
# PYTHON and its own torch are used where that is a CUDA build: nothing is installed or downloaded. Else ./.venv is made.
CALL ?= 1 2
RESULTS ?= benchmarks/results
TORCH_HAS_CUDA := import os, runpy, sys; from importlib.util import find_spec; torch = find_spec('torch').origin; \
	sys.exit(runpy.run_path(os.path.join(os.path.dirname(torch), 'version.py')).get('cuda') is None)

gpu:
	@since=$$(date +%s); set -e; \
	architecture=$$($(PYTHON) benchmarks/gpu.py --architecture) || { echo "$$architecture"; exit 2; }; \
	python=$(PYTHON); \
	$$python -c "$(TORCH_HAS_CUDA)" 2>/dev/null || { $(MAKE) $(VENV)/.test-tools; python=$(CURDIR)/$(BIN)/python; }; \
	$$python -c "import torch, triton" 2>/dev/null & \
	bin=$$($$python -c "import os, sys; print(os.path.dirname(sys.executable))"); \
	export PATH="$$bin:$$PATH:/usr/local/cuda/bin"; status=0; \
	for call in $(CALL); do \
		$$python benchmarks/gpu_stages/build.py $$architecture; \
		PYTHONPATH="$(CURDIR)/build/gpu/lib$${PYTHONPATH:+:$$PYTHONPATH}" $$python benchmarks/gpu.py \
			--call $$call --since $$since --out "$(RESULTS)" $(GPU_OPTIONS) || status=$$?; \
		since=$$(date +%s); \
	done; exit $$status

# What can be shown without a GPU under the versions of the machine that has one: Triton's launches and compilations, dry
# runs with planted faults, and, where GPU_PYTHON is there, the native module for it, which build/gpu/native then holds.
GPU_TRITON ?= triton==3.6.0
GPU_PYTHON ?= python3.12
GPU_ARCHITECTURE ?= 90-real

gpu-env: $(VENV)/.test-tools
	$(BIN)/pip install -q --upgrade --no-deps --target build/gpu-env "$(GPU_TRITON)"
	PYTHONPATH=build/gpu-env FLASHJANUS_TRITON_WHOLE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 \
		--dist loadfile tests/kernels/test_triton_launched.py tests/kernels/test_triton_compiled.py tests/benchmarks \
		-k "not sm_80 and not sm_100 and not 80- and not 100-"
	@if $(GPU_PYTHON) -m venv build/gpu-python 2>/dev/null; then set -e; \
		build/gpu-python/bin/pip install -q "setuptools>=77" "pybind11>=2.13" "cmake>=3.24" ninja; \
		PATH="$(CURDIR)/build/gpu-python/bin:$$PATH" build/gpu-python/bin/python benchmarks/gpu_stages/build.py \
			$(GPU_ARCHITECTURE) 1800; du -sh build/gpu/native; \
	else echo "$(GPU_PYTHON) is not here: no native module for it was built"; fi

wheel: $(VENV)/.installed
	$(BIN)/pip wheel --no-deps -w dist .

clean:
	rm -rf build dist demo *.egg-info .coverage coverage.xml .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f python/flashjanus/_C.*.so $(VENV)/.installed $(VENV)/.test-tools $(VENV)/.docs-tools

$(VENV)/.torch:
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: '$(PYTHON) -m venv' failed; Debian and Ubuntu need: apt install python3-venv"; exit 1; }
	@$(BIN)/python -c "$(TORCH_IS_THERE)" 2>/dev/null || $(BIN)/pip install "$(TORCH)"
	@touch $@

# A build in pip says nothing unless asked for everything: of that, what is fetched, compiled and installed is shown.
TOLD := ^ *(Collecting|Downloading|Installing|Successfully) |^ *\[[0-9]+/[0-9]+\] |flashjanus: |^(error|ERROR)

$(VENV)/.installed: $(VENV)/.torch setup.py pyproject.toml CMakeLists.txt $(NATIVE_SOURCES)
	@mkdir -p build && rm -f build/install-failed
	@{ PYTHONUNBUFFERED=1 $(BIN)/pip install -v -e . 2>&1 || touch build/install-failed; } | tee build/install.log \
		| grep --line-buffered -E "$(TOLD)"; \
	if [ -e build/install-failed ]; then tail -40 build/install.log; echo "all of it: build/install.log"; exit 1; fi
	@touch $@

# The package is installed by now: this adds the extra's tools without a second build.
$(VENV)/.test-tools: $(VENV)/.installed
	$(BIN)/pip install "flashjanus[test]"
	@touch $@

$(VENV)/.docs-tools: $(VENV)/.installed
	$(BIN)/pip install "flashjanus[docs]"
	@touch $@
