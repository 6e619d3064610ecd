# `make demo` and `make test` are all that a fresh machine needs; both work inside ./.venv.
# TORCH is installed only where .venv has no torch >= 2.6; override it for another build of torch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find csrc -type f)
CLANG_FORMATTED := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
TORCH_IS_THERE := import sys, torch; sys.exit(tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6))

.PHONY: demo test lint wheel clean

demo: $(VENV)/.installed
	rm -f demo/*.png
	$(BIN)/flashjanus generate "a red circle and a blue square" --model shapes --num-images 2 --steps 10 --seed 7 --out demo
	@image=$$(ls demo/*.png | head -n 1) && \
	echo "$$image: What shape is red?" && \
	$(BIN)/flashjanus ask "$$image" "What shape is red?" --model shapes --max-new-tokens 24

test: lint
	$(BIN)/pytest --cov=engine --cov=python/flashjanus --cov-report=term --cov-fail-under=90

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CLANG_FORMATTED)
	rm -rf build/typing && mkdir -p build/typing/flashjanus
	ln -s $(CURDIR)/python/flashjanus/* $(CURDIR)/engine $(CURDIR)/triton_kernels build/typing/flashjanus/
	MYPYPATH=build/typing $(BIN)/mypy --strict -p flashjanus

wheel: $(VENV)/.installed
	$(BIN)/pip wheel --no-deps -w dist .

clean:
	rm -rf build dist demo *.egg-info .coverage coverage.xml .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f python/flashjanus/_C.*.so $(VENV)/.installed $(VENV)/.test-tools

$(VENV)/.torch:
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: '$(PYTHON) -m venv' failed; Debian and Ubuntu need: apt install python3-venv"; exit 1; }
	@$(BIN)/python -c "$(TORCH_IS_THERE)" 2>/dev/null || $(BIN)/pip install "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py pyproject.toml CMakeLists.txt $(NATIVE_SOURCES)
	$(BIN)/pip install -e .
	@touch $@

# The package is installed by now: this adds the extra's tools without a second build.
$(VENV)/.test-tools: $(VENV)/.installed
	$(BIN)/pip install "flashjanus[test]"
	@touch $@
