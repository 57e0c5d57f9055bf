//! Small pieces of the operating system that no library offers safely.

#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libc::c_int;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt, SockFlag, SockProtocol, SockType, SockaddrLike,
    SockaddrStorage, setsockopt, sockopt,
};
use nix::unistd::{Pid, getppid, setsid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A moment in the local time zone, shown as `22/Nov/2026 23:57:32` whatever the locale.
pub(crate) struct LocalTime(libc::tm);

impl LocalTime {
    /// This moment.
    pub(crate) fn now() -> Self {
        // SAFETY: time() accepts null.
        let now = unsafe { libc::time(std::ptr::null_mut()) };
        let mut fields = MaybeUninit::<libc::tm>::zeroed();
        // SAFETY: both pointers are valid; localtime_r fills the structure or leaves its valid zeroes.
        unsafe {
            libc::localtime_r(&raw const now, fields.as_mut_ptr());
            Self(fields.assume_init())
        }
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let Self(time) = self;
        let month = usize::try_from(time.tm_mon)
            .ok()
            .and_then(|month| MONTHS.get(month))
            .unwrap_or(&"???");
        let year = 1900 + i64::from(time.tm_year);
        write!(
            f,
            "{:02}/{month}/{year} {:02}:{:02}:{:02}",
            time.tm_mday, time.tm_hour, time.tm_min, time.tm_sec
        )
    }
}

/// A moment in universal time, shown as `2026-11-22T22:57:32.007Z` (RFC 3339).
pub(crate) struct UniversalTime {
    fields: libc::tm,
    milliseconds: u32,
}

impl From<SystemTime> for UniversalTime {
    fn from(time: SystemTime) -> Self {
        // What is before 1970 is a clock that nobody has set.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
        let mut fields = MaybeUninit::<libc::tm>::zeroed();
        // SAFETY: both pointers are valid; gmtime_r fills the structure or leaves its valid zeroes.
        let fields = unsafe {
            libc::gmtime_r(&raw const seconds, fields.as_mut_ptr());
            fields.assume_init()
        };
        Self {
            fields,
            milliseconds: since.subsec_millis(),
        }
    }
}

impl fmt::Display for UniversalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = &self.fields;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            1900 + i64::from(time.tm_year),
            time.tm_mon + 1,
            time.tm_mday,
            time.tm_hour,
            time.tm_min,
            time.tm_sec,
            self.milliseconds
        )
    }
}

/// Bytes that were written to a socket and that the peer's system has not acknowledged; for a unix socket, not read.
pub(crate) fn unsent_bytes(socket: RawFd) -> usize {
    let mut count: c_int = 0;
    // SAFETY: TIOCOUTQ, which sockets know as SIOCOUTQ, writes one int, and nothing for what is no socket.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut count) };
    if result == 0 {
        usize::try_from(count).unwrap_or(0)
    } else {
        0
    }
}

/// How long something that was sent has waited for the peer's system to acknowledge anything; `None` if nothing waits, if the peer does
/// answer that it has no room, or if it is not TCP.
pub(crate) fn unacknowledged_for(socket: RawFd) -> Option<Duration> {
    let info = tcp_info(socket)?;
    // Without room at the peer nothing is under way, but it is asked again and again, at longer and longer intervals. It may
    // be about to answer the last time.
    let probes_wait = info.tcpi_unacked == 0 && info.tcpi_probes > 1;
    // Or something is sent again and again in the same way, for which the peer has no memory, and says so each time.
    let data_waits = info.tcpi_unacked > 0 && info.tcpi_last_data_sent < info.tcpi_last_ack_recv;
    (probes_wait || data_waits).then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// What the system knows of a TCP connection; `None` if it is none.
fn tcp_info(socket: RawFd) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: at most `length` bytes are written; all zeroes is a valid tcp_info (tcp(7)).
    unsafe {
        let result = libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        (result == 0).then(|| info.assume_init())
    }
}

