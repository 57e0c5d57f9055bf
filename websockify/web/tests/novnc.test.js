/** Debian's noVNC, served by websockify, in front of a real VNC server that websockify wraps. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before } from 'node:test';

import { canvasColours, certificate, openPage, scratch, startBrowser, startDesktop, test, until } from './harness.js';

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.close());

/** Sees the screen of a desktop and types a line into its xterm. */
async function use(t, options) {
    const file = join(await scratch(t), 'line');
    const { server } = await startDesktop(t, options, `read line; printf %s "$line" > ${file}; exec sleep 60`);
    const page = await openPage(t, browser, `${server.url}/vnc.html?autoconnect=true`, { ignoreHTTPSErrors: true });
    await page.waitForSelector('.noVNC_connected canvas');
    await until('the canvas shows the terminal', async () => (await canvasColours(page)) > 1);
    const size = await page.$eval('canvas', ({ width, height }) => [width, height]);
    assert.deepEqual(size, [800, 400]);
    // Without a window manager, what is typed is for the window under the pointer.
    await page.locator('canvas').click();
    await page.keyboard.type('Hello, World? {42}\n');
    const line = await until('the line arrives', async () => existsSync(file) && (await readFile(file, 'utf8')));
    assert.equal(line, 'Hello, World? {42}');
    return { page, server };
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
