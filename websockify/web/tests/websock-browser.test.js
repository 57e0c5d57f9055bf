/** The module `websock.js` in a real browser, through websockify to a TCP program and back. */
import assert from 'node:assert/strict';
import { after, before } from 'node:test';

import { openPage, startBrowser, startServer, startTarget, test, until, WEB } from './harness.js';

const TEN_MEBIBYTES = 10 << 20;

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.close());

/**
 * A page that has the module, and its server in front of a program.
 *
 * @param {(socket: import('node:net').Socket) => void} serve
 */
async function session(t, serve) {
    const target = await startTarget(t, serve);
    const server = await startServer(t, ['--web', WEB], [target.address]);
    const page = await openPage(t, browser, `${server.url}/`);
    await page.evaluate(async () => {
        const { Websock } = await import('/websock.js');
        const socket = new Websock();
        /** Runs `act` on the socket until it calls `done`, or the connection ends. */
        const run = (protocol, act) =>
            new Promise((resolve) => {
                socket.on('close', ({ code, reason }) => resolve({ code, reason }));
                act(socket, resolve);
                socket.open(`ws://${location.host}/`, protocol);
            });
        Object.assign(window, { run, socket });
    });
    return { page, server, target };
}

const echo = (socket) => socket.pipe(socket);

for (const protocol of ['binary', 'base64']) {
    test(`all 256 byte values come back in subprotocol ${protocol}`, async (t) => {
        const received = [];
        const { page } = await session(t, (socket) =>
            socket.on('data', (bytes) => {
                received.push(...bytes);
                socket.write(bytes);
            }),
        );
        const negotiated = page.waitForEvent('websocket').then((socket) => socket.waitForEvent('framereceived'));
        const echoed = await page.evaluate(
            (protocol) =>
                run(protocol, (socket, done) => {
                    socket.on('open', () => socket.send(Uint8Array.from({ length: 256 }, (_, byte) => byte)));
                    socket.on('message', () => {
                        if (!socket.rQwait('echo', 256)) done([...socket.rQshiftBytes()]);
                    });
                }),
            protocol,
        );
        const all = Array.from({ length: 256 }, (_, byte) => byte);
        assert.deepEqual(received, all);
        assert.deepEqual(echoed, all);
        const { payload } = await negotiated;
        assert.equal(typeof payload, protocol === 'base64' ? 'string' : 'object', 'the subprotocol is really in use');
    });

    test(`10 MiB go each way in subprotocol ${protocol}, and the browser never holds much of them`, async (t) => {
        const { page } = await session(t, echo);
        const result = await page.evaluate(
            ([protocol, length]) =>
                run(protocol, (socket, done) => {
                    // A generator of numbers that repeat only after more bytes than are sent.
                    let seed = 1;
                    const sent = Uint8Array.from({ length }, () => {
                        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
                        return seed >>> 24;
                    });
                    let received = 0;
                    let different = 0;
                    let most = 0;
                    const NativeSend = WebSocket.prototype.send;
                    WebSocket.prototype.send = function (data) {
                        NativeSend.call(this, data);
                        most = Math.max(most, this.bufferedAmount);
                    };
                    socket.on('open', () => socket.send(sent));
                    socket.on('message', () => {
                        for (const byte of socket.rQshiftBytes()) {
                            if (byte !== sent[received]) different += 1;
                            received += 1;
                        }
                        if (received >= length) done({ received, different, most, limit: socket.maxBufferedAmount });
                    });
                }),
            [protocol, TEN_MEBIBYTES],
        );
        assert.equal(result.received, TEN_MEBIBYTES);
        assert.equal(result.different, 0);
        assert.ok(result.most > 0 && result.most < result.limit + (64 << 10), `${result.most} bytes`);
    });
}

test('the end of the program reaches the handler, after all that it sent', async (t) => {
    const { page } = await session(t, (socket) => socket.end('x'.repeat(100_000)));
    const close = await page.evaluate(() => run('binary', () => {}));
    assert.deepEqual(close, { code: 1000, reason: 'Target closed' });
    assert.equal(await page.evaluate(() => socket.rQlen()), 100_000);
});

test('the close code of the page reaches the handler, and the program what was sent before', async (t) => {
    let received = 0;
    let ended = false;
    const { page, target } = await session(t, (socket) => {
        socket.on('data', (bytes) => (received += bytes.length));
        socket.on('end', () => (ended = true));
    });
    const { code } = await page.evaluate(() =>
        run('binary', (socket) =>
            socket.on('open', () => {
                socket.send(new Uint8Array(3_000_000));
                socket.close(4321, 'enough');
            }),
        ),
    );
    assert.equal(code, 4321);
    await until('the program has seen the end', () => ended && target.sockets.size === 0);
    assert.equal(received, 3_000_000);
});

test('a program that cannot be reached is told by code 1011', async (t) => {
    const { page, target } = await session(t, () => {});
    await target.stop();
    const close = await page.evaluate(() => run('binary', () => {}));
    assert.deepEqual(close, { code: 1011, reason: 'Failed to connect to downstream server' });
});

test('the end of the server is told by code 1001', async (t) => {
    const { page, server } = await session(t, (socket) => socket.write('x'));
    const closed = page.evaluate(() =>
        run('binary', (socket) => socket.on('message', () => (document.title = 'arrived'))),
    );
    await page.waitForFunction(() => document.title === 'arrived');
    await server.stop();
    assert.equal((await closed).code, 1001);
});

test('a server that is not there is told by an error and code 1006', async (t) => {
    const { page, server } = await session(t, () => {});
    await server.stop();
    const { code } = await page.evaluate(() =>
        run('binary', (socket) => socket.on('error', ({ type }) => (document.title = type))),
    );
    assert.equal(code, 1006);
    assert.equal(await page.title(), 'error');
});
