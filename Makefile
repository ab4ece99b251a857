# Two commands do everything: `make dev` and `make test`. `make help` lists the others.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET_DIR)/release

.DEFAULT_GOAL := help
.PHONY: help dev test check tools setup fix conformance fuzz chaos bench image clean
# One cargo at a time: they share a target folder, and tests start real clusters.
.NOTPARALLEL:

help: ## Lists the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

dev: ## Builds the release and runs three nodes on this machine (ARGS='--nodes 5 --port 6000')
	cargo build --release --locked
	@exec $(RELEASE)/flotilla dev $(ARGS)

test: check ## Every check and every test; edits no file. What CI runs
# The programs first: tests start them as processes.
	cargo build --workspace --locked
	cargo test --workspace --locked

check: tools ## Formatting, licences, lints; the cheap half of `make test`
	cargo fmt --all --check
	cargo deny --locked check licenses bans sources
	cargo clippy --workspace --all-targets --locked -- -D warnings

tools: ## Installs what the tests need where it is absent (NO_INSTALL=1: nothing)
	@.ci/tools

setup: tools

fix: ## Formats, and lets clippy repair what it can
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

conformance: tools ## The official conformance program: on one node, over three, and while the leader is killed
	cargo build --workspace --locked
	cargo test --locked --test it conformance -- --include-ignored --nocapture

FUZZ_SECONDS ?= 600

fuzz: ## Every parser, FUZZ_SECONDS each (600); needs a nightly compiler and cargo-fuzz
	@for target in path names ranges manifest settings envelope images review; do \
		mkdir -p fuzz/corpus/$$target && cp -n fuzz/seeds/$$target/* fuzz/corpus/$$target/ 2>/dev/null; \
		cargo +nightly fuzz run --target-dir $(TARGET_DIR)/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 || exit 1; \
	done

CHAOS := cargo run --release --locked --package chaos-tests --

chaos: ## The fault checks in full, on the release build; takes about an hour
	cargo build --release --workspace --locked
	$(CHAOS) kill-leader --times 20
	$(CHAOS) handover --times 20
	$(CHAOS) kill-all --times 20
	$(CHAOS) grow
	$(CHAOS) lost-disk
	$(CHAOS) zones
	$(CHAOS) membership
	$(CHAOS) placement
	$(CHAOS) peers
	$(CHAOS) damage
	$(CHAOS) million
	$(CHAOS) catch-up
	$(CHAOS) big-blob
	$(CHAOS) no-quorum
	$(CHAOS) clients --count 200
	$(CHAOS) watch
	$(CHAOS) races
	$(CHAOS) garbage
	$(CHAOS) garbage --kills
	$(CHAOS) admission --reviews 100000 --kills 10
	$(CHAOS) kustomize --rounds 3
	$(CHAOS) drill --times 5

bench: ## Where the measurements are and how to repeat them
	@echo 'docs/performance.md has the figures and the command for each.'

image: ## A container image with the static binary, by buildah: target/image/*.tar
	deploy/build-image

clean: ## Removes what was built
	cargo clean
