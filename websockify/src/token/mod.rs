//! Where a client's token leads: the sources that know tokens, each in its own file.

mod answer;
mod directory;
mod file;
mod http;
mod jose;
mod jwt;
mod redis;
mod service;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use hyper::Request;
use hyper::header::HOST;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use percent_encoding::percent_decode_str;

use crate::addr::HostPort;
use crate::config::TokenSourceConfig;
use crate::plugin::{self, Plugin};

use directory::{Files, Sockets};
use file::Lines;
use http::ApiSource;
use jwt::JwtSource;
use redis::RedisSource;

/// What a client names its target by. Whoever knows it is let through to that target, so it is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token(String);

/// Characters that a token must have for its last four to tell nothing.
const TELLS_NOTHING: usize = 16;

impl Token {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The token itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// The last four characters of a long token, nothing of a short one.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last: Vec<_> = self.0.chars().rev().take(TELLS_NOTHING).collect();
        if last.len() < TELLS_NOTHING {
            last.clear();
        }
        last.truncate(4);
        write!(
            f,
            "…{}",
            last.iter().rev().collect::<String>().escape_default()
        )
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a token leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A host and a port.
    Tcp {
        /// The port is not 0.
        address: HostPort,
        /// Whether TLS is spoken with it: `tls://host:port`.
        tls: bool,
        /// Whether the source gave the port as text and not as a number, which plugins can tell.
        text_port: bool,
    },
    /// A unix socket: `unix_socket:/path`.
    Unix(PathBuf),
}

/// The text of it is for the log: it names no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadDestination(&'static str);

impl fmt::Display for BadDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The port of a destination as a source gave it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port<'a> {
    /// A number.
    Number(u64),
    /// Text; the path of the socket where the host is [`UNIX_HOST`].
    Text(&'a str),
}

/// The host that stands for a unix socket.
pub(crate) const UNIX_HOST: &str = "unix_socket";
/// What a host is preceded by with which TLS is spoken.
const TLS_SCHEME: &str = "tls://";

impl FromStr for Destination {
    type Err = BadDestination;

    /// `host:port`, `[v6]:port`, `unix_socket:/path`, `tls://host:port`, with blanks around it.
    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let text = text.trim();
        let (host, port) = match text
            .strip_prefix(UNIX_HOST)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            Some(path) => (UNIX_HOST, path),
            None => text
                .rsplit_once(':')
                .ok_or(BadDestination("it is not host:port"))?,
        };
        Self::from_parts(host, Port::Text(port))
    }
}

impl Destination {
    /// A host and a port, as sources of the original's kind give them.
    pub(crate) fn from_parts(host: &str, port: Port<'_>) -> Result<Self, BadDestination> {
        if host == UNIX_HOST {
            return match port {
                Port::Text(path) if path.starts_with('/') && !path.contains('\0') => {
                    Ok(Self::Unix(path.into()))
                }
                _ => Err(BadDestination(
                    "a unix socket is not given by an absolute path",
                )),
            };
        }
        let (tls, host) = match host.strip_prefix(TLS_SCHEME) {
            Some(host) => (true, host),
            None => (false, host),
        };
        let (number, text_port) = match port {
            Port::Number(number) => (u16::try_from(number).ok(), false),
            Port::Text(text) => {
                let digits = text.trim();
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                (digits.parse().ok().filter(|_| is_number), true)
            }
        };
        let port = number
            .filter(|&port| port != 0)
            .ok_or(BadDestination("its port is not from 1 to 65535"))?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
            .trim();
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]@".contains(c))
        {
            return Err(BadDestination("its host is no name or address"));
        }
        Ok(Self::Tcp {
            address: HostPort {
                host: host.to_owned(),
                port,
            },
            tls,
            text_port,
        })
    }
}

/// Why a source cannot say where a token leads; the text is for the log, and has no secrets in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What knows where tokens lead.
#[derive(Debug)]
pub(crate) enum TokenSource {
    /// `TokenFile` and `ReadOnlyTokenFile`.
    Lines(Lines),
    /// `TokenFileName`.
    Files(Files),
    /// `UnixDomainSocketDirectory`.
    Sockets(Sockets),
    /// `JWTTokenApi`.
    Jwt(Arc<JwtSource>),
    /// `Exec`, and classes of Python.
    Plugin(Plugin),
    /// `BaseTokenAPI` and `JSONTokenApi`.
    Api(ApiSource),
    /// `TokenRedis`.
    Redis(RedisSource),
}

