//! `HtpasswdFile`: the users of a file that htpasswd(1) has made, with bcrypt.
//!
//! The file is looked at with every question: so a user who was taken away is let in no more from then on. bcrypt is made to be
//! slow. So it is done beside the worker threads, by a few at once at most, and not again for what was right a moment ago: a page
//! with sixty files asks sixty times.

mod users;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::credentials::Credentials;
use super::keyed::{Digest, Key};
use super::{Denied, Refused, Visitor};
use crate::stamp::Stamp;
use crate::sys;

use users::{Complaint, Users};

/// How many names and passwords are remembered; there is one for each user, or two.
const MAX_REMEMBERED: usize = 1024;
/// How many lines of the file are complained about at once.
const MAX_COMPLAINTS: usize = 10;

/// Lets in who is in the file.
#[derive(Debug)]
pub(crate) struct Htpasswd {
    source: Arc<Source>,
    /// One for each that may be checked at once: guessing is not to take all processors.
    slots: Arc<Semaphore>,
}

/// The file and what is known from it.
#[derive(Debug)]
struct Source {
    file: PathBuf,
    key: Key,
    read: Mutex<Read>,
}

/// What was read.
#[derive(Debug)]
struct Read {
    known: Arc<Known>,
    /// The digest of the file's content.
    content: Digest,
    /// What tells that the file has not changed since; `None` if nothing can.
    stamp: Option<Stamp>,
    /// Whether it could not be read since, which the log has been told.
    lost: bool,
}

/// The users, and those who have been there.
#[derive(Debug)]
struct Known {
    users: Users,
    /// Names and passwords that were right.
    remembered: Mutex<HashSet<Digest>>,
}

impl Htpasswd {
    /// With the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn new(file: PathBuf) -> Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            source: Arc::new(Source::open(file)?),
            slots: Arc::new(Semaphore::new((processors / 2).max(1))),
        })
    }

    /// Reads the file again.
    pub(crate) fn reload(&self) {
        let mut read = lock(&self.source.read);
        // It says what came of it, whether that is news or not.
        read.lost = false;
        self.source.read_again(&mut read, true);
    }

    /// Lets them in or not.
    pub(crate) async fn authenticate(&self, visitor: &Visitor<'_>) -> Result<(), Denied> {
        let refused = Err(Denied::Refused(Refused::unauthorized()));
        let Some(credentials) = Credentials::of(visitor.headers) else {
            return refused;
        };
        let digest = self.source.key.digest(credentials.pair());
        let source = Arc::clone(&self.source);
        let known = blocking(move || source.current()).await?;
        if known.remembers(&digest) {
            return Ok(());
        }
        // Whoever gives up waiting leaves the queue; a check that has begun keeps its slot until it is done.
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let source = Arc::clone(&self.source);
        let is_right = blocking(move || {
            let _slot = slot;
            // A browser asks several times at once.
            known.remembers(&digest) || known.verify(&credentials, digest, &source.key)
        });
        if is_right.await? { Ok(()) } else { refused }
    }
}

impl Source {
    fn open(file: PathBuf) -> Result<Self> {
        let key = Key::random()?;
        let read = Read::from(&file, &key, None)
            .map_err(|error| anyhow!(sys::describe(&error)))
            .with_context(|| format!("cannot read '{}'", file.display()))?;
        let read = Mutex::new(read);
        Ok(Self { file, key, read })
    }

    /// What the file says now, or what it said when it could last be read.
    fn current(&self) -> Arc<Known> {
        let mut read = lock(&self.read);
        if !read.is_current(&self.file) {
            self.read_again(&mut read, false);
        }
        Arc::clone(&read.known)
    }

    /// Reads the file, and says so if that is news, or `always`.
    fn read_again(&self, read: &mut Read, always: bool) {
        match Read::from(&self.file, &self.key, Some(read)) {
            Ok(new) => {
                if always || read.lost || !new.content.is(&read.content) {
                    let (name, count) = (self.file.display(), new.known.users.count());
                    tracing::info!("'{name}' read again: {count} who can log in");
                }
                *read = new;
            }
            Err(error) => read.lose(&self.file, &error),
        }
    }
}

