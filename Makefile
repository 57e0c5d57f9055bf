# The only place that knows the order of steps.
#
#   make run          the telnet example of the README, on 127.0.0.1:2023
#   make test         installs what the tests need, and runs all of them
#   make check        format, lints, documentation, tests
#   make compliance   the compatibility tests against the Python original
#   make bench        speed, size and scale beside other relays; make bench-quick takes 3 minutes
#   make install      the release build, to $(PREFIX)

CARGO ?= cargo
PREFIX ?= /usr/local
# Debian packages come through sudo unless we are root already.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BUILD := $(CARGO) build --release --locked -p websockify
# Prints where the shim is that is in the executable; another build of it is not the same to the byte.
SHIM := $(CARGO) build --release --locked --quiet -p websockify --message-format=json \
	| sed -n 's/.*\["REBIND_LIBRARY","\([^"]*\)"\].*/\1/p'
RUN_PACKAGES := telnetd-ssl
TEST_PACKAGES := telnetd-ssl tigervnc-standalone-server tigervnc-tools novnc redis-server busybox-static socat tmux \
	openssl sslscan python3 python3-venv perl iproute2 libcap2-bin binutils util-linux \
	gcc libc6-dev musl-tools golang-go $(if $(filter x86_64,$(shell uname -m)),gcc-multilib)
BENCH_PACKAGES := haproxy nginx-light openssl socat python3 python3-venv
COMPLIANCE := target/compliance
# Most tests wait for something most of the time.
export RUST_TEST_THREADS ?= 6
BENCH := target/bench

.PHONY: run test check compliance bench bench-quick install uninstall clean run-packages test-packages bench-packages

run: run-packages
	$(BUILD)
	@echo
	@echo "Wrapping telnetd: a WebSocket client that speaks telnet reaches it at ws://127.0.0.1:2023/"
	@echo "Ctrl-C ends both."
	@echo
	target/release/websockify 127.0.0.1:2023 --wrap-mode=respawn -- /usr/sbin/in.telnetd -debug 2023

# Everything, then sessions and their ends over each of the ways that payload takes.
test: test-packages
	$(CARGO) test --locked --workspace
	for way in WEBSOCKIFY_RELAY=copy WEBSOCKIFY_RELAY=splice WEBSOCKIFY_OVER_TLS=1; do \
		env $$way $(CARGO) test --locked -p integration --test black_box -- session:: ending:: compatible:: || exit; done

check: test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

compliance: test-packages
	test -x $(COMPLIANCE)/bin/websockify || { \
		echo "Installing websockify 0.13.0 from PyPI into $(COMPLIANCE)"; \
		python3 -m venv $(COMPLIANCE) && $(COMPLIANCE)/bin/pip install --quiet websockify==0.13.0; }
	PATH="$(CURDIR)/$(COMPLIANCE)/bin:$$PATH" WEBSOCKIFY_UNDER_TEST=theirs \
		$(CARGO) test --locked -p integration --test black_box compatible::

# A relay that cannot be installed is left out.
bench-quick: BENCH_OPTIONS := --quick
bench bench-quick: bench-packages
	-test -x $(BENCH)/venv/bin/websockify || { \
		echo "Installing websockify 0.13.0 and numpy from PyPI into $(BENCH)/venv"; \
		python3 -m venv $(BENCH)/venv && $(BENCH)/venv/bin/pip install --quiet websockify==0.13.0 numpy; }
	$(BUILD)
	$(CARGO) build --release --locked -p integration --bin bench
	target/release/bench $(BENCH_OPTIONS) --websockify target/release/websockify --output $(BENCH)

install:
	$(BUILD)
	install -D -m 755 target/release/websockify $(DESTDIR)$(PREFIX)/bin/websockify
	install -D -m 755 target/release/rebind $(DESTDIR)$(PREFIX)/bin/rebind
	install -D -m 644 "$$($(SHIM))" $(DESTDIR)$(PREFIX)/lib/websockify/librebind.so

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/websockify $(DESTDIR)$(PREFIX)/bin/rebind $(DESTDIR)$(PREFIX)/lib/websockify/librebind.so

clean:
	$(CARGO) clean

run-packages:
	$(call need,$(RUN_PACKAGES))

test-packages:
	$(call need,$(TEST_PACKAGES))

bench-packages:
	-$(call need,$(BENCH_PACKAGES))

# Says which packages are missing, and installs them.
define need
@missing=$$(for package in $(1); do \
	dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
if [ -n "$$missing" ]; then \
	echo "Installing Debian packages:" $$missing; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef
