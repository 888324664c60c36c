# make help lists the targets.
GO ?= go
BIN := bin
VERSION ?= $(shell packaging/version.sh)
LDFLAGS := -s -w -X github.com/273ebdf9/lb/internal/build.version=$(VERSION)
# Pinned tools; go run fetches and caches them.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

.DEFAULT_GOAL := help
.PHONY: help build preload run test race check e2e faults soak bench fuzz package release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/lb, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/lb ./cmd/lb

preload: $(BIN)/lbaccept.so ## bin/lbaccept.so, which has unchanged programs take handed-off connections (needs gcc)

$(BIN)/lbaccept.so: preload/lbaccept.c
	mkdir -p $(BIN)
	$(CC) -O2 -Wall -Wextra -Werror -fPIC -shared -o $@ $< -ldl

run: build ## build, and start lb with four sample processes
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/sample ./examples/go
	examples/run.sh $(BIN)/lb config.example.toml

test: ## all Go tests; needs no other program
	$(GO) test ./...
	$(GO) test ./proxy -batching off

race: ## all Go tests under the race detector, three times
	$(GO) test -race -count=3 ./...
	$(GO) test -race -count=3 ./proxy -batching off

check: ## gofmt, vet, staticcheck, and the import table
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt differs:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags 'e2e faults soak' ./tests/...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./tests/arch

e2e: build ## test the built binary with real programs (installs those it lacks with apt-get)
	tests/e2e/install.sh
	LB_BINARY=$(CURDIR)/$(BIN)/lb $(GO) test -tags e2e -count=1 -timeout 40m ./tests/e2e/...

faults: build ## have every system call on lb's paths fail under load (root, strace); FAULTS=recvmsg:EIO for one, FAULTS_TIME=4m for less
	tests/e2e/install.sh
	LB_FAULTS=$(FAULTS) LB_FAULTS_TIME=$(FAULTS_TIME) LB_BINARY=$(CURDIR)/$(BIN)/lb $(GO) test -tags 'e2e faults' -count=1 -timeout 40m -v -run '^TestFaults$$' ./tests/e2e

SOAK ?= 1h
soak: build ## a byte-checking load for SOAK (1h) with reloads, upgrades, kills, freezes, cleaners
	LB_BINARY=$(CURDIR)/$(BIN)/lb SOAK=$(SOAK) $(GO) test -tags 'e2e soak' -count=1 -timeout 0 -v -run '^TestSoak$$' ./tests/e2e

bench: build preload ## lb, haproxy and nginx side by side; BENCHFLAGS="-cases keepalive -rounds 3" for less, "-haproxy PATH" for another one
	$(GO) run ./bench/cmd/compare -install -lb $(BIN)/lb -preload $(BIN)/lbaccept.so $(BENCHFLAGS)

FUZZTIME ?= 30s
fuzz: ## run every fuzz target for FUZZTIME each
	@set -e; packages=$$($(GO) list ./...); for p in $$packages; do \
		targets=$$($(GO) test -list '^Fuzz' $$p) || { echo "$$targets"; exit 1; }; \
		for f in $$(echo "$$targets" | sed -n '/^Fuzz/p'); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p; \
		done; done

DIST := dist
ARCHES := amd64 arm64
FORMATS := deb rpm tar
package: ## deb, rpm and tarball for amd64 and arm64 in dist/; two builds of a commit are equal byte for byte
	rm -rf $(DIST)
	mkdir -p $(DIST)
	for arch in $(ARCHES); do GO='$(GO)' VERSION='$(VERSION)' NFPM='$(GO) run $(NFPM)' packaging/package.sh $$arch $(DIST) $(FORMATS) || exit 1; done

release: package ## the packages, what they are made of (SBOM), and checksums
	$(GO) run $(CYCLONEDX) mod -json -licenses -output $(DIST)/lb-$(VERSION).cdx.json
	cd $(DIST) && sha256sum * >SHA256SUMS

clean: ## remove what was built
	rm -rf $(BIN) $(DIST)
