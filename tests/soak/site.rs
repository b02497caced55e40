//! The servers, the network and the worker processes of a soak.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millhand::server::{PostgresOptions, PrivatePostgres, PrivateRedis};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::network::{Cut, Network};
use crate::support::database::Database;
use crate::support::look_until;
use crate::support::process::{Workshop, children_of, within};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;

/// A worker's time to live: short, so that much can be done within a run.
pub(crate) const TTL: Duration = Duration::from_secs(3);

/// How long a lease is.
pub(crate) const LEASE: Duration = Duration::from_millis(2700);

const N_WORKERS: usize = 4;
const N_THREADS: usize = 6;

/// Enough for all, and few enough to use up.
pub(crate) const MAX_CONNECTIONS: u32 = 70;

/// How a worker process comes to the servers, and how that is broken.
#[derive(Debug)]
pub(crate) enum Way {
    Network(Network),
    /// One to Postgres and one to Redis, for each worker.
    Proxies(Vec<(Proxy, Proxy)>),
}

/// A worker process that is started anew whenever it ends.
#[derive(Debug)]
pub(crate) struct Slot {
    child: Option<Child>,
    pub(crate) work: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) work_is_small: bool,
    pub(crate) cut: Option<Cut>,
    /// Whether we have asked it to end.
    pub(crate) is_asked: bool,
}

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) worker_type: &'static str,
    pub(crate) slots: Vec<Slot>,
    pub(crate) way: Way,
    pub(crate) database: Database,
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) postgres: PrivatePostgres,
    pub(crate) redis: PrivateRedis,
    /// The journal, the files of resources, the logs of workers.
    pub(crate) folder: TempDir,
    /// What a worker process must not end with.
    pub(crate) bad_ends: Vec<String>,
}

