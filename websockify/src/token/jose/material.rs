//! Keys by their kinds, and what can be done with each.

use std::ops::RangeInclusive;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{self, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    EcdsaVerificationAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaParameters,
};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::secret::Secret;

/// Bits that a modulus of RSA may have.
const RSA_BITS: RangeInclusive<u32> = 2048..=8192;

/// The key itself, by its kind.
#[derive(Debug)]
pub(super) enum Material {
    /// What the text that both sides know may stand for.
    Secret(Vec<Secret>),
    /// For signatures, and for encryption if there is the private one.
    Rsa {
        /// In the form of PKCS#1.
        public: Vec<u8>,
        private: Option<OaepPrivateDecryptingKey>,
    },
    /// The same on an elliptic curve of NIST.
    Curve {
        curve: &'static Curve,
        public: ParsedPublicKey,
        private: Option<PrivateKey>,
    },
    /// For signatures.
    Ed25519(ParsedPublicKey),
}

/// A curve, and all that is done on it.
#[derive(Debug)]
pub(super) struct Curve {
    /// Its name in a JSON Web Key.
    pub(super) name: &'static str,
    /// Bytes of a coordinate.
    pub(super) length: usize,
    /// The algorithm of signatures: each curve has its own.
    pub(super) signature: &'static str,
    /// How they are verified.
    verification: &'static EcdsaVerificationAlgorithm,
    /// How a secret is agreed on.
    pub(super) agreement: &'static agreement::Algorithm,
}

/// All that there are here.
pub(super) static CURVES: [Curve; 3] = [
    Curve {
        name: "P-256",
        length: 32,
        signature: "ES256",
        verification: &ECDSA_P256_SHA256_FIXED,
        agreement: &ECDH_P256,
    },
    Curve {
        name: "P-384",
        length: 48,
        signature: "ES384",
        verification: &ECDSA_P384_SHA384_FIXED,
        agreement: &ECDH_P384,
    },
    Curve {
        name: "P-521",
        length: 66,
        signature: "ES512",
        verification: &ECDSA_P521_SHA512_FIXED,
        agreement: &ECDH_P521,
    },
];

impl Material {
    /// A key in DER form, private or public, or that of a certificate.
    pub(super) fn from_der(der: &[u8]) -> Option<Self> {
        Self::from_private(der)
            .or_else(|| Self::from_public(der))
            .or_else(|| Self::from_certificate(der))
    }

    /// The public key that a certificate is for, whoever has signed it and whether or not it has expired.
    pub(super) fn from_certificate(der: &[u8]) -> Option<Self> {
        let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
        let key = certificate.tbs_certificate().subject_public_key_info();
        Self::from_public(&key.to_der().ok()?)
    }

    /// A private key: PKCS#8, PKCS#1, SEC1.
    pub(super) fn from_private(der: &[u8]) -> Option<Self> {
        if let Ok(pair) = rsa::KeyPair::from_pkcs8(der).or_else(|_| rsa::KeyPair::from_der(der)) {
            let private = PrivateDecryptingKey::from_pkcs8(pair.as_der().ok()?.as_ref()).ok()?;
            return Some(Self::Rsa {
                public: pair.public_key().as_ref().to_vec(),
                private: Some(OaepPrivateDecryptingKey::new(private).ok()?),
            });
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Self::ed25519(pair.public_key().as_ref());
        }
        CURVES.iter().find_map(|curve| {
            let private = PrivateKey::from_private_key_der(curve.agreement, der).ok()?;
            let public = private.compute_public_key().ok()?;
            Self::on_curve(curve, public.as_ref(), Some(private))
        })
    }

    /// A public key: SubjectPublicKeyInfo, PKCS#1.
    pub(super) fn from_public(der: &[u8]) -> Option<Self> {
        if let Ok(key) = rsa::PublicKey::from_der(der) {
            let bits = RsaParameters::public_modulus_len(key.as_ref()).ok()?;
            return RSA_BITS.contains(&bits).then(|| Self::Rsa {
                public: key.as_ref().to_vec(),
                private: None,
            });
        }
        // aws-lc-rs also takes the bytes of a point alone, which a secret may look like.
        SubjectPublicKeyInfoRef::from_der(der).ok()?;
        let mut curves = CURVES.iter();
        let on_curve = curves.find_map(|curve| Self::on_curve(curve, der, None));
        on_curve.or_else(|| Self::ed25519(der))
    }

    /// A key whose public one is this point, or SubjectPublicKeyInfo, if it is on the curve.
    pub(super) fn on_curve(
        curve: &'static Curve,
        public: &[u8],
        private: Option<PrivateKey>,
    ) -> Option<Self> {
        let public = ParsedPublicKey::new(curve.verification, public).ok()?;
        Some(Self::Curve {
            curve,
            public,
            private,
        })
    }

    /// A key whose public one is this, or SubjectPublicKeyInfo.
    pub(super) fn ed25519(public: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(&ED25519, public)
            .ok()
            .map(Self::Ed25519)
    }
}
