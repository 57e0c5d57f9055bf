//! A program that answers questions for as long as there are any: it is started again whenever it ends.
//!
//! One task, on the runtime that started it, writes the questions and reads the answers; whoever asks may be on any thread. A
//! question belongs to its asker, who forgets it by not waiting any longer; so whatever the program does, no more is kept than
//! what somebody waits for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Launch;
use super::lines::{Line, Lines};
use super::program::{Pipes, Running};
use super::protocol::{self, Answer, Question};
use crate::token::Unavailable;

/// How many questions may wait for their answers.
const MAX_QUESTIONS: usize = 1024;
/// How many bytes of questions are written at once, as far as there is a choice.
const BATCH: usize = 4096;
/// The pauses before a program is started again that did not run for long: they double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long a program has to run for no pause to be made.
const STABLE: Duration = Duration::from_secs(10);
/// The longest pause in which questions wait. In a longer one they are turned down at once.
const BEARABLE: Duration = Duration::from_secs(1);
/// How long answers are read of a program that has ended, or that takes no more questions.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// How often the log is told of rubbish.
const COMPLAINTS: Duration = Duration::from_secs(10);
/// What became of a program that had to be ended for that.
const STUCK: &str = "was ended, since nothing comes back of all that it was asked";
/// Why a program is not asked that was to end.
const GONE: &str = "it has ended";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The question is longer than any line may be.
    TooLong,
    /// The program cannot answer.
    Unavailable(Unavailable),
}

/// The program, as askers see it.
#[derive(Debug)]
pub(super) struct Process {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// How many questions a program may hold that nobody waits for any more before it is taken for dead, and for how long.
///
/// Only of a program that answers each question can that be said; others may leave out what they do not know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endurance {
    pub(super) questions: usize,
    pub(super) time: Duration,
}

/// What askers and the task share.
struct Shared {
    endurance: Option<Endurance>,
    /// The program holds more than its endurance permits.
    stuck: Notify,
    /// What the program is, for the log.
    name: &'static str,
    /// The number of the next question.
    next: AtomicU64,
    questions: Mutex<Questions>,
    /// There are questions to be written.
    waiting: Notify,
    /// Whether the program is to end.
    stop: watch::Sender<bool>,
}

/// Shows nothing of what is asked.
impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The questions that wait for an answer.
#[derive(Default)]
struct Questions {
    /// Who asked.
    askers: HashMap<u64, oneshot::Sender<Result<Answer, Unavailable>>>,
    /// The lines that were not written yet.
    lines: BTreeMap<u64, String>,
    /// Why none is taken.
    turned_down: Option<String>,
    /// Those that the program has, and that nobody waits for.
    held: BTreeSet<u64>,
    /// How many were given up before they could be written, since the last answer.
    unwritten: usize,
    /// Since when there have been more of these two than there may be, without an answer.
    stuck_since: Option<Instant>,
}

impl Questions {
    /// Nobody waits any more for this one.
    fn give_up(&mut self, id: u64, endurance: Option<Endurance>) {
        let asked = self.askers.remove(&id).is_some();
        let written = self.lines.remove(&id).is_none();
        let Some(endurance) = endurance.filter(|_| asked) else {
            return;
        };
        if written {
            self.held.insert(id);
        } else {
            self.unwritten += 1;
        }
        if self.held.len() + self.unwritten >= endurance.questions {
            self.stuck_since.get_or_insert_with(Instant::now);
        }
    }

    /// The program works.
    fn has_answered(&mut self, id: u64) {
        self.held.remove(&id);
        self.unwritten = 0;
        self.stuck_since = None;
    }

    /// It is another program from now on.
    fn begin_anew(&mut self) {
        self.held.clear();
        self.unwritten = 0;
        self.stuck_since = None;
    }

    fn is_stuck(&self, endurance: Option<Endurance>) -> bool {
        let limit = endurance.map(|endurance| endurance.time);
        let time = self.stuck_since.map(|since| since.elapsed());
        limit.zip(time).is_some_and(|(limit, time)| time >= limit)
    }
}

impl Process {
    /// Starts a program, and from then on whenever it has ended, in the runtime that this is called in.
    ///
    /// # Errors
    /// It cannot be started for the first time.
    pub(super) async fn start(
        launch: Launch,
        endurance: Option<Endurance>,
    ) -> anyhow::Result<Self> {
        let running = launch.start().await?;
        let shared = Arc::new(Shared {
            endurance,
            stuck: Notify::new(),
            name: launch.name(),
            next: AtomicU64::new(1),
            questions: Mutex::default(),
            waiting: Notify::new(),
            stop: watch::Sender::new(false),
        });
        let task = tokio::spawn(keep_running(Arc::clone(&shared), launch, running));
        Ok(Self {
            shared,
            task: Mutex::new(Some(task)),
        })
    }

