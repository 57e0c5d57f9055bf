//! The tables.

/// A command line, and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// What stands behind the name of the program, as a shell takes it.
    pub(super) line: &'static str,
    /// The directory that it is started in.
    pub(super) home: &'static str,
    /// What is said, line by line; others may stand between.
    pub(super) says: &'static [&'static str],
    /// What comes of it.
    pub(super) outcome: Outcome,
    /// The port that it listens on in the background, if it goes there.
    pub(super) daemon: Option<u16>,
    /// Why the original does otherwise.
    pub(super) unlike: Option<&'static str>,
}

/// What comes of a command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It starts, and a client reaches its target; with `--web` there is a page as well.
    Serves,
    /// The same, and that client's end is its own.
    ServesOne,
    /// It starts; where clients are led is not there.
    Starts,
    /// It starts, and ends by itself without any client.
    Ends,
    /// There is an error, with this exit status.
    Error(i32),
}

const fn shape(outcome: Outcome, line: &'static str, says: &'static [&'static str]) -> Shape {
    Shape {
        line,
        home: "",
        says,
        outcome,
        daemon: None,
        unlike: None,
    }
}

const fn serves(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Serves, line, says)
}

const fn serves_one(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::ServesOne, line, says)
}

const fn starts(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Starts, line, says)
}

const fn ends(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Ends, line, says)
}

const fn refused(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Error(2), line, says)
}

const fn fails(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Error(1), line, says)
}

impl Shape {
    const fn at(self, home: &'static str) -> Self {
        Self { home, ..self }
    }

    const fn in_background(self, port: u16) -> Self {
        Self {
            daemon: Some(port),
            ..self
        }
    }

    const fn unlike_theirs(self, reason: &'static str) -> Self {
        Self {
            unlike: Some(reason),
            ..self
        }
    }

    /// Whether it serves a client.
    pub(super) fn serves(&self) -> bool {
        matches!(self.outcome, Outcome::Serves | Outcome::ServesOne)
    }

    /// Whether it ends without being told to.
    pub(super) fn ends(&self) -> bool {
        matches!(self.outcome, Outcome::Ends | Outcome::ServesOne)
    }

    /// Whether there is a certificate for clients.
    pub(super) fn speaks_tls(&self) -> bool {
        self.line.contains("--cer") || self.home == "home/pi"
    }
}

