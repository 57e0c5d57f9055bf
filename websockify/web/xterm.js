/**
 * What the terminal page needs of xterm.js. esbuild makes `dist/xterm.js` and `dist/xterm.css` of this file, so that
 * the page loads two files from its own server, and nothing of xterm.js lies in the repository.
 */
import '@xterm/xterm/css/xterm.css';

export { FitAddon } from '@xterm/addon-fit';
export { Terminal } from '@xterm/xterm';
