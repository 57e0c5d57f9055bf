//! What `/proc` tells of the wrapped program: which processes it consists of, and which of them listens where.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::Pid;

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    /// What `/proc/PID/fd` knows it by.
    pub(super) inode: u64,
    /// Its address or path.
    pub(super) address: String,
}

/// The sockets that listen on `port` of a loopback address. (A connecting probe would tell as well, but it would disturb VNC
/// servers, and programs that serve a single connection.)
pub(super) fn loopback_listeners(port: u16) -> Vec<Listener> {
    tcp_listeners(|address| address.port() == port && address.ip().is_loopback())
}

/// The sockets that listen on `port`, whatever their address.
pub(super) fn port_listeners(port: u16) -> Vec<Listener> {
    tcp_listeners(|address| address.port() == port)
}

fn tcp_listeners(wanted: impl Fn(SocketAddr) -> bool) -> Vec<Listener> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let tables = tables.iter().filter_map(|table| fs::File::open(table).ok());
    tables
        .flat_map(|table| listening_rows(table, &wanted))
        .collect()
}

/// The rows of such a table that listen on an address that is `wanted`. The kernel puts the listening ones first, so the
/// others, which may be many, are not read.
fn listening_rows(table: impl std::io::Read, wanted: impl Fn(SocketAddr) -> bool) -> Vec<Listener> {
    let mut found = Vec::new();
    for line in BufReader::with_capacity(4096, table)
        .lines()
        .skip(1)
        .map_while(Result::ok)
    {
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some("0A"), Some(inode)) = (fields.nth(1), fields.nth(1), fields.nth(5))
        else {
            break;
        };
        let (Some(address), Ok(inode)) = (parse_address(local), inode.parse()) else {
            break;
        };
        if wanted(address) {
            found.push(Listener {
                inode,
                address: address.to_string(),
            });
        }
    }
    found
}

/// An address and port as these tables have them; an IPv4 address as such also when it is mapped.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    Some(SocketAddr::new(
        parse_ip(ip)?,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// An address as these tables have it: 32-bit words of network order, each printed as a number of this machine.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = (0..hex.len())
        .step_by(8)
        .map(|at| {
            u32::from_str_radix(hex.get(at..at + 8)?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        })
        .collect::<Option<_>>()?;
    match words.concat().as_slice() {
        bytes @ [_, _, _, _] => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        bytes => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
    }
}

/// The unix sockets that listen at `path`, which is absolute; a program may have bound it by a relative name.
pub(super) fn unix_listeners(path: &Path) -> Vec<Listener> {
    /// `__SO_ACCEPTCON` of the kernel.
    const LISTENS: u32 = 0x10000;
    let Ok(table) = fs::read("/proc/self/net/unix") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in table.split(|&byte| byte == b'\n').skip(1) {
        let fields: Vec<&[u8]> = line.splitn(8, |&byte| byte == b' ').collect();
        // Num: RefCount Protocol Flags Type St Inode Path; the inode is padded with blanks in front.
        let [_, _, _, flags, _, _, rest @ ..] = fields.as_slice() else {
            continue;
        };
        let rest = rest.join(&b' ');
        let rest = rest.trim_ascii_start();
        let Some(blank) = rest.iter().position(|&byte| byte == b' ') else {
            continue;
        };
        let (inode, name) = (
            &rest[..blank],
            Path::new(std::ffi::OsStr::from_bytes(&rest[blank + 1..])),
        );
        let flags = std::str::from_utf8(flags)
            .ok()
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let same =
            name == path || (name.is_relative() && path.ends_with(name)) || same_file(name, path);
        if flags.is_some_and(|flags| flags & LISTENS != 0) && same {
            let inode = std::str::from_utf8(inode)
                .ok()
                .and_then(|inode| inode.parse().ok());
            found.extend(inode.map(|inode| Listener {
                inode,
                address: path.display().to_string(),
            }));
        }
    }
    found
}

/// Whether two absolute paths of the same base name lead to one file, by whatever links.
fn same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path| {
        fs::metadata(path)
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .ok()
    };
    one.is_absolute()
        && one.file_name() == other.file_name()
        && identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// All processes below this one, children before grandchildren. The bridge starts nothing but the wrapped program, and adopts
/// what that leaves behind, so this is the program with everything that it started.
pub(super) fn descendants() -> Vec<Pid> {
    let processes: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((Pid::from_raw(pid), parent(pid)?))
        })
        .collect();
    let mut family = vec![Pid::this()];
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

/// The parent of a process. The command in the second field may hold anything, blanks and parentheses included.
fn parent(pid: i32) -> Option<Pid> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_command = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&stat[after_command + 1..]).ok()?;
    fields
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .map(Pid::from_raw)
}

/// Whether a process has one of these sockets open; also when we may not look, since then it may.
pub(super) fn may_hold(pid: Pid, sockets: &[Listener]) -> bool {
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(files) => files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| {
                let inode = link.to_str().and_then(|link| {
                    link.strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .parse()
                        .ok()
                });
                inode.is_some_and(|inode: u64| sockets.iter().any(|socket| socket.inode == inode))
            }),
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_listeners_of_the_port_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n\
             1: 00000000:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n\
             2: 0000000000000000FFFF00000100007F:07E7 0:0 0A 00000000:00000000 00:0 0     0        0 13 1 0 100 0 0 10 0\n\
             3: 00000000000000000000000001000000:07E7 0:0 0A 00000000:00000000 00:0 0     0        0 14 1 0 100 0 0 10 0\n\
             4: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1 0 100 0 0 10 0\n\
             5: 0100007F:07E7 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 16 1 0 100 0 0 10 0\n\
             6: 0100007F:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0\n";
        let found = listening_rows(table.as_bytes(), |address| {
            address.port() == 0x7e7 && address.ip().is_loopback()
        });
        let expected = [
            (11, "127.0.0.1:2023"),
            (13, "127.0.0.1:2023"),
            (14, "[::1]:2023"),
        ];
        assert_eq!(
            found,
            expected.map(|(inode, address)| Listener {
                inode,
                address: address.to_owned()
            })
        );
    }

    #[test]
    fn real_listeners_are_found_before_connections() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let _server = listener.accept().unwrap();
        let found = loopback_listeners(address.port());
        assert_eq!(found.len(), 1);
        assert!(may_hold(Pid::this(), &found));
        drop(listener);
        assert_eq!(loopback_listeners(address.port()), []);
        assert!(!may_hold(Pid::this(), &found));
    }

    #[test]
    fn unix_listeners_are_found_by_their_path_with_blanks_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = unix_listeners(&path);
        assert_eq!(found.len(), 1);
        assert!(may_hold(Pid::this(), &found));
        drop(listener);
        assert_eq!(unix_listeners(&path), []);
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
            let family = descendants();
            assert!(family.contains(&child_pid));
            if let Some(grandchild) = family
                .into_iter()
                .find(|pid| parent(pid.as_raw()) == Some(child_pid))
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