/// The first bytes that wait on a socket, which stay there.
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(
        socket.as_raw_fd(),
        buffer,
        MsgFlags::MSG_PEEK,
    )?)
}

/// Whether there is something to read, or to accept.
pub(crate) fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut files = [PollFd::new(socket, PollFlags::POLLIN)];
    nix::poll::poll(&mut files, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Reads what is there, if anything is, without the runtime's knowledge.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, flags)?)
}

/// Writes what more follows at once, so that it travels in the same segment: data, or the end of our side.
pub(crate) fn send_more(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    Ok(nix::sys::socket::send(
        socket.as_raw_fd(),
        data,
        flags | more,
    )?)
}

/// A TCP socket for an address of this family; nothing that is started inherits it.
pub(crate) fn tcp_socket(address: SocketAddr, flags: SockFlag) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    nix::sys::socket::socket(family, SockType::Stream, flags, SockProtocol::Tcp)
}

/// Begins to connect a TCP socket, without delay for small writes. Returns whether it is connected already, as on the same machine; if
/// not, it becomes writable when it is, or has failed.
pub(crate) fn connect(address: SocketAddr) -> io::Result<(TcpStream, bool)> {
    let socket = tcp_socket(address, SockFlag::SOCK_NONBLOCK)?;
    tune_tcp(socket.as_fd());
    match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => return Ok((socket.into(), true)),
        Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut files = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    // A failure shows in other events as well, and is left for whoever waits.
    let done = nix::poll::poll(&mut files, PollTimeout::ZERO) == Ok(1)
        && files[0].revents() == Some(PollFlags::POLLOUT);
    Ok((socket.into(), done))
}

/// Whether the peer has ended its side of a connection; data may still wait to be read.
pub(crate) fn has_finished(socket: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: socket,
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: there is one pollfd; a descriptor that is none is only reported as such.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Lets the runtime that this is called in tell when there is something to read or to accept.
pub(crate) fn watch_for_input(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is always the same one, and stays open as long as it is owned.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// The descriptor that systemd hands over first (sd_listen_fds(3)).
const FIRST_ACTIVATED: RawFd = 3;

/// Takes this many descriptors that systemd has handed over, once, and before this process has opened any. Nothing that is started
/// inherits them.
pub(crate) fn activated(count: usize) -> io::Result<Vec<OwnedFd>> {
    let take = |number| {
        // SAFETY: F_SETFD takes a number; a descriptor that is none is only reported as such.
        Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        // SAFETY: it is open, and since nothing was opened here it was inherited; nobody else has taken it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    (FIRST_ACTIVATED..).take(count).map(take).collect()
}

/// Accepts a connection, which does not block; the address is the peer's.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockaddrStorage)> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: there is room for `length` bytes of an address.
    let accepted = Errno::result(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            address.as_mut_ptr().cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    // SAFETY: the first `length` bytes are an address; a unix socket without a name has a family only.
    let address = unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(length)) };
    let address = address.ok_or(io::ErrorKind::InvalidData)?;
    Ok((accepted, address))
}

/// How long the system of a peer may say nothing. One for the whole process, as the system's own settings are.
static PEER_TIMEOUT: OnceLock<Duration> = OnceLock::new();

/// The longest times between probes that the system takes, in seconds.
const LONGEST_PAUSE: u32 = 32_767;

/// Probes that go without an answer before a peer counts as gone.
const PROBES: u32 = 3;

/// Sets how long the system of a peer may say nothing before probes give it up, for all sockets from now on; 120 s otherwise.
pub(crate) fn set_peer_timeout(limit: Duration) {
    PEER_TIMEOUT.get_or_init(|| limit);
}

/// What every TCP leg gets: no delay for small writes, and probes that notice a peer which is gone: the first after half the time that
/// it may say nothing, three in the other half.
pub(crate) fn tune_tcp(socket: BorrowedFd<'_>) {
    fn set<O: SetSockOpt>(socket: BorrowedFd<'_>, option: O, value: &O::Val) {
        if let Err(error) = setsockopt(&socket, option, value) {
            // The peer may be gone already, which the first read tells.
            tracing::debug!("cannot set a socket option: {}", error.desc());
        }
    }
    let limit = PEER_TIMEOUT
        .get()
        .map_or(120, |limit| limit.as_secs().max(1) as u32);
    set(socket, sockopt::TcpNoDelay, &true);
    set(socket, sockopt::KeepAlive, &true);
    let pause = |seconds: u32| seconds.clamp(1, LONGEST_PAUSE);
    set(socket, sockopt::TcpKeepIdle, &pause(limit / 2));
    set(socket, sockopt::TcpKeepInterval, &pause(limit / 2 / PROBES));
    set(socket, sockopt::TcpKeepCount, &PROBES);
}

/// How many descriptors this process was permitted before it permitted itself more: the soft and the hard limit.
static DESCRIPTOR_LIMIT: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Permits this process as many descriptors as it may permit itself. Returns how many those are.
pub(crate) fn raise_descriptor_limit() -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        DESCRIPTOR_LIMIT.get_or_init(|| (soft, hard));
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    });
    if let Err(error) = raised {
        tracing::debug!("cannot raise the limit of descriptors: {}", error.desc());
    }
    descriptor_limit()
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    limit.map_or(1024, |(soft, _)| soft.try_into().unwrap_or(usize::MAX))
}

