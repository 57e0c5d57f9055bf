/**
 * The terminal page: a form, a terminal, and a line that tells the state of the connection.
 *
 * The query of the page's address fills in the form, and more:
 *
 * | parameter | meaning |
 * |---|---|
 * | `host`, `port`, `encrypt=1` | where websockify is; the server that the page came from, unless told |
 * | `protocol=raw` | send lines as they are typed, instead of speaking telnet |
 * | `newline=crlf` | in raw mode: end lines with CR LF instead of LF |
 * | `path`, `token` | the path of the WebSocket (`/`), and the token in its query |
 * | `autoconnect=1` | connect at once |
 * | `screenreader=1` | let xterm.js repeat the screen for screen readers |
 *
 * The page is in one of these states, which `data-state` of its body names for the style sheet: `loading`, `missing` (the
 * terminal is not built), `idle`, `connecting`, `connected`, `closed`.
 */
import { Line } from './line.js';
import { Raw } from './raw.js';
import { Telnet } from './telnet.js';
import { Websock } from './websock.js';

/** Bytes that the terminal is given before it is waited for, so that what the browser does besides is not held up. */
const CHUNK = 64 << 10;

/** What close codes mean that come without a reason. */
const MEANINGS = {
    1000: 'the session has ended',
    1001: 'the server is being stopped',
    1006: 'the connection could not be made, or was lost',
    1011: 'the program cannot be reached',
};

/** Colours of the two appearances. xterm.js sees to it that all others can be read on the background. */
const THEMES = {
    dark: {
        background: '#10161c',
        foreground: '#d9e1e8',
        cursor: '#4fc3b5',
        cursorAccent: '#10161c',
        selectionBackground: '#2c5e5b',
    },
    light: {
        background: '#fdfdfc',
        foreground: '#1c2630',
        cursor: '#0b666a',
        cursorAccent: '#fdfdfc',
        selectionBackground: '#b9dedb',
    },
};

/** What the keys beside the terminal send; those of the cursor depend on the terminal's mode. */
const KEYS = { Escape: '\x1b', Tab: '\t' };
const CURSOR_KEYS = { ArrowUp: 'A', ArrowDown: 'B', ArrowRight: 'C', ArrowLeft: 'D' };

const query = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const form = element('settings');
const settings = form.elements;
const fieldset = form.querySelector('fieldset');
const connectButton = element('connect');
const reconnectButton = element('reconnect');
const controlKey = document.querySelector('[data-key=Control]');
const screen = element('terminal');
const screenReader = element('screenreader');
const dark = matchMedia('(prefers-color-scheme: dark)');
const narrow = matchMedia('(max-width: 40rem)');
const still = matchMedia('(prefers-reduced-motion: reduce)');
const encoder = new TextEncoder();

const socket = new Websock();
/** @type {Telnet | Raw | undefined} */
let protocol;
/** @type {Line} */
let line;
/** Whether the terminal has bytes that it has not shown yet. */
let busy = false;
let state;
let terminal;

fillIn();
const xterm = await load();
if (xterm) start(xterm);

/** Fills the form with what the query says, or where the page comes from. */
function fillIn() {
    const encrypted = location.protocol === 'https:';
    settings.host.value = query.get('host') || location.hostname.replace(/^\[(.*)\]$/, '$1') || 'localhost';
    settings.port.value = query.get('port') || location.port || (encrypted ? 443 : 80);
    settings.encrypt.checked = query.has('encrypt') ? isOn('encrypt') : encrypted;
    settings.protocol.value = query.get('protocol') === 'raw' ? 'raw' : 'telnet';
    screenReader.checked = isOn('screenreader');
}

/** @param {string} name A parameter of the query */
function isOn(name) {
    return ['', '1', 'true', 'yes', 'on'].includes(query.get(name));
}

/** Loads xterm.js, or says that it is missing. */
async function load() {
    try {
        return await import('./dist/xterm.js');
    } catch {
        enter('missing', 'The terminal is missing: dist/xterm.js has not been built. “make run” does that.');
    }
}

