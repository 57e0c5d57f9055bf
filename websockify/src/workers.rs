//! Worker threads: each carries its own sessions from beginning to end, with a poller of its own. So no two of them share a lock
//! on the way of a byte, and no session wakes a thread that is not its own.
//!
//! The thread that accepts is the first worker. The others are started when there is more to do than the running ones have
//! begun with, up to one for each processor; a connection goes to the one with the fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// What a worker is given to do.
pub(crate) trait Job: Send + 'static {
    /// Spawns a task in the runtime that this is called in; `load` is kept until that ends.
    fn start(self, load: Load);
}

/// Counts as one for its worker until it is dropped.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Load {
    fn on(worker: &Arc<AtomicUsize>) -> Self {
        worker.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The workers; when this is dropped, what they still do is given up.
#[derive(Debug)]
pub(crate) struct Workers<J> {
    /// How much this thread has to do.
    own_load: Arc<AtomicUsize>,
    others: Vec<Worker<J>>,
    /// How many others there may be.
    limit: usize,
}

#[derive(Debug)]
struct Worker<J> {
    load: Arc<AtomicUsize>,
    jobs: UnboundedSender<(J, Load)>,
}

impl<J: Job> Workers<J> {
    /// As many as there are processors, of which this thread is one.
    pub(crate) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            own_load: Arc::default(),
            others: Vec::new(),
            limit: processors - 1,
        }
    }

    /// Gives a job to the worker that has the fewest.
    pub(crate) fn assign(&mut self, job: J) {
        let load = |load: &Arc<AtomicUsize>| load.load(Ordering::Relaxed);
        let idlest = self.others.iter().min_by_key(|worker| load(&worker.load));
        let lowest = idlest.map_or(usize::MAX, |worker| load(&worker.load));
        let own = load(&self.own_load);
        if own == 0 || own <= lowest && self.others.len() == self.limit {
            return job.start(Load::on(&self.own_load));
        }
        let worker = match idlest {
            Some(worker) if lowest == 0 || self.others.len() == self.limit => worker,
            _ => match Worker::new() {
                Ok(worker) => {
                    self.others.push(worker);
                    &self.others[self.others.len() - 1]
                }
                Err(error) => {
                    tracing::debug!("cannot start another worker thread: {error}");
                    return job.start(Load::on(&self.own_load));
                }
            },
        };
        let sent = worker.jobs.send((job, Load::on(&worker.load)));
        if let Err(SendError((job, _))) = sent {
            // Something has gone wrong in that thread.
            self.others.retain(|worker| !worker.jobs.is_closed());
            self.assign(job);
        }
    }
}

impl<J: Job> Worker<J> {
    fn new() -> std::io::Result<Self> {
        let runtime = runtime()?;
        let (jobs, mut received) = unbounded_channel::<(J, Load)>();
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    while let Some((job, load)) = received.recv().await {
                        job.start(load);
                    }
                });
                // What cannot be interrupted, such as looking up a name, is not waited for.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            load: Arc::default(),
            jobs,
        })
    }
}

/// The runtime of one worker.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
