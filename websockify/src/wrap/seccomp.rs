//! Moves a port for programs that preloading does not reach: static ones, Go, other C libraries, set-user-ID.
//!
//! A seccomp filter in the program stops each `bind` and asks us (seccomp_unotify(2)). A thread here reads the address out of the
//! program's memory, and where the shim would move it, takes the socket, binds it to loopback itself and answers for the
//! kernel; everything else, and everything that it does not understand, continues untouched. The filter stays with all that the
//! program starts. When this process ends, a later `bind` fails with `ENOSYS`; none hangs.
//!
//! A socket's name is not restored as the shim does it: `getsockname` tells the loopback address.

#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::{Result, bail};
use libc::{c_int, c_long, c_ulong, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, bind, recvmsg, setsockopt, sockopt,
};

use super::redirect::{self, Rule, Socket};

/// An address is never longer: `struct sockaddr_storage`.
const MAX_ADDRESS: usize = 128;

/// What a system call's number means depends on the architecture that it was made with.
struct Architecture {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    audit: u32,
    bind: u32,
    /// The number of `socketcall`, where `bind` may hide in it.
    socketcall: Option<u32>,
}

/// What programs on this kind of machine may use.
const ARCHITECTURES: &[Architecture] = if cfg!(target_arch = "x86_64") {
    &[
        Architecture {
            audit: 0xc000_003e,
            bind: 49,
            socketcall: None,
        },
        Architecture {
            audit: 0x4000_0003,
            bind: 361,
            socketcall: Some(102),
        },
    ]
} else if cfg!(target_arch = "aarch64") {
    &[
        Architecture {
            audit: 0xc000_00b7,
            bind: 200,
            socketcall: None,
        },
        Architecture {
            audit: 0x4000_0028,
            bind: 282,
            socketcall: None,
        },
    ]
} else {
    &[]
};
/// `SYS_BIND` of `linux/net.h`, the first argument of `socketcall`.
const SOCKETCALL_BIND: u32 = 2;

/// The filter, made before the fork, where nothing may be allocated.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    code: Vec<Instruction>,
    /// Without the right to do otherwise, a filter costs set-user-ID programs their power.
    no_new_privileges: bool,
}

/// A `struct sock_filter`, of which `libc`'s own has no `Debug`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

impl Filter {
    /// Makes the filter. Whoever has all rights when it is applied, as told by `privileged`, need not give any up.
    ///
    /// # Errors
    /// This system does not do it, and why.
    pub(super) fn new(privileged: bool) -> Result<Self> {
        if ARCHITECTURES.is_empty() {
            bail!("moving a port by seccomp is not known for this kind of machine");
        }
        let action = libc::SECCOMP_RET_USER_NOTIF;
        // SAFETY: this operation reads the action and does nothing else.
        let available = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_ACTION_AVAIL,
                0,
                &raw const action,
            )
        };
        if available != 0 {
            bail!(
                "this system has no seccomp user notification ({}); it takes Linux 5.6",
                Errno::last().desc()
            );
        }
        Ok(Self {
            code: code(),
            no_new_privileges: !privileged,
        })
    }

    /// Whether set-user-ID programs lose their power under it.
    pub(super) fn weakens(&self) -> bool {
        self.no_new_privileges
    }

    /// Applies the filter to this process and sends its listener through `channel`. Makes system calls only, as is demanded
    /// between fork and exec.
    pub(super) fn apply(&self, channel: RawFd) -> io::Result<()> {
        let program = sock_fprog {
            len: self.code.len() as u16,
            filter: self.code.as_ptr().cast::<sock_filter>().cast_mut(),
        };
        let install = |flags: c_ulong| {
            // SAFETY: the program and its instructions outlive the call, which copies them.
            unsafe {
                libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    flags,
                    &raw const program,
                )
            }
        };
        if self.no_new_privileges {
            // SAFETY: this takes numbers only.
            Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        let mut listener = install(
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        );
        if listener < 0 && Errno::last() == Errno::EINVAL {
            // Before Linux 5.19.
            listener = install(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        }
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        send_file(channel, listener as RawFd)
    }
}

