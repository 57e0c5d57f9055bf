//! How far the descriptors go that the system grants us: so many connections are taken that none of them can take away what others, or
//! the log, need.

use std::thread;

use anyhow::{Result, bail};

use crate::sys;

/// What a connection takes: its client's, and its target's or a file's.
const EACH: usize = 2;
/// What it takes in addition where sessions are recorded.
const RECORDING: usize = 1;
/// What starting takes.
const START: usize = 16;
/// What is left for look-ups of names, files that are read again, and the like.
const RESERVE: usize = 8;
/// What a worker takes.
const WORKER: usize = 3;
/// The pipes that are worth having, and how many descriptors there have to be for each.
const PIPES: (usize, usize) = (64, 16);

/// What there are descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Connections.
    pub(crate) connections: usize,
    /// Pipes, which are two descriptors each.
    pub(crate) pipes: usize,
}

/// Gets as many descriptors as there may be.
///
/// # Errors
/// They are not enough to start.
pub(crate) fn claim() -> Result<()> {
    let limit = sys::raise_descriptor_limit();
    let needed = open() + START;
    if limit < needed {
        bail!(
            "at most {limit} descriptors are permitted (ulimit -n, LimitNOFILE=), at least {needed} are needed to start"
        );
    }
    Ok(())
}

/// Divides what is left when everything but connections has its descriptors; `more` will be needed for something else. What connections take
/// depends on whether somebody `records` sessions.
pub(crate) fn budget(more: usize, records: bool) -> Budget {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let each = if records { EACH + RECORDING } else { EACH };
    divide(sys::descriptor_limit(), open() + more, processors, each)
}

/// How many are open; a guess where the system does not tell.
fn open() -> usize {
    sys::open_descriptors().unwrap_or(32)
}

fn divide(limit: usize, open: usize, processors: usize, each: usize) -> Budget {
    let left = limit.saturating_sub(open + RESERVE);
    // Other workers than the first are started when there is something to do; without descriptors it does the work.
    let left = left - (WORKER * (processors - 1)).min(left / 4);
    let pipes = (left / PIPES.1).min(PIPES.0.max(4 * processors));
    Budget {
        connections: ((left - 2 * pipes) / each).max(1),
        pipes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_exceeded_by_what_is_taken() {
        for limit in (24..2000).chain([20_000, 1 << 20]) {
            for processors in [1, 2, 64] {
                for each in [EACH, EACH + RECORDING] {
                    let Budget { connections, pipes } = divide(limit, 14, processors, each);
                    let workers = if limit > 1000 {
                        WORKER * (processors - 1)
                    } else {
                        0
                    };
                    assert!(14 + each * connections + 2 * pipes + workers <= limit);
                }
            }
        }
        assert!(divide(20_000, 20, 2, EACH).connections > 9_900);
        assert!(divide(64, 14, 2, EACH).connections >= 15);
    }
}
