//! Each kind of role does what it is for, and nothing else.

use millhand::{NewTask, TaskState, client, db};
use postgres::Client;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{
    GATE_HANDLERS, Said, WorkerProcess, Workshop, gate_task, millhand, run,
};
use crate::support::{SOON, WORKER_TYPES, random, wait_until};

/// A role of its own, which goes with this value.
struct Role<'a> {
    database: &'a Database,
    name: String,
    url: String,
}

impl Role<'_> {
    /// One that has what the program says that these kinds need.
    fn new<'a>(database: &'a Database, kinds: &[&str]) -> Role<'a> {
        // A name that has to be quoted.
        let name = format!("a \"{:x}", random());
        let mut connection = database.connect();
        connection
            .batch_execute(&format!("CREATE ROLE \"{}\" LOGIN", name.replace('"', "\"\"")))
            .unwrap();
        let mut grants = millhand(["grants", &name]);
        for kind in kinds {
            grants.args(["--for", kind]);
        }
        let said = run(&mut grants);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        connection.batch_execute(&said.stdout).unwrap();
        let user = name.replace(' ', "%20").replace('"', "%22");
        let url = database.url().replace("//postgres@", &format!("//{user}@"));
        Role { database, name, url }
    }

    fn connect(&self) -> Client {
        db::connect(&self.url, "test").unwrap()
    }

    fn millhand(&self, args: &[&str]) -> Said {
        run(millhand(args).env("MILLHAND_DATABASE_URL", &self.url))
    }

    #[track_caller]
    fn can(&self, args: &[&str]) -> String {
        let said = self.millhand(args);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{args:?} {said:?}");
        said.stdout.trim().to_owned()
    }

    #[track_caller]
    fn cannot(&self, args: &[&str]) {
        let said = self.millhand(args);
        assert_eq!(said.code, Some(2), "{args:?} {said:?}");
        let end = said.stderr.lines().last().unwrap();
        for words in ["permission denied for ", "`millhand grants ROLE --for KIND`"] {
            assert!(end.contains(words), "{args:?} {said:?}");
        }
        assert!(args[0] == "worker" || said.stderr == format!("{end}\n"), "{said:?}");
    }

    #[track_caller]
    fn cannot_say(&self, sql: &str) {
        let error = self.connect().batch_execute(sql).unwrap_err();
        let code = error.code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error:?}");
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let name = self.name.replace('"', "\"\"");
        let gone = format!("DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\"");
        if let Ok(mut connection) = db::connect(&self.database.url(), "test") {
            let _ = connection.batch_execute(&gone);
        }
    }
}

#[test]
fn a_dispatcher_dispatches_and_reads_nothing() {
    let database = Database::new();
    let role = Role::new(&database, &["dispatcher"]);
    role.can(&["dispatch", "t", "--exclusive", "a", "--shared", "b"]);
    let mut connection = role.connect();
    connection
        .batch_execute(
            "SELECT millhand.dispatch('t', '{}', exclusive => '{a,b,c}');
             SELECT millhand.dispatch_many('[{\"name\": \"t\", \"shared\": [\"a\"]}]')",
        )
        .unwrap();
    let mut transaction = connection.transaction().unwrap();
    client::lock_places(&mut transaction, &[NewTask::new("t").shared("a")]).unwrap();
    client::dispatch_many(&mut transaction, &[NewTask::new("t"), NewTask::new("t")]).unwrap();
    client::dispatch(&mut transaction, &NewTask::new("t")).unwrap();
    transaction.commit().unwrap();
    // It looks whether workers hear through Redis.
    let workshop = Workshop::new(&database, "");
    let worker = workshop.deaf_worker(&[]);
    database.wait_for_workers(1);
    let mut dispatch = workshop.millhand(["dispatch", "millhand.noop"]);
    let said = run(dispatch.env("MILLHAND_DATABASE_URL", &role.url));
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    database.wait_for_state(said.stdout.trim().parse().unwrap(), TaskState::Completed);
    worker.stop(rustix::process::Signal::TERM);

    let id = database.tasks()[0].id.to_string();
    for args in [
        &["task", "list"][..],
        &["task", "show", &id],
        &["task", "logs", &id],
        &["task", "wait", &id],
        &["task", "cancel", &id],
        &["status"],
        &["workers"],
        &["worker", "--burst"],
    ] {
        role.cannot(args);
    }
    role.cannot_say("SELECT args FROM millhand.task");
    role.cannot_say("UPDATE millhand.task SET state = 'canceled'");
    role.cannot_say("DELETE FROM millhand.task");
    role.cannot_say("INSERT INTO millhand.task (name, state) VALUES ('t', 'completed')");
    role.cannot_say("SELECT setval('millhand.task_position', 1)");
    // With the right of reading, it waits.
    let both = Role::new(&database, &["dispatcher", "reader"]);
    let waits = both.millhand(&["dispatch", "t", "--wait", "--args", "x"]);
    assert_eq!(waits.code, Some(2), "{waits:?}");
    let mut burst = workshop.worker("postgres", &[]);
    assert_eq!(both.can(&["dispatch", "millhand.noop", "--wait"]).lines().count(), 2);
    burst.signal(rustix::process::Signal::TERM);
    burst.wait(SOON);
}

