//! Tokens in the lines of a file, `token: host:port`, or of all files of a directory. They are read again only when they have changed,
//! which every look-up looks at: so a token that was taken away leads nowhere from then on.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs,
};

use super::directory::blocking;
use super::{Destination, Token, Unavailable};
use crate::input;
use crate::stamp::Stamp;
use crate::sys;

/// `TokenFile` and `ReadOnlyTokenFile`.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Whether what was read at the start is all that counts.
    once: bool,
    read: Mutex<Option<Read>>,
}

/// What was read.
#[derive(Debug)]
struct Read {
    targets: HashMap<Box<str>, Destination>,
    /// The files that it was read from, and the directory.
    files: Vec<(PathBuf, Stamp)>,
    /// Whether no file can have changed without its stamp.
    settled: bool,
    /// Whether all this is on file systems that do not keep anybody waiting.
    quick: bool,
}

/// Files that are looked at without leaving it to another thread.
const FEW: usize = 16;

impl Lines {
    /// Those of a file or directory, which may also come later, unless it is read `once`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(path: PathBuf, once: bool) -> Result<Self> {
        let read = match Read::from(&path, once) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !once => {
                tracing::warn!(
                    "warning: '{}' does not exist: no token is known until it does",
                    path.display()
                );
                None
            }
            read => Some(read.with_context(|| format!("cannot read '{}'", path.display()))?),
        };
        Ok(Self(Arc::new(Inner {
            path,
            once,
            read: Mutex::new(read),
        })))
    }

    /// What is read again when it has changed.
    pub(crate) fn path(&self) -> Option<&Path> {
        (!self.0.once).then_some(&*self.0.path)
    }

    /// Reads the file or directory again, also if it is to be read once otherwise.
    pub(crate) fn reload(&self) {
        let Inner { path, once, .. } = &*self.0;
        // Nothing comes out of a pipe twice.
        let read = Read::from(path, false);
        let name = path.display();
        let put = |read| *self.0.read.lock().unwrap_or_else(PoisonError::into_inner) = read;
        match (read, once) {
            (Ok(read), _) => {
                let count = read.targets.len();
                put(Some(read));
                tracing::info!("Tokens read again: '{name}' has {count}");
            }
            (Err(error), true) => {
                let why = sys::describe(&error);
                tracing::error!("the tokens stay what they were, '{name}' cannot be read: {why}");
            }
            (Err(error), false) => {
                put(None);
                let why = sys::describe(&error);
                tracing::error!("cannot read '{name}', no token is known until that works: {why}");
            }
        }
    }

    /// What the last line for this token says.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        if let Some(found) = self.0.look_up_at_once(token) {
            return Ok(found);
        }
        let (inner, token) = (Arc::clone(&self.0), token.clone());
        blocking(move || inner.look_up(&token)).await
    }
}

impl Inner {
    /// Looks up what was read before, unless that may take longer than a moment.
    fn look_up_at_once(&self, token: &Token) -> Option<Option<Destination>> {
        let read = self.read.try_lock().ok()?;
        let read = read.as_ref()?;
        let current = self.once || read.quick && read.files.len() <= FEW && read.is_current();
        current.then(|| read.targets.get(token.expose()).cloned())
    }

    fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.once && !read.as_ref().is_some_and(Read::is_current) {
            *read = None;
            match Read::from(&self.path, self.once) {
                Ok(new) => *read = Some(new),
                Err(error) => {
                    let path = self.path.display();
                    return Err(Unavailable(format!(
                        "cannot read '{path}': {}",
                        sys::describe(&error)
                    )));
                }
            }
        }
        Ok(read
            .as_ref()
            .and_then(|read| read.targets.get(token.expose()).cloned()))
    }
}

