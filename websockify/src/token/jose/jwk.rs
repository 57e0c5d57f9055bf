//! JSON Web Keys (RFC 7517; RFC 7518, section 6; RFC 8037).

use std::fmt;

use aws_lc_rs::agreement::PrivateKey;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeyPairComponents, PublicKeyComponents};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::material::{CURVES, Curve, Material};
use crate::secret::Secret;

/// Bytes that are written in base64url. They may be part of a private key: nothing prints them.
#[derive(Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        let text = String::deserialize(text)?;
        let bytes = super::decode(&text);
        bytes
            .map(Self)
            .map_err(|_| D::Error::custom("not base64url"))
    }
}

/// A key of any kind; the names are those of the members.
#[derive(Debug, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    pub(super) kid: Option<String>,
    k: Option<Bytes>,
    crv: Option<String>,
    x: Option<Bytes>,
    y: Option<Bytes>,
    n: Option<Bytes>,
    e: Option<Bytes>,
    d: Option<Bytes>,
    p: Option<Bytes>,
    q: Option<Bytes>,
    dp: Option<Bytes>,
    dq: Option<Bytes>,
    qi: Option<Bytes>,
}

impl Jwk {
    /// The point of a public key on this curve, without compression (SEC 1, section 2.3.3), whether or not it is on it.
    pub(super) fn point(&self, curve: &Curve) -> Option<Vec<u8>> {
        let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
        let fits = self.kty == "EC"
            && self.crv.as_deref() == Some(curve.name)
            && x.len() == curve.length
            && y.len() == curve.length;
        fits.then(|| [&[4], x, y].concat())
    }

    /// The key, if it is a supported one.
    pub(super) fn material(&self) -> Option<Material> {
        match self.kty.as_str() {
            "oct" => {
                let secret = bytes(&self.k).filter(|secret| !secret.is_empty())?;
                Some(Material::Secret(vec![Secret::from(secret.to_vec())]))
            }
            "EC" => CURVES.iter().find_map(|curve| self.on_curve(curve)),
            "OKP" if self.crv.as_deref() == Some("Ed25519") => Material::ed25519(bytes(&self.x)?),
            "RSA" => match self.d {
                Some(_) => Material::from_private(self.rsa_pair()?.as_ref()),
                None => Material::from_public(self.rsa_public()?.as_der().ok()?.as_ref()),
            },
            _ => None,
        }
    }

    fn on_curve(&self, curve: &'static Curve) -> Option<Material> {
        let point = self.point(curve)?;
        let private = match &self.d {
            Some(private) => Some(PrivateKey::from_private_key(curve.agreement, &private.0).ok()?),
            None => None,
        };
        Material::on_curve(curve, &point, private)
    }

    fn rsa_public(&self) -> Option<PublicKeyComponents<&[u8]>> {
        Some(PublicKeyComponents {
            n: bytes(&self.n)?,
            e: bytes(&self.e)?,
        })
    }

    /// Both keys of RSA.
    fn rsa_pair(&self) -> Option<Pkcs8V1Der<'static>> {
        let components = KeyPairComponents {
            public_key: self.rsa_public()?,
            d: bytes(&self.d)?,
            p: bytes(&self.p)?,
            q: bytes(&self.q)?,
            dP: bytes(&self.dp)?,
            dQ: bytes(&self.dq)?,
            qInv: bytes(&self.qi)?,
        };
        KeyPair::from_components(&components).ok()?.as_der().ok()
    }
}

fn bytes(member: &Option<Bytes>) -> Option<&[u8]> {
    member.as_ref().map(|bytes| &*bytes.0)
}
