//! Tokens that name a file, or a unix socket, in a directory. What is in there is the administrator's, links that lead out of it
//! included; a token's name never does.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::{Destination, Token, Unavailable};
use crate::sys;

/// Bytes that a file with a target may have.
const MAX_FILE: u64 = 4096;

/// `TokenFileName`: a file of the token's name holds its target.
#[derive(Debug)]
pub(crate) struct Files(PathBuf);

/// `UnixDomainSocketDirectory`: the token names a socket.
#[derive(Debug)]
pub(crate) struct Sockets(PathBuf);

impl Files {
    /// Those in this directory.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn in_directory(path: PathBuf) -> Result<Self> {
        checked(path).map(Self)
    }

    /// What the file says, of which only the last part of the token is the name.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let name = token.expose().rsplit('/').next().unwrap_or_default();
        let Some(path) = inside(&self.0, name) else {
            return Ok(None);
        };
        let token = token.clone();
        blocking(move || {
            let Some(text) = content(&path)? else {
                return Ok(None);
            };
            let parsed = text.parse();
            if let Err(error) = &parsed {
                tracing::warn!("the file for the token {token} has no target in it: {error}");
            }
            Ok(parsed.ok())
        })
        .await
    }
}

impl Sockets {
    /// Those in this directory.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn in_directory(path: PathBuf) -> Result<Self> {
        checked(path).map(Self)
    }

    /// The socket, if it is one.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let Some(path) = inside(&self.0, token.expose()) else {
            return Ok(None);
        };
        blocking(move || {
            Ok(match fs::metadata(&path) {
                Ok(metadata) if metadata.file_type().is_socket() => Some(Destination::Unix(path)),
                Ok(_) => None,
                Err(error) if is_absent(&error) => None,
                Err(error) => return Err(unreadable(&error)),
            })
        })
        .await
    }
}

fn checked(path: PathBuf) -> Result<PathBuf> {
    let metadata = fs::metadata(&path).with_context(|| format!("'{}'", path.display()))?;
    ensure!(metadata.is_dir(), "'{}' is not a directory", path.display());
    Ok(path)
}

/// The path of this name in a directory, if it is one that cannot lead out of it.
fn inside(directory: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (is_plain && !name.is_empty() && !name.ends_with('/') && !name.contains('\0'))
        .then(|| directory.join(name))
}

/// The text of a file; `None` if there is none of that name.
fn content(path: &Path) -> Result<Option<String>, Unavailable> {
    // A pipe would wait for somebody to write into it.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let read = opened.and_then(|file: File| {
        let mut text = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_FILE).read_to_end(&mut text)?;
        }
        Ok(text)
    });
    match read {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unreadable(&error)),
    }
}

/// Whether there is nothing of that name, nor could be.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
    ) || matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ELOOP))
}

fn unreadable(error: &std::io::Error) -> Unavailable {
    Unavailable(format!(
        "cannot read what a token names: {}",
        sys::describe(error)
    ))
}

/// Does what may take as long as a file system does.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unavailable> + Send + 'static,
) -> Result<T, Unavailable> {
    // Where files keep everybody waiting, the threads are not only for those who wait for a token.
    static THREADS: Semaphore = Semaphore::const_new(32);
    let thread = THREADS.acquire().await;
    spawn_blocking(move || {
        // Also when nobody waits any more.
        let _thread = thread;
        work()
    })
    .await
    .unwrap_or_else(|_| Err(Unavailable("the look-up failed".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_directory() {
        let directory = Path::new("/d");
        for name in ["a", "a.b", "..a", "sub/a", "-"] {
            assert_eq!(
                inside(directory, name),
                Some(directory.join(name)),
                "{name}"
            );
        }
        for name in [
            "",
            ".",
            "..",
            "../a",
            "/a",
            "a/../b",
            "sub/../../d2/a",
            "a/",
            "a\0",
        ] {
            assert_eq!(inside(directory, name), None, "{name:?}");
        }
    }
}
