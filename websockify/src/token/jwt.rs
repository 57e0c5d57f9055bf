//! Tokens that say themselves where they lead: `JWTTokenApi`. Their claims `host` and `port` count if the token was made with the
//! key that is in a file; `nbf` and `exp` are when it begins and ceases to be good.
//!
//! The key is read again when its file has changed. One that cannot be used changes nothing, for it may be half written; but
//! while there is no file, no token is let in: whoever has taken it away wants that.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::jose::{self, Key, Refusal};
use super::{BadDestination, Destination, Port, Token, Unavailable};
use crate::input;
use crate::secret::Secret;
use crate::stamp::Stamp;
use crate::sys;

/// `JWTTokenApi`.
#[derive(Debug)]
pub(crate) struct JwtSource {
    path: PathBuf,
    /// Whether it is a file that can be read again, and no pipe.
    is_file: bool,
    read: Mutex<Read>,
}

/// What was read.
#[derive(Debug)]
struct Read {
    /// The last key that could be used.
    key: Arc<Key>,
    /// What is in the file, whether it can be used or not.
    content: Secret,
    stamp: Stamp,
    /// Whether it cannot have changed without its stamp.
    settled: bool,
}

impl JwtSource {
    /// The tokens made with the key in this file.
    ///
    /// # Errors
    /// It cannot be read or used, and why.
    pub(crate) fn new(path: PathBuf) -> Result<Self> {
        let name = path.display();
        let now = SystemTime::now();
        let metadata = fs::metadata(&path)
            .map_err(|error| anyhow!("cannot read {name}: {}", sys::describe(&error)))?;
        let content = Secret::from(input::read(&path)?);
        let key = Key::read(content.expose()).map_err(|error| anyhow!("{name}: {error}"))?;
        if key.is_short() {
            tracing::warn!(
                "warning: the key in {name} is short: whoever has a token can find it by trying"
            );
        }
        let stamp = Stamp::from(&metadata);
        Ok(Self {
            read: Mutex::new(Read {
                key: Arc::new(key),
                content,
                settled: stamp.is_settled(now),
                stamp,
            }),
            is_file: metadata.is_file(),
            path,
        })
    }

    /// What is read again when it has changed.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.is_file.then_some(&*self.path)
    }

    /// Where a token leads, if it is a good one. What is wrong with it is told to the log.
    ///
    /// # Errors
    /// The key cannot be read.
    pub(crate) fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let key = self.key()?;
        match destination(token.expose(), &key, SystemTime::now()) {
            Ok(destination) => Ok(Some(destination)),
            Err(reason) => {
                tracing::info!("token {token} refused: {reason}");
                Ok(None)
            }
        }
    }

    /// Reads the key again, unless it comes from a pipe.
    pub(crate) fn reload(&self) {
        let name = self.path.display();
        if !self.is_file {
            return tracing::info!("the key of tokens stays what it was: {name} is no file");
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(Unavailable(reason)) = self.look_again(&mut read, true) {
            read.settled = false;
            tracing::error!("{reason}; no token is let in until that works");
        }
    }

    /// The key as it is now.
    fn key(&self) -> Result<Arc<Key>, Unavailable> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_file {
            self.look_again(&mut read, false)?;
        }
        Ok(Arc::clone(&read.key))
    }

    /// Reads the file again if it may have changed, or `always`.
    fn look_again(&self, read: &mut Read, always: bool) -> Result<(), Unavailable> {
        let name = self.path.display();
        let now = SystemTime::now();
        let stamp = Stamp::of(&self.path).map_err(|error| {
            Unavailable(format!("cannot read {name}: {}", sys::describe(&error)))
        })?;
        if !always && read.settled && stamp == read.stamp {
            return Ok(());
        }
        let content = input::read(&self.path).map_err(|error| Unavailable(format!("{error:#}")))?;
        let content = Secret::from(content);
        read.settled = stamp.is_settled(now);
        read.stamp = stamp;
        if !always && content == read.content {
            return Ok(());
        }
        match Key::read(content.expose()) {
            Ok(key) => {
                tracing::info!("Key of tokens read again: {name}");
                read.key = Arc::new(key);
            }
            Err(error) => tracing::error!(
                "the key of tokens stays what it was, the new one cannot be used: {name}: {error}"
            ),
        }
        read.content = content;
        Ok(())
    }
}

