//! What must never be shown.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

/// A password: nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The password itself.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<OsString> for Secret {
    fn from(text: OsString) -> Self {
        Self(text.into_vec())
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::from(OsString::from("hunter2"));
        assert_eq!(format!("{secret:?}"), "***");
    }
}
