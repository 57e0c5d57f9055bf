# The only place that knows the order of steps.
#
#   make run          the telnet example of the README, on 127.0.0.1:2023, with its page
#   make test         installs what the tests need, and runs all of them
#   make test-web     only those of the pages, in Chromium
#   make check        format, lints, documentation, tests
#   make compliance   the compatibility tests against the Python original
#   make bench        speed, size and scale beside other relays; make bench-quick takes 4 minutes
#   make screenshots  the pictures of the README
#   make install      the release build, the pages, the manual, units for systemd and a dashboard for Grafana, to $(PREFIX)

CARGO ?= cargo
PREFIX ?= /usr/local
# Debian packages come through sudo unless we are root already.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BUILD := $(CARGO) build --release --locked -p websockify
# Prints where the shim is that is in the executable; another build of it is not the same to the byte.
SHIM := $(CARGO) build --release --locked --quiet -p websockify --message-format=json \
	| sed -n 's/.*\["REBIND_LIBRARY","\([^"]*\)"\].*/\1/p'
WEB := websockify/web
BUNDLE := $(WEB)/dist/xterm.js
# What a browser loads: xterm.js is loaded as a bundle.
PAGES = $(filter-out $(WEB)/xterm.js,$(wildcard $(addprefix $(WEB)/*.,html js css svg)))
UNITS := websockify.service websockify.socket websockify@.service
# Debian's are not wanted where others are, for they cannot be installed beside them.
NODE_PACKAGES := $(if $(shell command -v node),,nodejs) $(if $(shell command -v npm),,npm)
RUN_PACKAGES := telnetd-ssl
WEB_TEST_PACKAGES := telnetd-ssl tigervnc-standalone-server chromium novnc xterm fonts-dejavu-core openssl
TEST_PACKAGES := telnetd-ssl tigervnc-standalone-server tigervnc-tools haproxy nginx-light redis-server rsyslog busybox-static socat tmux \
	sslscan python3 python3-venv perl iproute2 libcap2-bin binutils util-linux procps uidmap systemd \
	apache2-utils gcc libc6-dev musl-tools golang-go $(NODE_PACKAGES) $(WEB_TEST_PACKAGES) \
	$(if $(filter x86_64,$(shell uname -m)),gcc-multilib)
BENCH_PACKAGES := haproxy nginx-light openssl socat python3 python3-venv
# Python with what makes signed tokens.
TEST_VENV := target/python
COMPLIANCE := target/compliance
# What judges the page of --metrics. The package that has it would start a service, so it is only unpacked.
PROMTOOL := target/promtool/promtool
# Most tests wait for something most of the time.
export RUST_TEST_THREADS ?= 8
BENCH := target/bench

.PHONY: run test test-web check compliance bench bench-quick screenshots install uninstall clean \
	run-packages test-packages web-test-packages bench-packages node-packages

run: run-packages $(BUNDLE)
	$(BUILD)
	@echo
	@echo "Wrapping telnetd: log in at http://127.0.0.1:2023/wstelnet.html?autoconnect=1"
	@echo "Ctrl-C ends both."
	@echo
	target/release/websockify 127.0.0.1:2023 --web $(WEB) --wrap-mode=respawn -- /usr/sbin/in.telnetd -debug 2023

$(BUNDLE): $(WEB)/xterm.js $(WEB)/node_modules/.package-lock.json
	cd $(WEB) && npm run --silent build

# npm writes this file when it has installed everything. No package needs to run anything then.
$(WEB)/node_modules/.package-lock.json: $(WEB)/package.json $(WEB)/package-lock.json | node-packages
	@echo "Installing npm packages into $(WEB)/node_modules: xterm.js, and what builds and tests the pages"
	cd $(WEB) && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts
	touch $@

# Everything, then sessions and their ends over each of the ways that payload takes.
test: test-packages $(TEST_VENV)/installed $(COMPLIANCE)/bin/websockify $(PROMTOOL)
	$(CARGO) test --locked --workspace
	for way in WEBSOCKIFY_RELAY=copy WEBSOCKIFY_RELAY=splice WEBSOCKIFY_OVER_TLS=1; do \
		env $$way $(CARGO) test --locked -p integration --test black_box -- session:: ending:: compatible:: || exit; done
	$(MAKE) test-web

$(TEST_VENV)/installed: | test-packages
	@echo "Installing jwcrypto from PyPI into $(TEST_VENV)"
	python3 -m venv $(TEST_VENV) && $(TEST_VENV)/bin/pip install --quiet jwcrypto==1.6.1
	touch $@

$(PROMTOOL):
	@echo "Taking promtool from the Debian package prometheus into $(@D)"
	mkdir -p $(@D) && rm -f $(@D)/prometheus_*.deb
	cd $(@D) && fetch='apt-get download -qq -o APT::Sandbox::User=root prometheus' && \
		{ $$fetch || { $(SUDO) apt-get update -qq && $$fetch; }; } && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool && rm prometheus_*.deb

test-web: web-test-packages $(BUNDLE)
	$(CARGO) build --locked -p websockify
	cd $(WEB) && npm test

screenshots: web-test-packages $(BUNDLE)
	$(CARGO) build --locked -p websockify
	cd $(WEB) && npm run screenshots

check: test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

$(COMPLIANCE)/bin/websockify: | test-packages
	@echo "Installing websockify 0.13.0 from PyPI into $(COMPLIANCE)"
	python3 -m venv $(COMPLIANCE) && $(COMPLIANCE)/bin/pip install --quiet websockify==0.13.0

compliance: test-packages $(COMPLIANCE)/bin/websockify
	PATH="$(CURDIR)/$(COMPLIANCE)/bin:$$PATH" WEBSOCKIFY_UNDER_TEST=theirs \
		$(CARGO) test --locked -p integration --test black_box -- compatible:: shapes:: expiry::

# A relay that cannot be installed is left out.
bench-quick: BENCH_OPTIONS := --quick
bench bench-quick: bench-packages
	-test -x $(BENCH)/venv/bin/websockify || { \
		echo "Installing websockify 0.13.0 and numpy from PyPI into $(BENCH)/venv"; \
		python3 -m venv $(BENCH)/venv && $(BENCH)/venv/bin/pip install --quiet websockify==0.13.0 numpy; }
	$(BUILD)
	$(CARGO) build --release --locked -p integration --bin bench
	target/release/bench $(BENCH_OPTIONS) --websockify target/release/websockify --output $(BENCH)

install: $(BUNDLE)
	$(BUILD)
	install -D -m 755 target/release/websockify $(DESTDIR)$(PREFIX)/bin/websockify
	install -D -m 755 target/release/rebind $(DESTDIR)$(PREFIX)/bin/rebind
	install -D -m 644 "$$($(SHIM))" $(DESTDIR)$(PREFIX)/lib/websockify/librebind.so
	install -d $(DESTDIR)$(PREFIX)/share/websockify/web/dist
	install -m 644 $(PAGES) $(DESTDIR)$(PREFIX)/share/websockify/web
	install -m 644 $(WEB)/dist/* $(DESTDIR)$(PREFIX)/share/websockify/web/dist
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in $(UNITS); do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' websockify/contrib/systemd/$$unit \
			| install -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit; done
	install -D -m 644 websockify/contrib/man/websockify.1 $(DESTDIR)$(PREFIX)/share/man/man1/websockify.1
	install -D -m 644 websockify/contrib/grafana/websockify.json $(DESTDIR)$(PREFIX)/share/websockify/grafana/websockify.json

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/websockify $(DESTDIR)$(PREFIX)/bin/rebind $(DESTDIR)$(PREFIX)/lib/websockify/librebind.so
	rm -rf $(DESTDIR)$(PREFIX)/share/websockify/web $(DESTDIR)$(PREFIX)/share/websockify/grafana
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/websockify.1
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/lib/systemd/system/,$(UNITS))

clean:
	$(CARGO) clean
	rm -rf $(WEB)/dist $(WEB)/node_modules

run-packages:
	$(call need,$(RUN_PACKAGES))

test-packages:
	$(call need,$(sort $(TEST_PACKAGES)))

web-test-packages:
	$(call need,$(WEB_TEST_PACKAGES))

node-packages:
	$(call need,$(NODE_PACKAGES))

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
