/** The terminal page in front of telnetd, which websockify wraps. */
import assert from 'node:assert/strict';
import { after, before, describe } from 'node:test';

import * as harness from './harness.js';

const { openPage, rows, shows, startServer, startTelnetd, state, test, until, WEB } = harness;

/** A session whose login program is a shell, so that nobody needs a password. */
const SHELL = `PS1='ready> ' exec /bin/sh -i`;

let browser;
before(async () => (browser = await harness.startBrowser()));
after(() => browser?.close());

const connected = async (test, server, options) => {
    const page = await openPage(test, browser, `${server.url}/wstelnet.html?autoconnect=1`, options);
    await state(page, 'connected');
    return page;
};

// telnetd started this way sleeps for seconds before each session: at the same time, they cost no more than one.
describe('a session with telnetd', { concurrency: true }, () => {
    test('telnetd asks for a name in the terminal, and what is typed is shown', async (t) => {
        const server = await startTelnetd(t);
        const page = await connected(t, server);
        await shows(page, /login:$/);
        await page.keyboard.type('nobody');
        await shows(page, /login: nobody$/);
        await page.keyboard.press('Backspace');
        await page.keyboard.press('Backspace');
        await page.keyboard.type('y\n');
        await shows(page, /login: noboy\nPassword:$/);
    });

    test('text in all scripts reaches the program and comes back', async (t) => {
        const server = await startTelnetd(t, await harness.script(t, 'stty -echo; echo ready; read line; echo "<$line>"; cat'));
        const page = await connected(t, server);
        await shows(page, /ready/);
        await page.keyboard.insertText('größer Ωλ 語 😀');
        await page.keyboard.press('Enter');
        await shows(page, /<größer Ωλ 語 😀>/);
    });

    test("the session's size follows the window", async (t) => {
        const server = await startTelnetd(t, await harness.script(t, SHELL));
        const page = await connected(t, server);
        await shows(page, /ready>$/);
        const sizes = [];
        for (const [width, height] of [[1000, 700], [700, 500], [390, 780]]) {
            await page.setViewportSize({ width, height });
            const size = await until('stty tells the size that the terminal has', async () => {
                // A line longer than any window breaks where the terminal ends.
                await page.keyboard.type('clear; stty size; seq -s: 100; echo d"on"e\n');
                await shows(page, /^done$/m);
                const lines = await rows(page);
                const height = await page.locator('.xterm-rows > div').count();
                const size = `${height} ${lines[1]?.length}`;
                return lines[0] === size && !sizes.includes(size) && size;
            });
            sizes.push(size);
        }
        const [large, middle, narrow] = sizes.map((size) => size.split(' ').map(Number));
        assert.ok(large[0] > middle[0] && large[1] > middle[1] && middle[1] > narrow[1], sizes.join(', '));
        assert.ok(narrow[1] >= 45, `a phone has ${narrow[1]} columns`);
    });

    test('a session that ends is told with code and reason, and another can be begun', async (t) => {
        const server = await startTelnetd(t, await harness.script(t, SHELL));
        const page = await connected(t, server);
        for (let session = 0; session < 2; session++) {
            await shows(page, /ready>$/);
            // One after the other: telnetd forgets what it has not sent yet when the shell ends.
            await page.keyboard.type('echo se"ss"ion\n');
            await shows(page, /^session$/m);
            await page.keyboard.type('exit\n');
            assert.equal(await state(page, 'closed'), 'Closed (1000): Target closed');
            assert.ok(await page.isEnabled('input[name=host]'));
            // The focus is where the only sensible key is.
            await page.keyboard.press('Enter');
            assert.equal(await state(page, 'connected'), `Connected to ws://127.0.0.1:${server.port}`);
            await until('the terminal is empty for the new session', async () => !(await rows(page)).includes('session'));
        }
    });

    test('the keyboard alone connects, uses the terminal, leaves it, disconnects and connects again', async (t) => {
        const server = await startTelnetd(t);
        const page = await openPage(t, browser, `${server.url}/wstelnet.html`);
        assert.equal(await state(page, 'idle'), 'Not connected');
        await page.keyboard.press('Enter');
        await state(page, 'connected');
        await shows(page, /login:$/);
        await page.keyboard.type('guest');
        await shows(page, /login: guest$/);
        await page.keyboard.press('Tab');
        assert.equal(await page.evaluate(() => document.activeElement.className), 'xterm-helper-textarea');
        await page.keyboard.press('Control+F6');
        assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Disconnect');
        await page.keyboard.press('Enter');
        assert.equal(await state(page, 'closed'), 'Closed (1000): the session has ended');
        await page.keyboard.press('Enter');
        await state(page, 'connected');
    });
});

test('a program that cannot be reached, and a server that is stopped, are told', async (t) => {
    const server = await startServer(t, ['--web', WEB], ['127.0.0.1:1']);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?autoconnect=1`);
    assert.match(await state(page, 'closed'), /^Closed \(1011\): \S/);

    const target = await harness.startTarget(t, () => {});
    const other = await startServer(t, [], [target.address]);
    await page.fill('input[name=port]', String(other.port));
    await page.click('#connect');
    await state(page, 'connected');
    await other.stop();
    assert.match(await state(page, 'closed'), /^Closed \(1001\): \S/);
    await page.click('#reconnect');
    await page.waitForSelector('text="Closed (1006): the connection could not be made, or was lost"');
});

test('twenty reloads leave no connection behind in the server', async (t) => {
    const target = await harness.startTarget(t, (socket) => socket.write('hello\r\n'));
    const server = await startServer(t, ['--web', WEB], [target.address]);
    const page = await connected(t, server);
    for (let reload = 0; reload < 20; reload++) {
        await shows(page, /hello/);
        await page.reload();
        await state(page, 'connected');
        await until('the session before has ended', () => target.sockets.size === 1);
    }
    assert.ok(harness.connectionsAt(server.port) > 0, 'connections are found');
    await page.goto('about:blank');
    await until('the program has no connection', () => target.sockets.size === 0);
    // Until then the browser keeps some for more files.
    await page.context().close();
    await until('the server has no connection', () => harness.connectionsAt(server.port) === 0);
});
