//! The URL of a service with room for the token, and where a redirection leads (RFC 3986).

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use crate::addr::HostPort;
use crate::token::Token;
use crate::token::service::host_and_port;

/// What a token is written in: unreserved characters (2.3), so that it ends no part of the URL and begins none.
const IN_TOKEN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What may not stand in a path or query as it is; of `%` see [`encoded`].
const IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The longest path with its query, in bytes: hyper takes no longer ones than 65534.
const MAX_PATH: usize = 60_000;

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Whether it is `https`.
    pub(super) tls: bool,
    /// The host without brackets.
    pub(super) address: HostPort,
}

/// A page of an origin. It has the token in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// Path and query, in ASCII; begins with a slash.
    pub(super) path: String,
}

/// A URL with room for the token.
pub(super) struct Template {
    origin: Origin,
    /// Path and query, cut where the token goes; two at least.
    parts: Vec<String>,
}

impl Origin {
    /// Host and port as a request names them: a port that is the scheme's is left out.
    pub(super) fn authority(&self) -> String {
        let text = self.address.to_string();
        let usual = if self.tls { ":443" } else { ":80" };
        text.strip_suffix(usual).map(str::to_owned).unwrap_or(text)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl Template {
    /// Reads a URL in which `%s` stands for the token and `%%` for a percent sign, as in the original. Any other percent sign is
    /// one as well. Returns what the user information is, if there is any.
    ///
    /// # Errors
    /// It is none that can be asked, and why; the text has nothing of it.
    pub(super) fn parse(text: &str) -> Result<(Self, Option<String>), &'static str> {
        let mut parts = cut(text);
        if let Some(last) = parts.iter().position(|part| part.contains('#')) {
            // A service is not told what follows.
            parts.truncate(last + 1);
            let end = parts[last].find('#').unwrap_or_default();
            parts[last].truncate(end);
        }
        let (first, rest) = parts.split_first().ok_or("it is empty")?;
        let (url, user) = Url::parse(first)?;
        if rest.is_empty() {
            return Err("there is no %s in it, where the token goes");
        }
        if !first
            .split_once("://")
            .is_some_and(|(_, rest)| rest.contains(['/', '?']))
        {
            return Err(
                "%s can only stand in its path or query: no client is to choose who is asked",
            );
        }
        let rest = rest.iter().map(|part| encoded(part.as_bytes()));
        let parts = std::iter::once(url.path.clone()).chain(rest).collect();
        let user = user.map(str::to_owned);
        Ok((
            Self {
                origin: url.origin,
                parts,
            },
            user,
        ))
    }

    /// Whom it leads to.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The URL for a token; `None` for one that no service can be asked for. `..` and what it may become is one: it means another
    /// page, in whichever way it is written.
    pub(super) fn fill(&self, token: &Token) -> Option<Url> {
        let token = token.expose();
        if token.bytes().all(|byte| byte == b'.') || token.len() > MAX_PATH {
            return None;
        }
        let path = self
            .parts
            .join(&utf8_percent_encode(token, IN_TOKEN).to_string());
        (path.len() <= MAX_PATH).then(|| Url {
            origin: self.origin.clone(),
            path,
        })
    }
}

/// Cuts a text at each `%s`, and makes one of each `%%`.
fn cut(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, after) = rest.split_at(at);
        let last = parts.len() - 1;
        parts[last].push_str(before);
        rest = &after[1..];
        if let Some(after) = rest.strip_prefix('s') {
            parts.push(String::new());
            rest = after;
        } else {
            parts[last].push('%');
            rest = rest.strip_prefix('%').unwrap_or(rest);
        }
    }
    let last = parts.len() - 1;
    parts[last].push_str(rest);
    parts
}

/// A part of a path or query with everything encoded that may not stand there. A `%` that encodes nothing is encoded itself.
fn encoded(text: &[u8]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut parts = text.split(|&byte| byte == b'%');
    result.extend(percent_encode(parts.next().unwrap_or_default(), IN_PATH));
    for part in parts {
        let encodes = part.len() >= 2 && part[..2].iter().all(u8::is_ascii_hexdigit);
        result.push_str(if encodes { "%" } else { "%25" });
        result.extend(percent_encode(part, IN_PATH));
    }
    result
}

