//! Finds the shim, and makes the environment that gets it into a program.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The shim's file name.
const LIBRARY: &str = "librebind.so";
/// Where the shim is, seen from the directory of the executable.
const PLACES: [&str; 2] = ["", "../lib/websockify"];

/// The variables that move `old` to `new` in a program and all that it starts.
pub(super) fn environment(old: u16, new: u16) -> Result<Vec<(&'static str, OsString)>> {
    let mut preload = library()?.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(OsStr::new(":"));
        preload.push(others);
    }
    Ok(vec![
        ("LD_PRELOAD", preload),
        ("REBIND_OLD_PORT", old.to_string().into()),
        ("REBIND_NEW_PORT", new.to_string().into()),
    ])
}

fn library() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot find out where this program is")?;
    let directory = executable
        .parent()
        .context("this program is in no directory")?;
    let candidates = PLACES.map(|place| directory.join(place).join(LIBRARY));
    let Some(found) = candidates.iter().find(|candidate| candidate.is_file()) else {
        let [beside, installed] = candidates.map(|candidate| candidate.display().to_string());
        bail!(
            "cannot wrap a program: {LIBRARY} is neither {beside} nor {installed}; install it with `make install`"
        );
    };
    let library = found
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", found.display()))?;
    // The loader takes both as separators and knows no way to quote them.
    if library
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b" \t\n:".contains(byte))
    {
        bail!(
            "cannot wrap a program: the path '{}' has a blank or a colon, which LD_PRELOAD cannot hold; install elsewhere",
            library.display()
        );
    }
    Ok(library)
}
