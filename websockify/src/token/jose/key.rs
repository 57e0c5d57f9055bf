//! The key of tokens, as it is in a file: PEM or DER, a JSON Web Key, or a text that both sides know.
//!
//! A text that might be a key of another kind is never taken for a secret: public keys are known to everybody, who could then
//! make tokens with them.

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{self, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    EcdsaVerificationAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaParameters,
};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pem::Pem;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::jwk::Jwk;
use crate::secret::Secret;

/// A key that tokens are made with, or that which shows that they were.
#[derive(Debug)]
pub(crate) struct Key {
    pub(super) material: Material,
    /// What it is called, if it says so.
    name: Option<String>,
}

/// The key itself, by its kind.
#[derive(Debug)]
pub(super) enum Material {
    /// What the text that both sides know may stand for.
    Secret(Vec<Secret>),
    Rsa {
        /// In the form of PKCS#1.
        public: Vec<u8>,
        private: Option<OaepPrivateDecryptingKey>,
    },
    /// On an elliptic curve of NIST.
    Curve {
        curve: &'static Curve,
        public: ParsedPublicKey,
        private: Option<PrivateKey>,
    },
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
    verification: &'static EcdsaVerificationAlgorithm,
    pub(super) agreement: &'static agreement::Algorithm,
}

static CURVES: [Curve; 3] = [
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

impl Curve {
    /// All that there are here.
    pub(super) fn all() -> &'static [Self] {
        &CURVES
    }
}

/// Why there is no key; the text follows the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::token) enum KeyError {
    Empty,
    /// PEM that is none.
    Damaged,
    /// Nothing in it is a key.
    NoKey,
    Encrypted,
    /// It is for no algorithm that we know.
    UnknownKind,
    /// It is in one of the forms of OpenSSH that nobody else has.
    OpenSshPublic,
    OpenSshPrivate,
    /// It begins like a JSON Web Key, and is none.
    NoJwk,
    /// It is neither text nor a key.
    Binary,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::Damaged => "it is damaged",
            Self::NoKey => "it has no key; it has to begin with '-----BEGIN PUBLIC KEY-----' or the like",
            Self::Encrypted => "its key is encrypted; decrypt it: openssl pkey -in FILE -out NEW",
            Self::UnknownKind => {
                "its key is not of a kind or form that is supported: RSA of at least 2048 bits, EC over P-256, P-384 or P-521, or Ed25519, in PEM"
            }
            Self::OpenSshPublic => "it is in OpenSSH's form; convert it: ssh-keygen -e -m PKCS8 -f FILE > NEW",
            Self::OpenSshPrivate => "it is in OpenSSH's form; convert it in its place: ssh-keygen -p -N '' -m PKCS8 -f FILE",
            Self::NoJwk => "it is no JSON Web Key; of a set of them, one has to be in a file of its own",
            Self::Binary => {
                "it is neither a key in PEM or DER form nor text; a secret of any bytes can be converted: openssl base64 -A -in FILE -out NEW"
            }
        })
    }
}

/// Bits that a modulus of RSA may have.
const RSA_BITS: RangeInclusive<u32> = 2048..=8192;
/// Bytes that a secret needs not to be found by trying (RFC 7518, section 3.2).
const LONG: usize = 32;

/// How texts begin that are keys in the forms of other programs: many of them are public.
const FOREIGN: [(&str, KeyError); 8] = [
    ("ssh-rsa", KeyError::OpenSshPublic),
    ("ecdsa-sha2-", KeyError::OpenSshPublic),
    ("ssh-", KeyError::UnknownKind),
    ("sk-", KeyError::UnknownKind),
    // RFC 4716.
    ("---- BEGIN", KeyError::UnknownKind),
    ("PuTTY-User-Key-File", KeyError::UnknownKind),
    ("<RSAKeyValue", KeyError::UnknownKind),
    ("[{", KeyError::NoJwk),
];

