//! The files of the web directory: what browsers get, and what nobody gets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use integration::{Client, Handshake, Scratch, Server, Target, frame, hash, pattern, wait_until};

/// A web directory, `web` in a directory of the test's own, with something secret beside it.
struct Site {
    scratch: Scratch,
    target: Target,
    server: Server,
}

const SECRET: &str = "nobody is to read this";

impl Site {
    fn new(options: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let web = scratch.path().join("web");
        for directory in ["sub/empty", "with index"] {
            fs::create_dir_all(web.join(directory)).unwrap();
        }
        fs::create_dir(scratch.path().join("web-secret")).unwrap();
        for (name, content) in [
            ("secret.txt", SECRET),
            ("web-secret/secret.txt", SECRET),
            ("web/a.txt", "hello"),
            ("web/module.js", "export {}"),
            ("web/module.mjs", "export {}"),
            ("web/page.html", "<p>"),
            ("web/sub/<b> & 'c'.txt", "odd"),
            ("web/with index/index.html", "<h1>index</h1>"),
        ] {
            fs::write(scratch.path().join(name), content).unwrap();
        }
        let target = Target::new();
        let address = target.address().to_string();
        let server =
            Server::with(&[&["--web", web.to_str().unwrap()], options, &[&address]].concat());
        Self {
            scratch,
            target,
            server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("web").join(name)
    }

    /// Asks for a path with these header lines on a connection of its own.
    fn get(&self, path: &str, headers: &[&str]) -> (Client, Vec<u8>) {
        let mut client = Client::ask(self.server.address(), &request("GET", path, headers));
        let body = match client.header("Content-Length") {
            Some(_) => client.read_body(),
            None => Vec::new(),
        };
        (client, body)
    }
}

fn request(method: &str, path: &str, headers: &[&str]) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

#[test]
fn files_come_with_their_type_and_what_a_cache_needs() {
    let site = Site::new(&[
        "--web-header",
        "X-Frame-Options: DENY",
        "--web-header=x-a:1",
        "--web-header=X-A: 2",
    ]);
    for (path, kind) in [
        ("/a.txt", "text/plain"),
        ("/module.js?v=1", "text/javascript"),
        ("/module.mjs", "javascript"),
        ("/page.html", "text/html"),
        ("/with%20index/", "text/html"),
        ("http://localhost/page.html", "text/html"),
    ] {
        let (client, body) = site.get(path, &[]);
        assert_eq!(client.status(), "200", "{path}");
        let found = client.header("Content-Type").unwrap();
        assert!(
            found.ends_with(kind) || found.starts_with(kind),
            "{path}: {found}"
        );
        assert!(!body.is_empty(), "{path}");
        for header in ["Last-Modified", "ETag", "Date"] {
            assert!(
                client.header(header).is_some(),
                "{path}: {}",
                client.response
            );
        }
        assert_eq!(client.header("Cache-Control"), Some("no-cache"));
        assert_eq!(client.header("X-Frame-Options"), Some("DENY"));
        assert!(
            client.response.contains("\r\nX-A: 1\r\n")
                && client.response.contains("\r\nX-A: 2\r\n")
        );
        assert!(
            client.response.contains("\r\nServer: WebSockify/"),
            "{}",
            client.response
        );
    }
    // Nothing for whom it is not meant: a head only.
    let mut client = Client::ask(
        site.server.address(),
        &request("HEAD", "/a.txt", &["Connection: close"]),
    );
    assert_eq!(client.header("Content-Length"), Some("5"));
    assert_eq!(client.read_rest(), b"");
}

#[test]
fn conditions_and_ranges_are_respected() {
    let site = Site::new(&[]);
    let (client, _) = site.get("/a.txt", &[]);
    let tag = client.header("ETag").unwrap();
    let date = client.header("Last-Modified").unwrap();
    let status = |headers: &[&str]| {
        let (client, body) = site.get("/a.txt", headers);
        (client.status().to_owned(), String::from_utf8(body).unwrap())
    };
    let is = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    assert_eq!(status(&[&format!("If-None-Match: {tag}")]), is("304", ""));
    assert_eq!(
        status(&[&format!("If-Modified-Since: {date}")]),
        is("304", "")
    );
    assert_eq!(status(&["If-None-Match: \"other\""]), is("200", "hello"));
    assert_eq!(status(&["If-Match: \"other\""]).0, "412");
    assert_eq!(status(&["Range: bytes=1-2"]), is("206", "el"));
    assert_eq!(status(&["Range: bytes=-2"]), is("206", "lo"));
    assert_eq!(status(&["Range: bytes=9-"]).0, "416");
    for version in [tag, date] {
        assert_eq!(
            status(&["Range: bytes=0-0", &format!("If-Range: {version}")]),
            is("206", "h")
        );
    }
    assert_eq!(
        status(&["Range: bytes=0-0", "If-Range: \"other\""]),
        is("200", "hello")
    );
    assert_eq!(status(&["If-Range: \"other\""]), is("200", "hello"));
    // What is no single part of it is as if it had not been asked for.
    for range in ["bytes=-9", "bytes=3-1", "items=0-1", "bytes=0-0,2-3"] {
        let answer = status(&[&format!("Range: {range}")]);
        assert_eq!(answer, is("200", "hello"), "{range}");
    }
    let head = request("HEAD", "/a.txt", &["Range: bytes=0-0"]);
    assert_eq!(Client::ask(site.server.address(), &head).status(), "200");
}

#[test]
fn a_compressed_form_beside_a_file_is_sent_to_whom_it_suits() {
    let site = Site::new(&[]);
    fs::write(site.path("a.txt.gz"), "gzip").unwrap();
    fs::write(site.path("a.txt.br"), "brotli").unwrap();
    for (accepted, encoding, body) in [
        ("gzip", Some("gzip"), "gzip"),
        ("br", Some("br"), "brotli"),
        ("identity", None, "hello"),
        ("gzip;q=0", None, "hello"),
    ] {
        let (client, found) = site.get("/a.txt", &[&format!("Accept-Encoding: {accepted}")]);
        assert_eq!(client.header("Content-Encoding"), encoding, "{accepted}");
        assert_eq!(String::from_utf8(found).unwrap(), body, "{accepted}");
        assert_eq!(
            client.header("Content-Type"),
            Some("text/plain"),
            "{accepted}"
        );
    }
}

#[test]
fn a_directory_is_listed_unless_there_are_to_be_files_only() {
    let site = Site::new(&[]);
    let (client, body) = site.get("/sub/", &[]);
    assert_eq!(
        (client.status(), client.header("Content-Type")),
        ("200", Some("text/html; charset=utf-8"))
    );
    let page = String::from_utf8(body).unwrap();
    assert!(
        page.contains(
            "<a href=\"./%3Cb%3E%20%26%20%27c%27.txt\">&lt;b&gt; &amp; &#39;c&#39;.txt</a>"
        ),
        "{page}"
    );
    assert!(
        page.find("empty/").unwrap() < page.find("txt").unwrap(),
        "{page}"
    );
    assert!(
        !page.contains(site.scratch.path().to_str().unwrap()),
        "{page}"
    );
    let (client, _) = site.get("/with%20index?a=b", &[]);
    assert_eq!(
        (client.status(), client.header("Location")),
        ("301", Some("/with%20index/?a=b"))
    );
    let only = Site::new(&["--file-only"]);
    assert_eq!(only.get("/sub/", &[]).0.status(), "404");
    assert_eq!(only.get("/", &[]).0.status(), "404");
    assert_eq!(only.get("/a.txt", &[]).0.status(), "200");
    assert_eq!(only.get("/with%20index/", &[]).1, b"<h1>index</h1>");
}

#[test]
fn an_administrator_s_links_are_followed_and_what_is_no_file_is_not_opened() {
    let site = Site::new(&[]);
    symlink(
        site.scratch.path().join("secret.txt"),
        site.path("link.txt"),
    )
    .unwrap();
    symlink("link.txt", site.path("loop-a")).unwrap();
    fs::remove_file(site.path("loop-a")).unwrap();
    symlink("loop-b", site.path("loop-a")).unwrap();
    symlink("loop-a", site.path("loop-b")).unwrap();
    nix::unistd::mkfifo(&site.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(site.get("/link.txt", &[]).1, SECRET.as_bytes());
    for path in [
        "/pipe",
        "/loop-a",
        "/a.txt/",
        "/a.txt/x",
        "/none",
        &format!("/{}", "x".repeat(300)),
    ] {
        assert_eq!(site.get(path, &[]).0.status(), "404", "{path}");
    }
}

#[test]
fn other_methods_are_refused_with_those_that_are_allowed() {
    let site = Site::new(&[]);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "X"] {
        let client = Client::ask(
            site.server.address(),
            &request(method, "/a.txt", &["Content-Length: 0"]),
        );
        assert_eq!(
            (client.status(), client.header("Allow")),
            ("405", Some("GET, HEAD")),
            "{method}"
        );
    }
}

/// Attempts to get out of the web directory, of which the secret is one level above.
fn attempts() -> Vec<String> {
    let ways_up = [
        "..",
        "%2e%2e",
        "%2E%2E",
        ".%2e",
        "%2e.",
        "..%00",
        "%00..",
        "..;",
        "..\\",
        "..%5c",
        "%252e%252e",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "%uff0e%uff0e",
        "..%c0%af",
        "..%ef%bc%8f",
        ".. ",
        "..%20",
        "...",
        "....",
    ];
    let separators = ["/", "%2f", "%5c", "\\", "//"];
    let mut attempts: Vec<_> = ways_up
        .iter()
        .flat_map(|up| {
            separators
                .iter()
                .map(move |separator| format!("/{up}{separator}secret.txt"))
        })
        .collect();
    attempts.extend(
        [
            "//secret.txt",
            "//../secret.txt",
            "/./../secret.txt",
            "/sub/../../secret.txt",
            "/sub/%2e%2e/%2e%2e/secret.txt",
            "/sub/empty/../../../secret.txt",
            "/..//secret.txt",
            "/../web-secret/secret.txt",
            "-secret/secret.txt",
            "/%2e%2e%2fweb-secret%2fsecret.txt",
            "/a.txt/../../secret.txt",
            "/%2F..%2Fsecret.txt",
            "//localhost/%2F..",
            "//evil.example/%2F..",
            "//evil.example/..%2f",
            "///evil.example/%2e%2e",
            "/\\evil.example/..",
            "/%5cevil.example/%2e%2e",
            "/sub;/../../secret.txt",
            "/?/../secret.txt",
            "/#/../secret.txt",
            "*",
            "/%",
            "/%zz",
            "/%2",
            "/\u{2025}/secret.txt",
            "http://localhost/../secret.txt",
            "http://localhost//..%2fsecret.txt",
            "http://evil.example//sub",
            "file:///etc/passwd",
        ]
        .map(str::to_owned),
    );
    attempts
}

#[test]
fn nothing_outside_the_directory_is_read_and_nothing_of_the_machine_is_told() {
    let site = Site::new(&[]);
    let place = site.scratch.path().to_str().unwrap();
    let absolute = [
        format!("{place}/secret.txt"),
        format!("/{place}/secret.txt"),
        format!("file://{place}/secret.txt"),
    ];
    let attempts = [attempts(), absolute.to_vec()].concat();
    assert!(attempts.len() >= 60, "{}", attempts.len());
    for path in &attempts {
        let mut client = Client::ask(
            site.server.address(),
            &request("GET", path, &["Connection: close"]),
        );
        let body = client.read_rest();
        let answer = format!("{}{}", client.response, String::from_utf8_lossy(&body));
        assert!(client.response.starts_with("HTTP/1.1 "), "{path}: {answer}");
        assert!(!answer.contains(SECRET), "{path}: {answer}");
        assert!(
            !answer.contains(place) && !answer.contains("root:"),
            "{path}: {answer}"
        );
        if let Some(location) = client.header("Location") {
            assert!(
                location.starts_with('/') && !location[1..].starts_with(['/', '\\']),
                "{path}: {answer}"
            );
        }
    }
    // A directory that bears such a name leads nowhere else either.
    fs::create_dir_all(site.path("evil.example/sub")).unwrap();
    for path in [
        "//evil.example",
        "//evil.example/sub",
        "/\\evil.example",
        "/%2f/evil.example",
    ] {
        let (client, _) = site.get(path, &[]);
        let location = client.header("Location").unwrap_or("/evil.example/");
        assert!(location.starts_with("/evil.example/"), "{path}: {location}");
    }
}

#[test]
fn requests_follow_each_other_on_one_connection_and_an_upgrade_follows_them() {
    let site = Site::new(&[]);
    let big = pattern(3 << 20);
    fs::write(site.path("big"), &big).unwrap();
    let mut client = Client::raw(site.server.address());
    // All at once: two files, something that is not there, and the upgrade with what is for the target.
    let mut requests = [
        request("GET", "/a.txt", &["Content-Length: 5"]),
        b"12345".to_vec(),
        request("GET", "/none", &[]),
        request("GET", "/big", &[]),
        Handshake::default().bytes(),
    ]
    .concat();
    requests.extend(frame(0x82, b"early"));
    client.send(&requests);
    for (status, body) in [
        ("200", &b"hello"[..]),
        ("404", b"Not Found\n"),
        ("200", &big),
    ] {
        client.read_head();
        assert_eq!(client.status(), status);
        let found = client.read_body();
        assert_eq!((found.len(), hash(&found)), (body.len(), hash(body)));
    }
    client.read_head();
    assert_eq!(client.status(), "101", "{}", client.response);
    let mut peer = site.target.accept();
    let mut early = [0; 5];
    peer.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    peer.write_all(b"late").unwrap();
    assert_eq!(client.read_binary(4), b"late");
}

#[test]
fn nonsense_is_answered_with_400_and_harms_nobody() {
    let site = Site::new(&[]);
    for nonsense in [
        &b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked, x\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.9999\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"\r\n\r\n\r\nnonsense\r\n\r\n",
    ] {
        let client = Client::ask(site.server.address(), nonsense);
        assert_eq!(
            client.status(),
            "400",
            "{:?}: {}",
            String::from_utf8_lossy(nonsense),
            client.response
        );
    }
    let huge = request("GET", "/a.txt", &[&format!("X: {}", "x".repeat(100_000))]);
    let mut client = Client::raw(site.server.address());
    _ = client.try_send(&huge);
    client.read_head();
    assert_eq!(client.status(), "431");
    assert_eq!(site.get("/a.txt", &[]).1, b"hello");
}

#[test]
fn fifty_mebibytes_arrive_whole_and_a_hundred_downloads_do_at_once() {
    let site = Site::new(&[]);
    let big = pattern(50 << 20);
    fs::write(site.path("big"), &big).unwrap();
    let expected = hash(&big);
    let before = site.server.resident_memory();
    let (_, found) = site.get("/big", &[]);
    assert_eq!((found.len(), hash(&found)), (50 << 20, expected));
    let some = &big[..1 << 20];
    fs::write(site.path("some"), some).unwrap();
    let mut clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::raw(site.server.address());
            client.send(&request("GET", "/some", &[]));
            client
        })
        .collect();
    for client in &mut clients {
        client.read_head();
        assert_eq!(client.status(), "200");
        assert_eq!(hash(&client.read_body()), hash(some));
    }
    let after = site.server.resident_memory();
    assert!(after < before + (64 << 20), "from {before} to {after}");
}

