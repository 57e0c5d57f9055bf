//! `ExpectOrigin`: only pages of these origins.
//!
//! It is the original's `--allow-origin`, with which it shares what an origin is. It differs in that who tells no origin is not
//! let in, and in that what is no origin can be expected too: `null`, or what a client of one's own sends.
//!
//! Only browsers tell the truth about it: it keeps other people's pages out, and no other people.

use hyper::header::{HeaderValue, ORIGIN};

use super::{Denied, Refused, Visitor};
use crate::origin::Origin;

/// Lets in who comes from one of these.
#[derive(Debug)]
pub(crate) struct ExpectedOrigin(Vec<Expected>);

/// One of them.
#[derive(Debug)]
struct Expected {
    /// As it was given; the original compares nothing else.
    text: String,
    /// What it stands for, if it is an origin.
    origin: Option<Origin>,
}

impl ExpectedOrigin {
    /// With the origins, with blanks between them.
    pub(crate) fn new(source: &str) -> Self {
        let expected = source.split_whitespace().map(|text| Expected {
            text: text.to_owned(),
            origin: Origin::parse(text.strip_suffix('/').unwrap_or(text)),
        });
        Self(expected.collect())
    }

    /// Lets them in or not: everything that they tell has to be expected.
    pub(crate) fn authenticate(&self, visitor: &Visitor<'_>) -> Result<(), Denied> {
        let mut told = visitor.headers.get_all(ORIGIN).iter().peekable();
        if told.peek().is_some() && told.all(|origin| self.expects(origin)) {
            return Ok(());
        }
        Err(Denied::Refused(Refused {
            message: "Invalid Origin".to_owned(),
            ..Refused::forbidden()
        }))
    }

    fn expects(&self, told: &HeaderValue) -> bool {
        let origin = told.to_str().ok().and_then(Origin::parse);
        let is_expected = |expected: &Expected| {
            expected.text.as_bytes() == told.as_bytes()
                || origin.is_some() && origin == expected.origin
        };
        self.0.iter().any(is_expected)
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::HeaderMap;

    use super::*;
    use crate::listener::Peer;

    fn answer(source: &str, told: &[&str]) -> Result<(), Denied> {
        let mut headers = HeaderMap::new();
        for origin in told {
            headers.append(ORIGIN, HeaderValue::from_bytes(origin.as_bytes()).unwrap());
        }
        ExpectedOrigin::new(source).authenticate(&Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: "/",
            file: false,
            common_name: None,
        })
    }

    fn lets_in(source: &str, told: &[&str]) -> bool {
        answer(source, told).is_ok()
    }

    #[test]
    fn an_origin_is_let_in_however_it_is_written() {
        let source = "https://a.example  http://B.example:8080/\thttp://[::1]:6080\n";
        for told in [
            "https://a.example",
            "https://A.example",
            "https://a.example:443",
            "http://b.example:8080",
            "http://B.example:8080/",
            "http://[::1]:6080",
        ] {
            assert!(lets_in(source, &[told]), "{told}");
        }
        for told in [
            "",
            "null",
            "a.example",
            "http://a.example",
            "https://a.example:8443",
            "https://a.example/",
            "https://a.example.evil",
            "https://evil@a.example",
            "https://a.example https://a.example",
            "https://ä.example",
            source,
        ] {
            let told = told.trim();
            assert!(!lets_in(source, &[told]), "{told}");
        }
    }

    #[test]
    fn what_is_no_origin_is_expected_to_the_letter() {
        let source = "null app:/MyApp ö";
        for told in ["null", "app:/MyApp", "ö"] {
            assert!(lets_in(source, &[told]), "{told}");
        }
        for told in ["NULL", "app:/myapp", "app:", "", "same"] {
            assert!(!lets_in(source, &[told]), "{told}");
        }
        // Which `--allow-origin` has a meaning for.
        assert!(!lets_in("same", &["http://a"]));
    }

    #[test]
    fn who_tells_none_is_refused_and_every_told_one_counts() {
        assert!(!lets_in("http://a", &[]));
        assert!(!lets_in("", &[""]));
        assert!(lets_in("http://a http://b", &["http://a", "http://b"]));
        assert!(!lets_in("http://a", &["http://a", "http://b"]));
        assert!(!lets_in("http://a", &["http://b", "http://a"]));
    }

    #[test]
    fn the_answer_does_not_tell_what_is_expected() {
        let Err(Denied::Refused(refused)) = answer("http://a", &["http://b"]) else {
            panic!("it was let in");
        };
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert_eq!(
            (refused.headers.len(), &*refused.message),
            (0, "Invalid Origin")
        );
    }
}