/** Makes the terminal, and lets everything on the page do what it is for. */
function start({ Terminal, FitAddon }) {
    terminal = new Terminal({
        fontFamily: 'ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace',
        minimumContrastRatio: 4.5,
        scrollback: 5000,
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    const adapt = () => {
        terminal.options.theme = dark.matches ? THEMES.dark : THEMES.light;
        terminal.options.fontSize = narrow.matches ? 12 : 14;
        terminal.options.cursorBlink = !still.matches;
        terminal.options.screenReaderMode = screenReader.checked;
        fit.fit();
    };
    terminal.open(screen);
    adapt();
    for (const preference of [dark, narrow, still]) preference.addEventListener('change', adapt);
    screenReader.addEventListener('change', adapt);
    new ResizeObserver(() => fit.fit()).observe(screen);

    terminal.onResize(({ cols, rows }) => protocol?.resize(cols, rows));
    terminal.onData((text) => type(withControl(text)));
    // Reports of the mouse are bytes, and no text.
    terminal.onBinary((bytes) => protocol?.write(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))));
    terminal.onTitleChange((title) => (document.title = `${title} – websockify`));
    // All keys but this belong to the terminal, Tab among them: without it, no keyboard could leave.
    terminal.attachCustomKeyEventHandler((event) => {
        if (event.key !== 'F6' || !event.ctrlKey) return true;
        if (event.type === 'keydown') connectButton.focus();
        return false;
    });
    line = new Line({
        show: (text) => terminal.write(text),
        submit: (text) => protocol.write(encoder.encode(text + protocol.newline)),
    });

    socket.on('open', () => {
        enter('connected', `Connected to ${serverName()}`);
        terminal.focus();
    });
    socket.on('message', show);
    socket.on('close', ({ code, reason }) => {
        const wasUsed = screen.contains(document.activeElement);
        enter('closed', `Closed (${code}): ${reason || MEANINGS[code] || 'no reason was given'}`);
        if (wasUsed) reconnectButton.focus();
    });

    form.addEventListener('submit', (event) => {
        event.preventDefault();
        if (state === 'connecting' || state === 'connected') socket.close();
        else connect();
    });
    reconnectButton.addEventListener('click', connect);
    for (const key of document.querySelectorAll('[data-key]')) {
        // The terminal keeps the focus, or the keyboard of a phone would go away.
        key.addEventListener('pointerdown', (event) => event.preventDefault());
        key.addEventListener('click', () => press(key.dataset.key));
    }

    enter('idle', 'Not connected');
    connectButton.focus();
    if (isOn('autoconnect')) connect();
}

/**
 * Changes the state, and what the page shows of it.
 *
 * @param {'missing' | 'idle' | 'connecting' | 'connected' | 'closed'} next
 * @param {string} message
 */
function enter(next, message) {
    state = next;
    const inUse = state === 'connecting' || state === 'connected';
    document.body.dataset.state = state;
    element('message').textContent = message;
    fieldset.disabled = inUse;
    connectButton.textContent = inUse ? 'Disconnect' : 'Connect';
    connectButton.disabled = state === 'missing';
    reconnectButton.hidden = state !== 'closed';
    if (terminal) terminal.options.disableStdin = state !== 'connected';
}

/** Connects to where the form says, with an empty terminal. */
function connect() {
    if (!form.reportValidity()) return;
    const raw = settings.protocol.value === 'raw';
    protocol = new (raw ? Raw : Telnet)({
        send: (bytes) => socket.send(bytes),
        data: (bytes) => terminal.write(bytes),
        newline: query.get('newline') === 'crlf' ? '\r\n' : '\n',
        columns: terminal.cols,
        rows: terminal.rows,
    });
    line.clear();
    // Programs that know of no terminal end lines with a line feed alone.
    terminal.options.convertEol = raw;
    // In the order of what is written, and so after what is still to be shown of the last session: reset.
    terminal.write('\x1bc');
    document.title = `${settings.host.value}:${settings.port.value} – websockify`;
    enter('connecting', `Connecting to ${serverName()} …`);
    try {
        const path = (query.get('path') ?? '').replace(/^\//, '');
        const token = query.has('token') ? `?token=${encodeURIComponent(query.get('token'))}` : '';
        socket.open(`${serverName()}/${path}${token}`, 'binary');
    } catch (error) {
        // A page that came encrypted may not connect without, and not every text is a host.
        enter('closed', `Closed: ${error.message}`);
    }
}

/** The server's address without what is secret. */
function serverName() {
    const host = settings.host.value.trim();
    const scheme = settings.encrypt.checked ? 'wss' : 'ws';
    return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${settings.port.value}`;
}

/** Shows what has arrived, no faster than the terminal can; the rest stays in the receive queue. */
function show() {
    if (busy || socket.rQlen() === 0) return;
    busy = true;
    protocol.receive(socket.rQshiftBytes(Math.min(socket.rQlen(), CHUNK)));
    terminal.write('', () => {
        busy = false;
        show();
    });
}

/**
 * Takes what was typed.
 * @param {string} text
 */
function type(text) {
    if (protocol.lineMode) {
        line.type(text, protocol.localEcho);
        return;
    }
    if (protocol.localEcho) terminal.write(text.replaceAll('\r', '\r\n'));
    protocol.write(encoder.encode(text));
}

/**
 * Turns a letter into its control character after the key Ctrl beside the terminal.
 * @param {string} text
 */
function withControl(text) {
    if (controlKey.ariaPressed !== 'true') return text;
    controlKey.ariaPressed = 'false';
    return /^[@-_a-z]$/.test(text) ? String.fromCharCode(text.toUpperCase().charCodeAt(0) & 0x1f) : text;
}

/**
 * Does what a key beside the terminal says.
 * @param {string} key
 */
function press(key) {
    if (key === 'Control') {
        controlKey.ariaPressed = String(controlKey.ariaPressed !== 'true');
    } else {
        const introducer = terminal.modes.applicationCursorKeysMode ? '\x1bO' : '\x1b[';
        terminal.input(KEYS[key] ?? introducer + CURSOR_KEYS[key]);
    }
    terminal.focus();
}
