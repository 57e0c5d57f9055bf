//! `librebind.so`: moves a program's TCP port to loopback, so that something else can listen in its place.
//!
//! Loaded with `LD_PRELOAD`, it hooks two functions of the C library:
//!
//! - `bind`: a TCP socket that is bound to port `REBIND_OLD_PORT` is bound to `REBIND_NEW_PORT` on loopback instead. It gets
//!   `SO_REUSEADDR`, because the one who asked for the move holds that port with a socket that never listens.
//! - `getsockname`: a moved socket answers with the address that the program asked for, and a connection that it accepted with
//!   the old port, so that what the program logs, checks or advertises stays right.
//!
//! Without both variables, and for everything else (UDP, other ports, unix sockets, addresses that the kernel would refuse),
//! the C library's own functions run as if the library were not there. It allocates nothing, never writes the caller's
//! address, keeps `errno`, and prints nothing unless `REBIND_DEBUG=1`.
//!
//! The decision itself is in [`redirect`], the memory of moved sockets in [`origin`].

mod origin;
mod redirect;

#[cfg(not(test))]
mod hooks;
