//! What says where the database is, and what is said where it cannot be reached.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use millhand::NewTask;

use crate::support::certificates::{Guarded, write_own};
use crate::support::database::Database;
use crate::support::process::{Said, millhand, run};

/// The folder and the port of the server's socket.
fn socket_of(database: &Database) -> (PathBuf, u16) {
    let server: postgres::Config = database.url().parse().unwrap();
    let postgres::config::Host::Unix(socket) = &server.get_hosts()[0] else {
        panic!("{server:?} is not a socket")
    };
    (socket.clone(), server.get_ports()[0])
}

/// A command that knows nothing but these variables, and has this home.
fn with(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = millhand(args);
    command.env_clear().env("HOME", home).envs(variables.iter().copied());
    command
}

#[track_caller]
fn assert_refused(said: &Said, code: i32, words: &str) {
    assert_eq!((said.code, said.stdout.as_str()), (Some(code), ""), "{words} {said:?}");
    assert!(said.stderr.starts_with("millhand: ") && said.stderr.contains(words), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    assert!(!said.stderr.contains("secret"), "{said:?}");
}

#[test]
fn every_way_to_name_a_database_leads_there() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("here")).to_string();
    let (socket, port) = socket_of(&database);
    let (socket, port, name) = (socket.to_str().unwrap(), port.to_string(), database.name());
    let home = tempfile::tempdir().unwrap();
    let service = format!("[s]\nhost={socket}\nport={port}\ndbname={name}\nuser=postgres\n");
    fs::write(home.path().join(".pg_service.conf"), &service).unwrap();
    fs::write(home.path().join("services"), service.replace("[s]", "[t]")).unwrap();
    let services = home.path().join("services").display().to_string();
    let all = [("PGHOST", socket), ("PGPORT", &port), ("PGDATABASE", name), ("PGUSER", "postgres")];
    let encoded = socket.replace('/', "%2F");
    for (url, variables) in [
        ("postgresql:///", &all[..]),
        ("postgres://", &all),
        // Unencrypted, because what is on a socket is.
        ("postgresql:///?sslmode=verify-full", &all),
        (&format!("postgresql://{encoded}/{name}"), &all[1..]),
        (&format!("postgresql:///{name}?host={socket}"), &all[1..]),
        (&format!("postgresql://postgres@/{name}?host={socket}&port={port}"), &[]),
        (&format!("host={socket} port={port} dbname='{name}' user=postgres"), &[]),
        (&format!("host=/nonexistent,{socket} port={port} dbname={name} user=postgres"), &[]),
        (&format!("host=/nonexistent,{socket} port=1,{port} target_session_attrs=primary"), &all),
        ("postgresql:///?target_session_attrs=prefer-standby&load_balance_hosts=random", &all),
        ("postgresql:///?application_name=x&sslcompression=1&gssencmode=prefer", &all),
        ("service=s", &[]),
        ("postgresql:///?service=s", &[("PGHOST", "/nonexistent.example")][..0]),
        ("postgresql:///", &[("PGSERVICE", "s")]),
        ("postgresql:///", &[("PGSERVICE", "t"), ("PGSERVICEFILE", &services)]),
        (&format!("service=t servicefile={services}"), &[]),
    ] {
        let mut command = with(home.path(), &["task", "list", "--json"], variables);
        let said = run(command.env("MILLHAND_DATABASE_URL", url));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{url} {said:?}");
        assert!(said.stdout.starts_with(&format!("{{\"id\":{id},")), "{url} {said:?}");
        // The same as psql reaches.
        let mut psql = Command::new("psql");
        psql.args([url, "-Atc", "SELECT id FROM millhand.task"]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        psql.env_clear().env("PATH", path).env("HOME", home.path());
        // (Older ones do not know all of this.)
        if !url.contains("load_balance_hosts") && !url.contains("servicefile") {
            let psql = run(psql.envs(variables.iter().copied()));
            assert_eq!((psql.code, psql.stdout.trim()), (Some(0), &*id), "{url} {psql:?}");
        }
    }
}

