/**
 * A line that is edited here, for servers that want whole lines and do not send back what is typed.
 *
 * Backspace takes back a character, Ctrl-U the line, Enter sends it. Other control characters are part of the line and
 * shown as `^C`; keys that send several (arrows, function keys) do nothing.
 */

/** Characters that take two cells of a terminal, and those that take none. */
const WIDE =
    /\p{Emoji_Presentation}|[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]/u;
const WITHOUT_WIDTH = /[\p{Mn}\p{Me}\p{Cf}]/u;
const CONTROL = /\p{Cc}/u;

/** Between these, going back from the start of a row leads to the end of the row before, if the line runs over both. */
const REVERSE_WRAP_ON = '\x1b[?45h';
const REVERSE_WRAP_OFF = '\x1b[?45l';

export class Line {
    #characters = [];
    #show;
    #submit;

    /**
     * @param {object} options
     * @param {(text: string) => void} options.show Shows text in the terminal; not called for what is typed in secret
     * @param {(line: string) => void} options.submit Takes a line, without its end
     */
    constructor({ show, submit }) {
        this.#show = show;
        this.#submit = submit;
    }

    /**
     * Takes what was typed or pasted.
     *
     * @param {string} text As a terminal gives it: CR for Enter, DEL for Backspace
     * @param {boolean} visible Whether it is shown
     */
    type(text, visible) {
        if (text.length > 1 && text.startsWith('\x1b')) return;
        const show = visible ? this.#show : () => {};
        for (const character of text.replaceAll('\r\n', '\r')) {
            if (character === '\r' || character === '\n') {
                show('\r\n');
                const line = this.#characters.join('');
                this.#characters = [];
                this.#submit(line);
            } else if (character === '\x7f' || character === '\b') {
                this.#takeBack(1, show);
            } else if (character === '\x15') {
                this.#takeBack(this.#characters.length, show);
            } else {
                this.#characters.push(character);
                show(shown(character));
            }
        }
    }

    /** Forgets what was typed. */
    clear() {
        this.#characters = [];
    }

    #takeBack(count, show) {
        let cells = 0;
        for (; count > 0 && this.#characters.length > 0; count--) cells += width(this.#characters.pop());
        if (cells > 0) show(REVERSE_WRAP_ON + '\b \b'.repeat(cells) + REVERSE_WRAP_OFF);
    }
}

function shown(character) {
    if (!CONTROL.test(character)) return character;
    const code = character.charCodeAt(0);
    return code < 0x20 ? `^${String.fromCharCode(code + 0x40)}` : '?';
}

function width(character) {
    if (CONTROL.test(character)) return shown(character).length;
    if (WITHOUT_WIDTH.test(character)) return 0;
    return WIDE.test(character) ? 2 : 1;
}
