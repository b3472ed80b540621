# `make` prints what there is to do. Everything here does its own set-up: a missing Docker engine is installed where root runs
# it on Debian, Compose and staticcheck are built from pinned modules into .cache, tests and demo run on an engine of their own.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
# Said outright, so that neither GOFLAGS nor a tree without its history decides what is in a binary that people compare.
BUILDVCS := $(shell git rev-parse -q --verify HEAD >/dev/null 2>&1 && echo true || echo false)
# The commit that the image names: none where the tree isn't exactly one.
COMMIT ?= $(shell test -z "$$(git status --porcelain 2>/dev/null)" && git rev-parse -q --verify HEAD 2>/dev/null)
FUZZTIME ?= 15s
# For the end-to-end tests: how long, and which; none: all.
TIMEOUT ?= 15m
TESTS ?=
SCRIPTS := .ci/run $(filter-out %.md,$(shell find hack -maxdepth 1 -type f))

.DEFAULT_GOAL := help

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the launcher: static, reproducible, bin/launcher
	CGO_ENABLED=0 go build -trimpath -buildvcs=$(BUILDVCS) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/launcher ./cmd/launcher

.PHONY: image
image: ## build the launcher's image: dist/image (OCI layout), dist/image.tar (docker load); prints the manifest digest
	@go run ./hack/image -version '$(VERSION)' -commit '$(COMMIT)'

.PHONY: reproduce
reproduce: ## build the image twice, as different users in different places, and compare every byte
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' hack/reproduce

.PHONY: sbom
sbom: image ## build the image and list what is in it, with licences: dist/sbom.cdx.json (CycloneDX)
	@go run ./hack/sbom -image dist/image -out dist/sbom.cdx.json

.PHONY: release
release: ## prepare a release in dist, image, binaries, notes and all: make release VERSION=v1.2.3
	@COMMIT='$(COMMIT)' hack/release $(if $(filter command line environment,$(origin VERSION)),'$(VERSION)')

.PHONY: demo
demo: build ## boot a small real image, end to end, and show what came of it
	hack/with-engine go run ./hack/demo -launcher bin/launcher

.PHONY: test
test: hermetic e2e ## run all tests: the hermetic ones, with the race detector, and the end-to-end ones

# The race detector looks at what runs at once, a test says so of this list. Not at the doubles' own tests, because the
# others use the doubles under it, and not at tests that start one launcher after the other or that count memory.
RACE := ./cmd/launcher ./pkg/docker/... ./pkg/fleet ./pkg/image ./pkg/launch ./pkg/preflight ./pkg/registry ./pkg/rtmr ./pkg/stage ./pkg/status ./pkg/waiting
PLAIN := ^TestMistakes|^TestNothingLeaks|^TestExamples|^TestOddImages|^TestMoreLayersThanTheEngineTakes|^TestPeakMemory|^TestGrowth

# Much of it is waiting, so more tests run at once than there are cores.
.PHONY: hermetic
hermetic: ## run the hermetic tests, which need nothing of the machine but a C compiler, /dev/fuse and root, those of what runs at once with the race detector
	hack/need cc
	CGO_ENABLED=1 go test -race -parallel 6 -timeout 20m -skip '$(PLAIN)' $(RACE)
	go test -parallel 6 -timeout 20m -run '$(PLAIN)' $(RACE)
	go test -parallel 6 -timeout 20m $$(go list ./... | grep -vxF "$$(go list $(RACE) ./pkg/launchtest/search)")
	go test -v -timeout 20m ./pkg/launchtest/search

# So many steps one after the other, of them so many events in the middle of a run; see docs/ARCHITECTURE.md.
SEARCH ?= 1.0 2.0 1.1

.PHONY: search
search: ## search the states of boots farther than the tests do, to SEARCH (1.0 2.0 1.1); some minutes
	go test -v -count=1 -timeout 6h ./pkg/launchtest/search -run '^TestSearch$$' -bounds '$(SEARCH)' -limit 6h

# Most of it is waiting, so more tests run at once than there are cores. The long lists of images and registries are
# for test-engines: here each has its commonest part.
.PHONY: e2e
e2e: ## run the end-to-end tests on a real engine with a real compose
	hack/with-engine go test -count=1 -p 1 -parallel 6 -timeout $(TIMEOUT) -tags e2e -run '^TestE2E|^TestConformanceOf' $(if $(TESTS),-run '$(value TESTS)') ./pkg/launchtest ./pkg/registry ./cmd/launcher

# The test of the generated documents is one of the hermetic tests: what is out of date fails there.
.PHONY: check
check: format vet lint test reproduce ## all that has to pass: what .ci/run runs

.PHONY: busy
busy: ## run all tests three times each while the machine has no time for them; two hours
	hack/busy

.PHONY: format
format: ## fail if a file is not formatted
	@files=$$(gofmt -l cmd pkg hack) && test -z "$$files" || { echo "not formatted, run gofmt -w:" $$files; exit 1; }
	@for script in $(SCRIPTS); do bash -n "$$script" || exit 1; done

.PHONY: vet
vet: ## run go vet, also over the end-to-end tests, and build the launcher for macOS
	go vet ./...
	go vet -tags e2e ./...
	go vet -tags external ./pkg/registry
	GOOS=darwin CGO_ENABLED=0 go vet ./pkg/internal/files ./pkg/internal/child
	GOOS=darwin CGO_ENABLED=0 go build -o /dev/null ./cmd/launcher

# After vet, because staticcheck finds nothing wrong with packages that it could not load.
.PHONY: lint
lint: vet ## run staticcheck, pinned in hack/tools/staticcheck
	tool=$$(hack/tool staticcheck) && "$$tool" ./... && "$$tool" -tags e2e ./...

.PHONY: docs
docs: ## write the generated parts of the documents anew
	go test ./cmd/launcher -run TestDocs -count=1 -update
	go test ./pkg -run TestTheAuditorsList -count=1 -update

.PHONY: test-engines
test-engines: ## run the end-to-end tests, the long ones too, on Docker 20.10, 26, 28 and 29 with both image stores, or on ENGINES alone; an hour, root on Debian
	hack/test-engines $(ENGINES)

.PHONY: test-external
test-external: ## pull from Docker Hub and GHCR; needs internet
	go test -count=1 -tags external -run TestExternal -v ./pkg/registry

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (15s)
	hack/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## compare pulls and loads with those of crane, skopeo and docker, side by side
	hack/with-engine go run ./hack/bench
