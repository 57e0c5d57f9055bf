//! Cipher lists as OpenSSL's users write them (ciphers(1)), as far as they mean suites that we have.
//!
//! The suites of TLS 1.3 are all good and not what such a list is about, unless it names some of them.

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;

/// The suites to offer.
#[derive(Clone, Debug)]
pub struct Ciphers {
    suites: Vec<SupportedCipherSuite>,
    unsupported: Vec<String>,
}

/// A suite and the names that select it.
struct Suite {
    suite: SupportedCipherSuite,
    /// As the IANA registers it.
    iana: String,
    /// As OpenSSL calls it.
    openssl: String,
    /// The groups that it is in, in capitals.
    groups: Vec<&'static str>,
}

/// Groups that each suite of TLS 1.2 is in.
const ALL: [&str; 10] = [
    "ALL", "DEFAULT", "HIGH", "AEAD", "TLSV1.2", "ECDHE", "EECDH", "ECDH", "KECDHE", "KEECDH",
];

impl Suite {
    fn new(suite: SupportedCipherSuite) -> Self {
        let iana = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
        let parts = [
            ("_ECDSA_", &["ECDSA", "AECDSA"][..]),
            ("_RSA_", &["ARSA"]),
            ("AES_128_GCM", &["AES", "AESGCM", "AES128"]),
            ("AES_256_GCM", &["AES", "AESGCM", "AES256"]),
            ("CHACHA20", &["CHACHA20"]),
        ];
        let groups = (parts.iter())
            .filter(|(part, _)| iana.contains(part))
            .flat_map(|(_, groups)| *groups)
            .copied()
            .chain(ALL);
        // ECDHE-RSA-AES128-GCM-SHA256, ECDHE-RSA-CHACHA20-POLY1305. The suites of TLS 1.3 have one name only: without its
        // beginning it would be that of another one.
        let openssl = match suite.tls13() {
            Some(_) => iana.clone(),
            None => iana
                .trim_start_matches("TLS_")
                .replace("_WITH_", "_")
                .replace("AES_", "AES")
                .replace("POLY1305_SHA256", "POLY1305")
                .replace('_', "-"),
        };
        Self {
            suite,
            groups: groups.collect(),
            openssl,
            iana,
        }
    }

    fn is_tls13(&self) -> bool {
        self.suite.tls13().is_some()
    }

    /// Whether a word of a list means this suite.
    fn is(&self, word: &str) -> bool {
        if word.eq_ignore_ascii_case(&self.iana) || word.eq_ignore_ascii_case(&self.openssl) {
            return true;
        }
        let word = word.to_ascii_uppercase();
        !self.is_tls13() && word.split('+').all(|part| self.groups.contains(&part))
    }
}

