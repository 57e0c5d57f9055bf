//! The buffer that a worker thread lends to whichever session has data right now.

use std::cell::RefCell;

use crate::websocket::frame::HEADER_ROOM;

/// Payload bytes that are read at once.
pub(super) const PAYLOAD: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; HEADER_ROOM + PAYLOAD].into_boxed_slice());
}

/// Runs `operation` with this thread's buffer: room for a frame header, then [`PAYLOAD`] bytes. It must not be nested, and what
/// the buffer holds is gone afterwards.
pub(super) fn with<T>(operation: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| operation(buffer))
}
