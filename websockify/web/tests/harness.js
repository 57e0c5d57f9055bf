/**
 * What the tests in a browser share: servers, a browser, and waiting for what they do.
 *
 * Everything that is started here listens on loopback, on a port that the system chose, and is ended by its own handle.
 * The server under test is the executable that WEBSOCKIFY names, or the debug build of this workspace.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test as nodeTest } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

/** The directory of the pages. */
export const WEB = fileURLToPath(new URL('..', import.meta.url));
export const NOVNC = '/usr/share/novnc';
export const TELNETD = '/usr/sbin/in.telnetd';

const WEBSOCKIFY = process.env.WEBSOCKIFY ?? fileURLToPath(new URL('../../../target/debug/websockify', import.meta.url));
const CHROMIUM = '/usr/bin/chromium';
const CHROMIUM_OPTIONS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
];
/** Milliseconds after which a wait for something is given up, and a whole test. */
const DEADLINE = 30_000;
const TEST_DEADLINE = 120_000;
/** Milliseconds between two looks at a condition. */
const INTERVAL = 20;

/**
 * A test that ends.
 *
 * @param {string} name A sentence about behaviour
 * @param {(test: import('node:test').TestContext) => Promise<void>} act
 */
export function test(name, act) {
    nodeTest(name, { timeout: TEST_DEADLINE }, act);
}

/**
 * Waits until something is so, and returns it.
 *
 * @template T
 * @param {string} what For the error
 * @param {() => T | Promise<T>} look Returns something true when it is so
 * @returns {Promise<T>}
 */
export async function until(what, look) {
    const deadline = Date.now() + DEADLINE;
    for (;;) {
        const found = await look();
        if (found) return found;
        if (Date.now() > deadline) throw new Error(`Waited in vain until ${what}`);
        await new Promise((resolve) => setTimeout(resolve, INTERVAL));
    }
}

/** What is to be done after which test. */
const endings = new WeakMap();

/**
 * Has something done after the test, before what was to be done so far: a directory goes after the program that uses it.
 *
 * @param {{ after: (act: () => Promise<void>) => void }} test
 * @param {() => void | Promise<void>} act
 */
function afterwards(test, act) {
    if (!endings.has(test)) {
        endings.set(test, []);
        test.after(async () => {
            const results = [];
            for (const end of endings.get(test).reverse()) results.push(...(await Promise.allSettled([Promise.resolve().then(end)])));
            const failed = results.find(({ status }) => status === 'rejected');
            if (failed) throw failed.reason;
        });
    }
    endings.get(test).push(act);
}

/** A program that runs until the test is over. */
class Program {
    #directory;

    /** @param {string} directory What it writes goes into files there: no pipe that is full can hold it up, or lose a line. */
    constructor(directory, command, options, environment) {
        this.#directory = directory;
        const files = ['stdout', 'stderr'].map((name) => openSync(join(directory, name), 'w'));
        this.process = spawn(command, options, { stdio: ['ignore', ...files], env: { ...process.env, ...environment } });
        files.forEach(closeSync);
        this.exited = once(this.process, 'exit');
        // Whoever waits hears of a program that cannot be started.
        this.exited.catch(() => {});
    }

