//! One private Redis for a test binary, one prefix for a test.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use millhand::server::PrivateRedis;
use millhand::{Config, Waker};
use redis::Connection;

/// Ends with the test binary, by whatever means that ends.
static SERVER: LazyLock<PrivateRedis> = LazyLock::new(start_redis);

/// A private server of its own, for tests that stop it.
pub(crate) fn start_redis() -> PrivateRedis {
    PrivateRedis::start().unwrap_or_else(|error| panic!("{}", millhand::error::chain(&error)))
}

/// Where the locks of a test are.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    pub(crate) url: String,
    pub(crate) prefix: String,
}

impl Redis {
    /// On the server that all tests share.
    pub(crate) fn new() -> Redis {
        Redis::of(&SERVER)
    }

    /// On a server of its own.
    pub(crate) fn of(server: &PrivateRedis) -> Redis {
        Redis { url: server.url(), prefix: format!("test-{:016x}", super::random()) }
    }

    pub(crate) fn connect(&self) -> Connection {
        redis::Client::open(self.url.as_str()).unwrap().get_connection().unwrap()
    }

    /// What tells the workers of a dispatch or a cancel.
    pub(crate) fn waker(&self) -> Waker {
        let config = Config {
            redis_url: Some(self.url.clone()),
            redis_prefix: self.prefix.clone(),
            ..Config::default()
        };
        Waker::new(&config).unwrap()
    }

    /// How many worker processes hear.
    pub(crate) fn n_listeners(&self) -> i64 {
        let channel = format!("{{{}}}:wakeup", self.prefix);
        let (_, n): (String, i64) =
            redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query(&mut self.connect()).unwrap();
        n
    }

    /// Cuts all connections of this type, `normal` or `pubsub`, but the asker's.
    pub(crate) fn kill_clients(&self, kind: &str) {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg(kind);
        let _n: i64 = kill.query(&mut self.connect()).unwrap();
    }

    /// Who holds which task, an entry for each: owner, task, needs.
    pub(crate) fn registry(&self) -> Vec<String> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(format!("{{{}}}:registry", self.prefix)).arg(0).arg(-1);
        list.query(&mut self.connect()).unwrap()
    }

    /// Every lock, and what says who holds it.
    pub(crate) fn locks(&self) -> BTreeMap<String, String> {
        let mut list = redis::cmd("HGETALL");
        list.arg(format!("{{{}}}:locks", self.prefix));
        list.query(&mut self.connect()).unwrap()
    }

    /// Puts a lock there, or takes it away, as somebody else would.
    pub(crate) fn set_lock(&self, name: &str, value: Option<&str>) {
        let mut set = redis::cmd(if value.is_some() { "HSET" } else { "HDEL" });
        set.arg(format!("{{{}}}:locks", self.prefix)).arg(name).arg(value);
        set.exec(&mut self.connect()).unwrap();
    }

    /// How often the server was given each command, by whomever.
    pub(crate) fn calls(&self) -> BTreeMap<String, u64> {
        let mut info = redis::cmd("INFO");
        let text: String = info.arg("commandstats").query(&mut self.connect()).unwrap();
        let calls = |line: &str| {
            let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), numbers.split(',').next()?.parse().ok()?))
        };
        text.lines().filter_map(calls).collect()
    }

    /// The keys that are there, the epoch aside.
    pub(crate) fn keys(&self) -> Vec<String> {
        let pattern = format!("{{{}}}:*", self.prefix);
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg(pattern).query(&mut self.connect()).unwrap();
        keys.retain(|key| !key.ends_with(":epoch"));
        keys
    }
}
