# One entry for each chore; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: proto
proto: ## generate the gRPC stubs from python/inferx/rpc/*.proto
	cd python && ../$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. inferx/rpc/*.proto

TRACES ?=
SEEDS ?= 10
.PHONY: bench-place
bench-place: ## GPUs allocated and time per decision, by policy; TRACES=DIR SEEDS=10
	cargo run -q --release -p scheduler_core --example bench_place -- $(TRACES) --seeds $(SEEDS)
