//! Files that are read as a whole: keys, certificates, passwords.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags};

use crate::sys;

/// Bytes that a file may have; all certificates that a system trusts have a quarter of a million.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// How long nothing may come out of a pipe, in milliseconds.
const PIPE_LIMIT: u16 = 5000;

/// Reads a file, or what comes out of a pipe such as the shell's `<(...)`.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        // What nobody writes to is not waited for.
        let mut opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(file)?;
        let mut bytes = Vec::new();
        loop {
            let most = (MAX_FILE + 1).saturating_sub(bytes.len() as u64);
            match (&mut opened).take(most).read_to_end(&mut bytes) {
                Ok(_) if bytes.len() as u64 > MAX_FILE => {
                    return Err(io::Error::other("it is larger than 16 MiB"));
                }
                Ok(_) => return Ok(bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut pipe = [PollFd::new(opened.as_fd(), PollFlags::POLLIN)];
                    if nix::poll::poll(&mut pipe, PIPE_LIMIT)? == 0 {
                        return Err(io::Error::other("nothing comes out of it"));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    };
    read()
        .map_err(|error| anyhow!(sys::describe(&error)))
        .with_context(|| format!("cannot read {}", file.display()))
}
