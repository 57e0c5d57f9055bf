//! Which web pages may open a WebSocket (RFC 6454): a browser tells the origin of the page, and without a check a page of
//! anybody's could use the ports that its visitor can reach.

use std::str::FromStr;

use hyper::Uri;
use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN};

/// The origins that `--allow-origin` names; without any, every page is let in.
#[derive(Clone, Debug, Default)]
pub struct AllowedOrigins(Vec<AllowedOrigin>);

/// One value of `--allow-origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// `same`: a page from the host and port that it asks.
    Same,
    /// This one.
    Exact(Origin),
}

/// Scheme, host and port of a page, in lower case, with the port that the scheme stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "same" {
            return Ok(Self::Same);
        }
        let origin = Origin::parse(text.strip_suffix('/').unwrap_or(text));
        origin.map(Self::Exact).ok_or_else(|| {
            "not an origin such as https://example.com or http://localhost:8080, nor 'same'"
                .to_owned()
        })
    }
}

impl Origin {
    /// From a text that is nothing but an origin.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let authority = uri.authority()?;
        let exact = format!("{scheme}://{authority}").eq_ignore_ascii_case(text)
            && !authority.as_str().contains('@');
        exact.then(|| Self {
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16().or(default_port(&scheme)),
            scheme,
        })
    }

    /// Whether a `Host` header names this host and port.
    fn is_host(&self, host: &HeaderValue) -> bool {
        let text = host.to_str().unwrap_or_default();
        Self::parse(&format!("{}://{text}", self.scheme)).is_some_and(|host| host == *self)
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl AllowedOrigins {
    /// Those that were named.
    pub fn new(origins: Vec<AllowedOrigin>) -> Self {
        Self(origins)
    }

    /// Whether a request may become a session. One that tells no origin is not a page's.
    pub(crate) fn permit(&self, headers: &HeaderMap) -> bool {
        self.0.is_empty()
            || headers
                .get_all(ORIGIN)
                .iter()
                .all(|origin| self.permit_one(origin, headers))
    }

    fn permit_one(&self, origin: &HeaderValue, headers: &HeaderMap) -> bool {
        let Some(origin) = origin.to_str().ok().and_then(Origin::parse) else {
            return false;
        };
        self.0.iter().any(|allowed| match allowed {
            AllowedOrigin::Exact(allowed) => *allowed == origin,
            AllowedOrigin::Same => headers.get(HOST).is_some_and(|host| origin.is_host(host)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a request with these headers is let in where these values of the option are given.
    fn permits(allowed: &[&str], host: &'static str, origin: &'static str) -> bool {
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        headers.insert(ORIGIN, HeaderValue::from_static(origin));
        AllowedOrigins::new(allowed).permit(&headers)
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let one = ["https://Example.com"];
        for same in ["https://example.com", "HTTPS://EXAMPLE.COM:443"] {
            assert!(permits(&one, "other", same), "{same}");
        }
        for other in [
            "http://example.com",
            "https://example.com:8443",
            "https://example.com.evil",
            "https://evil.example.com",
            "https://example.com/path",
            "https://user@example.com",
            "null",
            "",
        ] {
            assert!(!permits(&one, "other", other), "{other}");
        }
        let two = ["http://a:1", "http://[::1]:8080/"];
        assert!(permits(&two, "x", "http://a:1") && permits(&two, "x", "http://[::1]:8080"));
    }

    #[test]
    fn the_same_origin_is_the_host_that_is_asked() {
        for (host, origin) in [
            ("example.com", "http://example.com"),
            ("example.com", "https://example.com"),
            ("example.com:443", "https://example.com"),
            ("Example.com:6080", "http://example.com:6080"),
            ("[::1]:6080", "http://[::1]:6080"),
        ] {
            assert!(permits(&["same"], host, origin), "{host} {origin}");
        }
        for (host, origin) in [
            ("example.com:6080", "http://example.com"),
            ("example.com", "http://evil.com"),
            ("example.com/", "http://example.com"),
            ("", "http://"),
        ] {
            assert!(!permits(&["same"], host, origin), "{host} {origin}");
        }
    }

    #[test]
    fn who_tells_no_origin_is_let_in_and_every_told_one_counts() {
        let same = AllowedOrigins::new(vec![AllowedOrigin::Same]);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("a"));
        assert!(same.permit(&headers));
        headers.append(ORIGIN, HeaderValue::from_static("http://a"));
        assert!(same.permit(&headers));
        headers.append(ORIGIN, HeaderValue::from_static("http://b"));
        assert!(!same.permit(&headers));
        assert!(AllowedOrigins::default().permit(&headers));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "*",
            "example.com",
            "Same",
            "https://",
            "https://a/b",
            "https://u@a",
            "a b",
        ] {
            assert!(text.parse::<AllowedOrigin>().is_err(), "{text}");
        }
    }
}
