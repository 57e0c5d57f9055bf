//! What a file of htpasswd(1) says: lines `user:hash`, of which those with bcrypt count.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::str::FromStr;

use bcrypt::HashParts;

use crate::auth::credentials::Credentials;
use crate::auth::keyed::Key;

/// The most that a hash may cost, as a power of two: this one takes a processor for some two seconds.
const MAX_COST: u32 = 15;

/// The users of a file.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// What each name is in `hashes`; `None` if its hash cannot be used.
    names: HashMap<Box<[u8]>, Option<usize>>,
    hashes: Vec<Hash>,
}

/// A hash by bcrypt, which nothing shows.
struct Hash(Box<str>);

/// A line that does not do what its author may think; it says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Its number, from 1.
    pub(super) line: usize,
    /// Why.
    pub(super) reason: Reason,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// There is no colon.
    Form,
    /// The name has been before.
    Repeated,
    /// Its hash is of this kind.
    Kind(&'static str),
    /// Its hash is of bcrypt, and damaged.
    Damaged,
    /// Its hash costs this much.
    Cost(u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("it is not user:hash"),
            Self::Repeated => f.write_str("there is an earlier one for that user, which counts"),
            Self::Kind(kind) => write!(f, "its hash is {kind}, and only bcrypt is taken"),
            Self::Damaged => f.write_str("its hash is damaged"),
            Self::Cost(cost) => write!(f, "its hash costs {cost}, which is more than {MAX_COST}"),
        }
    }
}

impl Users {
    /// Those of a file with this content, and its lines that are no good. As with Apache, the first line of a name counts, white space
    /// around a line does not, nor does what follows another colon.
    pub(super) fn parse(text: &[u8]) -> (Self, Vec<Complaint>) {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let (mut users, mut complaints) = (Self::default(), Vec::new());
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Err(reason) = users.add(line) {
                let line = number + 1;
                complaints.push(Complaint { line, reason });
            }
        }
        (users, complaints)
    }

    fn add(&mut self, line: &[u8]) -> Result<(), Reason> {
        let mut fields = line.split(|&byte| byte == b':');
        let (Some(name), Some(hash)) = (fields.next(), fields.next()) else {
            return Err(Reason::Form);
        };
        let Entry::Vacant(entry) = self.names.entry(name.into()) else {
            return Err(Reason::Repeated);
        };
        let hash = Hash::parse(hash);
        entry.insert(hash.is_ok().then_some(self.hashes.len()));
        self.hashes.push(hash?);
        Ok(())
    }

    /// How many there are who can log in.
    pub(super) fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Whether these are a user's. This takes as long as bcrypt does, also for names that nobody has.
    pub(super) fn verify(&self, credentials: &Credentials, key: &Key) -> bool {
        let Some((hash, is_own)) = self.hash_for(credentials.name(), key) else {
            return false;
        };
        let is_right = hash.verify(credentials.password());
        is_right && is_own
    }

    /// What the password for a name is checked against, and whether that is its own: a name that nobody has gets somebody's, always
    /// the same one. So times are spread for these names as they are for the others, whatever each hash costs.
    fn hash_for(&self, name: &[u8], key: &Key) -> Option<(&Hash, bool)> {
        let own = self.names.get(name).copied().flatten();
        let anybodys = || key.digest(name).choose(self.hashes.len());
        let index = own.or_else(anybodys)?;
        Some((&self.hashes[index], own.is_some()))
    }
}

impl Hash {
    /// From the text of a hash, as htpasswd(1) and `crypt(5)` write it.
    fn parse(text: &[u8]) -> Result<Self, Reason> {
        let kind = kind(text);
        if kind != "bcrypt" {
            return Err(Reason::Kind(kind));
        }
        let text = str::from_utf8(text).map_err(|_| Reason::Damaged)?;
        let parts = HashParts::from_str(text).map_err(|_| Reason::Damaged)?;
        match parts.get_cost() {
            4..=MAX_COST => Ok(Self(text.into())),
            ..4 => Err(Reason::Damaged),
            cost => Err(Reason::Cost(cost)),
        }
    }

