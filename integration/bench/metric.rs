//! What is measured, in the order in which it is shown.

/// A figure.
#[derive(Debug, PartialEq)]
pub(crate) struct Metric {
    /// Its name in the JSON file.
    pub(crate) key: &'static str,
    /// What it is called in the table.
    pub(crate) label: &'static str,
    /// What it is counted in.
    pub(crate) unit: &'static str,
    /// What we want to reach.
    pub(crate) goal: Option<Goal>,
}

/// What we want to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// At most so many times haproxy's.
    RatioAtMost(f64),
    /// At least so many times haproxy's.
    RatioAtLeast(f64),
    /// At most so much, whatever others need.
    ValueAtMost(f64),
    /// At least so much.
    ValueAtLeast(f64),
    /// At most so many times another figure of our own.
    OwnRatioAtMost(f64, &'static Metric),
}

/// Makes one of the figures below.
const fn metric(
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    goal: Option<Goal>,
) -> Metric {
    Metric {
        key,
        label,
        unit,
        goal,
    }
}

const MICROSECONDS: &str = "µs";
const EACH_SECOND: &str = "/s";
const MEGABYTES: &str = "MB/s";
const PER_GIGABYTE: &str = "s/GB";
/// Round trips, CPU and both percentiles, are to be no dearer than through haproxy.
const NO_DEARER: Option<Goal> = Some(Goal::RatioAtMost(1.0));
/// "Constant", with some room for noise.
const CONSTANT: f64 = 1.1;

