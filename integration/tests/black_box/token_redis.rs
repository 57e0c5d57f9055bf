//! Tokens that Redis knows: the real one in every way that it can be reached, down, restarted and stopped; and one that says what
//! a test wants it to.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use integration::{
    Certificates, Client, FAST, Scratch, Server, Target, run_to_end, text, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tokens::{reaches, status, with};

/// How soon a token is found again when Redis is back; a second is what it takes at most on a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(3);

/// A Redis of the test's own, on a unix socket.
struct Redis {
    directory: Scratch,
    options: Vec<String>,
    /// What it says first to whoever has a password.
    password: Option<String>,
    child: Option<Child>,
}

impl Redis {
    /// One that is not running yet.
    fn new(options: &[&str]) -> Self {
        Self {
            directory: Scratch::new().unwrap(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            password: None,
            child: None,
        }
    }

    /// One that answers.
    fn running(options: &[&str]) -> Self {
        let mut redis = Self::new(options);
        redis.start();
        redis
    }

    /// The same on a port as well, by this option; it is added to the others.
    fn on_port(option: &str, options: &[&str]) -> (Self, u16) {
        loop {
            // Somebody else may be given it meanwhile.
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let number = port.to_string();
            let mut redis =
                Self::new(&[&["--bind", "127.0.0.1", option, &number], options].concat());
            if redis.try_start() {
                return (redis, port);
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The URL of the socket, with this query.
    fn url(&self, query: &str) -> String {
        format!("unix://{}{query}", self.socket().display())
    }

    fn start(&mut self) {
        assert!(self.try_start(), "redis-server does not start");
    }

    /// Starts it, and waits until it answers. Returns false if it ends instead.
    fn try_start(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        if !self.options.iter().any(|option| option == "--port") {
            command.args(["--port", "0"]);
        }
        command.args(["--save", "", "--loglevel", "warning", "--unixsocket"]);
        command
            .arg(self.socket())
            .arg("--dir")
            .arg(self.directory.path());
        command.args(&self.options);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = self.child.insert(child.expect("redis-server is installed"));
        let socket = self.directory.path().join("socket");
        wait_until("Redis to answer", || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let mut stream = UnixStream::connect(&socket).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            (line.starts_with('+') || line.starts_with("-NOAUTH")).then_some(true)
        })
    }

    /// Ends it as a crash does.
    fn crash(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id().cast_signed();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Gives a command, and returns the first line of the answer, and the second of one that has two.
    fn say(&self, words: &[&str]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        if let Some(password) = &self.password {
            stream.write_all(&encoded(&["AUTH", password])).unwrap();
        }
        stream.write_all(&encoded(words)).unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        if self.password.is_some() {
            assert_eq!(lines.next().unwrap(), "+OK");
        }
        let first = lines.next().unwrap();
        if first.starts_with('$') && first != "$-1" {
            return lines
                .take_while(|line| !line.is_empty())
                .collect::<Vec<_>>()
                .join("\n");
        }
        first
    }

    /// Sets a key.
    fn set(&self, key: &str, value: &str) {
        assert_eq!(self.say(&["SET", key, value]), "+OK");
    }

    /// A number that `INFO` tells.
    fn info(&self, section: &str, name: &str) -> usize {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(&encoded(&["INFO", section])).unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let found = lines.filter_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')
                .map(str::to_owned)
        });
        found.take(1).next().unwrap().parse().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// A command as it is sent.
fn encoded(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        write!(bytes, "${}\r\n{word}\r\n", word.len()).unwrap();
    }
    bytes
}

/// A bridge that asks Redis at this source.
fn bridge(source: &str) -> Server {
    bridge_with(source, &[])
}

fn bridge_with(source: &str, options: &[&str]) -> Server {
    let arguments = [
        &["--token-plugin", "TokenRedis", "--token-source", source],
        options,
    ]
    .concat();
    let mut server = Server::with(&arguments);
    server.wait_for_line("to targets generated by TokenRedis");
    server
}

/// Asks for a token, and returns the status with how long it took.
fn timed(server: &Server, token: &str) -> (String, Duration) {
    let begin = Instant::now();
    let status = status(server, token);
    (status, begin.elapsed())
}

#[test]
fn a_key_leads_to_its_target() {
    let target = Target::new();
    let address = target.address();
    let port = address.port();
    let redis = Redis::running(&[]);
    for (key, value) in [
        ("text", format!("{address}")),
        ("blank", format!(" {address}\n")),
        ("json", format!("{{\"host\":\"{address}\"}}")),
        (
            "number",
            format!("\n{{\"host\": \"127.0.0.1\", \"port\": {port}, \"x\": 1}}"),
        ),
        (
            "string",
            format!("{{\"host\":\"127.0.0.1\",\"port\":\"{port}\"}}"),
        ),
        ("a b:c/é\n%00", address.to_string()),
        (
            "long",
            format!(
                "{address}{}",
                " ".repeat((64 << 10) - address.to_string().len())
            ),
        ),
        ("longer", format!("{address}{}", " ".repeat(64 << 10))),
        ("nonsense", "nonsense".to_owned()),
        ("empty", String::new()),
        ("nothing", "{}".to_owned()),
        ("half", "{\"host\":".to_owned()),
    ] {
        redis.set(key, &value);
    }
    assert_eq!(redis.say(&["RPUSH", "list", &address.to_string()]), ":1");
    let mut server = bridge(&redis.url(""));
    for known in [
        "text",
        "blank",
        "json",
        "number",
        "string",
        "long",
        "a+b:c%2F%C3%A9%0A%2500",
    ] {
        reaches(&server, known, &target);
    }
    for unknown in [
        "missing", "Text", "nonsense", "empty", "nothing", "half", "longer", "list",
    ] {
        assert_eq!(status(&server, unknown), "403", "{unknown}");
    }
    for said in [
        "the answer for the token … (8 bytes) is no target: it is not host:port",
        "(8 bytes) is no target: it is not JSON",
        "what Redis has for the token … is longer than 64 KiB",
        "what Redis has for the token … is no string, or not for us (WRONGTYPE)",
    ] {
        server.wait_for_line(said);
    }
    // A token is a key and never a command.
    for command in [
        "x%0D%0AFLUSHALL%0D%0A",
        "*1%0D%0A$8%0D%0AFLUSHALL%0D%0A",
        "%00",
        "$-1",
    ] {
        assert_eq!(status(&server, command), "403", "{command}");
    }
    assert_eq!(redis.say(&["DBSIZE"]), ":13");
    reaches(&server, "text", &target);
}

#[test]
fn a_huge_value_is_not_read() {
    let redis = Redis::running(&[]);
    assert_eq!(
        redis.say(&["SETRANGE", "huge", "400000000", "x"]),
        ":400000001"
    );
    let server = bridge(&redis.url(""));
    assert_eq!(status(&server, "missing"), "403");
    let memory = server.resident_memory();
    for _ in 0..10 {
        assert_eq!(status(&server, "huge"), "403");
    }
    let grown = server.resident_memory().saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes");
}

#[test]
fn every_part_of_a_source_counts() {
    let target = Target::new();
    let address = target.address().to_string();
    let (mut redis, port) = Redis::on_port("--port", &["--requirepass", "p:w"]);
    redis.password = Some("p:w".to_owned());
    redis.set("a:b:spaced", &address);
    redis.set("plain", &address);
    assert_eq!(redis.say(&["MOVE", "plain", "3"]), ":1");
    redis.set("plain", "127.0.0.1:1");
    let acl = [
        "ACL", "SETUSER", "bob", "on", ">b@b", "~a:b:*", "+get", "+select",
    ];
    assert_eq!(redis.say(&acl), "+OK");
    for (source, token) in [
        (format!("127.0.0.1:{port}::\"p:w\":'a:b'"), "spaced"),
        (format!("\"127.0.0.1\":{port}:3:'p:w'"), "plain"),
        (format!("localhost:{port}:3:\"p:w\":"), "plain"),
        (format!("redis://:p%3Aw@localhost:{port}/3"), "plain"),
        (
            format!("redis://default:p:w@127.0.0.1:{port}?db=3"),
            "plain",
        ),
        (
            format!("redis://bob:b%40b@127.0.0.1:{port}?namespace=a:b"),
            "spaced",
        ),
        (redis.url("?db=3&pass=p:w"), "plain"),
        (redis.url("?password=p:w&namespace=a:b"), "spaced"),
        (redis.url("?user=bob&pass=b%40b&namespace=a%3Ab"), "spaced"),
    ] {
        let server = bridge(&source);
        reaches(&server, token, &target);
        reaches(&server, token, &target);
        assert_eq!(status(&server, "other"), "403", "{source}");
    }
    // A key that the access list keeps from us is as good as none.
    let mut server = bridge(&redis.url("?user=bob&pass=b%40b"));
    assert_eq!(status(&server, "plain"), "403");
    server.wait_for_line("is no string, or not for us (NOPERM)");
    assert_eq!(redis.say(&["ACL", "SETUSER", "bob", "-get"]), "+OK");
    assert_eq!(status(&server, "plain"), "503");
    server.wait_for_line("its access list keeps us from asking (NOPERM); who needs it is refused");
}

#[test]
fn redis_may_be_reached_by_tls() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let identity = certificates.host("redis", FAST, Some(&root));
    let target = Target::new();
    let (redis, port) = Redis::on_port(
        "--tls-port",
        &[
            "--tls-cert-file",
            text(&identity.certificate),
            "--tls-key-file",
            text(&identity.key),
            "--tls-ca-cert-file",
            text(&root.certificate),
            "--tls-auth-clients",
            "no",
        ],
    );
    redis.set("t", &target.address().to_string());
    let start = |trusted: &std::path::Path, source: &str| {
        let trust = format!("SSL_CERT_FILE={}", text(trusted));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let arguments = ["--token-plugin", "TokenRedis", "--token-source", source];
        Server::through(&["env", "-u", "SSL_CERT_DIR", &trust], listener, &arguments)
    };
    for host in ["localhost", "127.0.0.1"] {
        let server = start(&root.certificate, &format!("rediss://{host}:{port}"));
        reaches(&server, "t", &target);
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let mut client = Client::raw(server.address());
                client.send(&with("t").bytes());
                client
            })
            .collect();
        for mut client in clients {
            client.read_head();
            assert_eq!(client.status(), "101");
            target.accept();
        }
    }
    let stranger = certificates.authority("stranger");
    let source = format!("rediss://localhost:{port}");
    let mut server = start(&stranger.certificate, &source);
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line(&format!(
        "TokenRedis: TLS with localhost:{port} failed: its certificate is signed by nobody who is trusted"
    ));
    // Neither understands the other.
    let mut server = start(&root.certificate, &format!("redis://127.0.0.1:{port}"));
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line(&format!("TokenRedis: Redis at 127.0.0.1:{port}: "));
    let (_redis, port) = Redis::on_port("--port", &[]);
    let mut server = start(&root.certificate, &format!("rediss://localhost:{port}"));
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line(&format!(
        "TokenRedis: Redis at localhost:{port}: it does not answer;"
    ));
    let empty = certificates.write("empty", b"");
    let mut server = start(&empty, &source);
    assert_eq!(server.wait().code(), Some(1));
    assert!(
        server
            .rest_of_log()
            .contains("--token-plugin TokenRedis: there are no certificates")
    );
}