/// Desktops in containers, on small computers and behind hubs.
pub(super) const DESKTOPS: &[Shape] = &[
    serves(
        "6080 localhost:5901",
        &[
            "WebSocket server settings:",
            "- Listen on :6080",
            "proxying from :6080 to localhost:5901",
        ],
    ),
    serves(
        "--web /usr/share/novnc/ 6080 localhost:5901",
        &[
            "Web server. Web root: /usr/share/novnc",
            "No SSL/TLS support (no cert file)",
            "proxying from :6080 to localhost:5901",
        ],
    ),
    serves(
        "--web=/usr/share/novnc 6080 localhost:5900",
        &[
            "Web root: /usr/share/novnc",
            "proxying from :6080 to localhost:5900",
        ],
    ),
    serves(
        "--web=/usr/share/novnc/ 0.0.0.0:6080 127.0.0.1:5900",
        &[
            "- Listen on 0.0.0.0:6080",
            "proxying from 0.0.0.0:6080 to 127.0.0.1:5900",
        ],
    ),
    serves(
        "--web /usr/share/novnc 127.0.0.1:6080 127.0.0.1:5900",
        &["proxying from 127.0.0.1:6080 to 127.0.0.1:5900"],
    ),
    serves(
        "-v --web /usr/share/novnc 0.0.0.0:26369 0.0.0.0:5900",
        &["proxying from 0.0.0.0:26369 to 0.0.0.0:5900"],
    ),
    serves(
        "-v --web=/opt/noVNC :8000 localhost:5901",
        &["- Listen on :8000", "proxying from :8000 to localhost:5901"],
    ),
    serves(
        "--web ./ 6080 localhost:5901",
        &[
            "Web root: /opt/noVNC",
            "proxying from :6080 to localhost:5901",
        ],
    )
    .at("opt/noVNC"),
    serves(
        "-v --web . --heartbeat=30 0.0.0.0:6080 localhost:5901",
        &["Web root: /opt/noVNC", "proxying from 0.0.0.0:6080"],
    )
    .at("opt/noVNC"),
    serves(
        "--web /usr/share/novnc/ --heartbeat 30 --cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/private/ssl-cert-snakeoil.key 6080 localhost:5900",
        &["SSL/TLS support", "proxying from :6080 to localhost:5900"],
    ),
    serves(
        "--web=/usr/share/novnc/ --cert=/etc/ssl/certs/ssl-cert-snakeoil.pem --key=/etc/ssl/private/ssl-cert-snakeoil.key --heartbeat=30 --timeout=3600 --ssl-only 443 localhost:5901",
        &[
            "Deny non-SSL/TLS connections",
            "proxying from :443 to localhost:5901",
        ],
    ),
    serves(
        "--web=/usr/share/novnc 80 localhost:5901",
        &["proxying from :80 to localhost:5901"],
    ),
    // To the background, from a script that goes on.
    serves(
        "-D --web=/usr/share/novnc/ 6080 localhost:5901",
        &["- Listen on :6080", "Web root: /usr/share/novnc"],
    )
    .in_background(6080),
    serves(
        "-D --web=/usr/share/novnc/ --cert=/etc/ssl/novnc.pem 6080 localhost:5901",
        &["SSL/TLS support"],
    )
    .in_background(6080),
    serves(
        "-D --web=/usr/share/novnc/ --cert=./self.pem 0.0.0.0:6080 localhost:5901",
        &["SSL/TLS support"],
    )
    .at("home/pi")
    .unlike_theirs(
        "its daemon looks for the certificate in another directory than where it was started",
    )
    .in_background(6080),
    serves("--web=/usr/share/novnc 6080 localhost:5900 --daemon", &[]).in_background(6080),
    serves("--daemon --cert=/etc/ssl/novnc.pem 6080 :5901", &[]).in_background(6080),
    serves(
        "-vD --web /opt/noVNC --log-file /var/log/novnc.log 6080 localhost:5900",
        &[],
    )
    .in_background(6080),
    serves(
        "-D --record /var/log/sessions 6080 localhost:5900",
        &[
            "Backgrounding (daemon)",
            "Recording to '/var/log/sessions.*'",
        ],
    )
    .in_background(6080),
    serves(
        "-D --timeout 3600 --idle-timeout=3600 6080 localhost:5900",
        &[],
    )
    .in_background(6080),
    // A certificate where it is looked for by default, and one for TLS that is not there.
    serves(
        "6080 localhost:5901",
        &["SSL/TLS support", "proxying from :6080 to localhost:5901"],
    )
    .at("home/pi"),
    serves(
        "--ssl-only --verbose 6080 localhost:5901",
        &["Deny non-SSL/TLS connections"],
    )
    .at("home/pi"),
    fails(
        "-D --web=/usr/share/novnc/ --cert=/etc/ssl/missing.pem 6080 localhost:5901",
        &["error: cannot set up TLS: cannot read /etc/ssl/missing.pem"],
    )
    .unlike_theirs("it would serve without TLS, although TLS was asked for"),
    // One session for each desktop, on a port that the hub has found.
    serves_one(
        "--run-once 127.0.0.1:41234 127.0.0.1:5900",
        &["proxying from 127.0.0.1:41234 to 127.0.0.1:5900"],
    ),
    serves_one(
        "--run-once --idle-timeout 60 --timeout=600 --web /usr/share/novnc 41234 localhost:5901",
        &["proxying from :41234"],
    ),
    serves_one("--daemon 41234 --run-once localhost:5901", &[]).in_background(41234),
    serves_one(
        "-D 41234 localhost:5901 --timeout 5 --idle-timeout 5 --run-once",
        &[],
    )
    .in_background(41234),
    serves_one(
        "--timeout 5 --idle-timeout 5 --run-once 0 localhost:5901",
        &["proxying from :"],
    )
    .unlike_theirs("it does not say which port it has got"),
    serves(
        "127.0.0.1:0 localhost:5901",
        &["- Listen on 127.0.0.1:", "proxying from 127.0.0.1:"],
    )
    .unlike_theirs("it does not say which port it has got"),
    ends(
        "--timeout=1 6080 localhost:5900",
        &[
            "proxying from :6080 to localhost:5900",
            "listener exit due to --timeout 1",
        ],
    ),
    ends(
        "--idle-timeout 1 6080 localhost:5900",
        &[
            "proxying from :6080 to localhost:5900",
            "listener exit due to --idle-timeout 1",
        ],
    ),
];

