# tinker-local: every task a person or the CI runs, in one list. `make` alone prints it.
#
# A fresh machine needs Go, git and Python 3 (for `bench` and `gpu-check`); everything else is fetched
# through the Go module proxy. A C compiler is optional: with one, `build` makes libtinker too, `test` and `check` try it, and `soak` has the race detector.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
PYTHON  ?= python3

# The CPU program is pure Go: one static binary, no C compiler, the same code on every platform.
export CGO_ENABLED ?= 0

# Not a dependency of ours, so it stays out of go.mod: `go run` builds it once and caches it.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The Go tool's own stamping fails in checkouts that belong to another user; ours does not.
export GOFLAGS := -buildvcs=false $(GOFLAGS)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

CROSS := linux/arm64 darwin/arm64 windows/amd64

TEST_TIMEOUT ?= 25m
SOAK_TIMEOUT ?= 3h
FUZZ_SECONDS ?= 60
BENCH        ?= .
BENCH_COUNT  ?= 6

# libtinker is made where a C compiler is; without one the program is all there is.
CC_FOUND := $(shell command -v $${CC:-gcc} || command -v clang || command -v cc)
# With a C compiler on Linux the CUDA packages are built and tried, too. They bring the driver's header along: no toolkit is needed.
CUDA_FOUND := $(and $(CC_FOUND),$(filter Linux,$(shell uname -s)))
CUDA       := CGO_ENABLED=1 CGO_CFLAGS='-O2 -I$(CURDIR)/kernels/cuda/internal/cudashim/include'
PREFIX   ?= /usr/local
DESTDIR  ?=

say = @printf '== %s\n'

.PHONY: help program build library install run test check soak acceptance bench gpu-check losses clean \
        check-format check-vet check-staticcheck check-walls check-build check-cross check-generated check-tidy check-c check-cuda \
        build/gpu/cudacheck

help: ## print this list
	@printf 'tinker-local: LoRA fine-tuning in Go\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

program: ## build bin/tinker-local alone (static, no C compiler needed)
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/tinker-local ./cmd/tinker-local

build: program ## build bin/tinker-local and, with a C compiler, bin/libtinker.so and .a
ifeq ($(CC_FOUND),)
	@echo 'no C compiler: libtinker is not built; the program is'
else ifneq ($(shell uname -s),Linux)
	@echo 'libtinker is built on Linux only; the program is there'
else
	capi/build.sh bin
endif

library: ## build libtinker alone
	capi/build.sh bin

install: build ## install the program, and libtinker with its header where it was built: make install PREFIX=/usr/local
	install -d '$(DESTDIR)$(PREFIX)/bin'
	install -m 755 bin/tinker-local '$(DESTDIR)$(PREFIX)/bin/'
	@if [ -e bin/libtinker.so ]; then \
	  lib='$(DESTDIR)$(PREFIX)/lib'; install -d "$$lib/pkgconfig" '$(DESTDIR)$(PREFIX)/include'; \
	  version=$$(sed -n 's/^Version: //p' bin/libtinker.pc); \
	  install -m 644 include/tinker.h '$(DESTDIR)$(PREFIX)/include/'; \
	  install -m 644 bin/libtinker.a "$$lib/"; \
	  install -m 755 bin/libtinker.so "$$lib/libtinker.so.$$version"; \
	  ln -sf "libtinker.so.$$version" "$$lib/libtinker.so.$${version%%.*}"; \
	  ln -sf "libtinker.so.$${version%%.*}" "$$lib/libtinker.so"; \
	  sed 's|@PREFIX@|$(PREFIX)|' bin/libtinker.pc > "$$lib/pkgconfig/libtinker.pc"; \
	  echo "libtinker $$version is in $$lib"; \
	fi

run: program ## build the program, then fine-tune the embedded model: bin/tinker-local quickstart
	bin/tinker-local quickstart

# -count=1: CI and people read this as "it passed now", not "it passed once with these files".
test: ## run every test that CI runs
	$(say) 'modules'
	$(GO) mod download
	$(say) 'go test ./... (no cgo, so no race detector; make soak has it)'
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./...
	$(say) 'the way to the CUDA driver, with a driver that is not real'
ifeq ($(CUDA_FOUND),)
	@echo 'skipped: it takes Linux and a C compiler'
