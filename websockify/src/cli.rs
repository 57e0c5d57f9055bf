//! The command line, option by option; filling it in touches no file and no socket.
//!
//! Which options depend on each other is [`crate::config`]'s business.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};

use crate::config::WebHeader;
use crate::origin::AllowedOrigin;
use crate::proxy::TrustedProxy;
use crate::secret::Secret;
use crate::tls::Ciphers;

/// The options as they were given.
#[derive(Debug, Parser)]
#[command(
    name = "websockify",
    version,
    about = "Lets WebSocket clients talk to any TCP program",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "websockify [OPTIONS] [SOURCE_ADDR:]SOURCE_PORT TARGET_ADDR:TARGET_PORT\n       \
                      websockify [OPTIONS] [SOURCE_ADDR:]SOURCE_PORT --unix-target FILE\n       \
                      websockify [OPTIONS] [SOURCE_ADDR:]SOURCE_PORT --token-plugin CLASS --token-source ARG\n       \
                      websockify [OPTIONS] [SOURCE_ADDR:]SOURCE_PORT -- PROGRAM [ARGS]..."
)]
pub struct Args {
    /// Where to listen, and the target to connect to
    #[arg(
        value_name = "[SOURCE_ADDR:]SOURCE_PORT [TARGET_ADDR:TARGET_PORT]",
        hide = true
    )]
    pub addresses: Vec<String>,

    /// Program to start and to wrap: its port becomes ours
    #[arg(last = true, value_name = "PROGRAM [ARGS]", hide = true)]
    pub command: Vec<OsString>,

    /// Say more on stderr
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub verbose: bool,

    /// Write the log as lines of text, or as one JSON object per event
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Write the log to the end of this file as well, which HUP opens anew
    // Its prefixes were unique in the original.
    #[arg(long, value_name = "FILE", aliases = ["lo", "log", "log-", "log-f"])]
    pub log_file: Option<PathBuf>,

    /// Send the log to syslog as well: to a unix socket such as /dev/log, or by UDP to `HOST:PORT`, `[IPV6]:PORT` or `HOST`
    #[arg(long, value_name = "SERVER")]
    pub syslog: Option<OsString>,

    /// Speak the old protocol with syslog (RFC 3164), not that of RFC 5424
    #[arg(long, action = ArgAction::SetTrue)]
    pub legacy_syslog: bool,

    /// Go to the background as soon as the start has worked
    // A prefix that was unique in the original.
    #[arg(short = 'D', long, action = ArgAction::SetTrue, alias = "d")]
    pub daemon: bool,

    /// Write our process number to this file when the start has worked, and remove it at the end
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Give up root's rights for this user's as soon as everything is bound and read
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// Serve figures for Prometheus (/metrics), and whether clients can be served (/healthz), on this port of 127.0.0.1, or on HOST:PORT
    #[arg(long, value_name = "[HOST:]PORT")]
    pub metrics: Option<String>,

    /// Mark each transfer on stderr: } client in, > target out, { target in, < client out; a dot follows a partial one
    // A prefix that was unique in the original.
    #[arg(long, action = ArgAction::SetTrue, alias = "tr")]
    pub traffic: bool,

    /// Record each session in a file FILE.N, N the number of its connection, for noVNC's playback page
    // Its prefix was unique in the original.
    #[arg(long, value_name = "FILE", alias = "re")]
    pub record: Option<PathBuf>,

    /// Take IPv6 addresses of a host name first, of the source and of the target
    // Prefixes that were unique in the original.
    #[arg(short = '6', long, action = ArgAction::SetTrue, aliases = ["p", "pr"])]
    pub prefer_ipv6: bool,

    /// Connect to this unix socket
    #[arg(long, value_name = "FILE")]
    pub unix_target: Option<PathBuf>,

    /// Let each client name its target by a token (?token= of the URL), which this class knows: TokenFile, ReadOnlyTokenFile,
    /// TokenFileName, BaseTokenAPI, JSONTokenApi, JWTTokenApi, TokenRedis, UnixDomainSocketDirectory, Exec, or a Python class
    #[arg(long, value_name = "CLASS")]
    pub token_plugin: Option<String>,

    /// What the token plugin is given: a file, a directory, a URL, a command; @FILE takes it from a file
    #[arg(long, value_name = "ARG")]
    pub token_source: Option<Secret>,

    /// Take the host name that a client asks for as its token
    #[arg(long, action = ArgAction::SetTrue)]
    pub host_token: bool,

    /// The same as --token-plugin TokenFile --token-source FILE
    // Its prefixes were unique in the original.
    #[arg(long, value_name = "FILE-OR-DIR", aliases = ["ta", "tar", "targ", "targe", "target", "target-", "target-c"])]
    pub target_config: Option<PathBuf>,

    /// How long a look-up, or asking an authenticator, may take; 5 by default
    #[arg(long, value_name = "SECONDS", value_parser = parse_some_seconds)]
    pub token_timeout: Option<Duration>,

    /// Let only those in that this class knows: BasicHTTPAuth, HtpasswdFile, ExpectOrigin, ClientCertCNAuth, Exec, or a Python class
    #[arg(long, value_name = "CLASS")]
    pub auth_plugin: Option<String>,

    /// What the auth plugin is given; every user of this machine can read it in the list of processes, so @FILE takes it from a file
    #[arg(long, value_name = "ARG")]
    pub auth_source: Option<Secret>,

    /// Ask the auth plugin for files as well
    // A prefix that was unique in the original.
    #[arg(long, action = ArgAction::SetTrue, alias = "web-")]
    pub web_auth: bool,

    /// Listen on this unix socket; there is no source address then
    #[arg(long, value_name = "FILE")]
    pub unix_listen: Option<PathBuf>,

    /// Permission bits of the unix socket to listen on
    #[arg(long, value_name = "OCTAL", default_value = "0600", value_parser = parse_mode)]
    pub unix_listen_mode: u32,

    /// Believe proxies at these addresses, or networks, what they tell of clients' addresses (X-Forwarded-For, Forwarded); `unix` is
    /// whoever comes by a unix socket. May be repeated
    #[arg(long, value_name = "CIDR", action = ArgAction::Append, value_delimiter = ',')]
    pub trusted_proxy: Vec<TrustedProxy>,

    /// Have connections of trusted proxies begin with a header of the PROXY protocol, version 1 or 2
    #[arg(long, action = ArgAction::SetTrue)]
    pub accept_proxy_protocol: bool,

    /// Tell the target of each client by a header of the PROXY protocol, in this version
    #[arg(long, value_name = "VERSION", value_enum)]
    pub proxy_protocol: Option<ProxyHeader>,

    /// Listen on the socket given as standard input; there is no source address then
    #[arg(long, action = ArgAction::SetTrue)]
    pub inetd: bool,

    /// What to do when the wrapped program has ended
    // Its prefixes were unique in the original.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = WrapMode::Exit,
          aliases = ["wr", "wra", "wrap", "wrap-", "wrap-m"])]
    pub wrap_mode: WrapMode,

    /// How the wrapped program's port is moved
    #[arg(long, value_name = "METHOD", value_enum, default_value_t = WrapMethod::Auto)]
    pub wrap_method: WrapMethod,

    /// Port that the wrapped program binds, if it is not the one we listen on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub wrap_port: Option<u16>,

    /// How long a client waits for the wrapped program to listen; 0 is for ever
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub wrap_timeout: Duration,

    /// Start the wrapped program as this user, instead of the one that we run as
    #[arg(long, value_name = "USER[:GROUP]")]
    pub wrap_user: Option<String>,

    /// Write {"listen": ADDR, "target": ADDR, "pid": PID} to this file once the wrapped program listens
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// Certificate for TLS, with its chain, and its key unless --key has it (PEM); self.pem is taken if it is there
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// The certificate's key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Password of the key; every user of this machine can read it in the list of processes
    // Its prefixes were unique in the original.
    #[arg(long, value_name = "PASSWORD", aliases = ["key-", "key-p", "key-pa", "key-pas", "key-pass", "key-passw", "key-passwo", "key-passwor"])]
    pub key_password: Option<Secret>,

    /// File with the password of the key in its first line; WEBSOCKIFY_KEY_PASSWORD in the environment will do as well
    #[arg(long, value_name = "FILE")]
    pub key_password_file: Option<PathBuf>,

    /// Refuse connections without TLS
    #[arg(long, action = ArgAction::SetTrue)]
    pub ssl_only: bool,

    /// The lowest version of TLS that is spoken
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = SslVersion::Default)]
    pub ssl_version: SslVersion,

    /// Ciphers for TLS, by their names or as OpenSSL's cipher strings
    #[arg(long, value_name = "LIST", value_parser = Ciphers::parse)]
    pub ssl_ciphers: Option<Ciphers>,

    /// Let only clients in that show a certificate which is trusted
    #[arg(long, action = ArgAction::SetTrue)]
    pub verify_client: bool,

    /// Certificates that --verify-client trusts, instead of those that the system does (PEM)
    #[arg(long, value_name = "FILE")]
    pub cafile: Option<PathBuf>,

    /// Speak TLS with the target
    #[arg(long, action = ArgAction::SetTrue)]
    pub ssl_target: bool,

    /// Certificates that --ssl-target trusts, instead of those that the system does (PEM)
    #[arg(long, value_name = "FILE")]
    pub target_cafile: Option<PathBuf>,

    /// Take whatever certificate the target shows
    #[arg(long, action = ArgAction::SetTrue)]
    pub target_insecure: bool,

    /// Serve the files of this directory to browsers
    #[arg(long, value_name = "DIR")]
    pub web: Option<PathBuf>,

    /// Serve files only, and no listings of directories
    #[arg(long, action = ArgAction::SetTrue)]
    pub file_only: bool,

    /// Add this header to every answer that is not an upgrade. May be repeated
    #[arg(long, value_name = "'NAME: VALUE'", action = ArgAction::Append)]
    pub web_header: Vec<WebHeader>,

    /// Let pages of this origin open a WebSocket, and no others; `same` is the host they ask. May be repeated
    #[arg(long, value_name = "ORIGIN", action = ArgAction::Append)]
    pub allow_origin: Vec<AllowedOrigin>,

    /// How long a client may take to say what it wants
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_some_seconds)]
    pub handshake_timeout: Duration,

    /// How many connections there may be at once; more wait to be accepted. As many as there are descriptors for by default
    #[arg(long, value_name = "N")]
    pub max_connections: Option<NonZero<usize>>,

    /// How many of them may come from one address, or from one IPv6 network of 64 bits; more are refused
    #[arg(long, value_name = "N")]
    pub max_connections_per_address: Option<NonZero<usize>>,

    /// Handle one WebSocket connection and exit
    #[arg(long, action = ArgAction::SetTrue)]
    pub run_once: bool,

    /// Stop listening after so long, and exit when the last connection has ended; 0 is never
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub timeout: Duration,

    /// Exit after so long without any connection; 0 is never
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub idle_timeout: Duration,

    /// On TERM or INT let sessions finish first, for up to so long; another signal ends them
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub drain: Duration,

    /// Ping each client this often, and drop one that answers none for two intervals; 0 is never. Without it a client is pinged that
    /// was sent nothing for up to 30 seconds, and need not answer
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub heartbeat: Option<Duration>,

    /// Give up a client or target whose system has not answered for so long
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = parse_some_seconds)]
    pub peer_timeout: Duration,

    /// Accepted for compatibility, no effect
    #[arg(long, action = ArgAction::SetTrue)]
    pub libserver: bool,

    /// Accepted for compatibility, no effect: pings are always answered
    #[arg(long, action = ArgAction::SetTrue)]
    pub auto_pong: bool,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, in the words that scripts know from the original
    #[default]
    Text,
    /// One JSON object per event
    Json,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProxyHeader {
    /// A line of text
    V1,
    /// A block of bytes
    V2,
}

