//! The hooked functions and the system calls around the decision.

use core::ffi::CStr;
use core::fmt::{self, Write};
use core::mem::size_of;
use core::net::SocketAddr;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_void, sockaddr, sockaddr_in, sockaddr_in6, socklen_t};

use crate::origin;
use crate::redirect::{self, Rule, Socket};

/// The packed rule; [`UNREAD`] before the environment was looked at, 0 when there is none.
static RULE: AtomicU32 = AtomicU32::new(UNREAD);
/// No packed rule: port 0 is not one that a rule may have.
const UNREAD: u32 = 0xffff_0000;

/// Runs when the library is loaded, before any thread of the program's own: a fork in another thread during a first, lazy
/// look-up of the real function would leave the child waiting for ever.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        rule();
        let _resolved: BindFn = redhook::real!(bind);
        let _resolved: NameFn = redhook::real!(getsockname);
    }
    at_load
};

type BindFn = unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int;
type NameFn = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;

redhook::hook! {
    unsafe fn bind(socket: c_int, address: *const sockaddr, length: socklen_t) -> c_int => moved_bind {
        let errno = errno();
        // SAFETY: a caller of bind() vouches for `length` readable bytes; null is checked.
        let target = unsafe { target(socket, address, length) };
        set_errno(errno);
        let Some((asked, target)) = target else {
            // SAFETY: the caller's own arguments, unchanged.
            return unsafe { redhook::real!(bind)(socket, address, length) };
        };
        let (storage, length) = encode(target);
        // SAFETY: `storage` holds an address of `length` bytes.
        let result = unsafe { redhook::real!(bind)(socket, (&raw const storage).cast(), length) };
        let bind_errno = self::errno();
        if result == 0 && let Some(cookie) = option::<u64>(socket, libc::SOL_SOCKET, libc::SO_COOKIE) {
            origin::remember(cookie, asked);
        }
        trace(asked, target, result, bind_errno);
        set_errno(if result == 0 { errno } else { bind_errno });
        result
    }
}

