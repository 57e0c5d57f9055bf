//! Puts the shim where the loader finds it, and makes the environment that gets it into a program.
//!
//! The shim's bytes are in this executable. One that is installed beside it is used if it is the same; otherwise the bytes are
//! written to a directory that other users can read and nobody else can write, under a name that follows from the content. It
//! stays there: what a program leaves behind goes on loading it after we have gone.

#![allow(unsafe_code, reason = "a trial mapping of the library")]

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::Uid;

use super::redirect::Rule;

/// The shim.
const SHIM: &[u8] = include_bytes!(env!("REBIND_LIBRARY"));
/// Where an installed shim is, seen from the directory of the executable.
const INSTALLED: [&str; 2] = ["librebind.so", "../lib/websockify/librebind.so"];
/// How names of unfinished files begin.
const UNFINISHED: &str = ".librebind-";
/// After which time an unfinished file is one that somebody was killed over.
const ABANDONED: Duration = Duration::from_secs(60);

/// The variables that move a port in a program and all that it starts, by the shim at this path.
pub(super) fn variables(rule: Rule, library: &Path) -> [(&'static str, OsString); 3] {
    let mut preload = library.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    [
        ("LD_PRELOAD", preload),
        ("REBIND_OLD_PORT", rule.old.to_string().into()),
        ("REBIND_NEW_PORT", rule.new.to_string().into()),
    ]
}

/// The path of a shim that programs can load; it is written if it is not there.
pub(super) fn library() -> Result<PathBuf> {
    if let Some(installed) = installed() {
        return Ok(installed);
    }
    let mut refusals = Vec::new();
    for directory in directories() {
        match extract_into(&directory) {
            Ok(path) => return Ok(path),
            Err(error) => refusals.push(format!("{}: {error:#}", directory.display())),
        }
    }
    bail!(
        "cannot wrap a program: no directory takes the library that is preloaded into it ({}); install it with `make install`",
        refusals.join("; ")
    )
}

/// A lock on the directory of the shim, for as long as a program uses it: systemd-tmpfiles(8), which removes old files of
/// `/tmp`, passes over what is locked.
pub(super) fn lock(library: &Path) -> Option<Flock<File>> {
    let directory = File::open(library.parent()?).ok()?;
    Flock::lock(directory, FlockArg::LockSharedNonblock).ok()
}

/// An installed shim, if it is ours.
fn installed() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    let directory = executable.parent()?;
    INSTALLED
        .iter()
        .filter_map(|place| directory.join(place).canonicalize().ok())
        .find(|path| is_loadable_path(path) && check(path).is_ok())
}

/// Where to write the shim, best first: places that all users can read come before those of one user.
fn directories() -> Vec<PathBuf> {
    let own = format!("websockify-{}", Uid::effective());
    let mut directories = Vec::new();
    if Uid::effective().is_root() {
        directories.push(PathBuf::from("/run/websockify"));
    }
    directories.extend(["/tmp", "/var/tmp", "/dev/shm"].map(|shared| Path::new(shared).join(&own)));
    for (variable, place) in [
        ("XDG_RUNTIME_DIR", ""),
        ("XDG_CACHE_HOME", ""),
        ("HOME", ".cache"),
    ] {
        let base = std::env::var_os(variable).map(|base| Path::new(&base).join(place));
        directories.extend(
            base.filter(|base| base.is_absolute())
                .map(|base| base.join(&own)),
        );
    }
    directories
}

/// Puts the shim into a directory, unless it is there, and returns its path.
fn extract_into(directory: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    hasher.write(SHIM);
    let path = directory.join(format!("librebind-{:016x}.so", hasher.finish()));
    ensure!(
        is_loadable_path(&path),
        "a path with a blank or a colon cannot be preloaded"
    );
    prepare(directory)?;
    if check(&path).is_err() {
        remove_abandoned(directory);
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(directory)?;
        file.write_all(SHIM)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        file.persist(&path)?;
        check(&path)?;
    }
    Ok(path)
}

/// Makes sure that the directory is there, and that nobody else can put anything into it.
fn prepare(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    let metadata = fs::symlink_metadata(directory)?;
    let ours = metadata.is_dir() && metadata.uid() == Uid::effective().as_raw();
    ensure!(
        ours && metadata.mode() & 0o022 == 0,
        "it belongs to somebody else"
    );
    ensure!(
        metadata.mode() & 0o055 == 0o055,
        "other users cannot read it"
    );
    Ok(())
}

/// Checks that a file is the shim, and that it can be mapped as a program: not so on a file system that is mounted `noexec`.
fn check(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    ensure!(
        metadata.is_file() && [0, Uid::effective().as_raw()].contains(&metadata.uid()),
        "it is not ours"
    );
    ensure!(fs::read(path)? == SHIM, "it is another library");
    let file = File::open(path)?;
    let length = NonZeroUsize::new(SHIM.len()).context("the library is empty")?;
    let (protection, flags) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
        MapFlags::MAP_PRIVATE,
    );
    // SAFETY: a new mapping at an address of the kernel's choice, which is not used and goes at once.
    unsafe {
        let mapping = mmap(None, length, protection, flags, &file, 0).map_err(|error| {
            anyhow::anyhow!("it cannot be executed from there: {}", error.desc())
        })?;
        munmap(mapping, length.get())?;
    }
    Ok(())
}

/// Removes what was left by processes that were killed while they wrote.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > ABANDONED));
        if old
            && entry
                .file_name()
                .as_bytes()
                .starts_with(UNFINISHED.as_bytes())
        {
            // Somebody else may have removed it just now.
            _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether the loader can be given this path: it takes blanks and colons as separators, and knows no way to quote them.
fn is_loadable_path(path: &Path) -> bool {
    let bytes = OsStr::as_bytes(path.as_os_str());
    !bytes
        .iter()
        .any(|byte| byte.is_ascii_whitespace() || *byte == b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_again_when_it_is_damaged() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("shim");
        let path = extract_into(&directory).unwrap();
        let inode = |path| fs::metadata(path).unwrap().ino();
        let first = inode(&path);
        assert_eq!(extract_into(&directory).unwrap(), path);
        assert_eq!(inode(&path), first);
        fs::write(&path, "damaged").unwrap();
        extract_into(&directory).unwrap();
        assert_eq!(fs::read(&path).unwrap(), SHIM);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("shim");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
        assert!(extract_into(&directory).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).unwrap();
        assert!(extract_into(&link).is_err());
        assert!(extract_into(&base.path().join("a blank")).is_err());
        assert!(extract_into(Path::new("/proc/shim")).is_err());
    }
}
