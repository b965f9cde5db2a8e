# `make` builds, `make help` lists the targets.

SHELL       = /bin/sh
.SHELLFLAGS = -ec

PREFIX     ?= /usr/local
DESTDIR    ?=
FUZZTIME   ?= 30s
SOAK       ?= 5m
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

# A Go that is too old for go.mod fetches the right one by itself, even where
# the distribution has turned that off.
export GOTOOLCHAIN ?= auto

# Programs that need cgo, for libseccomp, and programs that must run in any
# container, static and without libc. A new program is a word in one of these.
CGO_PROGRAMS    = socketbox socketbox-metrics
STATIC_PROGRAMS = socketbox-inetd socketbox-launch socketbox-relay
PROGRAMS        = $(CGO_PROGRAMS) $(STATIC_PROGRAMS)
MANUALS         = socketbox.1 socketbox-inetd.1 socketbox-launch.1 socketbox-metrics.1 socketbox-relay.1 socketbox.toml.5
CONTRIB         = prometheus/socketbox.rules.yml prometheus/socketbox.rules.test.yml grafana/socketbox.json
UNITS           = socketbox.service socketbox-metrics.service socketbox-inetd@.service

TAGS    = -tags osusergo,netgo
LDFLAGS = -s -w -X main.version=$(VERSION)
BUILD   = go build -trimpath $(TAGS)
TEST    = go test $(TAGS) -count=1 -timeout 20m

BIN  = $(DESTDIR)$(PREFIX)/bin
MAN  = $(DESTDIR)$(PREFIX)/share/man
DOC  = $(DESTDIR)$(PREFIX)/share/doc/socketbox
BASH = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH  = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
UNIT = $(DESTDIR)$(PREFIX)/lib/systemd/system
CONF = $(DESTDIR)$(PREFIX)/lib
LIB  = $(DESTDIR)/usr/lib/socketbox

# Everything that install puts down, for uninstall.
INSTALLED = $(PROGRAMS:%=$(BIN)/%) \
	$(PROGRAMS:%=$(BASH)/%) $(PROGRAMS:%=$(ZSH)/_%) $(PROGRAMS:%=$(FISH)/%.fish) \
	$(foreach page,$(MANUALS),$(MAN)/man$(subst .,,$(suffix $(page)))/$(page)) \
	$(UNITS:%=$(UNIT)/%) $(CONF)/sysusers.d/socketbox.conf $(CONF)/tmpfiles.d/socketbox.conf \
	$(DOC)/socketbox.toml.example $(CONTRIB:%=$(DOC)/%) $(LIB)/libsocketbox-preload.so $(LIB)/musl/libsocketbox-preload.so

.PHONY: build static deps test netns demo bench soak fuzz compat docker lint man install uninstall clean help missing FORCE

build: missing $(PROGRAMS:%=bin/%) bin/libsocketbox-preload.so ## build the programs into bin/

static: missing $(PROGRAMS:%=bin/static/%) ## build all programs without any shared library into bin/static/

$(CGO_PROGRAMS:%=bin/%): bin/%: FORCE
	$(BUILD) -ldflags "$(LDFLAGS)" -o $@ ./cmd/$*

$(CGO_PROGRAMS:%=bin/static/%): bin/static/%: FORCE
	$(BUILD) -ldflags "$(LDFLAGS) -linkmode external -extldflags -static" -o $@ ./cmd/$*

$(STATIC_PROGRAMS:%=bin/%): bin/%: FORCE
	CGO_ENABLED=0 $(BUILD) -ldflags "$(LDFLAGS)" -o $@ ./cmd/$*

$(STATIC_PROGRAMS:%=bin/static/%): bin/static/%: FORCE
	CGO_ENABLED=0 $(BUILD) -ldflags "$(LDFLAGS)" -o $@ ./cmd/$*

bin/libsocketbox-preload.so: FORCE
	@$(MAKE) --no-print-directory -C preload OUT=../bin all $(if $(shell command -v musl-gcc),musl)

# Go knows what is out of date.
FORCE:

missing:
	@scripts/deps --check build

deps: ## install what build, demo, test and lint need and this machine lacks (apt-get)
	@scripts/deps build demo test lint

