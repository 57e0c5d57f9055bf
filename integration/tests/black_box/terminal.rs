//! A wrapped program in a terminal: what the keys do. The terminal is tmux.

use std::process::{Command, Output};

use integration::{Client, Scratch, executable, wait_until};

use crate::shim::free_port;
use crate::wrapping::{processes_with, program, round_trip};

/// A terminal with a shell in it.
struct Terminal {
    directory: Scratch,
}

impl Terminal {
    fn new() -> Self {
        let terminal = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let shell = "env PS1='$ ' bash --norc --noprofile -i";
        let size = ["-x", "200", "-y", "50"];
        terminal.tmux(
            &[
                &["-f", "/dev/null", "new-session", "-d"],
                &size[..],
                &[shell],
            ]
            .concat(),
        );
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.directory.path().join("tmux"))
            .args(arguments)
            .env_remove("TMUX")
            .output()
            .expect("tmux starts");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    /// Types a line.
    fn type_line(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until the screen shows a text.
    fn wait_for(&self, text: &str) {
        wait_until(text, || self.screen().contains(text).then_some(()));
    }

    /// Starts a bridge to one of the script's programs, and returns its port and how its command line ends.
    fn start(&self, kind: &str) -> (u16, String) {
        let port = free_port();
        let mark = format!("wrapped.py {kind} {port}");
        let (executable, script) = (executable().display(), program());
        self.type_line(&format!(
            "{executable} 127.0.0.1:{port} -- python3 {} {kind} {port}; echo status=$?",
            script.display()
        ));
        self.wait_for("Starting 'python3");
        wait_until("the program to start", || {
            (processes_with(&mark).len() >= 2).then_some(())
        });
        (port, mark)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Whether every one of these processes is stopped.
fn all_stopped(mark: &str) -> bool {
    processes_with(mark).iter().all(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" T"))
        })
    })
}

#[test]
fn ctrl_c_ends_both() {
    let terminal = Terminal::new();
    let (port, mark) = terminal.start("echo");
    round_trip(([127, 0, 0, 1], port).into());
    terminal.press("C-c");
    terminal.wait_for("status=0");
    assert_eq!(processes_with(&mark), []);
}

#[test]
fn ctrl_z_stops_both_and_fg_goes_on() {
    let terminal = Terminal::new();
    let (port, mark) = terminal.start("echo");
    let address = ([127, 0, 0, 1], port).into();
    round_trip(address);
    for _ in 0..2 {
        terminal.press("C-z");
        terminal.wait_for("Stopped");
        wait_until("both to stop", || all_stopped(&mark).then_some(()));
        terminal.type_line("clear; fg");
        round_trip(address);
    }
    terminal.press("C-c");
    // The shell has forgotten what was to come after a job that was stopped.
    terminal.wait_for("In exit");
    assert_eq!(processes_with(&mark), []);
}

#[test]
fn a_program_that_reads_from_the_terminal_gets_it() {
    let terminal = Terminal::new();
    let (port, mark) = terminal.start("reader");
    let mut client = Client::connect(([127, 0, 0, 1], port).into());
    terminal.wait_for("what?");
    terminal.type_line("these words");
    assert_eq!(client.read_binary(12), b"these words\n");
    client.send_close(1000);
    client.read_to_close();
    // Now the program has the terminal, and with it the key.
    terminal.press("C-c");
    terminal.wait_for("status=130");
    assert_eq!(processes_with(&mark), []);
}

#[test]
fn a_terminal_that_goes_away_ends_both() {
    let terminal = Terminal::new();
    let (port, mark) = terminal.start("echo");
    round_trip(([127, 0, 0, 1], port).into());
    drop(terminal);
    wait_until("both to end", || {
        processes_with(&mark).is_empty().then_some(())
    });
}