impl Key {
    /// The key that is in a file.
    pub(in crate::token) fn read(bytes: &[u8]) -> Result<Self, KeyError> {
        let unnamed = |material| Self {
            material,
            name: None,
        };
        if contains(bytes, b"-----BEGIN") {
            return from_pem(bytes).map(unnamed);
        }
        if let Some(material) = Material::from_der(bytes) {
            return Ok(unnamed(material));
        }
        let text = str::from_utf8(bytes).map_err(|_| KeyError::Binary)?;
        let text = text.trim_start_matches('\u{feff}');
        let start = text.trim_start();
        if start.is_empty() {
            return Err(KeyError::Empty);
        }
        if start.starts_with('{') {
            return from_jwk(start);
        }
        match FOREIGN.iter().find(|(form, _)| start.starts_with(form)) {
            Some((_, error)) => Err(*error),
            None => Ok(unnamed(from_text(text))),
        }
    }

    /// Whether whoever makes a token must know it, and not only whoever reads one.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self.material, Material::Secret(_))
    }

    /// Whether it is a secret that may be found by trying, by whoever has a token.
    pub(in crate::token) fn is_short(&self) -> bool {
        match &self.material {
            Material::Secret(secrets) => secrets.iter().all(|secret| secret.expose().len() < LONG),
            _ => false,
        }
    }

    /// Whether it may be the one that a token calls so.
    pub(super) fn may_be_called(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|ours| ours == name)
    }
}

impl Material {
    /// A key in DER form, private or public.
    fn from_der(der: &[u8]) -> Option<Self> {
        Self::from_private(der).or_else(|| Self::from_public(der))
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

    pub(super) fn ed25519(public: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(&ED25519, public)
            .ok()
            .map(Self::Ed25519)
    }
}

/// The key in a file of PEM: the private one, if there is one, then the public one, then that of a certificate.
fn from_pem(bytes: &[u8]) -> Result<Material, KeyError> {
    let blocks = pem::parse_many(bytes).map_err(|_| KeyError::Damaged)?;
    let with = |label| {
        blocks
            .iter()
            .find(|block: &&Pem| block.tag().ends_with(label))
    };
    let private = with("PRIVATE KEY");
    let block = private
        .or_else(|| with("PUBLIC KEY"))
        .or_else(|| with("CERTIFICATE"));
    let block = block.ok_or(KeyError::NoKey)?;
    let material = match block.tag() {
        // ssh-keygen converts those of RSA and EC only.
        "OPENSSH PRIVATE KEY" if !contains(block.contents(), b"ssh-ed25519") => {
            return Err(KeyError::OpenSshPrivate);
        }
        "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
        _ if block.headers().get("DEK-Info").is_some() => return Err(KeyError::Encrypted),
        tag if tag.ends_with("PRIVATE KEY") => Material::from_private(block.contents()),
        tag if tag.ends_with("PUBLIC KEY") => Material::from_public(block.contents()),
        _ => from_certificate(block.contents()),
    };
    material.ok_or(KeyError::UnknownKind)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn from_certificate(der: &[u8]) -> Option<Material> {
    let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    Material::from_public(&key.to_der().ok()?)
}

fn from_jwk(json: &str) -> Result<Key, KeyError> {
    let jwk: Jwk = serde_json::from_str(json).map_err(|_| KeyError::NoJwk)?;
    Ok(Key {
        material: jwk.material().ok_or(KeyError::UnknownKind)?,
        name: jwk.kid,
    })
}

/// A text that both sides know. The original takes it for base64url and passes over whatever is not, others take it as it is, with
/// or without the end of its line. All of this is for them only who know the text, so each may be the one that is meant.
fn from_text(text: &str) -> Material {
    let line = text.trim_end_matches(['\r', '\n']);
    // Where more was passed over than was not, little may be left to be known.
    let decoded = passing_over(line).filter(|bytes| bytes.len() * 2 >= line.len());
    // A public key without its frame is known to everybody.
    if let Some(material) = decoded.as_deref().and_then(Material::from_der) {
        return material;
    }
    let mut secrets: Vec<_> = decoded.into_iter().collect();
    secrets.push(line.into());
    if line != text {
        secrets.push(text.into());
    }
    Material::Secret(secrets.into_iter().map(Secret::from).collect())
}

/// What a text means in base64url or base64, passing over whatever belongs to neither, as Python does.
fn passing_over(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireNone),
    );
    let text = text.replace('+', "-").replace('/', "_");
    let kept = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
    LENIENT
        .decode(text.chars().filter(kept).collect::<String>())
        .ok()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::KeySize;
    use pkcs8::PrivateKeyInfoRef;

