//! Which figures the chart shows, and how.

use crate::bench::Bench;
use crate::chart::{self, Bar, Panel};
use crate::machine::Machine;
use crate::metric::{
    DOWN_CPU, ECHO_1_P50, ECHO_16_CPU, FULL_CPU, Goal, IDLE_100, IDLE_1000, LARGE_CPU, Metric,
    SESSION_RATE, SMALL_CPU, TLS_DOWN_CPU, TLS_IDLE_1000, TLS_UP_CPU, UP_CPU,
};
use crate::peers::Kind;
use crate::report::short;

const LESS: &str = "less is better";
const MORE: &str = "more is better";

/// The panels' figures with their titles. Where a peer has no such figure, the second one stands in.
const PANELS: [(&str, &str, [&Metric; 2]); 12] = [
    ("CPU for a gigabyte to the client", LESS, [&DOWN_CPU; 2]),
    ("CPU for a gigabyte to the target", LESS, [&UP_CPU; 2]),
    (
        "Echo of 64 bytes, one client, median",
        LESS,
        [&ECHO_1_P50; 2],
    ),
    ("CPU for an echo, 16 clients", LESS, [&ECHO_16_CPU; 2]),
    ("Sessions opened and closed", MORE, [&SESSION_RATE; 2]),
    ("Memory of an idle session", LESS, [&IDLE_1000, &IDLE_100]),
    (
        "TLS: CPU for a gigabyte to the client",
        LESS,
        [&TLS_DOWN_CPU; 2],
    ),
    (
        "TLS: CPU for a gigabyte to the target",
        LESS,
        [&TLS_UP_CPU; 2],
    ),
    ("TLS: CPU for a full handshake", LESS, [&FULL_CPU; 2]),
    ("TLS: memory of an idle session", LESS, [&TLS_IDLE_1000; 2]),
    ("CPU for a file of 4 KiB", LESS, [&SMALL_CPU; 2]),
    ("CPU for a file of 1 MiB", LESS, [&LARGE_CPU; 2]),
];

/// The chart of a run; nothing if haproxy is not there to compare with.
pub(crate) fn chart(bench: &Bench, machine: &Machine) -> Option<String> {
    let panels: Vec<Panel> = PANELS
        .into_iter()
        .map(|(title, hint, metrics)| Panel {
            title: title.to_owned(),
            hint,
            goal: goal(bench, metrics[0]),
            bars: Kind::ALL
                .into_iter()
                .filter_map(|kind| bar(bench, metrics, kind))
                .collect(),
        })
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    let caption = format!(
        "{}. Lines: least to most of the rounds.",
        machine.in_words()
    );
    (!panels.is_empty()).then(|| {
        chart::draw(
            "websockify beside other relays",
            "Ratio (dashed line: 1) to haproxy as a TCP relay without WebSocket, under TLS terminating it, and with files to nginx. \
             Triangle: our goal.",
            &caption,
            &panels,
        )
    })
}

/// A peer's bar.
fn bar(bench: &Bench, metrics: [&Metric; 2], kind: Kind) -> Option<Bar> {
    let metric = metrics
        .into_iter()
        .find(|metric| bench.figures.summary(metric, kind).is_some())?;
    let summary = bench.figures.summary(metric, kind)?;
    let ratio = bench.figures.ratio(metric, kind)?;
    Some(Bar {
        label: kind.name().to_owned(),
        text: format!(
            "{}× · {} {}",
            short(ratio.median),
            short(summary.median),
            metric.unit
        ),
        ratio: [ratio.least, ratio.median, ratio.most],
        colour: colour(kind),
        ours: kind == Kind::Ours,
    })
}

/// The goal as a ratio.
fn goal(bench: &Bench, metric: &Metric) -> Option<f64> {
    match metric.goal? {
        Goal::RatioAtMost(limit) | Goal::RatioAtLeast(limit) => Some(limit),
        Goal::ValueAtMost(limit) => {
            let base = bench.figures.base(metric)?;
            Some(limit / bench.figures.summary(metric, base)?.median)
        }
        Goal::ValueAtLeast(_) | Goal::OwnRatioAtMost(..) => None,
    }
}

/// Ours stands out, the plain relays and the bridges are shades of one colour each.
fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "#0d9488",
        Kind::Haproxy | Kind::Nginx => "#64748b",
        Kind::Socat => "#94a3b8",
        Kind::Websocat => "#a78bfa",
        Kind::Python => "#c4b5fd",
    }
}
