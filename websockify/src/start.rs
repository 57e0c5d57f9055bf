//! What is owed to others when the start has worked: the file with our process number, and the launcher of a daemon.

use std::path::PathBuf;

use anyhow::Result;

use crate::config::Config;
use crate::daemon::Launcher;
use crate::pid_file::PidFile;

/// A start that is under way, or has worked.
#[derive(Debug)]
pub(crate) struct Start {
    /// Who waits for it, with `--daemon`.
    launcher: Option<Launcher>,
    /// Whether the working directory stays what it is, because plugins are started from it.
    keep_directory: bool,
    /// Where our number is to be written.
    pid_path: Option<PathBuf>,
    /// Where it was written.
    pid_file: Option<PidFile>,
}

impl Start {
    /// One that begins now.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            launcher: None,
            keep_directory: config.starts_plugins(),
            pid_path: config.pid_file.clone(),
            pid_file: None,
        }
    }

    /// Notes that there is a launcher, which waits for it.
    pub(crate) fn is_awaited_by(&mut self, launcher: Launcher) {
        self.launcher = Some(launcher);
    }

    /// Checks what can be known from the beginning.
    ///
    /// # Errors
    /// There is another websockify with this file for its number.
    pub(crate) fn check(&self) -> Result<()> {
        self.pid_path.as_deref().map_or(Ok(()), PidFile::check)
    }

    /// Writes our number, if that is asked for and was not done.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write_number(&mut self) -> Result<()> {
        if let Some(path) = self.pid_path.take() {
            self.pid_file = Some(PidFile::write(path)?);
        }
        Ok(())
    }

    /// Tells the others that it has worked.
    ///
    /// # Errors
    /// They cannot be told.
    pub(crate) fn complete(&mut self) -> Result<()> {
        self.write_number()?;
        match self.launcher.take() {
            Some(launcher) => launcher.release(self.keep_directory),
            None => Ok(()),
        }
    }

    /// Removes the file with our number. What keeps us from that is told to the log.
    pub(crate) fn remove_number(&mut self) {
        self.pid_file = None;
    }

    /// Ends it, if it is not complete, with this exit status.
    pub(crate) fn end(self, status: u8) {
        if let Some(launcher) = self.launcher {
            launcher.fail(status.max(1));
        }
    }
}
