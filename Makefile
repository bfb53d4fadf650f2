# `make demo` and `make test` do everything: VENV or an active environment is reused, else .venv is
# made. Needs GNU make, Python >= 3.10 with venv, g++.
PYTHON ?= python3
ifdef VIRTUAL_ENV
VENV ?= $(VIRTUAL_ENV)
endif
VENV ?= .venv
PY := $(VENV)/bin/python
# pytest's arguments: make test ARGS="-k pgd_step"
ARGS ?=
RESULTS ?= benchmarks/results
# gpu-check: where to, for how long, and the commit where the tree has no git.
OUT ?= runs/gpu-check
MINUTES ?= 8.5
COMMIT ?=
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
INSTALLED := $(VENV)/.fastard-installed

.PHONY: help install demo test test-oldest lint bench bench-attack bench-step bench-training \
  bench-autoattack gpu-check readme-table docs clean
help:
	@echo "make demo    install, train three small networks on digits, print what they withstand"
	@echo "make test    install, run the whole test suite"
	@echo "make test-oldest  the test suite once more, the same binary under torch 2.11"
	@echo "make lint    ruff, mypy"
	@echo "make bench-attack  time whole attacks, write $(RESULTS)/cpu_attack.json"
	@echo "make bench-step  time whole training steps, write $(RESULTS)/cpu_step.json"
	@echo "make bench-training  train with and without the engine, write $(RESULTS)/engine_training.json"
	@echo "make bench-autoattack DATA=dir  AutoAttack beside the official code, write $(RESULTS)/cpu_autoattack.json"
	@echo "make bench   time the kernels, write $(RESULTS)/cpu_kernels.json"
	@echo "make readme-table  the README's tables anew from $(RESULTS)"
	@echo "make docs    build the documentation site, build/site/index.html"
	@echo "make gpu-check OUT=dir  build, test, sanitize and time on this GPU, with $(PYTHON)'s torch"

$(PY):
	$(PYTHON) -m venv $(VENV)

# Compiles the kernels; pip shows nothing of that, so ask the binary what it holds.
$(INSTALLED): $(SOURCES) | $(PY)
	$(PY) -m pip install --quiet -e ".[test,build,docs]"
	@$(PY) -c "import fastard.native as n, sys; m = n.module; \
	  sys.exit('fastard: ' + n.reason) if m is None else print('fastard:', n.reason + ',', \
	  'CUDA ' + m.cuda_archs if m.has_cuda else 'NO CUDA KERNELS: ' + m.cuda_reason)"
	@touch $@

install: $(INSTALLED)

demo: install
	$(PY) -m benchmarks.demo --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# The binary that `make install` built, under the oldest torch that it promises to run with.
OLDEST := $(VENV)-oldest
test-oldest: install
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(PY) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print('\n'.join(p['dependencies'] + p['optional-dependencies']['test']))" > $(OLDEST)/needs.txt
	$(OLDEST)/bin/python -m pip install --quiet "torch==2.11.*" -r $(OLDEST)/needs.txt
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not build and not long" $(ARGS)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: install
	$(PY) -m pytest benchmarks/bench_kernels.py -q -s --benchmark-enable --benchmark-only \
	  --benchmark-disable-gc --benchmark-json=$(RESULTS)/cpu_kernels.json

bench-attack: install
	$(PY) -m benchmarks.attack --out $(RESULTS)/cpu_attack.json

bench-step: install
	$(PY) -m benchmarks.step --out $(RESULTS)/cpu_step.json

bench-training: install
	$(PY) -m benchmarks.engine_training --out $(RESULTS)/engine_training.json

# DATA holds CIFAR-10 and teachers/; half an hour on two cores, goes on where it was broken off.
DATA ?= $(FASTARD_DATA)
bench-autoattack: install
	$(PY) -m benchmarks.autoattack --data "$(DATA)" --out $(RESULTS)/cpu_autoattack.json $(ARGS)

readme-table: install
	$(PY) -m benchmarks.readme_table

# Installs nothing: PYTHON has torch with CUDA, pytest and what setup.py builds with.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(OUT) --minutes $(MINUTES)$(COMMIT:%= --commit %)

docs: install
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache fastard/*.so $(INSTALLED)