impl TokenSource {
    /// The one of a configuration; `python` has its class, if it is one of Python.
    ///
    /// # Errors
    /// It cannot work, and why.
    pub(crate) async fn open(config: TokenSourceConfig, python: Option<&Plugin>) -> Result<Self> {
        Ok(match config {
            TokenSourceConfig::File { path, once } => Self::Lines(Lines::open(path, once)?),
            TokenSourceConfig::FileName(path) => Self::Files(Files::in_directory(path)?),
            TokenSourceConfig::Sockets(path) => Self::Sockets(Sockets::in_directory(path)?),
            TokenSourceConfig::Jwt(path) => Self::Jwt(Arc::new(JwtSource::new(path)?)),
            TokenSourceConfig::Exec(command) => {
                Self::Plugin(Plugin::exec(&command, plugin::Kind::Token).await?)
            }
            TokenSourceConfig::Api { url, json } => Self::Api(ApiSource::new(&url, json)?),
            TokenSourceConfig::Redis(source) => Self::Redis(RedisSource::new(&source)?),
            TokenSourceConfig::Python(_) => {
                Self::Plugin(python.cloned().context("Python does not run")?)
            }
        })
    }

    /// How many descriptors it may keep beside those that it needs for a client who waits.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Api(_) => ApiSource::DESCRIPTORS,
            Self::Redis(_) => RedisSource::DESCRIPTORS,
            Self::Lines(_) | Self::Files(_) | Self::Sockets(_) | Self::Jwt(_) => 0,
            // It has been started, and so is counted with what is open.
            Self::Plugin(_) => 0,
        }
    }

    /// Checks that what is read again when it has changed can be with the rights that we have by now.
    ///
    /// # Errors
    /// It cannot, and then nobody would be let in.
    pub(crate) fn check_rights(&self) -> Result<()> {
        let path = match self {
            Self::Lines(lines) => lines.path(),
            Self::Jwt(source) => source.path(),
            _ => None,
        };
        match path.map(|path| (path, access(path, AccessFlags::R_OK))) {
            Some((path, Err(Errno::EACCES))) => Err(anyhow!(
                "'{}' has to be readable for the user that we run as, not only for root: let its group read it",
                path.display()
            )),
            _ => Ok(()),
        }
    }

    /// Reads its file again, and says in the log what came of it. Returns whether it has one that it keeps in memory.
    pub(crate) fn reload(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.reload(),
            Self::Jwt(source) => source.reload(),
            Self::Files(_) | Self::Sockets(_) | Self::Plugin(_) | Self::Api(_) | Self::Redis(_) => {
                return false;
            }
        }
        true
    }

    /// Ends what was started for it.
    pub(crate) async fn end(&self) {
        if let Self::Plugin(plugin) = self {
            plugin.end().await;
        }
    }

    /// Where a token leads, if it is known.
    ///
    /// # Errors
    /// The source does not know at the moment, and why.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        match self {
            Self::Lines(lines) => lines.look_up(token).await,
            Self::Files(files) => files.look_up(token).await,
            Self::Sockets(sockets) => sockets.look_up(token).await,
            Self::Jwt(source) => {
                let (source, token) = (Arc::clone(source), token.clone());
                directory::blocking(move || source.look_up(&token)).await
            }
            Self::Plugin(plugin) => plugin.look_up(token).await,
            Self::Api(service) => service.look_up(token).await,
            Self::Redis(redis) => redis.look_up(token).await,
        }
    }
}

/// The token of a request: `token=` of its query, or the host that it asks for.
///
/// # Errors
/// There is none, or more than one; the text is for the client.
pub(crate) fn of<B>(request: &Request<B>, from_host: bool) -> Result<Token, &'static str> {
    let found = if from_host {
        host(request)?
    } else {
        in_query(request.uri().query().unwrap_or_default())?
    };
    found
        .filter(|text| !text.is_empty())
        .map(|text| Token::new(text.into_owned()))
        .ok_or("Token not present")
}

/// `token=` of a query. Whoever stands before us may look at another one than we do, so there is to be one only.
fn in_query(query: &str) -> Result<Option<Cow<'_, str>>, &'static str> {
    let mut tokens = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| decoded(name) == "token")
        .map(|(_, value)| decoded(value));
    let first = tokens.next();
    match tokens.all(|other| Some(&other) == first.as_ref()) {
        true => Ok(first),
        false => Err("More than one token"),
    }
}

/// What a part of a query means (the URL standard, 5.1).
pub(crate) fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let text = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&text).decode_utf8_lossy().into_owned())
}