    use super::*;

    /// The keys of RFC 7515, A.3, as openssl writes them.
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEII6bEJ5xkJi/mASH3x9dd+nLKWBuvtImO19XwhPfhPSyoAoGCCqGSM49
AwEHoUQDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEXH8UTNG72b
focs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END EC PRIVATE KEY-----
";
    const PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgjpsQnnGQmL+YBIff
H1136cspYG6+0iY7X1fCE9+E9LKhRANCAAR/zc4ncPbEXUGDy+5v20t7WAczNXvp
7xO6z248e9FURcfxRM0bvZt+hyzf7bnuufSzaV1uqQskrYpGIyiFiOWt
-----END PRIVATE KEY-----
";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIUJ0C6KkGKp4KVD/GA77jAPTnGYjYwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjUyMjMyNDRaGA8yMTI2MTEwMTIyMzI0NFow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABH/Nzidw9sRd
QYPL7m/bS3tYBzM1e+nvE7rPbjx70VRFx/FEzRu9m36HLN/tue659LNpXW6pCySt
ikYjKIWI5a2jUzBRMB0GA1UdDgQWBBTOjRaxyTOOt/45eZmuRb7uP7WGhjAfBgNV
HSMEGDAWgBTOjRaxyTOOt/45eZmuRb7uP7WGhjAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQDFqk4c7+7vJVd87HOm/laW2pBCf9dkiJkLQN0J8A1W
IQIhANghVcUCnNP4TB51gLf5NWrLUitXye8C18eYFvaeM/Oh
-----END CERTIFICATE-----
";
    /// Its private key as a JSON Web Key.
    const JWK: &str = r#" {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}"#;

    /// Kind and public key, and whether there is the private one as well.
    fn read(bytes: impl AsRef<[u8]>) -> Result<(&'static str, Vec<u8>, bool), KeyError> {
        let point = |key: ParsedPublicKey| key.as_der().unwrap().as_ref().to_vec();
        Key::read(bytes.as_ref()).map(|key| match key.material {
            Material::Secret(secrets) => ("text", secrets[0].expose().to_vec(), true),
            Material::Rsa { public, private } => ("RSA", public, private.is_some()),
            Material::Curve {
                curve,
                public,
                private,
            } => (curve.name, point(public), private.is_some()),
            Material::Ed25519(public) => ("Ed25519", point(public), false),
        })
    }

    #[test]
    fn a_key_is_read_in_all_its_forms() {
        let public = pem::parse(PUBLIC).unwrap().into_contents();
        let body: String = PUBLIC
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        for (text, is_private) in [
            (SEC1, true),
            (PKCS8, true),
            (JWK, true),
            (&[CERTIFICATE, PKCS8].concat(), true),
            (CERTIFICATE, false),
            (PUBLIC, false),
            (
                &format!("\u{feff}text\r\n{}", PUBLIC.replace('\n', "\r\n")),
                false,
            ),
            (&body, false),
        ] {
            assert_eq!(
                read(text),
                Ok(("P-256", public.clone(), is_private)),
                "{text}"
            );
        }
        assert_eq!(read(&public), Ok(("P-256", public, false)));
    }

    #[test]
    fn a_key_of_rsa_is_read_in_all_its_forms() {
        let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::as_der(&pair).unwrap().as_ref().to_vec();
        let pkcs1 = PrivateKeyInfoRef::from_der(&pkcs8)
            .unwrap()
            .private_key
            .as_bytes()
            .to_vec();
        let public = pair.public_key().as_ref().to_vec();
        let spki = AsDer::as_der(pair.public_key()).unwrap().as_ref().to_vec();
        for (label, der, is_private) in [
            ("PRIVATE KEY", pkcs8, true),
            ("RSA PRIVATE KEY", pkcs1, true),
            ("RSA PUBLIC KEY", public.clone(), false),
            ("PUBLIC KEY", spki, false),
        ] {
            let pem = pem::encode(&Pem::new(label, &*der));
            let expected = Ok(("RSA", public.clone(), is_private));
            assert_eq!(read(der), expected, "{label}");
            assert_eq!(read(pem), expected, "{label}");
        }
    }

