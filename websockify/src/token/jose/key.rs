//! The key of tokens, as it is in a file: PEM or DER, a JSON Web Key, or a text that both sides know.
//!
//! A text that might be a key of another kind is never taken for a secret: public keys are known to everybody, who could then
//! make tokens with them.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pem::Pem;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode, Tag, Tagged};

use super::jwk::Jwk;
use super::material::Material;
use crate::secret::Secret;

/// A key that tokens are made with, or that which shows that they were.
#[derive(Debug)]
pub(crate) struct Key {
    pub(super) material: Material,
    /// What it is called, if it says so.
    name: Option<String>,
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
    /// It may be a key that is damaged, or of another form.
    LikeAKey,
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
            Self::LikeAKey => {
                "it looks like a key that is damaged or of another form, which others may know: a secret must not look like one"
            }
            Self::Binary => {
                "it is neither a key in PEM or DER form nor text; a secret of any bytes can be converted: openssl base64 -A -in FILE -out NEW"
            }
        })
    }
}

/// Bytes that a secret needs not to be found by trying (RFC 7518, section 3.2).
const LONG: usize = 32;

/// How texts begin that are keys in the forms of other programs: many of them are public.
const FOREIGN: [(&str, KeyError); 9] = [
    ("ssh-rsa", KeyError::OpenSshPublic),
    ("ecdsa-sha2-", KeyError::OpenSshPublic),
    ("ssh-", KeyError::UnknownKind),
    ("sk-ssh-", KeyError::UnknownKind),
    ("sk-ecdsa-", KeyError::UnknownKind),
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
            None if is_like_a_key(start) => Err(KeyError::LikeAKey),
            None => from_text(text).map(unnamed),
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
        _ => Material::from_certificate(block.contents()),
    };
    material.ok_or(KeyError::UnknownKind)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
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
fn from_text(text: &str) -> Result<Material, KeyError> {
    let line = text.trim_end_matches(['\r', '\n']);
    // Where more was passed over than was not, little may be left to be known.
    let decoded = passing_over(line).filter(|bytes| bytes.len() * 2 >= line.len());
    if let Some(bytes) = &decoded {
        // A public key without its frame is known to everybody.
        if let Some(material) = Material::from_der(bytes) {
            return Ok(material);
        }
        if is_foreign(bytes) {
            return Err(KeyError::UnknownKind);
        }
    }
    let mut secrets: Vec<_> = decoded.into_iter().collect();
    secrets.push(line.into());
    if line != text {
        secrets.push(text.into());
    }
    let secrets = secrets.into_iter().map(Secret::from).collect();
    Ok(Material::Secret(secrets))
}

/// Whether a text may be a key that was damaged or that something stands before, or the address of one: many of them are public, and whoever
/// has the text of a public key must not be able to make tokens.
fn is_like_a_key(text: &str) -> bool {
    const WORDS: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    let text = text.to_ascii_lowercase();
    let has = |part| text.contains(part);
    let framed = (has("begin ") || has("end ")) && (has("key") || has("certificate"));
    let named = text
        .split_whitespace()
        .any(|word| WORDS.iter().any(|start| word.starts_with(start)));
    let digits = text.trim_end();
    // `openssl rand -hex 32` makes 64 of them, and the shortest key is longer.
    let hexadecimal = digits.len() > 80
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && ["3082", "3081", "3059", "302a"].contains(&&digits[..4]);
    framed || named || hexadecimal || has("://")
}

/// Whether these bytes may be a key all the same: DER of any kind, or how OpenSSH writes lengths. What is short would often look so by
/// chance.
fn is_foreign(bytes: &[u8]) -> bool {
    let is_der = AnyRef::from_der(bytes).is_ok_and(|any| any.tag() == Tag::Sequence);
    let begins_der = bytes.len() > 40 && matches!(bytes, [0x30, 0x81 | 0x82 | 0x59 | 0x2a, ..]);
    bytes.len() > 64 && is_der || begins_der || bytes.starts_with(&[0; 3])
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
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{self, KeySize};
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, ParsedPublicKey};
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
        let certificate: String = (CERTIFICATE.lines())
            .filter(|line| !line.starts_with('-'))
            .collect();
        for (text, is_private) in [
            (SEC1, true),
            (PKCS8, true),
            (JWK, true),
            (&[CERTIFICATE, PKCS8].concat(), true),
            (CERTIFICATE, false),
            (PUBLIC, false),
            (&certificate, false),
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
        assert_eq!(read(&public), Ok(("P-256", public.clone(), false)));
        let certificate = pem::parse(CERTIFICATE).unwrap().into_contents();
        assert_eq!(read(certificate), Ok(("P-256", public, false)));
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
            ("AAAAB3NzaC1yc2EAAAADAQABAAAAgQ", KeyError::UnknownKind),
            (
                // A request for a certificate, as far as it matters.
                &format!("MIGH{}", "A".repeat(180)),
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