#[test]
fn redis_may_start_after_us_and_be_restarted() {
    let target = Target::new();
    let mut redis = Redis::new(&[]);
    let mut server = bridge(&redis.url(""));
    for _ in 0..20 {
        let (code, took) = timed(&server, "t");
        assert_eq!(code, "503");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    redis.start();
    redis.set("t", &target.address().to_string());
    // Whoever asks now waits for the next attempt.
    let (code, took) = timed(&server, "t");
    assert_eq!(code, "101");
    assert!(took < SOON, "{took:?}");
    target.accept();
    for _ in 0..10 {
        reaches(&server, "t", &target);
        redis.crash();
        redis.start();
        redis.set("t", &target.address().to_string());
        let (code, took) = timed(&server, "t");
        assert_eq!(code, "101", "the first one after a restart");
        assert!(took < SOON, "{took:?}");
        target.accept();
    }
    // A connection that Redis closes itself.
    assert_eq!(
        redis.say(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        ":1"
    );
    reaches(&server, "t", &target);
    redis.crash();
    for _ in 0..3 {
        assert_eq!(status(&server, "t"), "503");
    }
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(log.contains("TokenRedis: cannot connect to /"), "{log}");
    assert!(log.contains("TokenRedis: answers again, after "), "{log}");
    // The second outage is too soon after the first, or it is told as well.
    let told = log
        .matches("who needs it is refused until it answers")
        .count();
    assert!((1..=2).contains(&told), "{log}");
}

#[test]
fn all_ask_on_one_connection_and_nobody_gets_the_answer_of_another() {
    const TARGETS: usize = 50;
    let targets: Vec<_> = (0..TARGETS)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let redis = Redis::running(&[]);
    for (number, target) in targets.into_iter().enumerate() {
        redis.set(
            &format!("n:{number}"),
            &target.local_addr().unwrap().to_string(),
        );
        thread::spawn(move || {
            for stream in target.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut stream = stream;
                    _ = stream.write_all(&[number as u8]);
                    // Until the client goes.
                    _ = stream.read(&mut [0]);
                });
            }
        });
    }
    let server = bridge(&redis.url("?namespace=n"));
    let address = server.address();
    let before = redis.info("stats", "total_connections_received");
    let clients: Vec<_> = (0..4 * TARGETS)
        .map(|client| {
            thread::spawn(move || {
                for round in 0..5 {
                    let number = (client * 7 + round * 13) % TARGETS;
                    let mut client = Client::with(address, &with(&number.to_string()));
                    assert_eq!(client.read_binary(1), [number as u8]);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    // The other one is that which asks here.
    assert_eq!(
        redis.info("stats", "total_connections_received") - before,
        2
    );
}

#[test]
fn a_redis_that_hangs_holds_up_only_those_who_ask_it() {
    let target = Target::new();
    let redis = Redis::running(&[]);
    redis.set("t", &target.address().to_string());
    for limit in ["2.5", "0.3"] {
        let mut server = bridge_with(&redis.url(""), &["--token-timeout", limit]);
        reaches(&server, "t", &target);
        let memory = server.resident_memory();
        redis.signal(Signal::SIGSTOP);
        for _ in 0..3 {
            let clients: Vec<_> = (0..200)
                .map(|_| {
                    let mut client = Client::raw(server.address());
                    client.send(&with("t").bytes());
                    client
                })
                .collect();
            // Who is gone is gone.
            let mut clients = clients.into_iter();
            drop(clients.by_ref().take(50).collect::<Vec<_>>());
            // What needs no token is answered as ever.
            let mut other = Client::raw(server.address());
            other.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(other.status(), "405");
            for mut client in clients {
                client.read_head();
                assert_eq!(client.status(), "503");
            }
        }
        let line = server.wait_for_line("who needs it is refused until it answers");
        assert!(
            line.contains(": it does not answer;") || line.contains("no answer within"),
            "{line}"
        );
        redis.signal(Signal::SIGCONT);
        // One may still be told of the attempt that has failed.
        let begin = Instant::now();
        wait_until("a look-up to succeed", || {
            (status(&server, "t") == "101").then_some(())
        });
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
        target.accept();
        for _ in 0..10 {
            reaches(&server, "t", &target);
        }
        let grown = server.resident_memory().saturating_sub(memory);
        assert!(grown < 16 << 20, "{grown} bytes");
        // Of all the connections that were tried there is one left.
        wait_until("one connection", || {
            (redis.info("clients", "connected_clients") == 2).then_some(())
        });
    }
}

#[test]
fn a_redis_that_is_busy_for_a_while_is_waited_for() {
    let target = Target::new();
    let redis = Redis::running(&["--enable-debug-command", "yes"]);
    redis.set("t", &target.address().to_string());
    let server = bridge(&redis.url(""));
    reaches(&server, "t", &target);
    thread::scope(|scope| {
        for pause in ["0.2", "0.8", "2"] {
            let busy = scope.spawn(|| redis.say(&["DEBUG", "SLEEP", pause]));
            while !busy.is_finished() {
                reaches(&server, "t", &target);
            }
        }
    });
}

#[test]
fn a_password_that_changes_is_told_and_waited_for() {
    let target = Target::new();
    let mut redis = Redis::running(&[]);
    let mut server = bridge(&redis.url("?pass=right"));
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line("it has no password, and is given one (ERR); who needs it is refused");
    redis.crash();
    let protected = |redis: &mut Redis, password: &str| {
        redis.options = vec!["--requirepass".to_owned(), password.to_owned()];
        redis.password = Some(password.to_owned());
        redis.start();
        redis.set("t", &target.address().to_string());
    };
    protected(&mut redis, "right");
    reaches(&server, "t", &target);
    redis.crash();
    protected(&mut redis, "wrong");
    assert_eq!(status(&server, "t"), "503");
    let mut other = bridge(&redis.url("?pass=right"));
    assert_eq!(status(&other, "t"), "503");
    other.wait_for_line("it refuses the password (WRONGPASS); who needs it is refused");
    let mut other = bridge(&redis.url(""));
    assert_eq!(status(&other, "t"), "503");
    other.wait_for_line("it wants a password (NOAUTH); who needs it is refused");
    let mut other = bridge(&redis.url("?pass=wrong&db=99"));
    assert_eq!(status(&other, "t"), "503");
    other.wait_for_line("it has no database of this number (ERR); who needs it is refused");
    assert_eq!(redis.say(&["CONFIG", "SET", "requirepass", "right"]), "+OK");
    reaches(&server, "t", &target);
    for mut server in [server, other] {
        server.signal(Signal::SIGTERM);
        let log = server.rest_of_log();
        assert!(!log.contains("right") && !log.contains("pass="), "{log}");
    }
}

/// A service that answers the commands of each connection by what `answer` makes of the last word; `None` ends the connection.
/// Returns its port, and a count of connections.
fn scripted(
    answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, answer) = (Arc::clone(&count), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = Arc::clone(&answer);
            // A connection that breaks is over.
            thread::spawn(move || _ = play(&stream, &*answer));
        }
    });
    (port, count)
}

fn play(stream: &TcpStream, answer: &impl Fn(&str) -> Option<String>) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(first) = lines.next() {
        let first = first?;
        let words: usize = first.trim_start_matches('*').parse().unwrap();
        let mut command = Vec::new();
        for _ in 0..words {
            lines.next().unwrap()?;
            command.push(lines.next().unwrap()?);
        }
        // Of GETRANGE it is the key that matters.
        let word = command.get(1).unwrap_or(&command[0]);
        match answer(word) {
            Some(text) => (&*stream).write_all(text.as_bytes())?,
            None => return Ok(()),
        }
    }
    Ok(())
}

