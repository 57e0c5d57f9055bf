//! Writes the page that Prometheus reads, version 0.0.4 of its text format; the only file that knows the library for that.

use std::fmt;
use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use nix::time::ClockId;
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{
    Answer, BOUNDS, Connect, Counter, Durations, End, Facts, LookUp, Program, Reason, Sheet,
};
use crate::sys;

/// What the page is, in HTTP's terms.
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Everything that is on the page.
#[derive(Debug)]
struct Page {
    total: Sheet,
    facts: Facts,
    program: Option<(Program, u64)>,
}

/// Writes the page.
pub(super) fn write(total: Sheet, facts: Facts, program: Option<(Program, u64)>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page {
        total,
        facts,
        program,
    }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a string takes everything");
    text
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.write_traffic(&mut writer)?;
        self.write_questions(&mut writer)?;
        if let Some((state, starts)) = self.program {
            write_program(&mut writer, state, starts)?;
        }
        self.write_process(&mut writer)
    }
}

impl Page {
    /// Clients and their bytes.
    fn write_traffic(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let total = &self.total;
        writer.gauge(
            "websockify_connections_open",
            "Connections of clients that are open, sessions among them.",
            total.connections.open(),
        )?;
        writer.gauge(
            "websockify_connections_max",
            "Connections of clients that there may be at once.",
            self.facts.max_connections as u64,
        )?;
        writer.counter(
            "websockify_connections",
            "Connections of clients that were accepted.",
            total.connections.come.get(),
        )?;
        writer.gauge(
            "websockify_sessions_open",
            "WebSocket sessions that are open.",
            total.sessions.open(),
        )?;
        let ends = End::ALL.iter().zip(&total.ends);
        writer.counters(
            "websockify_sessions",
            "WebSocket sessions that have ended, by whose doing that was and what it was.",
            ends.map(|(end, count)| {
                let labels = [("closed_by", end.closed_by()), ("cause", end.text())];
                (labels, count.get())
            }),
        )?;
        writer.counters(
            "websockify_bytes",
            "Payload bytes of sessions.",
            [
                ("from_client", &total.from_client),
                ("from_target", &total.from_target),
            ]
            .map(|(direction, count)| ([("direction", direction)], count.get())),
        )?;
        let refused = Reason::ALL.iter().zip(&total.refused);
        writer.counters(
            "websockify_refused",
            "Clients that were refused before they were sessions, by the reason.",
            refused.map(|(reason, count)| ([("reason", reason.text())], count.get())),
        )
    }

    /// What was asked, and what was connected to.
    fn write_questions(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let total = &self.total;
        let connects = Connect::ALL.iter().zip(&total.connects);
        writer.durations(
            "websockify_target_connect_duration_seconds",
            "How long it took to connect to targets, TLS and waiting for a wrapped program included.",
            connects.map(|(outcome, durations)| ([("outcome", outcome.text())], durations)),
        )?;
        if let Some(plugin) = &self.facts.token_plugin {
            let look_ups = LookUp::ALL.iter().zip(&total.look_ups);
            writer.durations(
                "websockify_lookup_duration_seconds",
                "How long it took to look up tokens.",
                look_ups.map(|(outcome, durations)| {
                    let labels = [("plugin", &plugin[..]), ("outcome", outcome.text())];
                    (labels, durations)
                }),
            )?;
        }
        if let Some(plugin) = &self.facts.auth_plugin {
            let answers = Answer::ALL.iter().zip(&total.answers);
            writer.durations(
                "websockify_auth_duration_seconds",
                "How long it took to ask who is let in.",
                answers.map(|(outcome, durations)| {
                    let labels = [("plugin", &plugin[..]), ("outcome", outcome.text())];
                    (labels, durations)
                }),
            )?;
        }
        Ok(())
    }

    /// This process.
    fn write_process(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let started = self.facts.started.duration_since(UNIX_EPOCH);
        writer.gauges(
            "websockify_build_info",
            "The version of websockify.",
            [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
        )?;
        let process_time = ClockId::CLOCK_PROCESS_CPUTIME_ID.now();
        if let Ok(time) = process_time {
            writer.seconds(
                "process_cpu_seconds",
                "Processor time of this process, in seconds.",
                Duration::from(time),
            )?;
        }
        if let Some(open) = sys::open_descriptors() {
            writer.gauge(
                "process_open_fds",
                "Descriptors that this process has open.",
                open as u64,
            )?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            writer.gauge(
                "process_max_fds",
                "Descriptors that this process may have open.",
                soft,
            )?;
        }
        if let Some((size, resident)) = memory() {
            writer.gauge(
                "process_virtual_memory_bytes",
                "Address space of this process, in bytes.",
                size,
            )?;
            writer.gauge(
                "process_resident_memory_bytes",
                "Memory of this process, in bytes.",
                resident,
            )?;
        }
        writer.gauge(
            "process_start_time_seconds",
            "When this process began, in seconds since 1970.",
            started.unwrap_or_default().as_secs_f64(),
        )
    }
}

/// The wrapped program.
fn write_program(writer: &mut Writer<'_>, state: Program, starts: u64) -> fmt::Result {
    writer.gauge(
        "websockify_program_up",
        "Whether the wrapped program listens.",
        u64::from(state == Program::Listening),
    )?;
    writer.gauges(
        "websockify_program_state",
        "What the wrapped program does: 1 for the state that it is in.",
        Program::ALL
            .iter()
            .map(|&other| ([("state", other.text())], u64::from(other == state))),
    )?;
    writer.counter(
        "websockify_program_starts",
        "How often the wrapped program was started.",
        starts,
    )
}

/// Writes metrics, each with what it is before its values.
struct Writer<'a>(DescriptorEncoder<'a>);

/// Labels, each a name and a value.
type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

impl Writer<'_> {
    /// A number that goes up and down.
    fn gauge(&mut self, name: &str, help: &str, value: impl Into<Number>) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        match value.into() {
            Number::Whole(value) => encoder.encode_gauge(&value),
            Number::Fraction(value) => encoder.encode_gauge(&value),
        }
    }

    /// Such numbers, with labels.
    fn gauges<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'s, N>, u64)>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        values
            .into_iter()
            .try_for_each(|(labels, value)| encoder.encode_family(&labels)?.encode_gauge(&value))
    }

    /// A number that only goes up; `_total` is added to its name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// Such numbers, with labels.
    fn counters<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'s, N>, u64)>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(labels, value)| {
            encoder
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// Seconds that only become more; `_total` is added to the name.
    fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value.as_secs_f64(), None)
    }

    /// Durations, with labels.
    fn durations<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'s, N>, &'s Durations)>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        values.into_iter().try_for_each(|(labels, durations)| {
            let counts = durations.counts.iter().map(Counter::get);
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = Duration::from_nanos(durations.nanoseconds.get()).as_secs_f64();
            encoder
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }
}

/// A value of a gauge.
enum Number {
    /// Of something that can be counted.
    Whole(u64),
    /// Of something that can be measured.
    Fraction(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Fraction(value)
    }
}

/// The size of this process and what of it is in memory, in bytes (proc_pid_statm(5)).
fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    let page = u64::try_from(page).ok()?;
    let mut pages = text
        .split_ascii_whitespace()
        .map_while(|number| number.parse::<u64>().ok());
    Some((pages.next()? * page, pages.next()? * page))
}