impl Ciphers {
    /// What a list asks for.
    ///
    /// # Errors
    /// Nothing is left; the text is for the user.
    pub(crate) fn parse(list: &str) -> Result<Self, String> {
        let all: Vec<_> = ALL_CIPHER_SUITES.iter().copied().map(Suite::new).collect();
        let mut chosen: Vec<&Suite> = Vec::new();
        let mut banned: Vec<&Suite> = Vec::new();
        let mut unsupported = Vec::new();
        let words = list.split([':', ',', ' ', ';']);
        for word in words {
            // What follows an @ says how to sort, which is by strength anyway, or names a security level that rustls is above.
            let word = word.split('@').next().unwrap_or_default();
            let (sign, name) = match word.as_bytes() {
                [] => continue,
                [sign @ (b'!' | b'-' | b'+'), ..] => (*sign, &word[1..]),
                _ => (b' ', word),
            };
            let meant: Vec<_> = all.iter().filter(|suite| suite.is(name)).collect();
            let is_meant = |suite: &&Suite| meant.iter().any(|one| one.iana == suite.iana);
            match sign {
                b' ' if meant.is_empty() => unsupported.push(name.to_owned()),
                b' ' => {
                    let new = |suite: &&&Suite| {
                        ![&chosen, &banned]
                            .iter()
                            .any(|list| list.iter().any(|one| one.iana == suite.iana))
                    };
                    let added: Vec<_> = meant.iter().filter(new).copied().collect();
                    chosen.extend(added);
                }
                b'+' => {
                    let (moved, kept): (Vec<_>, Vec<_>) =
                        chosen.into_iter().partition(|suite| is_meant(suite));
                    chosen = [kept, moved].concat();
                }
                _ => {
                    chosen.retain(|suite| !is_meant(suite));
                    if sign == b'!' {
                        banned.extend(meant);
                    }
                }
            }
        }
        if chosen.is_empty() {
            return Err(format!(
                "'{list}' leaves no cipher; there are {}",
                all.iter()
                    .map(|suite| suite.openssl.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        if !chosen.iter().any(|suite| suite.is_tls13()) {
            let tls13 = all.iter().filter(|suite| suite.is_tls13());
            let permitted = tls13.filter(|suite| !banned.iter().any(|one| one.iana == suite.iana));
            chosen.splice(0..0, permitted);
        }
        Ok(Self {
            suites: chosen.iter().map(|suite| suite.suite).collect(),
            unsupported,
        })
    }

    /// The suites, the preferred ones first.
    pub(super) fn suites(&self) -> &[SupportedCipherSuite] {
        &self.suites
    }

    /// The names that were asked for in vain.
    pub(crate) fn unsupported(&self) -> &[String] {
        &self.unsupported
    }
}

impl Default for Ciphers {
    fn default() -> Self {
        Self {
            suites: ALL_CIPHER_SUITES.to_vec(),
            unsupported: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The suites of TLS 1.2 that a list means, and how many of TLS 1.3.
    fn meant(list: &str) -> (Vec<String>, usize) {
        let ciphers = Ciphers::parse(list).unwrap();
        let suites: Vec<_> = ciphers.suites.into_iter().map(Suite::new).collect();
        let tls13 = suites.iter().filter(|suite| suite.is_tls13()).count();
        let tls12 = suites.into_iter().filter(|suite| !suite.is_tls13());
        (tls12.map(|suite| suite.openssl).collect(), tls13)
    }

    #[test]
    fn suites_are_known_by_both_names() {
        for name in [
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ecdhe-rsa-aes256-gcm-sha384",
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        ] {
            assert_eq!(
                meant(name),
                (vec!["ECDHE-RSA-AES256-GCM-SHA384".to_owned()], 3)
            );
        }
        assert_eq!(
            meant("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-AES128-GCM-SHA256").0,
            [
                "ECDHE-ECDSA-CHACHA20-POLY1305",
                "ECDHE-RSA-AES128-GCM-SHA256"
            ]
        );
        assert_eq!(meant("TLS_AES_128_GCM_SHA256"), (Vec::new(), 1));
    }

    #[test]
    fn groups_mean_what_they_mean_to_openssl() {
        assert_eq!(meant("HIGH:!aNULL:!MD5:!RC4").0.len(), 6);
        assert_eq!(meant("EECDH+AESGCM").0.len(), 4);
        assert_eq!(
            meant("ECDHE+AESGCM+aRSA:!AES128").0,
            ["ECDHE-RSA-AES256-GCM-SHA384"]
        );
        assert_eq!(meant("ALL:-CHACHA20:@STRENGTH").0.len(), 4);
        assert_eq!(meant("!AES128:ALL").0.len(), 4);
        assert_eq!(meant("ECDH+AESGCM:DH+AESGCM:!aNULL").0.len(), 4);
        assert_eq!(meant("DEFAULT@SECLEVEL=1").0.len(), 6);
        // They stand for what authenticates records, which is part of the cipher here.
        assert_eq!(meant("HIGH:!SHA256:!SHA384").0.len(), 6);
        assert_eq!(meant("ALL:!TLS_AES_128_GCM_SHA256"), (meant("ALL").0, 2));
        let (moved, _) = meant("ALL:+AES256");
        assert!(
            moved[4].contains("AES256") && moved[5].contains("AES256"),
            "{moved:?}"
        );
    }

    #[test]
    fn what_is_not_supported_is_named_and_nothing_at_all_is_an_error() {
        let ciphers = Ciphers::parse("RC4-SHA:DHE-RSA-AES128-SHA,CHACHA20:!eNULL").unwrap();
        assert_eq!(ciphers.unsupported, ["RC4-SHA", "DHE-RSA-AES128-SHA"]);
        // Not the suite of TLS 1.3 with nearly that name.
        for list in [
            "AES128-GCM-SHA256",
            "SHA256",
            "RC4",
            "",
            "!ALL",
            "ALL:!ECDHE",
            "kRSA",
            "RSA",
        ] {
            assert!(Ciphers::parse(list).is_err(), "{list}");
        }
    }
}
