//! Who is let in, and where to. First it is asked who somebody is, then where their token leads: so nobody learns of tokens who is
//! not let in. Plugins want to know where somebody goes, so tokens are looked up before they are asked; of a program, nobody learns what
//! came of that who is not let in. A class of Python is not asked at all when there is no target, as with the original.
//!
//! Nothing that is asked can hold up others: each question has its time, and what does not answer is told to the log once.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::Request;
use hyper::header::HeaderMap;
use tokio::time::{Instant, timeout};

use crate::auth::{Authenticator, Denied, Refused, Visitor, without_certificate_headers};
use crate::config::{AuthConfig, Door, ProxyConfig, RouteConfig, TargetTls, TokenConfig, Trust};
use crate::crowd::{Standing, Visit};
use crate::listener::Peer;
use crate::metrics::{self, Answer, LookUp, Reason};
use crate::origin::AllowedOrigins;
use crate::outage::Outage;
use crate::plugin::{self, Plugin};
use crate::proxy::Contradiction;
use crate::target::Target;
use crate::tls::Connector;
use crate::token::{self, Destination, Token, TokenSource, Unavailable};
use crate::wrap::Status;

/// What every client has to pass.
#[derive(Debug)]
pub(crate) struct Gate {
    origins: AllowedOrigins,
    guard: Option<Guard>,
    route: Route,
    /// How long each question may take.
    limit: Duration,
}

/// Who is asked who somebody is.
#[derive(Debug)]
struct Guard {
    authenticator: Authenticator,
    /// Whether it is also asked of requests for files.
    web: bool,
    outage: Outage,
}

/// Where clients go.
#[derive(Debug)]
enum Route {
    /// All of them here.
    Fixed(Arc<Target>),
    /// Each where its token leads.
    Tokens(Box<Tokens>),
}

/// What knows where tokens lead.
#[derive(Debug)]
struct Tokens {
    source: TokenSource,
    config: TokenConfig,
    tls: TargetTls,
    /// For targets with TLS, once there is one.
    connector: OnceLock<Connector>,
    outage: Outage,
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// It cannot be said whose request it is.
    Contradiction,
    /// The page is of an origin that is not let in.
    Origin,
    /// An authenticator does not let them in.
    Refused(Refused),
    /// There is no token, for this reason.
    NoToken(&'static str),
    /// The token leads nowhere.
    UnknownToken(Token),
    /// What has to be asked does not answer.
    Unavailable,
    /// There are enough connections of their address.
    TooMany,
    /// There has been the one session that there may be.
    Full,
}

impl Closed {
    /// The reason as it is counted.
    pub(crate) fn counted(&self) -> Reason {
        match self {
            Self::Origin => Reason::Origin,
            Self::Refused(_) => Reason::Auth,
            Self::NoToken(_) => Reason::TokenMissing,
            Self::UnknownToken(_) => Reason::TokenUnknown,
            Self::Unavailable => Reason::Unavailable,
            Self::Contradiction => Reason::Proxy,
            Self::TooMany => Reason::TooMany,
            Self::Full => Reason::Full,
        }
    }
}

/// The reason, for the log.
impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction => {
                f.write_str("the Forwarded and X-Forwarded-For headers name different clients")
            }
            Self::Origin => f.write_str("the page's origin is not let in"),
            Self::Refused(refused) => write!(f, "{}", refused.message.escape_debug()),
            Self::NoToken(reason) => f.write_str(reason),
            Self::UnknownToken(token) => write!(f, "the token {token} is not known"),
            Self::Unavailable => f.write_str("what knows them does not answer"),
            Self::TooMany => f.write_str("too many connections of this address"),
            Self::Full => f.write_str("no more connections are taken"),
        }
    }
}

