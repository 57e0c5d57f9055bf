/** The pages as such: what they say, where they lead, and how they look on a small screen. */
import assert from 'node:assert/strict';
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { after, before } from 'node:test';

import * as harness from './harness.js';

const { certificate, openPage, scratch, shows, startServer, startTarget, state, test, until, WEB } = harness;

let browser;
before(async () => (browser = await harness.startBrowser()));
after(() => browser?.close());

/** A server whose program says nothing. */
async function quiet(t, web = WEB) {
    const target = await startTarget(t, () => {});
    return startServer(t, ['--web', web], [target.address]);
}

/** A copy of the pages that a test may change. */
async function copy(t) {
    const directory = await scratch(t);
    const wanted = (path) => !/^(node_modules|tests)(\/|$)/.test(relative(WEB, path));
    await cp(WEB, directory, { recursive: true, filter: wanted });
    return directory;
}

test('the index page says what is running where, and leads to the terminal', async (t) => {
    const server = await quiet(t);
    const page = await openPage(t, browser, `${server.url}/`);
    assert.match(await page.textContent('h1'), /websockify is running/);
    await page.waitForSelector(`text="ws://127.0.0.1:${server.port}/"`);
    await page.click('text=Line by line');
    await state(page, 'idle');
    assert.equal(await page.getByLabel('Protocol').inputValue(), 'raw');
    await page.click('text=websockify');
    await page.click('text="Terminal"');
    await state(page, 'idle');
    assert.equal(await page.getByLabel('Protocol').inputValue(), 'telnet');
});

test('the index page leads to noVNC if that is there, and says how to get it if not', async (t) => {
    const directory = await copy(t);
    const server = await quiet(t, directory);
    const page = await openPage(t, browser, `${server.url}/`);
    await page.waitForSelector('text="--web /usr/share/novnc"');
    await mkdir(join(directory, 'novnc'));
    await writeFile(join(directory, 'novnc', 'vnc.html'), '<title>VNC</title>');
    await page.reload();
    await page.waitForSelector('text=its screen, keyboard and mouse');
    await page.click('text=noVNC');
    await page.waitForURL(`${server.url}/novnc/vnc.html`);
});

test('a terminal that was not built is said to be missing', async (t) => {
    const directory = await copy(t);
    await rm(join(directory, 'dist'), { recursive: true });
    const server = await quiet(t, directory);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?autoconnect=1`);
    assert.match(await state(page, 'missing'), /dist\/xterm\.js has not been built.*make run/);
    assert.ok(await page.isDisabled('#connect'));
});

test('the form has the place that the page came from, or what the query says', async (t) => {
    const server = await quiet(t);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html`);
    const form = async () => [
        await page.getByLabel('Host').inputValue(),
        await page.getByLabel('Port').inputValue(),
        await page.getByLabel('Protocol').inputValue(),
        await page.getByLabel('Encrypt').isChecked(),
    ];
    assert.deepEqual(await form(), ['127.0.0.1', String(server.port), 'telnet', false]);
    await page.goto(`${server.url}/wstelnet.html?host=::1&port=99&encrypt=1&protocol=raw`);
    await state(page, 'idle');
    assert.deepEqual(await form(), ['::1', '99', 'raw', true]);
    await page.click('#connect');
    await page.waitForSelector('text="Closed (1006): the connection could not be made, or was lost"');
    await page.fill('input[name=host]', 'no[host');
    await page.click('#connect');
    await page.waitForSelector('text=/Closed: .*no\\[host/');
});

test('a form without a port asks for it, and connects to nothing', async (t) => {
    const server = await quiet(t);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?port=0&autoconnect=1`);
    await state(page, 'idle');
    assert.equal(await page.evaluate(() => document.querySelector('input:invalid').name), 'port');
});

test('a page that came encrypted connects encrypted', async (t) => {
    const target = await startTarget(t, (socket) => socket.write('hello\r\n'));
    const server = await startServer(t, ['--web', WEB, '--cert', await certificate(t)], [target.address]);
    const page = await openPage(t, browser, `${server.url}/`, { ignoreHTTPSErrors: true });
    await page.waitForSelector(`text="wss://127.0.0.1:${server.port}/"`);
    await page.click('text="Terminal"');
    await state(page, 'idle');
    assert.ok(await page.getByLabel('Encrypt').isChecked());
    await page.click('#connect');
    assert.equal(await state(page, 'connected'), `Connected to wss://127.0.0.1:${server.port}`);
    await shows(page, /hello/);
    await page.click('#connect');
    await state(page, 'closed');
    // What the browser itself refuses is told in its words.
    await page.getByLabel('Host').fill('192.0.2.1');
    await page.getByLabel('Encrypt').uncheck();
    await page.click('#connect');
    await page.waitForSelector('text=/Closed: .*insecure/');
});

