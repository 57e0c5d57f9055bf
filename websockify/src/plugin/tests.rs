//! Real programs that are asked real questions.

use hyper::header::HeaderMap;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::listener::Peer;
use crate::token::Port;

/// How long a test waits for anything that is bound to happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// A plugin that is a shell script.
async fn shell(script: &str) -> Plugin {
    let command = format!("sh -c {}", shlex::try_quote(script).unwrap());
    let command = Secret::from(command.into_bytes());
    Plugin::exec(&command, Kind::Token).await.unwrap()
}

fn token(text: &str) -> Token {
    Token::new(text.to_owned())
}

fn target(text: &str) -> Destination {
    text.parse().unwrap()
}

async fn look_up(plugin: &Plugin, text: &str) -> Result<Option<Destination>, Unavailable> {
    let token = token(text);
    let answer = timeout(DEADLINE, plugin.look_up(&token)).await;
    answer.expect("there is an answer")
}

/// Asks until the plugin answers, as while it is started again.
async fn look_up_at_last(plugin: &Plugin, text: &str) -> Option<Destination> {
    let attempts = async {
        loop {
            match plugin.look_up(&token(text)).await {
                Ok(found) => return found,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(DEADLINE, attempts)
        .await
        .expect("there is an answer")
}

/// Answers with the token as the port.
const ECHO: &str = r#"
while read -r line; do
    id=${line#'{"id":'}; id=${id%%,*}
    token=${line#*'"token":"'}; token=${token%'"}'}
    printf '{"id":%s,"target":"h:%s"}\n' "$id" "$token"
done"#;

#[tokio::test]
async fn a_shell_script_answers() {
    let plugin = shell(ECHO).await;
    assert_eq!(look_up(&plugin, "5900").await, Ok(Some(target("h:5900"))));
    // A bad target is an unknown token.
    assert_eq!(look_up(&plugin, "x").await, Ok(None));
    assert_eq!(look_up(&plugin, &"9".repeat(100_000)).await, Ok(None));
    assert_eq!(look_up(&plugin, "5901").await, Ok(Some(target("h:5901"))));
    plugin.end().await;
    let gone = Unavailable("it has ended".to_owned());
    assert_eq!(look_up(&plugin, "5900").await, Err(gone));
    plugin.end().await;
}

#[tokio::test]
async fn everybody_gets_the_answer_to_their_own_question_from_any_thread() {
    let plugin = shell(ECHO).await;
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let plugin = plugin.clone();
            tokio::task::spawn_blocking(move || {
                let runtime = crate::workers::runtime().unwrap();
                runtime.block_on(async {
                    let mut asked = JoinSet::new();
                    for port in 1 + thread * 200..=(1 + thread) * 200 {
                        let plugin = plugin.clone();
                        asked.spawn(async move {
                            let found = look_up(&plugin, &port.to_string()).await;
                            assert_eq!(found, Ok(Some(target(&format!("h:{port}")))));
                        });
                    }
                    while let Some(done) = asked.join_next().await {
                        done.unwrap();
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
}

#[tokio::test]
async fn answers_come_in_any_order() {
    let script = r#"
        read -r one; read -r two
        for line in "$two" "$one"; do
            id=${line#'{"id":'}; id=${id%%,*}
            echo "{\"id\":$id,\"host\":\"h\",\"port\":$id}"
        done
        read -r end"#;
    let plugin = shell(script).await;
    let (one, two) = (token("a"), token("b"));
    let answers = async { tokio::join!(plugin.look_up(&one), plugin.look_up(&two)) };
    let (one, two) = timeout(DEADLINE, answers).await.unwrap();
    let numbered = |id| Destination::from_parts("h", Port::Number(id)).unwrap();
    assert_eq!(one, Ok(Some(numbered(1))));
    assert_eq!(two, Ok(Some(numbered(2))));
}

#[tokio::test]
async fn a_plugin_that_dies_comes_back_again_and_again() {
    let script = r#"read -r line; case $line in *die*) exit 3;; esac
        id=${line#'{"id":'}; echo "{\"id\":${id%%,*},\"target\":\"h:1\"}""#;
    let plugin = shell(script).await;
    for _ in 0..5 {
        assert_eq!(look_up_at_last(&plugin, "x").await, Some(target("h:1")));
    }
    let died = look_up(&plugin, "die").await;
    // It may not even have been started again after the last answer.
    assert!(matches!(died, Err(Unavailable(_))), "{died:?}");
    assert_eq!(look_up_at_last(&plugin, "x").await, Some(target("h:1")));
}

#[tokio::test]
async fn whoever_waits_for_a_plugin_that_dies_is_told_how() {
    let plugin = shell("read -r line; read -r line; kill -9 $$").await;
    let (one, two) = (token("a"), token("b"));
    let answers = async { tokio::join!(plugin.look_up(&one), plugin.look_up(&two)) };
    let (one, two) = timeout(DEADLINE, answers).await.unwrap();
    let killed = Err(Unavailable("it was ended by SIGKILL".to_owned()));
    assert_eq!((one, two), (killed.clone(), killed));
}

#[tokio::test]
async fn rubbish_is_passed_over() {
    let script = r#"
        read -r line
        echo hello; echo; echo '{}'; echo '{"id":99}'; echo '{"id":"1"}'; echo '{"id":0}'; echo null
        head -c 200000 /dev/zero; echo
        id=${line#'{"id":'}; id=${id%%,*}
        echo "{\"id\":$id,\"target\":\"h:1\"}"; echo "{\"id\":$id,\"target\":\"h:2\"}"
        read -r line
        echo "{\"id\":$id,\"target\":\"h:3\"}"; echo "{\"id\":$((id + 1)),\"target\":\"h:4\"}"
        read -r line"#;
    let plugin = shell(script).await;
    assert_eq!(look_up(&plugin, "a").await, Ok(Some(target("h:1"))));
    assert_eq!(look_up(&plugin, "b").await, Ok(Some(target("h:4"))));
}

#[tokio::test]
async fn nothing_is_kept_of_questions_that_nobody_waits_for() {
    for script in ["sleep 1000", "while read -r line; do :; done"] {
        let plugin = shell(script).await;
        for _ in 0..3 {
            let mut asked = JoinSet::new();
            for number in 0..1024 {
                let plugin = plugin.clone();
                asked.spawn(async move {
                    _ = plugin.look_up(&token(&format!("{number:01000}"))).await;
                });
            }
            while plugin.0.waiting() < 1024 {
                tokio::task::yield_now().await;
            }
            let full = Unavailable("1024 questions wait for its answers".to_owned());
            assert_eq!(look_up(&plugin, "a").await, Err(full));
            asked.shutdown().await;
            assert_eq!(plugin.0.waiting(), 0);
        }
        plugin.end().await;
    }
}

#[tokio::test]
async fn a_plugin_that_takes_no_questions_is_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let script = format!(
        "if mkdir {0}; then exec 0<&-; sleep 1000; fi; {ECHO}",
        mark.display()
    );
    let plugin = shell(&script).await;
    assert_eq!(
        look_up_at_last(&plugin, "5900").await,
        Some(target("h:5900"))
    );
    // The same for one that has closed its output.
    let mark = directory.path().join("other");
    let script = format!(
        "if mkdir {0}; then exec 1>&-; sleep 1000; fi; {ECHO}",
        mark.display()
    );
    let plugin = shell(&script).await;
    assert_eq!(
        look_up_at_last(&plugin, "5900").await,
        Some(target("h:5900"))
    );
}

#[tokio::test]
async fn a_plugin_ends_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $$ $! >{0}.new; mv {0}.new {0}; while :; do sleep 1000; done",
        pids.display()
    );
    let plugin = shell(&script).await;
    let written = async {
        while !pids.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, written).await.unwrap();
    timeout(DEADLINE, plugin.end()).await.unwrap();
    let pids = std::fs::read_to_string(&pids).unwrap();
    for pid in pids.split_whitespace() {
        // What was killed may take a moment to go, and whoever adopts the second one to reap it.
        let gone = async {
            while std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z"))
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, gone).await.unwrap();
    }
    assert!(
        crate::helpers::all()
            .iter()
            .all(|helper| !pids.contains(&helper.to_string()))
    );
}

#[tokio::test]
async fn what_cannot_be_started_is_told_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plain");
    std::fs::write(&path, "text").unwrap();
    let plain = path.display().to_string();
    for (command, expected) in [
        (
            "",
            "--auth-source names no program that can be asked: it is empty".to_owned(),
        ),
        (
            "a 'b",
            "--auth-source names no program that can be asked: a quote has no end".to_owned(),
        ),
        (
            "no-such-program secret",
            "program 'no-such-program' not found; \
             give its full path or add it to PATH"
                .to_owned(),
        ),
        (
            &format!("{plain} secret"),
            format!("cannot execute '{plain}': Permission denied"),
        ),
    ] {
        let command = Secret::from(command.as_bytes().to_vec());
        let error = Plugin::exec(&command, Kind::Auth).await.unwrap_err();
        assert_eq!(format!("{error:#}"), expected);
    }
}

#[tokio::test]
async fn words_are_split_as_by_a_shell_and_nothing_is_shown_of_them() {
    let script = r#"for word; do words="$words<$word>"; done; read -r line; printf '{"id":1,"error":"%s"}\n' "$words"; read -r line"#;
    let command = format!(
        r#"sh -c {} name "a b" 'c $d' e\ f "" g"#,
        shlex::try_quote(script).unwrap()
    );
    let plugin = Plugin::exec(&Secret::from(command.into_bytes()), Kind::Token)
        .await
        .unwrap();
    assert!(!format!("{plugin:?}").contains("a b"));
    let answer = look_up(&plugin, "hunter2").await;
    let says = "it says: <a b><c $d><e f><><g>".to_owned();
    assert_eq!(answer, Err(Unavailable(says)));
}

#[tokio::test]
async fn visitors_are_let_in_or_refused() {
    let script = r#"
        while read -r line; do
            id=${line#'{"id":'}; id=${id%%,*}
            case $line in
                *'"user":"alice","password":"wonderland"'*) echo "{\"id\":$id,\"allow\":true}" ;;
                *) echo "{\"id\":$id,\"allow\":false,\"status\":401}" ;;
            esac
        done"#;
    let plugin = shell(script).await;
    let ask = async |credentials: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", credentials.parse().unwrap());
        let visitor = Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: "/",
            file: false,
            common_name: None,
        };
        plugin.authenticate(&visitor, Some(&target("h:1"))).await
    };
    assert_eq!(ask("Basic YWxpY2U6d29uZGVybGFuZA==").await, Ok(()));
    let Err(Denied::Refused(refused)) = ask("Basic YWxpY2U6eA==").await else {
        panic!("she is not refused");
    };
    assert_eq!(refused.status.as_u16(), 401);
    plugin.end().await;
    let denied = ask("Basic YWxpY2U6d29uZGVybGFuZA==").await;
    assert_eq!(denied, Err(Denied::Unavailable("it has ended".to_owned())));
}

fn class(name: &str, source: Option<&str>) -> Option<PythonClass> {
    Some(PythonClass {
        name: name.to_owned(),
        source: source.map(|source| Secret::from(source.as_bytes().to_vec())),
    })
}

#[tokio::test]
async fn python_classes_answer() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens");
    std::fs::write(&file, "abc: h:5900\nbad: h:x\nsocket: unix_socket:/s\n").unwrap();
    let tokens = class("websockify.token_plugins.TokenFile", file.to_str());
    let auth = class(
        "websockify.auth_plugins.BasicHTTPAuth",
        Some("alice:wonderland"),
    );
    let plugin = Plugin::python(tokens, auth, DEADLINE).await.unwrap();
    assert_eq!(look_up(&plugin, "abc").await, Ok(Some(target("h:5900"))));
    assert_eq!(
        look_up(&plugin, "socket").await,
        Ok(Some(target("unix_socket:/s")))
    );
    assert_eq!(look_up(&plugin, "bad").await, Ok(None));
    assert_eq!(look_up(&plugin, "ABC").await, Ok(None));
    let mut headers = HeaderMap::new();
    for (credentials, expected) in [("", Some(401)), ("Basic YWxpY2U6d29uZGVybGFuZA==", None)] {
        headers.insert("authorization", credentials.parse().unwrap());
        let visitor = Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: "/",
            file: false,
            common_name: None,
        };
        match (plugin.authenticate(&visitor, None).await, expected) {
            (Ok(()), None) => {}
            (Err(Denied::Refused(refused)), Some(status)) => {
                assert_eq!(refused.status.as_u16(), status);
                assert_eq!(refused.headers.len(), 1);
            }
            other => panic!("{other:?}"),
        }
    }
    plugin.end().await;
}

#[tokio::test]
async fn a_class_that_cannot_be_had_is_told_in_one_line() {
    let advice = "modules are looked for in the working directory, in PYTHONPATH, and among those that are installed";
    for (name, source, expected) in [
        (
            "no_such_package.Class",
            None,
            format!("ModuleNotFoundError: No module named 'no_such_package'; {advice}"),
        ),
        (
            "json.NoSuchClass",
            None,
            "AttributeError: module 'json' has no attribute 'NoSuchClass'; --verbose tells where"
                .to_owned(),
        ),
        (
            "json.no.Class",
            None,
            format!("ModuleNotFoundError: No module named 'json.no'; {advice}"),
        ),
        (
            "websockify.token_plugins.TokenFileName",
            Some("/no such directory"),
            "ValueError: it is not a directory; --verbose tells where".to_owned(),
        ),
        (
            "decimal.Decimal",
            Some("hunter2"),
            "InvalidOperation: [<class 'decimal.ConversionSyntax'>]; --verbose tells where"
                .to_owned(),
        ),
    ] {
        let error = Plugin::python(None, class(name, source), DEADLINE)
            .await
            .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!("cannot load the Python class {name}: {expected}")
        );
    }
}
