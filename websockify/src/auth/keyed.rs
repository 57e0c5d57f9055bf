//! Digests under a key that nobody knows, by which secrets are compared and remembered without being kept.
//!
//! Whoever tries to guess what one is of learns nothing from how long a comparison takes: the digest of the next guess has nothing
//! in common with that of the last one, and all are of one length.

use std::fmt;

use anyhow::{Result, anyhow};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;

/// A random key of this process; the room that it takes is elsewhere.
#[derive(Debug)]
pub(super) struct Key(Box<hmac::Key>);

/// An HMAC-SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn random() -> Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        key.map(|key| Self(Box::new(key)))
            .map_err(|_| anyhow!("cannot make a random key"))
    }

    /// The digest of a secret.
    pub(super) fn digest(&self, secret: &[u8]) -> Digest {
        let tag = hmac::sign(&self.0, secret);
        Digest(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl Digest {
    /// Whether both are of the same secret; it takes the same time in either case.
    pub(super) fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// A number below `limit` that is always the same for the same secret, and no other one more often.
    pub(super) fn choose(&self, limit: usize) -> Option<usize> {
        let (first, _) = self.0.split_first_chunk()?;
        let index = u64::from_le_bytes(*first).checked_rem(limit as u64)?;
        usize::try_from(index).ok()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_one_secret_under_one_key() {
        let (one, other) = (Key::random().unwrap(), Key::random().unwrap());
        assert!(one.digest(b"a:b").is(&one.digest(b"a:b")));
        for secret in [&b"a:c"[..], b"a:", b"a:bb", b"", b"a:b\0"] {
            assert!(!one.digest(b"a:b").is(&one.digest(secret)), "{secret:?}");
        }
        assert!(!one.digest(b"a:b").is(&other.digest(b"a:b")));
    }

    #[test]
    fn a_choice_is_below_its_limit_and_reaches_all() {
        let key = Key::random().unwrap();
        let chosen = |number: u32| key.digest(&number.to_le_bytes()).choose(3);
        assert_eq!(chosen(1), chosen(1));
        // Each is missed in a thousand choices with a probability of (2/3)^1000.
        for one in 0..3 {
            assert!((0..1000).any(|number| chosen(number) == Some(one)));
        }
        assert!((0..1000).all(|number| chosen(number).is_some_and(|chosen| chosen < 3)));
        assert_eq!(key.digest(b"").choose(0), None);
    }

    #[test]
    fn neither_is_shown() {
        let (one, other) = (Key::random().unwrap(), Key::random().unwrap());
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        assert_eq!(format!("{:?}", one.digest(b"a:b")), "***");
    }
}
