//! Certificates, made by the `openssl` command, and TLS as the tests' clients and targets speak it.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use crate::Scratch;

/// The kind of key that makes a certificate fastest.
pub const FAST: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// A directory with certificates of the test's own.
#[derive(Debug)]
pub struct Certificates {
    directory: Scratch,
}

/// A certificate and its key, in two files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// None yet.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        Self { directory }
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that has these others one behind the other.
    pub fn join(&self, name: &str, parts: &[&Path]) -> PathBuf {
        let read = |part: &&Path| fs::read(part).expect("the parts are there");
        let joined: Vec<u8> = parts.iter().flat_map(read).collect();
        self.write(name, &joined)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).expect("there is room for a file");
        self.path(name)
    }

    /// An authority that has signed itself.
    pub fn authority(&self, name: &str) -> Identity {
        self.make(name, FAST, "basicConstraints=critical,CA:TRUE", None)
    }

    /// An authority that another has signed.
    pub fn authority_of(&self, name: &str, issuer: &Identity) -> Identity {
        let extensions = "basicConstraints=critical,CA:TRUE";
        self.make(name, FAST, extensions, Some(issuer))
    }

    /// A certificate for `localhost` and 127.0.0.1 with a key of this kind (genpkey(1ssl)); without an issuer it signs itself.
    pub fn host(&self, name: &str, kind: &[&str], issuer: Option<&Identity>) -> Identity {
        let extensions =
            "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1";
        self.make(name, kind, extensions, issuer)
    }

    /// The same for another host.
    pub fn other_host(&self, name: &str, issuer: &Identity) -> Identity {
        let extensions = "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:example.com";
        self.make(name, FAST, extensions, Some(issuer))
    }

    /// A certificate for `localhost` that is its own authority, as `openssl req -x509` makes it by default.
    pub fn naive(&self, name: &str) -> Identity {
        let extensions = "basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:localhost";
        self.make(name, FAST, extensions, None)
    }

    /// A certificate of which the time is over.
    pub fn expired(&self, name: &str, issuer: &Identity) -> Identity {
        let identity = self.host(name, FAST, Some(issuer));
        let request = self.request(name, &identity.key);
        let database = self.write(&format!("{name}.database"), b"");
        let serial = self.write(&format!("{name}.serial"), b"01");
        let directory = self.directory.path().display();
        let settings = format!(
            "[ca]\ndefault_ca=it\n[it]\ndatabase={}\nserial={}\nnew_certs_dir={directory}\n\
             default_md=sha256\npolicy=any\nx509_extensions=ext\n[any]\ncommonName=supplied\n\
             [ext]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n",
            database.display(),
            serial.display()
        );
        let settings = self.write(&format!("{name}.settings"), settings.as_bytes());
        let dates = [
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20210101000000Z",
        ];
        let mut command = Command::new("openssl");
        command.args(["ca", "-batch", "-notext"]).args(dates);
        command.arg("-config").arg(settings);
        command.arg("-cert").arg(&issuer.certificate);
        command.arg("-keyfile").arg(&issuer.key);
        command.arg("-in").arg(request);
        run(command.arg("-out").arg(&identity.certificate));
        identity
    }

    /// A certificate that is about this subject, such as `/O=x/CN=y`, of which the strings are of the kinds of this `string_mask`
    /// (req(1ssl)).
    pub fn subject(
        &self,
        name: &str,
        subject: &str,
        string_mask: &str,
        issuer: &Identity,
    ) -> Identity {
        let identity = self.identity(name, FAST);
        let settings = format!("[req]\ndistinguished_name=it\nstring_mask={string_mask}\n[it]\n");
        let settings = self.write(&format!("{name}.settings"), settings.as_bytes());
        let request = self.path(&format!("{name}.request"));
        let mut command = Command::new("openssl");
        command.args(["req", "-new", "-utf8", "-subj", subject]);
        command.arg("-config").arg(settings);
        command.arg("-key").arg(&identity.key);
        run(command.arg("-out").arg(&request));
        self.sign(
            name,
            &identity,
            &request,
            "basicConstraints=critical,CA:FALSE",
            Some(issuer),
        );
        identity
    }

    /// Puts another text of the same length into a certificate and signs it once more: so there may be what `openssl` does not make.
    pub fn alter(&self, identity: &Identity, old: &str, new: &str, issuer: &Identity) {
        let [signed, signature] = ["signed", "signature"].map(|name| self.path(name));
        let certificate = text(&identity.certificate);
        openssl(&[
            "asn1parse",
            "-noout",
            "-strparse",
            "4",
            "-in",
            certificate,
            "-out",
            text(&signed),
        ]);
        let mut content = fs::read(&signed).expect("openssl has written it");
        let is_old = |part: &[u8]| part == old.as_bytes();
        let at = content
            .windows(old.len())
            .position(is_old)
            .expect("it is there");
        content[at..at + new.len()].copy_from_slice(new.as_bytes());
        fs::write(&signed, &content).expect("there is room for a file");
        let key = text(&issuer.key);
        openssl(&[
            "dgst",
            "-sha256",
            "-sign",
            key,
            "-out",
            text(&signature),
            text(&signed),
        ]);
        let signature = fs::read(&signature).expect("openssl has written it");
        // ecdsa-with-SHA256 (RFC 5758), and a bit string of whole bytes.
        content.extend_from_slice(b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x03");
        content.extend_from_slice(&[signature.len() as u8 + 1, 0]);
        content.extend_from_slice(&signature);
        let mut whole = vec![0x30, 0x82];
        whole.extend_from_slice(&(content.len() as u16).to_be_bytes());
        whole.append(&mut content);
        let whole = self.write("altered.der", &whole);
        openssl(&[
            "x509",
            "-inform",
            "DER",
            "-in",
            text(&whole),
            "-out",
            certificate,
        ]);
    }

    fn make(
        &self,
        name: &str,
        kind: &[&str],
        extensions: &str,
        issuer: Option<&Identity>,
    ) -> Identity {
        let identity = self.identity(name, kind);
        let request = self.request(name, &identity.key);
        self.sign(name, &identity, &request, extensions, issuer);
        identity
    }

    /// The names of the files, and a key of this kind.
    fn identity(&self, name: &str, kind: &[&str]) -> Identity {
        let identity = Identity {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        openssl(&[&["genpkey", "-out", text(&identity.key)], kind].concat());
        identity
    }

    fn sign(
        &self,
        name: &str,
        identity: &Identity,
        request: &Path,
        extensions: &str,
        issuer: Option<&Identity>,
    ) {
        let extensions = self.write(&format!("{name}.extensions"), extensions.as_bytes());
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-days", "30"]);
        command.arg("-in").arg(request);
        command.arg("-extfile").arg(extensions);
        match issuer {
            Some(issuer) => {
                command.arg("-CA").arg(&issuer.certificate);
                command.arg("-CAkey").arg(&issuer.key);
            }
            None => {
                command.arg("-key").arg(&identity.key);
            }
        }
        run(command.arg("-out").arg(&identity.certificate));
    }

    fn request(&self, name: &str, key: &Path) -> PathBuf {
        let request = self.path(&format!("{name}.request"));
        let subject = format!("/CN={name}");
        openssl(&[
            "req",
            "-new",
            "-subj",
            &subject,
            "-key",
            text(key),
            "-out",
            text(&request),
        ]);
        request
    }
}

impl Identity {
    /// The options that tell the program of it.
    pub fn options(&self) -> [&str; 4] {
        ["--cert", text(&self.certificate), "--key", text(&self.key)]
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

/// Runs the `openssl` command to its end. Returns what it printed.
pub fn openssl(arguments: &[&str]) -> String {
    run(Command::new("openssl").args(arguments))
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("openssl starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a client brings to a handshake.
#[derive(Clone, Debug)]
pub struct ClientTls(ClientConfig);

impl ClientTls {
    /// One that trusts the certificates of this file.
    pub fn trusting(file: &Path) -> Self {
        Self::with(file, &[&TLS13, &TLS12], None)
    }

    /// The same, which also shows a certificate.
    pub fn showing(file: &Path, identity: &Identity) -> Self {
        Self::with(file, &[&TLS13, &TLS12], Some(identity))
    }

    /// The same with TLS 1.2 only.
    pub fn old(file: &Path) -> Self {
        Self::with(file, &[&TLS12], None)
    }

    /// The same, which also shows a certificate.
    pub fn old_showing(file: &Path, identity: &Identity) -> Self {
        Self::with(file, &[&TLS12], Some(identity))
    }

    fn with(
        file: &Path,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file) {
            roots.add(certificate).expect("it is a certificate");
        }
        let builder =
            ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        Self(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(certificates(&identity.certificate), key(&identity.key))
                .expect("the key belongs to the certificate"),
        })
    }

    /// The same, offering these protocols by ALPN.
    #[must_use]
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        self.0.alpn_protocols = protocols.collect();
        self
    }

    /// The same, without memory of earlier connections.
    #[must_use]
    pub fn forgetful(mut self) -> Self {
        self.0.resumption = Resumption::disabled();
        self
    }

    /// What a connection to `localhost` begins with.
    pub fn connection(&self) -> ClientConnection {
        let name = ServerName::try_from("localhost").expect("it is a name");
        let config = Arc::new(self.0.clone());
        ClientConnection::new(config, name).expect("the settings are consistent")
    }
}

/// A client's TLS connection, of which one thread may read while another writes.
#[derive(Debug)]
pub(crate) struct TlsWire {
    socket: TcpStream,
    connection: Mutex<ClientConnection>,
    /// What was received and rustls has not taken yet.
    received: Mutex<Vec<u8>>,
    /// What is encrypted and the socket has not taken; held by whoever writes, so that what was encrypted first is written first.
    unsent: Mutex<Vec<u8>>,
}

impl TlsWire {
    /// Makes TLS of a connection.
    pub(crate) fn new(mut socket: TcpStream, tls: &ClientTls) -> io::Result<Self> {
        let mut connection = tls.connection();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self {
            socket,
            connection: Mutex::new(connection),
            received: Mutex::default(),
            unsent: Mutex::default(),
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn connection(&self) -> MutexGuard<'_, ClientConnection> {
        self.connection.lock().expect("no other thread panicked")
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut received = self.received.lock().expect("no other thread panicked");
        loop {
            match self.connection().reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if received.is_empty() {
                received.resize(1 << 14, 0);
                // The other thread may encrypt meanwhile.
                let length = (&self.socket)
                    .read(&mut received)
                    .inspect_err(|_| received.clear())?;
                received.truncate(length);
            }
            let mut connection = self.connection();
            let taken = connection.read_tls(&mut &received[..])?;
            received.drain(..taken);
            connection
                .process_new_packets()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    pub(crate) fn write(&self, data: &[u8]) -> io::Result<usize> {
        let mut unsent = self.unsent.lock().expect("no other thread panicked");
        self.send(&mut unsent)?;
        let mut connection = self.connection();
        let length = connection.writer().write(data)?;
        while connection.wants_write() {
            connection.write_tls(&mut *unsent)?;
        }
        drop(connection);
        match self.send(&mut unsent) {
            // It is encrypted, and goes out before anything else does.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(length),
        }
    }

    fn send(&self, unsent: &mut Vec<u8>) -> io::Result<()> {
        while !unsent.is_empty() {
            let sent = (&self.socket).write(unsent)?;
            unsent.drain(..sent);
        }
        Ok(())
    }
}

/// The server's end of a connection to a target that speaks TLS.
pub fn accept_tls(
    stream: TcpStream,
    identity: &Identity,
) -> StreamOwned<ServerConnection, TcpStream> {
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates(&identity.certificate), key(&identity.key))
        .expect("the key belongs to the certificate");
    let connection = ServerConnection::new(Arc::new(config)).expect("the settings are consistent");
    StreamOwned::new(connection, stream)
}

/// Whether every server has a certificate and every client speaks TLS.
pub fn is_everywhere() -> bool {
    everywhere().is_some()
}

/// The certificate of all servers, and the clients' trust in it, when the tests are run over TLS.
pub(crate) fn everywhere() -> Option<&'static (Certificates, Identity, ClientTls)> {
    static EVERYWHERE: OnceLock<Option<(Certificates, Identity, ClientTls)>> = OnceLock::new();
    let made = EVERYWHERE.get_or_init(|| {
        std::env::var_os("WEBSOCKIFY_OVER_TLS")?;
        let certificates = Certificates::new();
        let identity = certificates.host("everywhere", FAST, None);
        let trust = ClientTls::trusting(&identity.certificate);
        Some((certificates, identity, trust))
    });
    made.as_ref()
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file)
        .expect("the file is there")
        .collect::<Result<_, _>>()
        .expect("they are certificates")
}

fn key(file: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(file).expect("it is a key")
}
