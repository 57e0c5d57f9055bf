//! What the log shows of a request's address: whoever reads it must not be able to use it.

use std::borrow::Cow;

use hyper::Uri;

use crate::token::{Token, decoded};

/// Parameters that nobody else is to know, with whom noVNC's pages come as well.
const SECRETS: [&str; 2] = ["token", "password"];

/// Path and query of an address, in which secrets are replaced by `…`, a long token by its last four characters.
pub(super) fn shown(uri: &Uri) -> Cow<'_, str> {
    let text = uri.path_and_query().map_or("/", |text| text.as_str());
    let Some((path, query)) = text.split_once('?') else {
        return Cow::Borrowed(text);
    };
    if !query
        .split('&')
        .any(|parameter| hidden(parameter).is_some())
    {
        return Cow::Borrowed(text);
    }
    let parameters: Vec<_> = query
        .split('&')
        .map(|parameter| hidden(parameter).map_or(Cow::Borrowed(parameter), Cow::Owned))
        .collect();
    Cow::Owned(format!("{path}?{}", parameters.join("&")))
}

/// What is shown of a parameter that has a secret in it; `None` if it has none.
fn hidden(parameter: &str) -> Option<String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let meant = decoded(name).to_lowercase();
    if meant == SECRETS[0] {
        return Some(format!(
            "{name}={}",
            Token::new(decoded(value).into_owned())
        ));
    }
    // Such as the `path` of noVNC's page, which is another address; encoded once more, as links in links are.
    let mut inner = decoded(parameter).into_owned();
    inner = decoded(&inner).to_lowercase();
    let has_secret = SECRETS
        .iter()
        .any(|secret| inner.contains(&format!("{secret}=")) || meant == *secret);
    has_secret.then(|| format!("{name}=…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (given, shows) in [
            ("/", "/"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/?token=short&a=b", "/?token=…&a=b"),
            ("/?a=b&token=0123456789abcdef", "/?a=b&token=…cdef"),
            ("/?%74oken=0123456789abcdef", "/?%74oken=…cdef"),
            ("/?TOKEN=short", "/?TOKEN=…"),
            ("/vnc.html?password=p&x=1", "/vnc.html?password=…&x=1"),
            (
                "/vnc.html?path=websockify%3Ftoken%3Dabc&x=1",
                "/vnc.html?path=…&x=1",
            ),
            ("/vnc.html?path=websockify?token=abc", "/vnc.html?path=…"),
            ("/?next=%252Fvnc.html%253Ftoken%253Dabc", "/?next=…"),
            ("http://user:secret@host/path", "/path"),
        ] {
            assert_eq!(shown(&given.parse().unwrap()), shows, "{given}");
        }
    }
}
