//! Where Redis is and what it is told first, in every form that people write: `host:port:db:password:namespace` as the original takes
//! it, and the URLs that other programs take.

use std::iter;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::addr::HostPort;
use crate::token::service::{Place, host_and_port, number};

/// Redis' port.
const PORT: u16 = 6379;

/// Where Redis is and what it is told first.
#[derive(PartialEq, Eq)]
pub(super) struct Source {
    pub(super) place: Place,
    /// Whether TLS is spoken with it.
    pub(super) tls: bool,
    /// The number of the database.
    pub(super) database: i64,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// What keys begin with: `namespace:token`.
    pub(super) namespace: Option<String>,
}

impl Source {
    /// Reads any form.
    ///
    /// # Errors
    /// It is none of them, and why; the text has nothing of it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let scheme = |name: &str| {
            let found = text.get(..name.len())?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| &text[name.len()..])
        };
        let source = match (scheme("redis://"), scheme("rediss://"), scheme("unix://")) {
            (Some(rest), ..) => Self::from_url(rest, false)?,
            (_, Some(rest), _) => Self::from_url(rest, true)?,
            (.., Some(rest)) => Self::from_unix_url(rest)?,
            _ => Self::from_parts(text)?,
        };
        if source.user.is_some() && source.password.is_none() {
            return Err("there is a user in it, and no password");
        }
        Ok(source)
    }

    fn at(place: Place) -> Self {
        Self {
            place,
            tls: false,
            database: 0,
            user: None,
            password: None,
            namespace: None,
        }
    }

    /// `host[:port[:db[:password[:namespace]]]]`.
    fn from_parts(text: &str) -> Result<Self, &'static str> {
        let mut rest = Some(text);
        let mut parts = iter::from_fn(|| {
            let (part, behind) = first_part(rest?);
            rest = behind;
            Some(part)
        });
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let host = next().ok_or("there is no host in it")?;
        let port = match next().map(str::trim) {
            None => PORT,
            Some(port) => number(port).ok_or("its port is not from 1 to 65535")?,
        };
        let database = next().map_or(Ok(0), database)?;
        let [password, namespace] = [next(), next()].map(|part| part.map(str::to_owned));
        if parts.next().is_some() {
            return Err(
                "it has more parts than host:port:db:password:namespace; a part with colons in it goes between quotes",
            );
        }
        let address = HostPort {
            host: host.trim().to_owned(),
            port,
        };
        Ok(Self {
            database,
            password,
            namespace,
            ..Self::at(Place::Tcp(address))
        })
    }

    /// `[user:password@]host[:port][/db][?namespace=…]`.
    fn from_url(text: &str, tls: bool) -> Result<Self, &'static str> {
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (user, host),
            None => ("", authority),
        };
        let address = host_and_port(host, PORT)?;
        let mut source = Self {
            tls,
            ..Self::at(Place::Tcp(address))
        };
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        source.user = decoded(user)?;
        source.password = decoded(password)?;
        if !path.is_empty() {
            source.database = database(path)?;
        }
        source.set_from_query(query)?;
        Ok(source)
    }

    /// `/path[?db=…&user=…&pass=…&namespace=…]`.
    fn from_unix_url(text: &str) -> Result<Self, &'static str> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let path = decoded(path)?.unwrap_or_default();
        if !path.starts_with('/') || path.contains('\0') {
            return Err("unix:// is to be followed by the absolute path of a socket");
        }
        let mut source = Self::at(Place::Unix(PathBuf::from(path)));
        source.set_from_query(query)?;
        Ok(source)
    }

    fn set_from_query(&mut self, query: &str) -> Result<(), &'static str> {
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decoded(value)?;
            match name {
                "db" => self.database = database(&value.unwrap_or_default())?,
                "user" | "username" => self.user = value,
                "pass" | "password" => self.password = value,
                "namespace" => self.namespace = value,
                _ => return Err("its query has more than db, user, pass and namespace"),
            }
        }
        Ok(())
    }
}

/// Takes the first part of `a:b:c`, which may be in quotes, or in brackets like an IPv6 address. A quote that does not belong to
/// another around the whole part is one like any other letter. Returns what follows the colon as well.
fn first_part(text: &str) -> (&str, Option<&str>) {
    for (open, close) in [('"', '"'), ('\'', '\''), ('[', ']')] {
        let inside = text
            .strip_prefix(open)
            .and_then(|rest| rest.split_once(close));
        match inside {
            Some((part, "")) => return (part, None),
            Some((part, rest)) if rest.starts_with(':') => return (part, Some(&rest[1..])),
            _ => {}
        }
    }
    match text.split_once(':') {
        Some((part, rest)) => (part, Some(rest)),
        None => (text, None),
    }
}