#[test]
fn a_reader_reads_all_and_changes_nothing() {
    let database = Database::new();
    let role = Role::new(&database, &["reader"]);
    let id = database.dispatch(&NewTask::new("t").args("seen".into()).shared("a")).to_string();
    assert_eq!(role.can(&["task", "list"]).lines().count(), 2);
    assert!(role.can(&["task", "show", &id]).contains("seen"));
    assert_eq!(role.can(&["task", "logs", &id]), "");
    assert!(role.can(&["status", "--json"]).contains("\"waiting\":1"));
    role.can(&["workers"]);
    let said = role.millhand(&["task", "wait", &id, "--timeout", "1ms"]);
    assert!(said.code != Some(2) && !said.stderr.contains("denied"), "{said:?}");
    role.cannot(&["dispatch", "t"]);
    role.cannot(&["task", "cancel", &id]);
    role.cannot(&["worker", "--burst"]);
    role.cannot_say("UPDATE millhand.task SET state = 'canceled'");
    role.cannot_say("DELETE FROM millhand.worker");
}

#[test]
fn an_operator_cancels_whatever_its_task_is_doing() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let role = Role::new(&database, &["operator"]);
        let worker = workshop.worker(worker_type, &[]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("a"));
        workshop.wait_at_gate(&database, "a");
        let waiting = vec![NewTask::new("t").exclusive("a"); 60];
        let ids = client::dispatch_many(&mut database.connect(), &waiting).unwrap();
        let blocked: Vec<i64> = ids[20..].iter().map(|id| id.0).collect();
        let park = "SELECT millhand.park($1, 0, '{}')";
        let n: i32 = database.connect().query_one(park, &[&blocked]).unwrap().get(0);
        assert_eq!(n, 40);
        let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let cancel: Vec<&str> =
            ["task", "cancel"].into_iter().chain(texts.iter().map(String::as_str)).collect();
        role.can(&cancel);
        assert_eq!(role.can(&["task", "list", "--state", "canceled"]).lines().count(), 51);
        role.can(&["task", "cancel", &running.to_string()]);
        database.wait_for_state(running, TaskState::Canceled);
        role.can(&["workers"]);
        role.cannot(&["dispatch", "t"]);
        role.cannot(&["worker", "--burst"]);
        role.cannot_say("UPDATE millhand.task SET args = '1'");
        role.cannot_say("DELETE FROM millhand.task");
        worker.stop(rustix::process::Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_worker_of_each_type_has_what_it_needs() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let role = Role::new(&database, &["worker"]);
        let worker = |args: &[&str]| {
            let mut command = workshop.millhand(["worker", "--type", worker_type]);
            command.args(args).env("MILLHAND_DATABASE_URL", &role.url);
            WorkerProcess::start(command)
        };
        let (victim, survivor) = (worker(&[]), worker(&["--threads", "3"]));
        database.wait_for_workers(4);
        let gates = ["a", "b", "c", "d"];
        let running: Vec<_> = gates
            .iter()
            .map(|gate| database.dispatch(&gate_task(&workshop, "gate", gate).exclusive(*gate)))
            .collect();
        for gate in gates {
            workshop.wait_at_gate(&database, gate);
        }
        // Blocked ones, some of which are parked, and brought back.
        let tasks: Vec<NewTask> = (0..300)
            .map(|n| NewTask::new("millhand.noop").exclusive(gates[n % gates.len()]))
            .collect();
        client::dispatch_many(&mut database.connect(), &tasks).unwrap();
        // Its warden settles what it ran.
        victim.kill();
        wait_until(&database, "one is failed", SOON, || {
            let states: Vec<_> = running.iter().map(|id| database.task(*id).state).collect();
            let n = states.iter().filter(|state| **state == TaskState::Failed).count();
            if n == 1 { Ok(()) } else { Err(states) }
        });
        client::cancel(&mut database.connect(), running[0]).unwrap();
        if worker_type == "redis" {
            workshop.redis.waker().cancel(running[0]).unwrap();
        }
        for gate in gates {
            workshop.open_gate(gate);
        }
        database.wait_for_all_final();
        assert!(!survivor.stderr().contains("permission denied"), "{}", survivor.stderr());
        survivor.stop(rustix::process::Signal::TERM);
        // Sequences that lag are mended with these rights, too.
        database
            .connect()
            .execute(
                "SELECT setval('millhand.task_position', 1), setval('millhand.task_fence', 1)",
                &[],
            )
            .unwrap();
        database.dispatch(&NewTask::new("millhand.noop").exclusive("new"));
        let mut burst = worker(&["--burst"]);
        assert!(burst.wait(SOON).success(), "{}", burst.stderr());
        // That is no right of a kind: it is its own who migrates.
        let said = role.millhand(&["migrate"]);
        assert!(
            said.code == Some(2) && said.stderr.contains("GRANT CREATE ON DATABASE"),
            "{said:?}"
        );
        role.cannot_say("DELETE FROM millhand.task");
        database.connect().execute("DELETE FROM millhand.task", &[]).unwrap();
        assert_clean(&database, &workshop);
    }
}

