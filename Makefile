# make help says what there is
BIN := .venv/bin
# what the demo needs, and what the tests need besides
DEMO := .venv/.demo
TEST := .venv/.test
# TORCH=cpu fetches PyTorch's CPU build, 2.9 GB less to fetch
TORCH ?=
# more threads than cores are far slower, and tests run beside other things
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# processes that run tests side by side; each takes up to 3 GB
WORKERS ?= 2

.PHONY: demo test lint unit venv clean help

# the demo may use every core; tests may not
demo: $(DEMO)
	@env -u OMP_NUM_THREADS $(BIN)/mpa-edge demo

test: lint
	@.ci/peers
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: $(TEST)
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not peer"

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

venv: $(TEST)

$(DEMO): pyproject.toml constraints.txt tools/install.py .ci/prepare
	@python=$$(.ci/prepare) && "$$python" tools/install.py demo $(if $(filter cpu,$(TORCH)),--cpu)
	@touch $@

$(TEST): $(DEMO)
	@python=$$(.ci/prepare) && "$$python" tools/install.py test
	@touch $@

help:
	@echo "make demo   align, export, bench, report on the built-in models and this CPU; the run is in runs/minicharts"
	@echo "make test   everything that CI runs: lint, then all tests"
	@echo "make unit   the quick tests only"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make venv   .venv with the tested versions; the other targets do this first"
	@echo "make clean  remove .venv and everything that was built; runs/ stays"

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find mpa_edge tests -name __pycache__ -prune -exec rm -rf {} +