    /// What the program is, for the log.
    pub(super) fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Asks, and waits for the answer. Whoever drops this takes the question back.
    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let (_asked, answer) = self.shared.put(question)?;
        let unavailable = Err(Unavailable(GONE.to_owned()));
        let answer = answer.await.unwrap_or(unavailable);
        answer.map_err(Failure::Unavailable)
    }

    /// How many questions wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        let questions = self.shared.questions();
        questions.askers.len().max(questions.lines.len())
    }

    /// Ends the program, and waits for that; it does not take long. It is not started again.
    pub(super) async fn end(&self) {
        self.shared.stop.send_replace(true);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            // Its panics are in the log.
            _ = task.await;
        }
    }
}

/// A question that somebody waits for; when this is dropped, nobody does.
struct Asked<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let endurance = self.shared.endurance;
        self.shared.questions().give_up(self.id, endurance);
    }
}

impl Shared {
    /// Puts a question among those that wait.
    fn put(
        &self,
        question: &Question,
    ) -> Result<(Asked<'_>, oneshot::Receiver<Result<Answer, Unavailable>>), Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let line = question.line(id).ok_or(Failure::TooLong)?;
        let (asker, answer) = oneshot::channel();
        let unavailable = |reason| Err(Failure::Unavailable(Unavailable(reason)));
        let mut questions = self.questions();
        if let Some(reason) = &questions.turned_down {
            return unavailable(reason.clone());
        }
        if questions.askers.len() >= MAX_QUESTIONS {
            return unavailable(format!("{MAX_QUESTIONS} questions wait for its answers"));
        }
        questions.askers.insert(id, asker);
        questions.lines.insert(id, line);
        if questions.is_stuck(self.endurance) {
            self.stuck.notify_one();
        }
        drop(questions);
        self.waiting.notify_one();
        Ok((Asked { shared: self, id }, answer))
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the program is to end.
    async fn stopped(&self) {
        // The sender is part of `self`.
        _ = self.stop.subscribe().wait_for(|&stop| stop).await;
    }

    /// Waits until the program has lost itself in questions that nobody waits for any more.
    async fn stuck(&self) {
        loop {
            self.stuck.notified().await;
            // It may have been said of the one before.
            if self.questions().is_stuck(self.endurance) {
                return;
            }
        }
    }

    /// Writes questions as they come, until nobody reads them.
    async fn write_questions(&self, mut input: pipe::Sender) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = self.waiting.notified() => {}
                // The other end is closed.
                closed = input.ready(Interest::ERROR) => return closed.map(drop),
            }
            while self.take_batch(&mut batch) {
                input.write_all(&batch).await?;
            }
        }
    }

    /// Takes questions to be written. Returns whether there are any.
    fn take_batch(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut questions = self.questions();
        // When more is asked than the program can answer, it should be what is asked last: the time of the others runs out.
        while batch.len() < BATCH
            && let Some((_, line)) = questions.lines.pop_last()
        {
            batch.extend_from_slice(line.as_bytes());
        }
        !batch.is_empty()
    }

    /// Hands out answers as they come, until there are no more.
    async fn read_answers(&self, mut lines: Lines<impl AsyncRead + Unpin>) {
        let mut complaints = Complaints::default();
        // What cannot be read any more is like an end.
        while let Ok(Some(line)) = lines.next().await {
            let length = line.text.len() + 1;
            match self.take(&line) {
                Ok(true) => {}
                Ok(false) => lines.was_useless(length).await,
                Err(reason) => {
                    complaints.about(self.name, reason);
                    lines.was_useless(length).await;
                }
            }
        }
    }

    /// Hands out an answer, or says what is wrong with the line. Returns whether somebody waited for it.
    fn take(&self, line: &Line<'_>) -> Result<bool, &'static str> {
        if line.cut {
            return Err("a line is longer than 64 KiB");
        }
        let Some((id, answer)) = protocol::parse(line.text) else {
            return Err("a line is not a JSON object with an id");
        };
        let asker = {
            let mut questions = self.questions();
            // It answers what it cannot have read.
            match questions.lines.contains_key(&id) {
                true => None,
                false => {
                    questions.has_answered(id);
                    questions.askers.remove(&id)
                }
            }
        };
        match asker {
            Some(asker) => Ok(asker.send(Ok(answer)).is_ok()),
            None if (1..self.next.load(Ordering::Relaxed)).contains(&id) => Ok(false),
            None => Err("an id is not that of a question"),
        }
    }

    /// Tells those whose questions were written that there will be no answer.
    fn give_up_written(&self, reason: &str) {
        let mut questions = self.questions();
        let Questions { askers, lines, .. } = &mut *questions;
        for (_, asker) in askers.extract_if(|id, _| !lines.contains_key(id)) {
            _ = asker.send(Err(Unavailable(reason.to_owned())));
        }
        questions.begin_anew();
    }

    /// Turns down every question from now on, and those that wait; or takes them again.
    fn turn_down(&self, reason: Option<&str>) {
        let mut questions = self.questions();
        if let Some(reason) = reason {
            questions.lines.clear();
            for (_, asker) in questions.askers.drain() {
                _ = asker.send(Err(Unavailable(reason.to_owned())));
            }
        }
        questions.turned_down = reason.map(str::to_owned);
    }
}

