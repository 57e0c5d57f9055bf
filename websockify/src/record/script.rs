//! The form of a recording, which noVNC's `tests/vnc_playback.html` plays: a JavaScript array of what passed in either direction, and
//! how many milliseconds after the beginning.
//!
//! ```text
//! var VNC_frame_data = [
//! '{12{RFB 003.008\n',        from the target, after 12 ms
//! '}15}\x01',                 from the client
//! 'EOF'];
//! ```
//!
//! Its end is written each time that something is added, and overwritten by what comes next: so a file can be played at any time,
//! whatever became of whoever wrote it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::Side;

/// How a recording begins.
const HEAD: &[u8] = b"var VNC_frame_data = [\n";
/// How it ends.
const TAIL: &[u8] = b"'EOF'];\n";
/// Who may read a recording: it may have passwords in it.
const MODE: u32 = 0o600;
/// How many bytes are written at once, about.
const WRITE: usize = 256 << 10;

/// A recording's file.
#[derive(Debug)]
pub(super) struct Script {
    file: File,
    /// Where the end of the array is, in bytes.
    end: u64,
}

/// What is to be added to a recording. Nothing is left in it once that has been written, or could not be: so it can be used for one
/// recording after another, of which each would need half a mebibyte otherwise.
#[derive(Debug, Default)]
pub(super) struct Text(Vec<u8>);

impl Script {
    /// Makes a file, in place of what has that name: what others may have prepared there, such as a link to a file of ours, is not
    /// written to.
    pub(super) fn create(path: &Path, text: &mut Text) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path)?;
        text.0.extend_from_slice(HEAD);
        Ok(Self { file, end: 0 })
    }

    /// Adds what somebody sent so long after the beginning.
    pub(super) fn add(
        &mut self,
        text: &mut Text,
        side: Side,
        at: Duration,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mark = match side {
            Side::Client => '}',
            Side::Target => '{',
        };
        write!(text.0, "'{mark}{}{mark}", at.as_millis())?;
        text.add_escaped(bytes);
        text.0.extend_from_slice(b"',\n");
        if text.0.len() >= WRITE {
            self.flush(text)?;
        }
        Ok(())
    }

    /// Writes what was added, and the end. What cannot be written is left out.
    pub(super) fn flush(&mut self, text: &mut Text) -> io::Result<()> {
        let length = text.0.len();
        if length == 0 {
            return Ok(());
        }
        text.0.extend_from_slice(TAIL);
        let written = self.file.write_all_at(&text.0, self.end);
        text.0.clear();
        if let Err(error) = written {
            _ = self.file.set_len(self.end);
            if self.end > 0 {
                // There has been room for it before.
                _ = self.file.write_all_at(TAIL, self.end);
            }
            return Err(error);
        }
        self.end += length as u64;
        Ok(())
    }
}

impl Text {
    /// Adds bytes as they stand in a string, without a branch for what each of them is: that would cost ten times as much.
    fn add_escaped(&mut self, bytes: &[u8]) {
        let mut end = self.0.len();
        self.0.resize(end + LONGEST * bytes.len(), 0);
        for &byte in bytes {
            let (text, length) = ESCAPED[usize::from(byte)];
            self.0[end..end + LONGEST].copy_from_slice(&text);
            end += length;
        }
        self.0.truncate(end);
    }
}

/// What the longest byte takes in a string.
const LONGEST: usize = 4;

/// Each byte as it stands in a string, and how long that is.
static ESCAPED: [([u8; LONGEST], usize); 256] = {
    let mut table = [([0; LONGEST], 0); 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = escaped(byte as u8);
        byte += 1;
    }
    table
};

const fn escaped(byte: u8) -> ([u8; LONGEST], usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'\n' => (*b"\\n  ", 2),
        b'\r' => (*b"\\r  ", 2),
        b'\t' => (*b"\\t  ", 2),
        b'\\' | b'\'' => ([b'\\', byte, 0, 0], 2),
        b' '..=b'~' => ([byte, 0, 0, 0], 1),
        _ => {
            let (high, low) = (DIGITS[(byte >> 4) as usize], DIGITS[(byte & 15) as usize]);
            ([b'\\', b'x', high, low], 4)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_recording_is_whole_after_each_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording");
        let mut text = Text::default();
        let mut script = Script::create(&path, &mut text).unwrap();
        let written = || fs::read_to_string(&path).unwrap();
        script.flush(&mut text).unwrap();
        assert_eq!(written(), "var VNC_frame_data = [\n'EOF'];\n");
        let milliseconds = Duration::from_millis;
        script
            .add(&mut text, Side::Target, milliseconds(12), b"RFB 003.008\n")
            .unwrap();
        script.flush(&mut text).unwrap();
        let first = "var VNC_frame_data = [\n'{12{RFB 003.008\\n',\n";
        assert_eq!(written(), format!("{first}'EOF'];\n"));
        script
            .add(
                &mut text,
                Side::Client,
                milliseconds(15),
                b"\0\x01\x1f ~\x7f\x80\xff'\"\\\r\n\t{}",
            )
            .unwrap();
        script.flush(&mut text).unwrap();
        let second = r#"'}15}\x00\x01\x1f ~\x7f\x80\xff\'"\\\r\n\t{}',"#;
        assert_eq!(written(), format!("{first}{second}\n'EOF'];\n"));
    }

    #[test]
    fn a_file_is_made_anew_and_nothing_else_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (
            directory.path().join("recording"),
            directory.path().join("other"),
        );
        fs::write(&other, "theirs").unwrap();
        let prepare: [&dyn Fn(); 3] = [
            &|| symlink(&other, &path).unwrap(),
            &|| fs::hard_link(&other, &path).unwrap(),
            &|| fs::write(&path, "of another time").unwrap(),
        ];
        for prepare in prepare {
            prepare();
            let mut text = Text::default();
            let mut script = Script::create(&path, &mut text).unwrap();
            script.flush(&mut text).unwrap();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert!(metadata.is_file() && metadata.nlink() == 1);
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(fs::read(&path).unwrap().starts_with(HEAD));
            assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        assert!(Script::create(&path, &mut Text::default()).is_err());
    }
}
