//! From [`Args`] to what the parts of the program need; the only place that knows which options depend on each other.

mod access;
mod log;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};

use crate::addr::{AddressError, HostPort, ListenAddr};
use crate::cli::{Args, FOREVER, ProxyHeader, SslVersion, WrapMethod, WrapMode};
use crate::origin::AllowedOrigins;
use crate::proxy::TrustedProxy;
use crate::secret::Secret;
use crate::tls::Ciphers;
use crate::user::Identity;

pub(crate) use access::text_of;
pub use access::{AuthConfig, AuthenticatorConfig, PythonClass, TokenConfig, TokenSourceConfig};
pub use log::{LogConfig, SyslogConfig, SyslogServer};

/// What a command line asks for. It cannot be inconsistent.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: ListenAddr,
    /// Where clients go.
    pub route: RouteConfig,
    /// The program to start, if any.
    pub wrap: Option<WrapConfig>,
    /// How many there may be.
    pub crowd: CrowdConfig,
    /// When the server ends by itself.
    pub limits: Limits,
    /// What each session does.
    pub session: SessionConfig,
    /// Who may become a session.
    pub door: Door,
    /// What is heard of clients from proxies, and told to targets.
    pub proxies: ProxyConfig,
    /// What browsers get that ask for a page.
    pub web: WebConfig,
    /// TLS with clients, if there is a certificate.
    pub tls: Option<TlsConfig>,
    /// TLS with targets.
    pub target_tls: TargetTls,
    /// Where sessions are recorded, as an absolute path without the dot and the number at its end.
    pub record: Option<PathBuf>,
    /// Whose rights to take when everything is bound and read.
    pub user: Option<Identity>,
    /// Whether to go to the background.
    pub background: bool,
    /// Where figures are served, always TCP.
    pub metrics: Option<ListenAddr>,
    /// The file for our process number, as an absolute path.
    pub pid_file: Option<PathBuf>,
    /// What is to be said of options that do less than their user may think.
    pub warnings: Vec<String>,
    /// What is logged, how and where.
    pub log: LogConfig,
}

/// Where clients go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteConfig {
    /// All of them here.
    Fixed(TargetConfig),
    /// Each where its token leads.
    Tokens(TokenConfig),
}

/// What to connect clients to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetConfig {
    /// A host and a port.
    Tcp {
        /// An empty host means this machine.
        address: HostPort,
        /// Whether IPv6 addresses of a name come first.
        prefer_ipv6: bool,
    },
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
    /// The port that the wrapped program was moved to.
    Wrapped,
}

/// The program to start and what becomes of it.
#[derive(Debug)]
pub struct WrapConfig {
    /// The program and its arguments, at least one word.
    pub command: Vec<OsString>,
    /// The port that the program binds; `None` when it is the one we listen on.
    pub port: Option<u16>,
    /// How its port is moved.
    pub method: WrapMethod,
    /// What to do when it has ended.
    pub mode: WrapMode,
    /// How long clients wait for it to listen.
    pub timeout: Duration,
    /// The file that says when it listens, as an absolute path.
    pub ready_file: Option<PathBuf>,
    /// The unix socket that it listens on instead of its port, as an absolute path.
    pub unix_target: Option<PathBuf>,
    /// Whether it gets nothing as standard input, output and error, instead of what we have.
    pub silent: bool,
    /// Whose rights it has, if not those that we are started with.
    pub user: Option<Identity>,
    /// Whether it is another user's than we shall be, with whose processes we may not do everything.
    pub is_foreign: bool,
}

/// When the server ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// So long after the start, when the last connection has ended.
    pub timeout: Option<Duration>,
    /// After so long without a connection.
    pub idle_timeout: Option<Duration>,
    /// How long sessions may go on when a signal asks for the end.
    pub drain: Duration,
}

/// How many there may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrowdConfig {
    /// Connections at once; as many as there are descriptors for, if it is not said.
    pub connections: Option<usize>,
    /// The same of each address.
    pub per_address: Option<usize>,
    /// Whether there may be one session ever, and the server ends with it.
    pub run_once: bool,
}

