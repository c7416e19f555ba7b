.PHONY: help test lint

help:
	@echo "make test   every test that there is"
	@echo "make lint   formatting, clippy with warnings denied, licences, doubled versions"

test:
	cargo test --workspace

lint:
	ci/lint