/// What noVNC's own script and packages of consoles hand on; virtual machines.
pub(super) const CONSOLES: &[Shape] = &[
    serves(
        "--syslog=/dev/log --heartbeat=30 --web /usr/share/novnc 6080 localhost:5900",
        &["proxying from :6080 to localhost:5900"],
    ),
    serves(
        "--syslog /dev/log --legacy-syslog 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--ssl-only --file-only --web /usr/share/novnc --cert /etc/ssl/novnc.pem --record /var/log/rec 6080 localhost:5900",
        &[
            "Web server (no directory listings). Web root: /usr/share/novnc",
            "SSL/TLS support",
            "Deny non-SSL/TLS connections",
            "Recording to '/var/log/rec.*'",
            "proxying from :6080",
        ],
    ),
    serves(
        "--web /usr/share/novnc --cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/private/ssl-cert-snakeoil.key --web-auth --auth-plugin BasicHTTPAuth --auth-source user:pass 6080 localhost:5900",
        &["SSL/TLS support", "proxying from :6080"],
    ),
    serves(
        "--heartbeat 30 --idle-timeout 3600 --timeout 3600 --web /usr/share/novnc 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--auth-plugin=BasicHTTPAuth --auth-source=user:pass 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--auth-plugin websockify.auth_plugins.ExpectOrigin --auth-source \"https://console.example https://other.example\" 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--cert=/etc/ssl/novnc.pem --verify-client --cafile=/etc/ssl/ca.pem --auth-plugin ClientCertCNAuth --auth-source \"alice bob\" 6080 localhost:5900",
        &["SSL/TLS support"],
    ),
    serves(
        "--cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/locked.key --key-password open 6080 localhost:5900",
        &["SSL/TLS support"],
    ),
    serves(
        "--cert /etc/ssl/novnc.pem --ssl-version=tlsv1_2 --ssl-ciphers='ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384' 6080 localhost:5900",
        &["SSL/TLS support"],
    ),
    serves(
        "--cert /etc/ssl/novnc.pem --ssl-ciphers 'HIGH:!aNULL' --ssl-version default 6080 localhost:5900",
        &["SSL/TLS support"],
    ),
    serves(
        "--cert /etc/ssl/novnc.pem --ssl-version tlsv1_1 --ssl-version tlsv1_3 6080 localhost:5900",
        &["SSL/TLS support"],
    ),
    starts(
        "--ssl-target --cert=/etc/ssl/novnc.pem 6080 console.internal:8006",
        &["proxying from :6080 to console.internal:8006"],
    ),
    starts(
        "6080 vncserver:5900",
        &["proxying from :6080 to vncserver:5900"],
    ),
    // IPv6, and unix sockets on both sides.
    serves(
        "-6 6080 localhost:5900",
        &["proxying from :6080 to localhost:5900"],
    ),
    serves(
        "--prefer-ipv6 [::1]:6080 [::1]:5900",
        &[
            "Listen on [::1]:6080",
            "proxying from [::1]:6080 to [::1]:5900",
        ],
    )
    .unlike_theirs("its lines lack the brackets, so that they are no addresses"),
    serves("-6 [::]:6080 localhost:5900", &["proxying from [::]:6080"])
        .unlike_theirs("its lines lack the brackets, so that they are no addresses"),
    serves(
        "localhost:6080 :5900",
        &[
            "Listen on localhost:6080",
            "proxying from localhost:6080 to :5900",
        ],
    ),
    serves(
        "6080 --unix-target=/run/vnc.sock",
        &["proxying from :6080 to /run/vnc.sock"],
    ),
    serves(
        "--unix-target /run/vnc.sock --web /usr/share/novnc 127.0.0.1:6080",
        &["proxying from 127.0.0.1:6080 to /run/vnc.sock"],
    ),
    serves(
        "6080 --unix-target ../vnc.sock",
        &["proxying from :6080 to "],
    )
    .at("run/desks"),
    serves(
        "--unix-listen /run/novnc.sock localhost:5900",
        &[
            "Listen on unix socket /run/novnc.sock",
            "proxying from /run/novnc.sock to localhost:5900",
        ],
    )
    .unlike_theirs("its line says that it proxies from :None"),
    serves(
        "--unix-listen=/run/novnc.sock --unix-listen-mode=0660 --unix-target=/run/vnc.sock",
        &["proxying from /run/novnc.sock to /run/vnc.sock"],
    )
    .unlike_theirs("its line says that it proxies from :None"),
    // A super-server, or a unit with its socket as standard input.
    serves(
        "--inetd 127.0.0.1:5900",
        &[
            "Listen for inetd connections",
            "proxying from inetd to 127.0.0.1:5900",
        ],
    ),
    serves(
        "localhost:5900 --web /usr/share/novnc --inetd --heartbeat=30",
        &["proxying from inetd to localhost:5900"],
    ),
    serves(
        "--inetd --unix-target /run/vnc.sock",
        &["proxying from inetd to /run/vnc.sock"],
    ),
    serves(
        "-v --inetd --token-plugin=TokenFile --token-source=/etc/novnc/tokens",
        &["proxying from inetd to targets generated by TokenFile"],
    ),
];

