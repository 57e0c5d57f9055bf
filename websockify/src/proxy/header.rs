//! Headers of the PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): one line of text, or a block of bytes, that says whose
//! connection it is which begins with it, and what that was connected to.
//!
//! Nothing here touches a socket. The protocol is small, and ours alone is strict to the letter, says at every byte whether more is
//! needed, and checks checksums; the libraries for it do not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{self, FromStr};

use crate::cli::ProxyHeader;

/// What a header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What one of version 1 begins with.
const PREFIX: &[u8] = b"PROXY ";
/// Bytes that one of version 1 has at most, the end of its line included.
const MAX_LINE: usize = 107;
/// Bytes that one of version 2 may have here, as with other receivers; 65,551 could be said. Certificates fit.
pub(super) const MAX_HEADER: usize = 4096;
/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// Version 2 with the command that says that it is a connection of somebody else.
const PROXY: u8 = 0x21;
/// Version 2 with the command that says that it is the proxy's own connection.
const LOCAL: u8 = 0x20;
/// An unknown or unsupported protocol; no addresses.
const UNKNOWN: u8 = 0x00;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;
/// What follows the addresses is a checksum (CRC-32C) of the whole header, in which its own value counts as zeroes.
const CHECKSUM: u8 = 0x03;

/// A header that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes that it has.
    pub(super) length: usize,
    /// The client's connection; `None` when it is the proxy's own, or not known.
    pub(super) ends: Option<Ends>,
}

/// The two ends of a connection; IPv4 also where it was written as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// Whose it is.
    pub(crate) source: SocketAddr,
    /// What it was made to.
    pub(crate) destination: SocketAddr,
}

impl Ends {
    fn new(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let end = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
        Self {
            source: end(source),
            destination: end(destination),
        }
    }
}

/// Why something is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not begin like one.
    Absent,
    /// It breaks the rules.
    Malformed,
    /// It is longer than it may be.
    TooLong,
    /// Its checksum is that of another.
    Checksum,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => {
                "it begins without a PROXY header, which --accept-proxy-protocol wants of every --trusted-proxy (haproxy: send-proxy-v2)"
            }
            Self::Malformed => "its PROXY header is malformed",
            Self::TooLong => "its PROXY header is too long",
            Self::Checksum => "the checksum of its PROXY header is wrong",
        })
    }
}

