/** The module `websock.js` alone, on a WebSocket that does what the test says. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';

import { Websock } from '../websock.js';

const MESSAGE_SIZE = 24 << 10;

/** A WebSocket whose server and network are the test. */
class FakeWebSocket extends EventTarget {
    static CONNECTING = 0;
    static OPEN = 1;
    static CLOSING = 2;
    static CLOSED = 3;
    static last;

    readyState = FakeWebSocket.CONNECTING;
    bufferedAmount = 0;
    sent = [];

    constructor(uri, protocols) {
        super();
        Object.assign(this, { uri, protocols });
        FakeWebSocket.last = this;
    }

    send(data) {
        assert.equal(this.readyState, FakeWebSocket.OPEN, 'a WebSocket sends only while it is open');
        // The real one takes the bytes at once: what the caller does to its array later does not matter.
        this.sent.push(typeof data === 'string' ? data : data.slice());
        this.bufferedAmount += data.length;
    }

    close(code, reason) {
        if (this.readyState < FakeWebSocket.CLOSING) this.closedWith = { code, reason };
        this.readyState = FakeWebSocket.CLOSING;
    }

    /** The server agrees. */
    accept(protocol = 'binary') {
        this.readyState = FakeWebSocket.OPEN;
        this.protocol = protocol;
        this.dispatchEvent(new Event('open'));
    }

    /** The server sends: a string, or numbers. */
    deliver(data) {
        const message = typeof data === 'string' ? data : Uint8Array.from(data).buffer;
        this.dispatchEvent(Object.assign(new Event('message'), { data: message }));
    }

    /** The server, or the network, ends the connection. */
    end(code, reason) {
        this.readyState = FakeWebSocket.CLOSED;
        this.dispatchEvent(Object.assign(new Event('close'), { code, reason }));
    }

    /** Everything sent, in a row. */
    get sentBytes() {
        return this.sent.flatMap((data) => [...data]);
    }
}

let socket;
const network = () => FakeWebSocket.last;

beforeEach(() => {
    globalThis.WebSocket = FakeWebSocket;
    socket = new Websock();
    socket.open('ws://localhost/');
});

afterEach(() => {
    socket.close();
    delete globalThis.WebSocket;
});

/** A socket in whose receive queue these bytes are. */
function received(...bytes) {
    network().accept();
    network().deliver(bytes);
}

const counting = (length) => Uint8Array.from({ length }, (_, index) => (index * 7) % 251);

test('both subprotocols are offered unless the caller says otherwise', () => {
    assert.deepEqual(network().protocols, ['binary', 'base64']);
    assert.equal(network().binaryType, 'arraybuffer');
    socket.open('ws://localhost/', 'base64');
    assert.equal(network().protocols, 'base64');
});

test('the handlers hear of the opening, of data, of errors and of the close code', () => {
    const heard = [];
    socket.on('open', () => heard.push('open'));
    socket.on('message', () => heard.push(socket.rQshiftStr()));
    socket.on('error', (event) => heard.push(event.type));
    socket.on('close', ({ code, reason }) => heard.push(code, reason));
    network().accept();
    network().deliver([104, 105]);
    network().deliver([]);
    network().dispatchEvent(new Event('error'));
    network().end(1011, 'no target');
    assert.deepEqual(heard, ['open', 'hi', 'error', 1011, 'no target']);
});

test('an event that does not exist is refused', () => {
    assert.throws(() => socket.on('massage', () => {}), TypeError);
});

test('numbers are taken from the queue with the high byte first and without a sign', () => {
    received(1, 2, 3, 0xff, 0xfe, 0xfd, 0xfc);
    assert.equal(socket.rQpeek8(), 1);
    assert.equal(socket.rQshift8(), 1);
    assert.equal(socket.rQshift16(), 0x0203);
    assert.equal(socket.rQshift32(), 0xfffefdfc);
    assert.equal(socket.rQlen(), 0);
});