test('everything that the pages load comes from their server', async (t) => {
    const server = await quiet(t);
    const page = await openPage(t, browser, 'about:blank');
    const requests = [];
    page.on('request', (request) => requests.push(request.url()));
    for (const path of ['/', '/wstelnet.html']) await page.goto(server.url + path, { waitUntil: 'networkidle' });
    assert.ok(requests.length > 10);
    assert.deepEqual(requests.filter((url) => !url.startsWith(`${server.url}/`)), []);
});

test('on a phone nothing is wider than the screen, and fingers find the keys', async (t) => {
    const server = await quiet(t);
    const options = { viewport: { width: 320, height: 640 }, hasTouch: true, isMobile: true };
    const page = await openPage(t, browser, `${server.url}/`, options);
    const fits = async (what) => {
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= 320, `${what} is ${width} pixels wide`);
    };
    await fits('the index page');
    await page.goto(`${server.url}/wstelnet.html`);
    await state(page, 'idle');
    await fits('the form');
    await page.tap('text="Connect"');
    await state(page, 'connected');
    await fits('the session');
    assert.ok(await page.isHidden('input[name=host]'), 'the session has the screen for itself');
    assert.ok(await page.isVisible('text="Esc"'));
    await page.tap('text="Disconnect"');
    await state(page, 'closed');
    await fits('the end');
    assert.ok(await page.isVisible('text="Reconnect"'));
    assert.ok(await page.isVisible('input[name=host]'));
});

test('the keys beside the terminal send what those of a keyboard send', async (t) => {
    let received = '';
    const target = await startTarget(t, (socket) => {
        // The telnet server does the rest: characters are sent one by one, and none is echoed here.
        socket.write(Buffer.of(255, 251, 1, 255, 251, 3));
        socket.on('data', (bytes) => (received += bytes.toString('latin1')));
    });
    const server = await startServer(t, ['--web', WEB], [target.address]);
    const options = { viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true };
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?autoconnect=1`, options);
    await state(page, 'connected');
    const sends = (text) => until(`${JSON.stringify(text)} is sent`, () => received.endsWith(text));
    await sends('\xff\xfd\x01');
    for (const key of ['Esc', 'Tab', '←', '↑', '↓', '→']) await page.tap(`text="${key}"`);
    await sends('\x1b\t\x1b[D\x1b[A\x1b[B\x1b[C');
    await page.tap('text="Ctrl"');
    assert.equal(await page.getAttribute('[data-key=Control]', 'aria-pressed'), 'true');
    await page.keyboard.type('cc');
    await sends('\x1b[C\x03c');
    assert.equal(await page.getAttribute('[data-key=Control]', 'aria-pressed'), 'false');
    [...target.sockets][0].write('\x1b[?1h\x1b]0;a title\x07');
    await page.waitForFunction(() => document.title.startsWith('a title'));
    await page.tap('text="↑"');
    await sends('\x1bOA');
});

test('the pages are dark or light as the system is, from one moment to the next', async (t) => {
    const server = await quiet(t);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html`, { colorScheme: 'light' });
    await state(page, 'idle');
    const colours = () =>
        page.evaluate(() =>
            ['body', '.screen', '.xterm-rows'].map((selector) => {
                const { backgroundColor, color } = getComputedStyle(document.querySelector(selector));
                return `${backgroundColor} ${color}`;
            }),
        );
    const light = await colours();
    for (const [scheme, differs] of [['dark', true], ['light', false]]) {
        await page.emulateMedia({ colorScheme: scheme });
        await until(`all is ${scheme}`, async () =>
            (await colours()).every((colour, index) => (colour !== light[index]) === differs),
        );
    }
});

test('a screen reader can be given the screen', async (t) => {
    const target = await startTarget(t, (socket) => socket.write('the screen\r\n'));
    const server = await startServer(t, ['--web', WEB], [target.address]);
    const page = await openPage(t, browser, `${server.url}/wstelnet.html?autoconnect=1`);
    await state(page, 'connected');
    assert.equal(await page.locator('.xterm-accessibility').count(), 0);
    await page.getByLabel('Screen reader').check();
    await page.waitForSelector('.xterm-accessibility >> text=the screen');
});
