//! Peers that say nothing: those that are only silent are kept, and those that have vanished without a word are given up.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use integration::{Client, Server, Target, in_own_network, pattern, wait_until};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

/// Where the two ends of the cable are, each in a network of its own.
const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// A machine at the other end of a cable: what it is given to do is done in its network.
struct FarMachine {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
}

impl FarMachine {
    /// Connects it, in a network of the test's own.
    fn new() -> Self {
        let (jobs, received) = channel::<Box<dyn FnOnce() + Send>>();
        let (told, number) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            told.send(gettid()).unwrap();
            received.into_iter().for_each(|job| job());
        });
        let number = number.recv().unwrap();
        ip(&format!(
            "link add near type veth peer name far netns {number}"
        ));
        ip(&format!("address add {NEAR}/24 dev near"));
        ip("link set near up");
        let machine = Self { jobs };
        machine.run(|| {
            ip(&format!("address add {FAR}/24 dev far"));
            ip("link set far up");
        });
        machine
    }

    /// Does something there.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = move || _ = done.send(job());
        self.jobs.send(Box::new(job)).unwrap();
        result.recv().unwrap()
    }

    /// From now on nothing comes from there, and nothing gets there.
    fn cut_off(&self) {
        self.run(|| ip("link set far down"));
    }
}

/// Sends until nothing more is taken for a while.
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let part = pattern(1 << 16);
    let (mut sent, mut failed) = (0, 0);
    wait_until("a full connection", || {
        match stream.write(&part[sent % part.len()..]) {
            Ok(length) => (sent, failed) = (sent + length, 0),
            Err(_) => failed += 1,
        }
        (failed == 200).then_some(())
    });
    stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn peers_that_vanish_are_given_up_and_those_that_only_take_nothing_are_kept() {
    if !in_own_network(
        "peers::peers_that_vanish_are_given_up_and_those_that_only_take_nothing_are_kept",
    ) {
        return;
    }
    let far = FarMachine::new();
    let near_target = Target::new();
    let listener = TcpListener::bind((NEAR, 0)).unwrap();
    let options = ["--peer-timeout", "4", "--heartbeat", "0"];
    let target = near_target.address().to_string();
    let mut server = Server::on(listener, &[&options[..], &[&target]].concat());
    let address = server.address();
    let (far_listener, far_address) = far.run(|| {
        let listener = TcpListener::bind((FAR, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    });
    let to_far = far_address.to_string();
    let mut server_to_far = Server::with(&[&options[..], &[&to_far]].concat());

    // Clients: one that nothing is sent to, one that is sent something, and one that is there and takes nothing.
    let _idle = far.run(move || Client::connect(address));
    let _idle_peer = near_target.accept();
    let _busy = far.run(move || Client::connect(address));
    let mut busy_peer = near_target.accept();
    let mut stalled = Client::connect(address);
    let mut stalled_peer = near_target.accept();
    let filled = fill(&mut stalled_peer);
    // Targets of the same kinds.
    let mut of_idle = Client::connect(server_to_far.address());
    let _far_idle = far_listener.accept().unwrap();
    let mut of_busy = Client::connect(server_to_far.address());
    let _far_busy = far_listener.accept().unwrap();

    far.cut_off();
    busy_peer.write_all(b"into the void").unwrap();
    of_busy.send_binary(b"into the void");
    let mut reasons: Vec<_> = (0..2)
        .map(|_| server.wait_for_line("Client connection lost ("))
        .collect();
    reasons.sort_by_key(|line| line.contains("Connection timed out"));
    assert!(
        reasons[0].contains("(no acknowledgement for 4 s)"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("(Connection timed out)"), "{reasons:?}");
    for (client, reason) in [
        (&mut of_idle, "(Connection timed out)"),
        (&mut of_busy, "(no acknowledgement for 4 s)"),
    ] {
        let (_, code, _) = client.read_to_close();
        assert_eq!(code, Some(1011), "{reason}");
        client.send_close(1011);
    }
    let lines: Vec<_> = (0..2)
        .map(|_| server_to_far.wait_for_line("Target connection lost ("))
        .collect();
    for reason in ["(no acknowledgement for 4 s)", "(Connection timed out)"] {
        assert!(lines.iter().any(|line| line.contains(reason)), "{lines:?}");
    }
    // It has taken nothing all the while, and nothing is missing.
    let expected = pattern(1 << 16);
    let received = stalled.read_binary(filled);
    assert!(
        received
            .chunks(1 << 16)
            .all(|part| expected.starts_with(part))
    );
    stalled.send_binary(b"still here");
    let mut received = [0; 10];
    stalled_peer.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still here");
}

#[test]
fn a_client_that_is_sent_nothing_is_pinged_unless_that_is_turned_off() {
    let target = Target::new();
    let server = Server::to(target.address());
    let silenced = Server::with(&["--heartbeat", "0", &target.address().to_string()]);
    let mut quiet = Client::connect(silenced.address());
    let mut quiet_peer = target.accept();
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    let ping = client.read_frame();
    assert_eq!((ping.first, &ping.payload[..]), (0x89, &b""[..]));
    // It need not answer.
    peer.write_all(b"on").unwrap();
    assert_eq!(client.read_binary(2), b"on");
    // The other one has waited for longer.
    quiet_peer.write_all(b"on").unwrap();
    assert_eq!(quiet.read_frame().payload, b"on");
}