#[test]
fn a_file_that_changes_while_it_is_sent_never_breaks_the_framing() {
    let site = Site::new(&[]);
    let path = site.path("changing");
    for grows in [true, false] {
        fs::write(&path, pattern(32 << 20)).unwrap();
        let mut client = Client::raw(site.server.address());
        client.send(
            &[
                request("GET", "/changing", &[]),
                request("GET", "/a.txt", &[]),
            ]
            .concat(),
        );
        client.read_head();
        let length: u64 = client.header("Content-Length").unwrap().parse().unwrap();
        assert_eq!(length, 32 << 20);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(if grows { 33 << 20 } else { 1 << 20 })
            .unwrap();
        if grows {
            client.read_body();
            client.read_head();
            assert_eq!(client.status(), "200");
            assert_eq!(client.read_body(), b"hello");
        } else {
            // What is missing is not made up, and nothing else is put in its place.
            let mut rest = Vec::new();
            while let Ok(byte) = client.read_some() {
                if byte.is_empty() {
                    break;
                }
                rest.extend(byte);
            }
            assert!(rest.len() < 32 << 20, "{}", rest.len());
            assert!(!rest.ends_with(b"hello"));
        }
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(site.get("/changing", &[]).0.status(), "404");
}

#[test]
fn every_file_of_novnc_is_served_as_it_is() {
    let root = Path::new("/usr/share/novnc");
    let target = Target::new();
    let server = Server::with(&[
        "--web",
        root.to_str().unwrap(),
        &target.address().to_string(),
    ]);
    let mut client = Client::raw(server.address());
    let mut directories = vec![root.to_owned()];
    let mut modules = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let relative = path.strip_prefix(root).unwrap().to_str().unwrap();
            client.request(&request("GET", &format!("/{relative}"), &[]));
            assert_eq!(client.status(), "200", "{relative}");
            if relative.ends_with(".js") {
                modules += 1;
                assert_eq!(
                    client.header("Content-Type"),
                    Some("text/javascript"),
                    "{relative}"
                );
            }
            assert!(client.read_body() == fs::read(&path).unwrap(), "{relative}");
        }
    }
    assert!(modules > 30, "{modules}");
}

