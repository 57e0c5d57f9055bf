//! Round trips of 64 bytes: how long they take, how many there are, what each costs.

use std::time::Duration;

use anyhow::Result;

use crate::bench::Bench;
use crate::figures::Reading;
use crate::load::{self, Client};
use crate::metric::{
    ECHO_1_CPU, ECHO_1_P50, ECHO_1_P99, ECHO_1_RATE, ECHO_16_CPU, ECHO_16_P50, ECHO_16_P99,
    ECHO_16_RATE, ECHO_256_CPU, ECHO_256_P50, ECHO_256_P99, ECHO_256_RATE, Metric,
};
use crate::peers::{Kind, Peer, Service};
use crate::statistics::percentile;
use crate::target::Echo;

/// The figures of so many clients.
struct Stage {
    clients: usize,
    p50: &'static Metric,
    p99: &'static Metric,
    rate: &'static Metric,
    cpu: &'static Metric,
}

const STAGES: [Stage; 3] = [
    Stage {
        clients: 1,
        p50: &ECHO_1_P50,
        p99: &ECHO_1_P99,
        rate: &ECHO_1_RATE,
        cpu: &ECHO_1_CPU,
    },
    Stage {
        clients: 16,
        p50: &ECHO_16_P50,
        p99: &ECHO_16_P99,
        rate: &ECHO_16_RATE,
        cpu: &ECHO_16_CPU,
    },
    Stage {
        clients: 256,
        p50: &ECHO_256_P50,
        p99: &ECHO_256_P99,
        rate: &ECHO_256_RATE,
        cpu: &ECHO_256_CPU,
    },
];

/// Measures with 1, 16 and 256 clients.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = bench.pick(5, 7);
    for stage in &STAGES {
        let what = format!("echo, {} clients", stage.clients);
        // To open a session takes some so long that a quick run does not wait for many.
        let quick = bench.options.quick;
        let takes_part = |kind: Kind| {
            Service::Plain.is_of(kind) && (!quick || stage.clients <= kind.most_sessions())
        };
        bench.in_turn(&what, rounds, takes_part, |bench, peer| {
            measure(bench, peer, stage)
        });
    }
    Ok(())
}

fn measure(bench: &Bench, peer: &Peer, stage: &Stage) -> Result<Vec<Reading>> {
    let length = Duration::from_millis(bench.pick(500, 1500));
    let mut relay = bench.start(peer, Service::Plain)?;
    let echo = Echo::start(&relay.target)?;
    let mut clients = (0..stage.clients)
        .map(|number| Client::open(&relay, number))
        .collect::<Result<Vec<_>>>()?;
    let mut outcome = load::run(&relay, &mut clients, length)?;
    relay.check()?;
    drop(clients);
    echo.stop()?;
    let (rate, cpu) = (outcome.rate(), outcome.cpu_each());
    let mut latency = |share| f64::from(percentile(&mut outcome.latencies, share)) / 1000.0;
    Ok(vec![
        (stage.p50, latency(0.5)),
        (stage.p99, latency(0.99)),
        (stage.rate, rate),
        (stage.cpu, cpu),
    ])
}
