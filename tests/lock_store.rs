//! Workers of type redis: what Postgres sees of them, and which Redis they accept.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use millhand::{NewTask, TaskState, client};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server};
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task, run};
use crate::support::redis::{Redis, start_redis};
use crate::support::{SOON, look_until, wait_until};

#[test]
fn postgres_sees_nothing_but_reads_and_writes_of_rows() {
    // Its own server: the statements within functions are counted, too.
    let server = start_server();
    let database = Database::of(&server);
    let mut connection = database.connect();
    connection.batch_execute("ALTER SYSTEM SET pg_stat_statements.track = 'all'").unwrap();
    connection.batch_execute("SELECT pg_reload_conf()").unwrap();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = workshop.worker("redis", &["--threads", "8"]);
    let gate = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r"));
    let tasks: Vec<NewTask> = (0..500)
        .map(|number| NewTask::new("millhand.noop").shared("r").exclusive(format!("{number}")))
        .collect();
    client::dispatch_many(&mut connection, &tasks).unwrap();
    database.wait_for_workers(8);
    workshop.wait_at_gate(&database, "a");
    let mut reader = database.connect();
    reader.batch_execute("SELECT pg_stat_statements_reset()").unwrap();
    workshop.open_gate("a");
    database.wait_for_all_final();
    assert_eq!(database.task(gate).state, TaskState::Completed);
    let statements: Vec<(String, i64)> = reader
        .query(
            "SELECT query, calls FROM pg_stat_statements
              WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    for (statement, _) in &statements {
        let words = statement.to_lowercase();
        for word in ["advisory", "listen", "notify", "pg_locks", "lock table"] {
            assert!(!words.contains(word), "{statement}");
        }
    }
    // And it is the drain that was seen.
    let starts =
        |(statement, _): &&(String, i64)| statement.contains("started_at = clock_timestamp()");
    let n_starts: i64 = statements.iter().filter(starts).map(|(_, n_calls)| n_calls).sum();
    assert!((1..=500).contains(&n_starts), "{statements:#?}");
    let listening: i64 = reader
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millhand listener'",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(listening, 0);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn threads_share_few_connections() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "pool_size = 3");
    let mut command = workshop.millhand(["worker", "--type", "redis", "--threads", "40"]);
    command.env("MILLHAND_POOL_SIZE", "3");
    let worker = WorkerProcess::start(command);
    database.wait_for_workers(40);
    let sleep = NewTask::new("millhand.sleep").args(json!({"seconds": 0.05}));
    client::dispatch_many(&mut database.connect(), &vec![sleep; 400]).unwrap();
    database.wait_for_all_final();
    let n: i64 = database
        .connect()
        .query_one(
            "SELECT count(*) FROM pg_stat_activity
              WHERE datname = current_database() AND application_name LIKE 'millhand %'",
            &[],
        )
        .unwrap()
        .get(0);
    assert!((1..=4).contains(&n), "{n} connections of 40 threads, with the housekeeper's");
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn a_redis_that_evicts_keys_is_refused() {
    let database = Database::new();
    let server = start_redis();
    let workshop = Workshop::with_redis(&database, Redis::of(&server), "");
    for policy in ["allkeys-lru", "volatile-ttl"] {
        redis::cmd("CONFIG")
            .arg(&["SET", "maxmemory-policy", policy])
            .query::<()>(&mut workshop.redis.connect())
            .unwrap();
        let said = run(&mut workshop.millhand(["worker", "--type", "redis", "--burst"]));
        assert_eq!(said.code, Some(2), "{said:?}");
        let last = said.stderr.lines().last().unwrap();
        assert!(last.contains(&format!("maxmemory-policy {policy}")), "{last}");
        assert!(last.contains("noeviction"), "{last}");
    }
}

#[test]
fn a_redis_that_is_not_there_is_named_without_its_password() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let burst = |url: &str| {
        let mut command = workshop.millhand(["worker", "--type", "redis", "--burst"]);
        run(command.env("MILLHAND_REDIS_URL", url))
    };
    let said = burst("redis://me:geheim@127.0.0.1:1/5");
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.stderr.contains("could not connect to Redis at 127.0.0.1:1/5"), "{said:?}");
    assert!(!said.stderr.contains("geheim"), "{said:?}");
    let said = burst("http://me:geheim@127.0.0.1:1");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("the Redis URL cannot be read"), "{said:?}");
    assert!(!said.stderr.contains("geheim"), "{said:?}");
    let wrong = workshop.redis.url.replace("default:", "default:x");
    let said = burst(&wrong);
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.stderr.contains("refuses the login"), "{said:?}");
    // Such a server answers connections, and nothing else.
    let (_, place) = workshop.redis.url.rsplit_once('@').unwrap();
    let said = burst(&format!("redis://{place}"));
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.stderr.contains("refuses the login"), "{said:?}");
    let mut command = workshop.millhand(["worker", "--type", "redis", "--burst"]);
    let said = run(command.env_remove("MILLHAND_REDIS_URL"));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("MILLHAND_REDIS_URL"), "{said:?}");
}

