//! Whether a file is still what was read: files are read again only when they have changed.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What tells that a file is another one, or has another content: device, inode, size, and when content and inode were changed.
///
/// An edit within the granularity of the clock that these times come from leaves no trace. Whoever keeps what they have read takes
/// a stamp *before* they read, and asks whether it [is settled](Self::is_settled).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Time,
    changed: Time,
}

/// Seconds of the Unix epoch, and nanoseconds, which are 0 where a file system has none.
type Time = (i64, i64);

/// How long a file must have been at rest where its times have nanoseconds: the clock behind them ticks each 1 to 10 ms, and a
/// file server has its own.
const TICK: Duration = Duration::from_millis(50);
/// The same where they have none: the coarsest count 2 s.
const COARSE_TICK: Duration = Duration::from_secs(2);

impl Stamp {
    /// The stamp of a file, or of that which a symbolic link leads to.
    ///
    /// # Errors
    /// There is none, or nobody may know.
    pub(crate) fn of(file: &Path) -> io::Result<Self> {
        std::fs::metadata(file).map(|metadata| Self::from(&metadata))
    }

    /// Whether the file cannot change any more without its stamp changing too, when it was taken at `now`.
    ///
    /// That what `now` gives comes from the same clock holds for local files only. A time of change ahead of it is of another
    /// clock, and never settled; one of modification is what somebody has set, which no edit does.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let age = |time: Time| Some(since_epoch(now) - nanoseconds(time)).filter(|age| *age >= 0);
        age(self.changed).is_some_and(|age| age > tick(self.changed))
            && age(self.modified).is_none_or(|age| age > tick(self.modified))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Nanoseconds from the epoch to now.
fn since_epoch(now: SystemTime) -> i128 {
    let nanoseconds = |duration: Duration| duration.as_nanos().cast_signed();
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => nanoseconds(since),
        Err(before) => -nanoseconds(before.duration()),
    }
}

fn nanoseconds((seconds, nanoseconds): Time) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// How long a time is the same, in nanoseconds.
fn tick((_, nanoseconds): Time) -> i128 {
    let tick = if nanoseconds == 0 { COARSE_TICK } else { TICK };
    tick.as_nanos().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that was modified and changed at these times.
    fn stamp(modified: Time, changed: Time) -> Stamp {
        Stamp {
            device: 1,
            inode: 2,
            size: 3,
            modified,
            changed,
        }
    }

    fn at(milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_has_just_changed_is_not_settled() {
        let fine = (100, 1);
        let coarse = (100, 0);
        for (modified, changed, settled_at) in [
            (fine, fine, 100_051),
            (coarse, coarse, 102_001),
            (coarse, fine, 102_001),
            // Unpacked with its old time, a moment ago.
            ((50, 0), fine, 100_051),
            // Somebody has set its time to a day that is yet to come.
            ((9000, 0), fine, 100_051),
        ] {
            let stamp = stamp(modified, changed);
            assert!(!stamp.is_settled(at(settled_at - 2)), "{stamp:?}");
            assert!(stamp.is_settled(at(settled_at)), "{stamp:?}");
        }
    }

    #[test]
    fn a_change_that_is_yet_to_come_is_not_settled() {
        assert!(!stamp((100, 1), (200, 1)).is_settled(at(150_000)));
    }

    #[test]
    fn what_was_replaced_has_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        std::fs::write(&old, "one").unwrap();
        std::fs::write(&new, "two").unwrap();
        let before = Stamp::of(&old).unwrap();
        assert_eq!(Stamp::of(&old).unwrap(), before);
        std::fs::rename(&new, &old).unwrap();
        assert_ne!(Stamp::of(&old).unwrap(), before);
        std::fs::remove_file(&old).unwrap();
        let error = Stamp::of(&old).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
