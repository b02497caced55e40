//! Encryption: libpq's words for it, and what rustls is told for each.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::config::SslMode;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::hosts::Host;
use super::parameters::{Parameters, refused};
use super::verifier::{Roots, Verifier};
use crate::error::Error;

/// What is made sure of before anything is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted, whoever the server is.
    Require,
    /// And its certificate is of an authority that is trusted.
    VerifyCa,
    /// And is for its name.
    VerifyFull,
}

impl Mode {
    /// What the client of Postgres, which knows less, is told.
    pub(super) fn as_ssl_mode(self) -> SslMode {
        match self {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        }
    }
}

/// What the parameters say of encryption.
pub(super) struct Tls<'a> {
    parameters: &'a Parameters,
    asked: Option<Mode>,
    pub(super) is_direct: bool,
}

/// Where trusted certificates come from.
enum Source {
    File(PathBuf),
    System,
}

impl<'a> Tls<'a> {
    pub(super) fn read(parameters: &'a Parameters) -> Result<Tls<'a>, Error> {
        if parameters.get("sslmode") == Some("allow") {
            return Err(refused(
                "sslmode",
                "is allow, which is not supported because it protects from nothing; take prefer",
            ));
        }
        let asked = parameters.word(
            "sslmode",
            &[
                ("disable", Mode::Disable),
                ("prefer", Mode::Prefer),
                ("require", Mode::Require),
                ("verify-ca", Mode::VerifyCa),
                ("verify-full", Mode::VerifyFull),
            ],
        )?;
        let is_direct =
            parameters.word("sslnegotiation", &[("postgres", false), ("direct", true)])?;
        if parameters.get("sslrootcert") == Some("system")
            && asked.is_some_and(|mode| mode != Mode::VerifyFull && mode != Mode::Disable)
        {
            return Err(refused(
                "sslmode",
                "can only be verify-full where sslrootcert is system: its authorities vouch for \
                 everybody's names",
            ));
        }
        Ok(Tls { parameters, asked, is_direct: is_direct.unwrap_or(false) })
    }

    /// What goes for a host. On a socket nobody listens in, and what stays on the machine
    /// need not be encrypted; to anybody else a server has to prove that it is the one,
    /// unless it is said that it need not.
    pub(super) fn mode_for(&self, host: &Host) -> Result<Mode, Error> {
        if host.is_socket() {
            return Ok(Mode::Disable);
        }
        let default = if self.parameters.get("sslrootcert") == Some("system") {
            Mode::VerifyFull
        } else if host.is_loopback() && !self.is_direct {
            Mode::Prefer
        } else {
            Mode::VerifyFull
        };
        let mut mode = self.asked.unwrap_or(default);
        if self.is_direct && matches!(mode, Mode::Disable | Mode::Prefer) {
            return Err(refused(
                "sslnegotiation",
                "can only be direct with sslmode=require or more",
            ));
        }
        // As in libpq: who has named whom to trust means it.
        if mode == Mode::Require && self.source().is_some() {
            mode = Mode::VerifyCa;
        }
        Ok(mode)
    }

    /// What encrypts under a mode.
    pub(super) fn connector(&self, mode: Mode) -> Result<MakeRustlsConnect, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(self.roots(mode)?, mode == Mode::VerifyFull, &provider);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions()?)
            .map_err(|error| unusable("the settings of TLS", &error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match self.certificate(mode)? {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("the client's certificate or its key", &error))?,
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = self.parameters.get("sslsni") != Some("0");
        if self.is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }

    fn versions(&self) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, Error> {
        let words = [("TLSv1", 0), ("TLSv1.1", 1), ("TLSv1.2", 2), ("TLSv1.3", 3)];
        let lowest = self.parameters.word("ssl_min_protocol_version", &words)?.unwrap_or(2);
        let highest = self.parameters.word("ssl_max_protocol_version", &words)?.unwrap_or(3);
        let known = [(2, &TLS12), (3, &TLS13)];
        let versions: Vec<_> = known
            .into_iter()
            .filter(|(number, _)| (lowest..=highest).contains(number))
            .map(|(_, version)| version)
            .collect();
        if versions.is_empty() {
            return Err(refused(
                "ssl_max_protocol_version",
                "leaves neither TLSv1.2 nor TLSv1.3, and older ones are not safe",
            ));
        }
        Ok(versions)
    }

    fn source(&self) -> Option<Source> {
        if self.parameters.get("sslrootcert") == Some("system") {
            return Some(Source::System);
        }
        self.parameters.file("sslrootcert", ".postgresql/root.crt").map(Source::File)
    }

    /// Whom to trust; nobody needs to be trusted where nothing is verified.
    fn roots(&self, mode: Mode) -> Result<Option<Roots>, Error> {
        let source = match mode {
            Mode::Disable | Mode::Prefer | Mode::Require => return Ok(None),
            Mode::VerifyCa => self.source().ok_or_else(|| {
                refused("sslmode", "is verify-ca, which needs an authority: sslrootcert=FILE")
            })?,
            Mode::VerifyFull => self.source().unwrap_or(Source::System),
        };
        match source {
            Source::File(path) => {
                let what = format!("the root certificates in {}", path.display());
                Roots::new(certificates(&path, &what)?)
                    .ok_or_else(|| unusable(&what, &"none is a certificate of an authority"))
                    .map(Some)
            }
            Source::System => {
                let found = rustls_native_certs::load_native_certs();
                Roots::new(found.certs).map(Some).ok_or_else(|| {
                    Error::Config(
                        "this system has no root certificates (package ca-certificates); name \
                         whom to trust with sslrootcert=FILE"
                            .to_owned(),
                    )
                })
            }
        }
    }

    /// The client's own certificate, if there is one.
    #[allow(clippy::type_complexity, reason = "that is what rustls takes")]
    fn certificate(
        &self,
        mode: Mode,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Error> {
        if mode == Mode::Disable {
            return Ok(None);
        }
        let Some(path) = self.parameters.file("sslcert", ".postgresql/postgresql.crt") else {
            return Ok(None);
        };
        let chain = certificates(&path, &format!("the client's certificate {}", path.display()))?;
        let key =
            self.parameters.file("sslkey", ".postgresql/postgresql.key").ok_or_else(|| {
                refused(
                    "sslkey",
                    &format!("has to name the key of the certificate {}", path.display()),
                )
            })?;
        Ok(Some((chain, private_key(&key)?)))
    }
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let file = File::open(path).map_err(|error| unusable(what, &error))?;
    let certificates = CertificateDer::pem_reader_iter(file)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(what, &error))?;
    if certificates.is_empty() {
        return Err(unusable(what, &"there is none in the file"));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let what = format!("the client's key {}", path.display());
    let metadata = fs::metadata(path).map_err(|error| unusable(&what, &error))?;
    // The system's administrator may let a group have it.
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & others != 0 {
        return Err(unusable(&what, &"others may read it; chmod 600 makes it yours alone"));
    }
    // (What the reader says of a bad key may quote it.)
    PrivateKeyDer::from_pem_file(path)
        .map_err(|_| unusable(&what, &"it is no key in PEM format without a password"))
}

fn unusable(what: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Config(format!("could not use {what}: {why}"))
}
