//! Looks at the program to be wrapped: can it be executed, and does `LD_PRELOAD` reach it?

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Uid, access};
use object::elf::{FileHeader64, NT_GNU_BUILD_ID};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};

use crate::sys;

/// Interpreters of interpreters that are followed; the kernel follows four.
const MAX_DEPTH: usize = 5;
/// Bytes of a `#!` line that the kernel reads.
const MAX_SHEBANG: usize = 256;

/// Why a program cannot be wrapped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is no such program.
    Missing(String),
    /// There is, but it cannot be executed.
    Unexecutable(String),
    /// It would run, but the shim would not be loaded.
    Unreached(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(text) | Self::Unexecutable(text) | Self::Unreached(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for Obstacle {}

impl Obstacle {
    /// The exit status that a shell would have for it.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Missing(_) => 127,
            Self::Unexecutable(_) => 126,
            Self::Unreached(_) => 1,
        }
    }
}

/// Finds the program as `execvp` would.
///
/// # Errors
/// [`Obstacle::Missing`] or [`Obstacle::Unexecutable`].
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, Obstacle> {
    let shown = name.display();
    let mut failure = Obstacle::Missing(format!(
        "program '{shown}' not found; give its full path or add it to PATH"
    ));
    let search_path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        failure = Obstacle::Missing(format!("program '{shown}' not found"));
        vec![PathBuf::from(name)]
    } else {
        std::env::split_paths(&search_path)
            .map(|directory| directory.join(name))
            .collect()
    };
    if name.is_empty() {
        return Err(Obstacle::Missing(
            "the name of the program is empty".to_owned(),
        ));
    }
    for candidate in candidates {
        let metadata = match fs::metadata(&candidate) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                failure = unexecutable(&candidate, &error);
                continue;
            }
            Err(_) => continue,
        };
        failure = match access(&candidate, AccessFlags::X_OK) {
            Ok(()) if metadata.is_file() => return Ok(candidate),
            Ok(()) => unexecutable(&candidate, &Errno::EISDIR.into()),
            Err(error) => unexecutable(&candidate, &error.into()),
        };
    }
    Err(failure)
}

fn unexecutable(program: &Path, error: &io::Error) -> Obstacle {
    Obstacle::Unexecutable(format!(
        "cannot execute '{}': {}",
        program.display(),
        sys::describe(error)
    ))
}

/// Checks that a shim in `LD_PRELOAD` gets into this command.
///
/// # Errors
/// [`Obstacle::Unreached`] with the reason, or what [`find`] finds of an interpreter.
pub(crate) fn check_preload(command: &[OsString]) -> Result<(), Obstacle> {
    let path = find(command.first().map(OsString::as_os_str).unwrap_or_default())?;
    follow(&path, &command[1..], 0)
}

fn follow(path: &Path, arguments: &[OsString], depth: usize) -> Result<(), Obstacle> {
    let not_reached = |reason: &str| {
        Err(Obstacle::Unreached(format!(
            "cannot move the port of '{}': {reason}, so LD_PRELOAD does not reach it; try \
             --wrap-method=seccomp",
            path.display()
        )))
    };
    // A program that may be executed but not read is taken at its word.
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    let Ok(metadata) = file.metadata() else {
        return Ok(());
    };
    if let Some(reason) = gains_privileges(path, &metadata) {
        return not_reached(reason);
    }
    if path.file_name() == Some(OsStr::new("env")) {
        return match env_command(arguments) {
            EnvCommand::Cleared => not_reached("it is told to clear the environment"),
            // What it does not find, it says itself.
            EnvCommand::Program(rest) if depth < MAX_DEPTH => match find(&rest[0]) {
                Ok(program) => follow(&program, &rest[1..], depth + 1),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        };
    }
    // The loader itself, which may be given a program to load, has no interpreter, and takes the shim all the same.
    if path
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b"ld-linux"))
    {
        return Ok(());
    }
    let mut start = Vec::new();
    if (&file)
        .take(MAX_SHEBANG as u64)
        .read_to_end(&mut start)
        .is_err()
    {
        return Ok(());
    }
    if let Some((interpreter, argument)) = shebang(&start) {
        let interpreter = PathBuf::from(interpreter);
        if let Err(error) = fs::metadata(&interpreter) {
            let (script, interpreter) = (path.display(), interpreter.display());
            let reason = sys::describe(&error);
            return Err(Obstacle::Unexecutable(format!(
                "cannot execute '{script}': its interpreter '{interpreter}': {reason}"
            )));
        }
        let own: Vec<OsString> = argument
            .into_iter()
            .chain([path.as_os_str().to_owned()])
            .collect();
        return if depth < MAX_DEPTH {
            follow(&interpreter, &own, depth + 1)
        } else {
            Ok(())
        };
    }
    match start.starts_with(b"\x7fELF") {
        true => elf_obstacle(file, &start).map_or(Ok(()), not_reached),
        // execvp gives a file that the kernel does not know to the shell.
        false => Ok(()),
    }
}

