//! The file that tells the number of this process (`--pid-file`).
//!
//! It is locked for as long as the process lives, however that ends: so a file that is left over is told from that of another
//! websockify, whichever process has got the number meanwhile.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::{sys, whole_file};

/// Our number in a file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

/// The longest file that is looked at, in bytes; a number is no longer.
const LONGEST: u64 = 16;

impl PidFile {
    /// Checks that it can be written, and that no other websockify has it, so that nothing is done that could disturb that.
    ///
    /// # Errors
    /// It cannot, another one has it, or it is something else.
    pub(crate) fn check(path: &Path) -> Result<()> {
        Self::check_others(path)?;
        let file = whole_file::beside(path);
        file.map_err(|error| whole_file::failure(path, &error))?;
        Ok(())
    }

    fn check_others(path: &Path) -> Result<()> {
        let name = path.display();
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| anyhow!("{name}: {}", sys::describe(&error)))?,
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            bail!("{name} is no regular file, and not replaced by --pid-file");
        }
        let mut number = String::new();
        // What is no number is not shown.
        _ = (&mut file).take(LONGEST).read_to_string(&mut number);
        match lock(&file, libc::F_RDLCK) {
            Err(Errno::EAGAIN | Errno::EACCES) => bail!(
                "another websockify runs that has --pid-file {name}, process {}; end that first",
                number.trim().parse().unwrap_or(0)
            ),
            // Where files cannot be locked nobody has done so.
            _ => Ok(()),
        }
    }

    /// Writes it, at once or not at all.
    ///
    /// # Errors
    /// It cannot be written, or another websockify has it.
    pub(crate) fn write(path: PathBuf) -> Result<Self> {
        Self::check_others(&path)?;
        let write = || -> io::Result<File> {
            let mut file = whole_file::beside(&path)?;
            writeln!(file, "{}", process::id())?;
            lock(file.as_file(), libc::F_WRLCK)?;
            file.persist(&path).map_err(|error| error.error)
        };
        match write() {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(whole_file::failure(&path, &error)),
        }
    }
}

/// Locks a file until it is closed, to read or to write, if nobody else has. To hold the other up in that he has to be allowed to
/// write to it, unlike with `flock`: so it is no matter that everybody may read our number.
fn lock(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

impl Drop for PidFile {
    /// Removes it, unless somebody else has put another in its place. Where we may not, as after `--user`, it is emptied: nobody
    /// shall end what gets our number.
    fn drop(&mut self) {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.metadata().map(identity);
        let there = fs::symlink_metadata(&self.path).map(identity);
        let is_there = matches!((ours, there), (Ok(ours), Ok(there)) if ours == there);
        if is_there && fs::remove_file(&self.path).is_ok() {
            return;
        }
        if let Err(error) = self.file.set_len(0) {
            let path = self.path.display();
            tracing::warn!("cannot remove {path}: {}", sys::describe(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_our_number_while_it_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        // Left over, of a process that exists.
        fs::write(&path, "1\n").unwrap();
        let file = PidFile::write(path.clone()).unwrap();
        let number = process::id();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{number}\n"));
        let refused = PidFile::write(path.clone()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {number};")), "{refused}");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn who_may_only_read_it_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let stranger = File::open(&path).unwrap();
        assert_eq!(lock(&stranger, libc::F_WRLCK), Err(Errno::EBADF));
        lock(&stranger, libc::F_RDLCK).unwrap();
        stranger.try_lock().unwrap();
        PidFile::check(&path).unwrap();
        drop(PidFile::write(path).unwrap());
    }

    #[test]
    fn what_others_put_in_its_place_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let file = PidFile::write(path.clone()).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = PidFile::write(path.clone()).unwrap();
        drop(file);
        assert!(path.exists());
        drop(theirs);
        fs::create_dir(&path).unwrap();
        let refused = PidFile::write(path.clone()).unwrap_err().to_string();
        assert!(refused.contains("is no regular file"), "{refused}");
    }
}