/// The authenticator of a configuration, if there is one; `python` has its class, if it is one of Python.
async fn open_authenticator(
    config: Option<&AuthConfig>,
    python: Option<&Plugin>,
) -> Result<Option<Authenticator>> {
    let Some(config) = config else {
        return Ok(None);
    };
    let authenticator = Authenticator::open(config.authenticator.clone(), python).await;
    authenticator
        .map(Some)
        .with_context(|| format!("--auth-plugin {}", config.name))
}

/// What knows tokens, in the same way.
async fn open_source(
    config: Option<&TokenConfig>,
    python: Option<&Plugin>,
) -> Result<Option<TokenSource>> {
    let Some(config) = config else {
        return Ok(None);
    };
    let source = TokenSource::open(config.source.clone(), python).await;
    source
        .map(Some)
        .with_context(|| format!("--token-plugin {}", config.name))
}

impl Gate {
    /// One for this configuration; `wrapped` is the program's, if there is one. Between what reads files and what starts programs
    /// `when_read` is called: these may be to have less rights than those are to be read with.
    ///
    /// # Errors
    /// What is to be asked cannot be, and why; or what `when_read` says.
    pub(crate) async fn open(
        door: Door,
        route: RouteConfig,
        tls: TargetTls,
        wrapped: Option<Status>,
        when_read: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let always = (tls.always || matches!(tls.trust, Trust::File(_)))
            .then(|| Connector::new(&tls.trust))
            .transpose()
            .context("cannot set up TLS with the target")?;
        let tokens = match &route {
            RouteConfig::Tokens(tokens) => Some(tokens),
            RouteConfig::Fixed(_) => None,
        };
        let auth = door.auth.as_ref();
        let read_tokens = tokens.filter(|config| !config.source.is_program());
        let read_auth = auth.filter(|config| !config.authenticator.is_program());
        let mut authenticator = open_authenticator(read_auth, None).await?;
        let mut source = open_source(read_tokens, None).await?;
        when_read()?;
        if let Some((source, config)) = source.as_ref().zip(tokens) {
            let checked = source.check_rights();
            checked.with_context(|| format!("--token-plugin {}", config.name))?;
        }
        let python = plugin::python(tokens, auth, door.look_up_limit).await?;
        if authenticator.is_none() {
            authenticator = open_authenticator(auth, python.as_ref()).await?;
        }
        if source.is_none() {
            source = open_source(tokens, python.as_ref()).await?;
        }
        let guard = authenticator.zip(door.auth);
        let guard = guard.map(|(authenticator, config)| Guard {
            outage: Outage::of(&config.name),
            web: config.web,
            authenticator,
        });
        let route = match (route, source) {
            (RouteConfig::Tokens(config), Some(source)) => Route::Tokens(Box::new(Tokens {
                outage: Outage::of(&config.name),
                source,
                config,
                tls,
                connector: always.map(OnceLock::from).unwrap_or_default(),
            })),
            (RouteConfig::Fixed(target), _) => {
                Route::Fixed(Arc::new(Target::new(target, wrapped, always)))
            }
            (RouteConfig::Tokens(_), None) => bail!("there is nothing that knows tokens"),
        };
        Ok(Self {
            origins: door.origins,
            guard,
            route,
            limit: door.look_up_limit,
        })
    }

    /// Reads the files again that were read, which may take a while; what came of that is in the log. Returns whether there are any.
    pub(crate) fn reload(&self) -> bool {
        let guard = self
            .guard
            .as_ref()
            .is_some_and(|guard| guard.authenticator.reload());
        let tokens = match &self.route {
            Route::Tokens(tokens) => tokens.source.reload(),
            Route::Fixed(_) => false,
        };
        guard || tokens
    }

    /// Ends what was started to be asked, in a moment.
    pub(crate) async fn end(&self) {
        if let Some(guard) = &self.guard {
            guard.authenticator.end().await;
        }
        if let Route::Tokens(tokens) = &self.route {
            tokens.source.end().await;
        }
    }

