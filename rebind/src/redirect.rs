//! Decides where a `bind()` goes: pure functions on the bytes of a socket address.
//!
//! Nothing here makes a system call or touches the caller's memory, so every rule can be tested as it is.

use core::mem::size_of;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{AF_INET, AF_INET6, AF_UNSPEC, c_int, sa_family_t, sockaddr_in};

/// Where the kernel's `sockaddr_in6` ends for callers that know no scope (RFC 2133); it accepts both lengths.
const SOCKADDR_IN6_SHORT: usize = 24;

/// The port to move and where to: `REBIND_OLD_PORT` and `REBIND_NEW_PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The port that the program asks for.
    pub(crate) old: u16,
    /// The loopback port that it gets.
    pub(crate) new: u16,
}

impl Rule {
    /// Reads both values strictly: decimal digits, 1 to 65535, nothing around them.
    pub(crate) fn parse(old: &[u8], new: &[u8]) -> Option<Self> {
        Some(Self {
            old: parse_port(old)?,
            new: parse_port(new)?,
        })
    }

    /// The two ports in one word, so that an atomic can hold them.
    pub(crate) fn pack(self) -> u32 {
        u32::from(self.old) << 16 | u32::from(self.new)
    }

    /// The reverse of [`Rule::pack`]; `None` for zero.
    #[expect(clippy::cast_possible_truncation, reason = "the halves are the point")]
    pub(crate) fn unpack(word: u32) -> Option<Self> {
        (word != 0).then_some(Self {
            old: (word >> 16) as u16,
            new: word as u16,
        })
    }
}

/// Strict `u16` without zero; unlike `str::parse` it takes no sign.
fn parse_port(text: &[u8]) -> Option<u16> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&port| port != 0)
}

/// What the kernel says of the socket that is being bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    /// `SO_DOMAIN`.
    pub(crate) domain: c_int,
    /// `IPV6_V6ONLY`; meaningless for IPv4.
    pub(crate) v6only: bool,
}

/// The address of a `bind()` as the kernel would read it for an IP socket, or `None` where the kernel should judge for itself:
/// unknown family, too short.
///
/// `AF_UNSPEC` is IPv4 to the kernel, provided that the address is the any address.
pub(crate) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = c_int::from(sa_family_t::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        AF_INET | AF_UNSPEC if bytes.len() >= size_of::<sockaddr_in>() => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            let ip = Ipv4Addr::from(octets);
            (family == AF_INET || ip.is_unspecified()).then(|| SocketAddrV4::new(ip, port).into())
        }
        AF_INET6 if bytes.len() >= SOCKADDR_IN6_SHORT => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, 0).into())
        }
        _ => None,
    }
}

/// Where a `bind()` of `address` on `socket` goes instead, or `None` to leave it alone.
///
/// The any address of a dual-stack socket goes to the IPv4 loopback, since that is where the bridge looks first; so does a
/// mapped one. Every other IPv6 address goes to `::1`.
pub(crate) fn redirect(rule: Rule, address: SocketAddr, socket: Socket) -> Option<SocketAddr> {
    if address.port() != rule.old {
        return None;
    }
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let ip = match (address, socket.domain) {
        (SocketAddr::V4(_), AF_INET) => Ipv4Addr::LOCALHOST.into(),
        (SocketAddr::V6(v6), AF_INET6) => match (v6.ip(), socket.v6only) {
            (ip, true) if ip.to_ipv4_mapped().is_some() => return None,
            (ip, false) if ip.is_unspecified() || ip.to_ipv4_mapped().is_some() => mapped.into(),
            _ => Ipv6Addr::LOCALHOST.into(),
        },
        _ => return None,
    };
    Some(SocketAddr::new(ip, rule.new))
}

