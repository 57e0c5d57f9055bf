//! Files that others wait for: they are written at once, or not at all.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::anyhow;
use tempfile::NamedTempFile;

use crate::sys;

/// A new file in the directory of `path` that everybody may read; to be written, and then to be put in its place.
pub(crate) fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)
}

/// What is said when that has failed.
pub(crate) fn failure(path: &Path, error: &io::Error) -> anyhow::Error {
    // The name of a temporary file, which the error tells as well, would only confuse.
    let reason = match error.kind() {
        ErrorKind::NotFound => "there is no such directory".to_owned(),
        _ if error.raw_os_error().is_some() => sys::describe(error),
        kind => kind.to_string(),
    };
    anyhow!("cannot write {}: {reason}", path.display())
}
