//! The manual page is made of the command line's definition, and is the one that gets installed.

use std::fs;

use clap::CommandFactory;
use clap_mangen::Man;
use websockify::cli::Args;

/// Set in the environment to have the page written anew.
const WRITE: &str = "WEBSOCKIFY_WRITE_MANUAL";

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/man/websockify.1");

const SYNOPSIS: &str = r".SH SYNOPSIS
\fBwebsockify\fR [\fIOPTIONS\fR] [\fISOURCE_ADDR\fR:]\fISOURCE_PORT\fR \fITARGET_ADDR\fR:\fITARGET_PORT\fR
.br
\fBwebsockify\fR [\fIOPTIONS\fR] [\fISOURCE_ADDR\fR:]\fISOURCE_PORT\fR \fB\-\-unix\-target\fR \fIFILE\fR
.br
\fBwebsockify\fR [\fIOPTIONS\fR] [\fISOURCE_ADDR\fR:]\fISOURCE_PORT\fR \fB\-\-token\-plugin\fR \fICLASS\fR \fB\-\-token\-source\fR \fIARG\fR
.br
\fBwebsockify\fR [\fIOPTIONS\fR] [\fISOURCE_ADDR\fR:]\fISOURCE_PORT\fR \fB\-\-\fR \fIPROGRAM\fR [\fIARGS\fR]...
.SH DESCRIPTION
Takes WebSocket connections on a port, and carries their bytes to a TCP port or unix socket and back. With \fB\-\-\fR it starts a program that
only knows TCP, moves the port that this binds out of the way, and listens there itself. Options may stand before, between and after the addresses, be
shortened and repeated; the last one wins. Times are in seconds.
";

const REST: &str = r".SH SIGNALS
.TP
TERM, INT
Close all sessions with 1001, end the wrapped program, and exit within 3 seconds; with \fB\-\-drain\fR let sessions finish first, unless another comes.
.TP
QUIT
The same without \fB\-\-drain\fR.
.TP
HUP
Read certificates, tokens and passwords again, open the log file anew, and pass the signal on to the wrapped program.
.TP
USR1, USR2, WINCH
For the wrapped program.
.TP
TSTP, CONT
Stop and continue both.
.SH EXIT STATUS
.TP
0
Stopped, or done; with \fB\-D\fR: started.
.TP
1
It could not start, or not go on; the last line of the log says why.
.TP
2
The command line is wrong.
.TP
126, 127
The wrapped program cannot be executed, or is not found.
.TP
other
The wrapped program's, under \fB\-\-wrap\-mode=exit\fR.
.SH EXAMPLES
.nf
websockify \-\-web /usr/share/novnc 6080 localhost:5900
websockify \-\-cert self.pem \-\-target\-config /etc/websockify/tokens 6080
websockify 2023 \-\-wrap\-mode=respawn \-\- telnetd \-debug 2023
.fi
";

#[test]
fn the_manual_page_tells_of_every_option() {
    let mut command = Args::command();
    command.build();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    page.extend_from_slice(SYNOPSIS.as_bytes());
    man.render_options_section(&mut page).unwrap();
    page.extend_from_slice(REST.as_bytes());
    let page = String::from_utf8(page).unwrap();
    if std::env::var_os(WRITE).is_some() {
        fs::write(FILE, &page).unwrap();
    }
    let written = fs::read_to_string(FILE).unwrap();
    assert!(
        written == page,
        "the page is old: run this test with {WRITE}=1 in the environment"
    );
}
