//! Workers of type redis: what Postgres sees of them, how they hear of work, and
//! which Redis they accept.

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

/// Starts a worker that looks by itself only once an hour.
fn deaf_worker(workshop: &Workshop, flags: &[&str]) -> WorkerProcess {
    let mut command = workshop.millhand(["worker", "--type", "redis"]);
    command.args(flags).env("MILLHAND_POLL_INTERVAL", "1h");
    WorkerProcess::start(command)
}

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
fn the_command_line_tells_workers_of_tasks_and_cancels() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = deaf_worker(&workshop, &["--threads", "2"]);
    database.wait_for_workers(2);
    for _ in 0..20 {
        let said = run(&mut workshop.millhand(["dispatch", "millhand.noop", "--wait"]));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{}", worker.stderr());
    }
    let running = database.dispatch(&gate_task(&workshop, "gate", "never"));
    workshop.redis.waker().wake().unwrap();
    workshop.wait_at_gate(&database, "never");
    let said = run(&mut workshop.millhand(["task", "cancel", &running.to_string()]));
    assert_eq!(said.code, Some(0), "{said:?}");
    database.wait_for_state(running, TaskState::Canceled);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// In each round a task in the one process and its successor in the other; the last
/// of all could only be found by the poll if one end were not told.
#[test]
fn what_one_process_ends_another_starts_without_a_poll() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "[handlers.left]\ncommand = [\"true\"]\n");
    let right = Workshop::with_redis(
        &database,
        workshop.redis.clone(),
        "[handlers.right]\ncommand = [\"true\"]\n",
    );
    let workers = [deaf_worker(&workshop, &["--threads", "2"]), deaf_worker(&right, &[])];
    database.wait_for_workers(3);
    let mut waker = workshop.redis.waker();
    let mut connection = database.connect();
    for _ in 0..30 {
        let tasks: Vec<NewTask> = ["left", "left", "right", "left", "right", "millhand.noop"]
            .into_iter()
            .enumerate()
            .map(|(number, name)| {
                let task = NewTask::new(name);
                // Two at once, and then what waits for both; the rest in a row.
                if number < 2 {
                    task.exclusive(format!("{number}"))
                } else {
                    task.exclusive("0").exclusive("1")
                }
            })
            .collect();
        client::dispatch_many(&mut connection, &tasks).unwrap();
        waker.wake().unwrap();
        database.wait_for_all_final();
    }
    for worker in workers {
        worker.stop(Signal::TERM);
    }
    assert_clean(&database, &workshop);
    assert_clean(&database, &right);
}

#[test]
fn tasks_that_end_at_once_in_two_processes_free_what_waits_for_both() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let workers =
        [deaf_worker(&workshop, &["--threads", "4"]), deaf_worker(&workshop, &["--threads", "4"])];
    database.wait_for_workers(8);
    let mut waker = workshop.redis.waker();
    let mut connection = database.connect();
    for _ in 0..200 {
        // Short ones on their own, and one that waits for all of them.
        let mut last = NewTask::new("millhand.noop");
        let mut tasks = Vec::new();
        for number in 0..8 {
            tasks.push(NewTask::new("millhand.noop").exclusive(format!("{number}")));
            last = last.exclusive(format!("{number}"));
        }
        tasks.push(last);
        client::dispatch_many(&mut connection, &tasks).unwrap();
        waker.wake().unwrap();
        database.wait_for_all_final();
    }
    for worker in workers {
        worker.stop(Signal::TERM);
    }
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
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("refuses the login"), "{said:?}");
    // Such a server answers connections, and nothing else.
    let (_, place) = workshop.redis.url.rsplit_once('@').unwrap();
    let said = burst(&format!("redis://{place}"));
    assert_eq!(said.code, Some(2), "{said:?}");
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
    let worker = deaf_worker(&workshop, &["--threads", "2"]);
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

/// Makes each start of a task fail, in a way that waiting does not mend.
fn forbid_starts(database: &Database) {
    database
        .connect()
        .batch_execute(
            "CREATE FUNCTION millhand.refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'no starts today'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON millhand.task FOR EACH ROW
                 WHEN (NEW.state = 'running') EXECUTE FUNCTION millhand.refuse()",
        )
        .unwrap();
}

#[test]
fn what_has_ended_is_stored_though_nothing_more_can_start_and_the_process_ends() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let mut worker = workshop.worker("redis", &[]);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a"));
    workshop.wait_at_gate(&database, "a");
    let second = database.dispatch(&NewTask::new("millhand.noop"));
    forbid_starts(&database);
    workshop.open_gate("a");
    assert_eq!(worker.wait(SOON).code(), Some(70), "{}", worker.stderr());
    assert!(worker.stderr().contains("no starts today"), "{}", worker.stderr());
    assert_eq!(database.task(first).state, TaskState::Completed);
    assert_eq!(database.task(second).state, TaskState::Waiting);
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

