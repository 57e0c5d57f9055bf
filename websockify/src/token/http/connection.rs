//! Connections with HTTP services, directly or through a proxy: made when they are needed, and kept for a while for whatever is
//! asked next. A question that is given up takes its connection with it.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Request, Response, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::url::{Origin, Url};
use crate::addr::HostPort;
use crate::config::Trust;
use crate::stream::{Plain, Stream};
use crate::sys;
use crate::tls::{self, Connector};
use crate::token::Unavailable;
use crate::token::answer::MAX_ANSWER;
use crate::token::service::{Place, encrypt, host_and_port};

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// So many connections are kept that nothing is asked on.
pub(super) const MOST_KEPT: usize = 16;
/// So long one is kept: whatever is on the way to a service may forget of it.
const KEPT_FOR: Duration = Duration::from_secs(20);

/// Connections with whichever services are asked.
pub(super) struct Connections {
    /// Those that nothing is asked on; the latest is the last.
    kept: Mutex<Vec<Kept>>,
    /// What the environment says of proxies.
    proxies: Matcher,
    /// For services with TLS, once there is one.
    connector: OnceCell<Connector>,
}

/// A connection that nothing is asked on.
struct Kept {
    origin: Origin,
    since: Instant,
    sender: Sender,
}

type Sender = SendRequest<Empty<Bytes>>;

/// Whom a service is asked through.
struct Proxy {
    address: HostPort,
    /// Basic credentials.
    credentials: Option<HeaderValue>,
}

/// Why there is no answer.
enum Failure {
    /// The connection has ended before there was any.
    Ended(Unavailable),
    /// It is no good.
    Bad(Unavailable),
}

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        let (Failure::Ended(reason) | Failure::Bad(reason)) = failure;
        reason
    }
}

impl Connections {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            kept: Mutex::default(),
            proxies: Matcher::from_env(),
            connector: OnceCell::new(),
        }
    }

    /// Makes sure that a service of this origin can be asked, if it answers.
    ///
    /// # Errors
    /// It cannot, and why.
    pub(super) fn prepare(&self, origin: &Origin) -> anyhow::Result<()> {
        self.proxy(origin)
            .map_err(|Unavailable(reason)| anyhow::anyhow!(reason))?;
        if origin.tls && !self.connector.initialized() {
            _ = self.connector.set(Connector::new(&Trust::System)?);
        }
        Ok(())
    }

    /// Asks for a page, and returns all of the answer. A connection that the service has closed meanwhile is replaced.
    pub(super) async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response<Bytes>, Unavailable> {
        let proxy = self.proxy(&url.origin)?;
        let request = || request(url, headers, proxy.as_ref());
        if let Some(sender) = self.take(&url.origin) {
            match self.ask(sender, &url.origin, request()?).await {
                Err(Failure::Ended(_)) => {}
                answer => return Ok(answer?),
            }
        }
        let sender = self.connect(&url.origin, proxy.as_ref()).await?;
        Ok(self.ask(sender, &url.origin, request()?).await?)
    }

    async fn ask(
        &self,
        mut sender: Sender,
        origin: &Origin,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Bytes>, Failure> {
        let ready = poll_fn(|cx| sender.poll_ready(cx)).await;
        ready.map_err(|error| Failure::Ended(explain(&error)))?;
        let answer = sender.send_request(request).await.map_err(|error| {
            let reason = explain(&error);
            if error.is_parse() {
                Failure::Bad(reason)
            } else {
                Failure::Ended(reason)
            }
        })?;
        let (head, body) = answer.into_parts();
        let body = whole(body).await.map_err(Failure::Bad)?;
        self.keep(Kept {
            origin: origin.clone(),
            since: Instant::now(),
            sender,
        });
        Ok(Response::from_parts(head, body))
    }

    /// A connection that was kept and is still good, as far as is known.
    fn take(&self, origin: &Origin) -> Option<Sender> {
        let mut kept = self.lock();
        kept.retain(|kept| !kept.sender.is_closed() && kept.since.elapsed() < KEPT_FOR);
        let found = kept.iter().rposition(|kept| kept.origin == *origin)?;
        Some(kept.remove(found).sender)
    }

    fn keep(&self, connection: Kept) {
        let mut kept = self.lock();
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push(connection);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self, origin: &Origin, proxy: Option<&Proxy>) -> Result<Sender, Unavailable> {
        let address = proxy.map_or(&origin.address, |proxy| &proxy.address);
        let socket = Place::Tcp(address.clone()).connect().await?;
        let stream = if origin.tls {
            let socket = match proxy {
                Some(proxy) => tunnel(socket, &origin.address, proxy).await?,
                None => socket,
            };
            encrypt(socket, self.connector().await?, &origin.address).await?
        } else {
            Stream::Plain(socket)
        };
        let (sender, connection) = begin(stream).await?;
        // It ends with its sender; what goes wrong is told there.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connector(&self) -> Result<&Connector, Unavailable> {
        let read = || async {
            // It reads files.
            spawn_blocking(|| Connector::new(&Trust::System))
                .await
                .map_err(anyhow::Error::from)?
        };
        self.connector
            .get_or_try_init(read)
            .await
            .map_err(|error| Unavailable(format!("cannot set up TLS with the service: {error:#}")))
    }

    /// Whom the environment says to ask through.
    fn proxy(&self, origin: &Origin) -> Result<Option<Proxy>, Unavailable> {
        let uri = format!("{origin}/").parse::<Uri>();
        let Some(found) = uri.ok().and_then(|uri| self.proxies.intercept(&uri)) else {
            return Ok(None);
        };
        if found.uri().scheme_str() != Some("http") {
            return Err(Unavailable(
                "the environment names a proxy that does not speak plain HTTP, which is not supported; NO_PROXY makes exceptions"
                    .to_owned(),
            ));
        }
        let authority = found
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str());
        let address = host_and_port(authority, 80).map_err(|reason| {
            Unavailable(format!("the proxy of the environment is no good: {reason}"))
        })?;
        Ok(Some(Proxy {
            address,
            credentials: found.basic_auth().cloned(),
        }))
    }
}