test('strings and bytes are taken in part or whole', () => {
    received(0x61, 0xff, 0x62, 3, 4, 5);
    assert.equal(socket.rQshiftStr(2), 'aÿ');
    assert.equal(socket.rQshiftStr(0), '');
    assert.deepEqual(socket.rQshiftBytes(2), Uint8Array.of(0x62, 3));
    assert.deepEqual(socket.rQshiftBytes(), Uint8Array.of(4, 5));
    assert.equal(socket.rQshiftStr(), '');
});

test('bytes that were taken stay as they are when more arrives', () => {
    received(1, 2, 3);
    const taken = socket.rQshiftBytes();
    network().deliver([7, 8, 9]);
    assert.deepEqual(taken, Uint8Array.of(1, 2, 3));
});

test('a slice is counted from the next byte and leaves the queue alone', () => {
    received(1, 2, 3, 4);
    socket.rQshift8();
    assert.deepEqual(socket.rQslice(1, 3), Uint8Array.of(3, 4));
    assert.deepEqual(socket.rQslice(0), Uint8Array.of(2, 3, 4));
    assert.equal(socket.rQlen(), 3);
});

test('a byte is put back in front of the others, also when none was taken', () => {
    received(2, 3);
    socket.rQunshift8(1);
    assert.deepEqual(socket.rQslice(0), Uint8Array.of(1, 2, 3));
    socket.rQshift16();
    socket.rQunshift8(9);
    assert.deepEqual(socket.rQshiftBytes(), Uint8Array.of(9, 3));
    socket.rQunshift8(5);
    assert.equal(socket.rQshift8(), 5);
});

test('taking more than is there is an error that takes nothing', () => {
    received(1);
    for (const take of [
        () => socket.rQshift16(),
        () => socket.rQshift32(),
        () => socket.rQshiftStr(2),
        () => socket.rQshiftBytes(2),
        () => socket.rQshiftBytes(-1),
        () => socket.rQslice(0, 2),
        () => socket.rQslice(-1),
        () => socket.set_rQi(2),
    ]) {
        assert.throws(take, RangeError);
    }
    assert.equal(socket.rQshift8(), 1);
    assert.throws(() => socket.rQshift8(), RangeError);
    assert.throws(() => socket.rQpeek8(), RangeError);
});

test('waiting puts back what was taken, until enough has arrived', () => {
    received(0, 3, 65);
    const text = () => {
        if (socket.rQwait('length', 2)) return undefined;
        const length = socket.rQshift16();
        return socket.rQwait('text', length, 2) ? undefined : socket.rQshiftStr(length);
    };
    assert.equal(text(), undefined);
    assert.equal(socket.rQlen(), 3);
    network().deliver([66]);
    assert.equal(text(), undefined);
    network().deliver([67]);
    assert.equal(text(), 'ABC');
    assert.throws(() => socket.rQwait('text', 1, 6), RangeError);
});

test('the queue itself can be read and gone back in', () => {
    received(1, 2, 3);
    socket.rQshift16();
    assert.equal(socket.get_rQi(), 2);
    assert.equal(socket.get_rQ()[socket.get_rQi()], 3);
    socket.set_rQi(1);
    assert.equal(socket.rQshift8(), 2);
    assert.equal(socket.get_rQ().length, 3);
});

test('the queue grows for what is not taken, and keeps every byte in order', () => {
    network().accept();
    const all = counting(1_000_000);
    for (let start = 0; start < all.length; start += 9_973) network().deliver(all.slice(start, start + 9_973));
    assert.equal(socket.rQlen(), all.length);
    assert.deepEqual(socket.rQshiftBytes(), all);
});

test('the queue compacts: a stream needs no more memory than what waits', () => {
    network().accept();
    const all = counting(10_000);
    network().deliver(all);
    for (let message = 0; message < 1_000; message++) {
        network().deliver(all);
        assert.deepEqual(socket.rQshiftBytes(all.length), all);
    }
    assert.equal(socket.rQlen(), all.length);
    assert.ok(socket.get_rQ().buffer.byteLength <= 1 << 17, `${socket.get_rQ().buffer.byteLength} bytes`);
});

