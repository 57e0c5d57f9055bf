/**
 * What the tests in a browser share: servers, a browser, and waiting for what they do.
 *
 * Everything that is started here listens on loopback, on a port that the system chose, and is ended by its own handle.
 * The server under test is the executable that WEBSOCKIFY names, or the debug build of this workspace.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readlink, rm, writeFile } from 'node:fs/promises';
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
const DEADLINE = 20_000;
const TEST_DEADLINE = 60_000;
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

/** A program that runs until the test is over. */
class Program {
    /** Everything that it wrote, to be read by whoever waits for something in it. */
    output = { stdout: '', stderr: '' };

    constructor(command, options, environment = {}) {
        this.process = spawn(command, options, {
            stdio: ['ignore', 'pipe', 'pipe'],
            env: { ...process.env, ...environment },
        });
        for (const stream of ['stdout', 'stderr']) {
            this.process[stream].setEncoding('utf8').on('data', (text) => (this.output[stream] += text));
        }
        this.exited = once(this.process, 'close');
        // It is waited for when the program is stopped; a program that cannot be started is an error before.
        this.exited.catch(() => {});
    }

    /**
     * Waits until the program has written something.
     * @param {'stdout' | 'stderr'} stream
     * @param {RegExp} pattern
     */
    async wrote(stream, pattern) {
        return until(`a program writes ${pattern}`, () => {
            const found = pattern.exec(this.output[stream]);
            if (!found && this.process.exitCode !== null) throw new Error(`It has ended:\n${this.output.stderr}`);
            return found;
        });
    }

    async stop() {
        if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill('SIGTERM');
        await this.exited;
    }
}

/** Starts any program; `after` of the test ends it. */
export function startProgram(test, command, options, environment) {
    const program = new Program(command, options, environment);
    test.after(() => program.stop());
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
    const server = startProgram(test, WEBSOCKIFY, ['127.0.0.1:0', ...options, ...target], environment);
    const [, port] = await server.wrote('stderr', /proxying from \S*:(\d+) to/);
    const scheme = options.some((option) => option.startsWith('--cert')) ? 'https' : 'http';
    return Object.assign(server, { host: '127.0.0.1', port: Number(port), url: `${scheme}://127.0.0.1:${port}` });
}

/** Starts websockify with the pages, in front of telnetd, with a login program of the test's own if it has one. */
export function startTelnetd(test, login) {
    const command = [TELNETD, '-debug', '2023', ...(login ? ['-L', login] : [])];
    return startServer(test, ['--web', WEB, '--wrap-port', '2023', '--wrap-mode=respawn'], ['--', ...command]);
}

/** How many sockets a process has open. */
export async function socketsOf(pid) {
    const directory = `/proc/${pid}/fd`;
    const targets = await Promise.all(
        // A descriptor may be closed between the two looks.
        (await readdir(directory)).map((name) => readlink(join(directory, name)).catch(() => '')),
    );
    return targets.filter((target) => target.startsWith('socket:')).length;
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
    test.after(stop);
    return { address: `127.0.0.1:${server.address().port}`, sockets, stop };
}

/** A directory that is removed after the test. */
export async function scratch(test) {
    const directory = await mkdtemp(join(tmpdir(), 'websockify-web-'));
    test.after(() => rm(directory, { recursive: true, force: true }));
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
    test.after(async () => {
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
