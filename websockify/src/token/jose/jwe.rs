//! Encryption (RFC 7516; RFC 7518, sections 4 and 5).
//!
//! Whatever is wrong with what was encrypted, it is one and the same refusal: nobody learns from it how far they have come.

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::kdf::{SskdfDigestAlgorithmId, get_sskdf_digest_algorithm, sskdf_digest};
use aws_lc_rs::key_wrap::{self, AesKek, KeyWrap};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey};
use aws_lc_rs::{aead, cipher, hmac};

use super::header::Header;
use super::material::{Curve, Material};
use super::{Key, Refusal};
use crate::secret::Secret;

/// What was encrypted, as it is in the token.
pub(super) struct Sealed<'a> {
    /// What is not encrypted, and may not be changed either: the header in its base64url.
    pub(super) additional: &'a [u8],
    /// The initialization vector.
    pub(super) vector: &'a [u8],
    pub(super) ciphertext: &'a [u8],
    /// The authentication tag.
    pub(super) tag: &'a [u8],
}

/// What is in it.
pub(super) fn decrypt(
    key: &Key,
    header: &Header,
    encrypted_key: &[u8],
    sealed: &Sealed<'_>,
) -> Result<Vec<u8>, Refusal> {
    let name = header.enc.as_deref().ok_or(Refusal::Header)?;
    let content = Content::named(name).ok_or(Refusal::Content)?;
    let length = content.key_length();
    let content_key = match &key.material {
        Material::Secret(secrets) => from_secret(secrets, &header.alg, encrypted_key, length)?,
        Material::Rsa { private, .. } => from_rsa(private.as_ref(), &header.alg, encrypted_key)?,
        Material::Curve { curve, private, .. } => {
            from_agreement(curve, private.as_ref(), header, encrypted_key, length)?
        }
        Material::Ed25519(_) => return Err(Refusal::Algorithm),
    };
    content.decrypt(&content_key, sealed).map_err(changed)
}

/// What a failure of the cryptography means.
fn changed(_: Unspecified) -> Refusal {
    Refusal::Encryption
}

/// The key of the content, `length` bytes, by a secret: which it is itself, or wrapped in.
fn from_secret(
    secrets: &[Secret],
    algorithm: &str,
    encrypted_key: &[u8],
    length: usize,
) -> Result<Vec<u8>, Refusal> {
    let of_length = |length| {
        let mut secrets = secrets.iter().map(Secret::expose);
        secrets
            .find(|secret| secret.len() == length)
            .ok_or(Refusal::Encryption)
    };
    match algorithm {
        "dir" if encrypted_key.is_empty() => of_length(length).map(<[u8]>::to_vec),
        "dir" => Err(Refusal::Encryption),
        _ => {
            let length = wrapping(algorithm).ok_or(Refusal::Algorithm)?;
            unwrap(of_length(length)?, encrypted_key)
        }
    }
}

/// The same by a private key of RSA that it is encrypted for (RFC 7518, section 4.3).
fn from_rsa(
    private: Option<&OaepPrivateDecryptingKey>,
    algorithm: &str,
    encrypted_key: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let padding = match algorithm {
        "RSA-OAEP" => &OAEP_SHA1_MGF1SHA1,
        "RSA-OAEP-256" => &OAEP_SHA256_MGF1SHA256,
        _ => return Err(Refusal::Algorithm),
    };
    let private = private.ok_or(Refusal::PublicKey)?;
    let mut room = vec![0; private.min_output_size()];
    let key = private
        .decrypt(padding, encrypted_key, &mut room, None)
        .map_err(changed)?;
    Ok(key.to_vec())
}