    /// Whether it is that of a password. As with htpasswd(1), only the first 72 bytes of that count.
    fn verify(&self, password: &[u8]) -> bool {
        bcrypt::verify(password, &self.0).unwrap_or(false)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a hash is made with.
fn kind(text: &[u8]) -> &'static str {
    match text {
        [b'$', b'2', b'a' | b'b' | b'y', b'$', ..] => "bcrypt",
        [b'$', b'2', ..] => "an old bcrypt",
        _ if text.starts_with(b"$apr1$") || text.starts_with(b"$1$") => "MD5",
        _ if text.starts_with(b"{SHA}") => "SHA-1",
        _ if text.starts_with(b"$") => "crypt",
        _ => "crypt or plain text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "hunter2", as `htpasswd -B -C 4` writes it.
    const HASH: &str = "$2y$04$ZQUiz1CKgmMuVrCFapnHH.DjGPP4COUwsi5LKGfc6PoKVvJQWbJD6";
    /// 72 times "x" and "yyy", by the same.
    const LONG: &str = "$2y$04$9GKyzV4GPmYIBWV/2IsR8Osqs3o9oFBJCaTAICbfNwOQHqfZttwom";

    fn parse(text: &str) -> (Users, Vec<(usize, Reason)>) {
        let (users, complaints) = Users::parse(text.as_bytes());
        let complaints = complaints.iter().map(|one| (one.line, one.reason));
        (users, complaints.collect())
    }

    fn knows(users: &Users, pair: &str) -> bool {
        let credentials = Credentials::from_pair(pair.into()).unwrap();
        users.verify(&credentials, &Key::random().unwrap())
    }

    #[test]
    fn users_are_known_by_name_and_password() {
        let (users, complaints) = parse(&format!("alice:{HASH}\nbob:{LONG}"));
        assert_eq!((users.count(), complaints.len()), (2, 0));
        assert!(knows(&users, "alice:hunter2"));
        for wrong in [
            "alice:hunter3",
            "alice:",
            "alice:hunter2:",
            "bob:hunter2",
            "carol:hunter2",
            ":hunter2",
        ] {
            assert!(!knows(&users, wrong), "{wrong}");
        }
        let long = "x".repeat(72);
        assert!(knows(&users, &format!("bob:{long}yyy")));
        // What is behind them does not count, as with htpasswd(1).
        assert!(knows(&users, &format!("bob:{long}")) && knows(&users, &format!("bob:{long}z")));
        assert!(!knows(&users, &format!("bob:{}", &long[1..])));
    }

    #[test]
    fn lines_are_read_as_apache_does() {
        let (users, complaints) = parse(&format!(
            "\u{feff}# alice:{HASH}\r\n\r\n \n  alice:{HASH} \r\n#bob:{HASH}\nc d:{HASH}:a comment\n:{HASH}\njürgen:{HASH}"
        ));
        assert_eq!((users.count(), complaints.len()), (4, 0));
        for right in ["alice:hunter2", "c d:hunter2", ":hunter2", "jürgen:hunter2"] {
            assert!(knows(&users, right), "{right}");
        }
        assert!(!knows(&users, "bob:hunter2") && !knows(&users, "#bob:hunter2"));
        assert_eq!(parse("").0.count(), 0);
    }

    #[test]
    fn the_first_line_of_a_name_counts() {
        let (users, complaints) = parse(&format!("a:{HASH}\na:{LONG}\nb:*\nb:{HASH}"));
        assert!(knows(&users, "a:hunter2") && !knows(&users, "b:hunter2"));
        assert!(!knows(&users, &format!("a:{}", "x".repeat(72))));
        let reasons = [
            Reason::Repeated,
            Reason::Kind("crypt or plain text"),
            Reason::Repeated,
        ];
        assert_eq!(
            complaints,
            [(2, reasons[0]), (3, reasons[1]), (4, reasons[2])]
        );
    }

    #[test]
    fn a_line_without_a_good_hash_lets_nobody_in() {
        for (hash, reason) in [
            ("$apr1$zeVgLz3u$Kw7C1fOBXZ/kGlcuIARR/1", Reason::Kind("MD5")),
            ("$1$zeVgLz3u$Kw7C1fOBXZ/kGlcuIARR/1", Reason::Kind("MD5")),
            ("{SHA}87oNszchd6tYLHW1RaPUrlzVe5o=", Reason::Kind("SHA-1")),
            ("$6$salt$x", Reason::Kind("crypt")),
            ("Uwg.ywsJKt/2w", Reason::Kind("crypt or plain text")),
            ("hunter2", Reason::Kind("crypt or plain text")),
            ("", Reason::Kind("crypt or plain text")),
            (&HASH.replace("2y", "2x"), Reason::Kind("an old bcrypt")),
            (&HASH.replace("2y$", "2$"), Reason::Kind("an old bcrypt")),
            (&HASH[..59], Reason::Damaged),
            (&format!("{HASH}x"), Reason::Damaged),
            (&HASH.replace('Q', "!"), Reason::Damaged),
            (&HASH.replace("$04$", "$03$"), Reason::Damaged),
            (&HASH.replace("$04$", "$4$4"), Reason::Damaged),
            (&HASH.replace("$04$", "$16$"), Reason::Cost(16)),
            (&HASH.replace("$04$", "$31$"), Reason::Cost(31)),
        ] {
            let (users, complaints) = parse(&format!("alice:{hash}"));
            assert_eq!(complaints, [(1, reason)], "{hash}");
            for password in ["hunter2", hash, ""] {
                assert!(!knows(&users, &format!("alice:{password}")), "{hash}");
            }
        }
        assert_eq!(parse(HASH).1, [(1, Reason::Form)]);
        for version in ["2a", "2b"] {
            let (users, _) = parse(&format!("alice:{}", HASH.replace("2y", version)));
            assert!(knows(&users, "alice:hunter2"), "{version}");
        }
        let dearest = parse(&format!("alice:{}", HASH.replace("$04$", "$15$")));
        assert_eq!((dearest.0.count(), dearest.1.len()), (1, 0));
    }

    /// How long a password is checked does not tell whether there is such a user.
    #[test]
    fn there_is_always_something_to_check_against() {
        let (users, _) = parse(&format!("alice:{HASH}\nbob:{LONG}\ncarol:*"));
        let key = Key::random().unwrap();
        let chosen = |name: &str| users.hash_for(name.as_bytes(), &key).unwrap();
        assert!(chosen("alice").1 && &*chosen("alice").0.0 == HASH);
        assert!(chosen("bob").1 && &*chosen("bob").0.0 == LONG);
        let names: Vec<_> = (0..1000).map(|number| format!("nobody{number}")).collect();
        for name in names.iter().map(String::as_str).chain(["carol", ""]) {
            let (hash, is_own) = chosen(name);
            assert!(!is_own && std::ptr::eq(hash, chosen(name).0), "{name}");
        }
        // Each is missed with a probability of 2^-1000.
        for hash in [HASH, LONG] {
            assert!(names.iter().any(|name| &*chosen(name).0.0 == hash));
        }
    }

    /// Whoever has no hash of their own is let in by nobody's, although it is looked at.
    #[test]
    fn a_name_that_nobody_has_is_not_let_in_by_the_hash_it_is_checked_against() {
        let (users, _) = parse(&format!("alice:{HASH}\nbob:*"));
        for name in ["bob", "carol", "", "alice "] {
            assert!(!knows(&users, &format!("{name}:hunter2")), "{name}");
        }
    }

    #[test]
    fn nothing_shows_what_is_in_the_file() {
        let (users, complaints) = parse(&format!("alice:{HASH}\nbob:hunter2\n{LONG}"));
        let mut shown = format!("{users:?} {complaints:?}");
        for (_, reason) in complaints {
            shown += &reason.to_string();
        }
        for secret in ["hunter2", HASH, LONG] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