impl Site {
    pub(crate) fn new(worker_type: &'static str) -> Site {
        let folder = TempDir::with_prefix("millhand-soak-").unwrap();
        let network = Network::new(N_WORKERS);
        let listen = network.as_ref().map(|network| free_address(network.postgres()));
        let max_connections = MAX_CONNECTIONS;
        let options = PostgresOptions { max_connections, listen, ..PostgresOptions::default() };
        let postgres = PrivatePostgres::start(&options).unwrap();
        let redis_address = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::redis);
        let redis = PrivateRedis::start_on(redis_address).unwrap();
        let database = Database::of(&postgres);
        let program = std::env::current_exe().unwrap();
        let handlers = format!(
            "[handlers.soak]\ncommand = [{:?}, \"handler\"]\n",
            program.display().to_string()
        );
        let workshop = Arc::new(Workshop::with_redis(&database, Redis::of(&redis), &handlers));
        let way = match network {
            Some(network) => Way::Network(network),
            None => Way::Proxies(
                (0..N_WORKERS)
                    .map(|_| {
                        (Proxy::of_postgres(&database.url()).0, Proxy::of_redis(&redis.url()).0)
                    })
                    .collect(),
            ),
        };
        let slots = (0..N_WORKERS).map(|number| Slot::new(folder.path(), number)).collect();
        let mut site = Site {
            worker_type,
            slots,
            way,
            database,
            workshop,
            postgres,
            redis,
            folder,
            bad_ends: Vec::new(),
        };
        for number in 0..N_WORKERS {
            site.start(number);
        }
        site
    }

    fn start(&mut self, number: usize) {
        let mut command = self.workshop.millhand(["worker", "--type", self.worker_type]);
        let slot = &mut self.slots[number];
        command
            .args(["--threads", &N_THREADS.to_string()])
            .env("MILLHAND_TTL", format!("{}ms", TTL.as_millis()))
            .env("MILLHAND_POLL_INTERVAL", "200ms")
            .env("MILLHAND_CANCEL_GRACE_INTERVAL", "300ms")
            .env("MILLHAND_WORKING_DIRECTORY", &slot.work);
        let mut prefix: Vec<OsString> = Vec::new();
        match &self.way {
            Way::Network(network) => {
                command.env("MILLHAND_DATABASE_URL", self.postgres.network_url().unwrap());
                prefix = network.prefix(number);
            }
            Way::Proxies(proxies) => {
                let (postgres, redis) = &proxies[number];
                command
                    .env("MILLHAND_DATABASE_URL", postgres.postgres_url(&self.database.url()))
                    .env("MILLHAND_REDIS_URL", redis.redis_url(&self.redis.url()));
            }
        }
        let log = File::options().append(true).create(true).open(&slot.log).unwrap();
        let mut command = within(&prefix, &command);
        command.stdout(Stdio::null()).stderr(log);
        slot.child = Some(command.spawn().unwrap());
        slot.is_asked = false;
    }

    /// Starts anew what has ended.
    pub(crate) fn tend(&mut self) {
        for number in 0..self.slots.len() {
            if let Some(status) = self.slots[number].try_wait() {
                self.note_end(number, status);
                self.start(number);
            }
        }
    }

    fn note_end(&mut self, number: usize, status: ExitStatus) {
        use std::os::unix::process::ExitStatusExt;
        // Killed by us, told to end by us (before it listened, perhaps), or for want of a
        // server.
        let is_asked = self.slots[number].is_asked;
        let is_fine = status.signal() == Some(9)
            || status.code() == Some(75)
            || is_asked && (status.success() || matches!(status.signal(), Some(2 | 15)));
        if !is_fine {
            let log = fs::read_to_string(&self.slots[number].log).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            self.bad_ends.push(format!("worker process {number} ended with {status}: {last}"));
        }
    }

    /// Tells all workers to end in good order and waits until they have.
    pub(crate) fn close(&mut self) {
        for slot in &mut self.slots {
            slot.signal(Signal::TERM);
        }
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            let end = look_until(Duration::from_secs(40), || slot.try_wait().ok_or(()));
            match end {
                Ok(status) if status.success() => {}
                Ok(status) => self.bad_ends.push(format!("a drained worker ended with {status}")),
                Err(()) => {
                    let pid = slot.pid().unwrap();
                    let log = slot.log.display();
                    self.bad_ends.push(format!("worker {pid} did not end; its log is {log}"));
                }
            }
        }
    }

    pub(crate) fn part(&mut self, number: usize, cut: Cut) {
        if self.slots[number].cut.is_some() {
            return;
        }
        match &self.way {
            Way::Network(network) => network.part(number, cut),
            Way::Proxies(proxies) => {
                if cut != Cut::ToRedis {
                    proxies[number].0.part();
                }
                if cut != Cut::ToPostgres {
                    proxies[number].1.part();
                }
            }
        }
        self.slots[number].cut = Some(cut);
    }

    pub(crate) fn join(&mut self, number: usize) {
        let Some(cut) = self.slots[number].cut.take() else { return };
        match &self.way {
            Way::Network(network) => network.join(number, cut),
            Way::Proxies(proxies) => {
                proxies[number].0.join();
                proxies[number].1.join();
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            slot.signal(Signal::CONT);
            if let Some(child) = &mut slot.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            if slot.work_is_small {
                let _ = Command::new("umount").arg("--lazy").arg(&slot.work).status();
            }
        }
    }
}

impl Slot {
    fn new(folder: &Path, number: usize) -> Slot {
        let work = folder.join(format!("work-{number}"));
        fs::create_dir(&work).unwrap();
        // A file system of its own, small enough to be full at once.
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,nr_inodes=400", "soak"]).arg(&work);
        mount.stdout(Stdio::null()).stderr(Stdio::null());
        let work_is_small = mount.status().is_ok_and(|status| status.success());
        let log = folder.join(format!("worker-{number}.log"));
        Slot { child: None, work, log, work_is_small, cut: None, is_asked: false }
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// Of the worker, if it was not seen to have ended.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(Pid::from_child)
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.is_asked |= matches!(signal, Signal::TERM | Signal::INT);
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, signal);
        }
    }

    /// The warden, if there is one now.
    pub(crate) fn warden(&self) -> Option<Pid> {
        let is_warden = |pid: &Pid| {
            let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            words.is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == b"warden"))
        };
        let worker = self.child.as_ref()?.id();
        children_of(worker).into_iter().find(is_warden)
    }
}

fn free_address(address: Ipv4Addr) -> SocketAddrV4 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    SocketAddrV4::new(address, listener.local_addr().unwrap().port())
}
