/** The telnet protocol, without a server. Each dialogue is tried with the server's bytes cut at every place. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { OptionState, Telnet } from '../telnet.js';

const [SE, NOP, SB, WILL, WONT, DO, DONT, IAC] = [240, 241, 250, 251, 252, 253, 254, 255];
const [BINARY, ECHO, SGA, STATUS, TERMINAL_TYPE, NAWS, LINEMODE, NEW_ENVIRON] = [0, 1, 3, 5, 24, 31, 34, 39];
const [IS, SEND] = [0, 1];
/** What is asked and offered once the server has spoken telnet. */
const OPENING = [IAC, DO, SGA, IAC, WILL, NAWS];
const SIZE_80x24 = [IAC, SB, NAWS, 0, 80, 0, 24, IAC, SE];

const bytesOf = (text) => [...new TextEncoder().encode(text)];

/** A `Telnet` with what it has sent and shown. */
function start(options = {}) {
    const session = { sent: [], shown: [] };
    session.telnet = new Telnet({
        columns: 80,
        rows: 24,
        send: (bytes) => session.sent.push(...bytes),
        data: (bytes) => session.shown.push(...bytes),
        ...options,
    });
    session.receive = (...bytes) => session.telnet.receive(Uint8Array.from(bytes));
    session.write = (...bytes) => session.telnet.write(Uint8Array.from(bytes));
    /** What is sent for that. */
    session.answer = (...bytes) => {
        session.sent = [];
        session.receive(...bytes);
        return session.sent;
    };
    return session;
}

/** A session whose opening is over. */
function negotiated(options) {
    const session = start(options);
    session.receive(IAC, WILL, SGA, IAC, DONT, NAWS);
    return session;
}

/** Runs the dialogue in one piece, in two pieces cut at every place, and byte by byte. */
function everyWay(input, check) {
    for (let cut = 0; cut <= input.length; cut++) {
        const session = start();
        session.receive(...input.slice(0, cut));
        session.receive(...input.slice(cut));
        check(session);
    }
    const session = start();
    for (const byte of input) session.receive(byte);
    check(session);
}

test('text passes, and nothing is sent to a server that does not speak telnet', () => {
    everyWay(bytesOf('login: größer'), ({ sent, shown }) => {
        assert.deepEqual(shown, bytesOf('login: größer'));
        assert.deepEqual(sent, []);
    });
});

test('an IAC in the data is doubled on its way out, and halved on its way in', () => {
    const session = start();
    session.write(1, IAC, 2, IAC, IAC);
    assert.deepEqual(session.sent, [1, IAC, IAC, 2, IAC, IAC, IAC, IAC]);
    everyWay([1, IAC, IAC, 2, IAC, IAC, IAC, IAC], ({ shown }) => assert.deepEqual(shown, [1, IAC, 2, IAC, IAC]));
});

test('a lone carriage return is marked with NUL, a line ends with CR LF', () => {
    const session = start();
    session.write(...bytesOf('a\rb\r\nc\r'));
    assert.deepEqual(session.sent, bytesOf('a\r\0b\r\nc\r\0'));
    everyWay(bytesOf('a\r\0b\r\nc\r\r\0\0'), ({ shown }) => assert.deepEqual(shown, bytesOf('a\rb\r\nc\r\r\0')));
});

test('the mark of a carriage return is found behind a command', () => {
    everyWay([13, IAC, NOP, 0, 65], ({ shown }) => assert.deepEqual(shown, [13, 65]));
});

test('with BINARY all 256 byte values pass as they are, in each direction of its own', () => {
    const all = Array.from({ length: 256 }, (_, byte) => byte);
    const doubled = all.flatMap((byte) => (byte === IAC ? [IAC, IAC] : [byte]));
    const session = negotiated();
    session.receive(IAC, WILL, BINARY, 13, 0, ...doubled);
    assert.deepEqual(session.shown, [13, 0, ...all]);
    session.sent = [];
    session.write(13, 65);
    assert.deepEqual(session.sent, [13, 0, 65], 'the other direction is not binary');
    assert.deepEqual(session.answer(IAC, DO, BINARY), [IAC, WILL, BINARY]);
    session.sent = [];
    session.write(13, 0, ...all);
    assert.deepEqual(session.sent, [13, 0, ...doubled]);
});

test('commands without an option are left out of the data', () => {
    const commands = Array.from({ length: 10 }, (_, index) => [IAC, NOP + index - 1, 65]).flat();
    everyWay(commands.slice(0, -3), ({ shown, sent }) => {
        assert.deepEqual(shown, Array(9).fill(65));
        assert.deepEqual(sent, []);
    });
});

test('with the first command the size is offered and a go-ahead forgone, once', () => {
    everyWay([IAC, WONT, STATUS, IAC, WONT, STATUS], ({ sent }) => assert.deepEqual(sent, OPENING));
});

