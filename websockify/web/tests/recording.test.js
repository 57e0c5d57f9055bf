/** A session of Debian's noVNC, recorded by websockify and played by noVNC again. */
import assert from 'node:assert/strict';
import { readdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';

import { NOVNC, canvasColours, openPage, scratch, startBrowser, startDesktop, startServer, test, until } from './harness.js';

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.close());

/** What the canvas of a page shows. */
const picture = (page) => page.$eval('canvas', (canvas) => canvas.toDataURL());

test('noVNC plays a recording of a session, and shows what that showed at its end', async (t) => {
    const directory = await scratch(t);
    const { server } = await startDesktop(t, ['--record', join(directory, 'session')], 'seq 1 300; printf done; exec sleep 60');
    const page = await openPage(t, browser, `${server.url}/vnc.html?autoconnect=true`);
    await page.waitForSelector('.noVNC_connected canvas');
    let shown;
    await until('the picture is complete', async () => {
        const before = shown;
        shown = await picture(page);
        return shown === before && (await canvasColours(page)) > 1;
    });
    await page.evaluate(() => document.querySelector('#noVNC_disconnect_button').click());
    await until('the session has ended', () => / from the client, \d+ from the target/.test(server.output('stderr')));
    await server.stop();

    // Pages took connections as well, so that the session's number is not known.
    const [recording, ...others] = await readdir(directory);
    assert.deepEqual(others, []);
    await symlink(join(directory, recording), join(directory, 'recording.js'));
    await symlink(fileURLToPath(new URL('player.js', import.meta.url)), join(directory, 'player.js'));
    for (const part of ['core', 'vendor']) await symlink(join(NOVNC, part), join(directory, part));
    const scripts = '<script src="recording.js"></script><script type="module" src="player.js"></script>';
    await writeFile(join(directory, 'index.html'), `<!DOCTYPE html><title>Player</title><body>${scripts}</body>`);
    const web = await startServer(t, ['--web', directory], ['127.0.0.1:1']);
    const player = await openPage(t, browser, web.url);
    await player.waitForSelector('body[data-state=played]');
    await until('it shows the same picture', async () => (await picture(player)) === shown);
});
