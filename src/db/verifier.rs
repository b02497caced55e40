//! Whether a server is the one that it should be, by its certificate.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Who is trusted.
#[derive(Debug)]
pub(super) struct Roots {
    authorities: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// None if no certificate can be read.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Option<Roots> {
        let mut authorities = RootCertStore::empty();
        let (n_added, _) = authorities.add_parsable_certificates(certificates.iter().cloned());
        (n_added > 0).then_some(Roots { authorities, certificates })
    }
}

/// Verifies as much as the mode asks for.
#[derive(Debug)]
pub(super) struct Verifier {
    /// None if it may be anybody.
    roots: Option<Roots>,
    checks_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        roots: Option<Roots>,
        checks_name: bool,
        provider: &CryptoProvider,
    ) -> Verifier {
        Verifier { roots, checks_name, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots.authorities,
            intermediates,
            now,
            self.algorithms.all,
        )
        .or_else(|error| {
            // A certificate that vouches for itself, as Postgres' manual makes one, is its
            // own authority. All else, such as its dates, has been looked at by then.
            let is_named = || roots.certificates.iter().any(|root| root == end_entity);
            if is_of_an_authority(&error) && is_named() { Ok(()) } else { Err(error) }
        })?;
        if self.checks_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Where it may be anybody, its certificate may be of an old form, too.
        match self.roots {
            Some(_) => verify_tls12_signature(message, certificate, signature, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.roots {
            Some(_) => verify_tls13_signature(message, certificate, signature, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate was refused only because it may vouch for others.
fn is_of_an_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(reason)) = error else { return false };
    // The crate that says so is none of ours.
    reason.to_string().contains("CaUsedAsEndEntity")
}