/// Turns down every question once the task is over, however that came about.
struct UntilOver(Arc<Shared>);

impl Drop for UntilOver {
    fn drop(&mut self) {
        self.0.turn_down(Some(GONE));
    }
}

/// Lets a program answer, and starts it again when it has ended, until it is to end.
async fn keep_running(shared: Arc<Shared>, launch: Launch, mut running: Running) {
    let UntilOver(shared) = &UntilOver(shared);
    let mut pause = Duration::ZERO;
    loop {
        let began = running.began();
        let Some(end) = serve(shared, running).await else {
            return;
        };
        shared.give_up_written(&format!("it {end}"));
        if began.elapsed() >= STABLE {
            pause = Duration::ZERO;
        }
        let start = start_again(shared, &launch, format!("it {end}"), &mut pause);
        running = tokio::select! {
            running = start => running,
            () = shared.stopped() => return,
        };
        shared.turn_down(None);
    }
}

/// Starts a program again that has ended for this reason, as often as it takes.
async fn start_again(
    shared: &Shared,
    launch: &Launch,
    mut reason: String,
    pause: &mut Duration,
) -> Running {
    loop {
        let seconds = pause.as_secs_f64();
        tracing::error!(
            "{}: {reason}; starting it again in {seconds} s",
            shared.name
        );
        if *pause > BEARABLE {
            shared.turn_down(Some(&reason));
        }
        sleep(*pause).await;
        *pause = (*pause * 2).clamp(PAUSES.0, PAUSES.1);
        match launch.start().await {
            Ok(running) => return running,
            Err(error) => reason = format!("{error:#}"),
        }
    }
}

/// Lets a program answer until it has ended. Returns how it did; `None` when it was to end.
async fn serve(shared: &Shared, mut running: Running) -> Option<String> {
    let Pipes { input, lines } = running.pipes.take()?;
    let mut stuck = false;
    let stopped = {
        let mut read = pin!(shared.read_answers(lines));
        let mut write = pin!(shared.write_questions(input));
        // Questions may have come before it.
        shared.waiting.notify_one();
        let (stopped, read_all) = tokio::select! {
            // Before anything is written that it would take along.
            biased;
            () = shared.stopped() => (true, true),
            () = shared.stuck() => {
                stuck = true;
                (false, true)
            }
            read_all = async {
                // In any order, so that much of one keeps nobody from another.
                tokio::select! {
                    () = &mut read => true,
                    () = running.exit() => false,
                    _ = &mut write => false,
                }
            } => (false, read_all),
        };
        if !read_all {
            // Answers may be on their way.
            _ = timeout(LAST_ANSWERS, read).await;
        }
        stopped
    };
    let end = running.end().await;
    let end = if stuck { STUCK.to_owned() } else { end };
    (!stopped).then_some(end)
}

/// What the log is told of rubbish: not each piece.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    /// How many there were that it was not told of.
    more: u64,
}

impl Complaints {
    fn about(&mut self, name: &str, reason: &str) {
        if self.last.is_some_and(|last| last.elapsed() < COMPLAINTS) {
            self.more += 1;
            return;
        }
        self.last = Some(Instant::now());
        let more = match std::mem::take(&mut self.more) {
            0 => String::new(),
            more => format!(" (and {more} times more)"),
        };
        tracing::warn!("{name}: its standard output is for answers, and {reason}{more}");
    }
}