/// The host that a request is for, without its port, and an IPv6 address without its brackets.
fn host<B>(request: &Request<B>) -> Result<Option<Cow<'_, str>>, &'static str> {
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let mut lines = request.headers().get_all(HOST).iter();
    let line = lines.next().map(|line| line.to_str().unwrap_or_default());
    // As above: of several it is not certain which one others look at (RFC 9112, 3.2).
    if lines.next().is_some()
        || line.is_some() && authority.is_some_and(|other| Some(other) != line)
    {
        return Err("More than one host");
    }
    let line = line.or(authority);
    Ok(line.map(|line| {
        let host = match line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            Some((address, _)) => address,
            None => line.split(':').next().unwrap_or_default(),
        };
        Cow::Borrowed(host)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<Destination, &'static str> {
        text.parse().map_err(|BadDestination(text)| text)
    }

    fn tcp(host: &str, port: u16, tls: bool) -> Result<Destination, &'static str> {
        Ok(Destination::Tcp {
            address: HostPort {
                host: host.to_owned(),
                port,
            },
            tls,
            text_port: true,
        })
    }

    #[test]
    fn every_form_of_a_target_is_understood() {
        assert_eq!(target("host:5900"), tcp("host", 5900, false));
        assert_eq!(target(" 10.0.0.1:1 \r"), tcp("10.0.0.1", 1, false));
        assert_eq!(target("[::1]:5900"), tcp("::1", 5900, false));
        assert_eq!(target("::1:5900"), tcp("::1", 5900, false));
        assert_eq!(target("tls://host:443"), tcp("host", 443, true));
        assert_eq!(target("tls://[::1]:443"), tcp("::1", 443, true));
        assert_eq!(
            target("unix_socket:/a/b:c"),
            Ok(Destination::Unix("/a/b:c".into()))
        );
        let number = Destination::from_parts("h", Port::Number(5));
        assert!(matches!(
            number,
            Ok(Destination::Tcp {
                text_port: false,
                ..
            })
        ));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "host",
            ":5900",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:-1",
            "host:1x",
            "tls://:1",
            "unix_socket:",
            "unix_socket:relative",
            "unix_socket:/a\0b",
            "a b:1",
            "http://h:1",
            "u@h:1",
            "h/p:1",
            "[]:1",
        ] {
            assert!(target(text).is_err(), "{text:?}");
        }
        assert!(Destination::from_parts("h", Port::Number(65536)).is_err());
        assert!(Destination::from_parts("unix_socket", Port::Number(1)).is_err());
    }

    fn token(uri: &str, hosts: &[&str], from_host: bool) -> Result<String, &'static str> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        of(&request.body(()).unwrap(), from_host).map(|token| token.expose().to_owned())
    }

    #[test]
    fn a_token_is_what_the_query_says() {
        for (uri, meant) in [
            ("/?token=abc", "abc"),
            ("/websockify?a=b&token=abc&c", "abc"),
            ("/?token=a%2Fb%26c%3D+d%23", "a/b&c= d#"),
            ("/?%74oken=%E2%82%AC", "€"),
            ("/?token=a=b", "a=b"),
            ("/?token=a&token=a", "a"),
        ] {
            assert_eq!(token(uri, &["h"], false).as_deref(), Ok(meant), "{uri}");
        }
        for uri in [
            "/",
            "/?token",
            "/?token=",
            "/token=a",
            "/?Token=a",
            "/?xtoken=a",
        ] {
            assert_eq!(token(uri, &["h"], false), Err("Token not present"), "{uri}");
        }
        for uri in [
            "/?token=a&token=b",
            "/?token=a&%74oken=b",
            "/?token=a&token=",
        ] {
            assert_eq!(
                token(uri, &["h"], false),
                Err("More than one token"),
                "{uri}"
            );
        }
    }

    #[test]
    fn a_host_is_a_token_without_its_port() {
        for (host, meant) in [
            ("a.example", "a.example"),
            ("a.example:80", "a.example"),
            ("[::1]:80", "::1"),
            ("[fe80::1]", "fe80::1"),
        ] {
            assert_eq!(token("/", &[host], true).as_deref(), Ok(meant));
        }
        assert_eq!(token("http://a:1/", &["a:1"], true).as_deref(), Ok("a"));
        assert_eq!(token("http://a:1/", &[], true).as_deref(), Ok("a"));
        assert_eq!(token("http://a/", &["b"], true), Err("More than one host"));
        assert_eq!(token("/", &["a", "b"], true), Err("More than one host"));
        for hosts in [&[][..], &[""], &[":80"], &["[]:1"]] {
            assert_eq!(
                token("/?token=a", hosts, true),
                Err("Token not present"),
                "{hosts:?}"
            );
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let short = Token::new("fifteen letters".to_owned());
        assert_eq!(format!("{short:?} {short}"), "… …");
        let long = Token::new("0123456789abcd\nx".to_owned());
        assert_eq!(format!("{long:?}"), "…cd\\nx");
    }
}
