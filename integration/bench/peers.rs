//! Whom we measure: how each is found and how it is told what to relay.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{User, getuid};

use crate::tls::Tls;
use crate::wire::Speech;

/// The most sessions that are open at once.
pub(crate) const MOST_SESSIONS: usize = 10_000;

/// What a peer is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service<'a> {
    /// Relay.
    Plain,
    /// Relay what comes by TLS.
    Tls(&'a Tls),
    /// The same, with a target only for clients that send something: most just come and go.
    Handshakes(&'a Tls),
    /// Have the files of this directory.
    Files(&'a Path),
    /// Know the tokens in this file.
    Tokens(&'a Path),
}

impl<'a> Service<'a> {
    /// Whether a peer does that.
    pub(crate) fn is_of(self, kind: Kind) -> bool {
        match self {
            Self::Plain => kind != Kind::Nginx,
            Self::Tls(_) => matches!(kind, Kind::Ours | Kind::Haproxy | Kind::Python),
            Self::Handshakes(_) => matches!(kind, Kind::Ours | Kind::Haproxy),
            Self::Files(_) => matches!(kind, Kind::Ours | Kind::Nginx),
            Self::Tokens(_) => kind == Kind::Ours,
        }
    }

    /// What is needed for TLS with the peer.
    pub(crate) fn tls(self) -> Option<&'a Tls> {
        match self {
            Self::Plain | Self::Files(_) | Self::Tokens(_) => None,
            Self::Tls(tls) | Self::Handshakes(tls) => Some(tls),
        }
    }
}

/// A program that relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The program that this is all about.
    Ours,
    /// haproxy in TCP mode, which everything is compared with.
    Haproxy,
    /// socat, a process for each connection.
    Socat,
    /// The WebSocket tool in Rust.
    Websocat,
    /// The Python original, a process for each connection.
    Python,
    /// nginx, which relays nothing: files are compared with its.
    Nginx,
}

impl Kind {
    /// All of them, in the order in which they have their turns and are shown.
    pub(crate) const ALL: [Self; 6] = [
        Self::Ours,
        Self::Haproxy,
        Self::Socat,
        Self::Websocat,
        Self::Python,
        Self::Nginx,
    ];
    /// Whom the others are compared with; no figure has both.
    pub(crate) const BASES: [Self; 2] = [Self::Haproxy, Self::Nginx];

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "websockify",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
            Self::Websocat => "websocat",
            Self::Python => "python",
            Self::Nginx => "nginx",
        }
    }

    /// What its clients speak.
    pub(crate) fn speech(self) -> Speech {
        match self {
            Self::Haproxy | Self::Socat | Self::Nginx => Speech::Plain,
            Self::Ours | Self::Websocat | Self::Python => Speech::WebSocket,
        }
    }

    /// The most sessions that are opened at once to see what they cost; a process for each one takes time and memory.
    pub(crate) fn most_sessions(self) -> usize {
        match self {
            Self::Ours | Self::Haproxy | Self::Nginx => MOST_SESSIONS,
            Self::Websocat => 1000,
            Self::Socat | Self::Python => 100,
        }
    }
}

/// A program that is there.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Which one.
    pub(crate) kind: Kind,
    /// Its executable.
    pub(crate) program: PathBuf,
    /// What it says of its version.
    pub(crate) version: String,
}

impl Peer {
    /// The peer of this kind, if it is there. `ours` is our executable, the original is looked for in the virtual environment.
    pub(crate) fn find(kind: Kind, ours: &Path, environment: &Path) -> Option<Self> {
        let program = match kind {
            Kind::Ours => Some(ours.to_owned()),
            Kind::Haproxy | Kind::Socat | Kind::Websocat | Kind::Nginx => in_path(kind.name()),
            Kind::Python => Some(environment.join("bin/websockify")),
        };
        let program = program.filter(|program| program.is_file())?;
        let version = version(kind, &program).unwrap_or_else(|| "version unknown".to_owned());
        Some(Self {
            kind,
            program,
            version,
        })
    }