/// With no more rights than README asks for, and in another database of the server.
#[test]
fn a_restricted_user_is_enough() {
    let database = Database::new();
    let server = start_redis();
    let mut redis = Redis::of(&server);
    let mut admin = redis.connect();
    let prefix = format!("{{{}}}:*", redis.prefix);
    redis::cmd("ACL")
        .arg(&["SETUSER", "worker", "on", ">secret", &format!("~{prefix}"), &format!("&{prefix}")])
        .arg(&["+@read", "+@write", "+@scripting", "+@pubsub", "+@connection", "+info"])
        .query::<()>(&mut admin)
        .unwrap();
    let (_, address) =
        server.url().rsplit_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    redis.url = format!("redis://worker:secret@{}3", address.trim_end_matches('0'));
    let workshop = Workshop::with_redis(&database, redis, GATE_HANDLERS);
    let worker = workshop.deaf_worker(&["--threads", "2"]);
    database.wait_for_workers(2);
    let id = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r").shared("s"));
    workshop.redis.waker().wake().unwrap();
    workshop.wait_at_gate(&database, "a");
    let keyspace: String = redis::cmd("INFO").arg("keyspace").query(&mut admin).unwrap();
    assert!(keyspace.contains("db3:") && !keyspace.contains("db0:"), "{keyspace}");
    workshop.open_gate("a");
    database.wait_for_state(id, TaskState::Completed);
    let said = worker.stderr();
    assert!(!said.contains("NOPERM") && !said.contains("does not tell"), "{said}");
    worker.stop(Signal::TERM);
    // KEYS is for the one who looks.
    redis::cmd("ACL").arg(&["SETUSER", "worker", "+keys"]).query::<()>(&mut admin).unwrap();
    assert_clean(&database, &workshop);
}

/// A Redis that takes TLS connections only, with a certificate of its own.
struct TlsRedis {
    server: Child,
    folder: TempDir,
    port: u16,
}

impl TlsRedis {
    fn start() -> TlsRedis {
        let folder = TempDir::with_prefix("millhand-test-").unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let server = Command::new("redis-server")
            .args(["--port", "0", "--bind", "127.0.0.1", "--save", "", "--requirepass", "secret"])
            .args(["--tls-auth-clients", "no", "--tls-port", &port.to_string()])
            .arg("--tls-cert-file")
            .arg(file("cert.pem"))
            .arg("--tls-key-file")
            .arg(file("key.pem"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let up = look_until(SOON, || std::net::TcpStream::connect(("127.0.0.1", port)));
        up.unwrap();
        TlsRedis { server, folder, port }
    }
}

impl Drop for TlsRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_connection_can_be_encrypted() {
    let database = Database::new();
    let server = TlsRedis::start();
    let workshop = Workshop::new(&database, "");
    database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    let burst = |certificates: &str| {
        let mut command = workshop.millhand(["worker", "--type", "redis", "--burst"]);
        let url = format!("rediss://:secret@localhost:{}/0", server.port);
        run(command.env("MILLHAND_REDIS_URL", url).env("SSL_CERT_FILE", certificates))
    };
    let said = burst("/dev/null");
    assert_eq!(said.code, Some(75), "a certificate that nobody vouches for: {said:?}");
    assert!(!said.stderr.contains("secret"), "{said:?}");
    let certificate = server.folder.path().join("cert.pem").display().to_string();
    let said = burst(&certificate);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(database.tasks()[0].state, TaskState::Completed);
    assert_clean(&database, &workshop);
}

/// It answers, and so it is there, but it does nothing: that is said once.
#[test]
fn a_redis_whose_memory_is_full_is_told_of_once_and_again_when_it_works() {
    let database = Database::new();
    let server = start_redis();
    let workshop = Workshop::with_redis(&database, Redis::of(&server), "");
    let set_limit = |limit: &str| {
        redis::cmd("CONFIG")
            .arg(&["SET", "maxmemory", limit])
            .query::<()>(&mut workshop.redis.connect())
            .unwrap();
    };
    let worker = workshop.worker("redis", &[]);
    database.wait_for_workers(1);
    set_limit("1");
    let id = database.dispatch(&NewTask::new("millhand.noop"));
    // It tries again and again.
    let first = workshop.redis.calls();
    wait_until(&database, "it tries again", SOON, || {
        let n = |calls: &BTreeMap<String, u64>| calls.get("evalsha").copied().unwrap_or(0);
        let (before, now) = (n(&first), n(&workshop.redis.calls()));
        if now > before + 4 { Ok(()) } else { Err((before, now)) }
    });
    set_limit("0");
    database.wait_for_state(id, TaskState::Completed);
    wait_until(&database, "it says so", SOON, || {
        let said = worker.stderr();
        if said.contains("/0 is back") { Ok(()) } else { Err(said) }
    });
    let said = worker.stderr();
    assert_eq!(said.matches("nothing new is started").count(), 1, "{said}");
    assert_eq!(said.matches("/0 is back").count(), 1, "{said}");
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}
