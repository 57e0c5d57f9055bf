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
    /// What is to be written there.
    text: Vec<u8>,
}

impl Script {
    /// Makes a file, in place of what has that name: what others may have prepared there, such as a link to a file of ours, is not
    /// written to.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path)?;
        Ok(Self {
            file,
            end: 0,
            text: HEAD.to_vec(),
        })
    }

    /// Adds what somebody sent so long after the beginning.
    pub(super) fn add(&mut self, side: Side, at: Duration, bytes: &[u8]) -> io::Result<()> {
        let mark = match side {
            Side::Client => '}',
            Side::Target => '{',
        };
        write!(self.text, "'{mark}{}{mark}", at.as_millis())?;
        for &byte in bytes {
            match byte {
                b'\n' => self.text.extend_from_slice(b"\\n"),
                b'\r' => self.text.extend_from_slice(b"\\r"),
                b'\t' => self.text.extend_from_slice(b"\\t"),
                b'\\' | b'\'' => self.text.extend_from_slice(&[b'\\', byte]),
                b' '..=b'~' => self.text.push(byte),
                _ => self.text.extend_from_slice(&[
                    b'\\',
                    b'x',
                    HEXADECIMAL[usize::from(byte >> 4)],
                    HEXADECIMAL[usize::from(byte & 15)],
                ]),
            }
        }
        self.text.extend_from_slice(b"',\n");
        if self.text.len() >= WRITE {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what was added, and the end. What cannot be written is left out.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let length = self.text.len();
        if length == 0 {
            return Ok(());
        }
        self.text.extend_from_slice(TAIL);
        let written = self.file.write_all_at(&self.text, self.end);
        self.text.clear();
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

const HEXADECIMAL: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_recording_is_whole_after_each_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording");
        let mut script = Script::create(&path).unwrap();
        let text = || fs::read_to_string(&path).unwrap();
        script.flush().unwrap();
        assert_eq!(text(), "var VNC_frame_data = [\n'EOF'];\n");
        let milliseconds = Duration::from_millis;
        script
            .add(Side::Target, milliseconds(12), b"RFB 003.008\n")
            .unwrap();
        script.flush().unwrap();
        let first = "var VNC_frame_data = [\n'{12{RFB 003.008\\n',\n";
        assert_eq!(text(), format!("{first}'EOF'];\n"));
        script
            .add(
                Side::Client,
                milliseconds(15),
                b"\0\x01\x1f ~\x7f\x80\xff'\"\\\r\n\t{}",
            )
            .unwrap();
        script.flush().unwrap();
        let second = r#"'}15}\x00\x01\x1f ~\x7f\x80\xff\'"\\\r\n\t{}',"#;
        assert_eq!(text(), format!("{first}{second}\n'EOF'];\n"));
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
            Script::create(&path).unwrap().flush().unwrap();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert!(metadata.is_file() && metadata.nlink() == 1);
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(fs::read(&path).unwrap().starts_with(HEAD));
            assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        assert!(Script::create(&path).is_err());
    }
}