    /**
     * All that it has written so far.
     * @param {'stdout' | 'stderr'} stream
     */
    output(stream) {
        return readFileSync(join(this.#directory, stream), 'utf8');
    }

    get running() {
        return this.process.pid !== undefined && this.process.exitCode === null && this.process.signalCode === null;
    }

    /**
     * Waits until the program has written something.
     * @param {'stdout' | 'stderr'} stream
     * @param {RegExp} pattern
     */
    wrote(stream, pattern) {
        const { spawnfile } = this.process;
        return until(`${spawnfile} writes ${pattern}`, () => {
            const found = pattern.exec(this.output(stream));
            if (!found && !this.running) throw new Error(`${spawnfile} has ended:\n${this.output('stderr')}`);
            return found;
        });
    }

    async stop() {
        if (this.running) this.process.kill('SIGTERM');
        await this.exited;
    }
}

/** Starts any program, which is ended after the test. */
export async function startProgram(test, command, options, environment = {}) {
    const program = new Program(await scratch(test), command, options, environment);
    afterwards(test, () => program.stop());
    return program;
}

/**
 * Starts websockify on a port that the system chooses.
 *
 * @param {import('node:test').TestContext} test
 * @param {string[]} options Without the source
 * @param {string[]} target The target, or `--` and a command
 * @returns {Promise<Program & { host: string, url: string, port: number }>}
 */
export async function startServer(test, options, target, environment) {
    assert.ok(existsSync(WEBSOCKIFY), `${WEBSOCKIFY} is missing: build it, or name another in WEBSOCKIFY`);
    const server = await startProgram(test, WEBSOCKIFY, ['127.0.0.1:0', ...options, ...target], environment);
    const [, port] = await server.wrote('stderr', /proxying from \S*:(\d+) to/);
    const scheme = options.some((option) => option === '--cert') ? 'https' : 'http';
    return Object.assign(server, { host: '127.0.0.1', port: Number(port), url: `${scheme}://127.0.0.1:${port}` });
}

/** Starts websockify with the pages, in front of telnetd, with a login program of the test's own if it has one. */
export function startTelnetd(test, login) {
    const command = [TELNETD, '-debug', '2023', ...(login ? ['-L', login] : [])];
    return startServer(test, ['--web', WEB, '--wrap-port', '2023', '--wrap-mode=respawn'], ['--', ...command]);
}

/** A VNC server that takes a display that is free, and tells which. */
const VNC_SERVER = ['Xtigervnc', '-displayfd', '1', '-SecurityTypes', 'None', '-desktop', 'desktop'];

/**
 * Starts websockify with noVNC in front of a VNC server, and a terminal that fills its screen.
 *
 * @param {string[]} options More options of websockify
 * @param {string} command What runs in the terminal
 */
export async function startDesktop(test, options, command) {
    const home = { HOME: await scratch(test) };
    const server = await startServer(
        test,
        ['--web', NOVNC, '--wrap-port', '5901', ...options],
        ['--', ...VNC_SERVER, '-geometry', '800x400', '-rfbport', '5901', '-interface', '127.0.0.1'],
        home,
    );
    const display = await startTerminal(test, server, command, home);
    return { server, display };
}

/**
 * Starts a VNC server by itself, with a terminal on its screen.
 *
 * @param {string} geometry Its width and height, `800x400`
 * @param {string} command What runs in the terminal
 * @returns {Promise<string>} The unix socket that it listens on
 */
export async function startVnc(test, geometry, command) {
    const home = { HOME: await scratch(test) };
    const socket = join(home.HOME, 'socket');
    const [program, ...options] = VNC_SERVER;
    const server = await startProgram(test, program, [...options, '-geometry', geometry, '-rfbport', '-1', '-rfbunixpath', socket], home);
    await startTerminal(test, server, command, home);
    return socket;
}

/** Starts a terminal on the screen of a VNC server, once that has told which display it is, and returns that. */
async function startTerminal(test, server, command, home) {
    const [, display] = await server.wrote('stdout', /^(\d+)\n/);
    const look = ['-fa', 'DejaVu Sans Mono', '-fs', '11', '-geometry', '86x21+0+0', '-b', '10'];
    const colours = ['-bg', '#10161c', '-fg', '#d9e1e8'];
    const terminal = ['-display', `:${display}`, ...look, ...colours, '-e', 'sh', '-c', command];
    await startProgram(test, 'xterm', terminal, home);
    return display;
}

/** A file with a certificate that nobody else has signed, and its key. */
export async function certificate(test) {
    const file = join(await scratch(test), 'self.pem');
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'];
    const key = ['-newkey', 'rsa:2048', '-nodes', '-keyout', file];
    const openssl = await startProgram(test, 'openssl', ['req', '-x509', '-days', '2', ...subject, ...key, '-out', `${file}.crt`]);
    const [status] = await openssl.exited;
    assert.equal(status, 0, openssl.output('stderr'));
    await appendFile(file, await readFile(`${file}.crt`));
    return file;
}

/** How many connections the kernel knows at a port of ours, other than those that only wait for their number to be free. */
export function connectionsAt(port) {
    const [LISTENING, TIME_WAIT] = ['0A', '06'];
    const table = readFileSync('/proc/net/tcp', 'utf8');
    const sockets = table.split('\n').slice(1, -1).map((line) => line.trim().split(/\s+/));
    return sockets.filter(
        ([, local, , status]) => parseInt(local.split(':')[1], 16) === port && ![LISTENING, TIME_WAIT].includes(status),
    ).length;
}

/**
 * A TCP server of the test's own.
 *
 * @param {(socket: import('node:net').Socket) => void} serve
 */
export async function startTarget(test, serve) {
    const sockets = new Set();
    const server = createServer((socket) => {
        sockets.add(socket);
        socket.on('close', () => sockets.delete(socket));
        // A client that goes away in the middle is no matter here.
        socket.on('error', () => {});
        serve(socket);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const stop = () => {
        for (const socket of sockets) socket.destroy();
        server.close();
    };
    afterwards(test, stop);
    return { address: `127.0.0.1:${server.address().port}`, sockets, stop };
}

/** A directory that is removed after the test. */
export async function scratch(test) {
    const directory = await mkdtemp(join(tmpdir(), 'websockify-web-'));
    afterwards(test, () => rm(directory, { recursive: true, force: true }));
    return directory;
}

/** Writes a shell script into a directory of the test's. */
export async function script(test, text) {
    const file = join(await scratch(test), 'script');
    await writeFile(file, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    return file;
}

/** Starts Chromium with a profile of its own, which is removed when it is closed. */
export function startBrowser() {
    return chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_OPTIONS });
}

/**
 * Opens a page whose errors fail the test: those of its scripts, and what its Content-Security-Policy forbids.
 *
 * @param {import('node:test').TestContext} test
 * @param {import('playwright-core').Browser} browser
 * @param {string} url
 * @param {import('playwright-core').BrowserContextOptions} [options]
 */
export async function openPage(test, browser, url, options) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(DEADLINE);
    const errors = [];
    page.on('pageerror', (error) => errors.push(error.stack));
    page.on('console', (message) => {
        if (/Content.Security.Policy/i.test(message.text())) errors.push(message.text());
    });
    afterwards(test, async () => {
        await context.close();
        assert.deepEqual(errors, []);
    });
    await page.goto(url);
    return page;
}

/** Waits until the terminal page is in that state, and returns its message. */
export async function state(page, name) {
    await page.waitForSelector(`body[data-state=${name}]`);
    return page.textContent('#message');
}

/** What the terminal shows, row by row, without what is empty. */
export function rows(page) {
    return page.$$eval('.xterm-rows > div', (elements) =>
        elements.map((element) => element.textContent.trimEnd()).filter((text) => text !== ''),
    );
}

/** Waits until the terminal shows something. */
export async function shows(page, pattern) {
    let text;
    return until(`the terminal shows ${pattern}`, async () => {
        text = (await rows(page)).join('\n');
        return pattern.exec(text);
    }).catch((error) => {
        throw new Error(`${error.message}; it shows:\n${text}`);
    });
}

/** How many colours the canvas of the page shows. */
export function canvasColours(page) {
    return page.$eval('canvas', (canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    });
}
