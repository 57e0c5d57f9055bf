//! `BasicHTTPAuth`: one name and one password, which every browser knows how to ask for.
//!
//! Everything but the right ones is answered by 401, so that a browser asks again; the original answers 403 when there is a header
//! that it cannot read.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, Result};

use super::credentials::Credentials;
use super::keyed::{Digest, Key};
use super::{Denied, Refused, Visitor};
use crate::config::text_of;
use crate::secret::Secret;

/// Lets in who knows the name and the password.
#[derive(Debug)]
pub(crate) struct Basic {
    key: Key,
    /// Of `name:password`, in each encoding that a client may use.
    expected: RwLock<Vec<Digest>>,
    /// The file that has them.
    file: Option<PathBuf>,
}

impl Basic {
    /// With `name:password`, and the file that it comes from, if it does.
    ///
    /// # Errors
    /// It has no colon, or the byte 0.
    pub(crate) fn new(pair: &Secret, file: Option<PathBuf>) -> Result<Self> {
        let key = Key::random()?;
        Ok(Self {
            expected: RwLock::new(expected(&key, pair)?),
            key,
            file,
        })
    }

    /// Reads the file again, if there is one. Returns whether there is.
    pub(crate) fn reload(&self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        let name = file.display();
        let make = |pair| expected(&self.key, &pair).with_context(|| name.to_string());
        match text_of(file).and_then(make) {
            Ok(new) => {
                *self
                    .expected
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!("User and password read again: {name}");
            }
            Err(error) => {
                tracing::error!("user and password stay what they were: {error:#}");
            }
        }
        true
    }

    /// Lets them in or not.
    pub(crate) fn authenticate(&self, visitor: &Visitor<'_>) -> Result<(), Denied> {
        let credentials = Credentials::of(visitor.headers);
        match credentials.is_some_and(|given| self.expects(&given)) {
            true => Ok(()),
            false => Err(Denied::Refused(Refused::unauthorized())),
        }
    }

    /// Looks at all of them, whichever is right.
    fn expects(&self, given: &Credentials) -> bool {
        let given = self.key.digest(given.pair());
        let compare = |found, expected: &Digest| found | given.is(expected);
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner);
        expected.iter().fold(false, compare)
    }
}

/// The digests of `name:password` in each encoding.
fn expected(key: &Key, pair: &Secret) -> Result<Vec<Digest>> {
    let credentials = Credentials::from_pair(pair.expose().to_vec())
        .context("the --auth-source has to be user:password")?;
    let other = credentials.in_other_encoding();
    let encodings = [Some(credentials), other].into_iter().flatten();
    Ok(encodings.map(|one| key.digest(one.pair())).collect())
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};

    use super::*;
    use crate::listener::Peer;

    fn basic(source: &[u8]) -> Basic {
        Basic::new(&Secret::from(source.to_vec()), None).unwrap()
    }

    /// All that is kept of a name and a password.
    fn digests(source: &[u8]) -> Vec<Digest> {
        let Basic {
            key: _,
            expected,
            file: _,
        } = basic(source);
        expected.into_inner().unwrap()
    }

    fn answer(basic: &Basic, headers: &HeaderMap) -> Result<(), Denied> {
        basic.authenticate(&Visitor {
            peer: Peer::UNIX,
            headers,
            path: "/",
            file: false,
            common_name: None,
        })
    }

    fn lets_in(basic: &Basic, pair: &[u8]) -> bool {
        let given = Credentials::from_pair(pair.to_vec());
        given.is_some_and(|given| basic.expects(&given))
    }

    #[test]
    fn only_the_right_name_and_password_are_let_in() {
        let basic = basic(b"alice:pass:word");
        assert!(lets_in(&basic, b"alice:pass:word"));
        for wrong in [
            &b""[..],
            b":",
            b"alice",
            b"alice:",
            b"alice:pass",
            b"alice:pass:wor",
            b"alice:pass:word2",
            b"alice:pass:word\0",
            b"Alice:pass:word",
            b"alice:Pass:word",
            b" alice:pass:word",
            b"bob:pass:word",
        ] {
            assert!(!lets_in(&basic, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn both_encodings_are_right_whichever_one_is_configured() {
        let (utf8, latin1) = ("jürgen:süß".as_bytes(), &b"j\xfcrgen:s\xfc\xdf"[..]);
        for source in [utf8, latin1] {
            let basic = basic(source);
            assert!(lets_in(&basic, utf8) && lets_in(&basic, latin1));
            // Half in one and half in the other is what nobody sends.
            assert!(!lets_in(&basic, b"j\xfcrgen:s\xc3\xbc\xc3\x9f"));
        }
        let basic = basic("a:€".as_bytes());
        assert!(lets_in(&basic, "a:€".as_bytes()) && !lets_in(&basic, b"a:\x80"));
    }

    #[test]
    fn who_is_not_let_in_is_asked_again() {
        let basic = basic(b"a:b");
        for value in [None, Some("Basic YTpj"), Some("Bearer x"), Some("Basic ?")] {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (AUTHORIZATION, HeaderValue::from_static(value))));
            let Err(Denied::Refused(refused)) = answer(&basic, &headers) else {
                panic!("{value:?} was let in");
            };
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
            let challenge = HeaderValue::from_static("Basic realm=\"Websockify\"");
            assert_eq!(refused.headers, [(WWW_AUTHENTICATE, challenge)]);
        }
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
        assert_eq!(answer(&basic, &headers), Ok(()));
    }

    /// What a comparison takes could tell how much of a guess is right, if it were made on the text. It is made on digests of one
    /// length, of which all are looked at, and nothing else is kept.
    #[test]
    fn only_digests_are_kept_and_compared() {
        let expected = digests(b"a:b");
        assert_eq!((expected.len(), size_of_val(&expected[0])), (1, 32));
        let expected = digests("alice:a much longer pässword".as_bytes());
        assert_eq!((expected.len(), size_of_val(&expected[0])), (2, 32));
    }

    #[test]
    fn a_source_without_a_colon_is_refused_and_not_shown() {
        for source in [&b"hunter2"[..], b"", b"hunter2\0:"] {
            let error = Basic::new(&Secret::from(source.to_vec()), None).unwrap_err();
            let text = format!("{error:#} {error:?}");
            assert!(
                text.contains("user:password") && !text.contains("hunter2"),
                "{text}"
            );
        }
        let shown = format!("{:?}", basic(b"alice:hunter2"));
        assert!(
            !shown.contains("alice") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
