//! From the options to who is let in and where to: the names of the plugins, and what they are given.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::Args;
use crate::input;
use crate::secret::Secret;

use super::{UsageError, absolute, usage};

/// Tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// What knows where they lead.
    pub source: TokenSourceConfig,
    /// The source's name, for the log.
    pub name: String,
    /// Whether the host name that a client asks for is its token.
    pub from_host: bool,
    /// Whether IPv6 addresses of a target's name come first.
    pub prefer_ipv6: bool,
}

/// What knows where a token leads; paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSourceConfig {
    /// Lines `token: host:port` of a file, or of the files of a directory.
    File {
        /// The file or directory.
        path: PathBuf,
        /// Whether it is read at the start only.
        once: bool,
    },
    /// A directory with a file of each token's name that holds `host:port`.
    FileName(PathBuf),
    /// A directory with a unix socket of each token's name.
    Sockets(PathBuf),
    /// A service asked by HTTP.
    Api {
        /// Its URL, with `%s` where the token goes.
        url: Secret,
        /// Whether it answers in JSON.
        json: bool,
    },
    /// The tokens themselves, signed or encrypted with the key in this file.
    Jwt(PathBuf),
    /// Redis: `host:port:db:password:namespace`, or a URL.
    Redis(Secret),
    /// A program and its arguments, which is asked.
    Exec(Secret),
    /// A class of Python.
    Python(PythonClass),
}

impl TokenSourceConfig {
    /// Whether it is a program that we start.
    pub(crate) fn is_program(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Python(_))
    }
}

impl AuthenticatorConfig {
    /// Whether it is a program that we start.
    pub(crate) fn is_program(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Python(_))
    }
}

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// What knows them.
    pub authenticator: AuthenticatorConfig,
    /// Its name, for the log.
    pub name: String,
    /// Whether it is also asked of requests for files.
    pub web: bool,
}

/// What knows who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthenticatorConfig {
    /// A name and a password.
    Basic {
        /// `user:password`.
        pair: Secret,
        /// The file that has it, by its absolute path, if it comes from one.
        file: Option<PathBuf>,
    },
    /// A file of lines `user:hash`, by its absolute path.
    Htpasswd(PathBuf),
    /// Origins of pages, with blanks between them.
    Origin(String),
    /// Common names of certificates, with blanks between them.
    CommonName(String),
    /// A program and its arguments, which is asked.
    Exec(Secret),
    /// A class of Python.
    Python(PythonClass),
}

/// A class of Python and what it is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonClass {
    /// Its name with that of its module: `package.module.Class`.
    pub name: String,
    /// What it is given, if anything.
    pub source: Option<Secret>,
}

/// The prefix that classes of the original may be given with.
const TOKEN_PREFIX: &str = "websockify.token_plugins.";
/// The same for its authenticators.
const AUTH_PREFIX: &str = "websockify.auth_plugins.";

/// The tokens of a command line, if there are any.
pub(super) fn tokens(args: &Args) -> Result<Option<TokenConfig>, UsageError> {
    let (class, source) = match (&args.token_plugin, &args.target_config) {
        (Some(_), Some(_)) => {
            return usage("--target-config is --token-plugin TokenFile; give one of them");
        }
        (Some(class), None) => (
            class.as_str(),
            given(args.token_source.as_ref(), "--token-source")?,
        ),
        (None, Some(path)) if args.token_source.is_none() => (
            "TokenFile",
            Some(Secret::from(path.clone().into_os_string())),
        ),
        (None, _) if args.token_source.is_some() => {
            return usage("You must use --token-plugin to use --token-source");
        }
        (None, _) if args.host_token => {
            return usage("You must use --token-plugin to use --host-token");
        }
        (None, _) => return Ok(None),
    };
    let name = class.strip_prefix(TOKEN_PREFIX).unwrap_or(class);
    let needed = |what: &str| {
        source.clone().ok_or_else(|| {
            UsageError(format!(
                "--token-plugin {name} needs --token-source, {what}"
            ))
        })
    };
    let path = |what: &str| absolute(as_path(&needed(what)?), "--token-source");
    let files = "the file of lines 'token: host:port', or a directory of such files";
    let source = match name {
        "TokenFile" => TokenSourceConfig::File {
            path: path(files)?,
            once: false,
        },
        "ReadOnlyTokenFile" => TokenSourceConfig::File {
            path: path(files)?,
            once: true,
        },
        "TokenFileName" => TokenSourceConfig::FileName(path(
            "the directory of the files that are named like tokens",
        )?),
        "UnixDomainSocketDirectory" => TokenSourceConfig::Sockets(path(
            "the directory of the sockets that are named like tokens",
        )?),
        "BaseTokenAPI" | "JSONTokenApi" => TokenSourceConfig::Api {
            url: needed("the URL to ask, with %s where the token goes")?,
            json: name == "JSONTokenApi",
        },
        "JWTTokenApi" => TokenSourceConfig::Jwt(path("the file with the key")?),
        "TokenRedis" => {
            TokenSourceConfig::Redis(needed("host:port:db:password:namespace or a redis:// URL")?)
        }
        "Exec" => TokenSourceConfig::Exec(needed("the program that is asked, and its arguments")?),
        _ if name.contains('.') => TokenSourceConfig::Python(PythonClass {
            name: name.to_owned(),
            source,
        }),
        _ => {
            return usage(&format!(
                "--token-plugin '{name}' is none of TokenFile, ReadOnlyTokenFile, TokenFileName, BaseTokenAPI, JSONTokenApi, \
                 JWTTokenApi, TokenRedis, UnixDomainSocketDirectory and Exec; a class of Python is given with its module"
            ));
        }
    };
    Ok(Some(TokenConfig {
        source,
        name: last_part(name).to_owned(),
        from_host: args.host_token,
        prefer_ipv6: args.prefer_ipv6,
    }))
}

