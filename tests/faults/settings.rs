//! Settings of role, database and server that would harm sessions that live for long.

use millhand::TaskState;
use postgres::Client;
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Every session of millhand, without those that come and go.
fn sessions(connection: &mut Client) -> Vec<(i32, String)> {
    connection
        .query(
            "SELECT pid, application_name FROM pg_stat_activity
              WHERE datname = current_database() AND application_name LIKE 'millhand%'
              ORDER BY pid",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[test]
fn no_timeout_ends_a_session_that_waits_for_its_task() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut connection = database.connect();
        let name = database.name();
        for setting in [
            "idle_session_timeout = '300ms'",
            "idle_in_transaction_session_timeout = '300ms'",
            "statement_timeout = '300ms'",
            "lock_timeout = '10ms'",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_deferrable = on",
            "search_path = ''",
            "row_security = on",
        ] {
            let set = connection.execute(&format!("ALTER DATABASE {name} SET {setting}"), &[]);
            // Not every version knows each.
            assert!(set.is_ok() || setting.starts_with("idle_session"), "{set:?}");
        }
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a"));
        workshop.wait_at_gate(&database, "a");
        let before = sessions(&mut connection);
        // Two sessions that came later are ended for having been idle for so long.
        for _ in 0..2 {
            let mut canary = database.connect();
            let pid: i32 = canary.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
            wait_until(&database, "an idle session is ended", SOON, || {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
                let n: i64 = connection.query_one(sql, &[&pid]).unwrap().get(0);
                if n == 0 { Ok(()) } else { Err(n) }
            });
        }
        assert_eq!(sessions(&mut connection), before, "{}", worker.stderr());
        workshop.open_gate("a");
        assert_eq!(database.wait_for_state(running, TaskState::Completed).attempt, 1);
        assert!(!worker.stderr().contains("WARN"), "{}", worker.stderr());
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn starts_and_ends_are_durable_whatever_the_database_says() {
    for worker_type in WORKER_TYPES {
        for (asked, expected) in [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
        {
            let database = Database::new();
            let workshop = Workshop::new(&database, "");
            let mut connection = database.connect();
            connection
                .batch_execute(&format!(
                    "ALTER DATABASE {} SET synchronous_commit = '{asked}';
                     CREATE TABLE public.seen (state text, setting text);
                     CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
                     BEGIN
                         INSERT INTO public.seen
                         VALUES (NEW.state, pg_catalog.current_setting('synchronous_commit'));
                         RETURN NEW;
                     END $$;
                     CREATE TRIGGER note BEFORE UPDATE ON millhand.task FOR EACH ROW
                         EXECUTE FUNCTION public.note()",
                    database.name()
                ))
                .unwrap();
            database.dispatch(&millhand::NewTask::new("millhand.noop"));
            let mut worker = workshop.worker(worker_type, &["--burst"]);
            assert!(worker.wait(SOON).success(), "{}", worker.stderr());
            for state in ["running", "completed"] {
                let sql = "SELECT DISTINCT setting FROM public.seen WHERE state = $1";
                let rows = connection.query(sql, &[&state]).unwrap();
                let seen: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                assert_eq!(seen, [expected], "{worker_type} {state}");
            }
            assert_clean(&database, &workshop);
        }
    }
}
