# The demo's repositories are built from cargo's download cache; any directory
# with files will do: make demo DIR=...
CARGO ?= cargo
N ?= 20
MINUTES ?= 10

.PHONY: help setup servers build check fmt test demo bench figures schema doc soak soak-faults

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## Install what tests need and is missing: Postgres, Redis, PgBouncer, faketime
	@sh tests/support/install-servers.sh all

servers:
	@sh tests/support/install-servers.sh servers

build: ## Build the program
	$(CARGO) build --locked

check: ## Check format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

fmt: ## Format
	$(CARGO) fmt

test: setup ## Run all tests, on private servers
	$(CARGO) test --locked

demo: servers ## Build package repositories from real archives, and check the outcome
	$(CARGO) run --locked --release -- demo $(if $(TYPE),--type $(TYPE)) $(DIR)

bench: servers ## Measure, beside the physical limit
	$(CARGO) run --locked --release -- bench all

figures: servers ## Draw the figures of examples/figures, from runs of an hour or so
	$(CARGO) build --locked --release --bins --examples
	$(CARGO) run --locked --release --example figures -- $(ARGS)

schema: setup ## Rewrite sql/schema.sql from the migrations
	MILLHAND_WRITE_SCHEMA=1 $(CARGO) test --locked --test integration golden_schema

doc: ## Build the documentation of the library
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

soak: setup ## Repeat the tests N times
	$(CARGO) test --locked --no-run
	for n in $$(seq $(N)); do echo "round $$n"; $(CARGO) test --locked || exit; done

soak-faults: setup ## Random tasks and random faults for MINUTES, judged at the end
	MILLHAND_SOAK_MINUTES=$(MINUTES) MILLHAND_SOAK_TYPE=$(TYPE) MILLHAND_SOAK_SEED=$(SEED) \
	MILLHAND_SOAK_WITHOUT="$(WITHOUT)" \
	$(CARGO) test --locked --release --test soak