    /// How long all the questions of one client may take together.
    pub(crate) fn patience(&self) -> Duration {
        self.limit * 2
    }

    /// How many descriptors it may keep beside those of clients.
    pub(crate) fn descriptors(&self) -> usize {
        match &self.route {
            Route::Fixed(_) => 0,
            Route::Tokens(tokens) => tokens.source.descriptors(),
        }
    }

    /// Where all clients go, if there is such a place.
    pub(crate) fn fixed_target(&self) -> Option<Arc<Target>> {
        match &self.route {
            Route::Fixed(target) => Some(Arc::clone(target)),
            Route::Tokens(_) => None,
        }
    }

    /// Whether a client's certificate matters.
    pub(crate) fn looks_at_certificates(&self) -> bool {
        self.guard.is_some()
    }

    /// Whether pages of the origin that a request tells are let in.
    pub(crate) fn permits_origin(&self, headers: &HeaderMap) -> bool {
        self.origins.permit(headers)
    }

    /// Where a client goes, if it is let in.
    async fn pass<B>(
        &self,
        request: &Request<B>,
        peer: Peer,
        common_name: Option<&str>,
    ) -> Result<Arc<Target>, Closed> {
        let headers = without_certificate_headers(request.headers());
        let visitor = Visitor {
            peer,
            headers: &headers,
            path: path_of(request),
            file: false,
            common_name,
        };
        let Some(guard) = &self.guard else {
            return Ok(self.target(request).await?.0);
        };
        if !guard.authenticator.looks_at_targets() {
            self.ask(guard, &visitor, None).await?;
            return Ok(self.target(request).await?.0);
        }
        let found = self.target(request).await;
        if guard.authenticator.needs_targets() && found.is_err() {
            return Ok(found?.0);
        }
        // The answer of the look-up is for those who are let in.
        let destination = found
            .as_ref()
            .ok()
            .and_then(|(_, destination)| destination.as_ref());
        self.ask(guard, &visitor, destination).await?;
        Ok(found?.0)
    }

    /// Asks who somebody is.
    async fn ask(
        &self,
        guard: &Guard,
        visitor: &Visitor<'_>,
        destination: Option<&Destination>,
    ) -> Result<(), Closed> {
        let began = Instant::now();
        let asking = guard.authenticator.authenticate(visitor, destination);
        let answer = timeout(self.limit, asking)
            .await
            .unwrap_or_else(|_| Err(Denied::Unavailable(self.no_answer())));
        let outcome = match &answer {
            Ok(()) => Answer::Allowed,
            Err(Denied::Refused(_)) => Answer::Refused,
            Err(Denied::Unavailable(_)) => Answer::Unavailable,
        };
        metrics::answered(outcome, began.elapsed());
        match answer {
            Err(Denied::Unavailable(reason)) => {
                guard.outage.met(reason);
                Err(Closed::Unavailable)
            }
            answer => {
                guard.outage.over();
                answer.map_err(|denied| match denied {
                    Denied::Refused(refused) => Closed::Refused(refused),
                    Denied::Unavailable(_) => Closed::Unavailable,
                })
            }
        }
    }

    /// Where a request goes, as a target and as plugins are told.
    async fn target<B>(
        &self,
        request: &Request<B>,
    ) -> Result<(Arc<Target>, Option<Destination>), Closed> {
        let tokens = match &self.route {
            Route::Fixed(target) => return Ok((Arc::clone(target), target.destination())),
            Route::Tokens(tokens) => tokens,
        };
        let token = token::of(request, tokens.config.from_host).map_err(Closed::NoToken)?;
        let began = Instant::now();
        let looking = tokens.source.look_up(&token);
        let answer = timeout(self.limit, looking)
            .await
            .unwrap_or_else(|_| Err(Unavailable(self.no_answer())));
        let outcome = match &answer {
            Ok(Some(_)) => LookUp::Found,
            Ok(None) => LookUp::Unknown,
            Err(_) => LookUp::Unavailable,
        };
        metrics::looked_up(outcome, began.elapsed());
        match answer.and_then(|found| found.map(|found| tokens.target(found)).transpose()) {
            Ok(found) => {
                tokens.outage.over();
                found.ok_or(Closed::UnknownToken(token))
            }
            Err(Unavailable(reason)) => {
                tokens.outage.met(reason);
                Err(Closed::Unavailable)
            }
        }
    }

