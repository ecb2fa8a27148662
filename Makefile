# `make run` and `make test` set themselves up in .venv; nothing but make and Python 3.11 or newer is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
# Passed on to the command: `make run ARGS="--params seed=1"`, `make test ARGS="-k budget"`.
ARGS ?=

export KEDRO_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
# Many containers set this. Each process of the tests would then compile again whatever was never compiled, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run clean-run viz test test-slow test-database test-ray test-airflow test-clouds test-trackers test-targets test-versions test-lowest test-zoo nncf zoo torture mutants fuzz lint types docs site benchmark audit lock release

help:  ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP)  ## Install the locked versions into .venv; the others do so when they need it

# An environment that is there is used, and made anew only if it is broken or of an older Python.
NEW_ENOUGH := -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))'
$(SETUP): requirements.lock requirements-torch.lock pyproject.toml
	@$(BIN)/python $(NEW_ENOUGH) 2> /dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(NEW_ENOUGH) || \
		{ echo "kedro-aat needs Python 3.11 or newer; name one with make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing the locked versions into $(VENV); the first time this takes minutes."
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet -r requirements-torch.lock
	@# Both options keep to the lock: setuptools is in it, and so is every dependency.
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

run: $(SETUP)  ## Compress the digits model; a finished or interrupted run goes on where it stood
	$(BIN)/kedro run --pipelines aat $(ARGS)

# The ledger stays, since a test split that was read stays read.
clean-run:  ## Remove what runs have made, to start over; raw data and the certificates' ledger stay
	find data/05_model_input data/06_models data/07_model_output data/08_reporting \
		-mindepth 1 ! -name .gitkeep ! -name 'certificate_ledger.json*' -delete

viz: $(SETUP)  ## Show the pipeline and its results in the browser
	$(BIN)/kedro viz run $(ARGS)

# One of the tests builds the documentation.
test: lint types  ## Check everything but the slow tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

KILLS ?= 100
SEED ?= 0
torture: $(SETUP)  ## Kill real runs at random instants, and compare how they end; `KILLS=20 SEED=1` for others
	$(BIN)/python -m tests.torture --kills $(KILLS) --seed $(SEED)

test-slow: $(SETUP)  ## Run the slow tests
	$(BIN)/pytest -m slow $(ARGS)

# On Debian: apt-get install postgresql. The server runs in a temporary folder.
test-database: $(SETUP)  ## Check the certificate's ledger on PostgreSQL, with many processes at a time
	$(BIN)/pytest -m slow tests/certificate/test_ledger_places.py $(ARGS)

nncf: $(SETUP)  ## Compare rates, schedules and losses with recordings of NNCF 2.19, minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow or not slow" tests/nncf/conformance tests/nncf/test_traces.py $(ARGS)

# Neither is needed elsewhere, so they are not in requirements.lock.
ARCHITECTURES := $(VENV)/.architectures
$(ARCHITECTURES): $(SETUP) requirements-architectures.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-architectures.lock
	@touch $@

zoo: $(ARCHITECTURES)  ## Compress 117 published architectures and write docs/zoo.md, hours; stopped, it goes on later
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo $(ARGS)

test-zoo: $(ARCHITECTURES)  ## Check a dozen of them, minutes, and the page about text
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/benchmarks/test_zoo.py "tests/test_pages.py::test_task[text.md]" $(ARGS)

# mutmut is in neither `dev` nor the lock, because nothing else needs it; this target installs it.
MODULE ?=
mutants: $(SETUP)  ## Change the source in one place at a time; tests must notice; `MODULE=budget` for one module
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^mutants = \["\(.*\)"\]/\1/p' pyproject.toml)"
	$(BIN)/python -m tests.mutants $(MODULE) $(ARGS)

test-ray: $(SETUP)  ## Run the page about many searches on a local Ray, minutes
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^ray = \["\(.*\)"\]/\1/p' pyproject.toml)"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow "tests/test_pages.py::test_python_of_the_pages_that_search[many-searches.md]" $(ARGS)

# Airflow has an environment of its own, because its dependencies are not ours; torch and Kedro are the locked ones.
AIRFLOW := build/airflow
test-airflow: $(SETUP)  ## Run the DAG of kedro-airflow with Airflow's `dags test` on SQLite, minutes
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet -r requirements-torch.lock . \
		$$(sed -n 's/^airflow = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",') $$(grep -o '^kedro==[^ ]*' requirements.lock)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 -m slow tests/adoption/test_airflow.py $(ARGS)

# Makes an environment beside .venv, whose packages it sees, this one among them.
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define beside
$(BIN)/python -m venv --clear $(1)
echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES))')" > "$$($(1)/bin/python $(PACKAGES))/shared.pth"
endef

