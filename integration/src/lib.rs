//! What the black-box tests of websockify are made of: [`Server`] starts the real executable, [`Target`] is what it connects to,
//! [`Client`] is a WebSocket client that can also misbehave.
//!
//! No test sleeps, and none chooses a port: the listening socket is made by the test and handed over as standard input, and
//! every wait is for something, under one deadline.
//!
//! With `WEBSOCKIFY_UNDER_TEST=theirs` the tests drive the Python original (`websockify` from `PATH`) instead, which shows whether
//! a compatibility test is right.
//!
//! With `WEBSOCKIFY_OVER_TLS` in the environment every server has a certificate and every client speaks TLS.

mod client;
mod daemon;
mod programs;
mod server;
mod system;
mod target;
mod tls;

pub use client::{Client, Handshake, Message, close_payload, frame, frame_header};
pub use daemon::{Daemon, Said, is_alive, pid_in};
pub use programs::{compile, compile_go};
pub use server::{Server, executable, run_to_end, session, theirs};
pub use system::{
    Chance, Scratch, as_root, enlarge_disk, hash, in_own_mounts, in_own_network, listeners_on,
    pattern, small_disk, wait_until,
};
pub use target::{Target, reset};
pub use tls::{
    Certificates, ClientTls, FAST, Identity, accept_tls, is_everywhere as over_tls, openssl, text,
};

use std::time::Duration;

/// How long a test waits for anything that is bound to happen.
pub const DEADLINE: Duration = Duration::from_secs(30);