test: ## run every test, namespaces included (NETNS=require: fail where one can't run)
	@scripts/deps build test
	@$(MAKE) --no-print-directory build
	$(TEST) $$(go list $(TAGS) ./... | grep -v /tests/)
	$(TEST) -p 1 ./tests/...

netns: build ## run the tests in network namespaces alone
	@scripts/deps test
	$(TEST) ./tests/netns/...

demo: ## serve a page from a namespace without any network, and show both sides
	@scripts/deps build demo
	@$(MAKE) --no-print-directory build
	@scripts/demo bin

bench: build ## measure speed (no test: a slow machine fails nothing)
	go run ./bench

soak: build ## run what must not leak for SOAK (5m): socketbox-relay under clients of all kinds
	@scripts/deps test
	SOAK=$(SOAK) $(TEST) -v -run TestRelayLeavesNothing ./tests/netns

fuzz: ## run every fuzz target for FUZZTIME (30s)
	@scripts/fuzz $(FUZZTIME) $(TAGS)

compat: build ## run real daemons behind socketbox and write docs/compatibility.md (root; 12 minutes)
	@tests/compat/deps compat
	go test $(TAGS),compat -count=1 -timeout 20m -v ./tests/compat -args -table ../../docs/compatibility.md

docker: build ## run docs/examples: nginx in Docker and in bubblewrap, without any network (root)
	@tests/compat/deps docker
	go test $(TAGS),docker -count=1 -timeout 10m -v ./tests/docker

lint: build ## check formatting, code, scripts, units and manual pages
	@scripts/deps lint
	@scripts/lint $(TAGS)

man: ## render the manual pages as text into bin/man/
	@scripts/deps lint
	@mkdir -p bin/man
	for m in $(MANUALS); do MANWIDTH=100 man -l packaging/man/$$m | col -bx > bin/man/$$m.txt; done

install: ## install into PREFIX (/usr/local), below DESTDIR if that is set
	@for p in $(PROGRAMS); do test -x bin/$$p || { echo "bin/$$p is missing: run make build first" >&2; exit 1; }; done
	install -d $(BIN) $(BASH) $(ZSH) $(FISH) $(DOC) $(MAN)/man1 $(MAN)/man5 $(CONF)/sysusers.d $(CONF)/tmpfiles.d
	for p in $(PROGRAMS); do \
		install -m 0755 bin/$$p $(BIN)/$$p; \
		bin/$$p completion bash > $(BASH)/$$p; \
		bin/$$p completion zsh > $(ZSH)/_$$p; \
		bin/$$p completion fish > $(FISH)/$$p.fish; \
	done
	for m in $(MANUALS); do install -m 0644 packaging/man/$$m $(MAN)/man$${m##*.}/$$m; done
	scripts/units $(PREFIX)/bin $(UNIT)
	install -m 0644 packaging/sysusers.d/socketbox.conf $(CONF)/sysusers.d/socketbox.conf
	install -m 0644 packaging/tmpfiles.d/socketbox.conf $(CONF)/tmpfiles.d/socketbox.conf
	install -m 0644 packaging/socketbox.toml.example $(DOC)/socketbox.toml.example
	for f in $(CONTRIB); do install -D -m 0644 contrib/$$f $(DOC)/$$f; done
	install -D -s -m 0644 bin/libsocketbox-preload.so $(LIB)/libsocketbox-preload.so
	if test -e bin/musl/libsocketbox-preload.so; then install -D -s -m 0644 bin/musl/libsocketbox-preload.so $(LIB)/musl/libsocketbox-preload.so; fi
	@test -n "$(DESTDIR)" || echo "next: systemd-sysusers && systemd-tmpfiles --create socketbox.conf && systemctl daemon-reload"

uninstall: ## remove what install has put down; configuration stays
	rm -f $(INSTALLED)
	-@rmdir $(DOC)/prometheus $(DOC)/grafana $(DOC) $(LIB)/musl $(LIB) 2>/dev/null
	@test -z "$(DESTDIR)" || find "$(DESTDIR)" -depth -type d -empty -delete

clean: ## remove what was built
	rm -rf bin

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12
