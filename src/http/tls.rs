//! TLS for the doors, where no ingress ends it: certificates from files, read again when the files have changed. A file
//! that cannot be used leaves the old certificate at work, and a warning.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::config::Tls;

/// How often the files are compared with what was read last. Certificates are renewed days before they end.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The certificates that are served now.
pub struct Certificates {
    tls: Tls,
    current: RwLock<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// What was read last, usable or not: the same trouble is told once.
    files: Files,
}

/// The texts of the files.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files. The error is one sentence that names the file.
    pub fn load(tls: &Tls) -> Result<Arc<Self>, String> {
        let files = Files::read(tls)?;
        let config = Arc::new(files.config(tls)?);
        Ok(Arc::new(Self { tls: tls.clone(), current: RwLock::new(Current { config, files }) }))
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    /// Reads the files again. `Ok(true)`: new connections see another certificate than before. An error leaves the old
    /// one at work, and comes once for the same contents.
    pub fn refresh(&self) -> Result<bool, String> {
        let files = Files::read(&self.tls)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).files == files {
            return Ok(false);
        }
        let made = files.config(&self.tls);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.files = files;
        current.config = Arc::new(made?);
        Ok(true)
    }

    /// Refreshes now and then, until it is told to stop.
    pub(super) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut unreadable = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let certificates = self.clone();
            // Files may lie on a network.
            let looked = tokio::task::spawn_blocking(move || certificates.refresh()).await;
            match looked {
                Ok(Ok(changed)) => {
                    unreadable = None;
                    if changed {
                        tracing::info!(
                            "TLS: the files have changed; new connections get the new certificate"
                        );
                    }
                }
                Ok(Err(why)) if unreadable.as_ref() != Some(&why) => {
                    tracing::warn!("TLS: {why}. The old certificate stays at work; mend the file");
                    unreadable = Some(why);
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!("TLS: looking at the files ended badly: {error}"),
            }
        }
    }
}

impl Files {
    fn read(tls: &Tls) -> Result<Self, String> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        Ok(Self {
            certificate: read(&tls.certificate_file)?,
            key: read(&tls.key_file)?,
            client_ca: tls.client_ca_file.as_ref().map(read).transpose()?,
        })
    }

    fn config(&self, tls: &Tls) -> Result<ServerConfig, String> {
        let chain = certificates(&tls.certificate_file, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| format!("{} holds no private key in PEM form", tls.key_file.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // TLS 1.2 and 1.3: rustls has no older ones.
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match (&tls.client_ca_file, &self.client_ca) {
            (Some(path), Some(text)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, text)? {
                    roots
                        .add(certificate)
                        .map_err(|error| format!("{}: not an authority: {error}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if tls.client_required { verifier } else { verifier.allow_unauthenticated() }.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| format!("{}: {error}", path.display()))?,
                )
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let (certificate, key) = (tls.certificate_file.display(), tls.key_file.display());
            format!("{certificate} and {key} do not go together: {error}")
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|_| format!("{} is no proper PEM", path.display()))?;
    if all.is_empty() {
        return Err(format!("{} holds no certificate in PEM form", path.display()));
    }
    Ok(all)
}
