/**
 * A WebSocket that is read like a stream.
 *
 * A WebSocket delivers messages, but what websockify carries is a stream of bytes: where a message ends means nothing.
 * `Websock` puts what arrives into a receive queue, from which a protocol takes bytes, numbers and strings as it needs
 * them, and can wait for what is not there yet:
 *
 *     import { Websock } from './websock.js';
 *
 *     const socket = new Websock();
 *     socket.on('open', () => socket.send_string('hello\n'));
 *     socket.on('message', () => {
 *         while (!socket.rQwait('length', 2)) {
 *             const length = socket.rQshift16();
 *             if (socket.rQwait('text', length, 2)) return; // Called again when more has arrived.
 *             console.log(socket.rQshiftStr(length));
 *         }
 *     });
 *     socket.on('close', ({ code, reason }) => console.log(`closed: ${code} ${reason}`));
 *     socket.open('ws://localhost:6080/');
 *
 * The names are those of the `websock.js` that websockify had from the start, so that pages written for it go on
 * working; the bytes are in typed arrays now. A browser offers no way to slow a sender down: what the page does not take
 * from the queue stays in memory.
 */

/** Bytes that an empty queue keeps. A power of two: queues grow by doubling. */
const QUEUE_SIZE = 1 << 16;
/** Bytes in one message to the server. Small, so that `bufferedAmount` is looked at often. */
const MESSAGE_SIZE = 24 << 10;
/** Milliseconds after which `bufferedAmount` is looked at again; browsers have no event for it. */
const FLUSH_INTERVAL = 10;
/** Close code, of those that are free for applications, for data that makes no sense in the session's subprotocol. */
const BAD_DATA = 4007;

/** Bytes in a row: appended at the end, taken from the start. */
class ByteQueue {
    /** The bytes that wait are those from `start` to `end`. */
    bytes = new Uint8Array(QUEUE_SIZE);
    start = 0;
    end = 0;

    get length() {
        return this.end - this.start;
    }

    /** @param {Uint8Array} bytes */
    append(bytes) {
        this.#makeRoom(bytes.length);
        this.bytes.set(bytes, this.end);
        this.end += bytes.length;
    }

    /** @param {number} byte */
    prepend(byte) {
        if (this.start === 0) {
            this.#makeRoom(1);
            this.bytes.copyWithin(1, 0, this.end);
            this.start += 1;
            this.end += 1;
        }
        this.start -= 1;
        this.bytes[this.start] = byte;
    }

    /**
     * Takes bytes from the start. The view holds them until something is appended.
     * @param {number} count
     */
    take(count) {
        if (!(count >= 0 && count <= this.length)) {
            throw new RangeError(`${count} bytes are asked of a queue that holds ${this.length}`);
        }
        this.start += count;
        return this.bytes.subarray(this.start - count, this.start);
    }

    /** Sees to it that `count` bytes fit behind the end. Each byte is moved a bounded number of times on average. */
    #makeRoom(count) {
        const needed = this.length + count;
        if (this.length === 0) {
            this.start = 0;
            this.end = 0;
            // One large message does not keep its memory for ever.
            if (this.bytes.length > QUEUE_SIZE && count <= QUEUE_SIZE) this.bytes = new Uint8Array(QUEUE_SIZE);
        }
        if (this.end + count <= this.bytes.length) return;
        const waiting = this.bytes.subarray(this.start, this.end);
        let size = this.bytes.length;
        // Moving pays when half of the array gets free; else it would be done for each of many small messages.
        while (size < 2 * needed) size *= 2;
        if (size > this.bytes.length) this.bytes = new Uint8Array(size);
        this.bytes.set(waiting);
        this.end -= this.start;
        this.start = 0;
    }
}

export class Websock {
    /**
     * As long as the browser holds this many bytes that the network has not taken, `send` and `flush` keep further ones
     * in the send queue.
     */
    maxBufferedAmount = 1 << 20;

    /** @type {WebSocket | undefined} */
    #socket;
    #received = new ByteQueue();
    #toSend = new ByteQueue();
    #timer;
    #handlers = { open: () => {}, message: () => {}, close: () => {}, error: () => {} };

