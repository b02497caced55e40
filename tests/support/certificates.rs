//! Certificates of a private authority, and a Postgres that shows them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use millhand::db;
use millhand::server::{PostgresOptions, PrivatePostgres};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

use super::database::Database;
use super::{SOON, wait_until};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM format.
pub(crate) struct Certified {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let params = params_of_authority(name, &[]);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// For these hosts, or for a role if there are none.
    pub(crate) fn certify(&self, common_name: &str, hosts: &[&str]) -> Certified {
        self.certify_until(common_name, hosts, 4000)
    }

    /// The same, until this year.
    pub(crate) fn certify_until(&self, name: &str, hosts: &[&str], year: i32) -> Certified {
        let mut params = params_of(name, hosts);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Certified { certificate, key: key.serialize_pem() }
    }
}

/// One that vouches for itself, as `openssl req -x509` makes it.
pub(crate) fn certify_itself(host: &str) -> Certified {
    let key = KeyPair::generate().unwrap();
    let certificate = params_of_authority(host, &[host]).self_signed(&key).unwrap().pem();
    Certified { certificate, key: key.serialize_pem() }
}

fn params_of(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn params_of_authority(name: &str, hosts: &[&str]) -> CertificateParams {
    let mut params = params_of(name, hosts);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// Writes a file that nobody else can read.
pub(crate) fn write_own(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

/// A Postgres on 127.0.0.1 whose encryption and rules change.
pub(crate) struct Guarded {
    pub(crate) server: PrivatePostgres,
    pub(crate) port: u16,
    pub(crate) database: Database,
    rules: String,
}

impl Guarded {
    pub(crate) fn start() -> Guarded {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let listen = Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let options = PostgresOptions { listen, ..PostgresOptions::default() };
        let server = PrivatePostgres::start(&options)
            .unwrap_or_else(|error| panic!("{}", millhand::error::chain(&error)));
        let database = Database::of(&server);
        let rules = fs::read_to_string(server.directory().join("data/pg_hba.conf")).unwrap();
        Guarded { server, port, database, rules }
    }

    /// Has it show this certificate, or not encrypt at all.
    pub(crate) fn show(&self, certified: Option<&Certified>) {
        let encrypts = match certified {
            Some(certified) => {
                self.write("server.crt", &certified.certificate);
                self.write("server.key", &certified.key);
                "on"
            }
            None => "off",
        };
        self.set("ssl", encrypts);
    }

    /// Whose certificates of clients it believes.
    pub(crate) fn believe(&self, authority: &Authority) {
        self.write("clients.crt", &authority.pem());
        self.set("ssl_ca_file", "clients.crt");
    }

    /// Puts rules before those that let everybody in.
    pub(crate) fn rule(&self, rules: &str) {
        self.write("pg_hba.conf", &format!("{rules}\n{}", self.rules));
        self.reload();
    }

    fn set(&self, name: &str, value: &str) {
        let mut admin = db::connect(&self.server.url(), "test").unwrap();
        admin.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
        self.reload();
    }

    fn reload(&self) {
        let loaded = || {
            let mut admin = db::connect(&self.server.url(), "test").unwrap();
            let row = admin.query_one("SELECT pg_conf_load_time()::text", &[]).unwrap();
            row.get::<_, String>(0)
        };
        let before = loaded();
        let mut admin = db::connect(&self.server.url(), "test").unwrap();
        admin.execute("SELECT pg_reload_conf()", &[]).unwrap();
        // Sessions that begin from then on know.
        wait_until(&self.database, "the settings are read", SOON, || {
            if loaded() == before { Err(()) } else { Ok(()) }
        });
    }

    fn write(&self, name: &str, text: &str) {
        let folder = self.server.directory().join("data");
        let path = write_own(&folder.join(name), text);
        let owner = fs::metadata(folder).unwrap();
        chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}