    #[test]
    fn a_key_of_ed25519_is_read_in_all_its_forms() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = AsDer::as_der(pair.public_key()).unwrap().as_ref().to_vec();
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let expected = Ok(("Ed25519", public.clone(), false));
        assert_eq!(
            read(pem::encode(&Pem::new("PRIVATE KEY", pkcs8.as_ref()))),
            expected
        );
        assert_eq!(read(pem::encode(&Pem::new("PUBLIC KEY", public))), expected);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let pem = |label, headers| {
            format!("-----BEGIN {label}-----\n{headers}AAAA\n-----END {label}-----\n")
        };
        let openssh = |kind| pem::encode(&Pem::new("OPENSSH PRIVATE KEY", kind));
        for (text, error) in [
            ("", KeyError::Empty),
            ("\u{feff} \r\n", KeyError::Empty),
            ("-----BEGIN PUBLIC KEY-----\nMFkw", KeyError::NoKey),
            (&PUBLIC.replacen("MFkw", "MF\u{7f}w", 1), KeyError::Damaged),
            (&pem("CERTIFICATE REQUEST", ""), KeyError::NoKey),
            (&pem("PGP PUBLIC KEY BLOCK", ""), KeyError::NoKey),
            (&pem("PRIVATE KEY", ""), KeyError::UnknownKind),
            (&pem("PUBLIC KEY", ""), KeyError::UnknownKind),
            (&pem("CERTIFICATE", ""), KeyError::UnknownKind),
            (&pem("ENCRYPTED PRIVATE KEY", ""), KeyError::Encrypted),
            (
                &pem(
                    "RSA PRIVATE KEY",
                    "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n",
                ),
                KeyError::Encrypted,
            ),
            (&openssh("ssh-rsa"), KeyError::OpenSshPrivate),
            (&openssh("ssh-ed25519"), KeyError::UnknownKind),
            (
                "ssh-rsa AAAAB3NzaC1yc2E someone@here\n",
                KeyError::OpenSshPublic,
            ),
            (
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI someone@here\n",
                KeyError::UnknownKind,
            ),
            (
                "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n",
                KeyError::UnknownKind,
            ),
            (
                "<RSAKeyValue><Modulus>AAAA</Modulus></RSAKeyValue>",
                KeyError::UnknownKind,
            ),
            ("{\"keys\":[]}", KeyError::NoJwk),
            ("\u{feff}{\"kty\":", KeyError::NoJwk),
            ("[{\"kty\":\"oct\",\"k\":\"AAAA\"}]", KeyError::NoJwk),
            (r#"{"kty":"oct","k":"AA=="}"#, KeyError::NoJwk),
            (r#"{"kty":"oct","k":""}"#, KeyError::UnknownKind),
            (r#"{"kty":"oct"}"#, KeyError::UnknownKind),
            (
                r#"{"kty":"EC","crv":"secp256k1","x":"AAAA","y":"AAAA"}"#,
                KeyError::UnknownKind,
            ),
            (
                r#"{"kty":"OKP","crv":"X25519","x":"AAAA"}"#,
                KeyError::UnknownKind,
            ),
            (
                r#"{"kty":"RSA","n":"AAAA","e":"AQAB"}"#,
                KeyError::UnknownKind,
            ),
            (&JWK.replace("f83O", "f83P"), KeyError::UnknownKind),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        assert_eq!(
            read(b"\xff\xfe-\0-\0-\0-\0-\0B\0E\0G\0I\0N\0"),
            Err(KeyError::Binary)
        );
    }

    #[test]
    fn a_short_secret_is_one_that_can_be_found_by_trying() {
        for (text, is_short) in [
            ("hunter2\n", true),
            (&"x".repeat(32), false),
            (PUBLIC, false),
        ] {
            assert_eq!(
                Key::read(text.as_bytes()).unwrap().is_short(),
                is_short,
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let private = Key::read(JWK.as_bytes()).unwrap();
        let secret = Key::read(b"hunter2").unwrap();
        let text = format!("{private:?} {secret:?}");
        assert!(
            !text.contains("8e9b109e") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
