SHELL := /bin/bash
.DEFAULT_GOAL := help

KILLS    ?= 20
FUZZTIME ?= 20s
LINT     := go tool -modfile=.ci/tools.mod golangci-lint

.PHONY: help deps build test check demo chaos sim drain mutants fuzz bench bench-hsm clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what is missing: a C compiler, SoftHSM, NSS, Node.js and the peers of the interoperability test
	@.ci/install

build: deps ## build bin/acquirerd and bin/acquirersim
	@mkdir -p bin
	go build -o bin/ ./cmd/acquirerd ./cmd/acquirersim

test: deps ## run all tests with the race detector
	go test -race -count=1 -timeout 20m ./...

check: deps ## gofmt, go vet, staticcheck and the other linters of .golangci.yml
	$(LINT) run ./...
	$(LINT) fmt --diff ./...

demo: build ## a token, a journal, a processor, the daemon and five transactions; stays up until Ctrl-C (ONCE=1: ends by itself)
	@bin/acquirersim demo --acquirerd bin/acquirerd --dir .demo $(if $(ONCE),--once)

chaos: build ## kill -9 the daemon under load KILLS=20 times, with a full disk and a bad network, and compare the ledgers; one JSON line
	@bin/acquirersim chaos --acquirerd bin/acquirerd --dir .chaos --kills $(KILLS) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED))

sim: deps ## run the seeded simulation SEEDS=100 times
	go test -run 'Simulation' -count=1 -timeout 3h -args -seeds=$(or $(SEEDS),100)

drain: build ## owe OWED=10000 reversals and measure how fast they are paid beside live traffic
	@bin/acquirersim drain --acquirerd bin/acquirerd --dir .drain --owed $(or $(OWED),10000)

mutants: deps ## break what must not break, one thing at a time, and see that a test finds each
	@.ci/mutants

fuzz: deps ## fuzz every decoder for FUZZTIME=20s each
	@.ci/fuzz $(FUZZTIME)

bench: build ## CPU of the daemon per transaction at 64 in flight, without and with a PIN; then the benchmarks of the rooms
	@bin/acquirersim measure --acquirerd bin/acquirerd --dir .bench --in-flight 64
	go test -run '^$$' -bench . -benchmem ./...

bench-hsm: ## PIN translations and seals a second by each way, beside the module's own floor and single shots
	go test -run '^$$' -bench BenchmarkHSM -benchtime 1x ./hsm

clean: ## remove what was built and the files of the demo and of the README
	rm -rf bin .demo .drain .bench .chaos .try
