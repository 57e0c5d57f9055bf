//! Black-box tests: the real executable, real sockets, real programs.
//!
//! - [`compatible`]: what the Python original does as well; `make compliance` runs these tests against it.
//! - [`command_line`]: usage errors, settings, log lines, exit status.
//! - [`shapes`]: command lines as they stand in public projects, each started for real.
//! - [`listening`]: TCP, unix sockets, handed-over sockets, running out of descriptors.
//! - [`upgrade`]: what is answered before a connection is a session.
//! - [`files`]: the files of `--web`.
//! - [`session`]: frames in, frames out, violations, pings, base64.
//! - [`ending`]: nothing is lost, whoever ends first and however.
//! - [`paths`]: nothing is lost or changed on any way that payload takes.
//! - [`tls`]: TLS with clients.
//! - [`tls_target`]: TLS with the target.
//! - [`auth`]: who is let in, by password, origin or certificate.
//! - [`tokens`]: where a token leads, from files and directories.
//! - [`jwt`]: tokens that are signed or encrypted.
//! - [`plugins`]: programs that know tokens or who is let in, and Python classes.
//! - [`token_api`]: tokens that a service knows which is asked by HTTP.
//! - [`token_redis`]: tokens that Redis knows.
//! - [`logs`]: the forms of the log, and the log file.
//! - [`syslog`]: the log of a syslog server.
//! - [`recording`]: recordings of sessions.
//! - [`daemon`]: going to the background, and the file with the process number.
//! - [`service`]: as a service of systemd: sockets that are handed over, notifications, units, restarts.
//! - [`user`]: whose rights it has.
//! - [`proxies`]: clients' addresses from proxies, and told to targets; haproxy and nginx.
//! - [`metrics`]: figures for Prometheus, and whether clients can be served.
//! - [`lifetime`]: stopping, run-once, timeouts, leaks.
//! - [`expiry`]: ending by itself after one session or some time, in every combination.
//! - [`limits`]: how many clients there may be at once.
//! - [`peers`]: peers that are silent, and those that have vanished.
//! - [`shim`]: the preloaded library itself.
//! - [`library`]: where the preloaded library comes from.
//! - [`methods`]: how a port is moved: preloading, seccomp, not at all.
//! - [`guard`]: nothing of a wrapped program outlives the bridge; the bridge as the first process of a container.
//! - [`terminal`]: a wrapped program in a terminal.
//! - [`wrapping`]: wrapped programs, from one-liners to daemons.
//! - [`real`]: telnetd and VNC.

mod auth;
mod command_line;
mod compatible;
mod daemon;
mod ending;
mod expiry;
mod files;
mod guard;
mod jwt;
mod library;
mod lifetime;
mod limits;
mod listening;
mod logs;
mod methods;
mod metrics;
mod paths;
mod peers;
mod plugins;
mod proxies;
mod real;
mod recording;
mod service;
mod session;
mod shapes;
mod shim;
mod syslog;
mod terminal;
mod tls;
mod tls_target;
mod token_api;
mod token_redis;
mod tokens;
mod upgrade;
mod user;
mod wrapping;
