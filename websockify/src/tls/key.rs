//! Private keys in the forms that OpenSSL writes, encrypted or not.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use des::{Des, TdesEde3};
use md5::{Digest, Md5};
use pem::Pem;
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::Decode;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};

use crate::secret::Secret;

/// Why there is no key; the text follows the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyError {
    /// It is encrypted, and there is no password.
    NoPassword,
    /// The password does not open it.
    WrongPassword,
    /// It is encrypted in a way that we do not know.
    UnknownEncryption,
    /// It is for no algorithm that we know.
    UnknownKind,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPassword => {
                "its key is encrypted; give the password by --key-password-file FILE or in WEBSOCKIFY_KEY_PASSWORD"
            }
            Self::WrongPassword => "the password is not the one that its key is encrypted with",
            Self::UnknownEncryption => {
                "its key is encrypted in a way that is not supported; convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW"
            }
            Self::UnknownKind => {
                "its key is not of a kind that is supported: RSA of at least 2048 bits, ECDSA over P-256, P-384 or P-521, Ed25519"
            }
        })
    }
}

/// The end of the label of every private key.
const LABEL: &str = "PRIVATE KEY";

/// The label of one in PKCS#8 that is encrypted.
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// The header that names the cipher of one in OpenSSL's traditional form.
const CIPHER: &str = "DEK-Info";

/// Whether a block is a private key of any form.
pub(super) fn is_key(block: &Pem) -> bool {
    block.tag().ends_with(LABEL)
}

/// Whether such a block is encrypted.
pub(super) fn is_encrypted(block: &Pem) -> bool {
    block.tag() == ENCRYPTED || block.headers().get(CIPHER).is_some()
}

/// The key that is in such a block.
pub(super) fn read(
    block: Pem,
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, KeyError> {
    let password = password.ok_or(KeyError::NoPassword);
    if block.tag() == ENCRYPTED {
        return decrypt_pkcs8(block.contents(), password?);
    }
    let tag = block.tag().to_owned();
    let der = match block.headers().get(CIPHER) {
        Some(info) => decrypt_traditional(info, block.contents(), password?)?,
        None => block.into_contents(),
    };
    match tag.as_str() {
        LABEL => Ok(PrivatePkcs8KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        _ => Err(KeyError::UnknownKind),
    }
}

/// PKCS#8, encrypted by PBES2 (RFC 8018).
fn decrypt_pkcs8(der: &[u8], password: &Secret) -> Result<PrivateKeyDer<'static>, KeyError> {
    let encrypted =
        EncryptedPrivateKeyInfoRef::from_der(der).map_err(|_| KeyError::UnknownEncryption)?;
    match encrypted.decrypt(password.expose()) {
        Ok(key) => Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into()),
        // With a wrong password, what comes out may look complete and be no key.
        Err(
            pkcs8::Error::Asn1(_)
            | pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed),
        ) => Err(KeyError::WrongPassword),
        Err(_) => Err(KeyError::UnknownEncryption),
    }
}

/// OpenSSL's traditional encryption of PEM (PEM_read_bio_PrivateKey(3), "PEM ENCRYPTION FORMAT"): `info` is the cipher and its
/// initialization vector in hexadecimal, of which the first 8 bytes are the salt.
fn decrypt_traditional(info: &str, data: &[u8], password: &Secret) -> Result<Vec<u8>, KeyError> {
    let (cipher, vector) = info.split_once(',').ok_or(KeyError::UnknownEncryption)?;
    let vector = from_hexadecimal(vector.trim()).ok_or(KeyError::UnknownEncryption)?;
    let decrypt = match cipher.trim() {
        "AES-128-CBC" => decrypt_cbc::<Decryptor<Aes128>>,
        "AES-192-CBC" => decrypt_cbc::<Decryptor<Aes192>>,
        "AES-256-CBC" => decrypt_cbc::<Decryptor<Aes256>>,
        "DES-EDE3-CBC" => decrypt_cbc::<Decryptor<TdesEde3>>,
        "DES-CBC" => decrypt_cbc::<Decryptor<Des>>,
        _ => return Err(KeyError::UnknownEncryption),
    };
    decrypt(password.expose(), &vector, data)
}

fn decrypt_cbc<D: KeyIvInit + BlockModeDecrypt>(
    password: &[u8],
    vector: &[u8],
    data: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let salt = vector.get(..8).ok_or(KeyError::UnknownEncryption)?;
    let key = derive(password, salt, D::key_size());
    let decryptor = D::new_from_slices(&key, vector).map_err(|_| KeyError::UnknownEncryption)?;
    decryptor
        .decrypt_padded_vec::<Pkcs7>(data)
        .map_err(|_| KeyError::WrongPassword)
}

/// The key of a password: MD5 of the password and the salt, behind that the MD5 of these 16 bytes, the password and the salt, and
/// so on (EVP_BytesToKey(3) with one iteration).
fn derive(password: &[u8], salt: &[u8], length: usize) -> Vec<u8> {
    let mut key = Vec::new();
    let mut last = Vec::new();
    while key.len() < length {
        let hash = Md5::new()
            .chain_update(&last)
            .chain_update(password)
            .chain_update(salt);
        last = hash.finalize().to_vec();
        key.extend_from_slice(&last);
    }
    key.truncate(length);
    key
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(label: &str, headers: &str) -> Pem {
        let text = format!("-----BEGIN {label}-----\n{headers}AAAA\n-----END {label}-----\n");
        pem::parse(text).unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let password = Secret::from(b"x".to_vec());
        for (block, password, error) in [
            (key("ENCRYPTED PRIVATE KEY", ""), None, KeyError::NoPassword),
            (
                key("ENCRYPTED PRIVATE KEY", ""),
                Some(&password),
                KeyError::UnknownEncryption,
            ),
            (
                key(
                    "RSA PRIVATE KEY",
                    "Proc-Type: 4,ENCRYPTED\nDEK-Info: IDEA-CBC,0011223344556677\n\n",
                ),
                Some(&password),
                KeyError::UnknownEncryption,
            ),
            (
                key(
                    "RSA PRIVATE KEY",
                    "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0011\n\n",
                ),
                Some(&password),
                KeyError::UnknownEncryption,
            ),
            (key("DSA PRIVATE KEY", ""), None, KeyError::UnknownKind),
        ] {
            let tag = block.tag().to_owned();
            assert_eq!(read(block, password).unwrap_err(), error, "{tag}");
        }
    }
}
