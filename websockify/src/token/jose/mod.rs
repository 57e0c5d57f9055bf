//! Signed and encrypted tokens in their compact form (RFC 7515, 7516, 7519), as far as one key opens them that is known beforehand.
//!
//! The kind of the key decides which algorithms there are, and the token only which of these it is: so `none` is none of them, and a
//! public key is never the secret of a MAC. Of what a token says of itself nothing else is believed: no key that it brings along
//! or names by an address is looked at (`jwk`, `jku`, `x5c`, `x5u`), and what has to be understood (`crit`) is not.
//!
//! [`key`] reads the key, [`jwk`] one that is written as a JSON Web Key, and [`material`] is what both of them make of it.
//! [`header`] is what a token says of itself; [`jws`] tells whether a signature is right, and [`jwe`] decrypts. The cryptography
//! itself is that of aws-lc-rs, which TLS has brought along.

mod header;
mod jwe;
mod jwk;
mod jws;
mod key;
mod material;
#[cfg(test)]
mod vectors;

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use header::Header;

pub(super) use key::Key;

/// Characters that a token may have.
const MAX_TOKEN: usize = 64 * 1024;
/// How many layers of encryption and signature may be around the claims.
const MAX_LAYERS: usize = 2;

/// Why a token is refused; the text follows the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is too long to look at.
    TooLong,
    /// It has not the parts of any such token, or they are not base64url.
    NoToken,
    /// It has too many layers.
    TooDeep,
    /// Its header is not one.
    Header,
    /// It has `crit`.
    Critical,
    /// It has `zip`.
    Compressed,
    /// It has `b64: false` (RFC 7797).
    Unencoded,
    /// It is for the key of another name.
    OtherKey,
    /// The key is not for its algorithm, whether there is such a one or not.
    Algorithm,
    /// Its content is encrypted in a way that is not known.
    Content,
    /// The private key is needed, and there is only the public one.
    PublicKey,
    /// It is not by whoever has the key.
    Signature,
    /// It is not for this key, or was changed.
    Encryption,
    /// It is encrypted with a public key, which everybody can do, and not signed.
    Unsigned,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "it is longer than 64 KiB",
            Self::NoToken => "it is no signed or encrypted token in compact form",
            Self::TooDeep => "it has more than two layers",
            Self::Header => "its header is no JSON object with 'alg' and each member once",
            Self::Critical => "its header has 'crit', of which nothing is known",
            Self::Compressed => "it is compressed",
            Self::Unencoded => "its payload is not encoded",
            Self::OtherKey => "it names another key",
            Self::Algorithm => "its algorithm is not one for this key",
            Self::Content => "its content is encrypted in a way that is not known",
            Self::PublicKey => "it is encrypted, and the key is only a public one",
            Self::Signature => "its signature is wrong",
            Self::Encryption => "it cannot be decrypted with this key",
            Self::Unsigned => "it is encrypted with a public key only, and not signed",
        })
    }
}

/// The claims of a token, which whoever has the key has made.
pub(super) fn open(token: &str, key: &Key) -> Result<Vec<u8>, Refusal> {
    if token.len() > MAX_TOKEN {
        return Err(Refusal::TooLong);
    }
    let mut token = Cow::Borrowed(token);
    for _ in 0..MAX_LAYERS {
        let inner = match Layer::open(&token, key)? {
            Layer::Signed(claims) => return Ok(claims),
            Layer::Encrypted(inner) => inner,
        };
        if inner.trim_ascii_start().starts_with(b"{") {
            return if key.is_secret() {
                Ok(inner)
            } else {
                Err(Refusal::Unsigned)
            };
        }
        token = Cow::Owned(String::from_utf8(inner).map_err(|_| Refusal::NoToken)?);
    }
    Err(Refusal::TooDeep)
}

/// What is in a token.
#[derive(Debug)]
enum Layer {
    /// Whoever has the key has signed it.
    Signed(Vec<u8>),
    /// It was encrypted: with the secret, or else with a public key, which everybody may have.
    Encrypted(Vec<u8>),
}

impl Layer {
    fn open(token: &str, key: &Key) -> Result<Self, Refusal> {
        // One more than there may be.
        let parts: Vec<&str> = token.splitn(6, '.').collect();
        match *parts {
            [header, payload, signature] => {
                let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
                let header = Header::read(header, key)?;
                jws::verify(key, &header.alg, signed, &decode(signature)?)?;
                decode(payload).map(Self::Signed)
            }
            [header, encrypted_key, vector, ciphertext, tag] => {
                let sealed = jwe::Sealed {
                    additional: header.as_bytes(),
                    vector: &decode(vector)?,
                    ciphertext: &decode(ciphertext)?,
                    tag: &decode(tag)?,
                };
                let header = Header::read(header, key)?;
                let inner = jwe::decrypt(key, &header, &decode(encrypted_key)?, &sealed)?;
                Ok(Self::Encrypted(inner))
            }
            _ => Err(Refusal::NoToken),
        }
    }
}