/// Sends a descriptor over a unix socket, from the stack.
fn send_file(channel: RawFd, file: RawFd) -> io::Result<()> {
    /// Room for a `struct cmsghdr` and a descriptor, aligned as the former is.
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: all zeroes is a valid message; its parts live as long as it does, and the control data has room for one
    // descriptor, whose place the C library's own arithmetic finds.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header)
            .cast::<RawFd>()
            .write_unaligned(file);
        libc::sendmsg(channel, &raw const message, 0)
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes the listener that [`Filter::apply`] has sent, and answers its questions from a thread until the last process that has
/// the filter is gone.
pub(super) fn supervise(channel: &impl AsRawFd, rule: Rule) -> io::Result<()> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    let file = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    let file = file.ok_or(io::ErrorKind::UnexpectedEof)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let listener = unsafe { OwnedFd::from_raw_fd(file) };
    let mut supervisor = Supervisor {
        listener,
        rule,
        unanswered: None,
        warned: false,
    };
    thread::Builder::new()
        .name("seccomp".to_owned())
        .spawn(move || supervisor.run())?;
    Ok(())
}

/// Answers the filter's questions.
struct Supervisor {
    listener: OwnedFd,
    rule: Rule,
    /// The cookie of a socket that was bound here, while a signal took the caller away before it got the answer.
    unanswered: Option<u64>,
    /// Whether it was said that sockets cannot be taken.
    warned: bool,
}

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The kernel shall do what the program asked for.
    Continue,
    /// It was done, with this result: a socket's cookie, or an error.
    Done(Result<u64, Errno>),
}

impl Supervisor {
    fn run(&mut self) {
        loop {
            let mut files = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let events = files[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                // Nobody has the filter any more.
                return;
            }
            // SAFETY: all zeroes is a valid notification, and what the kernel asks for.
            let mut notification: seccomp_notif = unsafe { std::mem::zeroed() };
            if self
                .control(libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification)
                .is_err()
            {
                // The caller was killed between the two calls.
                continue;
            }
            // A mistake here must not leave the program waiting.
            let answer = catch_unwind(AssertUnwindSafe(|| self.judge(&notification)))
                .unwrap_or(Answer::Continue);
            self.answer(&notification, &answer);
        }
    }

    fn control<T>(&self, request: libc::Ioctl, argument: *mut T) -> nix::Result<()> {
        // SAFETY: each request is used with a valid structure of its own type.
        Errno::result(unsafe { libc::ioctl(self.listener.as_raw_fd(), request, argument) })
            .map(drop)
    }

    fn answer(&mut self, notification: &seccomp_notif, answer: &Answer) {
        // SAFETY: all zeroes is a valid answer.
        let mut response: seccomp_notif_resp = unsafe { std::mem::zeroed() };
        response.id = notification.id;
        match answer {
            Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Answer::Done(Ok(_)) => {}
            Answer::Done(Err(error)) => response.error = -(*error as i32),
        }
        let sent = self.control(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response);
        if let (Err(_), Answer::Done(Ok(cookie))) = (sent, answer) {
            self.unanswered = Some(*cookie);
        }
    }

    /// Does what a call asks for, if it is one that is moved.
    fn judge(&mut self, notification: &seccomp_notif) -> Answer {
        let Some((file, address)) = self.read_call(notification) else {
            return Answer::Continue;
        };
        let Some(asked) =
            redirect::parse_address(&address).filter(|asked| asked.port() == self.rule.old)
        else {
            return Answer::Continue;
        };
        let socket = match take_file(notification.pid, file) {
            Ok(socket) => socket,
            // The program gets to know what we lack.
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
                return Answer::Done(Err(Errno::ENOBUFS));
            }
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) && error != Errno::EBADF {
                    tracing::warn!(
                        "cannot move a port: pidfd_getfd: {}; does a container's profile refuse it?",
                        error.desc()
                    );
                }
                return Answer::Continue;
            }
        };
        let Some(target) = target(&socket, asked, self.rule) else {
            return Answer::Continue;
        };
        // Only now is it sure that what was read is what the caller is still waiting with.
        let mut id = notification.id;
        if self
            .control(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id)
            .is_err()
        {
            return Answer::Continue;
        }
        let cookie = option(&socket, libc::SOL_SOCKET, libc::SO_COOKIE).unwrap_or(0);
        if self
            .unanswered
            .take_if(|unanswered| *unanswered == cookie)
            .is_some()
        {
            // The same call again, after a signal.
            return Answer::Done(Ok(cookie));
        }
        let result = setsockopt(&socket, sockopt::ReuseAddr, &true)
            .and_then(|()| bind(socket.as_raw_fd(), &SockaddrStorage::from(target)));
        tracing::debug!(
            "bind of {asked} by process {} moved to {target}: {result:?}",
            notification.pid
        );
        Answer::Done(result.map(|()| cookie))
    }

    /// The descriptor and the address of a `bind`, or nothing for what is none or cannot be read.
    fn read_call(&self, notification: &seccomp_notif) -> Option<(c_int, Vec<u8>)> {
        let data = &notification.data;
        let call = u32::try_from(data.nr).ok()?;
        let architecture = ARCHITECTURES
            .iter()
            .find(|architecture| architecture.audit == data.arch)?;
        let [file, address, length] = if architecture.socketcall == Some(call) {
            let arguments = read_memory(notification.pid, u64::from(data.args[1] as u32), 12)?;
            let (words, _) = arguments.as_chunks::<4>();
            [words[0], words[1], words[2]].map(|word| u64::from(u32::from_ne_bytes(word)))
        } else {
            [data.args[0], data.args[1], data.args[2]]
        };
        let length = usize::try_from(length as u32)
            .ok()
            .filter(|length| (1..=MAX_ADDRESS).contains(length))?;
        Some((
            file as c_int,
            read_memory(notification.pid, address, length)?,
        ))
    }
}

