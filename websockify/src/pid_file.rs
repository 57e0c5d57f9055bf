//! The file that tells the number of this process (`--pid-file`).
//!
//! It is locked for as long as the process lives, however that ends: so a file that is left over is told from that of another
//! websockify, whichever process has got the number meanwhile.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Result, anyhow, bail};
use nix::fcntl::{FcntlArg, fcntl};
use tempfile::NamedTempFile;

use crate::{sys, whole_file};

/// Our number in a file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

/// The longest file that is looked at, in bytes; a number is no longer.
const LONGEST: u64 = 16;

/// How often it is tried to replace nothing but what has been looked at.
const ATTEMPTS: usize = 100;

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
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| anyhow!("{name}: {}", sys::describe(&error)))?,
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            bail!("{name} is no regular file, and not replaced by --pid-file");
        }
        let mut number = String::new();
        // What is no number is not shown.
        _ = (&mut file).take(LONGEST).read_to_string(&mut number);
        if is_locked(&file) {
            bail!(
                "another websockify runs that has --pid-file {name}, process {}; end that first",
                number.trim().parse().unwrap_or(0)
            );
        }
        Ok(())
    }

    /// Writes it, at once or not at all. Of several who do so at the same time one succeeds.
    ///
    /// # Errors
    /// It cannot be written, or another websockify has it.
    pub(crate) fn write(path: PathBuf) -> Result<Self> {
        let make = || -> io::Result<NamedTempFile> {
            let mut file = whole_file::beside(&path)?;
            writeln!(file, "{}", process::id())?;
            lock(file.as_file())?;
            Ok(file)
        };
        let mut attempts = 0..ATTEMPTS;
        let put = loop {
            Self::check_others(&path)?;
            let found = Found::at(&path);
            // A link to nowhere is found again and again, and replaced in the end.
            let may_repeat = attempts.next().is_some();
            let put = make().and_then(|file| match &found {
                Found::Nothing if may_repeat => Ok(file.persist_noclobber(&path)?),
                Found::Another if may_repeat => Err(ErrorKind::AlreadyExists.into()),
                _ => Ok(file.persist(&path)?),
            });
            match put {
                Err(error) if may_repeat && error.kind() == ErrorKind::AlreadyExists => {}
                put => break put,
            }
        };
        match put {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(whole_file::failure(&path, &error)),
        }
    }
}

/// What is to be replaced.
#[derive(Debug)]
enum Found {
    /// There is nothing.
    Nothing,
    /// A file that is left over, which nobody else replaces as long as we have this.
    Ours {
        /// Keeps the lock.
        _file: File,
    },
    /// Somebody is replacing it, or has done so.
    Another,
    /// A file that cannot be locked, since we may not write to it, or somebody reads it.
    Unlocked,
}

impl Found {
    fn at(path: &Path) -> Self {
        let opened = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::Nothing,
            Err(_) => return Self::Unlocked,
        };
        match lock(&file) {
            Ok(()) if is_same(&file, fs::metadata(path)) => Self::Ours { _file: file },
            Ok(()) => Self::Another,
            Err(_) if is_locked(&file) => Self::Another,
            Err(_) => Self::Unlocked,
        }
    }
}

/// Whether a file is the one that was found somewhere.
fn is_same(file: &File, found: io::Result<fs::Metadata>) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, there) = (file.metadata(), found);
    matches!((ours.map(identity), there.map(identity)), (Ok(ours), Ok(there)) if ours == there)
}

/// Locks a file until it is closed, if nobody else has.
fn lock(file: &File) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))).map(drop)
}

/// Whether somebody has locked a file that may write to it. Everybody may read our number, so who only reads is to hold up nobody,
/// which `flock` would let him do. Where files cannot be locked nobody has done so.
fn is_locked(file: &File) -> bool {
    let mut found = whole(libc::F_RDLCK);
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.is_ok() && libc::c_int::from(found.l_type) != libc::F_UNLCK
}

/// A lock of this kind on all of a file.
fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

impl Drop for PidFile {
    /// Removes it, unless somebody else has put another in its place. Where we may not, as after `--user`, it is emptied: nobody
    /// shall end what gets our number.
    fn drop(&mut self) {
        let is_there = is_same(&self.file, fs::symlink_metadata(&self.path));
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
    use nix::errno::Errno;

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
    fn of_many_who_write_it_at_the_same_time_one_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        for round in 0..50 {
            if round % 2 == 1 {
                fs::write(&path, "1\n").unwrap();
            }
            let write = || PidFile::write(path.clone());
            let written = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8).map(|_| scope.spawn(write)).collect();
                let written = writers.into_iter().map(|writer| writer.join().unwrap());
                written.collect::<Vec<_>>()
            });
            let count = written.iter().filter(|written| written.is_ok()).count();
            assert_eq!(count, 1, "{written:?}");
        }
        fs::remove_file(&path).unwrap_err();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        drop(PidFile::write(path.clone()).unwrap());
        fs::symlink_metadata(&path).unwrap_err();
    }

    #[test]
    fn who_may_only_read_it_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let stranger = File::open(&path).unwrap();
        assert_eq!(lock(&stranger), Err(Errno::EBADF));
        fcntl(&stranger, FcntlArg::F_OFD_SETLK(&whole(libc::F_RDLCK))).unwrap();
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
