//! `ClientCertCNAuth`: the common names of certificates that `--verify-client` has verified.
//!
//! The original puts the common name among the headers of the request, where its plugins look for it; a client that sends such a
//! header itself is believed there. Here it is a value of the connection, and what could be mistaken for it is taken out of what
//! plugins see.

use std::borrow::Cow;

use hyper::header::{HeaderMap, HeaderName};

use super::{Denied, Refused, Visitor};

/// Lets in who has shown a certificate with one of these names.
#[derive(Debug)]
pub(crate) struct CommonNames(Vec<String>);

impl CommonNames {
    /// With the names, with blanks between them.
    pub(crate) fn new(source: &str) -> Self {
        Self(source.split_whitespace().map(str::to_owned).collect())
    }

    /// Lets them in or not.
    pub(crate) fn authenticate(&self, visitor: &Visitor<'_>) -> Result<(), Denied> {
        match visitor.common_name {
            Some(shown) if self.0.iter().any(|name| name == shown) => Ok(()),
            _ => Err(Denied::Refused(Refused::forbidden())),
        }
    }
}

/// The headers without those that could be taken for what is known of a certificate: whoever sends them does not say who they are.
pub(crate) fn without_certificate_headers(headers: &HeaderMap) -> Cow<'_, HeaderMap> {
    if !headers.keys().any(is_about_certificates) {
        return Cow::Borrowed(headers);
    }
    let others = headers
        .iter()
        .filter(|(name, _)| !is_about_certificates(name));
    let others = others.map(|(name, value)| (name.clone(), value.clone()));
    Cow::Owned(others.collect())
}

/// Whether a name begins with `SSL_`, as those variables of Apache's do that the original knows. Gateways write capital letters,
/// put `_` in the place of everything that is no letter or digit, and put `HTTP_` before it.
fn is_about_certificates(name: &HeaderName) -> bool {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    // The name of a header is in lower case already.
    let name: String = name.as_str().chars().map(plain).collect();
    let mut rest = name.trim_start_matches('_');
    while let Some(behind) = rest.strip_prefix("http_") {
        rest = behind.trim_start_matches('_');
    }
    rest.starts_with("ssl_")
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::HeaderValue;

    use super::*;
    use crate::listener::Peer;

    fn answer(source: &str, headers: &HeaderMap, common_name: Option<&str>) -> Result<(), Denied> {
        CommonNames::new(source).authenticate(&Visitor {
            peer: Peer::UNIX,
            headers,
            path: "/",
            file: false,
            common_name,
        })
    }

    fn lets_in(source: &str, common_name: Option<&str>) -> bool {
        answer(source, &HeaderMap::new(), common_name).is_ok()
    }

    #[test]
    fn a_name_is_compared_to_the_letter() {
        let source = " alice\tbob \n";
        assert!(lets_in(source, Some("alice")) && lets_in(source, Some("bob")));
        for other in [
            "",
            "Alice",
            "alic",
            "alice ",
            "alice bob",
            "alice,bob",
            "alice\0",
            "аlice",
        ] {
            assert!(!lets_in(source, Some(other)), "{other}");
        }
        assert!(!lets_in(source, None));
        assert!(!lets_in("", Some("")) && !lets_in("", None));
    }

    #[test]
    fn a_header_says_nothing_of_a_certificate() {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("ssl_client_s_dn_cn");
        headers.insert(name, HeaderValue::from_static("alice"));
        let Err(Denied::Refused(refused)) = answer("alice", &headers, None) else {
            panic!("it was let in");
        };
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.headers.is_empty());
    }

    #[test]
    fn what_could_be_taken_for_a_certificate_is_left_out() {
        let mut headers = HeaderMap::new();
        for name in [
            "SSL_CLIENT_S_DN_CN",
            "ssl_client_s_dn_cn",
            "Ssl-Client-S-Dn-Cn",
            "ssl-client_s-dn_cn",
            "SSL.CLIENT.S.DN.CN",
            "ssl~client!s*dn'cn",
            "SSL_CLIENT_CERT",
            "ssl-client-verify",
            "SSL_CIPHER",
            "_SSL_CLIENT_S_DN_CN",
            "--ssl-client-s-dn-cn",
            "HTTP_SSL_CLIENT_S_DN_CN",
            "http-http_-_ssl-client-s-dn-cn",
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(&name, HeaderValue::from_static("alice"));
            headers.append(&name, HeaderValue::from_static("bob"));
        }
        assert!(without_certificate_headers(&headers).is_empty());
    }

    #[test]
    fn other_headers_stay_as_they_are() {
        let mut headers = HeaderMap::new();
        // What a server in front of us may say is for plugins that know it.
        for name in [
            "host",
            "cookie",
            "cookie",
            "x-ssl-client-cn",
            "sslclient",
            "http_host",
            "http",
        ] {
            headers.append(name, HeaderValue::from_static("alice"));
        }
        assert!(matches!(
            without_certificate_headers(&headers),
            Cow::Borrowed(_)
        ));
        let others = headers.clone();
        headers.insert("ssl_client_s_dn_cn", HeaderValue::from_static("alice"));
        assert_eq!(*without_certificate_headers(&headers), others);
    }
}