/// The header that a connection starts with; `None` when more of it is needed.
///
/// # Errors
/// It starts with none.
pub(super) fn parse(start: &[u8]) -> Result<Option<Header>, Fault> {
    let begins_like = |signature: &[u8]| start.iter().zip(signature).all(|(a, b)| a == b);
    if begins_like(&SIGNATURE) {
        parse_block(start)
    } else if begins_like(PREFIX) {
        parse_line(start)
    } else {
        Err(Fault::Absent)
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 50000 80`, and CR LF.
fn parse_line(start: &[u8]) -> Result<Option<Header>, Fault> {
    let seen = &start[..start.len().min(MAX_LINE)];
    let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
        return if start.len() < MAX_LINE {
            Ok(None)
        } else {
            Err(Fault::TooLong)
        };
    };
    let line = seen[..end].strip_suffix(b"\r");
    let line = line.and_then(|line| line.strip_prefix(PREFIX));
    let mut words = line.ok_or(Fault::Malformed)?.split(|&byte| byte == b' ');
    let ends = match words.next() {
        Some(b"TCP4") => Some(ends_in::<Ipv4Addr>(words).ok_or(Fault::Malformed)?),
        Some(b"TCP6") => Some(ends_in::<Ipv6Addr>(words).ok_or(Fault::Malformed)?),
        // Whatever follows does not count.
        Some(b"UNKNOWN") => None,
        _ => return Err(Fault::Malformed),
    };
    let length = end + 1;
    Ok(Some(Header { length, ends }))
}

/// Two addresses and two ports, and nothing else.
fn ends_in<'a, T: FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'a [u8]>,
) -> Option<Ends> {
    let mut word = || str::from_utf8(words.next()?).ok();
    let address = |text: &str| text.parse::<T>().ok().map(Into::into);
    let (source, destination) = (address(word()?)?, address(word()?)?);
    let (source_port, destination_port) = (port(word()?)?, port(word()?)?);
    let ends = Ends::new((source, source_port), (destination, destination_port));
    words.next().is_none().then_some(ends)
}

/// A port in decimal digits without leading zeroes.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_shortest = text == "0" || !text.starts_with('0');
    (is_plain && is_shortest).then(|| text.parse().ok())?
}

/// Version 2.
fn parse_block(start: &[u8]) -> Result<Option<Header>, Fault> {
    let Some((fixed, _)) = start.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., command, protocol, high, low] = *fixed;
    let is_valid = matches!(command, LOCAL | PROXY) && protocol >> 4 <= 3 && protocol & 0xf <= 2;
    if !is_valid {
        return Err(Fault::Malformed);
    }
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER {
        return Err(Fault::TooLong);
    }
    let Some(header) = start.get(..length) else {
        return Ok(None);
    };
    let addresses = &header[FIXED..];
    let found = match (command, protocol) {
        (PROXY, TCP4) => Some(addresses_in::<4, Ipv4Addr>(addresses)),
        (PROXY, TCP6) => Some(addresses_in::<16, Ipv6Addr>(addresses)),
        // Unix sockets and datagrams may be taken for unknown; of these, and of the proxy's own, what follows is only skipped.
        _ => None,
    };
    let found = found
        .map(|found| found.ok_or(Fault::Malformed))
        .transpose()?;
    if let Some((_, extras)) = found {
        check_extras(header, extras)?;
    }
    let ends = found.map(|(ends, _)| ends);
    Ok(Some(Header { length, ends }))
}

/// Two addresses and two ports, and what is behind them.
fn addresses_in<const SIZE: usize, T: From<[u8; SIZE]> + Into<IpAddr>>(
    bytes: &[u8],
) -> Option<(Ends, &[u8])> {
    let (source, bytes) = bytes.split_first_chunk::<SIZE>()?;
    let (destination, bytes) = bytes.split_first_chunk::<SIZE>()?;
    let (source_port, bytes) = bytes.split_first_chunk::<2>()?;
    let (destination_port, bytes) = bytes.split_first_chunk::<2>()?;
    let end = |address: &[u8; SIZE], port: &[u8; 2]| {
        (T::from(*address).into(), u16::from_be_bytes(*port))
    };
    let ends = Ends::new(end(source, source_port), end(destination, destination_port));
    Some((ends, bytes))
}

/// Goes through what is behind the addresses: type, length and value, again and again. Only a checksum says something to us.
fn check_extras(header: &[u8], mut extras: &[u8]) -> Result<(), Fault> {
    while let Some((&[kind, high, low], rest)) = extras.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(Fault::Malformed)?;
        if kind == CHECKSUM {
            let told: [u8; 4] = value.try_into().map_err(|_| Fault::Malformed)?;
            let (before, after) = (&header[..header.len() - rest.len() - told.len()], rest);
            if checksum([before, &[0; 4], after]) != u32::from_be_bytes(told) {
                return Err(Fault::Checksum);
            }
        }
        extras = rest;
    }
    if extras.is_empty() {
        Ok(())
    } else {
        Err(Fault::Malformed)
    }
}

/// CRC-32C (RFC 3720, appendix B.4).
fn checksum<const COUNT: usize>(parts: [&[u8]; COUNT]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let sum = parts.into_iter().flatten().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 }
        })
    });
    !sum
}

/// The header that tells a target of a client, which has reached us at this address. Where there is no address at all it says that
/// the client is not known; one of the two that is missing is told as the address that stands for none.
pub(crate) fn write(
    version: ProxyHeader,
    client: Option<SocketAddr>,
    reached: Option<SocketAddr>,
) -> Vec<u8> {
    let ends = client.map(|source| {
        let none = match source {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let destination = reached.unwrap_or(SocketAddr::new(none, 0));
        (source, destination)
    });
    match version {
        ProxyHeader::V1 => write_line(ends).into_bytes(),
        ProxyHeader::V2 => write_block(ends),
    }
}

fn write_line(ends: Option<(SocketAddr, SocketAddr)>) -> String {
    let Some((source, destination)) = ends else {
        return "PROXY UNKNOWN\r\n".to_owned();
    };
    let (family, addresses) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ("TCP4", format!("{source} {destination}"))
        }
        (source, destination) => (
            "TCP6",
            format!("{} {}", in_groups(source), in_groups(destination)),
        ),
    };
    let (source_port, destination_port) = (source.port(), destination.port());
    format!("PROXY {family} {addresses} {source_port} {destination_port}\r\n")
}

/// An address of IPv6, or IPv4 as one, in groups of hexadecimal digits, which is the only form that the protocol permits.
fn in_groups(ip: IpAddr) -> String {
    let ip = as_ipv6(ip);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => format!("::ffff:{high:x}:{low:x}"),
        _ => ip.to_string(),
    }
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn write_block(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let (protocol, addresses) = match ends {
        None => (UNKNOWN, Vec::new()),
        Some((source, destination)) => {
            let (protocol, mut addresses) = match (source.ip(), destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    (TCP4, [source.octets(), destination.octets()].concat())
                }
                (source, destination) => {
                    let octets = [source, destination].map(|ip| as_ipv6(ip).octets());
                    (TCP6, octets.concat())
                }
            };
            for end in [source, destination] {
                addresses.extend(end.port().to_be_bytes());
            }
            (protocol, addresses)
        }
    };
    // There are 36 bytes at most.
    let length = (addresses.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[PROXY, protocol], &length, &addresses].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    /// A header of version 2.
    fn block(command: u8, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, protocol], &length, rest].concat()
    }

    /// Addresses of TCP over IPv4.
    const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xc3, 0x50, 0, 80];

    /// Checks that it is understood as a whole, whatever follows, and not before it is all there.
    fn check(header: &[u8], ends: Option<Ends>) {
        let length = header.len();
        for shorter in 0..length {
            assert_eq!(
                parse(&header[..shorter]),
                Ok(None),
                "{shorter} of {header:?}"
            );
        }
        let parsed = Ok(Some(Header { length, ends }));
        assert_eq!(parse(header), parsed, "{header:?}");
        for next in [b"GET / HTTP/1.1\r\n\r\n", &[0; 5000][..], header] {
            assert_eq!(parse(&[header, next].concat()), parsed, "{header:?}");
        }
    }

    #[test]
    fn a_line_says_whose_connection_it_is() {
        let four = ends("192.0.2.1:50000", "198.51.100.2:80");
        check(
            b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 80\r\n",
            Some(four),
        );
        let six = ends("[2001:db8::1]:65535", "[::1]:0");
        check(b"PROXY TCP6 2001:DB8:0::1 ::1 65535 0\r\n", Some(six));
        let mapped = b"PROXY TCP6 ::ffff:c000:201 ::ffff:198.51.100.2 50000 80\r\n";
        check(mapped, Some(four));
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN whatever \xff \r this is\r\n", None);
        let longest = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), MAX_LINE);
        check(longest, None);
    }

    #[test]
    fn a_line_that_breaks_the_rules_is_none() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 80 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 80 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.2 50000 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 80\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 80\r\r\n",
            "PROXY TCP4 192.0.2.1\t198.51.100.2 50000 80\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.2 50000 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.256 50000 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 65536 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +5 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 -5 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 080\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 50000 \r\n",
            "PROXY TCP4 ::1 ::1 50000 80\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 50000 80\r\n",
            "PROXY TCP6 [::1] [::1] 50000 80\r\n",
            "PROXY TCP6 ::1%lo ::1 50000 80\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 50000 80\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.2 50000 80\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Fault::Malformed), "{line:?}");
        }
        let endless = [PREFIX, &b"UNKNOWN"[..], &[b' '; 200]].concat();
        assert_eq!(parse(&endless[..MAX_LINE - 1]), Ok(None));
        for length in [MAX_LINE, 200] {
            assert_eq!(parse(&endless[..length]), Err(Fault::TooLong));
        }
        // Its end comes one byte too late.
        let long = [&endless[..MAX_LINE - 1], b"\r\n"].concat();
        assert_eq!(parse(&long), Err(Fault::TooLong));
    }

    #[test]
    fn a_block_says_whose_connection_it_is() {
        let four = ends("192.0.2.1:50000", "198.51.100.2:80");
        check(&block(0x21, 0x11, &FOUR), Some(four));
        let mut addresses = [0; 36];
        addresses[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        addresses[16..32]
            .copy_from_slice(&"::ffff:192.0.2.9".parse::<Ipv6Addr>().unwrap().octets());
        addresses[32..].copy_from_slice(&[1, 2, 3, 4]);
        let six = ends("[2001:db8::1]:258", "192.0.2.9:772");
        check(&block(0x21, 0x21, &addresses), Some(six));
        // What is not known to us is skipped: a type, a length, a value.
        let extras = [&FOUR[..], &[0xe0, 0, 2, 9, 9, 0x04, 0, 0, 0x20, 0, 1, 0]].concat();
        check(&block(0x21, 0x11, &extras), Some(four));
        let most = [&FOUR[..], &[0xe0, 0x0f, 0xe1], &[7; 0xfe1]].concat();
        let most = block(0x21, 0x11, &most);
        assert_eq!(most.len(), MAX_HEADER);
        check(&most, Some(four));
    }

    #[test]
    fn a_block_may_say_that_it_does_not_know() {
        for (command, protocol, rest) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &FOUR),
            (0x20, 0x11, &[1, 2, 3]),
            (0x21, 0x00, &[]),
            (0x21, 0x01, &[0xe0, 0, 9]),
            (0x21, 0x12, &FOUR),
            (0x21, 0x31, &[b'/'; 216]),
        ] {
            check(&block(command, protocol, rest), None);
        }
    }

    #[test]
    fn a_block_that_breaks_the_rules_is_none() {
        let malformed = [
            block(0x11, 0x11, &FOUR),
            block(0x22, 0x11, &FOUR),
            block(0x2f, 0x11, &FOUR),
            block(0x21, 0x41, &FOUR),
            block(0x21, 0x13, &FOUR),
            block(0x21, 0x11, &FOUR[..11]),
            block(0x21, 0x21, &[0; 35]),
            block(0x21, 0x11, &[&FOUR[..], &[0xe0]].concat()),
            block(0x21, 0x11, &[&FOUR[..], &[0xe0, 0, 2, 1]].concat()),
            block(
                0x21,
                0x11,
                &[&FOUR[..], &[CHECKSUM, 0, 3, 1, 1, 1]].concat(),
            ),
        ];
        for header in malformed {
            assert_eq!(parse(&header), Err(Fault::Malformed), "{header:?}");
        }
        // It is not waited for.
        let long = block(0x21, 0x11, &[0; MAX_HEADER - FIXED + 1]);
        assert_eq!(parse(&long[..FIXED]), Err(Fault::TooLong));
    }

    #[test]
    fn a_checksum_is_checked() {
        // RFC 3720, appendix B.4.
        assert_eq!(checksum([&[0; 32]]), 0x8a91_36aa);
        assert_eq!(checksum([&[0xff; 16], &[0xff; 16]]), 0x62a8_ab43);
        let before = [&FOUR[..], &[0x04, 0, 1, 0, CHECKSUM, 0, 4]].concat();
        let after = [0xe0, 0, 1, 5];
        let with = |sum: u32| {
            block(
                0x21,
                0x11,
                &[&before[..], &sum.to_be_bytes(), &after].concat(),
            )
        };
        let right = checksum([&with(0)]);
        check(
            &with(right),
            Some(ends("192.0.2.1:50000", "198.51.100.2:80")),
        );
        for bit in 0..32 {
            assert_eq!(parse(&with(right ^ (1 << bit))), Err(Fault::Checksum));
        }
        let mut changed = with(right);
        changed[FIXED] ^= 1;
        assert_eq!(parse(&changed), Err(Fault::Checksum));
    }

    #[test]
    fn what_begins_otherwise_is_none() {
        for start in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"proxy TCP4",
            b"PROXY\tTCP4",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\r\nGET",
            b"\0",
        ] {
            assert_eq!(parse(start), Err(Fault::Absent), "{start:?}");
        }
    }

    #[test]
    fn what_is_written_is_understood() {
        for (client, reached, understood, line) in [
            (
                "192.0.2.1:50000",
                Some("198.51.100.2:80"),
                ends("192.0.2.1:50000", "198.51.100.2:80"),
                "PROXY TCP4 192.0.2.1 198.51.100.2 50000 80\r\n",
            ),
            (
                "[2001:db8::1]:1",
                Some("[::1]:2"),
                ends("[2001:db8::1]:1", "[::1]:2"),
                "PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
            ),
            (
                "192.0.2.1:0",
                Some("[::1]:2"),
                ends("192.0.2.1:0", "[::1]:2"),
                "PROXY TCP6 ::ffff:c000:201 ::1 0 2\r\n",
            ),
            (
                "[2001:db8::1]:1",
                Some("127.0.0.1:2"),
                ends("[2001:db8::1]:1", "127.0.0.1:2"),
                "PROXY TCP6 2001:db8::1 ::ffff:7f00:1 1 2\r\n",
            ),
            (
                "192.0.2.1:0",
                None,
                ends("192.0.2.1:0", "0.0.0.0:0"),
                "PROXY TCP4 192.0.2.1 0.0.0.0 0 0\r\n",
            ),
            (
                "[::1]:0",
                None,
                ends("[::1]:0", "[::]:0"),
                "PROXY TCP6 ::1 :: 0 0\r\n",
            ),
        ] {
            let client = client.parse().ok();
            let reached = reached.map(|reached| reached.parse().unwrap());
            let written = write(ProxyHeader::V1, client, reached);
            assert_eq!(str::from_utf8(&written), Ok(line));
            check(&written, Some(understood));
            check(&write(ProxyHeader::V2, client, reached), Some(understood));
        }
        for reached in [None, Some("127.0.0.1:2".parse().unwrap())] {
            assert_eq!(write(ProxyHeader::V1, None, reached), b"PROXY UNKNOWN\r\n");
            let unknown = write(ProxyHeader::V2, None, reached);
            assert_eq!(unknown, block(0x21, 0x00, &[]));
            check(&unknown, None);
        }
    }
}