impl Read {
    /// Reads the file. What was known `before` stays if the content has.
    fn from(file: &Path, key: &Key, before: Option<&Self>) -> io::Result<Self> {
        let now = SystemTime::now();
        let metadata = fs::metadata(file)?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let stamp = Some(Stamp::from(&metadata)).filter(|stamp| stamp.is_settled(now));
        let text = fs::read(file)?;
        let content = key.digest(&text);
        let same = before.filter(|before| before.content.is(&content));
        let known = match same {
            Some(before) => Arc::clone(&before.known),
            None => Arc::new(Known::from(file, &text)),
        };
        if before.is_none() && known.users.count() == 0 {
            let name = file.display();
            tracing::warn!("warning: nobody can log in with what is in '{name}'");
        }
        Ok(Self {
            known,
            content,
            stamp,
            lost: false,
        })
    }

    /// Whether it would be the same if the file were read again.
    fn is_current(&self, file: &Path) -> bool {
        self.stamp.is_some() && Stamp::of(file).ok() == self.stamp
    }

    /// Notes that the file cannot be read.
    fn lose(&mut self, file: &Path, error: &io::Error) {
        // It is to be read when it is back, however it looks.
        self.stamp = None;
        if !mem::replace(&mut self.lost, true) {
            let (name, why) = (file.display(), sys::describe(error));
            tracing::error!("cannot read '{name}', who can log in stays as it was: {why}");
        }
    }
}

impl Known {
    /// From the content of a file. Complains about lines that are no good.
    fn from(file: &Path, text: &[u8]) -> Self {
        let (users, complaints) = Users::parse(text);
        let name = file.display();
        for Complaint { line, reason } in complaints.iter().take(MAX_COMPLAINTS) {
            tracing::warn!("'{name}', line {line} is passed over: {reason}");
        }
        if let more @ 1.. = complaints.len().saturating_sub(MAX_COMPLAINTS) {
            tracing::warn!("'{name}': and {more} more lines");
        }
        let remembered = Mutex::default();
        Self { users, remembered }
    }

    /// Whether this was right before.
    fn remembers(&self, digest: &Digest) -> bool {
        lock(&self.remembered).contains(digest)
    }

    fn remember(&self, digest: Digest) {
        let mut remembered = lock(&self.remembered);
        // Who is forgotten is let in all the same, a little later.
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest);
    }

    /// Whether this is right, in the encoding that it came in or in the other one.
    fn verify(&self, credentials: &Credentials, digest: Digest, key: &Key) -> bool {
        let other = || credentials.in_other_encoding();
        let is_right = self.users.verify(credentials, key)
            || other().is_some_and(|other| self.users.verify(&other, key));
        if is_right {
            self.remember(digest);
        }
        is_right
    }
}