# Nothing but these tests needs the clients and the emulators of these stores. npm brings Azurite.
CLOUDS := build/clouds
test-clouds: $(SETUP)  ## Keep datasets, mirror and ledger in emulators of Azure and Google Cloud Storage, minutes; needs npm
	$(call beside,$(CLOUDS))
	$(CLOUDS)/bin/python -m pip install --quiet $$(sed -n 's/^clouds = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	npm install --silent --no-audit --no-fund --prefix $(CLOUDS) azurite@3.35.0
	PATH="$(CURDIR)/$(CLOUDS)/node_modules/.bin:$$PATH" OMP_NUM_THREADS=1 $(CLOUDS)/bin/python -m pytest -n 0 -m slow \
		-k "azure or google or ignores_the_condition" tests/datasets/test_storages.py tests/datasets/test_buckets.py \
		tests/certificate/test_ledger_places.py tests/training/checkpoints/test_mirror.py \
		tests/pipelines/aat/test_bucket.py tests/pipelines/aat/test_one_disk_per_node.py $(ARGS)

# MLflow asks for older versions of some packages, so that it gets an environment of its own beside .venv.
TRACKERS := build/trackers
test-trackers: $(SETUP)  ## Log runs to real MLflow, W&B and Aim, and sweep with Optuna, minutes
	$(call beside,$(TRACKERS))
	$(TRACKERS)/bin/python -m pip install --quiet "$$(sed -n 's/^optuna = \["\(.*\)"\]/\1/p' pyproject.toml)"
	OMP_NUM_THREADS=1 $(TRACKERS)/bin/python -m pytest -m slow tests/trackers/test_sweeps.py $(ARGS)
	$(TRACKERS)/bin/python -m pip install --quiet $$(sed -n 's/^trackers = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	OMP_NUM_THREADS=1 $(TRACKERS)/bin/python -m pytest -m slow tests/trackers/test_mlflow.py tests/trackers/test_page.py $(ARGS)

# Their packages pin versions that others do not take, so they get an environment of their own beside .venv.
TARGETS := build/targets
test-targets: $(SETUP)  ## Write and run files for ExecuTorch and LiteRT, minutes
	$(call beside,$(TARGETS))
	$(TARGETS)/bin/python -m pip install --quiet \
		$$(sed -n '/^\(executorch\|litert\) = \[/,/^\]/s/^ *"\(.*\)".*/\1/p' pyproject.toml)
	OMP_NUM_THREADS=1 $(TARGETS)/bin/python -m pytest -n 0 tests/export/test_executorch.py tests/export/test_litert.py $(ARGS)

# Other versions get environments of their own, which see nothing of .venv. A few hundred tests run there: sessions, the
# command line, datasets, compression, int8, exports, checkpoints, and the pipeline from end to end. Where pip finds no CPU
# build of torch, an environment takes 6 GB; each target says what pip chose. docs/reference/platforms.md has the results.
VERSIONED := tests/adoption/test_runners.py tests/compression/filters/test_compact.py \
	tests/compression/quantization/test_convert.py tests/datasets/test_controller.py tests/datasets/test_exported.py \
	tests/datasets/test_model.py tests/datasets/test_storages.py tests/export/test_onnx_file.py \
	tests/export/test_quantized.py tests/pipelines/aat/test_tags.py tests/reporting/test_figures.py tests/test_config.py \
	tests/test_metrics.py tests/test_package.py tests/training/checkpoints/test_stored.py tests/training/test_progress.py
# A test builds the package without isolation. The bound is that of `build-system`; torch 2.11 is content with an older one.
TEST_TOOLS := filelock hypothesis 'moto[server]' pytest pytest-timeout pytest-xdist s3fs 'setuptools>=77'
SHOW_VERSIONS := -c 'import platform, sys, kedro, numpy, onnx, torch; print("Python", platform.python_version(), \
	*(f"{m.__name__} {m.__version__}" for m in (kedro, numpy, onnx, torch)), "in", sys.prefix)'
KEDRO ?=
# A torch that pyproject.toml does not allow yet replaces the locked one afterwards, and pip says that it does not fit.
REFUSED ?=
OTHERS := build/versions
test-versions:  ## Run some tests on other versions; `make test-versions PYTHON=python3.13 KEDRO=1.3.0 TORCH=2.11.0`
	$(PYTHON) -m venv --clear $(OTHERS)
	$(OTHERS)/bin/python -m pip install --quiet -e '.[all,project]' $(TEST_TOOLS) torch==$(TORCH) $(if $(KEDRO),kedro==$(KEDRO))
	$(if $(REFUSED),$(OTHERS)/bin/python -m pip install --quiet torch==$(REFUSED))
	@$(OTHERS)/bin/python $(SHOW_VERSIONS)
	OMP_NUM_THREADS=1 $(OTHERS)/bin/python -m pytest -n 2 --dist worksteal $(VERSIONED) $(ARGS)

LOWEST := build/lowest
test-lowest:  ## Run them on the lowest version of each direct dependency; `TORCH=2.13.0` for another torch
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet packaging
	$(LOWEST)/bin/python -m scripts.lowest_versions report images openvino database project \
		| sed '$(if $(findstring command,$(origin TORCH)),s/^torch==.*/torch==$(TORCH)/)' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e '.[all,project]' $(TEST_TOOLS)
	@$(LOWEST)/bin/python $(SHOW_VERSIONS)
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal $(VERSIONED) $(ARGS)

fuzz: $(SETUP)  ## Thousands of odd configurations and files, minutes; `ARGS="--size 0.1"` for a tenth of them
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzzing $(ARGS)

lint: $(SETUP)  ## Check style, format, spelling and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(SETUP)  ## Check types
	$(BIN)/mypy

docs: $(SETUP)  ## Build the documentation into build/site; broken links are errors
	$(BIN)/python -m scripts.settings_page
	$(BIN)/python -m scripts.scale_page
	$(BIN)/mkdocs build --quiet

# `.readthedocs.yaml` makes the same on Read the Docs. Elsewhere the folder is all that a host needs.
site: docs  ## Build the documentation for a host: build/site as a folder, and as dist/kedro-aat-site.zip
	mkdir -p dist
	touch build/site/.nojekyll
	cd build/site && $(CURDIR)/$(BIN)/python -m zipfile -c $(CURDIR)/dist/kedro-aat-site.zip .
	@echo "To GitHub Pages: $(BIN)/mkdocs gh-deploy --strict. It pushes to the branch gh-pages, which this command does not."

benchmark: $(SETUP)  ## Measure what compression adds to a training step
	$(BIN)/python benchmarks/step_overhead.py $(ARGS)

# pip-audit has an environment of its own, because its dependencies are not ours.
audit:  ## Look for known vulnerabilities of the locked versions; skipped if the database cannot be reached
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	@sed 's/ *\\$$//; /--hash/d' requirements.lock requirements-torch.lock > build/audit/requirements.txt
	@build/audit/bin/pip-audit --vulnerability-service osv --disable-pip --no-deps -r build/audit/requirements.txt \
		> build/audit/result.txt 2>&1 && cat build/audit/result.txt || { \
		if grep -q 'ConnectionError\|ConnectTimeout' build/audit/result.txt; \
		then echo "Skipped: the database of vulnerabilities cannot be reached from here."; \
		else cat build/audit/result.txt; exit 1; fi; }

# A fresh environment, so that nothing that happens to be installed gets into the lock. torch is taken as it
# was locked: an open range can pull several GB of CUDA wheels of another version.
TORCH = $(shell sed -n 's/^torch==//p' requirements-torch.lock)
lock:  ## Refresh requirements.lock; `make lock TORCH=2.14.0` for another torch
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet setuptools "torch==$(TORCH)" -e '.[project,dev,docs]'
	build/lock/bin/python -m pip check
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude torch --exclude-editable > build/lock/pinned.txt
	build/lock/bin/python -m pip install --quiet uv
	sed '/^#/!d' requirements.lock > build/lock/requirements.lock
	build/lock/bin/uv pip compile --quiet --no-deps --no-header --no-annotate --generate-hashes build/lock/pinned.txt \
		>> build/lock/requirements.lock
	mv build/lock/requirements.lock requirements.lock
	sed -n '/^architectures = \[/,/^\]/s/^ *"\(.*\)".*/\1/p' pyproject.toml > build/lock/architectures.txt
	@# An override that never holds leaves a package out.
	printf "torch; python_version < '0'\ntorchvision; python_version < '0'\n" > build/lock/left_out.txt
	sed '/^#/!d' requirements-architectures.lock > build/lock/requirements-architectures.lock
	build/lock/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes -c build/lock/pinned.txt \
		--override build/lock/left_out.txt build/lock/architectures.txt >> build/lock/requirements-architectures.lock
	mv build/lock/requirements-architectures.lock requirements-architectures.lock
	sed -i.old 's/^torch==.*/torch==$(TORCH)/' requirements-torch.lock && rm requirements-torch.lock.old

# Only git and Python are needed. Nothing is pushed or uploaded; docs/how-to/release.md says what follows.
release:  ## Build what is uploaded, try the wheel in a fresh environment, and tag; `ARGS=--no-tag` only builds and tries
	$(PYTHON) -m scripts.release $(ARGS)
