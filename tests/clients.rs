//! The examples of other languages dispatch as they say, where the language is there.

use std::path::Path;
use std::process::{Command, Stdio};

use millhand::TaskState;
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{Workshop, run};

/// What runs an example, and what tells whether its driver is there.
const LANGUAGES: [(&str, &[&str], &[&str]); 5] = [
    ("dispatch.py", &["python3"], &["python3", "-c", "import psycopg"]),
    // The system's, which may have the driver where another one comes first.
    ("dispatch.py", &["/usr/bin/python3"], &["/usr/bin/python3", "-c", "import psycopg"]),
    ("dispatch.rb", &["ruby"], &["ruby", "-e", "require \"pg\""]),
    ("dispatch.js", &["node"], &["node", "-e", "require(\"pg\")"]),
    ("dispatch.go", &["go", "run"], &["go", "list", "github.com/lib/pq"]),
];

fn is_there(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn other_languages_dispatch_in_their_own_transactions() {
    const HANDLERS: &str = include_str!("../examples/clients/millhand.toml");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients");
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let worker = workshop.worker("postgres", &[]);
    let mut n_run = 0;
    for (file, words, test) in LANGUAGES {
        if !is_there(test) {
            println!("left out: {file} with {}", words[0]);
            continue;
        }
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(folder.join(file)).stdin(Stdio::null());
        command.env("MILLHAND_DATABASE_URL", database.url());
        command.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
        let said = run(&mut command);
        assert_eq!(said.stdout, "completed hello Ada\n", "{file}: {said:?}");
        n_run += 1;
    }
    let tasks = database.tasks();
    assert_eq!(tasks.len(), n_run);
    for task in tasks {
        assert_eq!((task.state, &task.args), (TaskState::Completed, &json!({ "who": "Ada" })));
        assert_eq!((task.exclusive, task.shared), (vec!["door".into()], vec!["house".into()]));
    }
    worker.stop(rustix::process::Signal::TERM);
    assert_clean(&database, &workshop);
}
