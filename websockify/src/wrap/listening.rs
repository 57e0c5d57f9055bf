//! Which sockets listen on a TCP port, as the kernel tells: a connecting probe would tell as well, but it would disturb VNC
//! servers, and programs that serve a single connection.
//!
//! Asked over netlink (sock_diag(7)) the kernel looks at the listening sockets only, in microseconds. `/proc/net/tcp` has them
//! too, but walks through the table of all connections, which takes milliseconds; it is for systems without sock_diag.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    /// What `/proc/PID/fd` knows it by.
    pub(super) inode: u64,
    /// Its address or path.
    pub(super) address: String,
}

/// The sockets that listen on `port` of a loopback address or of every address.
pub(super) fn reachable_on_loopback(port: u16) -> Vec<Listener> {
    let mut found = on_port(port);
    found.retain(|(address, _)| address.ip().is_loopback() || address.ip().is_unspecified());
    found.into_iter().map(named).collect()
}

/// All sockets that listen.
pub(super) fn everywhere() -> Vec<Listener> {
    on_port(0).into_iter().map(named).collect()
}

fn named((address, inode): Found) -> Listener {
    Listener {
        inode,
        address: address.to_string(),
    }
}

/// An address, an IPv4 one as such also when it is mapped, and the inode of the socket.
type Found = (SocketAddr, u64);

/// The sockets that listen on `port`; 0 is every port.
fn on_port(port: u16) -> Vec<Found> {
    ask_kernel(port).unwrap_or_else(|_| read_tables(port))
}

/// Parts of the netlink protocol that `libc` has no names for: message types and states of `linux/sock_diag.h`,
/// `linux/inet_diag.h` and `net/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_LISTEN: u32 = 10;
/// The length of a `struct nlmsghdr`, of a request with its `struct inet_diag_req_v2`, and of a `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const MESSAGE: usize = 72;

fn ask_kernel(port: u16) -> io::Result<Vec<Found>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(
            netlink.as_raw_fd(),
            &request(family as u8, port),
            MsgFlags::empty(),
        )?;
        let mut buffer = vec![0; 32 * 1024];
        while {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            !parse_answer(&buffer[..length], port, &mut found)?
        } {}
    }
    Ok(found)
}

/// How far a connection is at its program's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// It waits to be accepted: until then no process has it, and so it has no inode.
    Waiting,
    /// A process has it.
    Accepted,
    /// The kernel knows it no more: what its end was, data or a reset, arrives at any moment.
    Ended,
    /// The kernel cannot be asked.
    Unknown,
}

/// How far the connection is that has these addresses at its program's end.
pub(crate) fn acceptance(local: SocketAddr, remote: SocketAddr) -> Acceptance {
    match ask_for_one(local, remote) {
        Ok(Some(0)) => Acceptance::Waiting,
        Ok(Some(_)) => Acceptance::Accepted,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Acceptance::Ended,
        Ok(None) | Err(_) => Acceptance::Unknown,
    }
}

/// The inode of the TCP socket that has these addresses.
fn ask_for_one(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let family = if local.is_ipv6() {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut request = request(family as u8, local.port());
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // Of one socket, in whatever state it is.
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[HEADER + 4..HEADER + 8].fill(0xff);
    let id = &mut request[HEADER + 8..];
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    let (from, to) = (octets(local.ip()), octets(remote.ip()));
    id[4..4 + from.len()].copy_from_slice(&from);
    id[20..20 + to.len()].copy_from_slice(&to);
    // `INET_DIAG_NOCOOKIE`.
    id[40..48].fill(0xff);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = [0; 4096];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let mut found = Vec::new();
    parse_answer(&buffer[..length], local.port(), &mut found)?;
    Ok(found.first().map(|&(_, inode)| inode))
}

/// Asks for all sockets of a family that listen on `port`; the kernel, too, takes 0 for every port.
fn request(family: u8, port: u16) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let dump = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&dump.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
    request[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    request
}

/// Takes the sockets out of one datagram of the answer. Returns whether it was the last.
fn parse_answer(mut datagram: &[u8], port: u16, found: &mut Vec<Found>) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message");
    while !datagram.is_empty() {
        let header: &[u8; HEADER] = datagram.first_chunk().ok_or_else(malformed)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let message = datagram.get(HEADER..length).ok_or_else(malformed)?;
        match i32::from(u16::from_ne_bytes([header[4], header[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let error: &[u8; 4] = message.first_chunk().ok_or_else(malformed)?;
                return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*error)));
            }
            _ => {
                let (address, inode) = parse_message(message).ok_or_else(malformed)?;
                // An old kernel may not have filtered.
                if port == 0 || address.port() == port {
                    found.push((address, inode));
                }
            }
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

/// The fields of a `struct inet_diag_msg` that matter.
fn parse_message(message: &[u8]) -> Option<Found> {
    let message: &[u8; MESSAGE] = message.first_chunk()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let address: [u8; 16] = message[8..24].try_into().ok()?;
    let inode = u32::from_ne_bytes(message[68..72].try_into().ok()?);
    let ip: IpAddr = if i32::from(message[0]) == libc::AF_INET6 {
        Ipv6Addr::from(address).to_canonical()
    } else {
        Ipv4Addr::from(*address.first_chunk::<4>()?).into()
    };
    Some((SocketAddr::new(ip, port), inode.into()))
}

fn read_tables(port: u16) -> Vec<Found> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let tables = tables.iter().filter_map(|table| fs::File::open(table).ok());
    tables
        .flat_map(|table| listening_rows(table, port))
        .collect()
}

/// The rows of such a table that listen on `port`. The kernel puts the listening ones first.
fn listening_rows(table: impl Read, port: u16) -> Vec<Found> {
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
        if port == 0 || address.port() == port {
            found.push((address, inode));
        }
    }
    found
}

