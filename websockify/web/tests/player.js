/**
 * Plays a recording as noVNC's `tests/vnc_playback.html` does, which Debian's package lacks: noVNC's client is given a WebSocket that
 * only repeats what the target once sent. `VNC_frame_data` is what the recording has defined.
 */
/* global VNC_frame_data */
import RFB from './core/rfb.js';

const socket = {
    binaryType: 'arraybuffer',
    protocol: '',
    readyState: 'open',
    onopen() {},
    onerror() {},
    onmessage() {},
    onclose() {},
    send() {},
    close() {},
};
new RFB(document.body, socket).viewOnly = true;

for (const entry of VNC_frame_data) {
    if (entry === 'EOF' || entry[0] === '}') continue;
    const text = entry.slice(entry.indexOf('{', 1) + 1);
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    socket.onmessage({ data: bytes.buffer });
    // What was received is drawn before there is more, as it was when it was recorded.
    await new Promise((resolve) => setTimeout(resolve));
}
document.body.dataset.state = 'played';