impl Url {
    /// Reads an absolute URL. Returns its user information, too.
    fn parse(text: &str) -> Result<(Self, Option<&str>), &'static str> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("it does not begin with http:// or https://")?;
        let tls = match () {
            () if scheme.eq_ignore_ascii_case("http") => false,
            () if scheme.eq_ignore_ascii_case("https") => true,
            () => return Err("it does not begin with http:// or https://"),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let address = host_and_port(host, if tls { 443 } else { 80 })?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = slash.to_owned() + &encoded(path.as_bytes());
        let origin = Origin { tls, address };
        Ok((Self { origin, path }, user))
    }

    /// Where a reference leads that was found here (5.2); `None` if it is none of HTTP's.
    pub(super) fn join(&self, reference: &[u8]) -> Option<Self> {
        let reference = encoded(reference.trim_ascii());
        let reference = reference.split('#').next().unwrap_or_default();
        let here = |path: &str| Self {
            origin: self.origin.clone(),
            path: without_dots(path),
        };
        if let Some(rest) = reference.strip_prefix("//") {
            let scheme = if self.origin.tls { "https" } else { "http" };
            return Self::parse(&format!("{scheme}://{rest}"))
                .ok()
                .map(Self::tidy);
        }
        if has_scheme(reference) {
            return Self::parse(reference).ok().map(Self::tidy);
        }
        let base = self.path.split('?').next().unwrap_or_default();
        Some(match reference.bytes().next() {
            None => self.clone(),
            Some(b'/') => here(reference),
            Some(b'?') => here(&format!("{base}{reference}")),
            Some(_) => {
                let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
                here(&format!("{directory}/{reference}"))
            }
        })
    }

    fn tidy((url, _): (Self, Option<&str>)) -> Self {
        Self {
            path: without_dots(&url.path),
            ..url
        }
    }
}

/// Whether a reference begins with a scheme.
fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']).unwrap_or(reference.len());
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    reference[end..].starts_with(':')
        && reference.starts_with(|c: char| c.is_ascii_alphabetic())
        && reference[..end].bytes().all(is_letter)
}

