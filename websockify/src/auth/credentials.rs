//! The name and the password that a request brings: `Authorization: Basic` (RFC 7617).

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::secret::Secret;

/// Base64 of which the end may be padded.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A name and a password, in whichever encoding they came; no byte of them is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// `name:password`.
    pair: Secret,
    /// Where the name ends: the password may have colons of its own.
    colon: usize,
}

impl Credentials {
    /// What a request says, if it does so exactly once, and in the right form.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("Basic") {
            return None;
        }
        Self::from_pair(BASE64.decode(encoded.trim_matches(' ')).ok()?)
    }

    /// From `name:password`.
    pub(super) fn from_pair(pair: Vec<u8>) -> Option<Self> {
        // What reads passwords as C does would take what is before it for the whole.
        if pair.contains(&0) {
            return None;
        }
        let colon = pair.iter().position(|&byte| byte == b':')?;
        let pair = Secret::from(pair);
        Some(Self { pair, colon })
    }

    /// `name:password`.
    pub(super) fn pair(&self) -> &[u8] {
        self.pair.expose()
    }

    /// The name; it has no colon.
    pub(crate) fn name(&self) -> &[u8] {
        &self.pair()[..self.colon]
    }

    /// The password.
    pub(crate) fn password(&self) -> &[u8] {
        &self.pair()[self.colon + 1..]
    }

    /// The same characters in latin-1 if these are in UTF-8, or in UTF-8 if they are not; `None` if there are no other bytes for
    /// them. Which one a client uses was left open for long, and browsers differ.
    pub(super) fn in_other_encoding(&self) -> Option<Self> {
        let pair = match str::from_utf8(self.pair()) {
            Ok(text) => text.chars().map(|c| u8::try_from(c).ok()).collect(),
            Err(_) => {
                let text: String = self.pair().iter().copied().map(char::from).collect();
                Some(text.into_bytes())
            }
        };
        pair.filter(|pair| pair != self.pair())
            .and_then(Self::from_pair)
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn given(values: &[&[u8]]) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let credentials = Credentials::of(&headers)?;
        Some((text(credentials.name()), text(credentials.password())))
    }

    #[test]
    fn the_form_is_basic_and_base64_of_name_and_password() {
        for (value, name, password) in [
            ("Basic YTpi", "a", "b"),
            ("basic YTpi", "a", "b"),
            ("BASIC   YTpi", "a", "b"),
            ("Basic YTpiOmM6", "a", "b:c:"),
            ("Basic YTo=", "a", ""),
            ("Basic YTo", "a", ""),
            ("Basic OmI=", "", "b"),
            ("Basic YTpiYw==", "a", "bc"),
            ("Basic YTpiYw", "a", "bc"),
        ] {
            let expected = Some((name.to_owned(), password.to_owned()));
            assert_eq!(given(&[value.as_bytes()]), expected, "{value}");
        }
    }

    #[test]
    fn what_has_another_form_says_nothing() {
        for value in [
            "",
            "Basic",
            "Basic ",
            "BasicYTpi",
            "Basic\tYTpi",
            "Bearer YTpi",
            "Basics YTpi",
            "Basic YWI=",      // no colon
            "Basic YTpi YTpi", // two
            "Basic YTpi,",     // a list
            "Basic YTpiY",     // a length that there is not
            "Basic YTpiYx==",  // bits that say nothing
            "Basic YT-_",      // another alphabet
            "Basic YTpiAGM=",  // a:b\0c
            "Basic YQA6Yg==",  // a\0:b
            "Digest username=\"a\"",
        ] {
            assert_eq!(given(&[value.as_bytes()]), None, "{value}");
        }
        assert_eq!(given(&[b"Basic YTpi\xe4"]), None);
    }

    #[test]
    fn who_says_it_twice_says_nothing() {
        assert_eq!(given(&[]), None);
        assert_eq!(given(&[b"Basic YTpi", b"Basic YTpi"]), None);
        assert_eq!(given(&[b"Basic YTpi", b"Bearer x"]), None);
    }

    #[test]
    fn the_other_encoding_has_the_same_characters() {
        let other = |pair: &[u8]| {
            let credentials = Credentials::from_pair(pair.to_vec()).unwrap();
            let other = credentials.in_other_encoding()?;
            Some(other.pair().to_vec())
        };
        assert_eq!(other(b"a:b"), None);
        assert_eq!(other("ä:ö".as_bytes()), Some(b"\xe4:\xf6".to_vec()));
        assert_eq!(other(b"\xe4:\xf6"), Some("ä:ö".into()));
        assert_eq!(other("a:€".as_bytes()), None);
    }

    #[test]
    fn they_are_not_shown() {
        let credentials = Credentials::from_pair(b"alice:hunter2".to_vec()).unwrap();
        let shown = format!("{credentials:?}");
        assert!(
            !shown.contains("alice") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
