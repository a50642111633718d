//! Certificates between services: everybody shows one of our authority, read again when replaced.
//! It must never serve somebody in clear where certificates are configured.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_parser::parse_x509_certificate;

/// PEM files: the authority of callers, our certificate, its key.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

type Stamps = [SystemTime; 3];

/// The certificates in use.
pub(crate) struct Tls {
    files: Files,
    current: Mutex<(Stamps, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads the files; the error names the one that cannot be used.
    pub(crate) fn load(files: Files) -> io::Result<Tls> {
        let current = Mutex::new((files.stamps()?, Arc::new(files.read()?)));
        Ok(Tls { files, current })
    }

    /// For the next caller. The files are looked at each time; where they are in the middle of
    /// being replaced, what was read before still serves, and the second value says why.
    pub(crate) fn acceptor(&self) -> (TlsAcceptor, Option<io::Error>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.files.stamps().and_then(|stamps| {
            let changed = stamps != current.0;
            changed
                .then(|| Ok((stamps, Arc::new(self.files.read()?))))
                .transpose()
        });
        let problem = match fresh {
            Ok(Some(fresh)) => {
                *current = fresh;
                None
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        (TlsAcceptor::from(current.1.clone()), problem)
    }
}

impl Files {
    fn stamps(&self) -> io::Result<Stamps> {
        let stamp = |path: &Path| {
            let found = std::fs::metadata(path).and_then(|found| found.modified());
            found.map_err(|error| unusable(path, &error))
        };
        Ok([stamp(&self.ca)?, stamp(&self.cert)?, stamp(&self.key)?])
    }

    fn read(&self) -> io::Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca)? {
            roots
                .add(root)
                .map_err(|error| unusable(&self.ca, &error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| unusable(&self.ca, &error))?;
        let secret =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unusable(&self.key, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, secret)
            .map_err(|error| unusable(&self.key, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn Display) -> io::Error {
    let text = format!("{}: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The common names in the certificate that the caller has shown.
pub(crate) fn names(stream: &TlsStream<TcpStream>) -> Vec<String> {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let Some((_, found)) = shown
        .first()
        .and_then(|der| parse_x509_certificate(der).ok())
    else {
        return Vec::new();
    };
    let names = found.subject().iter_common_name();
    // What is no text stays in the list: one name among several is nobody's.
    names
        .map(|name| name.as_str().unwrap_or_default().to_owned())
        .collect()
}
