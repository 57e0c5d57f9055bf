/**
 * No protocol: what arrives is shown, and lines are sent as they were typed. For any TCP program that reads lines.
 *
 * It has the same methods as `Telnet`.
 */
export class Raw {
    lineMode = true;
    localEcho = true;

    /**
     * @param {object} options
     * @param {(bytes: Uint8Array) => void} options.send Bytes for the server
     * @param {(bytes: Uint8Array) => void} options.data Bytes for the terminal
     * @param {string} [options.newline] What ends a line that is typed
     */
    constructor({ send, data, newline = '\n' }) {
        this.write = send;
        this.receive = data;
        this.newline = newline;
    }

    /** The program is not told of the window's size. */
    resize() {}
}
