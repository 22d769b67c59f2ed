# `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
LOCK   := $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header --no-annotate
LOCKED := requirements.txt requirements-dev.txt deploy/requirements.txt \
	$(wildcard shims/*/requirements.txt bench/peers/*/requirements.txt local/requirements/*.txt)
STAGE  ?= dev
ARCH   ?= arm64
VIA    ?= chalice
SNAPSTART ?= off
ORDERS ?= 1000000
# docs/testing.md describes how tests are distributed over processes. Bytecode is on, because otherwise every process
# that the tests start compiles all modules that it imports.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadscope --no-loadscope-reorder
# Only a USER on make's command line counts: every shell sets one too.
TOKEN_USER := $(if $(filter command line,$(origin USER)),$(USER))

.DEFAULT_GOAL := help
.PHONY: help run token migrate build-aws deploy-aws gateway-responses build-azure build-gcp build-oci local-aws local-lambda local-azure local-gcp local-oci deploy-azure deploy-gcp deploy-run deploy-oci conform bench bench-profile bench-scale soak test test-fast test-report audit docs lint fmt lock system-packages clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {gsub(/ /, ", ", $$1); printf((length($$1) > 17 ? "  make %s\n                         %s\n" : "  make %-17s %s\n"), $$1, $$2)}' $(MAKEFILE_LIST)

run: $(READY) ## the API on this machine with a real PostgreSQL; HOST, PORT, DATABASE_URL
	@$(BIN)/python -m local run

token: export TENANT := $(TENANT)
token: export TOKEN_USER := $(TOKEN_USER)
token: $(READY) ## a token for the running stack: make token TENANT=acme USER=alice
	@$(BIN)/python -m local token

migrate: export OWNER_DATABASE_URL := $(OWNER_DATABASE_URL)
migrate: export SQL := $(SQL)
migrate: export FROM := $(FROM)
migrate: $(READY) ## bring a database to this release's schema while it serves: OWNER_DATABASE_URL=...; SQL=1 FROM=2 prints it
	@$(BIN)/python -m migrations

test: $(READY) ## every test, from nothing to green; WORKERS=3 processes, 0 for none
	$(PYTEST) -n $(or $(WORKERS),3) --junit-xml=build/junit.xml

test-fast: $(READY) ## without the whole-stack and long tests, for daily work
	$(PYTEST) -n $(or $(WORKERS),logical) -m "not slow"

test-report: $(READY) ## the slowest tests of the last make test, into docs/testing.md
	@$(BIN)/python -m tests.support.slowest build/junit.xml docs/testing.md

build-aws: $(READY) ## build/aws, ready for chalice deploy and SAM; STAGE=dev ARCH=arm64 SNAPSTART=on
	@$(BIN)/python -m deploy build aws --stage "$(STAGE)" --arch "$(ARCH)" --snapstart "$(SNAPSTART)"

deploy-aws: build-aws ## deploy it; STAGE=dev VIA=chalice or sam (SNAPSTART=on: sam)
	@$(BIN)/python -m deploy deploy aws --stage "$(STAGE)" --via "$(VIA)"

gateway-responses: $(READY) ## API Gateway's own errors as problem+json, after a plain chalice deploy; STAGE=dev
	@$(BIN)/python -m deploy gateway-responses --stage "$(STAGE)"

build-azure build-gcp build-oci: build-%: $(READY) ## build/<cloud>, ready for that cloud's own command
	@$(BIN)/python -m deploy build $*

local-lambda local-azure local-gcp local-oci: local-%: $(READY) ## serve the build with that cloud's own Python runtime; HOST, PORT (local-lambda: after build-aws with this machine's ARCH)
	@$(BIN)/python -m local serve $*

local-aws: local-%: $(READY) ## `chalice local` on the sources, with a database and tokens; HOST, PORT
	@$(BIN)/python -m local serve $*

deploy-azure deploy-gcp deploy-run deploy-oci: deploy-%: $(READY) ## build, and deploy with that cloud's own command
	@$(BIN)/python -m deploy deploy $*

conform: $(READY) ## check a deployed stage against the contract: make conform URL=... TOKEN=... [OTHER_TOKEN=...]
	@$(BIN)/python -m tools.conform

bench: export QUICK := $(QUICK)
bench: export ONLY := $(ONLY)
bench: export CONTENDERS := $(CONTENDERS)
bench: $(READY) ## compare with FastAPI, Powertools and raw psycopg2; results in bench/results; QUICK=1 ONLY=warm,cold
	@$(BIN)/python -m bench

bench-profile: $(READY) ## profile this project: cProfile and -X importtime
	@$(BIN)/python -m bench.profile

bench-scale: export ORDERS := $(ORDERS)
bench-scale: export SCALE_DATA := $(SCALE_DATA)
bench-scale: export SHARED_BUFFERS := $(SHARED_BUFFERS)
bench-scale: $(READY) ## the same requests with a growing number of orders; ORDERS=1000000; published: 10000000 (15 GB of disk)
	@$(BIN)/python -m bench.scale

soak: export MINUTES := $(MINUTES)
soak: export SABOTAGE := $(SABOTAGE)
soak: export SEED := $(SEED)
soak: $(READY) ## kill processes and cut connections under load, count lost, doubled and crossed orders; MINUTES=10 SEED=, SABOTAGE=rls, idempotency or durability to see it fail
	@$(BIN)/python -m tools.soak

deploy-azure: build-azure
deploy-gcp deploy-run: build-gcp
deploy-oci: build-oci

audit: export SERVICE := $(SERVICE)
audit: $(READY) ## known vulnerabilities of every pinned dependency (pip-audit); SERVICE=osv
	@$(BIN)/python -m audit

lint: $(READY) ## ruff, mypy --strict, the import contract and the locks of migrations (squawk)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python -m migrations.lint

docs: $(READY) ## write the table of settings in docs/configuration.md
	@$(BIN)/python -m deploy.configuration_page

fmt: $(READY) ## format and sort imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lock: $(READY) ## pin the dependency groups of pyproject.toml, with the hashes of all files
	@$(BIN)/python -m deploy.pins $(LOCKED)
	$(LOCK) --group aws -o requirements.txt
	$(LOCK) --group runtime -c requirements.txt -o deploy/requirements.txt
	$(LOCK) --group azure -c requirements.txt -o shims/azure/requirements.txt
	$(LOCK) --group gcp -c requirements.txt -o shims/gcp/requirements.txt
	$(LOCK) --group oci -c requirements.txt -o shims/oci/requirements.txt
	$(LOCK) --group lambda -o local/requirements/lambda.txt
	$(LOCK) --group template -o local/requirements/template.txt
	$(LOCK) --group audit -o local/requirements/audit.txt
	$(LOCK) --group peer-fastapi -c requirements.txt -o bench/peers/fastapi_sqlmodel/requirements.txt
	$(LOCK) --group peer-powertools -c requirements.txt -o bench/peers/powertools/requirements.txt
	$(LOCK) --group peer-chalice -c requirements.txt -o bench/peers/chalice_orm/requirements.txt
	$(LOCK) --group dev -c requirements.txt -o requirements-dev.txt

system-packages: ## install the browser, PostgreSQL 15, PgBouncer, locales, npm and wrk for tests and bench, on Debian and as root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		chromium chromium-driver curl locales pgbouncer postgresql-15 wrk $$(command -v npm >/dev/null || echo npm) >/dev/null

clean: ## remove the virtual environment and caches; orders in .local/ stay
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis

$(READY): requirements-dev.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11, 3.12 or 3.13 is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || echo "Note: tested with Python 3.11 to 3.13, $(PYTHON) is newer" >&2
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (once, about a minute)" >&2
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-dev.txt >&2 || { echo "Installing failed. Is the package index reachable? A proxy: HTTPS_PROXY, a mirror: PIP_INDEX_URL" >&2; exit 1; }
	@touch $@
