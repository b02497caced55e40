//! `millhand bench` measures a fleet of its own, and touches no one's tasks.

use millhand::NewTask;
use serde_json::Value;

use crate::support::WORKER_TYPES;
use crate::support::database::Database;
use crate::support::process::{millhand, run};

const DRAIN: [&str; 7] = ["bench", "drain", "--tasks", "200", "--threads", "2", "--json"];

#[test]
fn a_drain_without_a_database_runs_on_a_private_server() {
    let said = run(&mut millhand(DRAIN));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stdout.lines().count(), 1, "{said:?}");
    let figures: Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(figures["tasks_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    assert_eq!(figures["tasks"], 200, "{figures}");
    assert_eq!(figures["violations"], 0, "{figures}");
}

#[test]
fn tasks_that_arrive_while_others_start_are_worked_off_too() {
    for worker_type in WORKER_TYPES {
        let arguments = ["--ahead", "20", "--type", worker_type];
        let said = run(&mut millhand(DRAIN.iter().chain(&arguments).copied()));
        assert_eq!(said.code, Some(0), "{said:?}");
        let figures: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(figures["tasks"], 200, "{figures}");
        assert_eq!(figures["dispatched_after_first_start"], 180, "{figures}");
        assert_eq!(figures["violations"], 0, "{figures}");
    }
}

#[test]
fn a_database_with_tasks_is_refused_and_left_alone() {
    let database = Database::new();
    database.dispatch(&NewTask::new("precious"));
    let said = run(millhand(DRAIN).env("MILLHAND_DATABASE_URL", database.url()));
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
    assert!(said.stderr.contains("a bench removes all tasks"), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    assert_eq!(database.tasks().len(), 1);
}