impl Read {
    /// Reads a file, or all files of a directory in the order of their names; what comes out of a pipe only if it is read `once`.
    fn from(path: &Path, once: bool) -> io::Result<Self> {
        let now = SystemTime::now();
        let metadata = fs::metadata(path)?;
        let stamp = Stamp::from(&metadata);
        let mut read = Self {
            targets: HashMap::new(),
            settled: stamp.is_settled(now),
            quick: is_quick(path),
            files: vec![(path.to_owned(), stamp)],
        };
        if !metadata.is_dir() {
            let text = match metadata.is_file() {
                true => fs::read(path)?,
                false if once => {
                    input::read(path).map_err(|error| io::Error::other(format!("{error:#}")))?
                }
                false => return Err(io::Error::other("it is neither a file nor a directory")),
            };
            read.add(path, &text);
            return Ok(read);
        }
        let mut names: Vec<_> = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let file = path.join(name);
            let Ok(stamp) = Stamp::of(&file) else {
                // It has just gone, or is a link to nowhere: if that changes, so does nothing that has a stamp.
                read.settled = false;
                continue;
            };
            read.settled &= stamp.is_settled(now);
            read.quick &= is_quick(&file);
            match fs::metadata(&file) {
                // Others have no lines.
                Ok(metadata) if !metadata.is_file() => {}
                _ => match fs::read(&file) {
                    Ok(text) => read.add(&file, &text),
                    Err(error) => tracing::warn!(
                        "cannot read '{}': {}",
                        file.display(),
                        sys::describe(&error)
                    ),
                },
            }
            read.files.push((file, stamp));
        }
        Ok(read)
    }

    /// Whether it would be the same if it were read again.
    fn is_current(&self) -> bool {
        self.settled
            && self
                .files
                .iter()
                .all(|(file, stamp)| Stamp::of(file).is_ok_and(|now| now == *stamp))
    }

    /// Adds the lines of a file.
    fn add(&mut self, file: &Path, text: &[u8]) {
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let parsed = str::from_utf8(line)
                .map_err(|_| "it is not UTF-8")
                .and_then(parse);
            match parsed {
                Ok(Some((token, destination))) => {
                    self.targets.insert(token.into(), destination);
                }
                Ok(None) => {}
                Err(reason) => {
                    let number = number + 1;
                    tracing::warn!(
                        "'{}', line {number} is passed over: {reason}",
                        file.display()
                    );
                }
            }
        }
    }
}

/// Whether a file is on a file system of this machine: others may keep us waiting for ever.
fn is_quick(file: &Path) -> bool {
    const QUICK: [FsType; 6] = [
        BTRFS_SUPER_MAGIC,
        EXT4_SUPER_MAGIC,
        OVERLAYFS_SUPER_MAGIC,
        TMPFS_MAGIC,
        XFS_SUPER_MAGIC,
        F2FS_SUPER_MAGIC,
    ];
    statfs(file).is_ok_and(|system| QUICK.contains(&system.filesystem_type()))
}

/// The token of a line and where it leads; `None` if the line is empty or a comment. The reason says nothing of the token.
fn parse(line: &str) -> Result<Option<(&str, Destination)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (token, target) = line
        .match_indices(':')
        .map(|(at, _)| (&line[..at], &line[at + 1..]))
        .find(|(_, target)| target.starts_with(char::is_whitespace))
        .ok_or("it is not 'token: host:port', with a blank after the first colon")?;
    let destination = target
        .parse()
        .map_err(|error: super::BadDestination| error.0)?;
    Ok(Some((token, destination)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(String, String)> {
        let (token, destination) = parse(line).ok()??;
        let shown = match destination {
            Destination::Tcp { address, tls, .. } => {
                format!("{}{address}", if tls { "tls://" } else { "" })
            }
            Destination::Unix(path) => path.display().to_string(),
        };
        Some((token.to_owned(), shown))
    }

    #[test]
    fn a_line_has_a_token_and_a_target() {
        for (line, token, target) in [
            ("a: h:1", "a", "h:1"),
            ("  a:\th:1 \r", "a", "h:1"),
            ("a:b: h:1", "a:b", "h:1"),
            ("::1: [::1]:5900", "::1", "[::1]:5900"),
            ("a b: h:1", "a b", "h:1"),
            ("a: unix_socket:/s p", "a", "/s p"),
            ("a: tls://h:1", "a", "tls://h:1"),
        ] {
            let expected = Some((token.to_owned(), target.to_owned()));
            assert_eq!(parsed(line), expected, "{line}");
        }
        for line in ["", " ", "# a: h:1", "  #a: h:1", "\r"] {
            assert_eq!(parse(line), Ok(None), "{line:?}");
        }
        for line in ["a", "a:h:1", "a: h", "a: h:x", "a:", "a: b: h:1"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