/// An address and port as these tables have them.
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_rows_of_a_table_are_read_up_to_the_first_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n\
             1: 00000000:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n\
             2: 0000000000000000FFFF00000100007F:07E7 0:0 0A 00000000:00000000 00:0 0     0        0 13 1 0 100 0 0 10 0\n\
             3: 00000000000000000000000001000000:07E7 0:0 0A 00000000:00000000 00:0 0     0        0 14 1 0 100 0 0 10 0\n\
             4: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1 0 100 0 0 10 0\n\
             5: 0100007F:07E7 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 16 1 0 100 0 0 10 0\n\
             6: 0100007F:07E7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0\n";
        let found = listening_rows(table.as_bytes(), 2023);
        let expected = [
            ("127.0.0.1:2023", 11),
            ("0.0.0.0:2023", 12),
            ("127.0.0.1:2023", 13),
            ("[::1]:2023", 14),
        ];
        assert_eq!(
            found,
            expected.map(|(address, inode)| (address.parse().unwrap(), inode))
        );
    }

    #[test]
    fn both_ways_find_the_same_real_listeners() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _server = listener.accept().unwrap();
            let asked = ask_kernel(port).unwrap();
            assert_eq!(asked.len(), 1, "{address}");
            assert_eq!(asked[0].0, listener.local_addr().unwrap());
            // A table is read in parts, and a row may be left out when others' sockets come and go between them.
            assert!((0..20).any(|_| read_tables(port) == asked), "{address}");
            assert!(everywhere().contains(&named(asked[0])));
            drop(listener);
            assert_eq!(ask_kernel(port).unwrap(), []);
            assert_eq!(read_tables(port), []);
        }
    }

    #[test]
    fn a_connection_is_known_to_wait_to_be_accepted_or_to_have_ended() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let host = if address == "[::1]:0" {
                "::1"
            } else {
                "127.0.0.1"
            };
            let client = TcpStream::connect((host, port)).unwrap();
            let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            let acceptance = || acceptance(ends.0, ends.1);
            assert_eq!(acceptance(), Acceptance::Waiting, "{address}");
            let accepted = listener.accept().unwrap();
            assert_eq!(acceptance(), Acceptance::Accepted, "{address}");
            drop(accepted);
            drop(client);
            let turned_away = TcpStream::connect((host, port)).unwrap();
            let (local, remote) = (
                turned_away.peer_addr().unwrap(),
                turned_away.local_addr().unwrap(),
            );
            drop(listener);
            assert_eq!(
                super::acceptance(local, remote),
                Acceptance::Ended,
                "{address}"
            );
        }
    }

    #[test]
    fn answers_that_are_cut_short_are_errors() {
        let mut message = [0; HEADER + MESSAGE];
        message[0..4].copy_from_slice(&((HEADER + MESSAGE) as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[HEADER] = libc::AF_INET as u8;
        assert!(!parse_answer(&message, 0, &mut Vec::new()).unwrap());
        for length in 1..message.len() {
            assert!(
                parse_answer(&message[..length], 0, &mut Vec::new()).is_err(),
                "{length}"
            );
        }
        let mut done = [0; HEADER];
        done[0..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
        done[4..6].copy_from_slice(&(libc::NLMSG_DONE as u16).to_ne_bytes());
        assert!(parse_answer(&done, 0, &mut Vec::new()).unwrap());
    }
}