redhook::hook! {
    unsafe fn getsockname(socket: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int => original_name {
        // SAFETY: a caller of getsockname() passes a readable length or null.
        let room = if length.is_null() { 0 } else { unsafe { length.read() } } as usize;
        if rule().is_none() || address.is_null() || length.is_null() || room > c_int::MAX as usize {
            // SAFETY: the caller's own arguments, unchanged.
            return unsafe { redhook::real!(getsockname)(socket, address, length) };
        }
        let mut name = Name([0; size_of::<libc::sockaddr_storage>()]);
        let mut full = name.0.len() as socklen_t;
        // SAFETY: there is room for `full` bytes, aligned as addresses are.
        let result = unsafe { redhook::real!(getsockname)(socket, (&raw mut name).cast(), &raw mut full) };
        if result == 0 {
            let errno = errno();
            restore_name(socket, &mut name.0[..full as usize]);
            set_errno(errno);
            // SAFETY: the caller has room for `room` bytes at `address`, and for the length at `length`.
            unsafe {
                ptr::copy_nonoverlapping(name.0.as_ptr(), address.cast(), room.min(full as usize));
                length.write(full);
            }
        }
        result
    }
}

/// Room for the name of any socket.
#[repr(align(8))]
struct Name([u8; size_of::<libc::sockaddr_storage>()]);

/// The rule from the environment, read once. Two threads that come first at the same time read the same.
fn rule() -> Option<Rule> {
    let word = RULE.load(Ordering::Relaxed);
    if word != UNREAD {
        return Rule::unpack(word);
    }
    let rule = variable(c"REBIND_OLD_PORT")
        .zip(variable(c"REBIND_NEW_PORT"))
        .and_then(|(old, new)| Rule::parse(old, new));
    RULE.store(rule.map_or(0, Rule::pack), Ordering::Relaxed);
    rule
}

/// The value of an environment variable.
fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: `name` ends in NUL; the result is null or a string of the environment, which is used before the program runs on.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

/// What the program asks for and where it goes instead; `None` to leave the call alone. On the way the socket gets `SO_REUSEADDR`.
///
/// # Safety
/// `address` is null or points to `length` readable bytes, as `bind()` demands of its caller.
unsafe fn target(
    socket: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> Option<(SocketAddr, SocketAddr)> {
    let rule = rule()?;
    if address.is_null() || length as usize > size_of::<libc::sockaddr_storage>() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for `length` bytes.
    let asked =
        redirect::parse_address(unsafe { slice::from_raw_parts(address.cast(), length as usize) })?;
    if asked.port() != rule.old || !is_tcp(socket) {
        return None;
    }
    let domain = option(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let v6only = domain == libc::AF_INET6
        && option::<c_int>(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0;
    let target = redirect::redirect(rule, asked, Socket { domain, v6only })?;
    let on: c_int = 1;
    // SAFETY: the value is a c_int, as SO_REUSEADDR wants. A failure shows in the bind that follows.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const on).cast::<c_void>(),
            size_of::<c_int>() as socklen_t,
        );
    }
    Some((asked, target))
}

/// Puts the old port, and the address if it is remembered, into `name`, which `getsockname()` has filled.
fn restore_name(socket: c_int, name: &mut [u8]) {
    let Some((rule, address)) = rule().zip(redirect::parse_address(name)) else {
        return;
    };
    if !redirect::is_moved(rule, address) || !is_tcp(socket) {
        return;
    }
    name[2..4].copy_from_slice(&rule.old.to_be_bytes());
    let cookie = option(socket, libc::SOL_SOCKET, libc::SO_COOKIE);
    if let Some(asked) = cookie.and_then(origin::recall) {
        match (address, asked.to_ipv4_mapped()) {
            (SocketAddr::V4(_), Some(v4)) => name[4..8].copy_from_slice(&v4.octets()),
            (SocketAddr::V6(_), _) => name[8..24].copy_from_slice(&asked.octets()),
            (SocketAddr::V4(_), None) => {}
        }
    }
}

/// Whether this is a TCP socket; Multipath TCP is one too.
fn is_tcp(socket: c_int) -> bool {
    option(socket, libc::SOL_SOCKET, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && matches!(
            option(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL),
            Some(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
        )
}

/// A socket option that is a plain number.
fn option<T: Default>(socket: c_int, level: c_int, name: c_int) -> Option<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`; every T used here is an integer.
    let result = unsafe {
        libc::getsockopt(
            socket,
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<T>()).then_some(value)
}

/// `address` as the kernel wants it.
fn encode(address: SocketAddr) -> (sockaddr_in6, socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_in6.
    let mut storage: sockaddr_in6 = unsafe { core::mem::zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the larger structure has room and alignment for the smaller one, and all zeroes is valid.
            let v4_storage = unsafe { &mut *(&raw mut storage).cast::<sockaddr_in>() };
            v4_storage.sin_family = libc::AF_INET as libc::sa_family_t;
            v4_storage.sin_port = v4.port().to_be();
            v4_storage.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            (storage, size_of::<sockaddr_in>() as socklen_t)
        }
        SocketAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            storage.sin6_port = v6.port().to_be();
            storage.sin6_addr.s6_addr = v6.ip().octets();
            (storage, size_of::<sockaddr_in6>() as socklen_t)
        }
    }
}

/// Says on stderr what was moved, if `REBIND_DEBUG=1`: one line in one write, from the stack.
fn trace(asked: SocketAddr, target: SocketAddr, result: c_int, errno: c_int) {
    if variable(c"REBIND_DEBUG") != Some(b"1") {
        return;
    }
    let mut line = Line {
        text: [0; 256],
        length: 0,
    };
    let outcome = if result == 0 { 0 } else { errno };
    // SAFETY: getpid always succeeds.
    let pid = unsafe { libc::getpid() };
    // A line that does not fit is cut short.
    _ = writeln!(
        line,
        "rebind[{pid}]: bind {asked} moved to {target}: errno {outcome}"
    );
    // SAFETY: the first `length` bytes of `text` are written.
    unsafe { libc::write(libc::STDERR_FILENO, line.text.as_ptr().cast(), line.length) };
}

/// A line of text on the stack.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self
            .text
            .get_mut(self.length..self.length + text.len())
            .ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// This thread's `errno`.
fn errno() -> c_int {
    // SAFETY: the C library keeps one errno for each thread, always readable.
    unsafe { *libc::__errno_location() }
}

/// Sets this thread's `errno`.
fn set_errno(value: c_int) {
    // SAFETY: as above, and always writable.
    unsafe { *libc::__errno_location() = value }
}
