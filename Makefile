# Two commands do everything on a fresh Debian or Ubuntu machine:
#   make demo    builds a real OS image, makes a disk, boots it, upgrades, rolls back, and shows it all
#   make test    runs every check, virtual machines included
# Both install what they need: Debian packages (as root or through sudo) and a virtual environment in .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test check format lint types unit system vm bench deb man deps clean

PYTHON ?= $(shell for p in /usr/bin/python3 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
CACHE := .cache
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export PYTHONPATH := src
export PYTHONDONTWRITEBYTECODE :=

# What `make check` needs, then what building, booting and serving images needs on top.
APT_CHECK := python3-venv shellcheck libarchive-tools
APT_TEST := mmdebstrap debian-archive-keyring docker-registry qemu-system-x86 qemu-utils ovmf e2fsprogs mtools \
            dosfstools fdisk openssh-client fsverity zstd xz-utils man-db

demo: $(CACHE)/apt-test $(VENV)/ready
	$(BIN)/python tools/demo.py

test: check system vm

check: $(CACHE)/apt-check $(VENV)/ready
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto -m "not system and not vm"

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/ready
	$(BIN)/mypy

unit: $(VENV)/ready
	$(BIN)/pytest -q -n auto -m "not system and not vm"

system: $(CACHE)/apt-test $(VENV)/ready
	$(BIN)/python tools/peers.py
	BOOTWRIGHT_PEERS=$(CURDIR)/$(CACHE)/peers $(BIN)/pytest -m system

vm: $(CACHE)/apt-test $(VENV)/ready
	$(BIN)/pytest -v -m vm

bench: $(CACHE)/apt-test $(VENV)/ready
	for script in startup mkimage pull; do $(BIN)/python bench/$$script.py; done

deb: $(VENV)/ready
	$(BIN)/python tools/build_deb.py

man: $(VENV)/ready
	$(BIN)/python tools/manpages.py

deps: $(CACHE)/apt-check $(CACHE)/apt-test $(VENV)/ready

$(CACHE)/apt-check: Makefile
	@mkdir -p $(CACHE)
	@tools/apt-install $(APT_CHECK)
	@touch $@

$(CACHE)/apt-test: Makefile $(CACHE)/apt-check
	@tools/apt-install $(APT_TEST)
	@touch $@

$(VENV)/ready: pyproject.toml $(CACHE)/apt-check
	@echo "installing the Python dependencies of pyproject.toml into $(VENV)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip --quiet --disable-pip-version-check install --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(CACHE) build dist
