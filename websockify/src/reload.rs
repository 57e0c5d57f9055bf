//! Reading files again that may have changed, without ending anything: when SIGHUP asks for it. Each part says in one line what it
//! did, and keeps what it had if the new is no good.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::gate::Gate;
use crate::log;
use crate::systemd::Manager;
use crate::tls::Acceptor;

/// What has read files.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    /// The certificate and its key, if there is TLS.
    pub(crate) acceptor: Option<Arc<Acceptor>>,
    /// Tokens and passwords.
    pub(crate) gate: Arc<Gate>,
}

impl Readers {
    /// Reads everything again whenever that is asked for. It may take as long as a file system and the decryption of a key take.
    pub(crate) async fn serve(
        self,
        mut requests: mpsc::Receiver<()>,
        manager: &Manager,
    ) -> Infallible {
        while requests.recv().await.is_some() {
            let is_told = manager.reloading();
            let this = self.clone();
            // Its panics are in the log.
            _ = spawn_blocking(move || this.read_again()).await;
            if is_told {
                manager.ready();
            }
        }
        pending().await
    }

    fn read_again(&self) {
        log::reopen();
        if let Some(acceptor) = &self.acceptor {
            acceptor.reload();
        }
        let any = self.gate.reload();
        if self.acceptor.is_none() && !any {
            tracing::info!("HUP: there is no file to read again");
        }
    }
}