/// The interpreter of a script and its one argument.
fn shebang(start: &[u8]) -> Option<(OsString, Option<OsString>)> {
    let is_blank = |byte: &u8| b" \t".contains(byte);
    let line = start
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = &line[line
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(line.len())..];
    let end = line.iter().position(is_blank).unwrap_or(line.len());
    let (interpreter, argument) = (&line[..end], line[end..].trim_ascii());
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    (!interpreter.is_empty()).then(|| {
        (
            owned(interpreter),
            (!argument.is_empty()).then(|| owned(argument)),
        )
    })
}

/// What `env` is told to do.
#[derive(Debug, PartialEq, Eq)]
enum EnvCommand {
    /// To start this with an empty environment.
    Cleared,
    /// To start this, at least one word.
    Program(Vec<OsString>),
    /// Something else, or nothing.
    Other,
}

/// Reads the arguments of `env` as far as they concern us; what is not plain is left to it.
fn env_command(arguments: &[OsString]) -> EnvCommand {
    let mut words: Vec<OsString> = arguments.to_vec();
    words.reverse();
    while let Some(word) = words.pop() {
        match word.as_bytes() {
            b"-" | b"-i" | b"--ignore-environment" | b"-uLD_PRELOAD" | b"--unset=LD_PRELOAD" => {
                return EnvCommand::Cleared;
            }
            b"-u" | b"--unset" => match words.pop() {
                Some(name) if name == "LD_PRELOAD" => return EnvCommand::Cleared,
                Some(_) => {}
                None => return EnvCommand::Other,
            },
            // One argument of a `#!` line that is split like a command line.
            [b'-', b'S', rest @ ..] => {
                let text = match rest {
                    [] => words.pop().unwrap_or_default(),
                    rest => OsString::from_vec(rest.to_vec()),
                };
                if text.as_bytes().iter().any(|byte| b"'\"\\$#".contains(byte)) {
                    return EnvCommand::Other;
                }
                let split = text
                    .as_bytes()
                    .split(u8::is_ascii_whitespace)
                    .filter(|word| !word.is_empty());
                let split: Vec<OsString> = split
                    .map(|word| OsString::from_vec(word.to_vec()))
                    .collect();
                words.extend(split.into_iter().rev());
            }
            [b'-', ..] => return EnvCommand::Other,
            assignment if assignment.contains(&b'=') => {
                if assignment.starts_with(b"LD_PRELOAD=") {
                    return EnvCommand::Cleared;
                }
                if assignment.starts_with(b"PATH=") {
                    return EnvCommand::Other;
                }
            }
            _ => {
                words.push(word);
                words.reverse();
                return EnvCommand::Program(words);
            }
        }
    }
    EnvCommand::Other
}

/// Why the loader would ignore `LD_PRELOAD` for this file, whose execution raises privileges.
fn gains_privileges(path: &Path, metadata: &fs::Metadata) -> Option<&'static str> {
    let mode = metadata.permissions().mode();
    if mode & 0o4000 != 0 && metadata.uid() != Uid::current().as_raw() {
        return Some("it is set-user-ID");
    }
    if mode & 0o2010 == 0o2010 && metadata.gid() != Gid::current().as_raw() {
        return Some("it is set-group-ID");
    }
    (!Uid::current().is_root() && sys::has_capabilities(path)).then_some("it has file capabilities")
}

/// Why the shim would not be loaded into this ELF file, or would be without effect.
fn elf_obstacle(file: File, start: &[u8]) -> Option<&'static str> {
    let mut ours = [0; 20];
    // What is no proper file of that kind, the kernel refuses.
    let proper = matches!(start.get(4..7), Some([1 | 2, 1 | 2, 1]));
    let known = proper
        && File::open("/proc/self/exe")
            .and_then(|mut exe| exe.read_exact(&mut ours))
            .is_ok();
    if known && start.get(4) != ours.get(4) {
        return Some("it is for machines of another word size");
    }
    if known && start.get(18..20) != ours.get(18..20) {
        return Some("it is for another kind of machine");
    }
    // What cannot be parsed is left for the kernel to judge.
    inspect_elf(file).ok().flatten()
}