/// Who may become a session.
#[derive(Clone, Debug)]
pub struct Door {
    /// The origins of pages that may.
    pub origins: AllowedOrigins,
    /// Who knows who may.
    pub auth: Option<AuthConfig>,
    /// How long a client may take to say what it wants.
    pub patience: Duration,
    /// How long a look-up, or asking an authenticator, may take.
    pub look_up_limit: Duration,
}

/// What is heard of clients from proxies, and told to targets.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// The proxies whose word counts.
    pub trusted: Vec<TrustedProxy>,
    /// Whether they have to give it in a header of the PROXY protocol.
    pub takes_header: bool,
    /// The header of that protocol in which targets are told, if they are.
    pub sends_header: Option<ProxyHeader>,
}

/// What browsers get that ask for a page.
#[derive(Clone, Debug, Default)]
pub struct WebConfig {
    /// The directory with the files, as an absolute path; without one there is nothing to get.
    pub root: Option<PathBuf>,
    /// Whether a directory without an index page is listed.
    pub listings: bool,
    /// What every answer that is not an upgrade has in addition.
    pub headers: Vec<WebHeader>,
}

/// TLS with clients.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// What clients are shown.
    pub identity: IdentityFiles,
    /// The lowest version.
    pub minimum: TlsVersion,
    /// The ciphers, the preferred ones first.
    pub ciphers: Ciphers,
    /// What clients are to show.
    pub clients: Trust,
    /// Whether clients without TLS are refused.
    pub only: bool,
}

/// TLS with targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTls {
    /// Whether it is spoken with all of them, and not only with those for which a token says so.
    pub always: bool,
    /// Which of them are believed.
    pub trust: Trust,
}

/// Where a certificate and its key are; absolute paths.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// The certificate, others that lead to a root, and the key unless it has its own file.
    pub certificate: PathBuf,
    /// The key's own file.
    pub key: Option<PathBuf>,
    /// What the key is encrypted with.
    pub password: Option<Password>,
}

/// The password of a key.
#[derive(Clone, Debug)]
pub enum Password {
    /// This one.
    Given(Secret),
    /// The first line of this file.
    File(PathBuf),
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// Which peers are believed that they are who they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// All of them; a client need not even show a certificate.
    Anybody,
    /// Those with a certificate that the system trusts.
    System,
    /// Those with a certificate that an authority in this file has signed, or that is in it.
    File(PathBuf),
}

/// A header from the command line, `Name: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value, without blanks around it.
    pub value: HeaderValue,
}

/// The headers that are not the administrator's to set: they tell where an answer ends.
const FRAMING: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE];

impl FromStr for WebHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("not 'Name: value'")?;
        let name = name
            .parse()
            .map_err(|_| format!("'{name}' is not the name of a header"))?;
        if FRAMING.contains(&name) {
            return Err(format!("'{name}' is for the server to set"));
        }
        let value = value
            .trim()
            .parse()
            .map_err(|_| format!("what follows '{name}:' is not the value of a header"))?;
        Ok(Self { name, value })
    }
}

/// What each session does.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// When the client is pinged.
    pub pings: Pings,
    /// How long the system of a peer may acknowledge nothing.
    pub peer_timeout: Duration,
    /// Whether each transfer is marked on stderr.
    pub traffic: bool,
    /// Which way payload takes to the client.
    pub way: WayChoice,
}

/// When a client is pinged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pings {
    /// Never.
    Never,
    /// When it was sent nothing for a while; it need not answer.
    WhenSilent,
    /// So often, and it has to answer.
    Every(Duration),
}

/// Which way payload takes to the client, where there is a choice. For tests and measurements: the environment variable
/// `WEBSOCKIFY_RELAY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WayChoice {
    /// The best one.
    #[default]
    Auto,
    /// `copy`: through memory.
    Copy,
    /// `splice`: within the kernel.
    Splice,
}

impl Config {
    /// Whether programs are started while we run that belong to the directory of the start.
    pub(crate) fn starts_plugins(&self) -> bool {
        let tokens = match &self.route {
            RouteConfig::Tokens(tokens) => tokens.source.is_program(),
            RouteConfig::Fixed(_) => false,
        };
        let auth = self.door.auth.as_ref();
        tokens || auth.is_some_and(|auth| auth.authenticator.is_program())
    }
}

