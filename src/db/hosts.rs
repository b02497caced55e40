//! Where servers may be, in the order in which they are tried.

use std::net::IpAddr;
use std::path::Path;

use super::parameters::{Parameters, refused};
use crate::error::Error;

/// The folder of the server's socket where no host is named, as Debian and Red Hat build
/// libpq.
const SOCKETS: &str = "/var/run/postgresql";

const PORT: u16 = 5432;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A name, an address or a socket's folder.
    pub(super) name: String,
    /// Where it is, if that is not to be asked of its name.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// The hosts of these parameters, one at least.
pub(super) fn hosts_of(parameters: &Parameters) -> Result<Vec<Host>, Error> {
    let split = |key| {
        let items = parameters.get(key).map(|value| value.split(',').map(str::trim).collect());
        items.unwrap_or_default()
    };
    let (names, addresses, ports): (Vec<&str>, Vec<&str>, Vec<&str>) =
        (split("host"), split("hostaddr"), split("port"));
    let n_hosts = names.len().max(addresses.len()).max(1);
    for (key, n) in [("host", names.len()), ("hostaddr", addresses.len())] {
        if n != 0 && n != n_hosts {
            return Err(refused(key, &format!("names {n} hosts, and there are {n_hosts}")));
        }
    }
    if ports.len() > 1 && ports.len() != n_hosts {
        let what = format!("names {} ports, and there are {n_hosts} hosts", ports.len());
        return Err(refused("port", &what));
    }
    (0..n_hosts)
        .map(|index| {
            let address = addresses.get(index).copied().filter(|address| !address.is_empty());
            let name = names.get(index).copied().filter(|name| !name.is_empty());
            let port = ports.get(index).or(ports.first()).copied().unwrap_or_default();
            let not_a_port = |_| refused("port", "is no number from 1 to 65535");
            let port = if port.is_empty() { Ok(PORT) } else { port.parse().map_err(not_a_port) }?;
            let not_an_address = |_| refused("hostaddr", "is no address such as 192.0.2.1");
            if port == 0 {
                return Err(refused("port", "is no number from 1 to 65535"));
            }
            Ok(Host {
                name: name.or(address).unwrap_or(SOCKETS).to_owned(),
                address: address.map(str::parse).transpose().map_err(not_an_address)?,
                port,
            })
        })
        .collect()
}

impl Host {
    /// Whether this is a socket of this machine.
    pub(super) fn is_socket(&self) -> bool {
        self.address.is_none() && Path::new(&self.name).is_absolute()
    }

    /// Whether what is said to it stays on this machine. Its name decides: an address may
    /// be the end of a tunnel.
    pub(super) fn is_loopback(&self) -> bool {
        match self.name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.name == "localhost",
        }
    }

    /// What the password file calls it.
    pub(super) fn in_password_file(&self) -> &str {
        if self.name == SOCKETS { "localhost" } else { &self.name }
    }

    pub(super) fn place(&self) -> String {
        if self.name.contains(':') {
            format!("[{}]:{}", self.name, self.port)
        } else {
            format!("{}:{}", self.name, self.port)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn hosts_addresses_and_ports_belong_together() {
        for (text, expected) in [
            ("user=u host='' port='' hostaddr=''", "/var/run/postgresql:5432"),
            ("host=a,b hostaddr='' port=6", "a:6 b:6"),
            ("host=a,,/s hostaddr='' port=,7,", "a:5432 /var/run/postgresql:7 /s:5432"),
            ("host='' hostaddr=127.0.0.1,::1 port=6,7", "127.0.0.1:6 [::1]:7"),
            ("host=a,b hostaddr=192.0.2.1,192.0.2.2 port=''", "a:5432 b:5432"),
        ] {
            let hosts = hosts_of(&Parameters::read(text).unwrap()).unwrap();
            let places: Vec<String> = hosts.iter().map(Host::place).collect();
            assert_eq!(places.join(" "), expected, "{text}");
        }
        for text in [
            "host=a,b hostaddr=192.0.2.1 port=6",
            "host=a port=6,7 hostaddr=''",
            "host=a port=secret hostaddr=''",
            "host=a port=0 hostaddr=''",
            "host=a port=65536 hostaddr=''",
            "host=a hostaddr=secret port=6",
        ] {
            let said = hosts_of(&Parameters::read(text).unwrap()).unwrap_err().to_string();
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (name, expected) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("192.0.2.1", false),
            ("db", false),
        ] {
            let address = Some([127, 0, 0, 1].into());
            let host = Host { name: name.to_owned(), address, port: 1 };
            assert_eq!(host.is_loopback(), expected, "{name}");
        }
    }
}
