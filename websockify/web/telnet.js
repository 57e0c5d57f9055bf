/**
 * The telnet protocol (RFC 854 and 855), the client's part of it: what belongs to the terminal, and what to the protocol.
 *
 * `Telnet` knows nothing of sockets and pages. It is given what arrives, in pieces of any size, and what is typed; it
 * calls back with bytes for the terminal and bytes for the server. Options are negotiated with the state machine of RFC
 * 1143, so that two sides that want different things, or ask at the same moment, never answer each other for ever.
 *
 * | option | ours | the server's |
 * |---|---|---|
 * | BINARY (RFC 856) | if asked | if offered |
 * | ECHO (RFC 857) | no | if offered |
 * | SUPPRESS-GO-AHEAD (RFC 858) | if asked | asked for |
 * | TERMINAL-TYPE (RFC 1091) | if asked | no |
 * | NAWS, the window's size (RFC 1073) | offered | no |
 * | all others, such as NEW-ENVIRON, LINEMODE, encryption | no | no |
 *
 * Nothing is asked or offered before the server has spoken telnet: a server that does not gets only what is typed.
 */

/** Commands, each after an IAC. */
const SE = 240;
const SB = 250;
const WILL = 251;
const WONT = 252;
const DO = 253;
const DONT = 254;
const IAC = 255;

/** Options. */
const BINARY = 0;
const ECHO = 1;
const SUPPRESS_GO_AHEAD = 3;
const TERMINAL_TYPE = 24;
const NAWS = 31;

/** In the sub-negotiation of the terminal type. */
const IS = 0;
const SEND = 1;

const NUL = 0;
const LF = 10;
const CR = 13;

/** Bytes of a sub-negotiation that are kept. The ones that we understand have two. */
const MAX_SUBNEGOTIATION = 64;

/**
 * One side of one option, as in RFC 1143, section 7. A request is sent only when the state changes, and a request that
 * only confirms the state is never answered.
 */
export class OptionState {
    /** @type {'no' | 'yes' | 'wantno' | 'wantyes'} */
    state = 'no';
    /** While an answer is outstanding: the opposite is to be asked for after it. */
    opposite = false;
    #positive;
    #negative;
    #send;

    /**
     * @param {number} positive The command that we say for yes: WILL for our side, DO for the server's
     * @param {number} negative WONT or DONT
     * @param {(command: number) => void} send
     */
    constructor(positive, negative, send) {
        this.#positive = positive;
        this.#negative = negative;
        this.#send = send;
    }

    get enabled() {
        return this.state === 'yes';
    }

    /**
     * Wants the option on or off.
     * @param {boolean} on
     */
    ask(on) {
        switch (this.state) {
            case 'no':
                if (on) this.#become('wantyes', this.#positive);
                break;
            case 'yes':
                if (!on) this.#become('wantno', this.#negative);
                break;
            case 'wantno':
                this.opposite = on;
                break;
            case 'wantyes':
                this.opposite = !on;
                break;
        }
    }

    /**
     * The server said yes: WILL for its side, DO for ours.
     * @param {boolean} welcome Whether we agree when we have not asked
     */
    heardYes(welcome) {
        switch (this.state) {
            case 'no':
                if (welcome) this.#become('yes', this.#positive);
                else this.#send(this.#negative);
                break;
            case 'wantno':
                // Our "no" was answered by a "yes", which no server may do.
                this.#become(this.opposite ? 'yes' : 'no');
                break;
            case 'wantyes':
                if (this.opposite) this.#become('wantno', this.#negative);
                else this.#become('yes');
                break;
        }
    }

    /** The server said no: WONT for its side, DONT for ours. */
    heardNo() {
        switch (this.state) {
            case 'yes':
                this.#become('no', this.#negative);
                break;
            case 'wantno':
                if (this.opposite) this.#become('wantyes', this.#positive);
                else this.#become('no');
                break;
            case 'wantyes':
                this.#become('no');
                break;
        }
    }

    #become(state, command) {
        this.state = state;
        this.opposite = false;
        if (command !== undefined) this.#send(command);
    }
}

/** The two sides of an option. */
class Option {
    /**
     * @param {number} code
     * @param {(bytes: number[]) => void} send
     */
    constructor(code, send) {
        const command = (verb) => send([IAC, verb, code]);
        this.ours = new OptionState(WILL, WONT, command);
        this.theirs = new OptionState(DO, DONT, command);
    }
}

export class Telnet {
    /** What ends a line that is typed. */
    newline = '\r\n';

    #callbacks;
    #terminalType;
    #columns;
    #rows;
    /** @type {Map<number, Option>} */
    #options = new Map();
    /** What the next byte belongs to: one of the methods below. */
    #next = this.#data;
    /** Whether the last byte of data was a carriage return, in a session that marks a lone one with NUL. */
    #afterReturn = false;
    /** The command whose option follows. */
    #verb = 0;
    #subnegotiation = [];
    #negotiating = false;
    /** Bytes for the terminal from what is being received. */
    #output = new Uint8Array(0);
    #outputLength = 0;