test('options that we have are agreed to, and others are refused', () => {
    const session = negotiated();
    for (const option of [BINARY, ECHO]) assert.deepEqual(session.answer(IAC, WILL, option), [IAC, DO, option]);
    for (const option of [BINARY, SGA, TERMINAL_TYPE]) {
        assert.deepEqual(session.answer(IAC, DO, option), [IAC, WILL, option]);
    }
    for (const option of [ECHO, STATUS, LINEMODE, NEW_ENVIRON, 200, 255]) {
        assert.deepEqual(session.answer(IAC, DO, option), [IAC, WONT, option], `DO ${option}`);
    }
    for (const option of [STATUS, TERMINAL_TYPE, NAWS, LINEMODE, NEW_ENVIRON, 200, 255]) {
        assert.deepEqual(session.answer(IAC, WILL, option), [IAC, DONT, option], `WILL ${option}`);
    }
});

test('NEW-ENVIRON is refused as often as it is asked for, and its sub-negotiation is not answered', () => {
    const session = negotiated();
    const asked = [IAC, DO, NEW_ENVIRON];
    assert.deepEqual(session.answer(...asked, ...asked), [IAC, WONT, NEW_ENVIRON, IAC, WONT, NEW_ENVIRON]);
    assert.deepEqual(session.answer(IAC, SB, NEW_ENVIRON, SEND, IAC, SE, 65), []);
    assert.deepEqual(session.shown, [65]);
});

test('a command that only confirms what is so is not answered', () => {
    const session = negotiated();
    session.receive(IAC, WILL, ECHO, IAC, DO, TERMINAL_TYPE);
    assert.deepEqual(session.answer(IAC, WILL, ECHO, IAC, DO, TERMINAL_TYPE, IAC, WILL, SGA), []);
    assert.deepEqual(session.answer(IAC, WONT, STATUS, IAC, DONT, STATUS), []);
});

test('an option that the server ends is given up, once, and can be had again', () => {
    const session = negotiated();
    session.receive(IAC, WILL, ECHO);
    assert.equal(session.telnet.localEcho, false);
    assert.deepEqual(session.answer(IAC, WONT, ECHO, IAC, WONT, ECHO), [IAC, DONT, ECHO]);
    assert.equal(session.telnet.localEcho, true);
    assert.deepEqual(session.answer(IAC, WILL, ECHO), [IAC, DO, ECHO]);
    session.receive(IAC, DO, TERMINAL_TYPE);
    assert.deepEqual(session.answer(IAC, DONT, TERMINAL_TYPE, IAC, DONT, TERMINAL_TYPE), [IAC, WONT, TERMINAL_TYPE]);
});

test('offers that cross, and answers to them, are agreements and need no other word', () => {
    const session = start();
    // Both ask at the same moment: our DO SGA and WILL NAWS cross the server's WILL SGA and DO NAWS.
    session.receive(IAC, WILL, SGA, IAC, DO, NAWS);
    assert.deepEqual(session.sent, [...OPENING, ...SIZE_80x24]);
    assert.deepEqual(session.answer(IAC, WILL, SGA, IAC, DO, NAWS), []);
});

test('refused offers are not repeated', () => {
    const session = start();
    session.receive(IAC, WONT, SGA, IAC, DONT, NAWS, IAC, WONT, SGA, IAC, DONT, NAWS);
    assert.deepEqual(session.sent, OPENING);
    session.sent = [];
    session.telnet.resize(100, 30);
    assert.deepEqual(session.sent, []);
});

test('two of us that talk to each other come to an end', () => {
    const options = [BINARY, ECHO, SGA, TERMINAL_TYPE, NAWS, NEW_ENVIRON];
    const first = [WILL, WONT, DO, DONT].flatMap((verb) => options.map((option) => [IAC, verb, option]));
    for (const command of first) {
        const queues = [[...command], []];
        const sides = queues.map(
            (queue) => new Telnet({ columns: 80, rows: 24, data: () => {}, send: (bytes) => queue.push(...bytes) }),
        );
        let turns = 0;
        for (let side = 0; queues.some((queue) => queue.length > 0); side = 1 - side) {
            sides[1 - side].receive(Uint8Array.from(queues[side].splice(0)));
            turns += 1;
            assert.ok(turns < 20, `after ${command} they talk for ever`);
        }
    }
});