impl WayChoice {
    fn from_environment() -> Result<Self, UsageError> {
        match std::env::var_os(WAY_VARIABLE) {
            None => Ok(Self::Auto),
            Some(value) if value == "copy" => Ok(Self::Copy),
            Some(value) if value == "splice" => Ok(Self::Splice),
            Some(value) => usage(&format!(
                "{WAY_VARIABLE}='{}' in the environment is neither 'copy' nor 'splice'",
                value.display()
            )),
        }
    }
}

/// The names of the sockets that systemd has handed over to this process (sd_listen_fds(3)), if it has.
fn activated_sockets() -> Result<Vec<String>, UsageError> {
    let variable = |name: &str| std::env::var(name).ok();
    let ours = std::process::id().to_string();
    let Some(count) = variable("LISTEN_FDS").filter(|_| variable("LISTEN_PID") == Some(ours))
    else {
        return Ok(Vec::new());
    };
    let count: u16 = count.parse().map_err(|_| {
        UsageError(format!(
            "LISTEN_FDS='{count}' in the environment is not a number of sockets"
        ))
    })?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    let name = || names.next().unwrap_or("unknown").to_owned();
    Ok(std::iter::repeat_with(name).take(count.into()).collect())
}

/// How long a look-up may take unless an option says so.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// The certificate that is taken if it is there.
const DEFAULT_CERTIFICATE: &str = "self.pem";

/// The variable with the password of the key.
const KEY_PASSWORD_VARIABLE: &str = "WEBSOCKIFY_KEY_PASSWORD";

