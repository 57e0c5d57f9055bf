//! How far the server is, as everything in it may need to know.

/// How far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes connections.
    Serving,
    /// It takes no more, and lets sessions finish.
    Finishing,
    /// It closes all sessions.
    Stopping,
}
