//! Command lines as they stand in scripts, units, images and guides, each started for real.
//!
//! Every test has a network of its own, so that the ports are those of the table. Absolute paths are meant below a directory that is
//! furnished for the test.
//!
//! `make compliance` plays the same tables with the Python original. Where it does otherwise, the table says why we do not follow.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use integration::{
    Certificates, Client, ClientTls, FAST, Handshake, Said, Scratch, Server, executable,
    in_own_network, listeners_on, openssl, text, theirs, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command line, and what becomes of it.
#[derive(Clone, Copy)]
struct Shape {
    /// What stands behind the name of the program, as a shell takes it.
    line: &'static str,
    /// The directory that it is started in.
    home: &'static str,
    /// What is said, line by line; others may stand between.
    says: &'static [&'static str],
    /// What comes of it.
    outcome: Outcome,
    /// Why the original does otherwise.
    unlike: Option<&'static str>,
}

/// What comes of a command line.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// It starts, and a client reaches its target; with `--web` there is a page as well.
    Serves,
    /// The same, and that client's end is its own.
    ServesOne,
    /// It starts; where clients are led is not there.
    Starts,
    /// It starts, and ends by itself without any client.
    Ends,
    /// An error of usage: exit status 2.
    Refused,
    /// An error of the start: exit status 1.
    Fails,
}