    /**
     * Sets what is called when something happens, instead of what was called before.
     *
     * - `open`: bytes can be sent.
     * - `message`: bytes have arrived in the receive queue.
     * - `close`, with a `CloseEvent`, which has the `code` and the `reason`.
     * - `error`, with an `Event` when the connection fails, or an `Error` when data arrives that is no base64 or, in the
     *   subprotocol `binary`, text. `close` follows.
     *
     * @param {'open' | 'message' | 'close' | 'error'} event
     * @param {(event?: any) => void} handler
     */
    on(event, handler) {
        if (!(event in this.#handlers)) throw new TypeError(`There is no event '${event}'`);
        this.#handlers[event] = handler;
    }

    /**
     * Connects, and forgets what an earlier connection has left in the queues.
     *
     * @param {string} uri `ws:` or `wss:`
     * @param {string | string[]} protocols The subprotocols to offer. `base64` carries the bytes as text, for servers and
     *     proxies that know nothing else; without a subprotocol the bytes are carried as in `binary`.
     */
    open(uri, protocols = ['binary', 'base64']) {
        this.close();
        this.#received = new ByteQueue();
        this.#toSend = new ByteQueue();
        const socket = new WebSocket(uri, protocols);
        this.#socket = socket;
        socket.binaryType = 'arraybuffer';
        // What comes from a connection that another has taken the place of is nobody's concern.
        const forward = (event, action) =>
            socket.addEventListener(event, (detail) => {
                if (this.#socket === socket) action(detail);
            });
        forward('open', () => {
            this.#handlers.open();
            this.flush();
        });
        forward('message', ({ data }) => this.#take(data));
        forward('error', (event) => this.#handlers.error(event));
        forward('close', (event) => {
            this.#stopTimer();
            this.#handlers.close(event);
        });
    }

    /**
     * Sends what is in the send queue, and closes. The `close` handler is called when the server has closed, too.
     *
     * @param {number} code 1000, or 3000 to 4999
     * @param {string} reason At most 123 bytes of UTF-8
     */
    close(code = 1000, reason = '') {
        this.#stopTimer();
        if (this.#socket?.readyState === WebSocket.OPEN) this.#sendBelow(Infinity);
        this.#socket?.close(code, reason);
    }

    /**
     * Puts bytes into the send queue, and sends as much of it as `maxBufferedAmount` permits; the rest follows by itself.
     * They may be given as soon as `open` was called. Without a connection they are dropped, as a `WebSocket` does.
     *
     * @param {Iterable<number>} bytes A `Uint8Array`, or another row of numbers from 0 to 255
     * @returns {boolean} Whether the send queue is empty: if not, a polite sender pauses
     */
    send(bytes) {
        if (!(this.#socket?.readyState <= WebSocket.OPEN)) return false;
        this.#toSend.append(bytes instanceof Uint8Array ? bytes : Uint8Array.from(bytes));
        return this.flush();
    }

    /**
     * Sends a string each of whose characters stands for one byte.
     *
     * @param {string} text Characters from U+0000 to U+00FF. Encode other text with `TextEncoder`, and `send` that.
     */
    send_string(text) {
        return this.send(
            Uint8Array.from(text, (character) => {
                const code = character.codePointAt(0);
                if (code > 255) throw new RangeError(`'${character}' is no byte`);
                return code;
            }),
        );
    }

    /**
     * Sends as much of the send queue as `maxBufferedAmount` permits.
     *
     * @returns {boolean} Whether the send queue is empty
     */
    flush() {
        if (this.#socket?.readyState === WebSocket.OPEN) {
            this.#sendBelow(this.maxBufferedAmount);
            if (this.#toSend.length > 0) {
                this.#timer ??= setTimeout(() => {
                    this.#timer = undefined;
                    this.flush();
                }, FLUSH_INTERVAL);
            }
        }
        return this.#toSend.length === 0;
    }

    /** How many bytes can be taken from the receive queue. */
    rQlen() {
        return this.#received.length;
    }

    /** The next byte, which stays in the queue. */
    rQpeek8() {
        return this.rQslice(0, 1)[0];
    }

    /** Takes a byte. Like all that take or look, it throws a `RangeError` when the queue has not enough: see `rQwait`. */
    rQshift8() {
        return this.#received.take(1)[0];
    }

    /**
     * Puts a byte back in front of the others.
     * @param {number} byte
     */
    rQunshift8(byte) {
        this.#received.prepend(byte);
    }

    /** Takes a number of two bytes, the high one first. */
    rQshift16() {
        const [high, low] = this.#received.take(2);
        return high * 0x100 + low;
    }

    /** Takes a number of four bytes, the highest first, without a sign. */
    rQshift32() {
        const [highest, high, low, lowest] = this.#received.take(4);
        return highest * 0x1000000 + high * 0x10000 + low * 0x100 + lowest;
    }

    /**
     * Takes bytes as a string each of whose characters stands for one byte.
     * @param {number} length All that are there, unless told
     */
    rQshiftStr(length = this.rQlen()) {
        return toBinaryString(this.#received.take(length));
    }

    /**
     * Takes bytes.
     * @param {number} length All that are there, unless told
     */
    rQshiftBytes(length = this.rQlen()) {
        return this.#received.take(length).slice();
    }

    /**
     * A copy of bytes that stay in the queue.
     *
     * @param {number} start Counted from the next byte
     * @param {number} end The first that is left out
     */
    rQslice(start, end = this.rQlen()) {
        const { bytes, start: first, length } = this.#received;
        if (!(start >= 0 && start <= end && end <= length)) {
            throw new RangeError(`Bytes ${start} to ${end} are asked of a queue that holds ${length}`);
        }
        return bytes.slice(first + start, first + end);
    }

    /**
     * Says whether there is less than needed, so that the handler returns and is called again with more:
     * `if (socket.rQwait('header', 8)) return;`
     *
     * @param {string} message What is waited for, for the error
     * @param {number} length How many bytes are needed
     * @param {number} goback How many of the bytes taken last to put back if there is less, for the handler to start anew
     */
    rQwait(message, length, goback = 0) {
        if (this.rQlen() >= length) return false;
        if (goback > this.get_rQi()) {
            throw new RangeError(`${message}: ${goback} bytes cannot be put back, ${this.get_rQi()} were taken`);
        }
        this.#received.start -= goback;
        return true;
    }

    /** The bytes of the receive queue, those before `get_rQi` already taken. Valid until the next message. */
    get_rQ() {
        return this.#received.bytes.subarray(0, this.#received.end);
    }

    /** Where in `get_rQ` the next byte is. */
    get_rQi() {
        return this.#received.start;
    }

    /**
     * Goes on at another byte of `get_rQ`.
     * @param {number} index
     */
    set_rQi(index) {
        if (!(index >= 0 && index <= this.#received.end)) throw new RangeError(`There is no byte ${index} in the queue`);
        this.#received.start = index;
    }

    /** The bytes that `send` was given and the browser was not. Valid until the next `send`. */
    get_sQ() {
        const { bytes, start, end } = this.#toSend;
        return bytes.subarray(start, end);
    }

    /** Sends until the browser holds `limit` bytes, or there are no more. */
    #sendBelow(limit) {
        const socket = this.#socket;
        while (this.#toSend.length > 0 && socket.bufferedAmount < limit) {
            const bytes = this.#toSend.take(Math.min(this.#toSend.length, MESSAGE_SIZE));
            socket.send(socket.protocol === 'base64' ? btoa(toBinaryString(bytes)) : bytes);
        }
    }

    /** @param {string | ArrayBuffer} data */
    #take(data) {
        let bytes;
        try {
            bytes = toBytes(data, this.#socket.protocol);
        } catch (error) {
            this.#handlers.error(error);
            this.close(BAD_DATA, error.message);
            return;
        }
        this.#received.append(bytes);
        if (this.rQlen() > 0) this.#handlers.message();
    }

    #stopTimer() {
        clearTimeout(this.#timer);
        this.#timer = undefined;
    }
}

/**
 * The bytes of a message.
 *
 * @param {string | ArrayBuffer} data
 * @param {string} protocol
 */
function toBytes(data, protocol) {
    if (typeof data !== 'string') return new Uint8Array(data);
    if (protocol !== 'base64') throw new TypeError('Text arrived in a binary session');
    let text;
    try {
        text = atob(data);
    } catch {
        throw new TypeError('Text arrived that is no base64');
    }
    return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** @param {Uint8Array} bytes */
function toBinaryString(bytes) {
    // An engine takes a bounded number of arguments.
    const parts = [];
    for (let start = 0; start < bytes.length; start += MESSAGE_SIZE) {
        parts.push(String.fromCharCode(...bytes.subarray(start, start + MESSAGE_SIZE)));
    }
    return parts.join('');
}
