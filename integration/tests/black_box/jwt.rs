//! Tokens that are signed or encrypted: made by jwcrypto, which is what the original opens them with.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use integration::{Client, Handshake, Scratch, Server, Target, run_to_end};

/// Where `make test` installs jwcrypto.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/bin/python");
/// What makes the tokens.
const TOKENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/jose_tokens.py");

fn server(key: &Path) -> Server {
    let key = key.to_str().unwrap();
    Server::with(&["--token-plugin", "JWTTokenApi", "--token-source", key])
}

fn ask(server: &Server, token: &str) -> Client {
    let request = Handshake::default().request_line(&format!("GET /?token={token} HTTP/1.1"));
    Client::ask(server.address(), &request.bytes())
}

/// Keys and tokens that lead to this target: of each file with a key the tokens, each with its name and what is to become of it.
fn tokens(directory: &Path, target: &Target) -> BTreeMap<String, Vec<[String; 3]>> {
    let made = Command::new(PYTHON)
        .arg(TOKENS)
        .arg(directory)
        .arg(target.address().port().to_string())
        .output()
        .expect("make test installs Python's jwcrypto");
    let errors = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{errors}");
    let mut tokens = BTreeMap::<_, Vec<_>>::new();
    for line in str::from_utf8(&made.stdout).unwrap().lines() {
        let mut fields = line.split('\t').map(str::to_owned);
        let key = fields.next().unwrap();
        let rest: Vec<_> = fields.collect();
        tokens
            .entry(key)
            .or_default()
            .push(rest.try_into().unwrap());
    }
    tokens
}

#[test]
fn tokens_lead_where_whoever_has_the_key_says() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let tokens = tokens(directory.path(), &target);
    assert!(tokens.len() > 20, "{:?}", tokens.keys());
    let mut wrong = Vec::new();
    for (key, tokens) in tokens {
        let mut server = server(&directory.path().join(&key));
        for [name, answer, token] in tokens {
            let mut client = ask(&server, &token);
            let outcome = match client.status() {
                "101" => {
                    target.accept().write_all(b"hello").unwrap();
                    assert_eq!(client.read_binary(5), b"hello");
                    "101".to_owned()
                }
                "403" => server.wait_for_line(" refused: it"),
                other => other.to_owned(),
            };
            if !outcome.contains(&answer) {
                wrong.push(format!("{key}: {name}: {outcome} instead of {answer}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!target.has_visitor());
}

#[test]
fn a_key_that_has_changed_counts_at_once() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let tokens = tokens(directory.path(), &target);
    let of = |key: &str| {
        let tokens = tokens[key].iter().find(|[_, answer, _]| answer == "101");
        (
            fs::read(directory.path().join(key)).unwrap(),
            tokens.unwrap()[2].clone(),
        )
    };
    let [(rsa, by_rsa), (curve, by_curve)] = [of("rsa"), of("es256-public")];
    let path = directory.path().join("key");
    fs::write(&path, &rsa).unwrap();
    let mut server = server(&path);
    let status = |server: &_, token| ask(server, token).status().to_owned();
    assert_eq!(status(&server, &by_rsa), "101");
    assert_eq!(status(&server, &by_curve), "403");
    for _ in 0..5 {
        fs::write(&path, &curve).unwrap();
        assert_eq!(status(&server, &by_rsa), "403");
        assert_eq!(status(&server, &by_curve), "101");
        fs::write(&path, &rsa).unwrap();
        assert_eq!(status(&server, &by_rsa), "101");
    }
    fs::write(&path, &rsa[..rsa.len() / 2]).unwrap();
    assert_eq!(status(&server, &by_rsa), "101");
    server.wait_for_line("the key of tokens stays what it was, the new one cannot be used: ");
    fs::remove_file(&path).unwrap();
    assert_eq!(status(&server, &by_rsa), "503");
    server.wait_for_line("JWTTokenApi: cannot read ");
    fs::write(&path, &rsa).unwrap();
    assert_eq!(status(&server, &by_rsa), "101");
}

#[test]
fn without_a_key_it_does_not_start() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("key");
    let start = || {
        let key = path.to_str().unwrap();
        let arguments = ["0", "--token-plugin", "JWTTokenApi", "--token-source", key];
        let ended = run_to_end(&arguments);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(
            !ended.status.success() && said.lines().count() == 1,
            "{said}"
        );
        said
    };
    assert!(start().contains("No such file or directory"));
    for (content, advice) in [
        (&b""[..], "it is empty"),
        (b"\xff\x00\xff", "openssl base64 -A -in FILE -out NEW"),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "openssl pkey -in FILE -out NEW",
        ),
        (b"ssh-rsa AAAA", "ssh-keygen -e -m PKCS8 -f FILE > NEW"),
    ] {
        fs::write(&path, content).unwrap();
        let said = start();
        assert!(said.contains(advice), "{said}");
    }
}