/// The number of a database.
fn database(text: &str) -> Result<i64, &'static str> {
    let text = text.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_number);
    number.ok_or("its database is no number")
}

/// A part of a URL as it is meant; `None` for an empty one.
fn decoded(text: &str) -> Result<Option<String>, &'static str> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "a part of it is not UTF-8")?;
    Ok(Some(decoded.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source in words: whether TLS is spoken, place, database, user, password, namespace; `-` for what there is not.
    fn read(text: &str) -> Result<String, &'static str> {
        Source::parse(text).map(|source| {
            let word = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
            format!(
                "{}{} {} {} {} {}",
                if source.tls { "tls " } else { "" },
                source.place,
                source.database,
                word(&source.user),
                word(&source.password),
                word(&source.namespace)
            )
        })
    }

    #[test]
    fn parts_are_divided_by_colons_and_empty_ones_are_the_usual() {
        for (text, meant) in [
            ("h", "h:6379 0 - - -"),
            ("h:", "h:6379 0 - - -"),
            ("h:6380", "h:6380 0 - - -"),
            ("h: 6380 ", "h:6380 0 - - -"),
            ("h::1", "h:6379 1 - - -"),
            ("h:::pw", "h:6379 0 - pw -"),
            ("h::::ns", "h:6379 0 - - ns"),
            ("h:6380:1:pw:ns", "h:6380 1 - pw ns"),
            ("h::::", "h:6379 0 - - -"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn a_part_in_quotes_may_have_colons() {
        for (text, meant) in [
            ("\"::1\":6380", "[::1]:6380 0 - - -"),
            ("[::1]:6380", "[::1]:6380 0 - - -"),
            ("[::1]", "[::1]:6379 0 - - -"),
            ("h:\"6380\":'1'", "h:6380 1 - - -"),
            ("h:::\"p:w\":ns", "h:6379 0 - p:w ns"),
            ("h::::\"a:b\"", "h:6379 0 - - a:b"),
            ("h::::'a:b'", "h:6379 0 - - a:b"),
            ("h:::'p\"w'", "h:6379 0 - p\"w -"),
            // As in the original.
            ("h:::\"pw", "h:6379 0 - \"pw -"),
            ("h:::p\"w\"", "h:6379 0 - p\"w\" -"),
            ("h:::\"a:b", "h:6379 0 - \"a b"),
            ("h:::\"a\"\"b\"", "h:6379 0 - \"a\"\"b\" -"),
            ("h::: p w ", "h:6379 0 -  p w  -"),
            ("h:::p\\:w", "h:6379 0 - p\\ w"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn urls_are_read_as_well() {
        for (text, meant) in [
            ("redis://h", "h:6379 0 - - -"),
            ("REDIS://h/", "h:6379 0 - - -"),
            ("redis://h:6380/2", "h:6380 2 - - -"),
            ("redis://[::1]:1", "[::1]:1 0 - - -"),
            ("redis://:pw@h", "h:6379 0 - pw -"),
            ("redis://u:p%40w%3a@h/1", "h:6379 1 u p@w: -"),
            ("rediss://h?namespace=a%3Ab", "tls h:6379 0 - - a:b"),
            ("redis://h/1?db=2&password=p&user=u", "h:6379 2 u p -"),
            ("unix:///run/r%20s", "/run/r s 0 - - -"),
            ("unix:///r?db=1&pass=p&username=u&namespace=n", "/r 1 u p n"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_without_showing_it() {
        for (text, reason) in [
            ("", "no host"),
            (":6379", "no host"),
            ("h:x", "port"),
            ("h:0", "port"),
            ("h:6379:x", "database"),
            ("h:6379:-1", "database"),
            ("h:6379:+1", "database"),
            ("h:6379:1:secret:ns:more", "more parts"),
            ("redis://", "no host"),
            ("redis://:secret@", "no host"),
            ("redis://:secret@h:x", "port"),
            ("redis://:secret@h/x", "database"),
            ("redis://:secret/@h", "no host"),
            ("redis://h?db=", "database"),
            ("redis://h?secret=1", "query"),
            ("redis://secret@h", "no password"),
            ("redis://:%ff@h", "UTF-8"),
            ("unix://relative", "absolute"),
            ("unix://", "absolute"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"));
        }
    }
}