/// How many descriptors this process has, if the system tells.
pub(crate) fn open_descriptors() -> Option<usize> {
    let descriptors = fs::read_dir("/proc/self/fd").ok()?;
    // One of them reads this.
    descriptors.count().checked_sub(1)
}

/// Runs in a child before the program that it is to become: nothing of how we treat signals shall reach that, and it shall not
/// outlive `parent`, the process that forked. It makes system calls only, as is demanded between fork and exec.
pub(crate) fn become_program_of(parent: Pid) -> io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition; numbers that cannot be set are refused without harm.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // It comes when the thread ends that forked.
    // SAFETY: PR_SET_PDEATHSIG takes a signal number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if getppid() != parent {
        // That ended before the line above could take effect.
        return Err(io::Error::from_raw_os_error(libc::EINTR));
    }
    Ok(())
}

/// Closes every descriptor but these.
///
/// # Safety
/// Whatever owns one of the others must never be used or dropped.
pub(crate) unsafe fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| !kept.contains(number))
        .collect();
    for number in open {
        // SAFETY: the caller's; one, of the directory, is closed already.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Has a command start its program as a helper of ours: in a session of its own, so that no key pressed at our terminal reaches
/// it; with no descriptor but its standard ones and `passed`; with the limit of descriptors that we were started with. The helper
/// ends when the calling thread does, if not before.
pub(crate) fn as_helper(command: &mut Command, passed: Option<RawFd>) {
    let parent = Pid::this();
    let limit = DESCRIPTOR_LIMIT.get().copied();
    let prepare = move || {
        setsid()?;
        become_program_of(parent)?;
        close_at_exec();
        if let Some(descriptor) = passed {
            // SAFETY: F_SETFD takes a number; a descriptor that is none is only reported as such.
            unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) };
        }
        if let Some((soft, hard)) = limit {
            // More is no reason not to start.
            _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
        Ok(())
    };
    // SAFETY: `prepare` makes system calls only, as is demanded between fork and exec.
    unsafe { command.pre_exec(prepare) };
}