/// The same by agreement on it with the public key that the header has (RFC 7518, section 4.6), which must be of the same curve.
fn from_agreement(
    curve: &Curve,
    private: Option<&PrivateKey>,
    header: &Header,
    encrypted_key: &[u8],
    length: usize,
) -> Result<Vec<u8>, Refusal> {
    let wrapped = match header.alg.as_str() {
        "ECDH-ES" => None,
        name => {
            let name = name.strip_prefix("ECDH-ES+");
            Some(name.and_then(wrapping).ok_or(Refusal::Algorithm)?)
        }
    };
    let private = private.ok_or(Refusal::PublicKey)?;
    let theirs = header
        .epk
        .as_ref()
        .and_then(|key| key.point(curve))
        .ok_or(Refusal::Encryption)?;
    let theirs = agreement::UnparsedPublicKey::new(curve.agreement, theirs);
    let derive = |name, length| {
        agreement::agree(private, theirs, Refusal::Encryption, |shared| {
            derive(shared, name, header, length)
        })
    };
    match wrapped {
        Some(length) => unwrap(&derive(&header.alg, length)?, encrypted_key),
        None if encrypted_key.is_empty() => {
            derive(header.enc.as_deref().unwrap_or_default(), length)
        }
        None => Err(Refusal::Encryption),
    }
}

/// Bytes of the key that another key is wrapped in by an algorithm (RFC 7518, section 4.4). aws-lc-rs has none with 192 bits.
fn wrapping(algorithm: &str) -> Option<usize> {
    match algorithm {
        "A128KW" => Some(16),
        "A256KW" => Some(32),
        _ => None,
    }
}

/// Unwraps a key (RFC 3394).
fn unwrap(wrapping_key: &[u8], wrapped: &[u8]) -> Result<Vec<u8>, Refusal> {
    let cipher = match wrapping_key.len() {
        16 => &key_wrap::AES_128,
        _ => &key_wrap::AES_256,
    };
    let mut room = vec![0; wrapped.len()];
    let unwrapped =
        AesKek::new(cipher, wrapping_key).and_then(|key| key.unwrap(wrapped, &mut room));
    Ok(unwrapped.map_err(changed)?.to_vec())
}

/// A key for the algorithm `name` from the secret that was agreed on (the Concat KDF of RFC 7518, section 4.6.2).
fn derive(shared: &[u8], name: &str, header: &Header, length: usize) -> Result<Vec<u8>, Refusal> {
    let mut info = Vec::new();
    for part in [name.as_bytes(), &header.apu.0, &header.apv.0] {
        info.extend((part.len() as u32).to_be_bytes());
        info.extend(part);
    }
    info.extend((length as u32 * 8).to_be_bytes());
    let hash = get_sskdf_digest_algorithm(SskdfDigestAlgorithmId::Sha256);
    let mut key = vec![0; length];
    hash.ok_or(Unspecified)
        .and_then(|hash| sskdf_digest(hash, shared, &info, &mut key))
        .map_err(changed)?;
    Ok(key)
}

/// How the content is encrypted.
enum Content {
    Gcm(&'static aead::Algorithm),
    /// AES-CBC, and HMAC over all of it, each with half of a key. The tag has half of the MAC.
    Cbc {
        cipher: &'static cipher::Algorithm,
        hash: hmac::Algorithm,
        /// Bytes of half a key, and of the tag.
        half: usize,
    },
}

impl Content {
    fn named(name: &str) -> Option<Self> {
        let cbc = |cipher, hash, half| Self::Cbc { cipher, hash, half };
        Some(match name {
            "A128GCM" => Self::Gcm(&AES_128_GCM),
            "A192GCM" => Self::Gcm(&AES_192_GCM),
            "A256GCM" => Self::Gcm(&AES_256_GCM),
            "A128CBC-HS256" => cbc(&AES_128, hmac::HMAC_SHA256, 16),
            "A192CBC-HS384" => cbc(&AES_192, hmac::HMAC_SHA384, 24),
            "A256CBC-HS512" => cbc(&AES_256, hmac::HMAC_SHA512, 32),
            _ => return None,
        })
    }

    /// Bytes of its key.
    fn key_length(&self) -> usize {
        match self {
            Self::Gcm(algorithm) => algorithm.key_len(),
            Self::Cbc { half, .. } => 2 * half,
        }
    }