else
	$(CUDA) $(GO) test -count=1 -tags cuda ./kernels/cuda/...
endif
	$(say) 'Python: the wheel and its tests'
	@PYTHON='$(PYTHON)' bindings/python/test.sh

check: check-format check-tidy check-build check-vet check-walls check-cross check-generated check-staticcheck check-c check-cuda ## formatting, vet, staticcheck, import walls, cross-builds, generated files
	$(say) 'check passed'

check-format:
	$(say) 'gofmt'
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then printf 'not formatted (gofmt -w):\n%s\n' "$$bad"; exit 1; fi

check-tidy:
	$(say) 'go mod tidy'
	@$(GO) mod tidy -diff

check-build:
	$(say) 'go build ./... without cgo'
	@CGO_ENABLED=0 $(GO) build ./...

check-vet:
	$(say) 'go vet'
	@$(GO) vet ./...

check-staticcheck:
	$(say) 'staticcheck'
	@$(GO) run $(STATICCHECK) ./...

# The walls read what `go list` says at this moment, which the test cache cannot know.
check-walls:
	$(say) 'import walls, house style'
	@$(GO) test -count=1 .

# The program is linked; vet then compiles every package with its tests for the target. No -trimpath: with it
# the standard library would be compiled twice for each target.
check-cross:
	@for target in $(CROSS); do \
	  printf '== build for %s\n' $$target; \
	  export CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/}; \
	  $(GO) build -o build/$$GOOS-$$GOARCH/ ./cmd/tinker-local; \
	  $(GO) vet ./...; \
	done

# The C interface against its header, without linking it: header and shim with every warning, names, and vet with cgo.
check-c:
	$(say) 'C interface'
ifeq ($(CC_FOUND),)
	@echo 'skipped: no C compiler'
else
	@CGO_ENABLED=1 $(GO) vet ./capi/...
	@CGO_ENABLED=1 $(GO) run $(STATICCHECK) ./capi/...
	@CGO_ENABLED=1 $(GO) test -count=1 -run 'Drift|Header|ShimWarnings|Guard' ./capi ./capi/handle
endif

# What only the build tag cuda sees, and the one file for machines with a device: neither needs CUDA to be built or to start.
check-cuda:
	$(say) 'CUDA packages'
ifeq ($(CUDA_FOUND),)
	@echo 'skipped: it takes Linux and a C compiler'
else
	@$(CUDA) $(GO) vet -tags cuda ./kernels/cuda/...
	@$(CUDA) $(GO) run $(STATICCHECK) -tags cuda ./kernels/cuda/...
endif

build/gpu/cudacheck:
	@mkdir -p build/gpu
	$(CUDA) $(GO) build -tags cuda -trimpath -ldflags '-s -w' -o $@ ./kernels/cuda/internal/cudacheck

check-generated:
	$(say) 'generated files'
	@.ci/generated

soak: ## the long forms: more seeds, race detector, every fuzz target
	$(say) 'long tests'
	TINKER_SOAK=1 $(GO) test -count=1 -timeout $(SOAK_TIMEOUT) ./...
	$(say) 'race detector'
	@if command -v $${CC:-cc} >/dev/null; then \
	  CGO_ENABLED=1 $(GO) test -race -count=1 -timeout $(SOAK_TIMEOUT) ./...; \
	else echo 'skipped: the race detector needs a C compiler'; fi
	$(say) 'fuzzing'
	.ci/fuzz $(FUZZ_SECONDS)

acceptance: program ## official recipes and tools against tinker-local serve, with torch; CASES='P4 P11' to narrow
	$(PYTHON) acceptance/run.py $(CASES)

bench: ## run the Go benchmarks; writes benchmarks/results/ with machine, commit and spread
	$(PYTHON) benchmarks/bench.py --bench '$(BENCH)' --count $(BENCH_COUNT)

gpu-check: ## run what needs a CUDA device; fails, saying why, where there is none
	$(PYTHON) benchmarks/gpu_check.py

losses: ## build the bundled loss plugins from their sources (needs clang-14 and lld-14)
	@mkdir -p build
	plugins/losses/build.sh > build/SHA256SUMS
	@mv build/SHA256SUMS plugins/losses/SHA256SUMS && cat plugins/losses/SHA256SUMS

clean: ## remove bin/ and build/
	rm -rf bin build
