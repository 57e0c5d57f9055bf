//! The files of the web directory, for browsers that load their page from here.
//!
//! Finding out what a path means is done here, so that nothing outside the directory is ever looked at but what an administrator's
//! symbolic links lead to; reading a file, with ranges and conditions, is tower-http's part.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION,
    RANGE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tokio::task::spawn_blocking;
use tower_http::services::ServeFile;
use tower_http::services::fs::ServeFileSystemResponseBody;

use super::listing::{self, Entry};
use super::refusal;
use crate::sys;

/// The body of an answer: a text of ours, or a file.
pub(super) type Body = Either<Full<Bytes>, ServeFileSystemResponseBody>;

/// The pages that are shown for their directory.
const INDEX_PAGES: [&str; 2] = ["index.html", "index.htm"];

/// The web directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
    /// Whether directories without an index page are listed.
    listings: bool,
}

/// What a path means.
#[derive(Debug)]
enum Found {
    File(Existing),
    /// A directory that was asked for without its last slash; the path with it.
    Directory(String),
    Listing(String),
    Nothing,
}

/// A file that is there.
#[derive(Debug)]
struct Existing {
    path: PathBuf,
    length: u64,
    /// Whether HTTP has a date for its last change.
    is_dated: bool,
    /// Whether a compressed form of it is there: by gzip, by Brotli.
    compressed: [bool; 2],
}

impl Existing {
    fn new(path: PathBuf, metadata: &Metadata) -> Self {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            // In this order: what is no file, such as a pipe, could keep whoever opens it waiting for ever.
            fs::metadata(&name).is_ok_and(|found| found.is_file()) && File::open(&name).is_ok()
        };
        Self {
            length: metadata.len(),
            is_dated: metadata.modified().is_ok_and(has_date),
            compressed: [".gz", ".br"].map(beside),
            path,
        }
    }
}

/// Whether a moment is one that HTTP can tell (RFC 9110, section 5.6.7); tower-http panics on others.
fn has_date(moment: SystemTime) -> bool {
    const END: Duration = Duration::from_secs(253_402_300_800);
    moment
        .duration_since(UNIX_EPOCH)
        .is_ok_and(|since| since < END)
}

impl Files {
    /// The files of `root`.
    ///
    /// # Errors
    /// It is no directory that can be read.
    pub(crate) fn new(root: PathBuf, listings: bool) -> Result<Self> {
        let name = root.display();
        let metadata = fs::metadata(&root)
            .map_err(|error| anyhow::anyhow!(sys::describe(&error)))
            .with_context(|| format!("cannot use the web directory {name}"))?;
        if !metadata.is_dir() {
            bail!(
                "the web directory {name} is not a directory; give the one that the files are in"
            );
        }
        fs::read_dir(&root)
            .map_err(|error| anyhow::anyhow!(sys::describe(&error)))
            .with_context(|| format!("cannot read the web directory {name}"))?;
        Ok(Self { root, listings })
    }

    /// The line of the settings about it.
    pub(crate) fn describe(&self) -> String {
        let without = if self.listings {
            ""
        } else {
            " (no directory listings)"
        };
        format!("Web server{without}. Web root: {}", self.root.display())
    }

    /// Answers a request.
    pub(super) async fn answer(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
    ) -> Response<Body> {
        let mut response = if [Method::GET, Method::HEAD].contains(&method) {
            self.read(method, uri, headers).await
        } else {
            refusal::reading_only().map(Either::Left)
        };
        // Pages are developed beside us, and a stale module breaks a page.
        let no_cache = HeaderValue::from_static("no-cache");
        response.headers_mut().insert(CACHE_CONTROL, no_cache);
        response
    }

    async fn read(&self, method: Method, uri: &Uri, headers: HeaderMap) -> Response<Body> {
        let path = uri.path().to_owned();
        let (root, listings) = (self.root.clone(), self.listings);
        let found = spawn_blocking(move || look_up(&root, &path, listings)).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error)));
        let answered = match found {
            Ok(Found::File(file)) => serve(file, method, headers).await,
            Ok(Found::Directory(path)) => Ok(redirect(&path, uri.query())),
            Ok(Found::Listing(page)) => Ok(html(page)),
            Ok(Found::Nothing) => Ok(refusal::not_found().map(Either::Left)),
            Err(error) => Err(error),
        };
        answered.unwrap_or_else(|error| refuse(&error).map(Either::Left))
    }
}