    /// Decrypts what nobody has changed.
    fn decrypt(&self, key: &[u8], sealed: &Sealed<'_>) -> Result<Vec<u8>, Unspecified> {
        match *self {
            Self::Gcm(algorithm) => {
                let key = LessSafeKey::new(UnboundKey::new(algorithm, key)?);
                let nonce = Nonce::try_assume_unique_for_key(sealed.vector)?;
                let mut content = vec![0; sealed.ciphertext.len()];
                let additional = Aad::from(sealed.additional);
                key.open_separate_gather(
                    nonce,
                    additional,
                    sealed.ciphertext,
                    sealed.tag,
                    &mut content,
                )?;
                Ok(content)
            }
            Self::Cbc { cipher, hash, half } => {
                let (mac_key, key) = key.split_at_checked(half).ok_or(Unspecified)?;
                verify_slices_are_equal(&sealed.mac(hash, mac_key)[..half], sealed.tag)?;
                let vector = DecryptionContext::Iv128(sealed.vector.try_into()?);
                let key = PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(cipher, key)?)?;
                let mut content = sealed.ciphertext.to_vec();
                Ok(key.decrypt(&mut content, vector)?.to_vec())
            }
        }
    }
}

impl Sealed<'_> {
    /// The MAC over everything (RFC 7518, section 5.2.2.1).
    fn mac(&self, hash: hmac::Algorithm, key: &[u8]) -> Vec<u8> {
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hash, key));
        let bits = self.additional.len() as u64 * 8;
        for part in [
            self.additional,
            self.vector,
            self.ciphertext,
            &bits.to_be_bytes(),
        ] {
            mac.update(part);
        }
        mac.sign().as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What RFC 7518, appendix C agrees on.
    const BOB: &str = r#"{"kty":"EC","crv":"P-256","x":"weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
        "y":"e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck","d":"VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw"}"#;
    const HEADER: &str = r#"{"alg":"ECDH-ES","enc":"A128GCM","apu":"QWxpY2U","apv":"Qm9i","epk":{"kty":"EC",
        "crv":"P-256","x":"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0","y":"SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}}"#;

    fn agree(header: &str, encrypted_key: &[u8]) -> Result<Vec<u8>, Refusal> {
        let key = Key::read(BOB.as_bytes()).unwrap();
        let Material::Curve { curve, private, .. } = &key.material else {
            panic!("not on a curve")
        };
        let header: Header = serde_json::from_str(header).unwrap();
        from_agreement(curve, private.as_ref(), &header, encrypted_key, 16)
    }

    #[test]
    fn a_key_is_agreed_on_as_in_the_standard() {
        let key = super::super::decode("VqqN6vgjbSBcIijNcacQGg");
        assert_eq!(agree(HEADER, b""), key);
        assert_eq!(agree(HEADER, b"x"), Err(Refusal::Encryption));
        for (name, refusal) in [
            ("ECDH-ES+A128KW", Refusal::Encryption),
            ("ECDH-ES+A192KW", Refusal::Algorithm),
            ("ECDH-ES+", Refusal::Algorithm),
            ("ECDH-ESA128KW", Refusal::Algorithm),
            ("ECDH-SS", Refusal::Algorithm),
            ("dir", Refusal::Algorithm),
        ] {
            let header = HEADER.replace("ECDH-ES", name);
            assert_eq!(agree(&header, b""), Err(refusal), "{name}");
        }
    }

    #[test]
    fn a_public_key_that_is_not_on_our_curve_is_refused() {
        let x = "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0";
        let y = "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps";
        let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for (old, new) in [
            // Not on the curve.
            (y, "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFppo"),
            (y, zero),
            (x, zero),
            // The point without its first byte, and with one more.
            (x, "jQYAgsF27tPndqSsWYzIZywXefl07sybA0EcpblJXQ"),
            (x, "AICNBgCCwXbu0-d2pKxZjMhnLBd5-XTuzJsDQRyluUld"),
            (x, ""),
            ("P-256", "P-384"),
            ("P-256", "secp256k1"),
            ("P-256", "X25519"),
            (r#""kty":"EC""#, r#""kty":"OKP""#),
            (r#""y":"#, r#""z":"#),
            (r#""epk":"#, r#""jwk":"#),
        ] {
            let header = HEADER.replace(old, new);
            assert_ne!(header, HEADER);
            assert_eq!(agree(&header, b""), Err(Refusal::Encryption), "{new}");
        }
    }
}
