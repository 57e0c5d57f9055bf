//! Whom a certificate is about: its common name, decoded.

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Any, ObjectIdentifier};
use x509_cert::der::{Tag, Tagged};

use super::identity;
use super::trust;

/// The attribute `commonName` (X.520, section 6.2.2).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Why a certificate has no common name that counts; the text is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nameless(&'static str);

impl std::fmt::Display for Nameless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The common name of a certificate that was verified, maybe some time ago.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Result<String, Nameless> {
    let parsed = identity::parse(certificate).map_err(|_| Nameless("it cannot be read"))?;
    let certificate = parsed.tbs_certificate();
    // Whoever resumes a session shows it no more, and it is not verified again.
    trust::check_time(certificate.validity(), UnixTime::now())
        .map_err(|_| Nameless("its time is over"))?;
    only_common_name(certificate.subject().iter())
}

/// The common name among the attributes of a subject.
///
/// Where there are several, programs do not agree on the one that counts: many take the first, the original the last. Whoever signs
/// certificates may have looked at another than we would, so that counts for none; the same one twice is one.
fn only_common_name<'a>(
    attributes: impl Iterator<Item = &'a AttributeTypeAndValue>,
) -> Result<String, Nameless> {
    let mut names = attributes
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .map(|attribute| decode(&attribute.value));
    let none = Nameless("it has no common name");
    let unreadable = Nameless("its common name is no text");
    let first = names.next().ok_or(none)?.ok_or(unreadable)?;
    if names.any(|name| name.as_ref() != Some(&first)) {
        return Err(Nameless("it has several common names"));
    }
    // What shows a name, or compares it as C does, would take it for another.
    if first.contains(char::is_control) {
        return Err(Nameless("its common name has control characters"));
    }
    Ok(first)
}