/// It would try again for ever.
#[test]
fn a_worker_that_lacks_a_right_ends_and_names_it() {
    for worker_type in WORKER_TYPES {
        for missing in [
            "SELECT ON SEQUENCE millhand.task_position",
            "SELECT ON millhand.parked",
            "ALL ON SEQUENCE millhand.task_fence",
            "SELECT, UPDATE ON millhand.worker",
        ] {
            let database = Database::new();
            let workshop = Workshop::new(&database, "");
            let role = Role::new(&database, &["worker"]);
            let name = role.name.replace('"', "\"\"");
            database.connect().batch_execute(&format!("REVOKE {missing} FROM \"{name}\"")).unwrap();
            database.dispatch(&NewTask::new("millhand.noop"));
            let mut command = workshop.millhand(["worker", "--type", worker_type]);
            command.env("MILLHAND_DATABASE_URL", &role.url);
            let mut worker = WorkerProcess::start(command);
            let status = worker.wait(SOON);
            let said = worker.stderr();
            assert_eq!(status.code(), Some(2), "{worker_type} without {missing}: {said}");
            let end = said.lines().last().unwrap();
            assert!(end.contains("permission denied for "), "{said}");
            assert!(end.contains("`millhand grants ROLE --for KIND`"), "{said}");
            assert!(said.lines().count() < 12, "{said}");
        }
    }
}

#[test]
fn only_known_kinds_have_grants() {
    for args in [
        &["grants"][..],
        &["grants", "r"],
        &["grants", "r", "--for", "boss"],
        &["grants", "", "--for", "reader"],
    ] {
        let said = run(&mut millhand(args));
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    }
    let said = run(&mut millhand(["grants", "r\"; --", "--for", "reader"]));
    assert!(said.stdout.contains("TO \"r\"\"; --\";"), "{said:?}");
}
