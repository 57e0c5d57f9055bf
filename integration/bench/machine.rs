//! Which machine this is, without its name.

use std::fs;
use std::process::Command;

use crate::peers::first_line_of;

/// What the figures are of.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: String,
    /// How many of it may be used.
    pub(crate) cores: usize,
    /// The kernel's version.
    pub(crate) kernel: String,
    /// The day, as YYYY-MM-DD.
    pub(crate) date: String,
    /// The load averages, as it began.
    pub(crate) load: String,
}

impl Machine {
    /// Looks around.
    pub(crate) fn look() -> Self {
        let unknown = || "unknown".to_owned();
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            processor: processor(&processors).unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            date: first_line_of(Command::new("date").arg("+%F")).unwrap_or_else(unknown),
            load: fs::read_to_string("/proc/loadavg").map_or_else(
                |_| unknown(),
                |text| text.split(' ').take(3).collect::<Vec<_>>().join(" "),
            ),
        }
    }

    /// In a few words.
    pub(crate) fn in_words(&self) -> String {
        let Self {
            processor,
            cores,
            kernel,
            date,
            ..
        } = self;
        format!("{processor}, {cores} cores, Linux {kernel}, {date}")
    }
}

/// The processor's name in `/proc/cpuinfo`; ARM machines have none there.
fn processor(text: &str) -> Option<String> {
    let value = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
    };
    value("model name").or_else(|| value("CPU part"))
}