/// Has all descriptors but the standard ones closed when this process executes another program; we open none without that, but
/// may have inherited some.
fn close_at_exec() {
    /// What kernels before 5.11 take a while for, each by itself.
    const HIGHEST: RawFd = 4096;
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: this takes three numbers, and closes nothing yet.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) } == 0 {
        return;
    }
    for descriptor in 3..HIGHEST {
        // SAFETY: F_SETFD takes a number; a descriptor that is none is only reported as such.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Ignores a signal from now on.
pub(crate) fn ignore(signal: Signal) -> nix::Result<()> {
    // SAFETY: to ignore a signal runs no handler.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.map(drop)
}

/// Standard input, output and error.
pub(crate) const STANDARD: [RawFd; 3] = [0, 1, 2];

/// Has descriptors of this process stand for nothing from now on, whatever they were: it takes all that is written, and gives
/// nothing to be read. Only the standard ones are inherited by what is started.
pub(crate) fn silence(descriptors: impl IntoIterator<Item = RawFd>) -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    for descriptor in descriptors {
        let is_standard = STANDARD.contains(&descriptor);
        let flags = if is_standard { 0 } else { libc::O_CLOEXEC };
        // SAFETY: whoever owns the descriptor still has one that is open.
        Errno::result(unsafe { libc::dup3(nothing.as_raw_fd(), descriptor, flags) })?;
    }
    Ok(())
}

/// Whether this process was started with `signal` ignored, as under `nohup`.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; all zeroes is a valid sigaction.
    unsafe {
        libc::sigaction(signal as c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether a file gives capabilities to whoever executes it.
pub(crate) fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: both strings end in NUL; a size of zero only asks for the length.
    unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            std::ptr::null_mut(),
            0,
        ) > 0
    }
}

/// What went wrong, in the system's words and without Rust's `(os error N)`.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    /// A connection of which the peer takes nothing, and has so little memory; how it counts when something of it was sent again
    /// and again. `None` when the peer has come to say in another way that it has no room.
    fn of_a_peer_without_memory(memory: usize, size: usize) -> Option<Option<Duration>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, sockopt::RcvBuf, &memory).unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap();
        tune_tcp(ours.as_fd());
        ours.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            // In small segments, of which each takes more of its memory than its bytes.
            if unsent_bytes(ours.as_raw_fd()) <= 200 {
                _ = ours.write(&vec![7; size]);
            }
            let info = tcp_info(ours.as_raw_fd()).unwrap();
            if info.tcpi_backoff > 1 && info.tcpi_unacked == 0 {
                return None;
            }
            if info.tcpi_backoff > 1 && info.tcpi_last_ack_recv > 300 {
                return Some(unacknowledged_for(ours.as_raw_fd()));
            }
            std::thread::yield_now();
        }
        None
    }

    #[test]
    fn a_peer_that_has_no_memory_and_says_so_is_there() {
        // Which of them come to that is the kernel's business.
        for (memory, size) in [(4608, 3), (4608, 1), (6000, 3)] {
            let found = of_a_peer_without_memory(memory, size);
            assert_eq!(found.flatten(), None, "{memory}, {size}");
        }
    }

    #[test]
    fn dates_have_the_form_that_scripts_know() {
        // SAFETY: all zeroes is a valid tm.
        let mut time: libc::tm = unsafe { std::mem::zeroed() };
        (time.tm_mday, time.tm_mon, time.tm_year) = (2, 10, 126);
        (time.tm_hour, time.tm_min, time.tm_sec) = (3, 7, 9);
        assert_eq!(LocalTime(time).to_string(), "02/Nov/2026 03:07:09");
    }

    #[test]
    fn universal_time_has_the_form_of_the_rfc() {
        let shown = |milliseconds| {
            let time = UNIX_EPOCH + Duration::from_millis(milliseconds);
            UniversalTime::from(time).to_string()
        };
        assert_eq!(shown(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(shown(1_709_210_096_007), "2024-02-29T12:34:56.007Z");
        let before = UniversalTime::from(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(before.to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn errors_are_told_in_words() {
        assert_eq!(
            describe(&io::Error::from_raw_os_error(libc::ECONNREFUSED)),
            "Connection refused"
        );
        assert_eq!(describe(&io::Error::other("no such name")), "no such name");
    }
}
