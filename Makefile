# Everything below sets itself up: it needs Python 3.11 or newer with its venv module, and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
DOCKER_COMPOSE ?= docker compose
PORT   ?= 8080
VAR    ?= var
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help run test check format lock proto migration settings up down bench recordings clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.all ## Run the whole exchange on this machine (PORT=8080, VAR=var)
	@BOURSE_EDGE_PORT=$(PORT) BOURSE_VAR=$(VAR) exec $(BIN)/python -m services

test: $(VENV)/.test ## Run the tests (ARGS="tests/edge -k models")
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Run every static check (ARGS="types imports" runs some)
	@$(BIN)/python -m tools.check $(ARGS)

format: $(VENV)/.dev ## Format the code and mend what lint can mend
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

lock: $(VENV)/.uv ## Lock every dependency group with hashes (UPGRADE=1 takes newer versions)
	@UV=$(BIN)/uv UPGRADE=$(UPGRADE) $(BIN)/python -m tools.lock

proto: $(VENV)/.dev ## Generate bourse/v1 from proto/
	@$(BIN)/python -m tools.proto

migration: $(VENV)/.dev ## Write a migration from the changed tables (SERVICE=billing M="why")
	@$(BIN)/python -m tools.migration "$(SERVICE)" "$(M)"

settings: $(VENV)/.dev ## Write docs/settings.md from the settings classes
	@$(BIN)/python -m tools.settings

up: var/compose/sealing_key ## Run PostgreSQL, Kafka and one container per service
	$(DOCKER_COMPOSE) -f deploy/compose.yaml up --build --detach --wait

down: ## Stop what `make up` started; volumes stay
	$(DOCKER_COMPOSE) -f deploy/compose.yaml down

var/compose/sealing_key:
	@mkdir -p $(@D)
	@head -c 32 /dev/urandom | base64 > $@

bench: $(VENV)/.test ## Measure requests, CPU and added latency beside the bare upstream
	@$(BIN)/python -m benchmarks $(ARGS)

recordings: $(VENV)/.test ## Decode the recorded exchanges (RECORDINGS=DIR, JSON=FILE)
	@$(if $(RECORDINGS),RECORDINGS="$(RECORDINGS)") $(if $(JSON),JSON="$(JSON)") $(BIN)/python -m tests.recordings

clean: ## Remove the environment and the caches; var/ stays
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info

# Each stamp holds one locked group; a larger group adds to the smaller.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Bourse needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.all: requirements/all.txt | $(VENV)/.created
	@echo "Installing $<"
	@$(PIP) --require-hashes --requirement $<
	@$(PIP) --no-deps --no-index --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.all
	@echo "Installing $<"
	@$(PIP) --require-hashes --requirement $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.test
	@echo "Installing $<"
	@$(PIP) --require-hashes --requirement $<
	@touch $@

# Locking must work when the lock is the thing that is wrong.
$(VENV)/.uv: | $(VENV)/.created
	@$(PIP) uv
	@touch $@