/// Whether `address`, as `getsockname()` reports it, is one that [`redirect`] hands out.
pub(crate) fn is_moved(rule: Rule, address: SocketAddr) -> bool {
    address.port() == rule.new
        && match address {
            SocketAddr::V4(v4) => *v4.ip() == Ipv4Addr::LOCALHOST,
            SocketAddr::V6(v6) => {
                *v6.ip() == Ipv6Addr::LOCALHOST || *v6.ip() == Ipv4Addr::LOCALHOST.to_ipv6_mapped()
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        old: 2023,
        new: 40001,
    };
    const V4: Socket = Socket {
        domain: AF_INET,
        v6only: false,
    };
    const V6: Socket = Socket {
        domain: AF_INET6,
        v6only: false,
    };
    const V6ONLY: Socket = Socket {
        domain: AF_INET6,
        v6only: true,
    };

    fn moved(address: &str, socket: Socket) -> Option<String> {
        redirect(RULE, address.parse().unwrap(), socket).map(|to| to.to_string())
    }

    #[test]
    fn a_rule_takes_plain_ports_only() {
        assert_eq!(Rule::parse(b"2023", b"40001"), Some(RULE));
        for bad in [
            "",
            "0",
            "65536",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x10",
            "99999999999999999999",
            "1\0",
        ] {
            assert_eq!(Rule::parse(bad.as_bytes(), b"1"), None, "{bad:?}");
            assert_eq!(Rule::parse(b"1", bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_rule_survives_packing() {
        for rule in [
            RULE,
            Rule { old: 65535, new: 1 },
            Rule { old: 1, new: 65535 },
        ] {
            assert_eq!(Rule::unpack(rule.pack()), Some(rule));
        }
        assert_eq!(Rule::unpack(0), None);
    }

    #[test]
    fn the_old_port_moves_to_the_loopback_of_its_family() {
        assert_eq!(
            moved("0.0.0.0:2023", V4).as_deref(),
            Some("127.0.0.1:40001")
        );
        assert_eq!(
            moved("192.0.2.1:2023", V4).as_deref(),
            Some("127.0.0.1:40001")
        );
        assert_eq!(moved("[::]:2023", V6ONLY).as_deref(), Some("[::1]:40001"));
        assert_eq!(
            moved("[::]:2023", V6).as_deref(),
            Some("[::ffff:127.0.0.1]:40001")
        );
        assert_eq!(
            moved("[::ffff:192.0.2.1]:2023", V6).as_deref(),
            Some("[::ffff:127.0.0.1]:40001")
        );
        assert_eq!(moved("[::1]:2023", V6).as_deref(), Some("[::1]:40001"));
        assert_eq!(
            moved("[2001:db8::1]:2023", V6).as_deref(),
            Some("[::1]:40001")
        );
    }

    #[test]
    fn everything_else_is_left_alone() {
        assert_eq!(moved("0.0.0.0:0", V4), None);
        assert_eq!(moved("0.0.0.0:2024", V4), None);
        assert_eq!(moved("127.0.0.1:40001", V4), None);
        // What the kernel refuses, it shall refuse by itself.
        assert_eq!(moved("0.0.0.0:2023", V6), None);
        assert_eq!(moved("[::]:2023", V4), None);
        assert_eq!(moved("[::ffff:192.0.2.1]:2023", V6ONLY), None);
        assert_eq!(
            moved(
                "0.0.0.0:2023",
                Socket {
                    domain: libc::AF_UNIX,
                    v6only: false
                }
            ),
            None
        );
    }

    fn bytes(family: c_int, port: u16, rest: &[u8]) -> Vec<u8> {
        let family = sa_family_t::try_from(family).unwrap();
        [&family.to_ne_bytes()[..], &port.to_be_bytes(), rest].concat()
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let v4 = bytes(AF_INET, 2023, &[192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_address(&v4), Some("192.0.2.1:2023".parse().unwrap()));
        let unspecified = bytes(AF_UNSPEC, 2023, &[0; 12]);
        assert_eq!(
            parse_address(&unspecified),
            Some("0.0.0.0:2023".parse().unwrap())
        );
        assert_eq!(parse_address(&bytes(AF_UNSPEC, 2023, &[1; 12])), None);
        let v6 = bytes(AF_INET6, 2023, &[0; 24]);
        assert_eq!(parse_address(&v6), Some("[::]:2023".parse().unwrap()));
        assert_eq!(parse_address(&v6[..24]), Some("[::]:2023".parse().unwrap()));
        assert_eq!(parse_address(&bytes(libc::AF_UNIX, 2023, &[0; 24])), None);
    }

    #[test]
    fn no_prefix_of_an_address_is_read_past_its_end() {
        let v4 = bytes(AF_INET, 2023, &[0; 12]);
        assert!((0..16).all(|len| parse_address(&v4[..len]).is_none()));
        let v6 = bytes(AF_INET6, 2023, &[0; 24]);
        assert!((0..24).all(|len| parse_address(&v6[..len]).is_none()));
    }

    #[test]
    fn only_handed_out_addresses_count_as_moved() {
        for yes in ["127.0.0.1:40001", "[::1]:40001", "[::ffff:127.0.0.1]:40001"] {
            assert!(is_moved(RULE, yes.parse().unwrap()), "{yes}");
        }
        for no in [
            "127.0.0.1:2023",
            "127.0.0.2:40001",
            "0.0.0.0:40001",
            "[::]:40001",
        ] {
            assert!(!is_moved(RULE, no.parse().unwrap()), "{no}");
        }
    }
}
