# Two commands do all the set-up: `make demo` and `make test`. Neither needs a GPU or a model hub.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test docs tutorial dist transformers-tests browser-tests vllm-tests clean

demo: $(VENV)/installed
	$(RUN)/gendistill run recipes/demo.yaml

# Bytecode is kept whatever the environment says: else both workers and every process of the tests compile it anew.
test: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m "not gpu and not transformers_tests and not browser and not vllm" -n 2 --dist loadfile

# The site of docs/, in site/; any warning is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

# docs/tutorial.md word by word in a fresh clone: minutes, installation and all.
tutorial: $(VENV)/installed
	$(RUN)/python scripts/tutorial.py

# The source distribution, and the wheel built from it, in dist/.
dist: $(VENV)/installed
	rm -rf dist
	$(RUN)/python -m build --no-isolation

# transformers' own common model tests, on our model: a minute, and fetches its source distribution.
transformers-tests: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable ".[transformers-tests]"
	OMP_NUM_THREADS=1 $(RUN)/python scripts/common_tests.py

# Report pages in a headless browser, checked for accessibility: needs npm, and fetches 126 MB into tests/browser.
browser-tests: $(VENV)/installed
	npm ci --prefix tests/browser --no-audit --no-fund --loglevel error
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m browser tests/report/test_page_in_browser.py

# Students in vLLM's CPU build: three minutes, and fetches 3 GB into build/vllm.
vllm-tests:
	$(PYTHON) scripts/vllm_tests.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site dist