/// What the path of a URL means.
fn look_up(root: &Path, path: &str, listings: bool) -> io::Result<Found> {
    let Some(relative) = resolve(path) else {
        return Ok(Found::Nothing);
    };
    let absolute = root.join(&relative);
    let metadata = fs::metadata(&absolute)?;
    let as_directory = path.ends_with('/');
    if !metadata.is_dir() {
        // What is neither, such as a pipe, could keep whoever opens it waiting for ever.
        let is_file = metadata.is_file() && !as_directory;
        return Ok(if is_file {
            Found::File(Existing::new(absolute, &metadata))
        } else {
            Found::Nothing
        });
    }
    let names = relative.components().map(Component::as_os_str);
    if !as_directory {
        return Ok(Found::Directory(listing::directory_path(names)));
    }
    for page in INDEX_PAGES.map(|name| absolute.join(name)) {
        if let Ok(metadata) = fs::metadata(&page)
            && metadata.is_file()
        {
            return Ok(Found::File(Existing::new(page, &metadata)));
        }
    }
    if !listings {
        return Ok(Found::Nothing);
    }
    let entries = fs::read_dir(&absolute)?
        .map(|entry| {
            let entry = entry?;
            let is_directory = entry.path().is_dir();
            let name = entry.file_name();
            Ok(Entry { name, is_directory })
        })
        .collect::<io::Result<_>>()?;
    let shown = format!("/{}", relative.display());
    let is_root = relative.as_os_str().is_empty();
    let slash = if is_root { "" } else { "/" };
    let page = listing::page(&format!("{shown}{slash}"), is_root, entries);
    Ok(Found::Listing(page))
}

/// The path below the web directory that the path of a URL names; `None` for one that leads elsewhere or cannot exist.
fn resolve(path: &str) -> Option<PathBuf> {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let mut relative = PathBuf::new();
    for name in decoded.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return None,
            name if name.contains(&0) => return None,
            name => relative.push(OsStr::from_bytes(name)),
        }
    }
    Some(relative)
}

/// A file, or the part of it that was asked for.
async fn serve(
    file: Existing,
    method: Method,
    mut headers: HeaderMap,
) -> io::Result<Response<Body>> {
    let Existing {
        path,
        length,
        is_dated,
        compressed: [gzip, brotli],
    } = file;
    if !is_dated {
        // So rare that it is sent in one piece.
        return Ok(Response::new(Either::Left(Full::from(
            tokio::fs::read(path).await?,
        ))));
    }
    // What is no range is as if it were not there (RFC 9110, section 14.2).
    let is_range = |range: &HeaderValue| range.to_str().is_ok_and(|text| is_range(text, length));
    if method != Method::GET || !headers.get(RANGE).is_some_and(is_range) {
        headers.remove(RANGE);
    }
    let mut file = ServeFile::new(path);
    if gzip {
        file = file.precompressed_gzip();
    }
    if brotli {
        file = file.precompressed_br();
    }
    // tower-http does not know this condition: the range is of a version that may be there no more (RFC 9110, section 13.1.5).
    if let Some(version) = headers.remove(IF_RANGE)
        && headers.contains_key(RANGE)
    {
        let now = file
            .try_call(request(Method::HEAD, headers.clone()))
            .await?;
        let is_current =
            [ETAG, LAST_MODIFIED].map(|name| now.headers().get(name) == Some(&version));
        if !is_current.contains(&true) {
            headers.remove(RANGE);
        }
    }
    let response = file.try_call(request(method, headers)).await?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(response.map(Either::Right))
}

/// Whether a `Range` header asks for one part of a file of this length, which need not be there. Several parts, which a server may
/// decline to send, and what is more than all of it are none.
fn is_range(text: &str, length: u64) -> bool {
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return false;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (number(first), number(last)) {
        (Some(first), Some(last)) => first <= last,
        (Some(_), None) => last.trim().is_empty(),
        (None, Some(last)) => first.trim().is_empty() && last < length,
        (None, None) => false,
    }
}

fn request(method: Method, headers: HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    request
}

fn redirect(path: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::from_str(&format!("{path}{query}")) {
        Ok(location) => {
            let mut response = Response::new(Either::Left(Full::default()));
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, location);
            response
        }
        Err(_) => refusal::not_found().map(Either::Left),
    }
}

fn html(page: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(page)));
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}

fn refuse(error: &io::Error) -> refusal::Refusal {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidInput => refusal::not_found(),
        _ if error.raw_os_error() == Some(libc::ELOOP) => refusal::not_found(),
        ErrorKind::PermissionDenied => refusal::unreadable(),
        _ => {
            tracing::warn!(
                "cannot read a file of the web directory: {}",
                sys::describe(error)
            );
            refusal::failure()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_resolved_below_the_directory() {
        for (path, relative) in [
            ("/", ""),
            ("//a//./b/", "a/b"),
            ("/a%2Fb", "a/b"),
            ("/%61%25", "a%"),
            ("/a\\..\\b", "a\\..\\b"),
            ("", ""),
        ] {
            assert_eq!(resolve(path), Some(relative.into()), "{path}");
        }
    }

    #[test]
    fn one_part_is_a_range_and_everything_else_is_none() {
        for text in ["bytes=0-1", "bytes=9-", "bytes=-5", "bytes=0-0"] {
            assert!(is_range(text, 6), "{text}");
        }
        for text in [
            "bytes=-6",
            "bytes=3-1",
            "items=0-1",
            "bytes=0-0,2-3",
            "bytes=-",
            "bytes=",
            "bytes=a-1",
        ] {
            assert!(!is_range(text, 6), "{text}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_none() {
        for path in ["/..", "/a/../b", "/%2e%2E/", "/a%2f..%2fb", "/a\0b", "/%00"] {
            assert_eq!(resolve(path), None, "{path}");
        }
    }
}
