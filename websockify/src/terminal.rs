//! Our controlling terminal, if we have one: who in it is in the foreground.

#![allow(unsafe_code, reason = "changing a signal's disposition for a moment")]

use std::fs::File;
use std::sync::LazyLock;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The terminal, kept open from the first use on: so it can be told when it is gone.
static TERMINAL: LazyLock<Option<File>> = LazyLock::new(|| File::open("/dev/tty").ok());

/// The process group in the foreground; `None` without a terminal, or when it has been hung up.
fn foreground() -> Option<Pid> {
    tcgetpgrp(TERMINAL.as_ref()?).ok()
}

/// Whether there is a terminal that has not been hung up.
pub(crate) fn is_alive() -> bool {
    foreground().is_some()
}

/// Whether we are in the foreground.
pub(crate) fn is_ours() -> bool {
    foreground() == Some(getpgrp())
}

/// Brings another process group to the foreground.
pub(crate) fn give_to(group: Pid) {
    let Some(terminal) = TERMINAL.as_ref() else {
        return;
    };
    // From the background this would stop us.
    // SAFETY: ignoring a signal runs no handler.
    let before = unsafe { signal(Signal::SIGTTOU, SigHandler::SigIgn) };
    // The group may have ended meanwhile.
    _ = tcsetpgrp(terminal, group);
    if let Ok(before) = before {
        // SAFETY: the disposition that was there before.
        _ = unsafe { signal(Signal::SIGTTOU, before) };
    }
}

/// Comes back to the foreground, if `group` is there. Returns whether it was.
pub(crate) fn take_back(group: Pid) -> bool {
    let theirs = foreground() == Some(group);
    if theirs {
        give_to(getpgrp());
    }
    theirs
}
