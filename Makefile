# A wrapper for `anklume` and cargo, without logic of its own. `make help` lists the targets.
#
# User-supplied values (I=, ARGS=, …) are data and must stay data. But make runs any `$(shell …)` in a command-line
# variable that it passes to a recipe, and a shell interprets quotes and `;` in any text that appears in a recipe.
# Therefore, each value is first replaced by its plain text, and recipes use it only as a quoted environment variable.
# tests/integration/makefile.rs tests this for every variable.

# The loop variable below hides a user's variable with the same name, so the user's is handled first.
ifeq ($(origin anklume_name),command line)
override export anklume_name := $(value anklume_name)
endif
override outside := $(filter-out anklume_name,$(foreach anklume_name,$(.VARIABLES),$(if $(findstring $$,$(anklume_name)),,$(if $(filter command,$(firstword $(origin $(anklume_name)))),$(anklume_name)))))
$(foreach anklume_name,$(outside),$(eval override export $(anklume_name) := $$(value $(anklume_name))))
override MAKEOVERRIDES :=
override SHELL := /bin/sh
override .SHELLFLAGS := -ec

# Always build the static binary that .cargo/config.toml defines, in a fixed folder, regardless of the environment.
override export CARGO_TARGET_DIR := target
unexport CARGO_BUILD_TARGET RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS

override built := target/x86_64-unknown-linux-gnu
override release := $(built)/release/anklume
override dev := $(built)/debug/anklume
# The wrapping targets run the release binary if it exists, else the development binary.
override anklume := $(firstword $(wildcard $(release)) $(dev))
override sources := $(wildcard Cargo.toml Cargo.lock build.rs .cargo/config.toml src/*.rs src/*/*.rs src/*/*/*.rs src/*/*/*.yml src/*/*/*.bash docs/infra.md src/*/*/*/*.rs src/*/*/*/*/*.rs src/*/*/*/*/*/*.rs)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-long test-upstream test-host check build install deb tarball deny bench fuzz fuzz-seeds setup sync apply doctor policy-check policy-list mcp-list mcp-call

help: ## list the targets
	@echo 'usage: make TARGET [NAME=value …]'
	@echo
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)$$/\1\t\2/p' Makefile | while IFS='	' read -r target text; do printf '  %-14s %s\n' "$$target" "$$text"; done

# --- demo and tests ---

demo: ## build, and show the main features in a temporary folder
	@sh tests/setup.sh demo
	cargo build
	@sh tests/demo.sh $(dev)

setup: ## install or list the test dependencies
	@sh tests/setup.sh

test: ## install or list the test dependencies, and run all tests
	@sh tests/run.sh

test-long: ## run all tests, including the long ones, with larger numbers (takes hours)
	@ANKLUME_TEST_LONG=1 sh tests/run.sh --run-ignored all

test-upstream: ## test with MCP servers that others wrote, in locked versions; part of `make test`
	@sh tests/run.sh -E 'test(upstreams)'

test-host: $(anklume) ## test on real hosts in qemu, with Incus 6.0 and 7; as root on Debian (takes 20 minutes)
	@bash tests/host/run.sh $(anklume)

check: ## check formatting, lints and docs
	@sh tests/setup.sh check
	cargo metadata --locked --format-version 1 >/dev/null
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --no-deps --document-private-items
	cargo test --test integration -- docs::

