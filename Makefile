# One entry for each chore; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(INSTALLED): constraints.txt examples/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "InferX needs Python 3.11 or newer; say which with make PYTHON=..." >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "InferX needs Rust (cargo) to build" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r constraints.txt
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes --no-deps \
	  -r examples/requirements.txt
	@touch $@

.PHONY: build
build: $(INSTALLED) ## make the environment and the extension module (release)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH=$(BIN):$$PATH maturin develop -q --release >/dev/null

RUNTIME ?= process
.PHONY: demo
demo: build ## start the platform, deploy real functions, call them; RUNTIME=runc with snapshots
	$(PY) scripts/demo.py --runtime $(RUNTIME)

.PHONY: test
test: build ## install what the tests need and run all of them
	scripts/test-deps
	scripts/test

.PHONY: lint
lint: build ## formatting, clippy, ruff, bandit, types, stub of the extension
	cargo fmt --all --check
	cargo clippy -q --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit -q -ll -c pyproject.toml -r python services scripts bench
	$(BIN)/mypy
	$(PY) -m mypy.stubtest inferx._ext --ignore-disjoint-bases

.PHONY: audit
audit: $(INSTALLED) ## committed secrets; known vulnerabilities, where their databases are reachable
	scripts/audit

.PHONY: lock
lock: ## resolve the Python dependencies again into constraints.txt (versions and hashes)
	$(PYTHON) -m piptools compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --strip-extras --allow-unsafe --all-extras -o constraints.txt pyproject.toml

.PHONY: proto
proto: $(INSTALLED) ## generate the gRPC stubs from the .proto files
	cd python && $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	  --grpc_python_out=. $$(find inferx -name '*.proto')

TRACES ?=
SEEDS ?= 10
.PHONY: bench-place
bench-place: ## GPUs allocated and time per decision, by policy; TRACES=DIR SEEDS=10
	cargo run -q --release -p scheduler_core --example bench_place -- $(TRACES) --seeds $(SEEDS)

TRACE ?=
SLOTS ?= 8,16
.PHONY: bench-keepalive
bench-keepalive: ## what to keep warm, against the baselines; TRACE=FILE SLOTS=8,16
	$(PY) bench/keepalive.py --trace $(TRACE) --slots $(SLOTS)

.PHONY: bench-core
bench-core: build ## lease and return, placement, rebuild of a large cluster, from Python
	$(PY) bench/core.py

.PHONY: bench-proxy
bench-proxy: build ## the data plane beside nginx, haproxy and LLM gateways (needs nginx, wrk); ARGS=...
	$(PY) bench/proxy.py $(ARGS)

.PHONY: bench-peers
bench-peers: ## install the LLM gateways that bench-proxy compares with, in their own environment
	$(PYTHON) -m venv .cache/bench-peers
	.cache/bench-peers/bin/pip install -q --disable-pip-version-check -r bench/peers.txt

.PHONY: image
IMAGES ?= service
image: build ## the container image inferx/inferx (needs Docker); BASE_IMAGE=..., IMAGES="service demo"
	scripts/image $(IMAGES)

.PHONY: image-test
image-test: build ## build the image with a Docker engine of its own, run it, break a cluster of it
	scripts/test-deps && tests/image/install
	$(PY) -m pytest tests/image

.PHONY: kube-test
kube-test: build ## apply k8s/ to a real API server, built from the Go module proxy (needs Go)
	scripts/test-deps && scripts/kube-binaries .cache/kube-test
	$(PY) -m pytest tests/kube

.cache/checkov/bin/checkov:
	$(PYTHON) -m venv .cache/checkov
	.cache/checkov/bin/pip install -q --disable-pip-version-check checkov

.PHONY: keycloak-test
keycloak-test: build ## tokens, logins and rotating keys of a real Keycloak (Maven, Java; minutes)
	scripts/keycloak .cache/keycloak
	$(PY) -m pytest tests/keycloak

.PHONY: checkov
checkov: $(INSTALLED) .cache/checkov/bin/checkov ## security findings in k8s/ against the listed exceptions
	$(PY) scripts/checkov .cache/checkov/bin/checkov

N ?= 100
SEED ?= 1
.PHONY: chaos
chaos: build ## break a real cluster N times under load and judge what happened; N=100 SEED=1
	scripts/test-deps
	$(PY) -m tests.chaos.run -n $(N) --seed $(SEED)

.PHONY: bench-failover
bench-failover: build ## kill and freeze leaders under load, then kill nodes: how long clients wait; ARGS=...
	scripts/test-deps
	$(PY) -m tests.chaos.failover $(ARGS)

.PHONY: bench-manners
bench-manners: build ## how the data plane behaves: clients that leave or stall, a held lock, parked calls
	$(PY) bench/manners.py

SECONDS ?= 3600
.PHONY: soak
soak: build ## mixed load on a whole platform; fails when a call does or memory grows; SECONDS=3600
	$(PY) bench/soak.py --seconds $(SECONDS) $(ARGS)

JAX := .cache/jax
$(JAX)/.installed: examples/jax/requirements.txt
	$(PYTHON) -m venv $(JAX)
	$(JAX)/bin/python -m pip install -q --disable-pip-version-check --require-hashes \
	  -r examples/jax/requirements.txt
	@touch $@

.PHONY: bench-snapshot
bench-snapshot: build $(JAX)/.installed ## cold starts against restores of real servers (root); ARGS=...
	scripts/install-criu
	$(PY) bench/snapshot_workers.py $(ARGS)

.PHONY: bench-tenants
bench-tenants: build ## a thousand tenants with limits and a noisy one, under locust; ARGS=...
	$(PY) bench/tenants.py $(ARGS)

OUTAGE_S ?= 120
.PHONY: audit-outage
audit-outage: build ## PostgreSQL stopped, hung, and a gateway killed meanwhile, under load; OUTAGE_S=120
	scripts/test-deps
	OUTAGE_S=$(OUTAGE_S) $(PY) -m pytest -q -s tests/cluster/test_audit_outage.py

.PHONY: crash-points
crash-points: build ## kill each service after its n-th write to the store, for every n
	scripts/test-deps
	$(PY) -m tests.chaos.crash_points

.PHONY: bench-lease
bench-lease: build ## lease + return over gRPC; ARGS="--against DIR" beside another built checkout
	cargo build -q --release -p scheduler_server --example pairs
	$(PY) -m bench.lease $(ARGS)

.PHONY: bench-scale
bench-scale: build ## 10k functions and 1k simulated agents: known, and served again after a restart
	$(PY) -m bench.scale $(ARGS)

.PHONY: soak-park
soak-park: build ## a thousand parkings of a container: memory and descriptors stay flat (root)
	PARK_CYCLES=1000 $(PY) -m pytest -q -s tests/cluster/test_snapshot_crash.py -k flat

.PHONY: gpu-check
gpu-check: build ## everything of the CudaDevice on an NVIDIA GPU, as JSON; ARGS=...; exits with 3 without one
	$(PY) bench/gpu_check.py $(ARGS)

.PHONY: clean
clean: ## remove everything that the build made
	rm -rf $(VENV) target .cache python/inferx/_ext*.so
