//! Why a server could not be connected to, in words that say what to do.

use std::error::Error as StdError;
use std::io;

use rustls::CertificateError;

use crate::error::{Error, passing};

/// Whether the encryption failed, and not the connection under it.
pub(super) fn is_of_tls(error: &postgres::Error) -> bool {
    tls_error(error).is_some() || passing::is_of_handshake(error) && !passing::is_cut(error)
}

/// The error, with what to do if that is not plain from what the client says.
pub(super) fn explain(doing: &str, place: &str, error: postgres::Error) -> Error {
    let what = match tls_error(&error) {
        Some(error) => of_tls(place, error),
        None => of_client(place, &error),
    };
    match what {
        Some(what) => Error::Config(format!("{doing}: {what}")),
        None => Error::postgres(doing, error),
    }
}

fn of_client(place: &str, error: &postgres::Error) -> Option<String> {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    match cause.as_str() {
        "server does not support TLS" => Some(format!(
            "{place} does not offer TLS; where the network is trusted, say so with \
             sslmode=disable"
        )),
        "password missing" => Some(format!(
            "{place} wants a password, and there is none for this role in the URL, PGPASSWORD or \
             the password file"
        )),
        "server did not use channel binding" => Some(format!(
            "{place} does not bind a login to the encrypted channel, which channel_binding=require \
             asks for"
        )),
        _ => None,
    }
}

fn of_tls(place: &str, error: &rustls::Error) -> Option<String> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let what = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            UnknownIssuer => "is of an authority that is not trusted here; name the right one \
                              with sslrootcert=FILE"
                .to_owned(),
            Expired | ExpiredContext { .. } => "has expired; it has to be renewed there".to_owned(),
            NotValidYet | NotValidYetContext { .. } => {
                "is not valid yet; one of the two clocks may be wrong".to_owned()
            }
            NotValidForName => "is not for this name; use one that it is for".to_owned(),
            NotValidForNameContext { presented, .. } if presented.is_empty() => {
                "is for no name (subjectAltName); have one made that is, or let any name do with \
                 sslmode=verify-ca"
                    .to_owned()
            }
            NotValidForNameContext { presented, .. } => format!(
                "is not for this name but for {}; use one of them, or let any name do with \
                 sslmode=verify-ca",
                presented.join(", ")
            ),
            other => format!("is refused: {other}"),
        },
        other => return Some(format!("{place} and this program agree on no encryption: {other}")),
    };
    Some(format!("the certificate of {place} {what}"))
}

/// What the encryption had to say, which an error of the system holds.
fn tls_error(error: &postgres::Error) -> Option<&rustls::Error> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}