/// The text of a `DirectoryString` (RFC 5280, section 4.1.2.4), or of another kind of string that is found in its place.
fn decode(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::NumericString => bytes
            .is_ascii()
            .then(|| bytes.iter().copied().map(char::from).collect()),
        // Nobody has ever written anything else than latin-1 in it.
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let (units, rest) = bytes.as_chunks();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            let text = char::decode_utf16(units).collect::<Result<_, _>>().ok();
            text.filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use x509_cert::der::asn1::OctetString;

    use super::*;

    /// A certificate about alice, of the year 2020.
    const OLD: &str = "\
-----BEGIN CERTIFICATE-----
MIIBBjCBrgIBATAKBggqhkjOPQQDAjAQMQ4wDAYDVQQDDAVhbGljZTAeFw0yMDAx
MDEwMDAwMDBaFw0yMTAxMDEwMDAwMDBaMBAxDjAMBgNVBAMMBWFsaWNlMFkwEwYH
KoZIzj0CAQYIKoZIzj0DAQcDQgAEGParsbzTeBDTNqs3DspPLlV/6LX1wymKhwwp
AmXqSwezsBOtM2QjjFKt4ojP9tPEDV3kCX7RW5jCmAelRCZ/BDAKBggqhkjOPQQD
AgNHADBEAiAp1n/ZTZM9EdyFvN2gP/6jesk9y2hj+KbT7euQVopRGgIgTjE6K6uH
yGG23uZqt5vg0oStM/YTY5tyyyewrgaHbKQ=
-----END CERTIFICATE-----";

    /// An attribute of a subject.
    fn attribute(oid: &str, tag: Tag, bytes: &[u8]) -> AttributeTypeAndValue {
        AttributeTypeAndValue {
            oid: ObjectIdentifier::new_unwrap(oid),
            value: Any::new(tag, bytes).unwrap(),
        }
    }

    fn named(names: &[(Tag, &[u8])]) -> Result<String, Nameless> {
        let names: Vec<_> = names
            .iter()
            .map(|(tag, bytes)| attribute("2.5.4.3", *tag, bytes))
            .collect();
        only_common_name(names.iter())
    }

    #[test]
    fn a_name_is_decoded_by_its_kind() {
        for (tag, bytes, name) in [
            (Tag::Utf8String, "jürgen".as_bytes(), "jürgen"),
            (Tag::PrintableString, b"alice", "alice"),
            (Tag::Ia5String, b"alice@a.example", "alice@a.example"),
            (Tag::TeletexString, b"j\xfcrgen", "jürgen"),
            (Tag::BmpString, b"\0j\0\xfc\0r\0g\0e\0n", "jürgen"),
            (Tag::BmpString, b"\xd8\x3d\xde\x00", "😀"),
            (Tag::Utf8String, b"Doe, Jane", "Doe, Jane"),
            (Tag::Utf8String, b" alice ", " alice "),
            (Tag::Utf8String, b"", ""),
        ] {
            assert_eq!(named(&[(tag, bytes)]).as_deref(), Ok(name), "{tag}");
        }
    }

    #[test]
    fn what_is_no_text_is_no_name() {
        for (tag, bytes) in [
            (Tag::Utf8String, &b"j\xfcrgen"[..]),
            (Tag::PrintableString, b"j\xfcrgen"),
            (Tag::BmpString, b"\0a\0"),
            (Tag::BmpString, b"\xd8\x3d"),
            (Tag::OctetString, b"alice"),
            (Tag::Integer, b"1"),
        ] {
            assert!(named(&[(tag, bytes)]).is_err(), "{tag}");
        }
        let octets = Any::encode_from(&OctetString::new(*b"alice").unwrap()).unwrap();
        assert_eq!(decode(&octets), None);
    }

    #[test]
    fn a_name_with_control_characters_does_not_count() {
        for (tag, bytes) in [
            (Tag::Utf8String, &b"alice\0.evil.example"[..]),
            (Tag::Utf8String, b"alice\n"),
            (Tag::PrintableString, b"alice\r\nX: y"),
            (Tag::TeletexString, b"alice\x85"),
            (Tag::BmpString, b"\0a\0\0\0b"),
            // Latin letters as if they were of two bytes each.
            (Tag::Utf8String, b"\0a\0b"),
        ] {
            assert!(named(&[(tag, bytes)]).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn of_several_names_none_counts() {
        let (utf8, bmp) = (Tag::Utf8String, Tag::BmpString);
        let two = [(utf8, &b"alice"[..]), (utf8, b"bob")];
        assert_eq!(named(&two), Err(Nameless("it has several common names")));
        assert!(named(&[two[1], two[0]]).is_err());
        assert!(named(&[two[0], (utf8, b"\xff")]).is_err());
        let same = [(utf8, &b"bob"[..]), (bmp, b"\0b\0o\0b")];
        assert_eq!(named(&same).as_deref(), Ok("bob"));
        assert_eq!(named(&[]), Err(Nameless("it has no common name")));
    }

    #[test]
    fn a_certificate_of_which_the_time_is_over_names_nobody() {
        let pem = pem::parse(OLD).unwrap();
        let certificate = CertificateDer::from(pem.contents());
        let parsed = identity::parse(&certificate).unwrap();
        let subject = parsed.tbs_certificate().subject();
        assert_eq!(only_common_name(subject.iter()).as_deref(), Ok("alice"));
        assert_eq!(common_name(&certificate), Err(Nameless("its time is over")));
        let damaged = CertificateDer::from(&pem.contents()[1..]);
        assert_eq!(common_name(&damaged), Err(Nameless("it cannot be read")));
    }

    #[test]
    fn other_attributes_are_no_names() {
        let subject = [
            attribute("2.5.4.10", Tag::Utf8String, b"an organization"),
            attribute("2.5.4.3", Tag::Utf8String, b"alice"),
            attribute("2.5.4.11", Tag::Utf8String, b"a unit"),
            attribute("2.5.4.3.1", Tag::Utf8String, b"bob"),
        ];
        assert_eq!(only_common_name(subject.iter()).as_deref(), Ok("alice"));
    }
}
