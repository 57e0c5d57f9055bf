//! The headers in which HTTP proxies tell whose requests they pass on: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Each proxy adds the address that it sees to the end of what was there, and what was there may be anybody's invention. So both are read from
//! the end, backwards even within a line, and only as far as each address is that of somebody who is believed: no quote, comma or
//! bracket that a client has put there can touch what a proxy has added.

use std::iter::from_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;

use hyper::header::{FORWARDED, HeaderMap, HeaderName};

/// Addresses with commas between them.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Both headers are there, and name different clients. As a rule a proxy sets one of them, and passes the other one on as it came; it cannot
/// be told which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contradiction;

/// Whose request it is that was passed on by somebody who is believed: the last address that is not believed itself, or else the first
/// that can be read before one that cannot; `None` when there is none.
pub(super) fn client(
    headers: &HeaderMap,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Option<IpAddr>, Contradiction> {
    let told = |name: HeaderName, address_in: fn(&[u8]) -> Option<IpAddr>| {
        let lines = headers.get_all(&name).into_iter().rev();
        let elements = lines.flat_map(|line| parts(line.as_bytes(), b','));
        let named = || farthest(elements.map(address_in), &is_trusted);
        headers.contains_key(&name).then(named)
    };
    match (
        told(X_FORWARDED_FOR, |element| {
            address(str::from_utf8(element).ok()?)
        }),
        told(FORWARDED, forwarded_for),
    ) {
        (Some(one), Some(other)) if one != other => Err(Contradiction),
        (one, other) => Ok(one.or(other).flatten()),
    }
}

/// Goes through addresses from the nearest on, as long as they can be read and are believed.
fn farthest(
    addresses: impl Iterator<Item = Option<IpAddr>>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut last = None;
    for address in addresses {
        let Some(address) = address else {
            break;
        };
        last = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    last
}

/// What is between separators that stand outside of quotes, from the end on.
fn parts(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    from_fn(move || {
        let text = rest?;
        let mut is_quoted = false;
        let found = (0..text.len()).rev().find(|&at| {
            if text[at] == b'"' && !(is_quoted && is_escaped(text, at)) {
                is_quoted = !is_quoted;
            }
            text[at] == separator && !is_quoted
        });
        rest = found.map(|at| &text[..at]);
        Some(found.map_or(text, |at| &text[at + 1..]))
    })
}

/// Whether a byte within quotes has a backslash before it that makes it an ordinary one.
fn is_escaped(text: &[u8], at: usize) -> bool {
    let before = text[..at].iter().rev();
    before.take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// The address in an element of `Forwarded`: `for=192.0.2.1;proto=https`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut values = parts(element, b';').filter_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        let is_for = pair[..at].trim_ascii().eq_ignore_ascii_case(b"for");
        is_for.then(|| pair[at + 1..].trim_ascii())
    });
    let value = values.next()?;
    let is_only_one = values.next().is_none();
    is_only_one.then(|| address(&unquoted(value)?))?
}

/// A value without its quotes, if it has any.
fn unquoted(value: &[u8]) -> Option<String> {
    let Some(inner) = value.strip_prefix(b"\"") else {
        return str::from_utf8(value).ok().map(str::to_owned);
    };
    let mut bytes = inner.strip_suffix(b"\"")?.iter();
    let mut plain = Vec::new();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => plain.push(*bytes.next()?),
            b'"' => return None,
            _ => plain.push(byte),
        }
    }
    String::from_utf8(plain).ok()
}

/// An address, perhaps with a port; `None` for what hides it (`unknown`, `_name`), and for what is none.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim_ascii();
    let with_port = || match text.strip_prefix('[') {
        Some(text) => {
            let (address, rest) = text.split_once(']')?;
            let is_all = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
            let address = address.parse::<Ipv6Addr>().ok()?;
            is_all.then_some(IpAddr::V6(address))
        }
        None => {
            let (address, port) = text.split_once(':')?;
            let address = address.parse::<Ipv4Addr>().ok()?;
            is_port(port).then_some(IpAddr::V4(address))
        }
    };
    let address = text.parse().ok().or_else(with_port)?;
    Some(address.to_canonical())
}

