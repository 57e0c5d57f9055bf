//! Where it listens, and what happens when it cannot.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

use integration::{Client, Handshake, Server, Target, run_to_end, wait_until};
use nix::sys::signal::Signal;

/// A round trip through the bridge over `connect`'s address.
fn works(address: SocketAddr, target: &Target) {
    let mut client = Client::connect(address);
    let mut peer = target.accept();
    client.send_binary(b"ok");
    let mut arrived = [0; 2];
    peer.read_exact(&mut arrived).unwrap();
    assert_eq!(&arrived, b"ok");
}

fn on_loopback(server: &Server, host: &str) -> SocketAddr {
    SocketAddr::new(host.parse::<IpAddr>().unwrap(), server.address().port())
}

#[test]
fn every_form_of_a_source_listens_where_it_says() {
    let target = Target::new();
    let address = target.address().to_string();
    for (source, hosts) in [
        ("127.0.0.1:0", &["127.0.0.1"][..]),
        ("localhost:0", &["127.0.0.1"]),
        ("[::1]:0", &["::1"]),
        ("::1:0", &["::1"]),
    ] {
        let server = Server::listening_by_itself(&[source, &address]);
        for host in hosts {
            works(on_loopback(&server, host), &target);
        }
        let refused = if hosts == ["::1"] { "127.0.0.1" } else { "::1" };
        assert!(
            TcpStream::connect(on_loopback(&server, refused)).is_err(),
            "{source}"
        );
    }
    let server = Server::listening_by_itself(&["-6", "localhost:0", &address]);
    // Not every machine has an IPv6 address for that name.
    let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 0)).unwrap();
    let expected = if addresses.any(|address| address.is_ipv6()) {
        "::1"
    } else {
        "127.0.0.1"
    };
    works(on_loopback(&server, expected), &target);
    let server = Server::listening_by_itself(&[":0", &address]);
    for host in ["127.0.0.1", "::1"] {
        works(on_loopback(&server, host), &target);
    }
}

#[test]
fn a_port_in_use_an_unknown_name_and_a_foreign_address_are_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (source, what) in [
        (&taken[..], "Address already in use"),
        (
            "no.such.name.invalid:0",
            "cannot resolve 'no.such.name.invalid'",
        ),
        ("192.0.2.77:0", "Cannot assign requested address"),
    ] {
        let output = run_to_end(&[source, "localhost:1"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(output.stdout.is_empty());
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(what) && stderr.contains(source), "{stderr}");
    }
}

#[test]
fn a_unix_socket_has_its_mode_serves_and_goes_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let name = path.to_str().unwrap();
    // What an earlier run left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let target = Target::new();
    let address = target.address().to_string();
    let mut command = Command::new(integration::executable());
    command.args([
        "--unix-listen",
        name,
        "--unix-listen-mode",
        "0660",
        &address,
    ]);
    let mut server = Server::with_command(command);
    server.wait_for_line(&format!("Listen on unix socket {name}"));
    server.wait_for_line("proxying from");
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&Handshake::default().bytes()).unwrap();
    let mut start = [0; 13];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 101 ");
    let line = server.wait_for_line("Plain non-SSL");
    assert!(line.starts_with("unix - - ["), "{line}");
    target.accept();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_way_of_a_unix_socket_is_kept() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = run_to_end(&[
        "--unix-listen",
        file.path().to_str().unwrap(),
        "localhost:1",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("not a socket")
    );
    assert!(file.path().exists());
}

#[test]
fn inetd_without_a_listening_socket_is_an_error() {
    let output = run_to_end(&["--inetd", "localhost:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--inetd wants a stream socket")
    );
}

#[test]
fn running_out_of_descriptors_neither_spins_nor_kills() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    server.wait_for_line("proxying");
    // It knows of what it was started with.
    let limit = format!("--nofile={}", server.descriptors() + 20);
    let limited = Command::new("prlimit")
        .args(["--pid", &server.pid().to_string(), &limit])
        .status();
    assert!(limited.unwrap().success());
    let clients: Vec<Client> = (0..40).map(|_| Client::raw(server.address())).collect();
    server.wait_for_line("cannot accept connections for now");
    let cpu_ticks = || -> u64 {
        let stat = server.proc_file("stat");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu_ticks();
    let pause = std::time::Instant::now();
    wait_until("half a second", || {
        (pause.elapsed().as_millis() > 500).then_some(())
    });
    assert!(cpu_ticks() - before < 25, "it spins");
    drop(clients);
    works(server.address(), &target);
}