const fn shape(outcome: Outcome, line: &'static str, says: &'static [&'static str]) -> Shape {
    Shape {
        line,
        home: "",
        says,
        outcome,
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
    shape(Outcome::Refused, line, says)
}

const fn fails(line: &'static str, says: &'static [&'static str]) -> Shape {
    shape(Outcome::Fails, line, says)
}

impl Shape {
    const fn at(self, home: &'static str) -> Self {
        Self { home, ..self }
    }

    const fn unlike_theirs(self, reason: &'static str) -> Self {
        Self {
            unlike: Some(reason),
            ..self
        }
    }

    /// Whether the command goes to the background.
    fn is_daemon(&self) -> bool {
        self.says.contains(&"Backgrounding (daemon)")
    }
}

/// Desktops in containers, on small computers and behind hubs.
const DESKTOPS: &[Shape] = &[
    serves("6080 localhost:5901", &["WebSocket server settings:", "- Listen on :6080", "proxying from :6080 to localhost:5901"]),
    serves("--web /usr/share/novnc/ 6080 localhost:5901", &["Web server. Web root: /usr/share/novnc", "No SSL/TLS support (no cert file)", "proxying from :6080 to localhost:5901"]),
    serves("--web=/usr/share/novnc 6080 localhost:5900", &["Web root: /usr/share/novnc", "proxying from :6080 to localhost:5900"]),
    serves("--web=/usr/share/novnc/ 0.0.0.0:6080 127.0.0.1:5900", &["- Listen on 0.0.0.0:6080", "proxying from 0.0.0.0:6080 to 127.0.0.1:5900"]),
    serves("--web /usr/share/novnc 127.0.0.1:6080 127.0.0.1:5900", &["proxying from 127.0.0.1:6080 to 127.0.0.1:5900"]),
    serves("-v --web /usr/share/novnc 0.0.0.0:26369 0.0.0.0:5900", &["proxying from 0.0.0.0:26369 to 0.0.0.0:5900"]),
    serves("-v --web=/opt/noVNC :8000 localhost:5901", &["- Listen on :8000", "proxying from :8000 to localhost:5901"]),
    serves("--web ./ 6080 localhost:5901", &["Web root: /opt/noVNC", "proxying from :6080 to localhost:5901"]).at("opt/noVNC"),
    serves("-v --web . --heartbeat=30 0.0.0.0:6080 localhost:5901", &["Web root: /opt/noVNC", "proxying from 0.0.0.0:6080"]).at("opt/noVNC"),
    serves("--web /usr/share/novnc/ --heartbeat 30 --cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/private/ssl-cert-snakeoil.key 6080 localhost:5900", &["SSL/TLS support", "proxying from :6080 to localhost:5900"]),
    serves("--web=/usr/share/novnc/ --cert=/etc/ssl/certs/ssl-cert-snakeoil.pem --key=/etc/ssl/private/ssl-cert-snakeoil.key --heartbeat=30 --timeout=3600 --ssl-only 443 localhost:5901", &["Deny non-SSL/TLS connections", "proxying from :443 to localhost:5901"]),
    serves("--web=/usr/share/novnc 80 localhost:5901", &["proxying from :80 to localhost:5901"]),
    // To the background, from a script that goes on.
    serves("-D --web=/usr/share/novnc/ 6080 localhost:5901", &["- Listen on :6080", "Web root: /usr/share/novnc", "Backgrounding (daemon)"]),
    serves("-D --web=/usr/share/novnc/ --cert=/etc/ssl/novnc.pem 6080 localhost:5901", &["SSL/TLS support", "Backgrounding (daemon)"]),
    serves("-D --web=/usr/share/novnc/ --cert=./self.pem 0.0.0.0:6080 localhost:5901", &["SSL/TLS support", "Backgrounding (daemon)"]).at("home/pi").unlike_theirs("its daemon looks for the certificate in another directory than where it was started"),
    serves("--web=/usr/share/novnc 6080 localhost:5900 --daemon", &["Backgrounding (daemon)"]),
    serves("--daemon --cert=/etc/ssl/novnc.pem 6080 :5901", &["Backgrounding (daemon)"]),
    serves("-vD --web /opt/noVNC --log-file /var/log/novnc.log 6080 localhost:5900", &["Backgrounding (daemon)"]),
    serves("-D --record /var/log/sessions 6080 localhost:5900", &["Backgrounding (daemon)", "Recording to '/var/log/sessions.*'"]),
    serves("-D --timeout 3600 --idle-timeout=3600 6080 localhost:5900", &["Backgrounding (daemon)"]),
    // A certificate where it is looked for by default, and one for TLS that is not there.
    serves("6080 localhost:5901", &["SSL/TLS support", "proxying from :6080 to localhost:5901"]).at("home/pi"),
    serves("--ssl-only --verbose 6080 localhost:5901", &["Deny non-SSL/TLS connections"]).at("home/pi"),
    fails("-D --web=/usr/share/novnc/ --cert=/etc/ssl/missing.pem 6080 localhost:5901", &["error: cannot set up TLS: cannot read /etc/ssl/missing.pem"]).unlike_theirs("it would serve without TLS, although TLS was asked for"),
    // One session for each desktop, on a port that the hub has found.
    serves_one("--run-once 127.0.0.1:41234 127.0.0.1:5900", &["proxying from 127.0.0.1:41234 to 127.0.0.1:5900"]),
    serves_one("--run-once --idle-timeout 60 --timeout=600 --web /usr/share/novnc 41234 localhost:5901", &["proxying from :41234"]),
    serves_one("--daemon 41234 --run-once localhost:5901", &["Backgrounding (daemon)"]),
    serves_one("-D 41234 localhost:5901 --timeout 5 --idle-timeout 5 --run-once", &["Backgrounding (daemon)"]),
    serves_one("--timeout 5 --idle-timeout 5 --run-once 0 localhost:5901", &["proxying from :"]).unlike_theirs("it does not say which port it has got"),
    serves("127.0.0.1:0 localhost:5901", &["- Listen on 127.0.0.1:", "proxying from 127.0.0.1:"]).unlike_theirs("it does not say which port it has got"),
    ends("--timeout=1 6080 localhost:5900", &["listener exit due to --timeout 1"]),
    ends("--idle-timeout 1 6080 localhost:5900", &["listener exit due to --idle-timeout 1"]),
];

/// What noVNC's own script and packages of consoles hand on; virtual machines.
const CONSOLES: &[Shape] = &[
    serves("--syslog=/dev/log --heartbeat=30 --web /usr/share/novnc 6080 localhost:5900", &["proxying from :6080 to localhost:5900"]),
    serves("--syslog /dev/log --legacy-syslog 6080 localhost:5900", &["proxying from :6080"]),
    serves("--ssl-only --file-only --web /usr/share/novnc --cert /etc/ssl/novnc.pem --record /var/log/rec 6080 localhost:5900", &["Web server (no directory listings). Web root: /usr/share/novnc", "SSL/TLS support", "Deny non-SSL/TLS connections", "Recording to '/var/log/rec.*'", "proxying from :6080"]),
    serves("--web /usr/share/novnc --cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/private/ssl-cert-snakeoil.key --web-auth --auth-plugin BasicHTTPAuth --auth-source user:pass 6080 localhost:5900", &["SSL/TLS support", "proxying from :6080"]),
    serves("--heartbeat 30 --idle-timeout 3600 --timeout 3600 --web /usr/share/novnc 6080 localhost:5900", &["proxying from :6080"]),
    serves("--auth-plugin=BasicHTTPAuth --auth-source=user:pass 6080 localhost:5900", &["proxying from :6080"]),
    serves("--auth-plugin websockify.auth_plugins.ExpectOrigin --auth-source \"https://console.example https://other.example\" 6080 localhost:5900", &["proxying from :6080"]),
    serves("--cert=/etc/ssl/novnc.pem --verify-client --cafile=/etc/ssl/ca.pem --auth-plugin ClientCertCNAuth --auth-source \"alice bob\" 6080 localhost:5900", &["SSL/TLS support"]),
    serves("--cert /etc/ssl/certs/ssl-cert-snakeoil.pem --key /etc/ssl/locked.key --key-password open 6080 localhost:5900", &["SSL/TLS support"]),
    serves("--cert /etc/ssl/novnc.pem --ssl-version=tlsv1_2 --ssl-ciphers='ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384' 6080 localhost:5900", &["SSL/TLS support"]),
    serves("--cert /etc/ssl/novnc.pem --ssl-ciphers 'HIGH:!aNULL' --ssl-version default 6080 localhost:5900", &["SSL/TLS support"]),
    serves("--cert /etc/ssl/novnc.pem --ssl-version tlsv1_1 --ssl-version tlsv1_3 6080 localhost:5900", &["SSL/TLS support"]),
    starts("--ssl-target --cert=/etc/ssl/novnc.pem 6080 console.internal:8006", &["proxying from :6080 to console.internal:8006"]),
    starts("6080 vncserver:5900", &["proxying from :6080 to vncserver:5900"]),
    // IPv6, and unix sockets on both sides.
    serves("-6 6080 localhost:5900", &["proxying from :6080 to localhost:5900"]),
    serves("--prefer-ipv6 [::1]:6080 [::1]:5900", &["Listen on [::1]:6080", "proxying from [::1]:6080 to [::1]:5900"]).unlike_theirs("its lines lack the brackets, so that they are no addresses"),
    serves("-6 [::]:6080 localhost:5900", &["proxying from [::]:6080"]).unlike_theirs("its lines lack the brackets, so that they are no addresses"),
    serves("localhost:6080 :5900", &["Listen on localhost:6080", "proxying from localhost:6080 to :5900"]),
    serves("6080 --unix-target=/run/vnc.sock", &["proxying from :6080 to /run/vnc.sock"]),
    serves("--unix-target /run/vnc.sock --web /usr/share/novnc 127.0.0.1:6080", &["proxying from 127.0.0.1:6080 to /run/vnc.sock"]),
    serves("6080 --unix-target ../vnc.sock", &["proxying from :6080 to "]).at("run/desks"),
    serves("--unix-listen /run/novnc.sock localhost:5900", &["Listen on unix socket /run/novnc.sock", "proxying from /run/novnc.sock to localhost:5900"]).unlike_theirs("its line says that it proxies from :None"),
    serves("--unix-listen=/run/novnc.sock --unix-listen-mode=0660 --unix-target=/run/vnc.sock", &["proxying from /run/novnc.sock to /run/vnc.sock"]).unlike_theirs("its line says that it proxies from :None"),
    // A super-server, or a unit with its socket as standard input.
    serves("--inetd 127.0.0.1:5900", &["Listen for inetd connections", "proxying from inetd to 127.0.0.1:5900"]),
    serves("localhost:5900 --web /usr/share/novnc --inetd --heartbeat=30", &["proxying from inetd to localhost:5900"]),
    serves("--inetd --unix-target /run/vnc.sock", &["proxying from inetd to /run/vnc.sock"]),
    serves("-v --inetd --token-plugin=TokenFile --token-source=/etc/novnc/tokens", &["proxying from inetd to targets generated by TokenFile"]),
];

/// One bridge for many targets.
const TOKENS: &[Shape] = &[
    serves("--web /usr/share/novnc/ --target-config=/etc/novnc/tokens 6080", &["proxying from :6080 to targets generated by TokenFile"]),
    serves("--target-config /etc/novnc/tokens.d --web=/usr/share/novnc 29876", &["proxying from :29876 to targets generated by TokenFile"]),
    serves("-D --cert=/etc/ssl/novnc.pem --target-config=/etc/novnc/tokens.d 0.0.0.0:29876", &["Backgrounding (daemon)"]),
    serves("--token-plugin TokenFile --token-source /etc/novnc/tokens 6080", &["targets generated by TokenFile"]),
    serves("--token-plugin=TokenFile --token-source=/etc/novnc/tokens.d/ 6080", &["targets generated by TokenFile"]),
    serves("--web /usr/share/novnc --token-plugin=websockify.token_plugins.TokenFile --token-source=/etc/novnc/tokens 6080", &["targets generated by TokenFile"]),
    serves("--log-file /var/log/proxy.log --token-plugin TokenFile --token-source=/etc/novnc/tokens.d -D 0.0.0.0:4900", &["Backgrounding (daemon)"]),
    serves("0.0.0.0:6080 --token-plugin=TokenFile --token-source=/etc/novnc/tokens --heartbeat 10", &["proxying from 0.0.0.0:6080 to targets generated by TokenFile"]),
    serves("--host-token --token-plugin TokenFile --token-source /etc/novnc/tokens 6080", &["targets generated by TokenFile"]),
    serves("--token-plugin ReadOnlyTokenFile --token-source /etc/novnc/tokens 6080", &["targets generated by ReadOnlyTokenFile"]),
    serves("--token-plugin TokenFileName --token-source /etc/novnc/names 6080", &["targets generated by TokenFileName"]),
    serves("--token-plugin UnixDomainSocketDirectory --token-source /run/desks 6080", &["targets generated by UnixDomainSocketDirectory"]),
    serves("--token-plugin TokenFile --token-source ./tokens 6080", &["targets generated by TokenFile"]).at("etc/novnc"),
    serves("--web /usr/share/novnc --token-plugin TokenFile --token-source tokens.d 6080", &["targets generated by TokenFile"]).at("etc/novnc").unlike_theirs("with --web it looks for the tokens from the web directory"),
    serves("--token-plugin TokenFile --token-source /etc/novnc/tokens --auth-plugin BasicHTTPAuth --auth-source user:pass 6080", &["targets generated by TokenFile"]),
    serves("--unix-listen /run/novnc.sock --token-plugin TokenFile --token-source /etc/novnc/tokens", &["proxying from /run/novnc.sock to targets generated by TokenFile"]).unlike_theirs("its line says that it proxies from :None"),
    starts("--token-plugin TokenFile --token-source /etc/novnc/not-yet 6080", &["targets generated by TokenFile"]),
    starts("--token-plugin=BaseTokenAPI --token-source=http://127.0.0.1:8080/console/%s 6080", &["targets generated by BaseTokenAPI"]),
    starts("--verbose --token-plugin=JSONTokenApi --token-source=http://api.internal/vnc?token=%s 6080", &["targets generated by JSONTokenApi"]),
    starts("--token-plugin=JWTTokenApi --token-source=/etc/novnc/jwt.pem 6080", &["targets generated by JWTTokenApi"]),
    starts("--web /usr/share/novnc --token-plugin JWTTokenApi --token-source /etc/novnc/secret --run-once 6080", &["targets generated by JWTTokenApi"]),
    starts("--token-plugin TokenRedis --token-source redis 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin=TokenRedis --token-source=redis:6379 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source redis:6379:0 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source redis::2 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source 127.0.0.1:6379:0:secret 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source redis:::secret 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source redis:6379:0:secret:vnc 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source redis::::vnc 6080", &["targets generated by TokenRedis"]),
    starts("--token-plugin TokenRedis --token-source 'redis:6379:0:\"pass:word\":\"name space\"' 6080", &["targets generated by TokenRedis"]),
];

/// Wrapped programs. The package of the original comes without the library that it needs for them.
const WRAPPED: &[Shape] = &[
    serves("2023 --web . --wrap-mode=respawn -- telnetd -debug 2023", &["proxying from :2023 to 'telnetd -debug 2023' (port ", "Starting 'telnetd -debug 2023'"]).at("opt/noVNC"),
    serves("2023 -- telnetd -debug 2023", &["to 'telnetd -debug 2023' (port "]),
    serves("--wrap-mode=ignore 127.0.0.1:5901 -- vncserver -geometry 1024x768 -rfbport 5901 :1", &["proxying from 127.0.0.1:5901 to 'vncserver -geometry 1024x768 -rfbport 5901 :1' (port "]),
    serves("--wrap-mode exit --cert=/etc/ssl/novnc.pem 2023 -- telnetd 2023", &["SSL/TLS support", "to 'telnetd 2023' (port "]),
    serves("-D --wrap-mode=respawn 2023 -- telnetd -debug 2023", &["Backgrounding (daemon)"]),
    serves("-v --web /opt/noVNC --heartbeat=30 5901 --unix-target /run/jupyter.sock -- vncserver -verbose -xstartup start -geometry 1680x1050 -SecurityTypes None -rfbunixpath /run/jupyter.sock -fg :1", &["proxying from :5901 to 'vncserver -verbose", "Starting 'vncserver -verbose"]),
    serves("-v --web /opt/noVNC --heartbeat 30 5901 -- /usr/bin/vncserver -verbose -rfbport 5901 -fg :1", &["Starting '/usr/bin/vncserver -verbose"]),
    serves_one("--run-once --timeout=60 2023 -- telnetd -debug 2023", &["to 'telnetd -debug 2023' (port "]),
    fails("2023 -- no-such-program 2023", &["no-such-program"]),
];

/// Every way to write options down.
const FORMS: &[Shape] = &[
    serves("6080 localhost:5900 --", &["proxying from :6080 to localhost:5900"]).unlike_theirs("it takes the target for a program to wrap"),
    serves("6080 --unix-target /run/vnc.sock --", &["proxying from :6080 to /run/vnc.sock"]),
    serves("6080 -v localhost:5900 --heartbeat 5", &["proxying from :6080"]),
    serves("6080 localhost:5900 --web /usr/share/novnc -v", &["proxying from :6080"]),
    serves("--verb --heart=30 --idle 3600 --pre 6080 localhost:5900", &["proxying from :6080"]),
    serves("--cer /etc/ssl/novnc.pem --rec=/var/log/rec --log-f /var/log/novnc.log --unix-t /run/vnc.sock 6080", &["SSL/TLS support"]),
    serves("--heartbeat 1 --heartbeat=30 --web /nowhere --web /usr/share/novnc 6080 localhost:5900", &["Web root: /usr/share/novnc"]),
    serves("-v -v --verbose --traffic 6080 localhost:5900", &["proxying from :6080"]),
    serves("-v6D 6080 localhost:5900", &["Backgrounding (daemon)"]),
    serves("--wrap-mode=respawn 6080 localhost:5900", &["proxying from :6080"]),
    serves("--libserver 6080 localhost:5900", &["proxying from :6080"]).unlike_theirs("it leaves out the settings then"),
    serves("--auto-pong --heartbeat=30 6080 localhost:5900", &["proxying from :6080"]).unlike_theirs("it has dropped the option that 0.8 had"),
    serves("--timeout 0 --idle-timeout=0 --heartbeat=0 6080 localhost:5900", &["proxying from :6080"]),
    serves("--timeout 600.5 --idle-timeout=0.5e3 6080 localhost:5900", &["proxying from :6080"]).unlike_theirs("it takes whole seconds only"),
    // What lacks something.
    refused("", &["Too few arguments"]),
    refused("6080", &["Too few arguments"]),
    refused("-D 6080", &["Too few arguments"]),
    refused("6080 --", &["Too few arguments"]),
    refused("-- 6080 localhost:5900", &["Too few arguments"]).unlike_theirs("it takes the target for a program to wrap"),
    refused("--web /usr/share/novnc", &["Too few arguments"]),
    refused("6080 localhost", &["Error parsing target"]),
    refused("6080 localhost:", &["Error parsing target port"]),
    refused("localhost: localhost:5900", &["Error parsing listen port"]),
    refused("desktop localhost:5900", &["Error parsing listen port"]),
    refused("65536 localhost:5900", &["Error parsing listen port"]).unlike_theirs("it starts, and cannot listen"),
    refused("6080 localhost:5900 --token-source /etc/novnc/tokens", &["You must use --token-plugin to use --token-source"]),
    refused("6080 localhost:5900 --host-token", &["You must use --token-plugin to use --host-token"]),
    refused("6080 localhost:5900 --auth-source user:pass", &["You must use --auth-plugin to use --auth-source"]),
    refused("6080 localhost:5900 --web /usr/share/novnc --web-auth", &["You must use --auth-plugin to use --web-auth"]),
    refused("6080 localhost:5900 --auth-plugin BasicHTTPAuth --auth-source user:pass --web-auth", &["You must use --web to use --web-auth"]),
    refused("6080 localhost:5900 --legacy-syslog", &["You must use --syslog to use --legacy-syslog"]),
    refused("--ssl-only 6080 localhost:5900", &["--ssl-only needs a certificate"]),
    refused("--ssl-only --cert /etc/ssl/missing.pem 6080 localhost:5900", &["/etc/ssl/missing.pem does not exist"]),
    refused("--token-plugin TokenFile 6080", &["needs --token-source"]).unlike_theirs("it starts, and refuses every client"),
    refused("--auth-plugin BasicHTTPAuth 6080 localhost:5900", &["needs --auth-source"]).unlike_theirs("it starts, and refuses every client"),
    refused("--verify-client 6080 localhost:5900", &["--verify-client needs a certificate"]).unlike_theirs("it starts, and asks nobody for a certificate"),
    refused("--token-plugin NoSuchPlugin --token-source x 6080", &["'NoSuchPlugin' is none of TokenFile"]).unlike_theirs("it ends with a traceback"),
    refused("6080 localhost:5900 --heartbeat", &["--heartbeat"]),
    refused("6080 localhost:5900 --heartbeat=", &["--heartbeat"]),
    refused("6080 localhost:5900 --heartbeat soon", &["not a number of seconds"]),
    // What there is too much of.
    refused("6080 localhost:5900 localhost:5901", &["Too many arguments"]),
    refused("6080 localhost:5900 --unix-target /run/vnc.sock", &["Too many arguments"]),
    refused("6080 localhost:5900 --token-plugin TokenFile --token-source /etc/novnc/tokens", &["Too many arguments"]),
    refused("6080 localhost:5900 --target-config=/etc/novnc/tokens", &["Too many arguments"]),
    refused("--unix-listen /run/novnc.sock 6080 localhost:5900", &["error: "]),
    refused("--inetd 6080 localhost:5900", &["error: "]),
    refused("6080 localhost:5900 -- telnetd 6080", &["Too many arguments"]).unlike_theirs("its package cannot wrap programs, which it says first"),
    refused("--target-config=/etc/novnc/tokens --unix-target /run/vnc.sock 6080", &["give one of them"]).unlike_theirs("it ignores the socket without a word"),
    // What is not known, or might be several things.
    refused("--no-such-option 6080 localhost:5900", &["--no-such-option"]),
    refused("-x 6080 localhost:5900", &["-x"]),
    refused("--ssl 6080 localhost:5900", &["--ssl"]),
    refused("--wrap-mode=never 6080 localhost:5900", &["--wrap-mode"]),
    refused("--ssl-version=sslv3 --cert /etc/ssl/novnc.pem 6080 localhost:5900", &["--ssl-version"]),
    // What cannot be.
    fails("--web /usr/share/no-such 6080 localhost:5900", &["cannot use the web directory /usr/share/no-such"]),
    fails("no-such-host.invalid:6080 localhost:5900", &["cannot listen on no-such-host.invalid:6080"]).unlike_theirs("its status is 0"),
    fails("127.0.0.1:5900 localhost:5901", &["cannot listen on 127.0.0.1:5900"]).unlike_theirs("its status is 0"),
    fails("--log-file /nowhere/log 6080 localhost:5900", &["/nowhere/log"]),
    fails("--token-plugin TokenRedis --token-source redis:desk 6080", &["the source is no good"]).unlike_theirs("its status is 0"),
];

/// What the shapes find around them: files, sockets, programs and targets.
struct Stage {
    root: Scratch,
    tls: ClientTls,
}

/// What a browser gets for `/vnc.html`.
const PAGE: &str = "<title>noVNC</title>";

/// What a VNC server says first.
const GREETING: &[u8] = b"RFB 003.008\n";

impl Stage {
    /// One with targets on these ports.
    fn with_targets(ports: &[u16]) -> Self {
        let root = Scratch::new().unwrap();
        let path = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let write = |name: &str, content: &[u8]| fs::write(path(name), content).unwrap();
        for name in ["usr/share/novnc/vnc.html", "opt/noVNC/vnc.html"] {
            write(name, PAGE.as_bytes());
        }
        write("var/log/earlier", b"");
        for name in ["etc/novnc/tokens", "etc/novnc/tokens.d/some"] {
            write(name, b"# desks\n\nlaptop: 127.0.0.1:1\ndesk: localhost:5901\n");
        }
        write("etc/novnc/names/desk", b"localhost:5901");
        write("etc/novnc/secret", b"a secret that is long enough for a key");
        let certificates = Certificates::new();
        let authority = certificates.authority("authority");
        let server = certificates.host("server", FAST, None);
        let alice = certificates.subject("alice", "/CN=alice", "utf8only", &authority);
        let tls = ClientTls::showing(&server.certificate, &alice);
        let both = certificates.join("both", &[&server.certificate, &server.key]);
        for (from, to) in [
            (&both, "etc/ssl/novnc.pem"),
            (&both, "home/pi/self.pem"),
            (&server.certificate, "etc/ssl/certs/ssl-cert-snakeoil.pem"),
            (&server.key, "etc/ssl/private/ssl-cert-snakeoil.key"),
            (&authority.certificate, "etc/ssl/ca.pem"),
        ] {
            fs::copy(from, path(to)).unwrap();
        }
        let locked = path("etc/ssl/locked.key");
        let encrypt = ["pkcs8", "-topk8", "-passout", "pass:open", "-in"];
        openssl(&[&encrypt[..], &[text(&server.key), "-out", text(&locked)]].concat());
        let public = path("etc/novnc/jwt.pem");
        let extract = ["pkey", "-pubout", "-in", text(&server.key)];
        openssl(&[&extract[..], &["-out", text(&public)]].concat());
        let greeter = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/greeter.py");
        for name in ["usr/bin/telnetd", "usr/bin/vncserver"] {
            fs::copy(&greeter, path(name)).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in ["run/vnc.sock", "run/desks/desk"] {
            let listener = UnixListener::bind(path(name)).unwrap();
            thread::spawn(move || listener.incoming().flatten().for_each(greet));
        }
        for &port in ports {
            for host in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                let listener = TcpListener::bind((host, port)).unwrap();
                thread::spawn(move || listener.incoming().flatten().for_each(greet));
            }
        }
        let syslog = UnixDatagram::bind(path("dev/log")).unwrap();
        thread::spawn(move || while syslog.recv(&mut [0; 4096]).is_ok() {});
        Self { root, tls }
    }

    /// A text of the table with the paths as they really are.
    fn place(&self, words: &str) -> String {
        let mut placed = String::new();
        let mut before = ' ';
        for (at, letter) in words.char_indices() {
            if letter == '/' && " ='\"".contains(before) && !words[at..].starts_with("//") {
                placed.push_str(text(self.root.path()));
            }
            placed.push(letter);
            before = letter;
        }
        placed
    }

    /// The command of a shape.
    fn command(&self, shape: &Shape) -> Command {
        let programs = self.root.path().join("usr/bin");
        let path = std::env::var("PATH").unwrap();
        let script = format!("exec \"$0\" {}", self.place(shape.line));
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(executable())
            .current_dir(self.root.path().join(shape.home))
            .env("PATH", format!("{}:{path}", text(&programs)));
        command
    }

    fn play(&self, shape: &Shape) {
        match shape.outcome {
            Outcome::Refused => self.expect_error(shape, 2),
            Outcome::Fails => self.expect_error(shape, 1),
            _ => self.start(shape),
        }
    }

    /// Checks that there is an error of this status.
    fn expect_error(&self, shape: &Shape, status: i32) {
        let mut command = self.command(shape);
        command.stdin(Stdio::null());
        let said = Said::by(command);
        assert!(said.stdout.is_empty(), "{said:?}");
        if theirs() {
            assert_eq!(said.status.code(), Some(status), "{said:?}");
            return assert!(status != 2 || said.stderr.contains("error:"), "{said:?}");
        }
        let says = shape.says.iter().map(|part| self.place(part));
        let is_said = says.into_iter().all(|part| said.stderr.contains(&part));
        assert!(is_said && said.stderr.contains("error:"), "{said:?}");
        let expected = if shape.line.contains("no-such-program") { 127 } else { status };
        assert_eq!(said.status.code(), Some(expected), "{said:?}");
    }

    /// Starts it, has it do what it is for, and ends it.
    fn start(&self, shape: &Shape) {
        let command = self.command(shape);
        let mut server = if shape.line.contains("--inetd") {
            Server::with_command_on(command, TcpListener::bind(INETD).unwrap())
        } else {
            Server::with_command(command)
        };
        let lines: Vec<String> = shape.says.iter().map(|part| server.wait_for_line(&self.place(part))).collect();
        if shape.is_daemon() {
            assert!(server.wait().success());
        }
        let door = door(shape, &lines, self.root.path());
        let serves = [Outcome::Serves, Outcome::ServesOne].contains(&shape.outcome);
        if serves {
            self.visit(shape, &door);
        }
        let ends = [Outcome::Ends, Outcome::ServesOne].contains(&shape.outcome);
        if !ends {
            stop(shape, &mut server, &door);
        }
        if !shape.is_daemon() {
            let status = server.wait();
            assert!(theirs() || status.success(), "{status}");
        }
        if let Door::Port(address) = door {
            wait_until("the port to be free", || listeners_on(address.port()).is_empty().then_some(()));
        }
    }

    /// Becomes a session, after a look at the page if there is one.
    fn visit(&self, shape: &Shape, door: &Door) {
        let handshake = Handshake::default()
            .request_line("GET /websockify?token=desk HTTP/1.1")
            .replace("Host", "desk")
            .with("Sec-WebSocket-Protocol: binary")
            .with("Origin: https://console.example")
            .with("Authorization: Basic dXNlcjpwYXNz");
        let address = match door {
            Door::Port(address) => *address,
            Door::Socket(path) => {
                let mut stream = wait_until("the socket", || UnixStream::connect(path).ok());
                stream.write_all(&handshake.bytes()).unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(GREETING) {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    answer.push(byte[0]);
                }
                return assert!(answer.starts_with(b"HTTP/1.1 101 "));
            }
        };
        // The lines come before the original listens.
        wait_until("the port to be open", || TcpStream::connect(address).ok());
        let connect = || {
            if shape.line.contains("--cer") || shape.home == "home/pi" {
                Client::tls(address, &self.tls).unwrap()
            } else {
                Client::raw(address)
            }
        };
        if shape.line.contains("--web") {
            let mut client = connect();
            client.request(b"GET /vnc.html HTTP/1.1\r\nHost: desk\r\nAuthorization: Basic dXNlcjpwYXNz\r\nConnection: close\r\n\r\n");
            assert_eq!(client.status(), "200");
            assert_eq!(client.read_body(), PAGE.as_bytes());
        }
        let mut client = connect();
        client.request(&handshake.bytes());
        assert_eq!(client.status(), "101");
        assert_eq!(client.read_binary(GREETING.len()), GREETING);
        client.send_close(1000);
        client.read_to_close();
    }
}

/// Where a super-server listens.
const INETD: &str = "127.0.0.1:6080";

/// Where clients come in.
enum Door {
    Port(SocketAddr),
    Socket(PathBuf),
}

/// Where that is, from the line of the settings if the shape has it, else from the shape.
fn door(shape: &Shape, lines: &[String], root: &Path) -> Door {
    let source = lines.iter().find_map(|line| {
        let (_, rest) = line.split_once("proxying from ")?;
        Some(rest.split_once(" to ").expect("the line says where to").0)
    });
    let is_source = |word: &&str| {
        let port = word.rsplit(':').next().unwrap_or_default();
        let isnt_target = !word.starts_with("localhost:5") && !word.starts_with(":5");
        !word.starts_with('-') && port.parse::<u16>().is_ok_and(|port| port > 79) && isnt_target
    };
    let source = source.or_else(|| shape.line.split(' ').rfind(is_source));
    let source = source.expect("the shape has a port");
    if source.starts_with(text(root)) {
        return Door::Socket(source.into());
    }
    let source = if source == "inetd" { INETD } else { source };
    let (host, port) = source.rsplit_once(':').unwrap_or(("", source));
    let port = port.parse().expect("it is a port");
    let host = match host {
        "[::1]" => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    Door::Port(SocketAddr::new(host, port))
}

/// Ends it by a signal, a daemon by the number of whoever listens.
fn stop(shape: &Shape, server: &mut Server, door: &Door) {
    match door {
        Door::Port(address) if shape.is_daemon() => {
            let listeners = wait_until("the daemon", || {
                Some(listeners_on(address.port())).filter(|found| !found.is_empty())
            });
            for (_, pid) in listeners {
                _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
            }
        }
        _ => server.signal(Signal::SIGTERM),
    }
}

/// Says what a VNC server says first, and waits for the client's end.
fn greet(stream: impl Read + Write + Send + 'static) {
    let mut stream = stream;
    thread::spawn(move || {
        _ = stream.write_all(GREETING);
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
}

/// Plays a table, and tells of all shapes that do not come out as it says.
fn play(shapes: &[Shape], ports: &[u16]) {
    let stage = Stage::with_targets(ports);
    let played = shapes.iter().filter(|shape| !theirs() || shape.unlike.is_none());
    let failed: Vec<&str> = played
        .filter(|shape| catch_unwind(AssertUnwindSafe(|| stage.play(shape))).is_err())
        .map(|shape| shape.line)
        .collect();
    assert!(failed.is_empty(), "not as the table says: {failed:#?}");
}

#[test]
fn desktops_are_served() {
    if in_own_network("shapes::desktops_are_served") {
        play(DESKTOPS, &[5900, 5901]);
    }
}

#[test]
fn consoles_are_served() {
    if in_own_network("shapes::consoles_are_served") {
        play(CONSOLES, &[5900, 5901]);
    }
}

#[test]
fn tokens_lead_where_they_should() {
    if in_own_network("shapes::tokens_lead_where_they_should") {
        play(TOKENS, &[5901]);
    }
}

#[test]
fn wrapped_programs_are_served() {
    // The package of the original comes without the library that it wraps with.
    if !theirs() && in_own_network("shapes::wrapped_programs_are_served") {
        play(WRAPPED, &[]);
    }
}

#[test]
fn every_form_of_options_is_taken_or_refused() {
    if in_own_network("shapes::every_form_of_options_is_taken_or_refused") {
        play(FORMS, &[5900]);
    }
}
