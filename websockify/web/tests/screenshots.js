/** Takes the pictures of the README: the terminal page and noVNC, each with a session that is real. */
import { join } from 'node:path';

import * as harness from './harness.js';

const { canvasColours, openPage, script, shows, startDesktop, startTelnetd, state, until, WEB } = harness;

/** Something in colour, of what every Debian has. */
const SCENE = String.raw`
prompt() { printf '\033[1;32m$\033[0m %s\n' "$1"; }
prompt 'ls /usr'
ls --color=always --width=72 /usr
prompt 'stty size; echo $TERM'
stty size; echo "$TERM"
prompt ./rainbow
awk 'function abs(x) { return x < 0 ? -x : x }
function light(x) { return int((x < 0 ? 0 : x > 1 ? 1 : x) * (255 - 60 * row)) }
BEGIN { for (; row < 3; row++) { for (hue = 0; hue < 6; hue += 1 / 12)
    printf "\033[48;2;%d;%d;%dm ", light(abs(hue - 3) - 1), light(2 - abs(hue - 2)), light(2 - abs(hue - 4))
    print "\033[0m" } }'
PS1='\[\033[1;32m\]$\[\033[0m\] ' exec bash --norc --noprofile -i`;

/** What `node:test` would give: the pictures need what is started just as long. */
const acts = [];
const picture = { after: (act) => acts.push(act) };
const browser = await harness.startBrowser();
try {
    const terminal = await startTelnetd(picture, await script(picture, SCENE));
    const url = `${terminal.url}/wstelnet.html?autoconnect=1`;
    const page = await openPage(picture, browser, url, {
        viewport: { width: 1000, height: 440 },
        colorScheme: 'dark',
        reducedMotion: 'reduce',
    });
    await state(page, 'connected');
    await shows(page, /rainbow\n+\$$/);
    await page.screenshot({ path: join(WEB, 'wstelnet.png') });

    const desktop = await startDesktop(picture, [], SCENE);
    const vnc = await openPage(picture, browser, `${desktop.server.url}/vnc.html?autoconnect=true`, {
        viewport: { width: 960, height: 420 },
    });
    await vnc.waitForSelector('.noVNC_connected canvas');
    await until('the rainbow is there', async () => (await canvasColours(vnc)) > 150);
    // The line that tells of the connection goes away by itself.
    await vnc.waitForFunction(() => document.querySelector('#noVNC_status').getBoundingClientRect().bottom <= 0);
    await vnc.screenshot({ path: join(WEB, 'novnc.png') });
} finally {
    for (const act of acts.reverse()) await act();
    await browser.close();
}