    /**
     * @param {object} options
     * @param {(bytes: Uint8Array) => void} options.send Bytes for the server
     * @param {(bytes: Uint8Array) => void} options.data Bytes for the terminal
     * @param {number} options.columns
     * @param {number} options.rows
     * @param {string} [options.terminalType] A name of the server's terminal data base
     */
    constructor({ send, data, columns, rows, terminalType = 'XTERM-256COLOR' }) {
        this.#callbacks = { send, data };
        this.#columns = columns;
        this.#rows = rows;
        this.#terminalType = terminalType;
    }

    /** Whether lines are edited here and sent whole: so it is until the server does without a "go ahead". */
    get lineMode() {
        return !this.#option(SUPPRESS_GO_AHEAD).theirs.enabled;
    }

    /** Whether what is typed is to be shown here, because the server does not send it back. */
    get localEcho() {
        return !this.#option(ECHO).theirs.enabled;
    }

    /**
     * Takes what has arrived, which may end anywhere.
     * @param {Uint8Array} bytes
     */
    receive(bytes) {
        this.#output = new Uint8Array(bytes.length);
        this.#outputLength = 0;
        for (const byte of bytes) this.#next(byte);
        if (this.#outputLength > 0) this.#callbacks.data(this.#output.subarray(0, this.#outputLength));
    }

    /**
     * Sends what was typed. CR LF ends a line, a lone CR is the key Enter.
     * @param {Uint8Array} bytes
     */
    write(bytes) {
        const marksReturn = !this.#option(BINARY).ours.enabled;
        const escaped = [];
        bytes.forEach((byte, index) => {
            escaped.push(byte);
            if (byte === IAC) escaped.push(IAC);
            else if (byte === CR && marksReturn && bytes[index + 1] !== LF) escaped.push(NUL);
        });
        this.#send(escaped);
    }

    /**
     * Tells the window's size, as soon as the server wants to know it.
     * @param {number} columns
     * @param {number} rows
     */
    resize(columns, rows) {
        this.#columns = columns;
        this.#rows = rows;
        if (this.#option(NAWS).ours.enabled) this.#tellSize();
    }

    #data(byte) {
        const marked = this.#afterReturn && byte === NUL;
        if (byte === IAC) {
            this.#next = this.#command;
        } else if (marked) {
            this.#afterReturn = false;
        } else {
            this.#put(byte);
        }
    }

    #put(byte) {
        this.#afterReturn = byte === CR && !this.#option(BINARY).theirs.enabled;
        this.#output[this.#outputLength] = byte;
        this.#outputLength += 1;
    }

    #command(byte) {
        this.#next = this.#data;
        if (byte === IAC) {
            this.#put(byte);
        } else if (byte === SB) {
            this.#subnegotiation = [];
            this.#next = this.#subnegotiationData;
        } else if (byte >= WILL) {
            this.#verb = byte;
            this.#next = this.#negotiation;
        }
        // The others (no operation, go ahead, data mark, ...) ask nothing of a terminal.
    }

    #negotiation(code) {
        this.#next = this.#data;
        if (!this.#negotiating) {
            this.#negotiating = true;
            this.#option(SUPPRESS_GO_AHEAD).theirs.ask(true);
            this.#option(NAWS).ours.ask(true);
        }
        const { ours, theirs } = this.#option(code);
        const hadSize = this.#option(NAWS).ours.enabled;
        if (this.#verb === WILL) theirs.heardYes([BINARY, ECHO, SUPPRESS_GO_AHEAD].includes(code));
        else if (this.#verb === WONT) theirs.heardNo();
        else if (this.#verb === DO) ours.heardYes([BINARY, SUPPRESS_GO_AHEAD, TERMINAL_TYPE, NAWS].includes(code));
        else ours.heardNo();
        if (this.#option(NAWS).ours.enabled && !hadSize) this.#tellSize();
    }

    #subnegotiationData(byte) {
        if (byte === IAC) this.#next = this.#subnegotiationCommand;
        else this.#keep(byte);
    }

    #keep(byte) {
        this.#next = this.#subnegotiationData;
        if (this.#subnegotiation.length < MAX_SUBNEGOTIATION) this.#subnegotiation.push(byte);
    }

    #subnegotiationCommand(byte) {
        if (byte === IAC) {
            this.#keep(byte);
        } else if (byte === SE) {
            this.#next = this.#data;
            const [option, request, ...rest] = this.#subnegotiation;
            if (option === TERMINAL_TYPE && request === SEND && rest.length === 0) this.#tellTerminalType();
        } else {
            // It was never ended. What follows is a command like any other.
            this.#command(byte);
        }
    }

    #tellTerminalType() {
        if (!this.#option(TERMINAL_TYPE).ours.enabled) return;
        const name = Array.from(this.#terminalType, (character) => character.charCodeAt(0));
        this.#send([IAC, SB, TERMINAL_TYPE, IS, ...name, IAC, SE]);
    }

    #tellSize() {
        const size = [this.#columns >> 8, this.#columns & 0xff, this.#rows >> 8, this.#rows & 0xff];
        this.#send([IAC, SB, NAWS, ...size.flatMap((byte) => (byte === IAC ? [IAC, IAC] : [byte])), IAC, SE]);
    }

    /** @param {number} code */
    #option(code) {
        let option = this.#options.get(code);
        if (!option) {
            option = new Option(code, (bytes) => this.#send(bytes));
            this.#options.set(code, option);
        }
        return option;
    }

    #send(bytes) {
        this.#callbacks.send(Uint8Array.from(bytes));
    }
}
