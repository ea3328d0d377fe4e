# Every target installs what it needs first: `make demo` and `make test` work on a fresh clone.
# A GPU machine needs nothing else; torch's CUDA build runs on CPUs too.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
EXTRAS := dev
UV_VERSION := 0.13.9
WHEELHOUSE ?= wheelhouse
# the first Python new enough: the system's python3 where it is, else any by its versioned name
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

# one thread a process, so that two cores are shared and not fought over; Ray on loopback without a token
TEST_ENV := env RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(PY) -m pytest -q -p no:cacheprovider

.PHONY: help demo dashboards docs notebooks test test-slow test-full bench lint format install install-offline wheelhouse constraints

help:
	@echo 'make demo             slides to student in minutes: out/demo/report.html, out/demo/export'
	@echo 'make test             lint, types, fast tests        make test-slow, make test-full: the longer ones'
	@echo 'make notebooks        seven of them, in JupyterLab    make docs: the site, in out/site'
	@echo 'make dashboards       Prometheus and Grafana beside the Ray session of this machine, until Ctrl-C'
	@echo 'make bench            list the measurements          make bench NAME=learns: run one'
	@echo 'make lint, format     ruff and mypy                  make install: .venv with everything in constraints.txt'
	@echo 'make wheelhouse       gather all wheels (3.3 GB) in ./wheelhouse, for'
	@echo 'make install-offline WHEELHOUSE=folder               on a machine without a network'
	@echo 'make constraints      resolve constraints.txt anew'

# ---------------------------------------------------------------- installing

install: $(READY)

# $(1): pip's flags, $(2): uv's flags. uv installs everything in seconds; where it cannot be had pip does the same.
define install_everything
	@test -n '$(PYTHON)' || { echo 'Pathryoshka needs Python 3.11 or newer; none is on PATH. Install one, or say PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pathryoshka needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Say PYTHON=/path/to/a/newer/one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'python -m venv failed; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV): about a minute, 6.5 GB on disk'
	@if $(PY) -m pip install -q --disable-pip-version-check $(1) uv==$(UV_VERSION); then \
	    $(PY) -m uv pip install --python $(PY) -q $(2) -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
	    echo 'uv cannot be had; pip takes some minutes longer'; \
	    $(PY) -m pip install -q --disable-pip-version-check $(1) -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@PYTHONDONTWRITEBYTECODE= $(PY) -W ignore -c '$(COMPILED)' >/dev/null 2>&1 || true
	@touch $(READY)
endef

# Bytecode of what every run imports, once: uv leaves it to the first import, and where PYTHONDONTWRITEBYTECODE is set, as
# in many containers, each of the dozen processes of a run would compile it anew, 9 s of a core instead of 5.
COMPILED = import pathryoshka.runs.job, pathryoshka.runs.results, ray.dashboard.agent, ray.dashboard.dashboard, ray.serve

$(READY): pyproject.toml constraints.txt
	$(call install_everything,,)

install-offline:
	@ls $(WHEELHOUSE)/*.whl >/dev/null 2>&1 || { echo 'no wheels in $(WHEELHOUSE); run `make wheelhouse` on a machine with a network and copy the folder here' >&2; exit 1; }
	$(call install_everything,--no-index --find-links '$(WHEELHOUSE)',--offline --no-index --find-links '$(WHEELHOUSE)')

# wheels only, also of what comes as source: the offline machine compiles nothing
wheelhouse: $(READY)
	$(PY) -m pip wheel -q --disable-pip-version-check -w '$(WHEELHOUSE)' --no-deps -r constraints.txt uv==$(UV_VERSION)
	@du -sh '$(WHEELHOUSE)'

constraints: $(READY)
	@{ echo '# Exact versions of everything pathryoshka and its extras install: two installs a month apart agree.'; \
	   echo '# Written by `make constraints`; edit pyproject.toml, not this file.'; \
	   $(PY) -m uv pip compile pyproject.toml --all-extras --upgrade -q --no-header --no-annotate --no-emit-index-url; \
	 } > constraints.new && mv constraints.new constraints.txt
	@echo 'constraints.txt is new: run `make test` before committing it'

# ---------------------------------------------------------------- checking

lint: $(READY)
	$(PY) -m ruff check --quiet .
	$(PY) -m mypy --no-error-summary

format: $(READY)
	$(PY) -m ruff check --quiet --fix .
	$(PY) -m ruff format --quiet .

test: lint
	$(PYTEST) --timeout=600 -n 2 --dist loadfile -m 'not slow and not full'

test-slow: $(READY)
	$(PYTEST) --timeout=1800 -m 'slow and not full'

test-full: $(READY)
	$(PYTEST) --timeout=7200 -m full

bench: $(READY)
ifdef NAME
	$(TEST_ENV) $(PY) -m tests.bench.bench_$(subst -,_,$(NAME)) $(ARGS)
else
	@for f in $(wildcard tests/bench/bench_*.py); do n=$${f##*/bench_}; \
	    printf 'make bench NAME=%-18s %s\n' "$$(t=$${n%.py}; echo $${t//_/-})" "$$(sed -n '1s/^"""//; 1s/"""$$//; 1p' $$f)"; done
endif

# ---------------------------------------------------------------- seeing it

demo: $(READY)
	$(VENV)/bin/pathryoshka demo

docs: $(READY)
	$(PY) -m mkdocs build --quiet -f .mkdocs.yml && echo out/site/index.html

# JupyterLab is for people, not for tests: it is installed when it is asked for
notebooks: $(READY)
	$(PY) -m uv pip install --python $(PY) -q jupyterlab || $(PY) -m pip install -q jupyterlab
	cd notebooks && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ../$(PY) -m jupyterlab --ip=127.0.0.1

dashboards: $(READY)
	$(VENV)/bin/pathryoshka dashboards
