//! What a token says of itself.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::jwk::{Bytes, Jwk};
use super::{Key, Refusal};

/// The members of a header that mean something here. None of them comes twice: others might look at the other one.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    /// How it is signed, or how the key of the content is given.
    pub(super) alg: String,
    /// How the content is encrypted.
    pub(super) enc: Option<String>,
    /// The sender's public key for this token alone (RFC 7518, section 4.6.1.1).
    pub(super) epk: Option<Jwk>,
    /// What both sides are called, in the derivation of a key.
    #[serde(default)]
    pub(super) apu: Bytes,
    #[serde(default)]
    pub(super) apv: Bytes,
    /// The name of the key.
    kid: Option<String>,
    /// Whether it has members which one must know to read it (RFC 7515, section 4.1.11).
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
    /// Whether the content is compressed: what a few bytes become, only the sender knows.
    #[serde(default, deserialize_with = "is_there")]
    zip: bool,
    /// Whether the payload is encoded (RFC 7797).
    b64: Option<bool>,
}

impl Header {
    /// Reads one that is to be for `key`.
    pub(super) fn read(part: &str, key: &Key) -> Result<Self, Refusal> {
        // What is passed over has to be text as well, which serde_json does not look at.
        let json = String::from_utf8(super::decode(part)?).map_err(|_| Refusal::Header)?;
        let header: Self = serde_json::from_str(&json).map_err(|_| Refusal::Header)?;
        match &header {
            Self { crit: true, .. } => Err(Refusal::Critical),
            Self { zip: true, .. } => Err(Refusal::Compressed),
            Self {
                b64: Some(false), ..
            } => Err(Refusal::Unencoded),
            Self {
                kid: Some(name), ..
            } if !key.may_be_called(name) => Err(Refusal::OtherKey),
            _ => Ok(header),
        }
    }
}

fn is_there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}