fn inspect_elf(file: File) -> object::Result<Option<&'static str>> {
    let cache = ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(&cache)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, &cache)?;
    let mut interpreter = None;
    for segment in segments {
        interpreter = interpreter.or(segment.interpreter(endian, &cache)?);
        let mut notes = segment.notes(endian, &cache)?;
        while let Some(note) = notes
            .as_mut()
            .map(|notes| notes.next())
            .transpose()?
            .flatten()
        {
            // Go's build identifier; the type is not unique, the name is.
            if note.name() == b"Go" && note.n_type(endian).0 != NT_GNU_BUILD_ID.0 {
                return Ok(Some(
                    "it is a Go program, which binds without the C library",
                ));
            }
        }
    }
    Ok(match interpreter {
        None => Some("it is statically linked"),
        Some(path) if path.windows(7).any(|part| part == b"ld-musl") => {
            Some("it uses the musl C library")
        }
        Some(_) => None,
    })
}

/// What it means that a program could not be executed.
pub(crate) fn unstartable(error: &io::Error, program: &OsStr) -> Obstacle {
    match (error.kind(), unexecutable(Path::new(program), error)) {
        (io::ErrorKind::NotFound, Obstacle::Unexecutable(text)) => Obstacle::Missing(text),
        (_, obstacle) => obstacle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn scripts_name_their_interpreter_and_one_argument() {
        let parsed = |line: &str| {
            shebang(line.as_bytes()).map(|(path, argument)| (path, argument.unwrap_or_default()))
        };
        assert_eq!(parsed("#!/bin/sh\nx"), Some(("/bin/sh".into(), "".into())));
        assert_eq!(
            parsed("#! /usr/bin/env  -S perl -w \nx"),
            Some(("/usr/bin/env".into(), "-S perl -w".into()))
        );
        assert_eq!(parsed("#!\n"), None);
        assert_eq!(parsed("echo"), None);
    }

    #[test]
    fn env_is_followed_to_its_program() {
        let program = |line| env_command(&words(line));
        assert_eq!(
            program("A=1 B=2 prog -i x"),
            EnvCommand::Program(words("prog -i x"))
        );
        assert_eq!(program("-u HOME prog"), EnvCommand::Program(words("prog")));
        for cleared in [
            "-i prog",
            "LD_PRELOAD= prog",
            "-uLD_PRELOAD prog",
            "--unset=LD_PRELOAD prog",
        ] {
            assert_eq!(program(cleared), EnvCommand::Cleared, "{cleared}");
        }
        for unclear in ["PATH=/x prog", "--debug prog", "-S \"a b\"", "-C / prog"] {
            assert_eq!(program(unclear), EnvCommand::Other, "{unclear}");
        }
        assert_eq!(program("-u LD_PRELOAD prog"), EnvCommand::Cleared);
        assert_eq!(
            env_command(&["-S perl -w".into(), "script".into()]),
            EnvCommand::Program(words("perl -w script"))
        );
        assert_eq!(program("A=1"), EnvCommand::Other);
    }

    #[test]
    fn programs_are_found_or_the_reason_is_told() {
        assert!(find(OsStr::new("sh")).unwrap().is_absolute());
        assert!(matches!(
            find(OsStr::new("no-such-program")),
            Err(Obstacle::Missing(_))
        ));
        assert!(matches!(
            find(OsStr::new("/no/such/program")),
            Err(Obstacle::Missing(_))
        ));
        assert!(matches!(
            find(OsStr::new("/etc/passwd")),
            Err(Obstacle::Unexecutable(_))
        ));
        assert!(matches!(
            find(OsStr::new("/etc/")),
            Err(Obstacle::Unexecutable(_))
        ));
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let Err(Obstacle::Unexecutable(text)) = check_preload(&[script.into()]) else {
            panic!()
        };
        assert!(text.contains("'/no/such/interpreter'"), "{text}");
    }

    #[test]
    fn ordinary_programs_are_reached() {
        for command in ["sh -c :", "env A=1 sh", "python3"] {
            assert_eq!(check_preload(&words(command)), Ok(()), "{command}");
        }
        assert!(matches!(
            check_preload(&words("env -i sh")),
            Err(Obstacle::Unreached(_))
        ));
    }
}
