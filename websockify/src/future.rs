//! Waiting for what may never come.

use std::future::pending;

/// What the future gives, if there is one; otherwise this waits for ever.
pub(crate) async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
