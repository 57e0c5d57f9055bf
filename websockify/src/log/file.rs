//! The log file: lines are appended to it, and it is opened anew when it is asked for, as programs that rotate logs expect.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::writer::Line;
use crate::sys;

/// Who may read a log that we make: it tells who connected.
const MODE: u32 = 0o640;

/// A log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// What is to be written.
    pending: Vec<u8>,
    /// Whether the file ends within a line, whose rest is still to be written.
    torn: bool,
    /// Lines that will not be written any more.
    pub(super) lost: usize,
}

impl LogFile {
    /// Opens the file at an absolute path, and makes it if it is not there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open(path)?,
            path: path.to_owned(),
            pending: Vec::new(),
            torn: false,
            lost: 0,
        })
    }

    /// What it is called in the log.
    pub(super) fn name(&self) -> String {
        format!("the log file '{}'", self.path.display())
    }

    /// Adds lines to those that are to be written.
    pub(super) fn add(&mut self, lines: &[Line]) {
        for line in lines {
            self.pending.extend_from_slice(line.text.as_bytes());
            self.pending.push(b'\n');
        }
    }

    /// Writes as much as the file takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let left = &self.pending[written..];
            if left.is_empty() {
                break Ok(());
            }
            match self.file.write(left) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(length) => {
                    written += length;
                    self.torn = self.pending[written - 1] != b'\n';
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.pending.drain(..written);
        result
    }

    /// Goes on in the file that has the path now; if that cannot be opened, in the old one.
    pub(super) fn reopen(&mut self) {
        let name = self.name();
        match open(&self.path) {
            Ok(file) => {
                self.file = file;
                if std::mem::take(&mut self.torn) {
                    // It has its beginning elsewhere.
                    let end = self.pending.iter().position(|&byte| byte == b'\n');
                    self.pending.drain(..=end.unwrap_or_default());
                    self.lost += 1;
                }
                tracing::info!("HUP: {name} has been opened anew");
            }
            Err(error) => {
                let error = sys::describe(&error);
                tracing::warn!(
                    error,
                    "HUP: cannot open {name}, the old one is kept: {error}"
                );
            }
        }
    }
}

/// A pipe or a terminal shall not hold up its writer; for a file there is no such thing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use tracing::Level;

    use super::*;

    fn line(text: &str) -> Line {
        Line {
            level: Level::INFO,
            time: SystemTime::now(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_line_that_was_begun_is_not_ended_in_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        log.add(&[line("one")]);
        log.flush().unwrap();
        // As a full disk leaves it behind.
        log.file.write_all(b"tw").unwrap();
        log.torn = true;
        log.add(&[line("o"), line("three")]);
        fs::rename(&path, directory.path().join("old")).unwrap();
        log.reopen();
        log.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(log.lost, 1);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        log.reopen();
        log.add(&[line("four")]);
        log.flush().unwrap();
        assert!(!log.torn);
    }
}