    fn no_answer(&self) -> String {
        format!("no answer within {} s", self.limit.as_secs_f64())
    }
}

impl Tokens {
    /// What a token leads to.
    fn target(
        &self,
        destination: Destination,
    ) -> Result<(Arc<Target>, Option<Destination>), Unavailable> {
        let encrypted =
            self.tls.always || matches!(destination, Destination::Tcp { tls: true, .. });
        let connector = encrypted.then(|| self.connector()).transpose()?;
        let target = Target::at(destination.clone(), self.config.prefer_ipv6, connector);
        Ok((Arc::new(target), Some(destination)))
    }

    fn connector(&self) -> Result<Connector, Unavailable> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector.clone());
        }
        let connector = Connector::new(&self.tls.trust).map_err(|error| {
            Unavailable(format!("cannot set up TLS with the target: {error:#}"))
        })?;
        Ok(self.connector.get_or_init(|| connector).clone())
    }
}

/// The gate for one connection.
pub(crate) struct Doorkeeper<'a> {
    /// The gate.
    pub(crate) gate: &'a Gate,
    /// Who is at the other end of the connection.
    pub(crate) peer: Peer,
    /// What is believed of its requests, if it is a proxy whose word counts.
    pub(crate) proxies: Option<&'a ProxyConfig>,
    /// The common name of the certificate that they have shown, if that was trusted.
    pub(crate) common_name: Option<String>,
    /// The connection among the others.
    pub(crate) visit: &'a Visit,
    /// Whether the address at the other end has too many of them.
    pub(crate) is_one_too_many: bool,
}

impl Doorkeeper<'_> {
    /// Who wants to pass: whoever is at the other end, or whom that names in a request.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Result<Peer, Closed> {
        if self.is_one_too_many {
            return Err(Closed::TooMany);
        }
        let Some(proxies) = self.proxies else {
            return Ok(self.peer);
        };
        proxies
            .client(self.peer, headers)
            .map_err(|Contradiction| Closed::Contradiction)
    }

    /// Where the upgrade of a client leads.
    pub(crate) async fn pass<B>(
        &self,
        client: Peer,
        request: &Request<B>,
    ) -> Result<Arc<Target>, Closed> {
        if !self.gate.permits_origin(request.headers()) {
            return Err(Closed::Origin);
        }
        let target = self
            .gate
            .pass(request, client, self.common_name.as_deref())
            .await?;
        if self.visit.standing(client.address) != Standing::Welcome {
            Err(Closed::TooMany)
        } else if self.visit.admit() {
            Ok(target)
        } else {
            Err(Closed::Full)
        }
    }

    /// Whether the request of a client for a file is let through.
    pub(crate) async fn pass_to_files<B>(
        &self,
        client: Peer,
        request: &Request<B>,
    ) -> Result<(), Closed> {
        let Some(guard) = self.gate.guard.as_ref().filter(|guard| guard.web) else {
            return Ok(());
        };
        let headers = without_certificate_headers(request.headers());
        let visitor = Visitor {
            peer: client,
            headers: &headers,
            path: path_of(request),
            file: true,
            common_name: self.common_name.as_deref(),
        };
        let destination = match &self.gate.route {
            Route::Fixed(target) => target.destination(),
            Route::Tokens(_) => None,
        };
        self.gate.ask(guard, &visitor, destination.as_ref()).await
    }
}

/// Path and query of a request.
fn path_of<B>(request: &Request<B>) -> &str {
    request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
}
