//! Who is let in: the authenticators, each in its own file.

mod basic;
mod certificate;
mod credentials;
mod expected_origin;
mod htpasswd;
mod keyed;

use anyhow::{Context, Result};
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};

use crate::config::AuthenticatorConfig;
use crate::listener::Peer;
use crate::plugin::{self, Plugin};
use crate::token::Destination;

use basic::Basic;
use certificate::CommonNames;
use expected_origin::ExpectedOrigin;
use htpasswd::Htpasswd;

pub(crate) use certificate::without_certificate_headers;
pub(crate) use credentials::Credentials;

/// Whoever wants to be let in, as authenticators see them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor<'a> {
    /// From where they come.
    pub(crate) peer: Peer,
    /// The headers of their request; nothing in them says anything of a certificate, however it is called.
    pub(crate) headers: &'a HeaderMap,
    /// Path and query of their request.
    pub(crate) path: &'a str,
    /// Whether they want a file, and not to go anywhere.
    pub(crate) file: bool,
    /// The common name of the certificate that they have shown, if that was trusted.
    pub(crate) common_name: Option<&'a str>,
}

/// How somebody is told that they are not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// 401, 403, or what a plugin wants.
    pub(crate) status: StatusCode,
    /// What goes with it.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The text, for whoever reads it.
    pub(crate) message: String,
}

/// What came of asking an authenticator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// They are not let in.
    Refused(Refused),
    /// It cannot say: the text is for the log, and has no secrets in it.
    Unavailable(String),
}

impl Refused {
    /// Whoever says who they are may come back.
    pub(crate) fn unauthorized() -> Self {
        let challenge = HeaderValue::from_static("Basic realm=\"Websockify\"");
        Self {
            status: StatusCode::UNAUTHORIZED,
            headers: vec![(WWW_AUTHENTICATE, challenge)],
            message: "Unauthorized".to_owned(),
        }
    }

    /// Not those.
    pub(crate) fn forbidden() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            headers: Vec::new(),
            message: "Forbidden".to_owned(),
        }
    }
}

/// What knows who is let in.
#[derive(Debug)]
pub(crate) enum Authenticator {
    /// `BasicHTTPAuth`.
    Basic(Basic),
    /// `ExpectOrigin`.
    Origin(ExpectedOrigin),
    /// `ClientCertCNAuth`.
    CommonName(CommonNames),
    /// `HtpasswdFile`.
    Htpasswd(Htpasswd),
    /// `Exec`.
    Plugin(Plugin),
    /// A class of Python.
    Python(Plugin),
}

impl Authenticator {
    /// The one of a configuration; `python` has its class, if it is one of Python.
    ///
    /// # Errors
    /// It cannot work, and why.
    pub(crate) async fn open(config: AuthenticatorConfig, python: Option<&Plugin>) -> Result<Self> {
        Ok(match config {
            AuthenticatorConfig::Basic { pair, file } => Self::Basic(Basic::new(&pair, file)?),
            AuthenticatorConfig::Origin(source) => Self::Origin(ExpectedOrigin::new(&source)),
            AuthenticatorConfig::CommonName(source) => Self::CommonName(CommonNames::new(&source)),
            AuthenticatorConfig::Htpasswd(source) => Self::Htpasswd(Htpasswd::new(source)?),
            AuthenticatorConfig::Exec(command) => {
                Self::Plugin(Plugin::exec(&command, plugin::Kind::Auth).await?)
            }
            AuthenticatorConfig::Python(_) => {
                Self::Python(python.cloned().context("Python does not run")?)
            }
        })
    }

    /// Reads its file again, and says in the log what came of it. Returns whether it has one.
    pub(crate) fn reload(&self) -> bool {
        match self {
            Self::Basic(basic) => basic.reload(),
            Self::Htpasswd(htpasswd) => {
                htpasswd.reload();
                true
            }
            Self::Origin(_) | Self::CommonName(_) | Self::Plugin(_) | Self::Python(_) => false,
        }
    }

    /// Ends what was started for it.
    pub(crate) async fn end(&self) {
        if let Self::Plugin(plugin) | Self::Python(plugin) = self {
            plugin.end().await;
        }
    }

    /// Whether it wants to know where somebody goes.
    pub(crate) fn looks_at_targets(&self) -> bool {
        match self {
            Self::Basic(_) | Self::Origin(_) | Self::CommonName(_) | Self::Htpasswd(_) => false,
            Self::Plugin(_) | Self::Python(_) => true,
        }
    }

    /// Whether it is to be asked only of those who go somewhere. Classes made for the original may rely on a target, since that looks
    /// tokens up first.
    pub(crate) fn needs_targets(&self) -> bool {
        matches!(self, Self::Python(_))
    }

    /// Whether somebody is let in.
    ///
    /// # Errors
    /// They are not, or it cannot say.
    pub(crate) async fn authenticate(
        &self,
        visitor: &Visitor<'_>,
        destination: Option<&Destination>,
    ) -> Result<(), Denied> {
        match self {
            Self::Basic(basic) => basic.authenticate(visitor),
            Self::Htpasswd(htpasswd) => htpasswd.authenticate(visitor).await,
            Self::CommonName(certificate) => certificate.authenticate(visitor),
            Self::Origin(origin) => origin.authenticate(visitor),
            Self::Plugin(plugin) | Self::Python(plugin) => {
                plugin.authenticate(visitor, destination).await
            }
        }
    }
}
