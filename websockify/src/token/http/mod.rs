//! `BaseTokenAPI` and `JSONTokenApi`: a service that is asked by HTTP, and answers with the target in text or in JSON.
//!
//! hyper speaks HTTP, as it does with our own clients. What a client of its own would add to that is little, and here: following
//! redirections, which must not carry credentials to others, and keeping connections.

mod connection;
mod url;

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::runtime::Handle;

use super::answer::{self, Form};
use super::service::within;
use super::{Destination, Token, Unavailable};
use crate::secret::Secret;

use connection::{Connections, MOST_KEPT};
use url::{Origin, Template, Url};

/// So many redirections are followed for one question.
const MAX_REDIRECTIONS: usize = 5;

/// A service that is asked by HTTP.
pub(crate) struct ApiSource {
    template: Template,
    form: Form,
    client: Arc<Client>,
    /// Where it is asked.
    runtime: Handle,
}

/// Who asks.
struct Client {
    connections: Connections,
    /// The service's credentials, which are for nobody else.
    credentials: Option<HeaderValue>,
}

impl ApiSource {
    /// How many descriptors it keeps at most that nothing is asked on.
    pub(crate) const DESCRIPTORS: usize = MOST_KEPT;

    /// One with this URL, in which `%s` stands for the token. It is asked in the runtime that this is called in.
    ///
    /// # Errors
    /// It is no URL that can be asked, and why.
    pub(crate) fn new(url: &Secret, json: bool) -> Result<Self> {
        let text = std::str::from_utf8(url.expose()).context("the URL is not UTF-8")?;
        let parsed = Template::parse(text.trim());
        let (template, user) =
            parsed.map_err(|reason| anyhow!("the URL cannot be asked: {reason}"))?;
        let client = Client {
            connections: Connections::new(),
            credentials: user.as_deref().map(basic).transpose()?,
        };
        client.connections.prepare(template.origin())?;
        Ok(Self {
            template,
            form: if json { Form::Json } else { Form::Text },
            client: Arc::new(client),
            runtime: Handle::current(),
        })
    }

    /// Asks where a token leads.
    ///
    /// # Errors
    /// There is no answer, or none that says whether the token is known.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let Some(url) = self.template.fill(token) else {
            return Ok(None);
        };
        let client = Arc::clone(&self.client);
        let answer = within(&self.runtime, async move { client.get(url).await }).await?;
        if is_known(answer.status(), token)? {
            Ok(answer::read(token, answer.body(), self.form))
        } else {
            Ok(None)
        }
    }
}

/// Shows whom it asks, and no more of the URL.
impl fmt::Debug for ApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.template.origin().to_string();
        f.debug_tuple("ApiSource").field(&origin).finish()
    }
}

/// The header for user information of a URL.
fn basic(user: &str) -> Result<HeaderValue> {
    let colon = if user.contains(':') { "" } else { ":" };
    let user = format!("{user}{colon}");
    let encoded = STANDARD.encode(percent_decode_str(&user).collect::<Vec<_>>());
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether a service knows the token, by the status of its answer.
fn is_known(status: StatusCode, token: &Token) -> Result<bool, Unavailable> {
    match status {
        _ if status.as_u16() < 400 => Ok(true),
        // It has not looked.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => Err(unavailable(status)),
        _ if status.as_u16() >= 500 => Err(unavailable(status)),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(false),
        // It may be that we are not welcome, or ask for something else than is meant.
        _ => {
            let status = status.as_u16();
            tracing::info!("HTTP status {status} for the token {token}");
            Ok(false)
        }
    }
}

fn unavailable(status: StatusCode) -> Unavailable {
    Unavailable(format!("HTTP status {}", status.as_u16()))
}

impl Client {
    /// Asks for a page, and for the one that it redirects to.
    async fn get(&self, mut url: Url) -> Result<Response<Bytes>, Unavailable> {
        let mut headers = headers(self.credentials.as_ref());
        for _ in 0..=MAX_REDIRECTIONS {
            let answer = self.connections.get(&url, &headers).await?;
            let Some(next) = redirection(&url, &answer)? else {
                return Ok(answer);
            };
            if !may_be_told(&url.origin, &next.origin) {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(Unavailable(format!(
            "it redirects more than {MAX_REDIRECTIONS} times"
        )))
    }
}

/// What every request comes with.
fn headers(credentials: Option<&HeaderValue>) -> HeaderMap {
    let agent = concat!("websockify/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    if let Some(credentials) = credentials {
        headers.insert(AUTHORIZATION, credentials.clone());
    }
    headers
}

/// Where an answer says to ask instead.
fn redirection(url: &Url, answer: &Response<Bytes>) -> Result<Option<Url>, Unavailable> {
    let redirects = matches!(answer.status().as_u16(), 301..=303 | 307 | 308);
    let Some(location) = answer.headers().get(LOCATION).filter(|_| redirects) else {
        return Ok(None);
    };
    let refuse = |reason: &str| Err(Unavailable(reason.to_owned()));
    match url.join(location.as_bytes()) {
        None => refuse("it redirects to what is not HTTP"),
        Some(next) if url.origin.tls && !next.origin.tls => {
            refuse("it redirects from https to http, where others could read the token")
        }
        next => Ok(next),
    }
}

/// Whether a redirection takes credentials along: to the same origin, or to the same host's usual port with TLS.
fn may_be_told(from: &Origin, to: &Origin) -> bool {
    let is_usual = |origin: &Origin| origin.address.port == if origin.tls { 443 } else { 80 };
    let same_host = from.address.host.eq_ignore_ascii_case(&to.address.host);
    let upgraded = is_usual(from) && is_usual(to) && to.tls;
    same_host && (from.tls == to.tls && from.address.port == to.address.port || upgraded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        let (template, _) = Template::parse(&format!("{text}/%s")).unwrap();
        template.origin().clone()
    }

    #[test]
    fn credentials_are_for_the_service_and_nobody_else() {
        for (from, to) in [
            ("http://h", "http://h:80"),
            ("http://h:81", "http://H:81"),
            ("https://h", "https://h:443"),
            ("http://h", "https://h"),
            ("http://[::1]:80", "https://[::1]"),
        ] {
            assert!(may_be_told(&origin(from), &origin(to)), "{from} {to}");
        }
        for (from, to) in [
            ("http://h", "http://x"),
            ("http://h", "http://h.x"),
            ("http://h", "http://h:81"),
            ("http://h:81", "http://h"),
            ("http://h", "https://h:444"),
            ("http://h:81", "https://h"),
            ("http://h", "https://x"),
            ("https://h", "http://h"),
        ] {
            assert!(!may_be_told(&origin(from), &origin(to)), "{from} {to}");
        }
    }

    #[tokio::test]
    async fn a_source_shows_whom_it_asks_and_no_more() {
        let url = Secret::from(b"http://user:secret@h:81/secret/%s?secret".to_vec());
        let source = ApiSource::new(&url, true).unwrap();
        assert_eq!(format!("{source:?}"), "ApiSource(\"http://h:81\")");
    }
}
