/** Editing of lines, and the raw mode that uses it. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { Line } from '../line.js';
import { Raw } from '../raw.js';

let shown, lines, line;

/** What takes back so many cells, over the ends of rows too. */
const takenBack = (cells) => `\x1b[?45h${'\b \b'.repeat(cells)}\x1b[?45l`;

beforeEach(() => {
    shown = '';
    lines = [];
    line = new Line({ show: (text) => (shown += text), submit: (text) => lines.push(text) });
});

test('a line is shown while it is typed, and sent when it ends', () => {
    line.type('h', true);
    line.type('i', true);
    assert.deepEqual(lines, []);
    line.type('\r', true);
    assert.deepEqual(lines, ['hi']);
    assert.equal(shown, 'hi\r\n');
});

test('text that is pasted is sent line by line, whatever its lines end with', () => {
    line.type('a\r\nb\nc\rd', true);
    assert.deepEqual(lines, ['a', 'b', 'c']);
    line.type('\r', true);
    assert.equal(lines[3], 'd');
});

test('what is typed in secret is sent, and not shown', () => {
    line.type('secret\x7f\r', false);
    assert.deepEqual(lines, ['secre']);
    assert.equal(shown, '');
});

test('Backspace takes back a character, as wide as it is, and nothing when there is none', () => {
    line.type('\x7fa語\u0007\u0301', true);
    shown = '';
    line.type('\x7f', true);
    assert.equal(shown, '');
    line.type('\b', true);
    assert.equal(shown, takenBack(2), 'shown as ^G');
    shown = '';
    line.type('\x7f', true);
    assert.equal(shown, takenBack(2));
    shown = '';
    line.type('\x7f\x7f', true);
    assert.equal(shown, takenBack(1));
    line.type('\r', true);
    assert.deepEqual(lines, ['']);
});

test('Ctrl-U takes back the line', () => {
    line.type('abc\x15x\r', true);
    assert.equal(shown, `abc${takenBack(3)}x\r\n`);
    assert.deepEqual(lines, ['x']);
});

test('other control characters are part of the line, and shown in words that a terminal does not obey', () => {
    line.type('\x03\t\x9b\r', true);
    assert.equal(shown, '^C^I?\r\n');
    assert.deepEqual(lines, ['\x03\t\x9b']);
});

test('keys that send several characters do nothing', () => {
    line.type('\x1b[A', true);
    line.type('\x1bOP', true);
    line.type('\r', true);
    assert.deepEqual(lines, ['']);
});

test('raw mode changes no byte', () => {
    const sent = [];
    const received = [];
    const raw = new Raw({ send: (bytes) => sent.push(...bytes), data: (bytes) => received.push(...bytes) });
    const all = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    raw.write(all);
    raw.receive(all);
    assert.deepEqual([sent, received], [[...all], [...all]]);
    assert.equal(raw.newline, '\n');
    assert.equal(new Raw({ newline: '\r\n' }).newline, '\r\n');
});