test('the memory of a large message is given back', () => {
    received(...[]);
    network().deliver(new Uint8Array(5_000_000));
    socket.rQshiftBytes();
    network().deliver([1]);
    assert.ok(socket.get_rQ().buffer.byteLength <= 1 << 17, `${socket.get_rQ().buffer.byteLength} bytes`);
    assert.equal(socket.rQshift8(), 1);
});

test('what is sent before the connection is open follows when it is', () => {
    assert.equal(socket.send([1, 2]), false);
    assert.deepEqual(socket.get_sQ(), Uint8Array.of(1, 2));
    network().accept();
    assert.deepEqual(network().sentBytes, [1, 2]);
    assert.equal(socket.get_sQ().length, 0);
});

test('bytes, rows of numbers and strings are sent', () => {
    network().accept();
    assert.equal(socket.send(Uint8Array.of(1)), true);
    socket.send([2, 255]);
    socket.send_string('a\u00ff');
    assert.deepEqual(network().sent, [Uint8Array.of(1), Uint8Array.of(2, 255), Uint8Array.of(0x61, 0xff)]);
    assert.throws(() => socket.send_string('€'), RangeError);
});

test('base64 carries the same bytes as text', () => {
    network().accept('base64');
    socket.send([0, 255, 128]);
    assert.deepEqual(network().sent, ['AP+A']);
    network().deliver('AP+A');
    assert.deepEqual(socket.rQshiftBytes(), Uint8Array.of(0, 255, 128));
});

for (const [protocol, text] of [['', 'AP+A'], ['binary', 'AP+A'], ['base64', 'no base64!']]) {
    test(`the text '${text}' is an error in subprotocol '${protocol}', and closes`, () => {
        const errors = [];
        socket.on('error', (error) => errors.push(error.message));
        socket.on('message', () => assert.fail('nothing has arrived'));
        network().accept(protocol);
        network().deliver(text);
        assert.equal(errors.length, 1);
        assert.deepEqual(network().closedWith, { code: 4007, reason: errors[0] });
    });
}

test('what the network does not take stays in the send queue, and follows when it does', { timeout: 10_000 }, async () => {
    socket.maxBufferedAmount = 100_000;
    network().accept();
    const all = counting(300_000);
    assert.equal(socket.send(all), false);
    const held = network().bufferedAmount;
    assert.ok(held >= 100_000 && held < 100_000 + MESSAGE_SIZE, `${held} bytes`);
    assert.equal(socket.get_sQ().length, all.length - held);
    assert.equal(socket.flush(), false);
    assert.equal(network().bufferedAmount, held);

    network().bufferedAmount = 0;
    while (socket.get_sQ().length > 0) {
        const before = network().sent.length;
        while (network().sent.length === before) await new Promise(setImmediate);
        assert.ok(network().bufferedAmount < 100_000 + MESSAGE_SIZE);
        network().bufferedAmount = 0;
    }
    assert.deepEqual(Uint8Array.from(network().sentBytes), all);
    assert.equal(socket.flush(), true);
});

test('closing sends what waits first, and tells the code', () => {
    socket.maxBufferedAmount = 1;
    network().accept();
    const all = counting(100_000);
    socket.send(all);
    socket.close(4001, 'enough');
    assert.deepEqual(Uint8Array.from(network().sentBytes), all);
    assert.deepEqual(network().closedWith, { code: 4001, reason: 'enough' });
    assert.equal(socket.send([1]), false);
    assert.equal(socket.get_sQ().length, 0);
});

test('a connection that another has taken the place of is closed and no longer heard', () => {
    const heard = [];
    socket.on('message', () => heard.push(socket.rQshiftStr()));
    socket.on('close', ({ code }) => heard.push(code));
    const first = network();
    first.accept();
    first.deliver([0x61]);
    socket.open('ws://localhost/second');
    assert.deepEqual(first.closedWith, { code: 1000, reason: '' });
    first.deliver([0x62]);
    first.end(1000, '');
    network().accept();
    network().deliver([0x63]);
    assert.deepEqual(heard, ['a', 'c']);
});