/// A task that ends, while somebody keeps its row locked, and the one that waits for it
/// stand in the same turn again and again: that the second could not start then is no
/// reason to leave it out later. (The worker neither looks nor sweeps by itself.)
#[test]
fn what_waits_for_a_task_whose_end_was_held_up_starts_right_after_it() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let mut command = workshop.millhand(["worker", "--type", "redis", "--threads", "2"]);
    command.env("MILLHAND_POLL_INTERVAL", "1h").env("MILLHAND_TTL", "10h");
    let worker = WorkerProcess::start(command);
    database.wait_for_workers(2);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r"));
    let second = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    workshop.redis.waker().wake().unwrap();
    workshop.wait_at_gate(&database, "a");
    let mut other = database.connect();
    let mut open = other.transaction().unwrap();
    client::cancel(&mut open, first).unwrap();
    let n_calls = || workshop.redis.calls().get("evalsha").copied().unwrap_or(0);
    workshop.open_gate("a");
    // Scripts are called for the second one in turns that then start nothing.
    let before = n_calls();
    wait_until(&database, "turns with both", SOON, || {
        let n = n_calls() - before;
        if n > 2 { Ok(()) } else { Err(n) }
    });
    open.rollback().unwrap();
    database.wait_for_state(first, TaskState::Completed);
    database.wait_for_state(second, TaskState::Completed);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// Somebody keeps the row of a task locked that has ended, and its worker is told to
/// take nothing new: it does not, when the end can be stored at last.
#[test]
fn a_worker_that_drains_while_an_end_is_held_up_takes_nothing_new() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let mut worker = workshop.worker("redis", &[]);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r"));
    let second = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    workshop.wait_at_gate(&database, "a");
    let mut other = database.connect();
    let mut open = other.transaction().unwrap();
    client::cancel(&mut open, first).unwrap();
    let n_calls = || workshop.redis.calls().get("evalsha").copied().unwrap_or(0);
    let before = n_calls();
    workshop.open_gate("a");
    wait_until(&database, "the end is held up", SOON, || {
        let n = n_calls() - before;
        if n > 2 { Ok(()) } else { Err(n) }
    });
    worker.signal(Signal::TERM);
    wait_until(&database, "the worker drains", SOON, || {
        let stderr = worker.stderr();
        if stderr.contains("taking nothing new") { Ok(()) } else { Err(stderr) }
    });
    open.rollback().unwrap();
    assert!(worker.wait(SOON).success());
    assert_eq!(database.task(first).state, TaskState::Completed);
    assert_eq!(database.task(second).state, TaskState::Waiting);
    client::cancel(&mut database.connect(), second).unwrap();
    assert_clean(&database, &workshop);
}

/// What the end of a task frees far behind, where this process has no handler for it, is
/// told to those who have one. (Nobody looks by himself.)
#[test]
fn what_is_freed_far_behind_is_told_to_those_who_have_the_handler() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let elsewhere = Workshop::new(&database, "[handlers.elsewhere]\ncommand = [\"true\"]\n");
    let start = |its: &Workshop, threads: &str| {
        let mut command = its.millhand(["worker", "--type", "redis", "--threads", threads]);
        command.env("MILLHAND_POLL_INTERVAL", "1h").env("MILLHAND_TTL", "10h");
        command.env("MILLHAND_REDIS_PREFIX", &workshop.redis.prefix);
        WorkerProcess::start(command)
    };
    let first = database.dispatch(&gate_task(&workshop, "gate", "first").exclusive("f"));
    let long = database.dispatch(&gate_task(&workshop, "gate", "long").exclusive("x"));
    // More than a look shows at first, and too few to be parked.
    for _ in 0..60 {
        database.dispatch(&NewTask::new("millhand.noop").exclusive("x"));
    }
    let far = database.dispatch(&NewTask::new("elsewhere").exclusive("f"));
    let workers = [start(&workshop, "2"), start(&elsewhere, "1")];
    database.wait_for_workers(3);
    workshop.wait_at_gate(&database, "first");
    workshop.wait_at_gate(&database, "long");
    workshop.open_gate("first");
    database.wait_for_state(first, TaskState::Completed);
    database.wait_for_state(far, TaskState::Completed);
    workshop.open_gate("long");
    database.wait_for_state(long, TaskState::Completed);
    database.wait_for_all_final();
    for worker in workers {
        worker.stop(Signal::TERM);
    }
    assert_clean(&database, &workshop);
}