#[test]
fn what_is_wrong_with_redis_is_told_without_what_it_was_told() {
    let target = Target::new();
    let (port, _) = scripted(|word| {
        Some(match word {
            "PING" => "+PONG\r\n".to_owned(),
            "loading" => "-LOADING Redis is loading the dataset in memory\r\n".to_owned(),
            "moved" => "-MOVED 866 127.0.0.1:1\r\n".to_owned(),
            "master" => "-MASTERDOWN Link with MASTER is down\r\n".to_owned(),
            "odd" => "-ODD hunter2 'hunter2'\r\n".to_owned(),
            "lower" => "-hunter2 hunter2\r\n".to_owned(),
            "err" => "-ERR wrong thing 'hunter2'\r\n".to_owned(),
            "array" => "*1\r\n$7\r\nhunter2\r\n".to_owned(),
            "integer" => ":5\r\n".to_owned(),
            "nonsense" => "hunter2 is no answer\r\n".to_owned(),
            "web" => "HTTP/1.1 400 hunter2\r\n\r\n".to_owned(),
            _ => return None,
        })
    });
    for (token, said) in [
        ("loading", "it is still loading its data (LOADING)"),
        (
            "moved",
            "it is part of a cluster, which is not supported (MOVED)",
        ),
        (
            "master",
            "it is a replica that has lost its master (MASTERDOWN)",
        ),
        ("odd", "it answers ODD"),
        ("lower", "it answers with an error"),
        ("err", "it answers ERR"),
        ("array", "it answers with something else than a string"),
        ("integer", "it answers with something else than a string"),
        ("nonsense", "what it answers is not Redis' protocol"),
        ("web", "what it answers is not Redis' protocol"),
        ("close", "it has closed the connection, or does not answer"),
    ] {
        let mut server = bridge_with(&format!("127.0.0.1:{port}"), &["-v"]);
        assert_eq!(status(&server, token), "503", "{token}");
        server.signal(Signal::SIGTERM);
        let log = server.rest_of_log();
        let line = format!("TokenRedis: Redis at 127.0.0.1:{port}: {said}; who needs it");
        assert!(log.contains(&line), "{token}: {log}");
        assert!(!log.contains("hunter2"), "{log}");
    }
    // Redis' own ways to turn somebody away, which come before anything was asked.
    for (greeting, said) in [
        (
            "-ERR max number of clients reached\r\n",
            "it has as many clients as it may have (ERR)",
        ),
        (
            "-DENIED Redis is running in protected mode\r\n",
            "it is in protected mode",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = stream;
                _ = stream.write_all(greeting.as_bytes());
                _ = stream.read(&mut [0; 100]);
            }
        });
        let mut server = bridge(&format!("127.0.0.1:{port}"));
        assert_eq!(status(&server, "t"), "503");
        server.wait_for_line(said);
    }
    // One that knows GET only, as an old proxy may, and asks for patience.
    let to = target.address().to_string();
    let (port, connections) = scripted(move |word| {
        Some(match word {
            "PING" => "-ERR unknown command 'PING'\r\n".to_owned(),
            _ => format!("${}\r\n{to}\r\n", to.len()),
        })
    });
    let server = bridge(&format!("127.0.0.1:{port}"));
    for _ in 0..5 {
        reaches(&server, "t", &target);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_connection_that_is_lost_over_a_question_is_made_anew_once() {
    let target = Target::new();
    let to = target.address().to_string();
    let asked = Mutex::new(0);
    // Every second question ends the connection.
    let (port, connections) = scripted(move |word| match word {
        "PING" => Some("+PONG\r\n".to_owned()),
        "never" => None,
        _ => {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            (*asked % 2 == 0).then(|| format!("${}\r\n{to}\r\n", to.len()))
        }
    });
    let server = bridge(&format!("127.0.0.1:{port}"));
    for _ in 0..10 {
        reaches(&server, "t", &target);
    }
    let before = connections.load(Ordering::Relaxed);
    assert_eq!(status(&server, "never"), "503");
    assert!(connections.load(Ordering::Relaxed) <= before + 1);
}

#[test]
fn what_is_no_source_is_told_at_the_start_and_no_secret_is() {
    for (source, said) in [
        ("", "there is no host in it"),
        ("h:x:0:hunter2", "its port is not from 1 to 65535"),
        ("h:6379:x:hunter2", "its database is no number"),
        (
            "h:6379:0:hunter2:ns:more",
            "it has more parts than host:port:db:password:namespace",
        ),
        ("redis://:hunter2@h:x", "its port is not from 1 to 65535"),
        (
            "redis://hunter2@h",
            "there is a user in it, and no password",
        ),
        ("redis://:hunter2@", "there is no host in it"),
        ("rediss://h?hunter2=1", "its query has more than"),
        ("unix://hunter2", "the absolute path of a socket"),
    ] {
        let output = run_to_end(&[
            "0",
            "--token-plugin",
            "TokenRedis",
            "--token-source",
            source,
        ]);
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("--token-plugin TokenRedis: "), "{log}");
        assert!(log.contains(said), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
        assert_eq!(log.trim().lines().count(), 1, "{log}");
        assert_eq!(output.status.code(), Some(1), "{log}");
    }
}
