//! Processes that serve the bridge itself, as plugins do. They are our children just as the wrapped program is, so whoever looks
//! after that has to know them apart.

use std::sync::{Mutex, PoisonError};

use nix::unistd::{Pid, getsid};

/// The helpers that have not ended. Each leads a session.
static HELPERS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Notes a process as a helper until it is dropped, which is to be soon after the process has ended: its number may then be
/// given to another.
#[derive(Debug)]
pub(crate) struct Helper(Pid);

impl Helper {
    /// Notes a process that was started by [`crate::sys::as_helper`].
    pub(crate) fn new(pid: Pid) -> Self {
        with_all(|helpers| helpers.push(pid));
        Self(pid)
    }

    /// Its number, which is also that of its session and of its process group.
    pub(crate) fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        with_all(|helpers| helpers.retain(|&pid| pid != self.0));
    }
}

/// The helpers themselves.
pub(crate) fn all() -> Vec<Pid> {
    with_all(|helpers| helpers.clone())
}

/// Whether a process is a helper, or was started by one and has not begun a session of its own, whoever adopted it.
pub(crate) fn is_related(pid: Pid) -> bool {
    getsid(Some(pid)).is_ok_and(|session| with_all(|helpers| helpers.contains(&session)))
}

fn with_all<T>(action: impl FnOnce(&mut Vec<Pid>) -> T) -> T {
    action(&mut HELPERS.lock().unwrap_or_else(PoisonError::into_inner))
}
