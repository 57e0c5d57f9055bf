//! A WebSocket to TCP bridge that can wrap a program which only knows TCP.
//!
//! # The life of a connection
//!
//! [`listener`] accepts → [`proxy`] finds out for whom → [`sniff`] tells what the client speaks → [`http`] answers requests until
//! one is an upgrade, which [`websocket::handshake`] judges → [`target`] connects → [`relay`] carries bytes both ways, framed by [`websocket::frame`], and
//! ends both legs without losing any. [`connection`] tells this story from one end to the other: to find the way of a byte,
//! start there.
//!
//! # Around it
//!
//! [`cli`] mirrors the command line, [`config`] makes sense of it. [`daemon`] goes to the background, [`user`] gives up rights, and
//! [`start`] and [`systemd`] tell others how it went. [`server`] is the accept loop with its limits, which gives connections to
//! [`workers`]. [`wrap`] starts a program whose port is moved out of the way, and looks after it. [`mod@conduct`] has both do what signals
//! ask for, [`reload`] among it. [`log`] writes what happens, [`record`] what passes. [`metrics`] counts both, and
//! [`monitor`] shows that. [`memory`] is where buffers come from. [`service`] puts it
//! all together.

#![deny(unsafe_code)]

mod addr;
mod auth;
pub mod cli;
mod conduct;
pub mod config;
mod connection;
mod crowd;
mod daemon;
mod descriptors;
mod future;
mod gate;
mod helpers;
mod http;
mod input;
mod listener;
pub mod log;
pub mod memory;
mod metrics;
mod monitor;
pub mod origin;
mod outage;
mod phase;
mod pid_file;
mod plugin;
mod proxy;
mod record;
mod relay;
mod reload;
mod secret;
mod server;
mod service;
mod signals;
mod sniff;
mod stamp;
mod start;
mod stream;
mod sys;
mod systemd;
mod target;
mod terminal;
mod tls;
mod token;
mod user;
mod websocket;
mod whole_file;
mod workers;
mod wrap;

use std::ffi::OsString;

pub use service::run;

/// Replaces this process by a program whose `bind()` to `old_port` goes to `new_port` on loopback. Returns only when it cannot,
/// and then why; [`exit_status`] tells the status for that.
#[must_use]
pub fn execute_rebound(old_port: u16, new_port: u16, command: &[OsString]) -> anyhow::Error {
    wrap::execute(old_port, new_port, command)
}

/// The exit status for an error of [`execute_rebound`], or of what [`run`] does.
#[must_use]
pub fn exit_status(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<wrap::Obstacle>()
        .map_or(1, wrap::Obstacle::exit_status)
}
