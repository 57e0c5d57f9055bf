/** Fills in what the index page cannot know before it is served: the server's address, and whether noVNC is here. */

const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
document.getElementById('address').textContent = `${scheme}://${location.host}/`;

const { ok } = await fetch('novnc/vnc.html', { method: 'HEAD' });
if (ok) {
    document.getElementById('novnc').href = 'novnc/vnc.html';
    document.getElementById('novnc-text').textContent = 'For a VNC server: its screen, keyboard and mouse.';
}
