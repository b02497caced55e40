//! A private PgBouncer in front of a server.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use millhand::db;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::database::Database;
use super::{SOON, look_until};

/// Ends with this value.
pub(crate) struct Pooler {
    child: Child,
    folder: TempDir,
}

impl Pooler {
    /// In front of this database's server, with three sessions for all, which it hands out
    /// anew for each transaction, or as `mode` says.
    pub(crate) fn start(database: &Database, mode: &str, settings: &str) -> Pooler {
        let server: postgres::Config = database.url().parse().unwrap();
        let postgres::config::Host::Unix(socket) = &server.get_hosts()[0] else {
            panic!("{server:?} is not a socket")
        };
        let folder = TempDir::with_prefix("millhand-test-").unwrap();
        let path = folder.path().display();
        let config = format!(
            "[databases]\n* = host={} port={}\n\
             [pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {path}\n\
             auth_type = trust\nauth_file = {path}/users\npool_mode = {mode}\n\
             default_pool_size = 3\nmax_client_conn = 200\nlogfile = {path}/log\n{settings}\n",
            socket.display(),
            server.get_ports()[0],
        );
        fs::write(folder.path().join("pgbouncer.ini"), config).unwrap();
        fs::write(folder.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        // It does not run as root, and has to get to the server's socket.
        let owner = fs::metadata(socket).unwrap();
        for file in ["", "pgbouncer.ini", "users"] {
            chown(folder.path().join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|program| Path::new(program).exists())
            .expect("PgBouncer is not installed; `make setup` installs it");
        let mut command = Command::new(program);
        command.args(["-q", "pgbouncer.ini"]).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let pooler = Pooler { child: command.spawn().unwrap(), folder };
        let url = pooler.url(database);
        let answered = look_until(SOON, || db::connect(&url, "test").map(drop));
        assert!(answered.is_ok(), "{answered:?}: {}", pooler.log());
        pooler
    }

    /// The way to a database through it.
    pub(crate) fn url(&self, database: &Database) -> String {
        let folder = self.folder.path().display();
        format!("postgresql://postgres@/{}?host={folder}&port=6432", database.name())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
