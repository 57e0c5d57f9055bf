/** Debian's noVNC, served by websockify, in front of a real VNC server that websockify wraps. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before } from 'node:test';

import * as harness from './harness.js';

const { canvasColours, certificate, openPage, scratch, startBrowser, startDesktop, startServer, startVnc, test, until } = harness;

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.close());

/** Sees the screen of a desktop and types a line into its xterm. */
async function use(t, options) {
    const file = join(await scratch(t), 'line');
    const { server } = await startDesktop(t, options, `read line; printf %s "$line" > ${file}; exec sleep 60`);
    const page = await openPage(t, browser, `${server.url}/vnc.html?autoconnect=true`, { ignoreHTTPSErrors: true });
    await sees(page, [800, 400]);
    await types(page, 'Hello, World? {42}', file);
    return { page, server };
}

/** Waits until a page shows a desktop of this size with something on it. */
async function sees(page, size) {
    await page.waitForSelector('.noVNC_connected canvas');
    await until('the canvas shows the terminal', async () => (await canvasColours(page)) > 1);
    assert.deepEqual(await page.$eval('canvas', ({ width, height }) => [width, height]), size);
}

/** Types a line, which is to arrive in this file. */
async function types(page, line, file) {
    await page.bringToFront();
    // Without a window manager, what is typed is for the window under the pointer.
    await page.locator('canvas').click();
    await page.keyboard.type(`${line}\n`);
    const arrived = await until('the line arrives', async () => existsSync(file) && (await readFile(file, 'utf8')));
    assert.equal(arrived, line);
}

test('noVNC shows the screen of a wrapped VNC server, and its keys arrive', async (t) => {
    const { page, server } = await use(t, []);
    assert.match(server.output('stderr'), /Plain non-SSL \(ws:\/\/\) WebSocket connection/);
    await page.evaluate(() => document.querySelector('#noVNC_disconnect_button').click());
    await page.waitForSelector('#noVNC_connect_button', { state: 'visible' });
    await until('the session has ended', () => / from the client, \d+ from the target/.test(server.output('stderr')));
});

test('noVNC works with a certificate that the server signed itself', async (t) => {
    const { server } = await use(t, ['--cert', await certificate(t)]);
    assert.match(server.output('stderr'), /SSL\/TLS \(wss:\/\/\) WebSocket connection/);
});

test('two tabs with two tokens show two desktops, to those who log in', async (t) => {
    const directory = await scratch(t);
    const desktops = [
        { token: 'aardvark 1', size: [800, 400] },
        { token: 'wombat&2', size: [640, 320] },
    ];
    for (const desktop of desktops) {
        desktop.file = join(directory, `${desktop.size}`);
        const command = `read line; printf %s "$line" > ${desktop.file}; exec sleep 60`;
        desktop.socket = await startVnc(t, desktop.size.join('x'), command);
    }
    const tokens = join(directory, 'tokens');
    await writeFile(tokens, desktops.map(({ token, socket }) => `${token}: unix_socket:${socket}\n`).join(''));
    const login = ['--auth-plugin', 'BasicHTTPAuth', '--auth-source', 'ünser:geheim', '--web-auth'];
    const server = await startServer(t, ['--web', harness.NOVNC, '--target-config', tokens, ...login], []);
    const credentials = { httpCredentials: { username: 'ünser', password: 'geheim' } };
    const first = await openPage(t, browser, `${server.url}/vnc.html`, credentials);
    const tabs = [first, await first.context().newPage()];
    for (const [number, { token, size }] of desktops.entries()) {
        const path = encodeURIComponent(`websockify?token=${encodeURIComponent(token)}`);
        await tabs[number].goto(`${server.url}/vnc.html?autoconnect=true&path=${path}`);
        await sees(tabs[number], size);
    }
    for (const [number, { file }] of desktops.entries()) await types(tabs[number], `for ${number}`, file);
    assert.doesNotMatch(server.output('stderr'), /aardvark|wombat/);
    const stranger = await openPage(t, browser, 'about:blank');
    assert.equal((await stranger.request.get(`${server.url}/vnc.html`)).status(), 401);
});
