//! The programs that people really wrap: telnetd and VNC servers.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use integration::{Client, Scratch, Server, in_own_network, wait_until};

use crate::wrapping::{nobody_else_listens, wrap, wrap_on};

const TELNETD: &str = "/usr/sbin/in.telnetd";

/// Talks to telnetd until it asks for a name: refuses every option, as a client without any would.
fn login_prompt(address: SocketAddr) -> String {
    const IAC: u8 = 255;
    let mut client = Client::connect(address);
    let (mut text, mut command) = (Vec::new(), Vec::new());
    let mut negotiated = false;
    while !String::from_utf8_lossy(&text).contains("login: ") {
        for byte in client.read_frame().payload {
            match (&command[..], byte) {
                ([], IAC) => command.push(byte),
                ([], _) => text.push(byte),
                ([IAC], 251..=254) => command.push(byte),
                ([IAC], _) => command.clear(),
                // WILL is answered with DONT, DO with WONT.
                ([IAC, verb], option) => {
                    if let 251 | 253 = verb {
                        negotiated = true;
                        client.send_binary(&[IAC, if *verb == 251 { 254 } else { 252 }, option]);
                    }
                    command.clear();
                }
                _ => unreachable!("commands have three bytes"),
            }
        }
    }
    assert!(negotiated, "telnetd negotiates");
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn telnetd_serves_one_client_after_another_under_respawn() {
    let mut server = wrap(&["--wrap-mode=respawn"], &[TELNETD, "-debug", "PORT"]);
    for _ in 0..3 {
        let text = login_prompt(server.address());
        assert!(text.contains("login: "), "{text}");
        nobody_else_listens(&server);
        server.wait_for_line("Starting '/usr/sbin/in.telnetd -debug ");
    }
}

#[test]
fn the_command_of_the_readme_works_on_port_2023_itself() {
    if !in_own_network("real::the_command_of_the_readme_works_on_port_2023_itself") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(TELNETD, directory.path().join("telnetd")).unwrap();
    let mut command = Command::new(integration::executable());
    let path = format!(
        "{}:{}",
        directory.path().display(),
        std::env::var("PATH").unwrap()
    );
    command
        .args([
            "2023",
            "--wrap-mode=respawn",
            "--",
            "telnetd",
            "-debug",
            "2023",
        ])
        .env("PATH", path);
    let mut server = Server::with_command(command);
    server.wait_for_line("  - Listen on :2023");
    server.wait_for_line("  - proxying from :2023 to 'telnetd -debug 2023' (port ");
    server.wait_for_line("Starting 'telnetd -debug 2023'");
    for address in ["127.0.0.1:2023", "[::1]:2023", "127.0.0.1:2023"] {
        login_prompt(address.parse().unwrap());
        server.wait_for_line("connecting to command: 'telnetd -debug 2023' (port ");
    }
}

/// A display whose VNC port was free, with the listening socket that keeps it.
fn display() -> (u16, TcpListener) {
    (20..200)
        .rev()
        .filter(|display| !Path::new(&format!("/tmp/.X11-unix/X{display}")).exists())
        .find_map(|display| {
            Some((
                display,
                TcpListener::bind(("127.0.0.1", 5900 + display)).ok()?,
            ))
        })
        .expect("a display is free")
}

/// A desktop in a home directory of its own.
struct Desktop {
    home: Scratch,
    display: u16,
    server: Server,
}

impl Desktop {
    fn start(mode: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (display, listener) = display();
        let name = format!(":{display}");
        let home_variable = format!("HOME={}", home.path().display());
        let xstartup = home.path().join("xstartup");
        std::fs::write(&xstartup, "#!/bin/sh\nexec sleep infinity\n").unwrap();
        std::fs::set_permissions(
            &xstartup,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let command = [
            "env",
            &home_variable,
            "vncserver",
            &name,
            "-SecurityTypes",
            "None",
            "-localhost",
            "no",
            "--I-KNOW-THIS-IS-INSECURE",
            "-xstartup",
            xstartup.to_str().unwrap(),
        ];
        let server = wrap_on(
            listener,
            &["--wrap-mode", mode, "--wrap-timeout", "30"],
            &command,
        );
        Self {
            home,
            display,
            server,
        }
    }

    /// Checks that a client reaches the VNC server, and that nobody reaches it in another way.
    fn check(&self) {
        let mut client = Client::connect(self.server.address());
        assert_eq!(client.read_binary(12), b"RFB 003.008\n");
        client.send_close(1000);
        client.read_to_close();
        nobody_else_listens(&self.server);
    }

    fn kill(&self) {
        let output = Command::new("vncserver")
            .args(["-kill", &format!(":{}", self.display)])
            .env("HOME", self.home.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn vncserver_serves_under_ignore() {
    let mut desktop = Desktop::start("ignore");
    desktop.check();
    desktop.check();
    desktop.kill();
    desktop.server.wait_for_line("the wrapped program is gone");
}

#[test]
fn vncserver_ends_the_bridge_under_exit_when_it_is_killed() {
    let mut desktop = Desktop::start("exit");
    desktop.check();
    desktop.kill();
    assert!(desktop.server.wait().code().is_some());
}

#[test]
fn vncserver_comes_back_under_respawn_when_it_is_killed() {
    let mut desktop = Desktop::start("respawn");
    desktop.check();
    desktop.server.wait_for_line("Starting 'env");
    desktop.kill();
    desktop.server.wait_for_line("Starting 'env");
    desktop.check();
    let x_socket = format!("/tmp/.X11-unix/X{}", desktop.display);
    assert!(Path::new(&x_socket).exists());
    desktop.server.signal(nix::sys::signal::Signal::SIGTERM);
    desktop.server.wait();
    wait_until("the X server to go", || {
        (!Path::new(&x_socket).exists()).then_some(())
    });
}
