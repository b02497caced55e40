//! A network for worker processes: each has a namespace of its own, joined by a bridge,
//! and can be parted from the servers.
//!
//! Whoever is to lose packets is given a hardware address for the other that nobody
//! has: so they vanish without a word, in one direction alone if need be, with no module
//! of the kernel for it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// What the names of all bridges and namespaces begin with; the process id of the run
/// that made them follows.
const PREFIX: &str = "soak";

/// Belongs to nobody.
const NOBODY: &str = "02:00:00:00:de:ad";

/// What of a worker's network is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its cable.
    All,
    /// What it sends to Postgres.
    ToPostgres,
    /// What it sends to Redis.
    ToRedis,
    /// What both send to it.
    FromServers,
}

impl Cut {
    pub(crate) const KINDS: [Cut; 4] = [Cut::All, Cut::ToPostgres, Cut::ToRedis, Cut::FromServers];
}

/// A bridge with a namespace for each of some worker processes.
#[derive(Debug)]
pub(crate) struct Network {
    bridge: String,
    /// The third number of its addresses.
    number: u8,
    n_places: usize,
}

impl Network {
    /// None where we may not, or where the programs for it are missing.
    pub(crate) fn new(n_places: usize) -> Option<Network> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        remove_remains();
        let taken = output(&["-o", "-4", "address"])?;
        // Two that begin at once begin to look at different numbers.
        let first = std::process::id() % 254;
        let mut numbers = (0..254).map(|step| 1 + (first + step) % 254);
        let number = numbers.find(|number| !taken.contains(&format!(" 10.213.{number}.")))?;
        let number = u8::try_from(number).ok()?;
        let network =
            Network { bridge: format!("{PREFIX}{}", std::process::id()), number, n_places };
        network.set_up().then_some(network)
    }

    /// Where Postgres listens.
    pub(crate) fn postgres(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, 1)
    }

    /// Where Redis listens.
    pub(crate) fn redis(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, 2)
    }

    fn place(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, 10 + u8::try_from(place).unwrap())
    }

    fn name(&self, place: usize) -> String {
        format!("{}-{place}", self.bridge)
    }

    /// What a command line begins with to run in this place.
    pub(crate) fn prefix(&self, place: usize) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name(place)].map(OsString::from).into()
    }

    fn set_up(&self) -> bool {
        let bridge = &self.bridge;
        let mut steps = vec![
            format!("link add {bridge} type bridge"),
            format!("address add {}/24 dev {bridge}", self.postgres()),
            format!("address add {}/24 dev {bridge}", self.redis()),
            format!("link set {bridge} up"),
        ];
        for place in 0..self.n_places {
            let name = self.name(place);
            steps.extend([
                format!("netns add {name}"),
                format!("link add {name} type veth peer name eth0 netns {name}"),
                format!("link set {name} master {bridge} up"),
                format!("-n {name} address add {}/24 dev eth0", self.place(place)),
                format!("-n {name} link set lo up"),
                format!("-n {name} link set eth0 up"),
            ]);
        }
        steps.iter().all(|step| ip(step))
    }

    pub(crate) fn part(&self, place: usize, cut: Cut) {
        let (name, bridge) = (self.name(place), &self.bridge);
        let bend = |server| {
            format!("-n {name} neighbour replace {server} lladdr {NOBODY} dev eth0 nud permanent")
        };
        ip(&match cut {
            Cut::All => format!("link set {name} down"),
            Cut::ToPostgres => bend(self.postgres()),
            Cut::ToRedis => bend(self.redis()),
            Cut::FromServers => format!(
                "neighbour replace {} lladdr {NOBODY} dev {bridge} nud permanent",
                self.place(place)
            ),
        });
    }

    pub(crate) fn join(&self, place: usize, cut: Cut) {
        let (name, bridge) = (self.name(place), &self.bridge);
        let straighten = |server| format!("-n {name} neighbour delete {server} dev eth0");
        ip(&match cut {
            Cut::All => format!("link set {name} up"),
            Cut::ToPostgres => straighten(self.postgres()),
            Cut::ToRedis => straighten(self.redis()),
            Cut::FromServers => {
                format!("neighbour delete {} dev {bridge}", self.place(place))
            }
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in 0..self.n_places {
            ip(&format!("netns delete {}", self.name(place)));
        }
        ip(&format!("link delete {}", self.bridge));
    }
}

/// What runs that were killed have left.
fn remove_remains() {
    let namespaces = output(&["netns", "list"]).unwrap_or_default();
    let links = output(&["-o", "link", "show", "type", "bridge"]).unwrap_or_default();
    let is_dead = |name: &&str| {
        let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let number = number.and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    let first_words = namespaces.lines().filter_map(|line| line.split_whitespace().next());
    for name in first_words.filter(is_dead) {
        ip(&format!("netns delete {name}"));
    }
    let names: BTreeSet<&str> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    for name in names.iter().filter(|name| is_dead(name)) {
        ip(&format!("link delete {name}"));
    }
}

/// Whether it could be done; what is already so is no reason for words.
fn ip(words: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn output(args: &[&str]) -> Option<String> {
    let output = Command::new("ip").args(args).output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok()
}