/// The variables that are for us alone: what we start does not inherit them.
pub(crate) const OWN_VARIABLES: [&str; 8] = [
    KEY_PASSWORD_VARIABLE,
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The variable of [`WayChoice`].
const WAY_VARIABLE: &str = "WEBSOCKIFY_RELAY";

/// A command line that contradicts itself, or lacks something; the text is for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl TryFrom<Args> for Config {
    type Error = UsageError;

    fn try_from(args: Args) -> Result<Self, UsageError> {
        let mut warnings = Vec::new();
        let tls = tls(&args, &mut warnings)?;
        let tokens = access::tokens(&args)?;
        let auth = access::auth(&args)?;
        let log = LogConfig::new(&args)?;
        if args.token_timeout.is_some() && tokens.is_none() && auth.is_none() {
            return usage(
                "--token-timeout needs --token-plugin or --auth-plugin, whom it gives so long",
            );
        }
        if args.accept_proxy_protocol && args.trusted_proxy.is_empty() {
            return usage(
                "--accept-proxy-protocol needs --trusted-proxy, the proxies that may say where clients come from",
            );
        }
        let target_tls = target_tls(&args, tokens.is_some())?;
        let find = |text: Option<String>, option: &str| {
            let found = text.map(|text| Identity::find(&text)).transpose();
            found.map_err(|error| UsageError(format!("{option}: {error}")))
        };
        let user = find(args.user, "--user")?;
        let wrap_user = find(args.wrap_user, "--wrap-user")?;
        let activated = activated_sockets()?;
        let mut addresses = args.addresses.iter();
        let listen = match (args.unix_listen, args.inetd) {
            (Some(_), true) => {
                return usage(
                    "--unix-listen and --inetd both say where to listen; give one of them",
                );
            }
            (Some(_), false) if !activated.is_empty() => {
                return usage(
                    "systemd has handed over sockets to listen on; leave out --unix-listen",
                );
            }
            (Some(path), false) => ListenAddr::Unix {
                path: absolute(&path, "--unix-listen")?,
                mode: args.unix_listen_mode,
                owner: user.clone(),
            },
            (None, true) => ListenAddr::Inherited,
            (None, false) if !activated.is_empty() => ListenAddr::Activated(activated),
            (None, false) => {
                let text = addresses.next().ok_or_else(too_few)?;
                let address = HostPort::parse_source(text).map_err(|_| {
                    UsageError(format!("Error parsing listen port: '{text}' is not [host:]port with a port from 0 to 65535"))
                })?;
                ListenAddr::Tcp {
                    address,
                    prefer_ipv6: args.prefer_ipv6,
                }
            }
        };

        let wrapped = !args.command.is_empty();
        let takes_target = tokens.is_none() && args.unix_target.is_none() && !wrapped;
        if let ListenAddr::Activated(_) = listen
            && args.addresses.len() > usize::from(takes_target)
        {
            return usage(&format!(
                "systemd has handed over sockets to listen on; leave out the source address '{}'",
                args.addresses[0]
            ));
        }
        let unix_target = args
            .unix_target
            .as_deref()
            .map(|path| absolute(path, "--unix-target"))
            .transpose()?;
        let route = match (tokens, unix_target.clone()) {
            (Some(_), Some(_)) => {
                return usage(
                    "--unix-target and the token plugin both say where clients go; give one of them",
                );
            }
            (Some(tokens), None) => RouteConfig::Tokens(tokens),
            (None, Some(path)) => RouteConfig::Fixed(TargetConfig::Unix(path)),
            (None, None) if wrapped => RouteConfig::Fixed(TargetConfig::Wrapped),
            (None, None) => {
                let text = addresses.next().ok_or_else(too_few)?;
                RouteConfig::Fixed(TargetConfig::Tcp {
                    address: parse_target(text)?,
                    prefer_ipv6: args.prefer_ipv6,
                })
            }
        };
        if let Some(extra) = addresses.next() {
            return usage(&format!(
                "Too many arguments: '{extra}' is one more than expected"
            ));
        }

        for (given, option) in [
            (args.wrap_port.is_some(), "--wrap-port"),
            (args.ready_file.is_some(), "--ready-file"),
            (wrap_user.is_some(), "--wrap-user"),
        ] {
            if given && !wrapped {
                return usage(&format!(
                    "{option} needs a wrapped program: add `-- PROGRAM ARGS` at the end"
                ));
            }
        }
        if wrapped && args.wrap_port.is_none() && matches!(listen, ListenAddr::Unix { .. }) {
            return usage(
                "a wrapped program with --unix-listen needs --wrap-port, the port that the program binds",
            );
        }
        if wrapped
            && args.wrap_method == WrapMethod::None
            && args.wrap_port.is_none()
            && unix_target.is_none()
        {
            return usage(
                "--wrap-method=none needs --wrap-port or --unix-target, where the program listens by itself",
            );
        }
        let wrap = wrapped
            .then(|| {
                Ok(WrapConfig {
                    command: args.command,
                    port: args.wrap_port,
                    method: args.wrap_method,
                    mode: args.wrap_mode,
                    timeout: some_time(args.wrap_timeout).unwrap_or(FOREVER),
                    ready_file: args
                        .ready_file
                        .map(|path| absolute(&path, "--ready-file"))
                        .transpose()?,
                    unix_target,
                    silent: args.daemon,
                    is_foreign: match (&user, &wrap_user) {
                        (Some(ours), Some(theirs)) => !ours.is_root() && !ours.is_same_user(theirs),
                        _ => false,
                    },
                    user: wrap_user.or_else(|| user.clone()),
                })
            })
            .transpose()?;

        if args.web.is_none() && !args.web_header.is_empty() {
            return usage("--web-header needs --web, the directory of the files that it is for");
        }
        let web = WebConfig {
            root: args.web.map(|path| absolute(&path, "--web")).transpose()?,
            listings: !args.file_only,
            headers: args.web_header,
        };

        Ok(Self {
            listen,
            route,
            wrap,
            web,
            tls,
            target_tls,
            warnings,
            user,
            background: args.daemon,
            metrics: args
                .metrics
                .map(|text| metrics(&text, args.prefer_ipv6))
                .transpose()?,
            pid_file: args
                .pid_file
                .map(|path| absolute(&path, "--pid-file"))
                .transpose()?,
            crowd: CrowdConfig {
                connections: args.max_connections.map(NonZero::get),
                per_address: args.max_connections_per_address.map(NonZero::get),
                run_once: args.run_once,
            },
            limits: Limits {
                timeout: some_time(args.timeout),
                idle_timeout: some_time(args.idle_timeout),
                drain: args.drain,
            },
            session: SessionConfig {
                pings: match args.heartbeat {
                    None => Pings::WhenSilent,
                    Some(Duration::ZERO) => Pings::Never,
                    Some(interval) => Pings::Every(interval),
                },
                peer_timeout: args.peer_timeout,
                traffic: args.traffic,
                way: WayChoice::from_environment()?,
            },
            door: Door {
                origins: AllowedOrigins::new(args.allow_origin),
                auth,
                patience: args.handshake_timeout,
                look_up_limit: args.token_timeout.unwrap_or(LOOK_UP_LIMIT),
            },
            proxies: ProxyConfig {
                trusted: args.trusted_proxy,
                takes_header: args.accept_proxy_protocol,
                sends_header: args.proxy_protocol,
            },
            record: args
                .record
                .map(|path| absolute(&path, "--record"))
                .transpose()?,
            log,
        })
    }
}