test('each state of an option goes on as RFC 1143 says', () => {
    // What is said, and the state after it. An asterisk stands for the queue that holds the opposite.
    const table = {
        // heard yes, heard no, wants yes, wants no
        'no': [['DO', 'yes'], ['', 'no'], ['DO', 'wantyes'], ['', 'no']],
        'yes': [['', 'yes'], ['DONT', 'no'], ['', 'yes'], ['DONT', 'wantno']],
        'wantno': [['', 'no'], ['', 'no'], ['', 'wantno*'], ['', 'wantno']],
        'wantno*': [['', 'yes'], ['DO', 'wantyes'], ['', 'wantno*'], ['', 'wantno']],
        'wantyes': [['', 'yes'], ['', 'no'], ['', 'wantyes'], ['', 'wantyes*']],
        'wantyes*': [['DONT', 'wantno'], ['', 'no'], ['', 'wantyes'], ['', 'wantyes*']],
    };
    const events = {
        'heard yes': (option) => option.heardYes(true),
        'heard no': (option) => option.heardNo(),
        'wants yes': (option) => option.ask(true),
        'wants no': (option) => option.ask(false),
    };
    for (const [before, row] of Object.entries(table)) {
        Object.entries(events).forEach(([event, act], column) => {
            let said = '';
            const option = new OptionState('DO', 'DONT', (command) => (said += command));
            [option.state, option.opposite] = [before.replace('*', ''), before.endsWith('*')];
            act(option);
            const after = option.state + (option.opposite ? '*' : '');
            assert.deepEqual([said, after], row[column], `${before}, ${event}`);
            assert.equal(option.enabled, after === 'yes');
        });
    }
});

test('the terminal type is told when it is asked for, in pieces too', () => {
    const name = [...'XTERM-256COLOR'].map((character) => character.charCodeAt(0));
    const request = [IAC, SB, TERMINAL_TYPE, SEND, IAC, SE];
    const reply = [IAC, SB, TERMINAL_TYPE, IS, ...name, IAC, SE];
    everyWay([IAC, DO, TERMINAL_TYPE, ...request, 65, ...request], ({ sent, shown }) => {
        assert.deepEqual(sent, [...OPENING, IAC, WILL, TERMINAL_TYPE, ...reply, ...reply]);
        assert.deepEqual(shown, [65]);
    });
    const other = negotiated({ terminalType: 'VT100' });
    other.receive(IAC, DO, TERMINAL_TYPE);
    assert.deepEqual(other.answer(...request), [IAC, SB, TERMINAL_TYPE, IS, ...bytesOf('VT100'), IAC, SE]);
});

test('the terminal type is not told to a server that has not agreed on it', () => {
    assert.deepEqual(negotiated().answer(IAC, SB, TERMINAL_TYPE, SEND, IAC, SE), []);
});

test('the size is told when it is agreed on and whenever it changes, with 255 doubled', () => {
    const session = start({ columns: 255, rows: 65_535 });
    session.telnet.resize(255, 767);
    assert.deepEqual(session.sent, [], 'not before the server has asked');
    assert.deepEqual(session.answer(IAC, DO, NAWS), [
        ...OPENING,
        ...[IAC, SB, NAWS, 0, IAC, IAC, 2, IAC, IAC, IAC, SE],
    ]);
    session.sent = [];
    session.telnet.resize(300, 50);
    assert.deepEqual(session.sent, [IAC, SB, NAWS, 1, 44, 0, 50, IAC, SE]);
    session.receive(IAC, DONT, NAWS);
    session.sent = [];
    session.telnet.resize(80, 24);
    assert.deepEqual(session.sent, []);
    assert.deepEqual(session.answer(IAC, DO, NAWS), [IAC, WILL, NAWS, ...SIZE_80x24]);
});

test('lines are edited here until the server forgoes the go-ahead, and shown here until it echoes', () => {
    const { telnet, receive } = start();
    assert.deepEqual([telnet.lineMode, telnet.localEcho], [true, true]);
    receive(IAC, WILL, ECHO);
    assert.deepEqual([telnet.lineMode, telnet.localEcho], [true, false]);
    receive(IAC, WILL, SGA);
    assert.deepEqual([telnet.lineMode, telnet.localEcho], [false, false]);
});

test('an IAC within a sub-negotiation is data when it is doubled', () => {
    everyWay([IAC, DO, TERMINAL_TYPE, IAC, SB, TERMINAL_TYPE, SEND, IAC, IAC, IAC, SE, 65], ({ sent, shown }) => {
        assert.deepEqual(sent, [...OPENING, IAC, WILL, TERMINAL_TYPE], 'that was no request for the terminal type');
        assert.deepEqual(shown, [65]);
    });
});

test('a sub-negotiation that is never ended gives way to the next command', () => {
    everyWay([IAC, SB, TERMINAL_TYPE, SEND, IAC, WILL, ECHO, 65], ({ sent, shown }) => {
        assert.deepEqual(sent, [...OPENING, IAC, DO, ECHO]);
        assert.deepEqual(shown, [65]);
    });
});

test('a sub-negotiation of any length is passed over', () => {
    const session = negotiated();
    session.receive(IAC, DO, TERMINAL_TYPE);
    session.receive(IAC, SB, TERMINAL_TYPE, SEND);
    for (let piece = 0; piece < 1_000; piece++) session.receive(...Array(100).fill([SEND, IAC, IAC]).flat());
    assert.deepEqual(session.answer(IAC, SE, 65), []);
    assert.deepEqual(session.shown, [65]);
});
