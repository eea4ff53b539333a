# make demo, make test, make check. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
TORCH ?= torch==2.13.0
EXTRAS ?= cpu,dev
# Processes that share the tests, each with one thread: threads of several only wait for each other.
WORKERS ?= 2
# What benchmarks/compare.py compares with, and what of it the environment does not hold.
NNCF ?= nncf==3.4.0 ninja pydot pyparsing tabulate
# torch-fidelity for its tests alone, with the torchvision that belongs to TORCH.
FIDELITY ?= torch-fidelity==0.4.0 torchvision==0.28.0

VENV := .venv
CHECK := .venv-check
STAMP := $(VENV)/.installed
SIDE := $(VENV)/side
PEERS := $(VENV)/peers
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: venv demo test check clean

venv: $(STAMP)

# torch goes first and pinned, so that the second command does not choose another build of it.
# setuptools is here because tests/test_packaging.py and `make check` build a wheel without isolation.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -U pip "setuptools>=77"
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -e ".[$(EXTRAS)]"
	touch $@

# A folder beside the others: PyPI has torchvision for CUDA only, and beside a CPU build of torch it cannot be
# imported, nor then diffusers. tests/conftest.py puts the folder on the path and makes it importable.
$(SIDE)/.installed: $(STAMP)
	rm -rf $(SIDE)
	$(PIP) install -q --no-deps --target $(SIDE) $(FIDELITY)
	touch $@

# Beside the others, because nncf limits the versions of what the project itself needs.
$(PEERS)/.installed: $(STAMP)
	rm -rf $(PEERS)
	$(PIP) install -q --no-deps --target $(PEERS) $(NNCF)
	touch $@

demo: venv
	$(VENV)/bin/flatq demo

test: venv $(SIDE)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

# The folders of the tests are no packages, so pytest refuses two files of one name.
# mypy and import-linter cannot see train/, calib/ and export/ in an editable install, so they look at a
# normal one. They run inside $(CHECK), so that the flatq/ folder of the checkout does not shadow it.
check: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@! find tests -name 'test_*.py' | sed 's|.*/||' | sort | uniq -d | sed 's|$$|: two test files share this name|' | grep .
	$(VENV)/bin/python studies/claims_table.py --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	rm -rf build *.egg-info $(CHECK)
	$(PYTHON) -m venv --without-pip $(CHECK)
	$(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(CHECK)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/workbench.pth"
	$(CHECK)/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation \
		--force-reinstall .
	rm -rf build *.egg-info
	cd $(CHECK) && bin/python -m mypy --config-file ../pyproject.toml -p flatq
	cd $(CHECK) && bin/python -m mypy --config-file ../pyproject.toml ../examples/api.py
	cd $(CHECK) && bin/python -c "from importlinter.cli import lint_imports_command as run; run()" \
		--config ../pyproject.toml --no-cache

clean:
	rm -rf $(VENV) $(CHECK) .venv-tensorrt build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
