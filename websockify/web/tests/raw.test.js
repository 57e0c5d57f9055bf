/** The terminal page in raw mode, in front of programs that read and write lines. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before } from 'node:test';

import { openPage, shows, startBrowser, startServer, startTarget, state, test, until, WEB } from './harness.js';

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.close());

/** A page that is connected to a program which greets, keeps what it gets, and answers each piece of it. */
async function session(t, query = '', greeting = 'hello\n') {
    const pieces = [];
    const target = await startTarget(t, (socket) => {
        socket.write(greeting);
        socket.setEncoding('utf8').on('data', (piece) => {
            pieces.push(piece);
            socket.write(`<${JSON.stringify(piece)}>\n`);
        });
    });
    const server = await startServer(t, ['--web', WEB], [target.address]);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?protocol=raw&autoconnect=1${query}`);
    await state(page, 'connected');
    await shows(page, /hello/);
    return { page, pieces };
}

test('a line is shown and corrected here, and sent when it ends', async (t) => {
    const { page, pieces } = await session(t);
    await page.keyboard.type('größenxx');
    await shows(page, /^größenxx$/m);
    await page.keyboard.press('Backspace');
    await page.keyboard.press('Backspace');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.type('er');
    await page.keyboard.press('Enter');
    await shows(page, /^hello\ngrößener\n<"größener\\n">$/);
    assert.deepEqual(pieces, ['größener\n']);
});

test('lines end with CR LF for programs that want that', async (t) => {
    const { page, pieces } = await session(t, '&newline=crlf');
    await page.keyboard.type('HELO\n');
    await shows(page, /^<"HELO\\r\\n">$/m);
    assert.deepEqual(pieces, ['HELO\r\n']);
});

test('a line that runs over the end of a row is corrected to its start', async (t) => {
    const { page, pieces } = await session(t);
    const columns = await page.evaluate(() => {
        const screen = document.querySelector('.xterm-screen').clientWidth;
        const [row] = document.querySelectorAll('.xterm-rows > div');
        return Math.round(screen / (row.firstElementChild.getBoundingClientRect().width / 'hello'.length));
    });
    const long = 'x'.repeat(columns + 5);
    await page.keyboard.insertText(long);
    await shows(page, /^hello\nx+\nx{5}$/);
    for (let count = 0; count < long.length; count++) await page.keyboard.press('Backspace');
    await shows(page, /^hello$/);
    await page.keyboard.type('y\n');
    await shows(page, /^hello\ny\n<"y\\n">$/);
    assert.deepEqual(pieces, ['y\n']);
});

test('more than the terminal can show at once arrives whole', async (t) => {
    const lines = Array.from({ length: 200_000 }, (_, index) => `line ${index} of many\n`);
    const { page } = await session(t, '', `${lines.join('')}hello\n`);
    await shows(page, /line 199998 of many\nline 199999 of many\nhello$/);
});

test('nothing is sent to the program that nobody typed', async (t) => {
    const { page, pieces } = await session(t, '', 'hello\n\xff\xfd\x18\n');
    await page.keyboard.type('\n');
    await until('the line arrives', () => pieces.length > 0);
    assert.deepEqual(pieces, ['\n']);
});

test("the token of the query is in the WebSocket's path, and not on the page", async (t) => {
    const requests = [];
    const gate = createServer().on('upgrade', (request, socket) => {
        requests.push(request.url);
        socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n');
    });
    gate.listen(0, '127.0.0.1');
    await once(gate, 'listening');
    t.after(() => gate.close());
    const { port } = gate.address();
    const server = await startServer(t, ['--web', WEB], ['127.0.0.1:1']);
    const query = `protocol=raw&autoconnect=1&port=${port}&token=se+cr%2Fet%26`;
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?${query}`);
    assert.match(await state(page, 'closed'), /1006/);
    await page.goto(`${server.url}/wstelnet.html?${query}&path=/some/where`);
    assert.match(await state(page, 'closed'), /1006/);
    assert.deepEqual(requests, ['/?token=se%20cr%2Fet%26', '/some/where?token=se%20cr%2Fet%26']);
    assert.doesNotMatch(await page.textContent('body'), /se.cr/);
});