/// A path in which `.` and `..` were followed (5.2.4), with the query as it is.
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut kept = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, token: &str) -> Option<String> {
        let (template, _) = Template::parse(template).unwrap();
        let url = template.fill(&Token::new(token.to_owned()))?;
        Some(format!("{}{}", url.origin, url.path))
    }

    #[test]
    fn the_token_goes_where_percent_s_is_and_nowhere_else() {
        for (template, url) in [
            ("http://h/%s", "http://h/a%2Fb"),
            ("HTTP://h:80/?t=%s", "http://h/?t=a%2Fb"),
            ("http://h?t=%s&u=1", "http://h/?t=a%2Fb&u=1"),
            ("https://[::1]:8443/x/%s/y", "https://[::1]:8443/x/a%2Fb/y"),
            ("http://h/%s/%s", "http://h/a%2Fb/a%2Fb"),
            ("http://u:p@h/%s#frag%s", "http://h/a%2Fb"),
            ("http://h/%%/%s", "http://h/%25/a%2Fb"),
            ("http://h/a%%20b%20c/%s", "http://h/a%20b%20c/a%2Fb"),
            ("http://h/%%s/%s", "http://h/%25s/a%2Fb"),
            ("http://h/100%%%s", "http://h/100%25a%2Fb"),
            ("http://h/a b/ü\"/%s", "http://h/a%20b/%C3%BC%22/a%2Fb"),
            ("http://h/%d%s", "http://h/%25da%2Fb"),
        ] {
            assert_eq!(filled(template, "a/b").as_deref(), Some(url), "{template}");
        }
    }

    #[test]
    fn a_token_cannot_change_the_rest_of_the_url() {
        for (token, path) in [
            ("abcXYZ019-._~", "abcXYZ019-._~"),
            ("a?b#c&d=e", "a%3Fb%23c%26d%3De"),
            ("a%2f..", "a%252f.."),
            ("\r\nHost: x", "%0D%0AHost%3A%20x"),
            ("@\\", "%40%5C"),
            ("ü\0", "%C3%BC%00"),
            ("../x", "..%2Fx"),
            ("%s", "%25s"),
        ] {
            let url = format!("http://h/x/{path}/y");
            assert_eq!(filled("http://h/x/%s/y", token), Some(url), "{token}");
        }
        for token in ["", ".", "..", "..."] {
            assert_eq!(filled("http://h/x/%s/y", token), None, "{token}");
        }
        assert_eq!(filled("http://h/%s", &"x".repeat(MAX_PATH)), None);
        assert_eq!(filled("http://h/%s", &"/".repeat(MAX_PATH / 2)), None);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_without_showing_it() {
        for (template, reason) in [
            ("", "does not begin with http"),
            ("h/%s", "does not begin with http"),
            ("ftp://h/%s", "does not begin with http"),
            ("%s", "does not begin with http"),
            ("http://u:secret@h/", "no %s in it"),
            ("http://h/%%s", "no %s in it"),
            ("http://h/#%s", "no %s in it"),
            ("http://%s/", "no host"),
            ("http://h%s/", "path or query"),
            ("http://h:80%s", "path or query"),
            ("http://u:%s@h/", "path or query"),
            ("http://u:secret@h:x/%s", "port"),
            ("http:///%s", "no host"),
            ("http://secret%40h/%s", "no name or address"),
        ] {
            let error = Template::parse(template).err().unwrap_or_default();
            assert!(error.contains(reason), "{template}: {error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn user_information_is_taken_out() {
        let user = |template: &str| Template::parse(template).unwrap().1;
        assert_eq!(user("http://h/%s"), None);
        assert_eq!(user("http://u:p@h/@%s").as_deref(), Some("u:p"));
        assert_eq!(
            user("http://u%40x:p%%3Aq@h/%s").as_deref(),
            Some("u%40x:p%3Aq")
        );
        assert_eq!(user("http://u@v@h/%s").as_deref(), Some("u@v"));
    }

    #[test]
    fn a_redirection_leads_where_the_standard_says() {
        let (base, _) = Url::parse("http://h:81/b/c/d;p?q").unwrap();
        let joined = |reference: &str| {
            let url = base.join(reference.as_bytes())?;
            Some(format!("{}{}", url.origin, url.path))
        };
        // Of the examples of RFC 3986, 5.4, those that are HTTP's.
        for (reference, url) in [
            ("g", "http://h:81/b/c/g"),
            ("./g", "http://h:81/b/c/g"),
            ("g/", "http://h:81/b/c/g/"),
            ("/g", "http://h:81/g"),
            ("//g", "http://g/"),
            ("?y", "http://h:81/b/c/d;p?y"),
            ("g?y", "http://h:81/b/c/g?y"),
            ("#s", "http://h:81/b/c/d;p?q"),
            ("g#s", "http://h:81/b/c/g"),
            ("", "http://h:81/b/c/d;p?q"),
            (".", "http://h:81/b/c/"),
            ("..", "http://h:81/b/"),
            ("../g", "http://h:81/b/g"),
            ("../../../../g", "http://h:81/g"),
            ("/./g", "http://h:81/g"),
            ("g.", "http://h:81/b/c/g."),
            ("..g", "http://h:81/b/c/..g"),
            ("./g/.", "http://h:81/b/c/g/"),
            ("g;x=1/../y", "http://h:81/b/c/y"),
            ("g?y/../x", "http://h:81/b/c/g?y/../x"),
            ("https://u:p@x:444/a/../ü?a b", "https://x:444/%C3%BC?a%20b"),
            ("HTTPS://x", "https://x/"),
            (" /a:b ", "http://h:81/a:b"),
            ("a%zz", "http://h:81/b/c/a%25zz"),
        ] {
            assert_eq!(joined(reference).as_deref(), Some(url), "{reference}");
        }
        for reference in [
            "ftp://h/",
            "javascript:x",
            "http:",
            "http://",
            "http:g",
            "//",
        ] {
            assert_eq!(joined(reference), None, "{reference}");
        }
    }
}