/// Whether it is a port, or what hides one.
fn is_port(text: &str) -> bool {
    text.starts_with('_') || text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    /// The client that these lines name, of a header each, where 10.0.0.0/8 and fd00::/8 are believed.
    fn client_of(lines: &[(&str, &[u8])]) -> Result<Option<String>, Contradiction> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let is_trusted = |ip| match ip {
            IpAddr::V4(ip) => ip.octets()[0] == 10,
            IpAddr::V6(ip) => ip.octets()[0] == 0xfd,
        };
        client(&headers, is_trusted).map(|found| found.map(|ip| ip.to_string()))
    }

    fn named(lines: &[(&str, &str)]) -> String {
        let lines: Vec<_> = lines
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        let found = client_of(&lines).expect("they do not contradict each other");
        found.unwrap_or_else(|| "nobody".to_owned())
    }

    #[test]
    fn the_last_address_that_is_not_believed_is_the_clients() {
        for (value, client) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1 ", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
            ("6.6.6.6,192.0.2.1,10.0.0.1,10.0.0.2", "192.0.2.1"),
            ("10.0.0.3, 10.0.0.1", "10.0.0.3"),
            ("2001:db8::1", "2001:db8::1"),
            ("6.6.6.6, [2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711, fd00::1", "2001:db8::1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("::ffff:192.0.2.1, ::ffff:10.0.0.1", "192.0.2.1"),
            // What cannot be read ends it, with the nearest that could be.
            ("unknown", "nobody"),
            ("", "nobody"),
            ("192.0.2.1,", "nobody"),
            ("192.0.2.1, unknown", "nobody"),
            ("192.0.2.1, unknown, 10.0.0.1", "10.0.0.1"),
            ("192.0.2.1, _gateway, 10.0.0.1", "10.0.0.1"),
            ("192.0.2.1, unix:", "nobody"),
            ("192.0.2.1, 1.2.3", "nobody"),
            ("192.0.2.1, 1.2.3.4:99999", "nobody"),
            ("192.0.2.1, 1.2.3.4:", "nobody"),
            ("192.0.2.1, [::1", "nobody"),
            ("192.0.2.1, [::1]x", "nobody"),
            ("192.0.2.1, [1.2.3.4]", "nobody"),
            ("192.0.2.1, fe80::1%eth0", "nobody"),
        ] {
            assert_eq!(named(&[("x-forwarded-for", value)]), client, "{value}");
        }
        assert_eq!(named(&[]), "nobody");
        let lines = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "192.0.2.1, 10.0.0.1"),
        ];
        assert_eq!(named(&lines), "192.0.2.1");
        let lines = [
            ("x-forwarded-for", "6.6.6.6, 192.0.2.1"),
            ("x-forwarded-for", "10.0.0.1"),
        ];
        assert_eq!(named(&lines), "192.0.2.1");
        let bytes = client_of(&[("x-forwarded-for", b"192.0.2.1, \xff, 10.0.0.1")]);
        assert_eq!(bytes, Ok(Some("10.0.0.1".to_owned())));
    }

    #[test]
    fn forwarded_is_understood_in_all_its_forms() {
        for (value, client) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:4711\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\";proto=https", "2001:db8::1"),
            (
                "by=10.0.0.1;FOR=192.0.2.1;host=\"a,b;for=6.6.6.6\"",
                "192.0.2.1",
            ),
            (
                "for=192.0.2.1;host=\"\\\",for=6.6.6.6,\\\"\\\\\"",
                "192.0.2.1",
            ),
            ("for=\"192.0.\\2.1:_hidden\"", "192.0.2.1"),
            (
                "for=6.6.6.6, for=192.0.2.1;proto=http, for=10.0.0.1",
                "192.0.2.1",
            ),
            ("for=192.0.2.1 , for=10.0.0.1", "192.0.2.1"),
            ("for=6.6.6.6, for=unknown", "nobody"),
            ("for=6.6.6.6, for=_hidden, for=10.0.0.1", "10.0.0.1"),
            ("for=6.6.6.6, for=\"_hidden\", for=10.0.0.1", "10.0.0.1"),
            ("for=6.6.6.6, proto=https", "nobody"),
            ("for=6.6.6.6, for=192.0.2.1;for=192.0.2.2", "nobody"),
            ("for=6.6.6.6, for", "nobody"),
            ("for=6.6.6.6, for=\"", "nobody"),
            ("for=6.6.6.6, for=\"192.0.2.1\\\"", "nobody"),
            ("for=6.6.6.6, for=\"192.0.2.1\"x", "nobody"),
            ("for=6.6.6.6, for=\"", "nobody"),
            ("", "nobody"),
        ] {
            assert_eq!(named(&[("forwarded", value)]), client, "{value}");
        }
    }

    #[test]
    fn nothing_that_a_client_sends_touches_what_a_proxy_adds() {
        for sent in [
            "for=6.6.6.6",
            "for=\"6.6.6.6",
            "for=\"",
            "\"",
            "\\",
            "\"\\",
            "for=\"a\\",
            "for=6.6.6.6;host=\"",
            ",\",\\\"",
            "for=\"\\\"",
            ";;;===",
            "",
        ] {
            let added = format!("{sent}, for=192.0.2.1;host=\"x\\\"y\", for=10.0.0.1");
            assert_eq!(named(&[("forwarded", &added)]), "192.0.2.1", "{sent}");
            let lines = [("forwarded", sent), ("forwarded", "for=192.0.2.1")];
            assert_eq!(named(&lines), "192.0.2.1", "{sent}");
            let added = format!("{sent}, 192.0.2.1");
            assert_eq!(named(&[("x-forwarded-for", &added)]), "192.0.2.1", "{sent}");
        }
    }

    #[test]
    fn two_headers_have_to_name_the_same_client() {
        let both = |forwarded: &[u8], other: &[u8]| {
            client_of(&[("forwarded", forwarded), ("x-forwarded-for", other)])
        };
        let same = Ok(Some("192.0.2.1".to_owned()));
        assert_eq!(
            both(b"for=\"192.0.2.1:5\", for=10.0.0.1", b"192.0.2.1"),
            same
        );
        assert_eq!(both(b"for=6.6.6.6", b"192.0.2.1"), Err(Contradiction));
        assert_eq!(both(b"for=192.0.2.1", b"6.6.6.6"), Err(Contradiction));
        assert_eq!(both(b"for=unknown", b"6.6.6.6"), Err(Contradiction));
        assert_eq!(both(b"proto=http", b"6.6.6.6"), Err(Contradiction));
        assert_eq!(both(b"for=192.0.2.1", b""), Err(Contradiction));
        assert_eq!(both(b"for=_a", b"unknown"), Ok(None));
    }
}