/// TLS with clients, if there is a certificate. One that was asked for and is missing is an error of the start.
fn tls(args: &Args, warnings: &mut Vec<String>) -> Result<Option<TlsConfig>, UsageError> {
    if args.key.is_some() && args.cert.is_none() {
        return usage("--key needs --cert, the certificate that it belongs to");
    }
    let default = Path::new(DEFAULT_CERTIFICATE);
    let certificate = args.cert.as_deref().unwrap_or(default);
    let is_there = certificate.exists();
    for (given, option) in [
        (args.ssl_only, "--ssl-only"),
        (args.verify_client, "--verify-client"),
    ] {
        if given && !is_there {
            return usage(&format!(
                "{option} needs a certificate, and {} does not exist; --cert says where there is one",
                certificate.display()
            ));
        }
    }
    let clients = match (args.verify_client, &args.cafile) {
        (false, None) => Trust::Anybody,
        (false, Some(_)) => {
            warnings.push("--cafile has no effect without --verify-client".to_owned());
            Trust::Anybody
        }
        (true, None) => Trust::System,
        (true, Some(path)) => Trust::File(absolute(path, "--cafile")?),
    };
    if args.ssl_version == SslVersion::Tls11 {
        warnings.push("--ssl-version tlsv1_1: nothing below TLS 1.2 is spoken".to_owned());
    }
    let ciphers = args.ssl_ciphers.clone().unwrap_or_default();
    for name in ciphers.unsupported() {
        warnings.push(format!("--ssl-ciphers: '{name}' is not supported"));
    }
    let password = key_password(args)?;
    if args.cert.is_none() && !is_there {
        return Ok(None);
    }
    let key = args.key.as_deref().map(|path| absolute(path, "--key"));
    Ok(Some(TlsConfig {
        identity: IdentityFiles {
            certificate: absolute(certificate, "--cert")?,
            key: key.transpose()?,
            password,
        },
        minimum: match args.ssl_version {
            SslVersion::Tls13 => TlsVersion::Tls13,
            _ => TlsVersion::Tls12,
        },
        ciphers,
        // Who is to show a certificate cannot do without TLS.
        only: args.ssl_only || clients != Trust::Anybody,
        clients,
    }))
}

/// What the key is encrypted with, if anybody said so.
fn key_password(args: &Args) -> Result<Option<Password>, UsageError> {
    Ok(match (&args.key_password, &args.key_password_file) {
        (Some(_), Some(_)) => {
            return usage(
                "--key-password and --key-password-file both give the password; give one of them",
            );
        }
        (Some(secret), None) => Some(Password::Given(secret.clone())),
        (None, Some(path)) => Some(Password::File(absolute(path, "--key-password-file")?)),
        (None, None) => {
            std::env::var_os(KEY_PASSWORD_VARIABLE).map(|text| Password::Given(text.into()))
        }
    })
}

/// TLS with targets. Without `--ssl-target` it can only be a token's wish.
fn target_tls(args: &Args, by_token: bool) -> Result<TargetTls, UsageError> {
    let trust = match (&args.target_cafile, args.target_insecure) {
        (Some(_), true) => {
            return usage(
                "--target-insecure trusts every target, --target-cafile does not; give one of them",
            );
        }
        (None, true) => Trust::Anybody,
        (None, false) => Trust::System,
        (Some(path), false) => Trust::File(absolute(path, "--target-cafile")?),
    };
    if trust != Trust::System && !args.ssl_target && !by_token {
        return usage("--target-cafile and --target-insecure need --ssl-target");
    }
    Ok(TargetTls {
        always: args.ssl_target,
        trust,
    })
}

