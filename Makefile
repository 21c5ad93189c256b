# make help says what there is
BIN := .venv/bin
STAMP := .venv/.installed
# more threads than cores are far slower, and tests run beside other things
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# processes that run tests side by side; each takes up to 3 GB
WORKERS ?= 2

.PHONY: demo test lint unit venv clean help

# the demo may use every core; tests may not
demo: $(STAMP)
	env -u OMP_NUM_THREADS $(BIN)/mpa-edge demo

test: lint
	@.ci/peers
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile

unit: $(STAMP)
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not peer"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/prepare
	@python=$$(.ci/prepare) && { $(BIN)/python -c 'import pip' 2>/dev/null || "$$python" -m venv --clear .venv; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[align,export,onnx,gguf,openai,ray,s3,dev]'
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
