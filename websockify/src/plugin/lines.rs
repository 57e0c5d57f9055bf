//! What a program prints, line by line, however long or many its lines are: what is kept of them is bounded, and so is the time
//! that goes into them.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::{Instant, sleep_until};

/// How many useless bytes a program may make in a [`WINDOW`] before it has to wait for the next.
const TOLERATED: usize = 1 << 20;
const WINDOW: Duration = Duration::from_secs(1);

/// The lines of an output.
pub(super) struct Lines<R> {
    output: BufReader<R>,
    /// The line that was read last.
    line: Vec<u8>,
    /// How many bytes of a line are kept.
    limit: usize,
    /// When the present window began, and how many useless bytes there were in it.
    window: (Instant, usize),
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// What was kept of it, without its end.
    pub(super) text: &'a [u8],
    /// Whether that is not all.
    pub(super) cut: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The lines of `output`, each up to `limit` bytes.
    pub(super) fn new(output: R, limit: usize) -> Self {
        Self {
            output: BufReader::new(output),
            line: Vec::new(),
            limit,
            window: (Instant::now(), 0),
        }
    }

    /// The next line; the last one may lack its end. `None` when the output has ended. Must not be dropped half-way.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut begun, mut cut) = (false, false);
        loop {
            let chunk = self.output.fill_buf().await?;
            if chunk.is_empty() {
                break;
            }
            begun = true;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let kept = part.len().min(self.limit - self.line.len());
            self.line.extend_from_slice(&part[..kept]);
            let (length, surplus) = (part.len(), part.len() - kept);
            self.output.consume(length + usize::from(end.is_some()));
            if surplus > 0 {
                cut = true;
                self.was_useless(surplus).await;
            }
            if end.is_some() {
                break;
            }
        }
        Ok(begun.then_some(Line {
            text: &self.line,
            cut,
        }))
    }

    /// Notes that so many bytes were useless. Whoever makes too many of them is read no further for a while.
    pub(super) async fn was_useless(&mut self, bytes: usize) {
        let now = Instant::now();
        if now - self.window.0 >= WINDOW {
            self.window = (now, 0);
        }
        self.window.1 += bytes;
        if self.window.1 > TOLERATED {
            sleep_until(self.window.0 + WINDOW).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of a text, with `…` at the end of one that was cut.
    async fn all(text: &[u8], limit: usize) -> Vec<String> {
        let mut lines = Lines::new(text, limit);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            let text = String::from_utf8_lossy(line.text);
            found.push(format!("{text}{}", if line.cut { "…" } else { "" }));
        }
        found
    }

    #[tokio::test]
    async fn lines_are_read_and_long_ones_cut() {
        assert_eq!(all(b"", 4).await, [""; 0]);
        assert_eq!(all(b"\n\n", 4).await, ["", ""]);
        assert_eq!(
            all(b"a\nbcde\nfghij\nk", 4).await,
            ["a", "bcde", "fghi…", "k"]
        );
        let long = [vec![b'x'; 100_000], b"\nend\n".to_vec()].concat();
        let lines = all(&long, 50_000).await;
        assert_eq!(
            (lines[0].chars().count(), lines[1].as_str()),
            (50_001, "end")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_makes_much_that_is_useless_has_to_wait() {
        let start = Instant::now();
        let text = vec![b'x'; 5 * TOLERATED];
        assert_eq!(all(&text, 10).await, ["xxxxxxxxxx…"]);
        assert!(start.elapsed() >= WINDOW * 4, "{:?}", start.elapsed());
        let start = Instant::now();
        all(&vec![b'\n'; 5 * TOLERATED], 10).await;
        assert!(start.elapsed() < WINDOW);
    }
}
