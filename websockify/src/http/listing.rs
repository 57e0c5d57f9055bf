//! The page that lists a directory.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What stands for itself in the path of a URL (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name, which need not be UTF-8.
    pub(super) name: OsString,
    /// Whether it is a directory, or leads to one.
    pub(super) is_directory: bool,
}

/// The path of a URL, which begins and ends with a slash, for these names of directories.
pub(super) fn directory_path<'a>(names: impl Iterator<Item = &'a OsStr>) -> String {
    names.fold("/".to_owned(), |mut path, name| {
        // Writing to a string cannot fail.
        _ = write!(path, "{}/", percent_encode(name.as_bytes(), ESCAPED));
        path
    })
}

/// The page for a directory, directories first, without regard to the case of names. `is_root` is the one above which there is
/// nothing to see.
pub(super) fn page(path: &str, is_root: bool, mut entries: Vec<Entry>) -> String {
    entries.sort_by(compare);
    let title = escape(path);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Directory listing for {title}</title>\n</head>\n<body>\n\
         <h1>Directory listing for {title}</h1>\n<ul>\n"
    );
    if !is_root {
        page.push_str("<li><a href=\"../\">../</a></li>\n");
    }
    for Entry { name, is_directory } in &entries {
        let slash = if *is_directory { "/" } else { "" };
        let link = percent_encode(name.as_bytes(), ESCAPED);
        let text = escape(&name.to_string_lossy());
        // Writing to a string cannot fail.
        _ = writeln!(
            page,
            "<li><a href=\"./{link}{slash}\">{text}{slash}</a></li>"
        );
    }
    page.push_str("</ul>\n</body>\n</html>\n");
    page
}

fn compare(a: &Entry, b: &Entry) -> Ordering {
    let folded = |entry: &Entry| entry.name.to_string_lossy().to_lowercase();
    (b.is_directory.cmp(&a.is_directory))
        .then_with(|| folded(a).cmp(&folded(b)))
        .then_with(|| a.name.cmp(&b.name))
}

/// `text` as it stands in HTML, within an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: impl AsRef<OsStr>, is_directory: bool) -> Entry {
        let name = name.as_ref().to_owned();
        Entry { name, is_directory }
    }

    #[test]
    fn names_are_sorted_and_escaped_both_ways() {
        let entries = vec![
            entry("b.html", false),
            entry("<script>alert('&\")", false),
            entry("A.html", false),
            entry("z", true),
            entry(OsStr::from_bytes(b"\xff%2e"), false),
        ];
        let page = page("/a<b>/", false, entries);
        let lines: Vec<_> = page.lines().filter(|line| line.contains("href")).collect();
        assert_eq!(
            lines,
            [
                "<li><a href=\"../\">../</a></li>",
                "<li><a href=\"./z/\">z/</a></li>",
                "<li><a href=\"./%3Cscript%3Ealert%28%27%26%22%29\">&lt;script&gt;alert(&#39;&amp;&quot;)</a></li>",
                "<li><a href=\"./A.html\">A.html</a></li>",
                "<li><a href=\"./b.html\">b.html</a></li>",
                "<li><a href=\"./%FF%252e\">\u{fffd}%2e</a></li>",
            ]
        );
        assert!(page.contains("<h1>Directory listing for /a&lt;b&gt;/</h1>"));
    }

    #[test]
    fn above_the_root_there_is_nothing() {
        assert!(!page("/", true, Vec::new()).contains("href"));
    }

    #[test]
    fn a_path_never_begins_with_two_slashes() {
        let names = ["/evil.example", "%2f", "ü"].map(OsStr::new);
        assert_eq!(
            directory_path(names.into_iter()),
            "/%2Fevil.example/%252f/%C3%BC/"
        );
        assert_eq!(directory_path([].into_iter()), "/");
    }
}