/// Where a `bind` of this socket goes instead; `None` for what is left alone.
fn target(socket: &OwnedFd, asked: SocketAddr, rule: Rule) -> Option<SocketAddr> {
    let number = |level, name| option::<c_int>(socket, level, name);
    let is_tcp = number(libc::SOL_SOCKET, libc::SO_TYPE)? == libc::SOCK_STREAM
        && [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP]
            .contains(&number(libc::SOL_SOCKET, libc::SO_PROTOCOL)?);
    let domain = number(libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let v6only = domain == libc::AF_INET6 && number(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0;
    is_tcp
        .then(|| redirect::redirect(rule, asked, Socket { domain, v6only }))
        .flatten()
}

/// A socket option that is a plain number.
fn option<T: Default>(socket: &OwnedFd, level: c_int, name: c_int) -> Option<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`; every T used here is an integer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<T>()).then_some(value)
}

/// Bytes of another process's memory.
fn read_memory(pid: u32, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: usize::try_from(address).ok()? as *mut _,
        iov_len: length,
    };
    // SAFETY: `local` describes our buffer; the kernel checks the remote address.
    let read = unsafe {
        libc::process_vm_readv(
            pid as libc::pid_t,
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    (usize::try_from(read) == Ok(length)).then_some(bytes)
}

/// Our own descriptor for a file that a thread of another process has open.
fn take_file(thread: u32, file: c_int) -> nix::Result<OwnedFd> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))
        .map_err(|error| error.raw_os_error().map_or(Errno::ESRCH, Errno::from_raw))?;
    let process = status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<c_int>().ok());
    let process = own(|| {
        // SAFETY: this takes numbers only.
        unsafe { libc::syscall(libc::SYS_pidfd_open, process.unwrap_or(-1), 0) }
    })?;
    own(|| {
        // SAFETY: this takes numbers only.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), file, 0) }
    })
}

/// The descriptor that a system call makes.
fn own(call: impl FnOnce() -> c_long) -> nix::Result<OwnedFd> {
    let file = Errno::result(call())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(file as RawFd) })
}

/// The filter's program: `bind`, in each of its forms, is asked for; everything else is allowed.
fn code() -> Vec<Instruction> {
    /// Offsets in `struct seccomp_data`: the number, the architecture, the low half of the first argument.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const FIRST: u32 = if cfg!(target_endian = "little") {
        16
    } else {
        20
    };
    let load = |offset| Instruction {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jump_true: 0,
        jump_false: 0,
        value: offset,
    };
    let jump_if = |value, jump_true, jump_false| Instruction {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jump_true,
        jump_false,
        value,
    };
    let end = |action| Instruction {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jump_true: 0,
        jump_false: 0,
        value: action,
    };
    let (ask, allow) = (
        end(libc::SECCOMP_RET_USER_NOTIF),
        end(libc::SECCOMP_RET_ALLOW),
    );
    let mut code = vec![load(ARCHITECTURE)];
    for architecture in ARCHITECTURES {
        let mut block = vec![load(NUMBER), jump_if(architecture.bind, 0, 1), ask];
        if let Some(socketcall) = architecture.socketcall {
            block.extend([
                jump_if(socketcall, 0, 3),
                load(FIRST),
                jump_if(SOCKETCALL_BIND, 0, 1),
                ask,
            ]);
        }
        block.push(allow);
        code.push(jump_if(architecture.audit, 0, block.len() as u8));
        code.extend(block);
    }
    code.push(allow);
    code
}
