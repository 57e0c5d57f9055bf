//! Listening on a unix socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, umask};
use nix::unistd::{Gid, Uid, fchownat};

use super::{Address, BACKLOG, Bound};
use crate::sys;
use crate::user::Identity;

/// Listens on the unix socket at `path`, which gets these permission bits and, if it is to be another's than ours, this owner.
pub(super) fn listen(path: &Path, mode: u32, owner: Option<&Identity>) -> Result<Bound> {
    let cannot = |error: Errno| {
        anyhow!(
            "cannot listen on unix socket {}: {}",
            path.display(),
            error.desc()
        )
    };
    let failed = |error: io::Error| {
        anyhow!(
            "cannot listen on unix socket {}: {}",
            path.display(),
            sys::describe(&error)
        )
    };
    let address = UnixAddr::new(path).map_err(cannot)?;
    remove_stale(path, &address)?;
    let socket = unix_socket().map_err(cannot)?;
    // No other thread runs yet, and at no moment is the file more open than it shall be.
    let before = umask(Mode::from_bits_truncate(!mode & 0o777));
    let bound = socket::bind(socket.as_raw_fd(), &address);
    umask(before);
    bound.map_err(cannot)?;
    let file = SocketFile::claim(path, mode, owner).map_err(failed)?;
    socket::listen(&socket, Backlog::new(BACKLOG).map_err(cannot)?).map_err(cannot)?;
    let name = path.display().to_string();
    Ok(Bound {
        socket,
        description: format!("Listen on unix socket {name}"),
        name,
        file: Some(file),
        is_handed_over: false,
        address: Address::Unix(path.to_owned()),
    })
}

fn unix_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<()> {
    let refusal =
        |reason: &str| anyhow!("cannot listen on unix socket {}: {reason}", path.display());
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| refusal(&sys::describe(&error)))?,
    };
    if !metadata.file_type().is_socket() {
        bail!(refusal(
            "there is a file of that name which is not a socket; remove it or choose another name"
        ));
    }
    let attempt = unix_socket().and_then(|socket| socket::connect(socket.as_raw_fd(), address));
    match attempt {
        // With a full backlog it is "try again".
        Ok(()) | Err(Errno::EAGAIN) => {
            bail!(refusal(
                "another program listens there; stop it or choose another name"
            ))
        }
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|error| refusal(&sys::describe(&error)))
        }
        Err(error) => bail!(refusal(error.desc())),
    }
}

/// The file of a unix socket that we made; removed when dropped, unless somebody has put another in its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The one that was just bound, which gets these permission bits and this owner. Whoever may write to the directory may have put
    /// something else in its place by now, such as a link to a file of root's, of which nothing is to be changed.
    fn claim(path: &Path, mode: u32, owner: Option<&Identity>) -> io::Result<Self> {
        let handle = fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        let metadata = handle.metadata()?;
        if !metadata.file_type().is_socket() {
            return Err(io::Error::other("somebody has put a file in its place"));
        }
        // As a rule it has them by the umask; not where the directory has a default ACL.
        if metadata.mode() & 0o7777 != mode {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink)?;
        }
        // From here on it is the owner's to replace.
        if let Some((user, group)) = owner.map(Identity::ids) {
            let ids = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            fchownat(&handle, "", ids.0, ids.1, AtFlags::AT_EMPTY_PATH)?;
        }
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::super::Entrance;
    use super::*;
    use crate::addr::ListenAddr;

    #[test]
    fn a_stale_socket_is_replaced_and_ours_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let bound = Entrance::open(
            &ListenAddr::Unix {
                path: path.clone(),
                mode: 0o620,
                owner: None,
            },
            Vec::new(),
        )
        .unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o620
        );
        let second = Entrance::open(
            &ListenAddr::Unix {
                path: path.clone(),
                mode: 0o600,
                owner: None,
            },
            Vec::new(),
        )
        .unwrap_err();
        assert!(
            format!("{second:#}").contains("another program listens there"),
            "{second:#}"
        );
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Entrance::open(
            &ListenAddr::Unix {
                path: file.path().to_owned(),
                mode: 0o600,
                owner: None,
            },
            Vec::new(),
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("not a socket"), "{error:#}");
        assert!(file.path().exists());
    }

    #[test]
    fn what_was_put_in_the_place_of_the_socket_is_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let secret = directory.path().join("secret");
        fs::write(&secret, "").unwrap();
        let mode = || fs::metadata(&secret).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&secret, &path).unwrap();
        SocketFile::claim(&path, 0o666, None).unwrap_err();
        assert_eq!(mode(), 0o600);
        fs::remove_file(&path).unwrap();
        fs::hard_link(&secret, &path).unwrap();
        SocketFile::claim(&path, 0o666, None).unwrap_err();
        assert_eq!(mode(), 0o600);
        // What has other bits than the umask permits, as by an ACL, gets those that it is to have.
        fs::remove_file(&path).unwrap();
        for bits in [0o640, 0o666] {
            let _listener = UnixListener::bind(&path).unwrap();
            let _file = SocketFile::claim(&path, bits, None).unwrap();
            let found = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o7777, bits);
        }
    }

    #[test]
    fn a_socket_that_somebody_else_put_there_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bound = Entrance::open(
            &ListenAddr::Unix {
                path: path.clone(),
                mode: 0o600,
                owner: None,
            },
            Vec::new(),
        )
        .unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(theirs);
    }
}
