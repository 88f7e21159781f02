# make book   build the book        make test   lint and test        make clean   remove what was built
# Both make .venv first. The interpreter it is made from: make book PYTHON=python3.12

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed

# Programs and kernels are this environment's, whatever is installed elsewhere.
RUN := PATH="$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: book test clean

# Pages that warn or fail are read again by the next build: see book/_ext/unfinished.py.
book: $(INSTALLED)
	@$(RUN) jupyter-book build . -W -n --keep-going -q
	@echo "Open $(CURDIR)/_build/html/index.html"

test: $(INSTALLED)
	@$(RUN) ruff check .
	@$(RUN) pytest

clean:
	rm -rf _build

# The stamp is made last. Without it the environment is made anew: what a killed installation left is not mended.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@test -e $@ || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; }
	@rm -f $@
	@echo "installing requirements.txt into .venv (minutes, and about 6 GB, the first time)"
	@"$(BIN)/pip" install --quiet --requirement requirements.txt
	@"$(BIN)/pip" install --quiet --no-deps --editable .
	@mkdir -p .venv/etc/ipython  # each kernel's warning about its transport would cut the progress lines
	@echo 'c.IPKernelApp.log_level = 40' > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@