/// Where to serve figures: a lone port is that of this machine alone.
fn metrics(text: &str, prefer_ipv6: bool) -> Result<ListenAddr, UsageError> {
    let mut address = HostPort::parse_source(text).map_err(|_| {
        UsageError(format!(
            "--metrics: '{text}' is not [host:]port with a port from 0 to 65535"
        ))
    })?;
    if !text.contains(':') {
        address.host = Ipv4Addr::LOCALHOST.to_string();
    }
    Ok(ListenAddr::Tcp {
        address,
        prefer_ipv6,
    })
}

fn parse_target(text: &str) -> Result<HostPort, UsageError> {
    match text.parse() {
        Ok(HostPort { port: 0, .. }) | Err(AddressError::BadPort) => usage(&format!(
            "Error parsing target port: '{text}' does not end in a port from 1 to 65535"
        )),
        Err(AddressError::NoPort) => {
            usage(&format!("Error parsing target: '{text}' is not host:port"))
        }
        Ok(address) => Ok(address),
    }
}

/// Paths are meant from where the program was started, also when it works elsewhere later.
fn absolute(path: &Path, option: &str) -> Result<PathBuf, UsageError> {
    std::path::absolute(path)
        .map_err(|error| UsageError(format!("{option}: '{}': {error}", path.display())))
}