/// One bridge for many targets.
pub(super) const TOKENS: &[Shape] = &[
    serves(
        "--web /usr/share/novnc/ --target-config=/etc/novnc/tokens 6080",
        &["proxying from :6080 to targets generated by TokenFile"],
    ),
    serves(
        "--target-config /etc/novnc/tokens.d --web=/usr/share/novnc 29876",
        &["proxying from :29876 to targets generated by TokenFile"],
    ),
    serves("-D --cert=/etc/ssl/novnc.pem --target-config=/etc/novnc/tokens.d 0.0.0.0:29876", &[]).in_background(29876),
    serves(
        "--token-plugin TokenFile --token-source /etc/novnc/tokens 6080",
        &["targets generated by TokenFile"],
    ),
    serves(
        "--token-plugin=TokenFile --token-source=/etc/novnc/tokens.d/ 6080",
        &["targets generated by TokenFile"],
    ),
    serves(
        "--web /usr/share/novnc --token-plugin=websockify.token_plugins.TokenFile --token-source=/etc/novnc/tokens 6080",
        &["targets generated by TokenFile"],
    ),
    serves("--log-file /var/log/proxy.log --token-plugin TokenFile --token-source=/etc/novnc/tokens.d -D 0.0.0.0:4900", &[]).in_background(4900),
    serves(
        "0.0.0.0:6080 --token-plugin=TokenFile --token-source=/etc/novnc/tokens --heartbeat 10",
        &["proxying from 0.0.0.0:6080 to targets generated by TokenFile"],
    ),
    serves(
        "--host-token --token-plugin TokenFile --token-source /etc/novnc/tokens 6080",
        &["targets generated by TokenFile"],
    ),
    serves(
        "--token-plugin ReadOnlyTokenFile --token-source /etc/novnc/tokens 6080",
        &["targets generated by ReadOnlyTokenFile"],
    ),
    serves(
        "--token-plugin TokenFileName --token-source /etc/novnc/names 6080",
        &["targets generated by TokenFileName"],
    ),
    serves(
        "--token-plugin UnixDomainSocketDirectory --token-source /run/desks 6080",
        &["targets generated by UnixDomainSocketDirectory"],
    ),
    serves(
        "--token-plugin TokenFile --token-source ./tokens 6080",
        &["targets generated by TokenFile"],
    )
    .at("etc/novnc"),
    serves(
        "--web /usr/share/novnc --token-plugin TokenFile --token-source tokens.d 6080",
        &["targets generated by TokenFile"],
    )
    .at("etc/novnc")
    .unlike_theirs("with --web it looks for the tokens from the web directory"),
    serves(
        "--token-plugin TokenFile --token-source /etc/novnc/tokens --auth-plugin BasicHTTPAuth --auth-source user:pass 6080",
        &["targets generated by TokenFile"],
    ),
    serves(
        "--unix-listen /run/novnc.sock --token-plugin TokenFile --token-source /etc/novnc/tokens",
        &["proxying from /run/novnc.sock to targets generated by TokenFile"],
    )
    .unlike_theirs("its line says that it proxies from :None"),
    starts(
        "--token-plugin TokenFile --token-source /etc/novnc/not-yet 6080",
        &["targets generated by TokenFile"],
    ),
    starts(
        "--token-plugin=BaseTokenAPI --token-source=http://127.0.0.1:8080/console/%s 6080",
        &["targets generated by BaseTokenAPI"],
    ),
    starts(
        "--verbose --token-plugin=JSONTokenApi --token-source=http://api.internal/vnc?token=%s 6080",
        &["targets generated by JSONTokenApi"],
    ),
    starts(
        "--token-plugin=JWTTokenApi --token-source=/etc/novnc/jwt.pem 6080",
        &["targets generated by JWTTokenApi"],
    ),
    starts(
        "--web /usr/share/novnc --token-plugin JWTTokenApi --token-source /etc/novnc/secret --run-once 6080",
        &["targets generated by JWTTokenApi"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin=TokenRedis --token-source=redis:6379 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis:6379:0 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis::2 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source 127.0.0.1:6379:0:secret 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis:::secret 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis:6379:0:secret:vnc 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source redis::::vnc 6080",
        &["targets generated by TokenRedis"],
    ),
    starts(
        "--token-plugin TokenRedis --token-source 'redis:6379:0:\"pass:word\":\"name space\"' 6080",
        &["targets generated by TokenRedis"],
    ),
];

/// Wrapped programs. The package of the original comes without the library that it needs for them.
pub(super) const WRAPPED: &[Shape] = &[
    serves(
        "2023 --web . --wrap-mode=respawn -- telnetd -debug 2023",
        &[
            "proxying from :2023 to 'telnetd -debug 2023' (port ",
            "Starting 'telnetd -debug 2023'",
        ],
    )
    .at("opt/noVNC"),
    serves(
        "2023 -- telnetd -debug 2023",
        &["to 'telnetd -debug 2023' (port "],
    ),
    serves(
        "--wrap-mode=ignore 127.0.0.1:5901 -- vncserver -geometry 1024x768 -rfbport 5901 :1",
        &["proxying from 127.0.0.1:5901 to 'vncserver -geometry 1024x768 -rfbport 5901 :1' (port "],
    ),
    serves(
        "--wrap-mode exit --cert=/etc/ssl/novnc.pem 2023 -- telnetd 2023",
        &["SSL/TLS support", "to 'telnetd 2023' (port "],
    ),
    serves("-D --wrap-mode=respawn 2023 -- telnetd -debug 2023", &[]).in_background(2023),
    serves(
        "-v --web /opt/noVNC --heartbeat=30 5901 --unix-target /run/jupyter.sock -- vncserver -verbose -xstartup start -geometry 1680x1050 -SecurityTypes None -rfbunixpath /run/jupyter.sock -fg :1",
        &[
            "proxying from :5901 to 'vncserver -verbose",
            "Starting 'vncserver -verbose",
        ],
    ),
    serves(
        "-v --web /opt/noVNC --heartbeat 30 5901 -- /usr/bin/vncserver -verbose -rfbport 5901 -fg :1",
        &[
            "proxying from :5901",
            "Starting '/usr/bin/vncserver -verbose",
        ],
    ),
    serves_one(
        "--run-once --timeout=60 2023 -- telnetd -debug 2023",
        &["to 'telnetd -debug 2023' (port "],
    ),
    shape(
        Outcome::Error(127),
        "2023 -- no-such-program 2023",
        &["no-such-program"],
    ),
];

/// Every way to write options down.
pub(super) const FORMS: &[Shape] = &[
    serves(
        "6080 localhost:5900 --",
        &["proxying from :6080 to localhost:5900"],
    )
    .unlike_theirs("it takes the target for a program to wrap"),
    serves(
        "6080 --unix-target /run/vnc.sock --",
        &["proxying from :6080 to /run/vnc.sock"],
    ),
    serves(
        "6080 -v localhost:5900 --heartbeat 5",
        &["proxying from :6080"],
    ),
    serves(
        "6080 localhost:5900 --web /usr/share/novnc -v",
        &["proxying from :6080"],
    ),
    serves(
        "--verb --heart=30 --idle 3600 --pre 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--cer /etc/ssl/novnc.pem --rec=/var/log/rec --log-f /var/log/novnc.log --unix-t /run/vnc.sock 6080",
        &["SSL/TLS support"],
    ),
    serves(
        "--heartbeat 1 --heartbeat=30 --web /nowhere --web /usr/share/novnc 6080 localhost:5900",
        &["Web root: /usr/share/novnc"],
    ),
    serves(
        "-v -v --verbose --traffic 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves("-v6D 6080 localhost:5900", &[]).in_background(6080),
    serves(
        "--wrap-mode=respawn 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves("--libserver 6080 localhost:5900", &["proxying from :6080"])
        .unlike_theirs("it leaves out the settings then"),
    serves(
        "--auto-pong --heartbeat=30 6080 localhost:5900",
        &["proxying from :6080"],
    )
    .unlike_theirs("it has dropped the option that 0.8 had"),
    serves(
        "--timeout 0 --idle-timeout=0 --heartbeat=0 6080 localhost:5900",
        &["proxying from :6080"],
    ),
    serves(
        "--timeout 600.5 --idle-timeout=0.5e3 6080 localhost:5900",
        &["proxying from :6080"],
    )
    .unlike_theirs("it takes whole seconds only"),
    // What lacks something.
    refused("", &["Too few arguments"]),
    refused("6080", &["Too few arguments"]),
    refused("-D 6080", &["Too few arguments"]),
    refused("6080 --", &["Too few arguments"]),
    refused("-- 6080 localhost:5900", &["Too few arguments"])
        .unlike_theirs("it takes the target for a program to wrap"),
    refused("--web /usr/share/novnc", &["Too few arguments"]),
    refused("6080 localhost", &["Error parsing target"]),
    refused("6080 localhost:", &["Error parsing target port"]),
    refused("localhost: localhost:5900", &["Error parsing listen port"]),
    refused("desktop localhost:5900", &["Error parsing listen port"]),
    refused("65536 localhost:5900", &["Error parsing listen port"])
        .unlike_theirs("it starts, and cannot listen"),
    refused(
        "6080 localhost:5900 --token-source /etc/novnc/tokens",
        &["You must use --token-plugin to use --token-source"],
    ),
    refused(
        "6080 localhost:5900 --host-token",
        &["You must use --token-plugin to use --host-token"],
    ),
    refused(
        "6080 localhost:5900 --auth-source user:pass",
        &["You must use --auth-plugin to use --auth-source"],
    ),
    refused(
        "6080 localhost:5900 --web /usr/share/novnc --web-auth",
        &["You must use --auth-plugin to use --web-auth"],
    ),
    refused(
        "6080 localhost:5900 --auth-plugin BasicHTTPAuth --auth-source user:pass --web-auth",
        &["You must use --web to use --web-auth"],
    ),
    refused(
        "6080 localhost:5900 --legacy-syslog",
        &["You must use --syslog to use --legacy-syslog"],
    ),
    refused(
        "--ssl-only 6080 localhost:5900",
        &["--ssl-only needs a certificate"],
    ),
    refused(
        "--ssl-only --cert /etc/ssl/missing.pem 6080 localhost:5900",
        &["/etc/ssl/missing.pem does not exist"],
    ),
    refused("--token-plugin TokenFile 6080", &["needs --token-source"])
        .unlike_theirs("it starts, and refuses every client"),
    refused(
        "--auth-plugin BasicHTTPAuth 6080 localhost:5900",
        &["needs --auth-source"],
    )
    .unlike_theirs("it starts, and refuses every client"),
    refused(
        "--verify-client 6080 localhost:5900",
        &["--verify-client needs a certificate"],
    )
    .unlike_theirs("it starts, and asks nobody for a certificate"),
    refused(
        "--token-plugin NoSuchPlugin --token-source x 6080",
        &["'NoSuchPlugin' is none of TokenFile"],
    )
    .unlike_theirs("it ends with a traceback"),
    refused("6080 localhost:5900 --heartbeat", &["--heartbeat"]),
    refused("6080 localhost:5900 --heartbeat=", &["--heartbeat"]),
    refused(
        "6080 localhost:5900 --heartbeat soon",
        &["not a number of seconds"],
    ),
    // What there is too much of.
    refused(
        "6080 localhost:5900 localhost:5901",
        &["Too many arguments"],
    ),
    refused(
        "6080 localhost:5900 --unix-target /run/vnc.sock",
        &["Too many arguments"],
    ),
    refused(
        "6080 localhost:5900 --token-plugin TokenFile --token-source /etc/novnc/tokens",
        &["Too many arguments"],
    ),
    refused(
        "6080 localhost:5900 --target-config=/etc/novnc/tokens",
        &["Too many arguments"],
    ),
    refused(
        "--unix-listen /run/novnc.sock 6080 localhost:5900",
        &["error: "],
    ),
    refused("--inetd 6080 localhost:5900", &["error: "]),
    refused(
        "6080 localhost:5900 -- telnetd 6080",
        &["Too many arguments"],
    )
    .unlike_theirs("its package cannot wrap programs, which it says first"),
    refused(
        "--target-config=/etc/novnc/tokens --unix-target /run/vnc.sock 6080",
        &["give one of them"],
    )
    .unlike_theirs("it ignores the socket without a word"),
    // What is not known, or might be several things.
    refused(
        "--no-such-option 6080 localhost:5900",
        &["--no-such-option"],
    ),
    refused("-x 6080 localhost:5900", &["-x"]),
    refused("--ssl 6080 localhost:5900", &["--ssl"]),
    refused("--wrap-mode=never 6080 localhost:5900", &["--wrap-mode"]),
    refused(
        "--ssl-version=sslv3 --cert /etc/ssl/novnc.pem 6080 localhost:5900",
        &["--ssl-version"],
    ),
    // What cannot be.
    fails(
        "--web /usr/share/no-such 6080 localhost:5900",
        &["cannot use the web directory /usr/share/no-such"],
    ),
    fails(
        "no-such-host.invalid:6080 localhost:5900",
        &["cannot listen on no-such-host.invalid:6080"],
    )
    .unlike_theirs("its status is 0"),
    fails(
        "127.0.0.1:5900 localhost:5901",
        &["cannot listen on 127.0.0.1:5900"],
    )
    .unlike_theirs("its status is 0"),
    fails(
        "--log-file /nowhere/log 6080 localhost:5900",
        &["/nowhere/log"],
    ),
    fails(
        "--token-plugin TokenRedis --token-source redis:desk 6080",
        &["the source is no good"],
    )
    .unlike_theirs("its status is 0"),
];