/// A request for a page with these headers. A proxy is told the whole URL, unless it is to know nothing of it.
fn request(
    url: &Url,
    headers: &HeaderMap,
    proxy: Option<&Proxy>,
) -> Result<Request<Empty<Bytes>>, Unavailable> {
    let proxy = proxy.filter(|_| !url.origin.tls);
    let target = match proxy {
        Some(_) => format!("{}{}", url.origin, url.path),
        None => url.path.clone(),
    };
    let mut request = Request::get(target).header(HOST, url.origin.authority());
    if let Some(own) = request.headers_mut() {
        own.extend(headers.clone());
        if let Some(credentials) = proxy.and_then(|proxy| proxy.credentials.clone()) {
            own.insert(PROXY_AUTHORIZATION, credentials);
        }
    }
    request.body(Empty::new()).map_err(|_| {
        Unavailable("the URL is too long or has something in it that cannot be sent".to_owned())
    })
}

/// A connection through a proxy to the host of this address (RFC 9110, 9.3.6).
async fn tunnel(socket: Plain, address: &HostPort, proxy: &Proxy) -> Result<Plain, Unavailable> {
    let mut request = Request::connect(address.to_string()).header(HOST, address.to_string());
    if let Some(credentials) = &proxy.credentials {
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let request = request.body(Empty::new());
    let request = request.map_err(|_| Unavailable("the proxy cannot be asked".to_owned()))?;
    let (mut sender, connection) = begin(socket).await?;
    // Nothing else is asked: the connection is over with the answer, or is ours.
    let answer = async move {
        sender
            .send_request(request)
            .await
            .map(|answer| answer.status())
    };
    let (status, rest) = tokio::join!(answer, connection.without_shutdown());
    let status = status.map_err(|error| explain(&error))?;
    if !status.is_success() {
        return Err(Unavailable(format!(
            "the proxy answers HTTP status {}",
            status.as_u16()
        )));
    }
    match rest {
        Ok(rest) if rest.read_buf.is_empty() => Ok(rest.io.into_inner()),
        _ => Err(Unavailable(
            "the proxy does not let through to the service".to_owned(),
        )),
    }
}

/// Begins to speak HTTP.
async fn begin<S>(stream: S) -> Result<(Sender, Connection<TokioIo<S>, Empty<Bytes>>), Unavailable>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| explain(&error))
}

/// All of a body that is not too long.
async fn whole(body: Incoming) -> Result<Bytes, Unavailable> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unavailable(format!(
            "the answer is longer than {} KiB",
            MAX_ANSWER / 1024
        ))),
        Err(error) => Err(match error.downcast_ref() {
            Some(error) => explain(error),
            None => Unavailable("the answer cannot be read".to_owned()),
        }),
    }
}

/// What went wrong with a connection, in words that have nothing of the URL.
fn explain(error: &hyper::Error) -> Unavailable {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    Unavailable(match cause {
        Some(cause) => format!(
            "the connection with the service broke: {}",
            tls::explain(cause).unwrap_or_else(|| sys::describe(cause))
        ),
        None if error.is_parse_too_large() => {
            format!(
                "the head of the answer is longer than {} KiB",
                MAX_HEAD / 1024
            )
        }
        None if error.is_parse() => "what the service answers is not HTTP".to_owned(),
        None => "the service has closed the connection before it had answered".to_owned(),
    })
}
