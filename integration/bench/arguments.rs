//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

/// How it is called.
pub(crate) const USAGE: &str = "usage: bench [--quick] --websockify FILE --output DIRECTORY [--only NAME]...\n\
     NAME: start, bind, bulk, echo, sessions, idle, tls-bulk, tls-handshakes, tls-idle, files";

/// What we are asked to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Task {
    /// Measure.
    Measure(Options),
    /// Bind a port again and again, and write to a file how long each time took (µs).
    TimeBinds {
        /// The port.
        port: u16,
        /// How often.
        count: u32,
        /// The file.
        file: PathBuf,
    },
    /// Print when `main` began.
    TellStart,
}

/// How to measure.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    /// Fewer rounds of less.
    pub(crate) quick: bool,
    /// Our executable; `rebind` lies beside it.
    pub(crate) websockify: PathBuf,
    /// Where the results go, and where the Python original's virtual environment is, in `venv`.
    pub(crate) output: PathBuf,
    /// The workloads to run; all, if there are none.
    pub(crate) only: Vec<String>,
}

impl Task {
    /// Reads the arguments.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut arguments = arguments.into_iter().peekable();
        let first = arguments.peek().and_then(|first| first.to_str());
        match first {
            Some("time-binds") => Self::parse_time_binds(&arguments.skip(1).collect::<Vec<_>>()),
            Some("tell-start") => Ok(Self::TellStart),
            _ => Self::parse_options(arguments).map(Self::Measure),
        }
    }

    fn parse_time_binds(arguments: &[OsString]) -> Result<Self> {
        let [port, count, file] = arguments else {
            bail!("usage: bench time-binds PORT COUNT FILE");
        };
        Ok(Self::TimeBinds {
            port: port.to_string_lossy().parse().context("PORT")?,
            count: count.to_string_lossy().parse().context("COUNT")?,
            file: file.into(),
        })
    }

    fn parse_options(mut arguments: impl Iterator<Item = OsString>) -> Result<Options> {
        let (mut quick, mut websockify, mut output, mut only) = (false, None, None, Vec::new());
        while let Some(argument) = arguments.next() {
            let argument = argument.to_string_lossy().into_owned();
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--quick" => quick = true,
                "--websockify" => websockify = Some(PathBuf::from(value()?)),
                "--output" => output = Some(PathBuf::from(value()?)),
                "--only" => only.push(value()?.to_string_lossy().into_owned()),
                _ => bail!("unknown argument {argument}"),
            }
        }
        let unknown = only
            .iter()
            .find(|name| !crate::WORKLOADS.iter().any(|(known, _)| known == name));
        ensure!(unknown.is_none(), "there is no workload {unknown:?}");
        Ok(Options {
            quick,
            websockify: websockify.context("--websockify is missing")?,
            output: output.context("--output is missing")?,
            only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task> {
        Task::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_come_in_any_order() {
        let task = parse("--only echo --output out --quick --only bulk --websockify bin/w");
        let Ok(Task::Measure(options)) = task else {
            panic!("{task:?}");
        };
        assert!(options.quick);
        assert_eq!(options.only, ["echo", "bulk"]);
        assert_eq!(options.output, PathBuf::from("out"));
    }

    #[test]
    fn what_is_missing_or_unknown_is_an_error() {
        for line in [
            "--output out",
            "--websockify w",
            "--websockify w --output",
            "--websockify w --output out --only nothing",
            "--websockify w --output out extra",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