fuzz-seeds: ## build the fuzz targets without instrumentation and run each on its seeds
	@sh tests/setup.sh fuzz
	RUSTFLAGS='--cfg fuzzing' CARGO_TARGET_DIR=target/fuzz cargo build --locked --manifest-path tests/fuzz/Cargo.toml
	for target in $$(ls tests/fuzz/seeds); do target/fuzz/x86_64-unknown-linux-gnu/debug/$$target tests/fuzz/seeds/$$target/* || exit 1; done

fuzz: ## run each fuzz target for ten minutes; needs cargo-fuzz
	for target in $$(ls tests/fuzz/seeds); do mkdir -p tests/fuzz/corpus/$$target; \
	RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz $$target tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- -max_total_time=600 -max_len=65536 -malloc_limit_mb=64 || exit 1; done

bench: ## run benchmarks against the floor and the Python SDK
	@sh tests/setup.sh
	cargo bench --bench bench --no-run
	@if [ "$$(id -u)" = 0 ] && [ -x /usr/libexec/incus/incusd ]; then sh tests/incus/private.sh cargo bench --bench bench; else cargo bench --bench bench; fi

# --- build and install ---

build: ## build one optimised static binary
	sh packaging/build.sh
	@ls -l $(release)

install: $(release) ## install binary, manual pages and completions: PREFIX= (/usr/local), DESTDIR=
	@at="$${DESTDIR:-}$${PREFIX:-/usr/local}"; \
	case "$$at" in /*) ;; *) echo "make install: \`$$at\` is not an absolute path: give PREFIX=/… or DESTDIR=/…" >&2; exit 2;; esac; \
	share="$$at/share"; \
	mkdir -p -- "$$at/bin" "$$share/bash-completion/completions" "$$share/zsh/site-functions" "$$share/fish/vendor_completions.d"; \
	install -m 0755 -- $(release) "$$at/bin/anklume"; \
	ln -sf anklume "$$at/bin/anklume-gpg"; \
	$(release) completions bash > "$$share/bash-completion/completions/anklume"; \
	$(release) completions zsh > "$$share/zsh/site-functions/_anklume"; \
	$(release) completions fish > "$$share/fish/vendor_completions.d/anklume.fish"; \
	$(release) man --quiet --dir "$$share/man"; \
	printf 'installed %s\n' "$$at/bin/anklume"

deb: build ## build the Debian package; needs cargo-deb
	sh packaging/stage.sh
	SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" cargo deb --no-build --locked --target x86_64-unknown-linux-gnu

tarball: build ## build the reproducible tarball, its SHA-256 and its SBOM; needs cargo-cyclonedx
	sh packaging/stage.sh
	sh packaging/tarball.sh target/stage target/dist

deny: ## check the licences and sources of the dependencies; needs cargo-deny
	cargo deny --locked --offline -L error check licenses sources bans

$(release): $(sources)
	sh packaging/build.sh
	@touch $@

$(dev): $(sources)
	cargo build
	@touch $@

# --- use ---
# Options are passed as `--name=value`, and positional arguments after `--`, so a leading `-` in a value is harmless.

override infra := $${INFRA:+"--infra=$$INFRA"}
override machine := "--instance=$$I" $${P:+"--project=$$P"}

sync: $(anklume) ## check infra.yml and write the files that Ansible reads: INFRA=
	@$(anklume) sync $(infra)

apply: $(anklume) ## make Incus match infra.yml: INFRA=
	@$(anklume) apply $(infra)

doctor: $(anklume) ## check each channel, and show how to fix faults: INFRA=
	@$(anklume) doctor $(infra)

policy-check: $(anklume) ## check whether CALLER= may use SERVICE=: PROVIDER=, INFRA=
	@test -n "$${CALLER:-}" || { echo 'make policy-check: CALLER= is missing: the machine that calls' >&2; exit 2; }
	@test -n "$${SERVICE:-}" || { echo 'make policy-check: SERVICE= is missing: the service that it calls' >&2; exit 2; }
	@$(anklume) policy check "--caller=$$CALLER" "--service=$$SERVICE" $${PROVIDER:+"--provider=$$PROVIDER"} $(infra)

policy-list: $(anklume) ## list all declared services: INFRA=
	@$(anklume) policy list $(infra)

mcp-list: $(anklume) ## list the tools of machine I=: P= (its project)
	@test -n "$${I:-}" || { echo 'make mcp-list: I= is missing: the machine to ask, as in `make mcp-list I=vault-signer`' >&2; exit 2; }
	@$(anklume) mcp list $(machine)

mcp-call: $(anklume) ## call TOOL= on machine I=: ARGS= (a JSON object, or - for stdin), P= (its project)
	@test -n "$${I:-}" || { echo 'make mcp-call: I= is missing: the machine to call, as in `make mcp-call I=vault-signer TOOL=clipboard_get`' >&2; exit 2; }
	@test -n "$${TOOL:-}" || { echo 'make mcp-call: TOOL= is missing: the tool to call; `make mcp-list I=…` names them' >&2; exit 2; }
	@$(anklume) mcp call $(machine) -- "$$TOOL" $${ARGS:+"$$ARGS"}
