//! Command lines as they stand in scripts, units, images and guides, each started for real.
//!
//! Every test has a network of its own, so that the ports are those of the table. Absolute paths are meant below a directory that is
//! furnished for the test.
//!
//! `make compliance` plays the same tables with the Python original. Where it does otherwise, the table says why we do not follow.

mod table;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use integration::{
    Certificates, Client, ClientTls, FAST, Handshake, Said, Scratch, Server, executable,
    in_own_network, listeners_on, openssl, text, theirs, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use table::{CONSOLES, DESKTOPS, FORMS, Outcome, Shape, TOKENS, WRAPPED};

/// What the shapes find around them: files, sockets, programs and targets.
struct Stage {
    root: Scratch,
    tls: ClientTls,
}

/// What a browser gets for `/vnc.html`.
const PAGE: &str = "<title>noVNC</title>";

/// What a VNC server says first.
const GREETING: &[u8] = b"RFB 003.008\n";

impl Stage {
    /// One with targets on these ports.
    fn with_targets(ports: &[u16]) -> Self {
        let root = Scratch::new().unwrap();
        let path = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let write = |name: &str, content: &[u8]| fs::write(path(name), content).unwrap();
        for name in ["usr/share/novnc/vnc.html", "opt/noVNC/vnc.html"] {
            write(name, PAGE.as_bytes());
        }
        write("var/log/earlier", b"");
        for name in ["etc/novnc/tokens", "etc/novnc/tokens.d/some"] {
            write(
                name,
                b"# desks\n\nlaptop: 127.0.0.1:1\ndesk: localhost:5901\n",
            );
        }
        write("etc/novnc/names/desk", b"localhost:5901");
        write(
            "etc/novnc/secret",
            b"a secret that is long enough for a key",
        );
        let certificates = Certificates::new();
        let authority = certificates.authority("authority");
        let server = certificates.host("server", FAST, None);
        let alice = certificates.subject("alice", "/CN=alice", "utf8only", &authority);
        let tls = ClientTls::showing(&server.certificate, &alice);
        let both = certificates.join("both", &[&server.certificate, &server.key]);
        for (from, to) in [
            (&both, "etc/ssl/novnc.pem"),
            (&both, "home/pi/self.pem"),
            (&server.certificate, "etc/ssl/certs/ssl-cert-snakeoil.pem"),
            (&server.key, "etc/ssl/private/ssl-cert-snakeoil.key"),
            (&authority.certificate, "etc/ssl/ca.pem"),
        ] {
            fs::copy(from, path(to)).unwrap();
        }
        let locked = path("etc/ssl/locked.key");
        let encrypt = ["pkcs8", "-topk8", "-passout", "pass:open", "-in"];
        openssl(&[&encrypt[..], &[text(&server.key), "-out", text(&locked)]].concat());
        let public = path("etc/novnc/jwt.pem");
        let extract = ["pkey", "-pubout", "-in", text(&server.key)];
        openssl(&[&extract[..], &["-out", text(&public)]].concat());
        let greeter = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/greeter.py");
        for name in ["usr/bin/telnetd", "usr/bin/vncserver"] {
            fs::copy(&greeter, path(name)).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in ["run/vnc.sock", "run/desks/desk"] {
            let listener = UnixListener::bind(path(name)).unwrap();
            thread::spawn(move || listener.incoming().flatten().for_each(greet));
        }
        for &port in ports {
            for host in [
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ] {
                let listener = TcpListener::bind((host, port)).unwrap();
                thread::spawn(move || listener.incoming().flatten().for_each(greet));
            }
        }
        let syslog = UnixDatagram::bind(path("dev/log")).unwrap();
        thread::spawn(move || while syslog.recv(&mut [0; 4096]).is_ok() {});
        Self { root, tls }
    }

    /// A text of the table with the paths as they really are.
    fn place(&self, words: &str) -> String {
        let mut placed = String::new();
        let mut before = ' ';
        for (at, letter) in words.char_indices() {
            if letter == '/' && " ='\"".contains(before) && !words[at..].starts_with("//") {
                placed.push_str(text(self.root.path()));
            }
            placed.push(letter);
            before = letter;
        }
        placed
    }

    /// The command of a shape.
    fn command(&self, shape: &Shape) -> Command {
        let programs = self.root.path().join("usr/bin");
        let path = std::env::var("PATH").unwrap();
        let script = format!("exec \"$0\" {}", self.place(shape.line));
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(executable())
            .current_dir(self.root.path().join(shape.home))
            .env("PATH", format!("{}:{path}", text(&programs)));
        command
    }

    fn play(&self, shape: &Shape) {
        match shape.outcome {
            Outcome::Error(status) => self.expect_error(shape, status),
            _ => self.start(shape),
        }
    }

    /// Checks that there is an error of this status.
    fn expect_error(&self, shape: &Shape, status: i32) {
        let mut command = self.command(shape);
        command.stdin(Stdio::null());
        let said = Said::by(command);
        assert_eq!(said.status.code(), Some(status), "{said:?}");
        assert!(said.stdout.is_empty(), "{said:?}");
        // The words are our own, but for those that scripts look for.
        let error = (!theirs() || status == 2).then(|| "error:".to_owned());
        let says = shape.says.iter().map(|part| self.place(part));
        for part in says.filter(|_| !theirs()).chain(error) {
            assert!(said.stderr.contains(&part), "no {part:?} in {said:?}");
        }
    }

    /// Starts it, has it do what it is for, and ends it.
    fn start(&self, shape: &Shape) {
        let command = self.command(shape);
        let mut server = if shape.line.contains("--inetd") {
            Server::with_command_on(command, TcpListener::bind(INETD).unwrap())
        } else {
            Server::with_command(command)
        };
        let daemon = shape.daemon.map(|port| Listeners { port });
        // A daemon of the original says no more than this.
        let last = match shape.daemon {
            Some(_) => "Backgrounding (daemon)",
            None => "proxying from ",
        };
        let says = shape.says.iter().map(|part| self.place(part));
        let mut lines: Vec<String> = says.map(|part| server.wait_for_line(&part)).collect();
        if !lines.iter().any(|line| line.contains(last)) {
            lines.push(server.wait_for_line(last));
        }
        if let Some(daemon) = &daemon {
            daemon.wait();
        }
        let door = match &daemon {
            Some(daemon) => Door::Port((Ipv4Addr::LOCALHOST, daemon.port).into()),
            None => Door::named_in(&lines),
        };
        if shape.serves() {
            self.visit(shape, &door);
        }
        if daemon.is_none() && !shape.ends() {
            server.signal(Signal::SIGTERM);
        }
        let status = server.wait();
        assert!(theirs() || status.success(), "{status}");
        if !shape.ends() {
            drop(daemon);
        }
        if let Door::Port(address) = door {
            wait_until("the port to be free", || {
                listeners_on(address.port()).is_empty().then_some(())
            });
        }
    }

    /// Becomes a session, after a look at the page if there is one.
    fn visit(&self, shape: &Shape, door: &Door) {
        let handshake = Handshake::default()
            .request_line("GET /websockify?token=desk HTTP/1.1")
            .replace("Host", "desk")
            .with("Sec-WebSocket-Protocol: binary")
            .with("Origin: https://console.example")
            .with("Authorization: Basic dXNlcjpwYXNz");
        let address = match door {
            Door::Port(address) => *address,
            Door::Socket(path) => {
                let mut stream = wait_until("the socket", || UnixStream::connect(path).ok());
                stream.write_all(&handshake.bytes()).unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(GREETING) {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    answer.push(byte[0]);
                }
                return assert!(answer.starts_with(b"HTTP/1.1 101 "));
            }
        };
        // The lines come before the original listens.
        wait_until("the port to be open", || TcpStream::connect(address).ok());
        let connect = || {
            if shape.speaks_tls() {
                Client::tls(address, &self.tls).unwrap()
            } else {
                Client::raw(address)
            }
        };
        if shape.line.contains("--web") {
            let mut client = connect();
            client.request(b"GET /vnc.html HTTP/1.1\r\nHost: desk\r\nAuthorization: Basic dXNlcjpwYXNz\r\nConnection: close\r\n\r\n");
            assert_eq!(client.status(), "200");
            assert_eq!(client.read_body(), PAGE.as_bytes());
        }
        let mut client = connect();
        client.request(&handshake.bytes());
        assert_eq!(client.status(), "101");
        assert_eq!(client.read_binary(GREETING.len()), GREETING);
        client.send_close(1000);
        client.read_to_close();
    }
}

/// Where a super-server listens.
const INETD: &str = "127.0.0.1:6080";

/// Where clients come in.
enum Door {
    Port(SocketAddr),
    Socket(PathBuf),
}

impl Door {
    /// The one that the settings name.
    fn named_in(lines: &[String]) -> Self {
        let named = lines.iter().find_map(|line| {
            let (_, rest) = line.split_once("proxying from ")?;
            Some(rest.split_once(" to ")?.0)
        });
        let source = match named.expect("the settings say from where to where") {
            "inetd" => INETD,
            path if path.starts_with('/') => return Self::Socket(path.into()),
            source => source,
        };
        let (host, port) = source.rsplit_once(':').expect("it has a port");
        let host = match host {
            "[::1]" => IpAddr::V6(Ipv6Addr::LOCALHOST),
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        Self::Port(SocketAddr::new(host, port.parse().expect("it is a number")))
    }
}

/// Whoever listens on a port, ended by a signal.
struct Listeners {
    port: u16,
}

impl Listeners {
    fn wait(&self) {
        wait_until("the daemon", || {
            (!listeners_on(self.port).is_empty()).then_some(())
        });
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // The network is the test's own.
        for (_, pid) in listeners_on(self.port) {
            _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
    }
}

/// Says what a VNC server says first, and waits for the client's end.
fn greet(stream: impl Read + Write + Send + 'static) {
    let mut stream = stream;
    thread::spawn(move || {
        _ = stream.write_all(GREETING);
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
}

/// Plays a table, and tells of all shapes that do not come out as it says.
fn play(shapes: &[Shape], ports: &[u16]) {
    let stage = Stage::with_targets(ports);
    let played = shapes
        .iter()
        .filter(|shape| !theirs() || shape.unlike.is_none());
    let failed: Vec<&str> = played
        .filter(|shape| catch_unwind(AssertUnwindSafe(|| stage.play(shape))).is_err())
        .map(|shape| shape.line)
        .collect();
    assert!(failed.is_empty(), "not as the table says: {failed:#?}");
}

#[test]
fn desktops_are_served() {
    if in_own_network("shapes::desktops_are_served") {
        play(DESKTOPS, &[5900, 5901]);
    }
}

#[test]
fn consoles_are_served() {
    if in_own_network("shapes::consoles_are_served") {
        play(CONSOLES, &[5900, 5901]);
    }
}

#[test]
fn tokens_lead_where_they_should() {
    if in_own_network("shapes::tokens_lead_where_they_should") {
        play(TOKENS, &[5901]);
    }
}

#[test]
fn wrapped_programs_are_served() {
    // The package of the original comes without the library that it wraps with.
    if !theirs() && in_own_network("shapes::wrapped_programs_are_served") {
        play(WRAPPED, &[]);
    }
}

#[test]
fn every_form_of_options_is_taken_or_refused() {
    if in_own_network("shapes::every_form_of_options_is_taken_or_refused") {
        play(FORMS, &[5900]);
    }
}
