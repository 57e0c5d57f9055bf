//! Signatures and MACs (RFC 7515; RFC 7518, section 3; RFC 8037).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    UnparsedPublicKey,
};

use super::material::Material;
use super::{Key, Refusal};

/// Whether `signature` is that of whoever has the key, for `signed`: header and payload as they are in the token.
pub(super) fn verify(
    key: &Key,
    algorithm: &str,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), Refusal> {
    let verified = match &key.material {
        Material::Secret(secrets) => {
            let hash = mac(algorithm).ok_or(Refusal::Algorithm)?;
            let by = |secret: &[u8]| hmac::verify(&hmac::Key::new(hash, secret), signed, signature);
            let mut secrets = secrets.iter().map(|secret| by(secret.expose()));
            secrets.find(Result::is_ok).ok_or(Refusal::Signature)?
        }
        Material::Rsa { public, .. } => {
            let parameters = rsa(algorithm).ok_or(Refusal::Algorithm)?;
            UnparsedPublicKey::new(parameters, public).verify(signed, signature)
        }
        Material::Curve { curve, public, .. } if algorithm == curve.signature => {
            public.verify_sig(signed, signature)
        }
        // The second name is that of RFC 9864.
        Material::Ed25519(public) if ["EdDSA", "Ed25519"].contains(&algorithm) => {
            public.verify_sig(signed, signature)
        }
        Material::Curve { .. } | Material::Ed25519(_) => return Err(Refusal::Algorithm),
    };
    verified.map_err(|_| Refusal::Signature)
}

fn mac(algorithm: &str) -> Option<hmac::Algorithm> {
    match algorithm {
        "HS256" => Some(hmac::HMAC_SHA256),
        "HS384" => Some(hmac::HMAC_SHA384),
        "HS512" => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    match algorithm {
        "RS256" => Some(&RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Some(&RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Some(&RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Some(&RSA_PSS_2048_8192_SHA256),
        "PS384" => Some(&RSA_PSS_2048_8192_SHA384),
        "PS512" => Some(&RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}
