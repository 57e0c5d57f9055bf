//! What `/proc` tells of the wrapped program: which processes it consists of, and which of them has which socket.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::listening::Listener;

/// The unix sockets that listen at `path`, which is absolute, as far as the file is there. Of a socket that was bound by a
/// relative name, one of `processes` must have that file in its working directory.
pub(super) fn unix_listeners(path: &Path, processes: impl FnOnce() -> Vec<Pid>) -> Vec<Listener> {
    /// `__SO_ACCEPTCON` of the kernel.
    const LISTENS: u32 = 0x10000;
    let Some(file) = identity(path) else {
        return Vec::new();
    };
    let Ok(table) = fs::read("/proc/self/net/unix") else {
        return Vec::new();
    };
    let mut relative = Vec::new();
    let mut found = Vec::new();
    for line in table.split(|&byte| byte == b'\n').skip(1) {
        // Num: RefCount Protocol Flags Type St Inode Path; the inode is padded with blanks in front, a path may have some.
        let fields: Vec<&[u8]> = line.splitn(7, |&byte| byte == b' ').collect();
        let [_, _, _, flags, _, _, rest] = fields.as_slice() else {
            continue;
        };
        let rest = rest.trim_ascii_start();
        let Some(blank) = rest.iter().position(|&byte| byte == b' ') else {
            continue;
        };
        let (inode, name) = (
            &rest[..blank],
            Path::new(OsStr::from_bytes(&rest[blank + 1..])),
        );
        let number =
            |digits, radix| u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok();
        let (Some(flags), Some(inode)) = (number(flags, 16), number(inode, 10)) else {
            continue;
        };
        if flags & u64::from(LISTENS) == 0 || name.file_name() != path.file_name() {
            continue;
        }
        let listener = Listener {
            inode,
            address: path.display().to_string(),
        };
        if name.is_relative() {
            relative.push((name.to_owned(), listener));
        } else if identity(name) == Some(file) {
            found.push(listener);
        }
    }
    if !relative.is_empty() {
        let directories: Vec<PathBuf> = processes()
            .into_iter()
            .filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok())
            .collect();
        let is_there = |name: &Path| {
            directories
                .iter()
                .any(|directory| identity(&directory.join(name)) == Some(file))
        };
        found.extend(
            relative
                .into_iter()
                .filter(|(name, _)| is_there(name))
                .map(|(_, listener)| listener),
        );
    }
    found
}

/// What tells one socket file from every other.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path)
        .ok()
        .filter(|metadata| metadata.file_type().is_socket())?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether `/proc` shows the processes that we know by their numbers: not so in a process namespace that has not mounted its own.
pub(super) fn is_ours() -> bool {
    fs::read_link("/proc/self")
        .is_ok_and(|link| link.as_os_str() == Pid::this().to_string().as_str())
}

/// All processes below `root` that have not ended, children before grandchildren.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let processes: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((Pid::from_raw(pid), living_parent(pid)?))
        })
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while next < family.len() {
        let elder = family[next];
        family.extend(
            processes
                .iter()
                .filter(|(_, parent)| *parent == elder)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    family.split_off(1)
}

/// The parent of a process that has not ended.
fn living_parent(pid: i32) -> Option<Pid> {
    let fields = stat(pid)?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok().map(Pid::from_raw);
    parent.filter(|_| !["Z", "X"].contains(&state))
}

/// Where this process's command line is in its memory: the first byte, and the one behind the last.
pub(super) fn command_line_range() -> Option<(usize, usize)> {
    let fields = stat(Pid::this().as_raw()).filter(|_| is_ours())?;
    let mut fields = fields.split_ascii_whitespace().skip(45);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The fields of a process's `stat` after the command, which may hold anything, blanks and parentheses included.
fn stat(pid: i32) -> Option<String> {
    let mut stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_command = stat.iter().rposition(|&byte| byte == b')')?;
    String::from_utf8(stat.split_off(after_command + 1)).ok()
}

/// Whether a process has one of these sockets open; also when we may not look, since then it may.
pub(super) fn may_hold(pid: Pid, sockets: &[Listener]) -> bool {
    let forbidden = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let files = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(files) => files,
        Err(error) => return forbidden(&error) && !is_zombie(pid),
    };
    files
        .flatten()
        .any(|file| match fs::read_link(file.path()) {
            Ok(link) => {
                let inode = link.to_str().and_then(|link| {
                    link.strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .parse()
                        .ok()
                });
                inode.is_some_and(|inode: u64| sockets.iter().any(|socket| socket.inode == inode))
            }
            Err(error) => forbidden(&error),
        })
}

/// Whether a process has ended, and waits to be reaped.
fn is_zombie(pid: Pid) -> bool {
    stat(pid.as_raw()).is_some_and(|stat| stat.starts_with(" Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_listeners_are_found_by_their_path_with_blanks_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = unix_listeners(&path, Vec::new);
        assert_eq!(found.len(), 1);
        assert!(may_hold(Pid::this(), &found));
        fs::rename(&path, directory.path().join("c")).unwrap();
        assert_eq!(unix_listeners(&path, Vec::new), [], "nobody can connect");
        fs::rename(directory.path().join("c"), &path).unwrap();
        drop(listener);
        assert_eq!(unix_listeners(&path, Vec::new), []);
        assert!(!may_hold(Pid::this(), &found));
    }

    #[test]
    fn descendants_include_grandchildren() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let child_pid = Pid::from_raw(child.id().cast_signed());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let grandchild = loop {
            let family = descendants(Pid::this());
            assert!(family.contains(&child_pid));
            if let Some(grandchild) = family
                .into_iter()
                .find(|pid| living_parent(pid.as_raw()) == Some(child_pid))
            {
                break grandchild;
            }
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        };
        nix::sys::signal::kill(grandchild, nix::sys::signal::Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}