/// The lowest version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SslVersion {
    /// TLS 1.2
    Default,
    /// TLS 1.2: there is nothing older
    #[value(name = "tlsv1_1")]
    Tls11,
    /// TLS 1.2
    #[value(name = "tlsv1_2")]
    Tls12,
    /// TLS 1.3
    #[value(name = "tlsv1_3")]
    Tls13,
}

/// What to do when the wrapped program has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WrapMode {
    /// Exit with the program's status
    Exit,
    /// Go on listening
    Ignore,
    /// Start the program again
    Respawn,
}

/// How the wrapped program's port is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WrapMethod {
    /// By preloading where that reaches the program, else by seccomp
    Auto,
    /// By a preloaded library
    Preload,
    /// By a seccomp filter on bind()
    Seccomp,
    /// Not at all: it listens by itself, on --wrap-port or on the unix target
    None,
}

/// A hundred years: nobody waits longer.
pub const FOREVER: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A duration in seconds, `5` or `0.5`, up to [`FOREVER`].
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= FOREVER => Ok(duration),
        _ => Err("not a number of seconds from 0 on".to_owned()),
    }
}

/// The same without 0.
fn parse_some_seconds(text: &str) -> Result<Duration, String> {
    match parse_seconds(text)? {
        Duration::ZERO => Err("not a number of seconds above 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Permission bits in octal, with or without a leading `0` or `0o`.
fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 && !digits.starts_with('+') => Ok(mode),
        _ => Err("not permission bits in octal, such as 0660".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Args {
        Args::try_parse_from([&["websockify"], words].concat())
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_stand_before_between_and_after_the_addresses() {
        for words in [
            ["-v", "6080", "h:1", "--heartbeat", "3"],
            ["6080", "-v", "--heartbeat=3", "h:1", "--verb"],
            ["6080", "h:1", "-v", "--heart", "3"],
        ] {
            let args = parse(&words);
            assert!(args.verbose);
            assert_eq!(args.heartbeat, Some(Duration::from_secs(3)));
            assert_eq!(args.addresses, ["6080", "h:1"]);
        }
    }

    #[test]
    fn clusters_prefixes_and_repeats_work() {
        assert!(parse(&["-vD"]).daemon && parse(&["--d"]).daemon);
        let args = parse(&[
            "-v6v",
            "--heartbeat",
            "3",
            "--heartbeat",
            "0.5",
            "--unix-listen",
            "a",
            "--unix-listen-m=660",
        ]);
        assert!(args.verbose && args.prefer_ipv6);
        assert_eq!(args.heartbeat, Some(Duration::from_millis(500)));
        assert_eq!(args.unix_listen_mode, 0o660);
        // Unique in the original.
        assert_eq!(parse(&["--wrap=ignore"]).wrap_mode, WrapMode::Ignore);
        for option in ["--lo", "--log", "--log-", "--log-f", "--log-fi"] {
            assert_eq!(parse(&[option, "f"]).log_file, Some("f".into()), "{option}");
        }
        assert_eq!(parse(&["--sy=s"]).syslog, Some("s".into()));
        assert!(parse(&["--le"]).legacy_syslog);
        assert_eq!(parse(&["--re=r"]).record, Some("r".into()));
    }

    /// The options of the original; their prefixes that are unique among these are in people's scripts.
    const ORIGINAL: &str = "help verbose traffic record daemon run-once timeout idle-timeout cert key key-password ssl-only ssl-target \
        verify-client cafile ssl-version ssl-ciphers unix-listen unix-listen-mode unix-target inetd web web-auth wrap-mode \
        prefer-ipv6 libserver target-config token-plugin token-source host-token auth-plugin auth-source heartbeat log-file \
        syslog legacy-syslog file-only auto-pong";

    #[test]
    fn prefixes_that_were_unique_in_the_original_mean_what_they_meant() {
        let mut command = Args::command();
        command.build();
        let names: Vec<&str> = ORIGINAL.split_ascii_whitespace().collect();
        let is_unique = |prefix: &str| {
            let meant = names.iter().filter(|name| name.starts_with(prefix));
            meant.count() == 1 && !names.contains(&prefix)
        };
        let options = names.iter().filter_map(|name| {
            let mut known = command.get_arguments();
            Some((name, known.find(|option| option.get_long() == Some(name))?))
        });
        let mut others = Vec::new();
        for (name, option) in options {
            let prefixes = (1..name.len()).map(|length| &name[..length]);
            for prefix in prefixes.filter(|prefix| is_unique(prefix)) {
                // With a value too few or too many the error names the option.
                let value = if option.get_action().takes_values() {
                    ""
                } else {
                    "=x"
                };
                let error = Args::try_parse_from(["websockify", &format!("--{prefix}{value}")]);
                if !error
                    .unwrap_err()
                    .to_string()
                    .contains(&format!("'--{name}"))
                {
                    others.push(prefix);
                }
            }
        }
        assert_eq!(others, [""; 0]);
    }

    #[test]
    fn the_wrapped_command_is_taken_as_it_stands() {
        let args = parse(&[
            "2023",
            "--wrap-mode=respawn",
            "--",
            "telnetd",
            "-debug",
            "--verbose",
            "2023",
            "--",
            "x",
        ]);
        assert_eq!(args.wrap_mode, WrapMode::Respawn);
        assert_eq!(args.addresses, ["2023"]);
        assert_eq!(
            args.command,
            ["telnetd", "-debug", "--verbose", "2023", "--", "x"]
        );
        assert!(!args.verbose);
        assert!(parse(&["6080", "h:1", "--"]).command.is_empty());
    }

    #[test]
    fn bad_values_are_refused() {
        for words in [
            &["--heartbeat", "x"][..],
            &["--heartbeat=-1"],
            &["--heartbeat", "nan"],
            &["--heartbeat", "inf"],
            &["--timeout", "1e300"],
            &["--unix-listen-mode", "8"],
            &["--unix-listen-mode", "100000"],
            &["--wrap-port", "0"],
            &["--wrap-port", "65536"],
            &["--wrap-mode", "sometimes"],
            &["--nonsense"],
        ] {
            assert!(
                Args::try_parse_from([&["websockify"], words].concat()).is_err(),
                "{words:?}"
            );
        }
    }
}