/// What is wrong with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// It was not made with the key.
    Refused(Refusal),
    /// It says not what it has to.
    Claims,
    NotYet,
    Expired,
    Destination(BadDestination),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Claims => f.write_str(
                "its claims are no JSON object with 'host' and 'port', and numbers in 'nbf' and 'exp' if it has them",
            ),
            Self::NotYet => f.write_str("it is not good yet"),
            Self::Expired => f.write_str("it has expired"),
            Self::Destination(bad) => bad.fmt(f),
        }
    }
}

/// What a token says; any other claim is nothing to us.
#[derive(Deserialize)]
struct Claims {
    host: String,
    port: Value,
    /// When it begins to be good, in seconds since 1970.
    #[serde(default, deserialize_with = "number")]
    nbf: Option<f64>,
    /// When it ceases to be good.
    #[serde(default, deserialize_with = "number")]
    exp: Option<f64>,
}

/// A number: what is there and is none, such as `null`, is not as good as nothing.
fn number<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    f64::deserialize(value).map(Some)
}

/// Where a token leads. There is no leeway before or after its time: the original has none, so whoever makes tokens already allows
/// for clocks that differ.
fn destination(token: &str, key: &Key, now: SystemTime) -> Result<Destination, Reason> {
    let json = jose::open(token, key).map_err(Reason::Refused)?;
    let json = String::from_utf8(json).map_err(|_| Reason::Claims)?;
    let claims: Claims = serde_json::from_str(&json).map_err(|_| Reason::Claims)?;
    // A clock that is before 1970 says nothing of any token.
    let now = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    if claims.nbf.is_some_and(|start| now < start) {
        return Err(Reason::NotYet);
    }
    if claims.exp.is_some_and(|end| now >= end) {
        return Err(Reason::Expired);
    }
    let port = match &claims.port {
        Value::Number(number) => number.as_u64().map(Port::Number),
        Value::String(text) => Some(Port::Text(text)),
        _ => None,
    };
    Destination::from_parts(&claims.host, port.ok_or(Reason::Claims)?).map_err(Reason::Destination)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::hmac;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::addr::HostPort;

    const SECRET: &str = "a secret that is long enough to be one";

    fn token(secret: &str, claims: &str) -> String {
        let [header, claims] =
            [r#"{"alg":"HS256"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = format!("{header}.{claims}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let mac = hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Where these claims lead 1000.5 seconds after the epoch.
    fn leads(claims: &str) -> Result<Destination, Reason> {
        let key = Key::read(SECRET.as_bytes()).unwrap();
        let now = UNIX_EPOCH + Duration::from_millis(1_000_500);
        destination(&token(SECRET, claims), &key, now)
    }

    fn tcp(text_port: bool) -> Destination {
        Destination::Tcp {
            address: HostPort {
                host: "h".to_owned(),
                port: 5900,
            },
            tls: false,
            text_port,
        }
    }

    #[test]
    fn claims_say_where_a_token_leads() {
        for claims in [
            r#"{"host":"h","port":5900}"#,
            r#"{"host":"h","port":5900,"nbf":1000,"exp":1001,"iat":2000,"aud":["x"],"x":{"exp":0}}"#,
            r#"{"host":"h","port":5900,"nbf":1000.5,"exp":1000.50001}"#,
            r#"{"host":"h","port":5900,"nbf":-1e300,"exp":1e300}"#,
        ] {
            assert_eq!(leads(claims), Ok(tcp(false)), "{claims}");
        }
        assert_eq!(leads(r#"{"host":"h","port":"5900"}"#), Ok(tcp(true)));
        let unix = Ok(Destination::Unix("/run/vnc".into()));
        assert_eq!(leads(r#"{"host":"unix_socket","port":"/run/vnc"}"#), unix);
    }

    #[test]
    fn a_token_is_good_for_its_time() {
        for (time, reason) in [
            (r#""nbf":1001"#, Reason::NotYet),
            (r#""nbf":1000.6"#, Reason::NotYet),
            (r#""nbf":1e300"#, Reason::NotYet),
            (r#""exp":1000"#, Reason::Expired),
            (r#""exp":1000.5"#, Reason::Expired),
            (r#""exp":0"#, Reason::Expired),
            (r#""exp":-1"#, Reason::Expired),
            (r#""exp":null"#, Reason::Claims),
            (r#""nbf":null"#, Reason::Claims),
            (r#""exp":"2000""#, Reason::Claims),
            (r#""exp":true"#, Reason::Claims),
            (r#""exp":1e999"#, Reason::Claims),
            (r#""exp":NaN"#, Reason::Claims),
            (r#""exp":[2000]"#, Reason::Claims),
            (r#""exp":0,"exp":2000"#, Reason::Claims),
        ] {
            let claims = format!(r#"{{"host":"h","port":5900,{time}}}"#);
            assert_eq!(leads(&claims), Err(reason), "{time}");
        }
    }

    #[test]
    fn claims_that_lead_nowhere_are_refused() {
        for claims in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"host":"h"}"#,
            r#"{"port":5900}"#,
            r#"{"host":null,"port":5900}"#,
            r#"{"host":5900,"port":5900}"#,
            r#"{"host":"h","port":null}"#,
            r#"{"host":"h","port":true}"#,
            r#"{"host":"h","port":5900.0}"#,
            r#"{"host":"h","port":-1}"#,
            r#"{"host":"h","port":[5900]}"#,
            r#"{"host":"g","host":"h","port":5900}"#,
            r#"{"host":"h","port":5900}}"#,
        ] {
            assert_eq!(leads(claims), Err(Reason::Claims), "{claims}");
        }
        for claims in [
            r#"{"host":"h","port":0}"#,
            r#"{"host":"h","port":65536}"#,
            r#"{"host":"h","port":"-1"}"#,
            r#"{"host":"h","port":"5900.0"}"#,
            r#"{"host":"","port":5900}"#,
            r#"{"host":"unix_socket","port":5900}"#,
            r#"{"host":"unix_socket","port":"run/vnc"}"#,
        ] {
            let led = leads(claims);
            assert!(
                matches!(led, Err(Reason::Destination(_))),
                "{claims}: {led:?}"
            );
        }
    }

    #[test]
    fn the_key_is_read_again_when_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["key", "other"].map(|name| directory.path().join(name));
        fs::write(&path, SECRET).unwrap();
        let source = JwtSource::new(path.clone()).unwrap();
        let claims = r#"{"host":"h","port":5900}"#;
        let opens = |secret: &str| {
            let found = source.look_up(&Token::new(token(secret, claims)));
            found.map(|destination| destination.is_some())
        };
        assert_eq!(opens(SECRET), Ok(true));
        // Within the granularity of the clock, and as long as the other.
        let new = SECRET.replace('a', "A");
        assert_eq!(opens(&new), Ok(false));
        fs::write(&path, &new).unwrap();
        assert_eq!((opens(SECRET), opens(&new)), (Ok(false), Ok(true)));
        // What cannot be used changes nothing.
        fs::write(&path, "").unwrap();
        assert_eq!((opens(SECRET), opens(&new)), (Ok(false), Ok(true)));
        fs::write(&other, SECRET).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!((opens(SECRET), opens(&new)), (Ok(true), Ok(false)));
        // Without a key there are no tokens.
        fs::remove_file(&path).unwrap();
        let error = opens(SECRET).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read ") && error.contains("No such file"),
            "{error}"
        );
        source.reload();
        assert!(opens(SECRET).is_err());
        fs::write(&path, &new).unwrap();
        assert_eq!((opens(SECRET), opens(&new)), (Ok(false), Ok(true)));
        // Nor does asking for it change what cannot be used.
        fs::write(&path, "").unwrap();
        source.reload();
        assert_eq!((opens(SECRET), opens(&new)), (Ok(false), Ok(true)));
    }

    #[test]
    fn without_a_key_there_is_no_source() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let error = || format!("{:#}", JwtSource::new(path.clone()).unwrap_err());
        assert!(
            error().ends_with("key: No such file or directory"),
            "{}",
            error()
        );
        fs::write(&path, "").unwrap();
        assert!(error().ends_with("key: it is empty"), "{}", error());
        assert!(JwtSource::new(directory.path().to_owned()).is_err());
    }
}