/// The authenticator of a command line, if there is one.
pub(super) fn auth(args: &Args) -> Result<Option<AuthConfig>, UsageError> {
    let Some(class) = &args.auth_plugin else {
        for (given, option) in [
            (args.auth_source.is_some(), "--auth-source"),
            (args.web_auth, "--web-auth"),
        ] {
            if given {
                return usage(&format!("You must use --auth-plugin to use {option}"));
            }
        }
        return Ok(None);
    };
    if args.web_auth && args.web.is_none() {
        return usage("You must use --web to use --web-auth");
    }
    let source = given(args.auth_source.as_ref(), "--auth-source")?;
    let name = class.strip_prefix(AUTH_PREFIX).unwrap_or(class);
    let needed = |what: &str| {
        source
            .clone()
            .ok_or_else(|| UsageError(format!("--auth-plugin {name} needs --auth-source, {what}")))
    };
    let text = |what: &str| {
        String::from_utf8(needed(what)?.expose().to_vec())
            .map_err(|_| UsageError("--auth-source is not UTF-8".to_owned()))
    };
    let authenticator = match name {
        "BasicHTTPAuth" => AuthenticatorConfig::Basic {
            pair: needed("the user and password: user:password, or @FILE with them")?,
            file: (args.auth_source.as_ref().and_then(file_of))
                .map(|file| absolute(file, "--auth-source"))
                .transpose()?,
        },
        "HtpasswdFile" => AuthenticatorConfig::Htpasswd(absolute(
            as_path(&needed("the file that htpasswd -B has made")?),
            "--auth-source",
        )?),
        "ExpectOrigin" => {
            AuthenticatorConfig::Origin(text("the origins, with blanks between them")?)
        }
        "ClientCertCNAuth" if !args.verify_client => {
            return usage(
                "--auth-plugin ClientCertCNAuth needs --verify-client: only a certificate that is verified says who somebody is",
            );
        }
        "ClientCertCNAuth" => {
            AuthenticatorConfig::CommonName(text("the common names, with blanks between them")?)
        }
        "Exec" => {
            AuthenticatorConfig::Exec(needed("the program that is asked, and its arguments")?)
        }
        _ if name.contains('.') => AuthenticatorConfig::Python(PythonClass {
            name: name.to_owned(),
            source,
        }),
        _ => {
            return usage(&format!(
                "--auth-plugin '{name}' is none of BasicHTTPAuth, HtpasswdFile, ExpectOrigin, ClientCertCNAuth and Exec; \
                 a class of Python is given with its module"
            ));
        }
    };
    Ok(Some(AuthConfig {
        authenticator,
        name: last_part(name).to_owned(),
        web: args.web_auth,
    }))
}

/// What an option gives: itself, or what is in the file that follows an `@`, without the end of its last line.
fn given(source: Option<&Secret>, option: &str) -> Result<Option<Secret>, UsageError> {
    let Some(file) = source.and_then(file_of) else {
        return Ok(source.cloned());
    };
    let text = text_of(file).map_err(|error| UsageError(format!("{option}: {error:#}")))?;
    Ok(Some(text))
}

/// The file that is named by what an option gives, `@FILE`.
fn file_of(source: &Secret) -> Option<&Path> {
    let file = source.expose().strip_prefix(b"@")?;
    Some(Path::new(OsStr::from_bytes(file)))
}

/// What is in such a file, without the end of its last line.
///
/// # Errors
/// Says which file cannot be read, and why.
pub(crate) fn text_of(file: &Path) -> anyhow::Result<Secret> {
    let mut text = input::read(file)?;
    if text.last() == Some(&b'\n') {
        text.pop();
        if text.last() == Some(&b'\r') {
            text.pop();
        }
    }
    Ok(Secret::from(text))
}

fn as_path(source: &Secret) -> &Path {
    Path::new(OsStr::from_bytes(source.expose()))
}

/// The name of a class without those of its modules.
fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