macro_rules! metrics {
    ($($name:ident = ($($field:expr),* $(,)?);)*) => {
        $(#[doc = "See its label."] pub(crate) static $name: Metric = metric($($field),*);)*
        /// All of them.
        pub(crate) static ALL: &[&Metric] = &[$(&$name),*];
    };
}

metrics! {
    DOWN_RATE = ("down_rate", "target→client", MEGABYTES, Some(Goal::RatioAtLeast(1.3)));
    DOWN_CPU = ("down_cpu", "target→client, CPU", PER_GIGABYTE, Some(Goal::RatioAtMost(0.45)));
    UP_RATE = ("up_rate", "client→target", MEGABYTES, Some(Goal::RatioAtLeast(1.2)));
    UP_CPU = ("up_cpu", "client→target, CPU", PER_GIGABYTE, Some(Goal::RatioAtMost(0.85)));
    ECHO_1_P50 = ("echo_1_p50", "echo, 1 client, p50", MICROSECONDS, NO_DEARER);
    ECHO_1_P99 = ("echo_1_p99", "echo, 1 client, p99", MICROSECONDS, NO_DEARER);
    ECHO_1_RATE = ("echo_1_rate", "echo, 1 client", EACH_SECOND, None);
    ECHO_1_CPU = ("echo_1_cpu", "echo, 1 client, CPU each", MICROSECONDS, NO_DEARER);
    ECHO_16_P50 = ("echo_16_p50", "echo, 16 clients, p50", MICROSECONDS, NO_DEARER);
    ECHO_16_P99 = ("echo_16_p99", "echo, 16 clients, p99", MICROSECONDS, NO_DEARER);
    ECHO_16_RATE = ("echo_16_rate", "echo, 16 clients", EACH_SECOND, None);
    ECHO_16_CPU = ("echo_16_cpu", "echo, 16 clients, CPU each", MICROSECONDS, NO_DEARER);
    ECHO_256_P50 = ("echo_256_p50", "echo, 256 clients, p50", MICROSECONDS, NO_DEARER);
    ECHO_256_P99 = ("echo_256_p99", "echo, 256 clients, p99", MICROSECONDS, NO_DEARER);
    ECHO_256_RATE = ("echo_256_rate", "echo, 256 clients", EACH_SECOND, None);
    ECHO_256_CPU = ("echo_256_cpu", "echo, 256 clients, CPU each", MICROSECONDS, NO_DEARER);
    SESSION_RATE = ("session_rate", "sessions", EACH_SECOND, Some(Goal::RatioAtLeast(1.0)));
    SESSION_CPU = ("session_cpu", "session, CPU each", MICROSECONDS, Some(Goal::RatioAtMost(1.1)));
    IDLE_100 = ("idle_100", "idle session, memory, of 100", "KiB", None);
    IDLE_1000 = ("idle_1000", "idle session, memory, of 1,000", "KiB", Some(Goal::ValueAtMost(4.0)));
    IDLE_10000 = ("idle_10000", "idle session, memory, of 10,000", "KiB", Some(Goal::ValueAtMost(4.0)));
    ACTIVE_1_OF_1000 = ("active_1_of_1000", "echo, 1 active of 1,000, CPU each", MICROSECONDS, None);
    ACTIVE_1_OF_10000 = ("active_1_of_10000", "echo, 1 active of 10,000, CPU each", MICROSECONDS,
        Some(Goal::OwnRatioAtMost(CONSTANT, &ACTIVE_1_OF_1000)));
    ACTIVE_1000_OF_1000 = ("active_1000_of_1000", "echo, 1,000 active of 1,000, CPU each", MICROSECONDS, None);
    ACTIVE_1000_OF_10000 = ("active_1000_of_10000", "echo, 1,000 active of 10,000, CPU each", MICROSECONDS,
        Some(Goal::OwnRatioAtMost(CONSTANT, &ACTIVE_1000_OF_1000)));
    SHUTDOWN_1000 = ("shutdown_1000", "end with 1,000 sessions, each", MICROSECONDS, None);
    SHUTDOWN_10000 = ("shutdown_10000", "end with 10,000 sessions, each", MICROSECONDS,
        Some(Goal::OwnRatioAtMost(CONSTANT, &SHUTDOWN_1000)));
    TOLD_1000 = ("told_1000", "clients told of the end, of 1,000", "%", Some(Goal::ValueAtLeast(100.0)));
    TOLD_10000 = ("told_10000", "clients told of the end, of 10,000", "%", Some(Goal::ValueAtLeast(100.0)));
    TLS_DOWN_RATE = ("tls_down_rate", "TLS, target→client", MEGABYTES, None);
    TLS_DOWN_CPU = ("tls_down_cpu", "TLS, target→client, CPU", PER_GIGABYTE, Some(Goal::RatioAtMost(1.1)));
    TLS_UP_RATE = ("tls_up_rate", "TLS, client→target", MEGABYTES, None);
    TLS_UP_CPU = ("tls_up_cpu", "TLS, client→target, CPU", PER_GIGABYTE, Some(Goal::RatioAtMost(1.1)));
    FULL_RATE = ("tls_full_rate", "TLS handshakes", EACH_SECOND, None);
    FULL_CPU = ("tls_full_cpu", "TLS handshake, CPU each", MICROSECONDS, None);
    RESUMED_RATE = ("tls_resumed_rate", "TLS handshakes, resumed", EACH_SECOND, None);
    RESUMED_CPU = ("tls_resumed_cpu", "TLS handshake, resumed, CPU each", MICROSECONDS, None);
    TLS_IDLE_1000 = ("tls_idle_1000", "idle TLS session, memory, of 1,000", "KiB", Some(Goal::ValueAtMost(24.0)));
    SMALL_RATE = ("file_small_rate", "files of 4 KiB", EACH_SECOND, None);
    SMALL_CPU = ("file_small_cpu", "file of 4 KiB, CPU each", MICROSECONDS, None);
    LARGE_RATE = ("file_large_rate", "files of 1 MiB", EACH_SECOND, None);
    LARGE_CPU = ("file_large_cpu", "file of 1 MiB, CPU each", MICROSECONDS, None);
    LOOK_UP = ("token_look_up", "token look-up in a file of 100,000", MICROSECONDS, Some(Goal::ValueAtMost(20.0)));
    START = ("start", "start until it accepts", "ms", Some(Goal::ValueAtMost(15.0)));
    START_MEMORY = ("start_memory", "memory at the start", "MiB", Some(Goal::ValueAtMost(6.0)));
    EXECUTABLE = ("executable", "executable", "MiB", Some(Goal::ValueAtMost(10.0)));
    BIND_NATIVE = ("bind_native", "socket, bind, close", MICROSECONDS, None);
    BIND_PRELOAD = ("bind_preload", "added by the preloaded library", MICROSECONDS, None);
    BIND_SECCOMP = ("bind_seccomp", "added by seccomp", MICROSECONDS, None);
    MAIN_NATIVE = ("main_native", "a program's start until its main", "ms", None);
    MAIN_REBIND = ("main_rebind", "added by rebind", "ms", None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_figures_have_the_same_name() {
        let mut keys: Vec<_> = ALL.iter().map(|metric| metric.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), ALL.len());
    }

    #[test]
    fn a_figure_that_is_compared_with_another_of_our_own_comes_right_after_it() {
        for pair in ALL.windows(2) {
            if let Some(Goal::OwnRatioAtMost(_, other)) = pair[1].goal {
                assert_eq!(other.key, pair[0].key);
            }
        }
    }
}
