//! What it takes to have the program at all: how long until it listens, its memory then, the size of its executable.

use anyhow::Result;

use crate::bench::Bench;
use crate::metric::{EXECUTABLE, START, START_MEMORY};
use crate::peers::Service;

/// Bytes of a mebibyte.
const MEBIBYTE: f64 = (1 << 20) as f64;

/// Starts each peer again and again.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = bench.pick(10, 20);
    bench.in_turn(
        "start",
        rounds,
        |kind| Service::Plain.is_of(kind),
        |bench, peer| {
            let relay = bench.start(peer, Service::Plain)?;
            let mut readings = vec![
                (&START, relay.started_in.as_secs_f64() * 1000.0),
                (&START_MEMORY, relay.memory()?.total() / MEBIBYTE),
            ];
            if let Some(size) = relay.executable_size()? {
                readings.push((&EXECUTABLE, size as f64 / MEBIBYTE));
            }
            Ok(readings)
        },
    );
    Ok(())
}