/// Zero stands for never.
fn some_time(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn too_few() -> UsageError {
    UsageError("Too few arguments".to_owned())
}

fn usage<T>(message: &str) -> Result<T, UsageError> {
    Err(UsageError(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(line: &str) -> Result<Config, UsageError> {
        Args::try_parse_from(format!("websockify {line}").split_whitespace())
            .unwrap()
            .try_into()
    }

    fn complaint(line: &str) -> String {
        config(line).unwrap_err().0
    }

    #[test]
    fn a_target_comes_from_one_place_only() {
        let route = |line| config(line).unwrap().route;
        let socket = RouteConfig::Fixed(TargetConfig::Unix("/s".into()));
        assert!(matches!(
            route("6080 h:1"),
            RouteConfig::Fixed(TargetConfig::Tcp { .. })
        ));
        assert_eq!(route("6080 --unix-target /s"), socket);
        assert_eq!(
            route("6080 -- prog"),
            RouteConfig::Fixed(TargetConfig::Wrapped)
        );
        let RouteConfig::Tokens(tokens) = route("6080 --target-config t") else {
            panic!()
        };
        assert!(matches!(
            tokens.source,
            TokenSourceConfig::File { once: false, .. }
        ));
        let both = config("6080 --unix-target /s -- prog").unwrap();
        assert_eq!(both.route, socket);
        assert_eq!(both.wrap.unwrap().unix_target, Some("/s".into()));
    }

    #[test]
    fn addresses_are_counted() {
        for line in ["", "6080", "--unix-listen /s", "--inetd", "6080 --"] {
            assert_eq!(complaint(line), "Too few arguments", "{line}");
        }
        for line in [
            "6080 h:1 x",
            "6080 h:1 --unix-target /s",
            "6080 h:1 -- prog",
            "6080 h:1 --target-config t",
            "--inetd h:1 h:2",
        ] {
            assert!(complaint(line).starts_with("Too many arguments"), "{line}");
        }
    }

    #[test]
    fn figures_are_for_this_machine_alone_unless_a_host_is_named() {
        for (text, meant) in [
            ("9101", "127.0.0.1:9101"),
            (":9101", ":9101"),
            ("[::1]:0", "[::1]:0"),
            ("host:1", "host:1"),
        ] {
            let config = config(&format!("6080 h:1 --metrics {text}")).unwrap();
            let Some(ListenAddr::Tcp { address, .. }) = config.metrics else {
                panic!()
            };
            assert_eq!(address.to_string(), meant);
        }
        for text in ["x", "h:", "1.2.3.4", "65536", "h:x"] {
            let complaint = complaint(&format!("6080 h:1 --metrics {text}"));
            assert!(complaint.contains(&format!("--metrics: '{text}' is not")));
        }
    }

    #[test]
    fn bad_addresses_are_named() {
        assert!(complaint("x h:1").contains("Error parsing listen port: 'x'"));
        assert!(complaint("6080 h").contains("Error parsing target: 'h'"));
        assert!(complaint("6080 h:x").contains("Error parsing target port: 'h:x'"));
        assert!(complaint("6080 h:0").contains("Error parsing target port: 'h:0'"));
    }

    #[test]
    fn options_that_need_others_are_errors_alone() {
        assert!(
            complaint("6080 h:1 --wrap-port 3").contains("--wrap-port needs a wrapped program")
        );
        assert!(
            complaint("6080 h:1 --ready-file f").contains("--ready-file needs a wrapped program")
        );
        assert!(complaint("--unix-listen s -- prog").contains("needs --wrap-port"));
        assert!(complaint("--unix-listen s --inetd h:1").contains("both say where to listen"));
        assert!(
            config("6080 h:1 --wrap-mode respawn")
                .unwrap()
                .wrap
                .is_none()
        );
    }

    #[test]
    fn plugins_are_named_and_given_what_they_need() {
        for (line, said) in [
            (
                "--token-source t",
                "You must use --token-plugin to use --token-source",
            ),
            (
                "--host-token",
                "You must use --token-plugin to use --host-token",
            ),
            (
                "--auth-source a",
                "You must use --auth-plugin to use --auth-source",
            ),
            ("--web-auth", "You must use --auth-plugin to use --web-auth"),
            (
                "--auth-plugin ExpectOrigin --auth-source a --web-auth",
                "You must use --web to use --web-auth",
            ),
            ("--token-plugin TokenFile", "needs --token-source, the file"),
            (
                "--token-plugin Redis --token-source h",
                "'Redis' is none of TokenFile, ",
            ),
            (
                "--auth-plugin Basic --auth-source h",
                "'Basic' is none of BasicHTTPAuth, ",
            ),
            (
                "--auth-plugin BasicHTTPAuth",
                "needs --auth-source, the user and password",
            ),
            (
                "--auth-plugin ClientCertCNAuth --auth-source h",
                "needs --verify-client",
            ),
            (
                "--target-config t --token-plugin TokenFile",
                "give one of them",
            ),
            ("--target-config t --unix-target s", "give one of them"),
            (
                "--token-plugin TokenFile --token-source @/not/there",
                "--token-source: cannot read /not/there",
            ),
            ("h:1 --token-timeout 3", "--token-timeout needs"),
            (
                "h:1 --accept-proxy-protocol",
                "--accept-proxy-protocol needs --trusted-proxy",
            ),
        ] {
            let complaint = complaint(&format!("6080 {line}"));
            assert!(complaint.contains(said), "{line}: {complaint}");
        }
        let source = |class: &str| {
            let line = format!("6080 --token-plugin {class} --token-source /s");
            let RouteConfig::Tokens(tokens) = config(&line).unwrap().route else {
                panic!()
            };
            (tokens.name, tokens.source)
        };
        for class in ["TokenFileName", "websockify.token_plugins.TokenFileName"] {
            let (name, source) = source(class);
            assert_eq!(name, "TokenFileName");
            assert_eq!(source, TokenSourceConfig::FileName("/s".into()));
        }
        let (name, class) = source("mine.plugins.Tokens");
        assert_eq!(name, "Tokens");
        assert!(
            matches!(class, TokenSourceConfig::Python(PythonClass { name, .. }) if name == "mine.plugins.Tokens")
        );
    }

    #[test]
    fn zero_seconds_are_never() {
        let config = config("0 :1 --timeout 5 --idle-timeout 0 --run-once").unwrap();
        assert_eq!(config.limits.timeout, Some(Duration::from_secs(5)));
        assert_eq!(config.limits.idle_timeout, None);
        assert!(config.crowd.run_once);
    }

    #[test]
    fn relative_paths_are_meant_from_the_start_directory() {
        let ListenAddr::Unix { path, .. } = config("--unix-listen s h:1").unwrap().listen else {
            panic!()
        };
        assert_eq!(path, std::env::current_dir().unwrap().join("s"));
    }
}