/// What a part of a token stands for: base64url without padding, in its only form (RFC 7515, section 2).
fn decode(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::NoToken)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::{hmac, rsa};

    use super::*;

    /// Decoded it is 32 bytes long.
    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
    /// The public key of RFC 7515, A.3.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";

    fn key(text: &str) -> Key {
        Key::read(text.as_bytes()).unwrap()
    }

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A token with a MAC by these bytes.
    fn signed_by(secret: &[u8], header: &str, payload: &[u8]) -> String {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let mac = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret),
            signed.as_bytes(),
        );
        format!("{signed}.{}", encode(mac))
    }

    fn signed(header: &str, payload: &str) -> String {
        signed_by(&decode(SECRET).unwrap(), header, payload.as_bytes())
    }

    /// A token that is encrypted with the secret itself.
    fn encrypted(header: &str, payload: &str) -> String {
        sealed(header, b"", &decode(SECRET).unwrap(), payload)
    }

    /// A token with content that is encrypted by a key.
    fn sealed(header: &str, encrypted_key: &[u8], key: &[u8], payload: &str) -> String {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
        let (header, vector) = (encode(header), [7; 12]);
        let nonce = Nonce::assume_unique_for_key(vector);
        let mut content = payload.as_bytes().to_vec();
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header.as_bytes()), &mut content)
            .unwrap();
        let [encrypted_key, vector] = [encode(encrypted_key), encode(vector)];
        let [content, tag] = [encode(content), encode(tag)];
        format!("{header}.{encrypted_key}.{vector}.{content}.{tag}")
    }

    const DIRECT: &str = r#"{"alg":"dir","enc":"A256GCM"}"#;
    const MAC: &str = r#"{"alg":"HS256"}"#;

    #[test]
    fn the_examples_of_the_standards_are_opened() {
        for (name, jwk, token, content) in vectors::TOKENS {
            let (Layer::Signed(found) | Layer::Encrypted(found)) =
                Layer::open(token, &key(jwk)).expect(name);
            assert_eq!(str::from_utf8(&found), Ok(content), "{name}");
        }
    }

    #[test]
    fn no_character_of_a_token_can_be_another_one() {
        for (name, jwk, token, _) in vectors::TOKENS {
            let key = key(jwk);
            for (index, old) in token.char_indices() {
                let mut changed = token.to_owned();
                let new = if old == 'A' { "B" } else { "A" };
                changed.replace_range(index..=index, new);
                assert!(Layer::open(&changed, &key).is_err(), "{name}: {changed}");
            }
        }
    }

    #[test]
    fn a_part_of_a_token_is_none() {
        for (name, jwk, token, _) in vectors::TOKENS {
            let key = key(jwk);
            for end in 0..token.len() {
                assert!(Layer::open(&token[..end], &key).is_err(), "{name}: {end}");
            }
            for more in ["=", ".", ".AAAA", "A", "AAAA", "\n", " "] {
                let longer = format!("{token}{more}");
                assert!(Layer::open(&longer, &key).is_err(), "{name}: {longer}");
            }
        }
    }

    #[test]
    fn what_a_key_is_not_for_is_refused() {
        let keys = vectors::TOKENS.map(|(name, jwk, token, _)| (name, key(jwk), token));
        for (ours, key, _) in &keys {
            for (theirs, _, token) in keys.iter().filter(|(theirs, ..)| theirs != ours) {
                assert!(open(token, key).is_err(), "{theirs} by the key of {ours}");
            }
            for name in [
                "none", "None", "NONE", "nOnE", "", "hs256", "HS1", "RSA1_5", "RS256 ",
            ] {
                let header = format!(r#"{{"alg":"{name}","enc":"A256GCM"}}"#);
                for token in [signed(&header, "{}"), encrypted(&header, "{}")] {
                    assert_eq!(
                        open(&token, key),
                        Err(Refusal::Algorithm),
                        "{name} by {ours}"
                    );
                    let unsigned = token.rsplit_once('.').unwrap().0;
                    assert!(
                        open(&format!("{unsigned}."), key).is_err(),
                        "{name} by {ours}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let pem = signed_by(PUBLIC.as_bytes(), MAC, b"{}");
        assert_eq!(open(&pem, &key(PUBLIC)), Err(Refusal::Algorithm));
        let lines: String = PUBLIC
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let body = signed_by(lines.as_bytes(), MAC, b"{}");
        assert_eq!(open(&body, &key(&lines)), Err(Refusal::Algorithm));
        for (name, jwk, ..) in &vectors::TOKENS[1..6] {
            let token = signed_by(jwk.as_bytes(), MAC, b"{}");
            assert_eq!(open(&token, &key(jwk)), Err(Refusal::Algorithm), "{name}");
        }
    }

    #[test]
    fn a_secret_text_is_taken_for_all_that_it_may_stand_for() {
        for (text, meant) in [
            (SECRET, &*decode(SECRET).unwrap()),
            (SECRET, SECRET.as_bytes()),
            (&format!("{SECRET}\n"), &decode(SECRET).unwrap()),
            (&format!("{SECRET}\n"), SECRET.as_bytes()),
            (&format!("{SECRET}\r\n"), SECRET.as_bytes()),
            (&format!("{SECRET}\n"), format!("{SECRET}\n").as_bytes()),
            ("not at all base64!", b"not at all base64!"),
            ("+/+/", b"\xfb\xff\xbf"),
        ] {
            let token = signed_by(meant, MAC, b"{}");
            assert_eq!(
                open(&token, &key(text)).as_deref(),
                Ok(&b"{}"[..]),
                "{text:?}"
            );
        }
        for (text, not_meant) in [
            (SECRET, ""),
            (SECRET, &SECRET[..42]),
            // Of this nothing is base64.
            ("!!!! §§§§ !!!! §§§§ !!!! §§§§ a", ""),
            ("!!!! §§§§ !!!! §§§§ !!!! §§§§ aa", "i"),
        ] {
            let token = signed_by(not_meant.as_bytes(), MAC, b"{}");
            assert_eq!(
                open(&token, &key(text)),
                Err(Refusal::Signature),
                "{text:?}"
            );
        }
    }

    #[test]
    fn claims_are_signed_or_encrypted_with_a_secret() {
        let key = key(SECRET);
        let signed = signed(MAC, "{\"a\":1}");
        for token in [
            signed.clone(),
            encrypted(DIRECT, "{\"a\":1}"),
            encrypted(DIRECT, &signed),
            encrypted(DIRECT, &encrypted(DIRECT, "{\"a\":1}")),
        ] {
            assert_eq!(
                open(&token, &key).as_deref(),
                Ok(&b"{\"a\":1}"[..]),
                "{token}"
            );
        }
        let deep = encrypted(DIRECT, &encrypted(DIRECT, &signed));
        assert_eq!(open(&deep, &key), Err(Refusal::TooDeep));
        let none = format!("{}.e30.", encode(r#"{"alg":"none"}"#));
        assert_eq!(
            open(&encrypted(DIRECT, &none), &key),
            Err(Refusal::Algorithm)
        );
        assert_eq!(open(&encrypted(DIRECT, "a"), &key), Err(Refusal::NoToken));
        let with_key = sealed(DIRECT, b"key", &decode(SECRET).unwrap(), "{}");
        assert_eq!(open(&with_key, &key), Err(Refusal::Encryption));
    }

    #[test]
    fn claims_that_are_only_encrypted_with_a_public_key_prove_nothing() {
        let (_, jwk, ..) = vectors::TOKENS[5];
        let key = key(jwk);
        let material::Material::Rsa { public, .. } = &key.material else {
            panic!("not of RSA")
        };
        let public = AsDer::as_der(&rsa::PublicKey::from_der(public).unwrap()).unwrap();
        let public = rsa::PublicEncryptingKey::from_der(public.as_ref()).unwrap();
        let public = rsa::OaepPublicEncryptingKey::new(public).unwrap();
        let mut room = vec![0; public.ciphertext_size()];
        let content_key = [1; 32];
        let encrypted_key = public
            .encrypt(&rsa::OAEP_SHA256_MGF1SHA256, &content_key, &mut room, None)
            .unwrap();
        let sealed = |payload: &str| {
            let header = r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#;
            sealed(header, encrypted_key, &content_key, payload)
        };
        assert!(matches!(
            Layer::open(&sealed("{}"), &key),
            Ok(Layer::Encrypted(content)) if content == b"{}"
        ));
        for claims in ["{}", "\n {}"] {
            assert_eq!(open(&sealed(claims), &key), Err(Refusal::Unsigned));
            assert_eq!(open(&sealed(&sealed(claims)), &key), Err(Refusal::Unsigned));
        }
        let by_mac = signed_by(&content_key, MAC, b"{}");
        assert_eq!(open(&sealed(&by_mac), &key), Err(Refusal::Algorithm));
        assert_eq!(open(&sealed("\u{feff}{}"), &key), Err(Refusal::NoToken));
        let only_public = vectors::TOKENS[1].1;
        assert_eq!(
            open(&sealed("{}"), &self::key(only_public)),
            Err(Refusal::PublicKey)
        );
    }

    #[test]
    fn a_header_says_what_it_may() {
        let key = key(SECRET);
        for (header, refusal) in [
            ("", Refusal::Header),
            ("{", Refusal::Header),
            ("null", Refusal::Header),
            ("[\"HS256\"]", Refusal::Header),
            ("{}", Refusal::Header),
            (r#"{"alg":null}"#, Refusal::Header),
            (r#"{"alg":["HS256"]}"#, Refusal::Header),
            (r#"{"alg":"HS256","alg":"HS256"}"#, Refusal::Header),
            (r#"{"alg":"HS256","\u0061lg":"none"}"#, Refusal::Header),
            (r#"{"alg":"HS256","kid":1}"#, Refusal::Header),
            (r#"{"alg":"HS256"} x"#, Refusal::Header),
            (r#"{"alg":"HS256","crit":["exp"]}"#, Refusal::Critical),
            (r#"{"alg":"HS256","crit":[]}"#, Refusal::Critical),
            (r#"{"alg":"HS256","crit":null}"#, Refusal::Critical),
            (
                r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#,
                Refusal::Critical,
            ),
            (r#"{"alg":"HS256","b64":false}"#, Refusal::Unencoded),
            (r#"{"alg":"HS256","zip":"DEF"}"#, Refusal::Compressed),
        ] {
            assert_eq!(open(&signed(header, "{}"), &key), Err(refusal), "{header}");
        }
        for header in [
            r#"{"typ":"JWT","alg":"HS256","kid":"../../dev/null"}"#,
            r#" {"alg" : "HS256", "jku":"http://localhost/","x5u":"http://localhost/","x5c":[""]} "#,
            r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#,
            r#"{"alg":"HS256","b64":true,"cty":"JWT","enc":"A256GCM"}"#,
        ] {
            assert_eq!(
                open(&signed(header, "{}"), &key).as_deref(),
                Ok(&b"{}"[..]),
                "{header}"
            );
        }
        let own_key = signed_by(
            &[0; 3],
            r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#,
            b"{}",
        );
        assert_eq!(open(&own_key, &key), Err(Refusal::Signature));
        for header in [
            &b"{\"alg\":\"\xff\"}"[..],
            b"{\"alg\":\"HS256\",\"x\":\"\xff\"}",
        ] {
            let not_utf_8 = format!("{}.e30.AAAA", encode(header));
            assert_eq!(open(&not_utf_8, &key), Err(Refusal::Header));
        }
    }

    #[test]
    fn a_token_for_another_key_is_refused() {
        let named = key(&format!(r#"{{"kty":"oct","k":"{SECRET}","kid":"ours"}}"#));
        let open = |header| open(&signed(header, "{}"), &named).map(|_| ());
        assert_eq!(open(r#"{"alg":"HS256","kid":"ours"}"#), Ok(()));
        assert_eq!(open(r#"{"alg":"HS256"}"#), Ok(()));
        assert_eq!(
            open(r#"{"alg":"HS256","kid":"Ours"}"#),
            Err(Refusal::OtherKey)
        );
        assert_eq!(open(r#"{"alg":"HS256","kid":""}"#), Err(Refusal::OtherKey));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let key = key(SECRET);
        for text in [
            "",
            ".",
            "..",
            "...",
            "....",
            ".....",
            "a",
            "€.€.€",
            "e30.e30",
            "{\"payload\":\"\"}",
        ] {
            assert!(open(text, &key).is_err(), "{text}");
        }
        assert_eq!(open(&".".repeat(MAX_TOKEN), &key), Err(Refusal::NoToken));
        assert_eq!(
            open(&"a".repeat(MAX_TOKEN + 1), &key),
            Err(Refusal::TooLong)
        );
        let large = signed(MAC, &"x".repeat(MAX_TOKEN * 3 / 4 - 100));
        assert!(open(&large, &key).is_ok());
    }
}
