//! The signals that this process takes.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::wrap::Order;
use crate::{sys, terminal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// End, with this signal for the wrapped program.
    Stop(Signal),
    /// Read again what may have changed; for the wrapped program, if there is one, the signal that daemons take for that.
    Reload,
    /// Do this to the wrapped program.
    Program(Order),
}

/// The signals that are waited for.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(Signal, Stream)>,
    on_terminal: bool,
}

impl Signals {
    /// Takes the signals that end us, and with a wrapped program also those that are for it.
    pub(crate) fn new(wrapped: bool) -> io::Result<Self> {
        let mut taken = vec![Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
        // Under nohup it stays ignored.
        if !sys::is_ignored(Signal::SIGHUP) {
            taken.push(Signal::SIGHUP);
        }
        if wrapped {
            taken.extend([
                Signal::SIGUSR1,
                Signal::SIGUSR2,
                Signal::SIGWINCH,
                Signal::SIGTSTP,
                Signal::SIGCONT,
            ]);
        }
        let streams = taken
            .into_iter()
            .map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            streams,
            on_terminal: terminal::is_alive(),
        })
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Request {
        let signal = self.receive().await;
        match signal {
            // It also comes when the terminal that we were started on is gone, and is the end then.
            Signal::SIGHUP if !self.on_terminal || terminal::is_alive() => Request::Reload,
            Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGHUP => {
                Request::Stop(signal)
            }
            Signal::SIGTSTP => Request::Program(Order::Suspend),
            _ => Request::Program(Order::Forward(signal)),
        }
    }

    async fn receive(&mut self) -> Signal {
        poll_fn(|cx| {
            let arrived = self
                .streams
                .iter_mut()
                .find_map(|(number, stream)| stream.poll_recv(cx).is_ready().then_some(*number));
            arrived.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