/// Does what takes as long as a file system or bcrypt does.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Denied> {
    // Where files keep everybody waiting, the threads are not only for those who log in.
    static THREADS: Semaphore = Semaphore::const_new(32);
    let thread = THREADS.acquire().await;
    let done = spawn_blocking(move || {
        // Also when nobody waits any more.
        let _thread = thread;
        work()
    })
    .await;
    done.map_err(|error| Denied::Unavailable(error.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::listener::Peer;

    /// "hunter2", "Hunter2" and "hünter", as htpasswd(1) writes them.
    const HASHES: [&str; 3] = [
        "$2y$04$WjkIP8xAqIGsRMIdWM2kYu/svxla16gy3e5lMTNw3vdYERuE8MwPq",
        "$2y$04$calcuGtBDB2NZdCbe1MAluHFRGc3nMgdU7ib91n8IVVj1PdQrf2fW",
        "$2y$04$Q8aJWKvu8KwUdRSVHPx4Z.R3nfkVNx.YoWAJfzUihxvFAL1W2t55W",
    ];
    const ALICE: &str = "YWxpY2U6aHVudGVyMg==";

    /// A file in a directory of its own.
    fn file(content: &str) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users");
        fs::write(&file, content).unwrap();
        (directory, file)
    }

    /// What comes of these, in base64.
    async fn ask(htpasswd: &Htpasswd, pair: &str) -> Result<(), Denied> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&format!("Basic {pair}")).unwrap();
        headers.insert(AUTHORIZATION, value);
        let visitor = Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: "/",
            file: false,
            common_name: None,
        };
        htpasswd.authenticate(&visitor).await
    }

    async fn lets_in(htpasswd: &Htpasswd, pair: &str) -> bool {
        match ask(htpasswd, pair).await {
            Ok(()) => true,
            Err(denied) => {
                assert_eq!(denied, Denied::Refused(Refused::unauthorized()));
                false
            }
        }
    }

    #[tokio::test]
    async fn both_encodings_are_right() {
        let (_directory, file) = file(&format!("alice:{}\njürgen:{}", HASHES[0], HASHES[2]));
        let htpasswd = Htpasswd::new(file).unwrap();
        for (pair, is_right) in [
            (ALICE, true),
            ("YWxpY2U6SHVudGVyMg==", false), // alice:Hunter2
            ("asO8cmdlbjpow7xudGVy", true),  // in UTF-8
            ("avxyZ2VuOmj8bnRlcg==", true),  // in latin-1
            ("avxyZ2VuOmhudGVy", false),
        ] {
            assert_eq!(lets_in(&htpasswd, pair).await, is_right, "{pair}");
        }
    }

    /// Edits that leave the size, and mostly the times, as they were.
    #[tokio::test]
    async fn an_edit_counts_from_then_on() {
        let (_directory, file) = file(&format!("alice:{}", HASHES[0]));
        let htpasswd = Htpasswd::new(file.clone()).unwrap();
        for _ in 0..10 {
            assert!(lets_in(&htpasswd, ALICE).await);
            fs::write(&file, format!("alice:{}", HASHES[1])).unwrap();
            assert!(!lets_in(&htpasswd, ALICE).await);
            fs::write(&file, format!("alice:{}", HASHES[0])).unwrap();
        }
        fs::write(&file, "").unwrap();
        assert!(!lets_in(&htpasswd, ALICE).await);
    }

    /// An edit within the granularity of the clock leaves no trace.
    #[test]
    fn what_has_just_been_written_is_not_relied_on() {
        let (_directory, file) = file("");
        let key = Key::random().unwrap();
        let is_relied_on = |_| {
            fs::write(&file, "").unwrap();
            let read = Read::from(&file, &key, None).unwrap();
            read.is_current(&file)
        };
        // A machine that is busy may take its time between the two.
        assert!(!(0..100).all(is_relied_on));
    }

    #[tokio::test]
    async fn a_file_that_is_gone_is_remembered_until_it_is_back() {
        let (directory, file) = file(&format!("alice:{}", HASHES[0]));
        let away = directory.path().join("away");
        let htpasswd = Htpasswd::new(file.clone()).unwrap();
        fs::rename(&file, &away).unwrap();
        assert!(lets_in(&htpasswd, ALICE).await);
        fs::create_dir(&file).unwrap();
        assert!(lets_in(&htpasswd, ALICE).await);
        fs::remove_dir(&file).unwrap();
        fs::write(&file, format!("alice:{}", HASHES[1])).unwrap();
        assert!(!lets_in(&htpasswd, ALICE).await);
        fs::rename(&away, &file).unwrap();
        assert!(lets_in(&htpasswd, ALICE).await);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let (directory, file) = file("");
        for bad in [directory.path().to_owned(), file.join("x"), "/none".into()] {
            let error = format!("{:#}", Htpasswd::new(bad.clone()).unwrap_err());
            assert!(error.contains(&format!("'{}'", bad.display())), "{error}");
        }
        assert!(Htpasswd::new(file).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_let_in_waits_for_no_check() {
        let (_directory, file) = file(&format!("alice:{}", HASHES[0]));
        let htpasswd = Htpasswd::new(file).unwrap();
        let all = htpasswd.slots.available_permits();
        assert!(all >= 1 && all <= thread::available_parallelism().unwrap().get());
        assert!(lets_in(&htpasswd, ALICE).await);
        assert_eq!(htpasswd.slots.available_permits(), all);
        // As if there were checks without end.
        let slots = htpasswd.slots.acquire_many(all.try_into().unwrap());
        let slots = slots.await.unwrap();
        let soon = |pair| timeout(Duration::from_secs(5), ask(&htpasswd, pair));
        assert_eq!(soon(ALICE).await, Ok(Ok(())));
        assert!(soon("YWxpY2U6SHVudGVyMg==").await.is_err());
        drop(slots);
        assert!(!lets_in(&htpasswd, "YWxpY2U6SHVudGVyMg==").await);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Known::from(Path::new("file"), b"");
        let key = Key::random().unwrap();
        for number in 0..3 * MAX_REMEMBERED {
            let digest = key.digest(&number.to_le_bytes());
            assert!(!known.remembers(&digest));
            known.remember(digest);
            assert!(known.remembers(&digest));
            assert!(lock(&known.remembered).len() <= MAX_REMEMBERED);
        }
    }
}
