//! Programs that know tokens or who is let in, in any language: they answer questions, one JSON object per line.

use anyhow::Result;

use crate::config::{AuthConfig, TokenConfig};

/// A program that answers.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {}

/// The interpreter with the classes of Python of a configuration, if there are any.
///
/// # Errors
/// A class cannot be used, and why.
pub(crate) async fn python(
    tokens: Option<&TokenConfig>,
    auth: Option<&AuthConfig>,
) -> Result<Option<Plugin>> {
    _ = (tokens, auth);
    Ok(None)
}
