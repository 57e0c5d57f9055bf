//! What the log shows of a request's address: whoever reads it must not be able to use it.

use std::borrow::Cow;

use hyper::Uri;

use crate::token::{Token, decoded};

/// Parts of the names of parameters that nobody else is to know: noVNC's pages come with passwords as well.
const SECRETS: [&str; 2] = ["token", "password"];
/// How often links within links are looked through.
const DEPTH: usize = 5;

/// Path and query of an address, in which secrets are replaced by `…`, a long token by its last four characters.
pub(super) fn shown(uri: &Uri) -> Cow<'_, str> {
    let text = uri.path_and_query().map_or("/", |text| text.as_str());
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let mut parameters = query.into_iter().flat_map(|query| query.split('&'));
    let shown_path = shown_path(path);
    if shown_path == path
        && !parameters
            .clone()
            .any(|parameter| hidden(parameter).is_some())
    {
        return Cow::Borrowed(text);
    }
    let first = parameters.next().map(shown_parameter);
    let mut shown = shown_path.into_owned();
    for (number, parameter) in first
        .into_iter()
        .chain(parameters.map(shown_parameter))
        .enumerate()
    {
        shown.push(if number == 0 { '?' } else { '&' });
        shown.push_str(&parameter);
    }
    Cow::Owned(shown)
}

/// A path as far as there is no secret in it: a query that was encoded once too often is part of it.
fn shown_path(path: &str) -> Cow<'_, str> {
    if !has_secret(path) {
        return Cow::Borrowed(path);
    }
    let plain = path.find('%').unwrap_or(0);
    Cow::Owned(format!("{}…", &path[..plain]))
}

fn shown_parameter(parameter: &str) -> Cow<'_, str> {
    hidden(parameter).map_or(Cow::Borrowed(parameter), Cow::Owned)
}

/// What is shown of a parameter that has a secret in it; `None` if it has none.
fn hidden(parameter: &str) -> Option<String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    if decoded(name) == SECRETS[0] {
        let token = Token::new(decoded(value).into_owned());
        return Some(format!("{name}={token}"));
    }
    let meant = unfolded(name);
    let is_secret = SECRETS.iter().any(|secret| meant.contains(secret));
    // A value may be another address, as the `path` of noVNC's page is.
    if !is_secret && !has_secret(value) {
        return None;
    }
    // The name may be more than one.
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Some(if is_name {
        format!("{name}=…")
    } else {
        "…".to_owned()
    })
}

/// Whether there is a parameter with a secret in a text, however often that is encoded.
fn has_secret(text: &str) -> bool {
    let text = unfolded(text);
    SECRETS.iter().any(|secret| {
        text.match_indices(secret)
            .any(|(at, _)| text[at..].contains('='))
    })
}

/// A text in small letters, decoded as often as there is something to decode.
fn unfolded(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..DEPTH {
        match decoded(&text) {
            Cow::Borrowed(_) => break,
            Cow::Owned(inner) => text = inner,
        }
    }
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (given, shows) in [
            ("/", "/"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/a%20b?c=%25", "/a%20b?c=%25"),
            ("/tokens.html?a", "/tokens.html?a"),
            ("/?token=short&a=b", "/?token=…&a=b"),
            ("/?a=b&token=0123456789abcdef", "/?a=b&token=…cdef"),
            ("/?%74oken=0123456789abcdef", "/?%74oken=…cdef"),
            ("/?TOKEN=short", "/?TOKEN=…"),
            (
                "/?token+=short&token%20=a&token[]=b&tokens=c",
                "/?…&…&…&tokens=…",
            ),
            ("/vnc.html?password=p&x=1", "/vnc.html?password=…&x=1"),
            (
                "/vnc.html?path=websockify%3Ftoken%3Dabc&x=1",
                "/vnc.html?path=…&x=1",
            ),
            ("/vnc.html?path=websockify?token=abc", "/vnc.html?path=…"),
            ("/?next=%252Fvnc.html%253Ftoken%253Dabc", "/?next=…"),
            ("/?next=%25252Fvnc%25253Ftoken%25253Dabc", "/?next=…"),
            ("/?x%3D1%26token%3Dabc", "/?…"),
            ("/websockify%3Ftoken=abc", "/websockify…"),
            ("/websockify%3Ftoken%3Dabc?d=e", "/websockify…?d=e"),
            ("/token=abc", "…"),
            ("http://user:secret@host/path", "/path"),
        ] {
            assert_eq!(shown(&given.parse().unwrap()), shows, "{given}");
        }
    }
}