#[test]
fn a_web_directory_that_cannot_be_used_is_an_error_of_the_start() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let missing = scratch.path().join("missing");
    for (path, what) in [
        (&missing, "No such file or directory"),
        (&file, "is not a directory"),
    ] {
        let output =
            integration::run_to_end(&["127.0.0.1:0", ":1", "--web", path.to_str().unwrap()]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(path.to_str().unwrap()) && stderr.contains(what),
            "{stderr}"
        );
    }
}

#[test]
fn a_download_that_is_broken_off_leaves_nothing_open() {
    let site = Site::new(&[]);
    fs::write(site.path("big"), pattern(8 << 20)).unwrap();
    let broken_off = || {
        let mut client = Client::raw(site.server.address());
        client.request(&request("GET", "/big", &[]));
        client
    };
    // As many at once as it takes until every worker thread has been needed.
    drop((broken_off(), broken_off(), broken_off(), broken_off()));
    let before = site.server.descriptors();
    (0..50).for_each(|_| drop(broken_off()));
    wait_until("the files to be closed", || {
        (site.server.descriptors() <= before).then_some(())
    });
}

#[test]
fn odd_things_beside_a_file_and_odd_dates_do_not_keep_it_from_being_served() {
    let site = Site::new(&[]);
    nix::unistd::mkfifo(&site.path("a.txt.gz"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(site.path("a.txt.br")).unwrap();
    let (client, body) = site.get("/a.txt", &["Accept-Encoding: gzip, br"]);
    assert_eq!((client.status(), &body[..]), ("200", &b"hello"[..]));
    let page = fs::File::options().write(true).open(site.path("page.html"));
    let day = std::time::Duration::from_secs(24 * 3600);
    page.unwrap()
        .set_modified(std::time::UNIX_EPOCH - day)
        .unwrap();
    assert_eq!(site.get("/page.html", &[]).1, b"<p>");
}

#[test]
fn a_download_is_finished_when_the_server_takes_no_more() {
    let site = Site::new(&["--run-once"]);
    let big = pattern(40 << 20);
    fs::write(site.path("big"), &big).unwrap();
    let mut idle = Client::ask(site.server.address(), &request("GET", "/a.txt", &[]));
    let mut client = Client::ask(site.server.address(), &request("GET", "/big", &[]));
    let Site {
        mut server,
        scratch,
        target,
    } = site;
    let session = Client::connect(server.address());
    drop((target.accept(), session));
    server.wait_for_line("exiting due to --run-once");
    // Who has nothing under way is let go first.
    assert_eq!(idle.read_rest(), b"hello");
    assert!(client.read_body() == big);
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
    drop(scratch);
}