    /// The arguments that make it do that from `source` to `target`; what it needs beside goes to `scratch`.
    pub(crate) fn arguments(
        &self,
        service: Service<'_>,
        source: SocketAddr,
        target: SocketAddr,
        scratch: &Path,
    ) -> Result<Vec<OsString>> {
        let words = match self.kind {
            Kind::Ours | Kind::Python => {
                let mut words: Vec<OsString> = Vec::new();
                match service {
                    Service::Plain => {}
                    Service::Tls(tls) | Service::Handshakes(tls) => {
                        words.extend(["--cert".into(), tls.file.clone().into()]);
                    }
                    Service::Files(directory) => words.extend(["--web".into(), directory.into()]),
                    Service::Tokens(file) => {
                        words.extend([
                            "--target-config".into(),
                            file.into(),
                            source.to_string().into(),
                        ]);
                        return Ok(words);
                    }
                }
                words.extend([source.to_string().into(), target.to_string().into()]);
                return Ok(words);
            }
            Kind::Haproxy => {
                let file = scratch.join("haproxy.cfg");
                fs::write(&file, haproxy_configuration(service, source, target))
                    .context("write haproxy's configuration")?;
                return Ok(vec!["-db".into(), "-f".into(), file.into()]);
            }
            Kind::Socat => vec![
                format!(
                    "TCP4-LISTEN:{},bind={},reuseaddr,fork,backlog=1024",
                    source.port(),
                    source.ip()
                ),
                format!("TCP4:{target}"),
            ],
            Kind::Nginx => {
                let file = scratch.join("nginx.conf");
                fs::write(&file, nginx_configuration(service, source, scratch)?)
                    .context("write nginx's configuration")?;
                return Ok(vec!["-e".into(), "stderr".into(), "-c".into(), file.into()]);
            }
            Kind::Websocat => vec![
                "--binary".to_owned(),
                format!("ws-l:{source}"),
                format!("tcp:{target}"),
            ],
        };
        Ok(words.into_iter().map(OsString::from).collect())
    }
}

/// A plain relay with everything else as it comes; without timeouts it would warn.
fn haproxy_configuration(service: Service<'_>, source: SocketAddr, target: SocketAddr) -> String {
    let tls = service
        .tls()
        .map(|tls| format!("ssl crt {}", tls.file.display()))
        .unwrap_or_default();
    // As a bridge does, which waits for a request.
    let rules = match service {
        Service::Handshakes(_) => {
            "tcp-request inspect-delay 10s\n  tcp-request content accept if { req.len gt 0 }\n  \
             tcp-request content reject"
        }
        _ => "",
    };
    format!(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen relay\n  bind {source} {tls}\n  {rules}\n  server target {target}\n"
    )
}

/// nginx as it serves files best, with a log like ours, and nothing outside of `scratch`.
fn nginx_configuration(service: Service<'_>, source: SocketAddr, scratch: &Path) -> Result<String> {
    let Service::Files(root) = service else {
        bail!("nginx serves files only");
    };
    // Its workers are to be allowed to read our directories, where it is started by root.
    let user = User::from_uid(getuid())
        .ok()
        .flatten()
        .context("find our own name")?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {};\n", scratch.display()))
        .concat();
    Ok(format!(
        "user {};\ndaemon off;\nworker_processes auto;\npid {scratch}/nginx.pid;\nevents {{}}\nhttp {{\n\
         {temporary}  access_log {scratch}/access.log;\n  sendfile on;\n  tcp_nopush on;\n\
         keepalive_requests 1000000000;\n  server {{\n    listen {source};\n    root {};\n  }}\n}}\n",
        user.name,
        root.display(),
        scratch = scratch.display(),
    ))
}

/// The executable of this name in `PATH`, or where Debian has those of system services.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// The version that a program tells, in a few words.
fn version(kind: Kind, program: &Path) -> Option<String> {
    match kind {
        Kind::Ours | Kind::Websocat => first_line_of(Command::new(program).arg("--version")),
        Kind::Haproxy => {
            let output = Command::new(program).arg("-vv").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let words = text.lines().next()?.split_whitespace().take(3);
            let library = text.lines().find(|line| line.starts_with("Running on OpenSSL"));
            let library = library.and_then(|line| line.split(": ").nth(1)).into_iter();
            Some(words.chain(library).collect::<Vec<_>>().join(" "))
        }
        Kind::Socat => {
            let output = Command::new(program).arg("-V").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().find(|line| line.starts_with("socat version"))?;
            Some(line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        }
        Kind::Nginx => {
            let output = Command::new(program).arg("-v").output().ok()?;
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Some(text.trim_start_matches("nginx version: ").to_owned())
        }
        Kind::Python => first_line_of(Command::new(program.with_file_name("python")).args([
            "-c",
            "import platform, importlib.metadata as m; print('websockify', m.version('websockify'), \
             'with numpy', m.version('numpy'), 'on Python', platform.python_version())",
        ])),
    }
}

/// The first line that a command prints.
pub(crate) fn first_line_of(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}