#[test]
fn passwords_come_from_where_psql_takes_them() {
    let guarded = Guarded::start();
    let mut admin = guarded.database.connect();
    admin.batch_execute("CREATE ROLE guarded SUPERUSER LOGIN PASSWORD 'right'").unwrap();
    guarded.rule("all all guarded scram-sha-256".replacen("all", "local", 1).as_str());
    let (socket, port) = socket_of(&guarded.database);
    let home = tempfile::tempdir().unwrap();
    let url =
        format!("postgresql://guarded@/millhand?host={}&port={port}", socket.to_str().unwrap());
    let ask = |more: &str, variables: &[(&str, &str)]| {
        let mut command = with(home.path(), &["status"], variables);
        run(command.env("MILLHAND_DATABASE_URL", format!("{url}{more}")))
    };
    let wants = "wants a password, and there is none for this role";
    assert_refused(&ask("", &[]), 2, wants);
    assert_refused(&ask("", &[("PGPASSWORD", "secret")]), 75, "password authentication failed");
    assert_eq!(ask("", &[("PGPASSWORD", "right")]).code, Some(0));
    assert_eq!(ask("&password=right", &[("PGPASSWORD", "secret")]).code, Some(0));

    let line = format!("{}:{port}:*:guarded:right\n", socket.to_str().unwrap());
    let other = write_own(&home.path().join("other"), &line).display().to_string();
    assert_eq!(ask("", &[("PGPASSFILE", &other)]).code, Some(0));
    assert_eq!(ask(&format!("&passfile={other}"), &[]).code, Some(0));
    let own = write_own(&home.path().join(".pgpass"), &format!("*:1:*:*:secret\n{line}"));
    assert_eq!(ask("", &[]).code, Some(0));
    assert_refused(&ask("", &[("PGPASSFILE", "/nonexistent")]), 2, wants);
    assert_refused(&ask("&user=nobody", &[]), 75, "role \"nobody\" does not exist");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).unwrap();
    let said = ask("", &[]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("is ignored: it can be read by others; chmod 600"), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 2, "{said:?}");
}

#[test]
fn what_cannot_be_followed_is_named_and_no_value_is() {
    let database = Database::new();
    let (socket, port) = socket_of(&database);
    let home = tempfile::tempdir().unwrap();
    let socket = socket.to_str().unwrap();
    let here = format!("host={socket} port={port} user=postgres dbname={}", database.name());
    let empty = "MILLHAND_DATABASE_URL, `database_url` or --database-url is empty";
    for (url, code, words) in [
        ("", 2, empty),
        (" \n", 2, empty),
        ("secret", 2, "expected postgresql://USER@HOST:PORT/DATABASE or host=HOST dbname=DATABASE"),
        ("mysql://u:secret@h/d", 2, "expected postgresql://"),
        ("postgresql://u:p/secret@h/d", 2, "a slash %2F"),
        ("postgresql:///d?sslmod=secret", 2, "unknown key `sslmod`; did you mean `sslmode`?"),
        ("host=h passwd=secret", 2, "unknown key `passwd`; did you mean `password`?"),
        ("host=h password=a secret", 2, "a value with blanks is written in '...'"),
        ("host=h require_auth=secret", 2, "`require_auth` (PGREQUIREAUTH) is not supported"),
        ("host=h connect_timeout=secret", 2, "`connect_timeout` (PGCONNECT_TIMEOUT) is no number"),
        ("host=h port=secret", 2, "`port` (PGPORT) is no number from 1 to 65535"),
        ("host=a,b port=1,2,3", 2, "names 3 ports, and there are 2 hosts"),
        ("host=h hostaddr=secret", 2, "`hostaddr` (PGHOSTADDR) is no address"),
        ("service=absent", 2, "there is no service `absent`"),
        (&format!("{here} target_session_attrs=secret"), 2, "can only be any, read-write,"),
        (&format!("{here} target_session_attrs=standby"), 75, "database is not read only"),
        (&format!("{here} channel_binding=secret"), 2, "can only be disable, prefer or require"),
        (&format!("{here} dbname=absent"), 75, "database \"absent\" does not exist"),
        ("host=/nonexistent,127.0.0.1 port=1", 75, "/nonexistent:1: "),
    ] {
        let mut command = with(home.path(), &["status"], &[("MILLHAND_DATABASE_URL", url)]);
        assert_refused(&run(&mut command), code, words);
    }
    let file = home.path().join("millhand.toml");
    fs::write(&file, "database_url = \"\"\n").unwrap();
    let file = file.to_str().unwrap();
    assert_refused(&run(&mut with(home.path(), &["status", "--config", file], &[])), 2, empty);
    let flag = ["status", "--database-url", ""];
    assert_refused(&run(&mut with(home.path(), &flag, &[])), 2, empty);
    let mut worker = with(home.path(), &["worker"], &[("MILLHAND_DATABASE_URL", "")]);
    assert_refused(&run(&mut worker), 2, empty);
    // Set for something else, perhaps.
    let unnamed = "set MILLHAND_DATABASE_URL=postgresql:/// to use the one of the PG* variables";
    for variable in ["PGHOST", "PGDATABASE", "PGSERVICE"] {
        let mut command = with(home.path(), &["migrate"], &[(variable, "x")]);
        assert_refused(&run(&mut command), 2, unnamed);
    }
}
