//! Encrypted connections: each mode with each kind of server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use millhand::{NewTask, TaskId, TaskState, db};

use crate::support::certificates::{Authority, Guarded, certify_itself, write_own};
use crate::support::clean::assert_clean;
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task, millhand, run};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Has each task say whether the session that dispatched it was encrypted.
const NOTE: &str = "
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        NEW.args := (SELECT pg_catalog.to_jsonb(ssl) FROM pg_catalog.pg_stat_ssl
                      WHERE pid = pg_catalog.pg_backend_pid());
        RETURN NEW;
    END $$;
    CREATE TRIGGER note BEFORE INSERT ON millhand.task FOR EACH ROW EXECUTE FUNCTION public.note()";

struct Site {
    guarded: Guarded,
    folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Site {
        let guarded = Guarded::start();
        guarded.database.connect().batch_execute(NOTE).unwrap();
        Site { guarded, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str, text: &str) -> String {
        write_own(&self.path().join(name), text).display().to_string()
    }

    /// A command that goes by the name `db.test`, which no other machine has.
    fn command(&self, args: &[&str], words: &str) -> Command {
        let mut command = millhand(args);
        let port = self.guarded.port;
        command.env("HOME", self.path()).env(
            "MILLHAND_DATABASE_URL",
            format!(
                "host=db.test hostaddr=127.0.0.1 port={port} user=postgres dbname=millhand {words}"
            ),
        );
        command
    }

    /// `tls` or `plain`, or the exit code and what was said.
    fn ask(&self, words: &str) -> String {
        self.ask_by(&mut self.command(&["dispatch", "t"], words))
    }

    fn ask_by(&self, command: &mut Command) -> String {
        let said = run(command);
        if said.code != Some(0) {
            assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
            assert!(!said.stderr.contains("PRIVATE KEY"), "{said:?}");
            return format!("{} {}", said.code.unwrap(), said.stderr);
        }
        let id: TaskId = said.stdout.trim().parse().unwrap();
        match self.guarded.database.task(id).args.as_bool() {
            Some(true) => "tls".to_owned(),
            Some(false) => "plain".to_owned(),
            None => "neither".to_owned(),
        }
    }
}

#[test]
fn each_mode_trusts_whom_it_should() {
    let site = Site::start();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let root = format!("sslrootcert={}", site.file("root.crt", &ours.pem()));
    let modes = [
        root.clone(),
        "sslmode=disable".to_owned(),
        format!("sslmode=prefer {root}"),
        "sslmode=require".to_owned(),
        format!("sslmode=require {root}"),
        format!("sslmode=verify-ca {root}"),
        format!("sslmode=verify-full {root}"),
    ];
    let none = "2 does not offer TLS; where the network is trusted, say so with sslmode=disable";
    let untrusted = "2 is of an authority that is not trusted here";
    let other = "2 is not for this name but for";
    let old = "2 has expired";
    let (tls, plain) = ("tls", "plain");
    let right = ours.certify("db", &["db.test", "localhost"]);
    let wrong = theirs.certify("db", &["db.test"]);
    let misnamed = ours.certify("db.test", &["db.test.example", "other"]);
    let expired = ours.certify_until("db", &["db.test"], 2020);
    for (server, certified, expected) in [
        ("right", Some(&right), [tls, plain, tls, tls, tls, tls, tls]),
        ("wrong", Some(&wrong), [untrusted, plain, tls, tls, untrusted, untrusted, untrusted]),
        ("misnamed", Some(&misnamed), [other, plain, tls, tls, tls, tls, other]),
        ("expired", Some(&expired), [old, plain, tls, tls, old, old, old]),
        ("plain", None, [none, plain, plain, none, none, none, none]),
    ] {
        site.guarded.show(certified);
        for (mode, expected) in modes.iter().zip(expected) {
            let said = site.ask(mode);
            let (code, words) = expected.split_once(' ').unwrap_or((expected, ""));
            assert!(said.starts_with(code) && said.contains(words), "{server}, {mode}: {said}");
        }
    }
    // What stays on the machine is encrypted if that can be had.
    let here = format!("host=localhost hostaddr='' {root}");
    assert_eq!(site.ask(&here), "plain");
    site.guarded.show(Some(&wrong));
    assert_eq!(site.ask(&here), "tls");
}

#[test]
fn whom_to_trust_is_the_systems_matter_where_nothing_is_said() {
    let site = Site::start();
    let ours = Authority::new("ours");
    let root = site.file("system.crt", &ours.pem());
    site.guarded.show(Some(&ours.certify("db", &["db.test"])));
    for words in ["", "sslrootcert=system", "sslmode=verify-full"] {
        let mut command = site.command(&["dispatch", "t"], words);
        assert_eq!(site.ask_by(command.env("SSL_CERT_FILE", &root)), "tls", "{words}");
        command.env("SSL_CERT_FILE", site.file("other.crt", &Authority::new("other").pem()));
        assert!(site.ask_by(&mut command).contains("not trusted here"), "{words}");
    }
    // As in psql, a file in the user's folder comes first.
    fs::create_dir(site.path().join(".postgresql")).unwrap();
    site.file(".postgresql/root.crt", &Authority::new("other").pem());
    for words in ["", "sslmode=require", "sslmode=verify-ca"] {
        assert!(site.ask(words).contains("not trusted here"), "{words}");
    }
    site.file(".postgresql/root.crt", &ours.pem());
    assert_eq!(site.ask("sslmode=verify-ca"), "tls");
}

#[test]
fn a_certificate_that_vouches_for_itself_can_be_trusted() {
    let site = Site::start();
    let itself = certify_itself("db.test");
    site.guarded.show(Some(&itself));
    let root = site.file("root.crt", &itself.certificate);
    assert_eq!(site.ask(&format!("sslrootcert={root}")), "tls");
    let other = site.file("other.crt", &certify_itself("db.test").certificate);
    assert!(site.ask(&format!("sslrootcert={other}")).starts_with('2'));
}

#[test]
fn settings_that_cannot_be_followed_are_named() {
    let site = Site::start();
    let ours = Authority::new("ours");
    let client = ours.certify("postgres", &[]);
    let certificate = site.file("client.crt", &client.certificate);
    let open = site.file("open.key", &client.key);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let junk = site.file("junk", "secret");
    for (words, expected) in [
        ("sslmode=allow".to_owned(), "`sslmode` (PGSSLMODE) is allow"),
        ("sslmode=secret".to_owned(), "can only be disable, prefer, require, verify-ca or"),
        ("sslmode=verify-ca".to_owned(), "needs an authority: sslrootcert=FILE"),
        ("sslmode=require sslrootcert=system".to_owned(), "can only be verify-full"),
        ("sslrootcert=/nonexistent".to_owned(), "/nonexistent: No such file"),
        (format!("sslrootcert={junk}"), "there is none in the file"),
        (format!("sslmode=require sslcert={certificate}"), "`sslkey` (PGSSLKEY) has to name"),
        (format!("sslmode=require sslcert={certificate} sslkey={open}"), "chmod 600"),
        (format!("sslmode=require sslcert={certificate} sslkey={junk}"), "it is no key in PEM"),
        ("sslmode=prefer sslnegotiation=direct".to_owned(), "sslmode=require or more"),
        ("sslmode=require ssl_max_protocol_version=TLSv1.1".to_owned(), "neither TLSv1.2 nor"),
    ] {
        let said = site.ask(&words);
        assert!(said.starts_with("2 ") && said.contains(expected), "{words}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn clients_prove_who_they_are_by_certificate_and_bind_their_passwords() {
    let site = Site::start();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let root = site.file("root.crt", &ours.pem());
    site.guarded.show(Some(&ours.certify("db", &["db.test"])));
    site.guarded.believe(&ours);
    let mut admin = site.guarded.database.connect();
    admin
        .batch_execute(
            "CREATE ROLE certified SUPERUSER LOGIN; CREATE ROLE bare SUPERUSER LOGIN;
             SET password_encryption = 'scram-sha-256';
             CREATE ROLE known SUPERUSER LOGIN PASSWORD 'right'",
        )
        .unwrap();
    site.guarded.rule(
        "hostssl all certified all cert\nhostssl all bare all reject\n\
         host all known all scram-sha-256",
    );
    let certificate = |name: &str, authority: &Authority, role: &str| {
        let certified = authority.certify(role, &[]);
        format!(
            "user=certified sslrootcert={root} sslcert={} sslkey={}",
            site.file(&format!("{name}.crt"), &certified.certificate),
            site.file(&format!("{name}.key"), &certified.key)
        )
    };
    assert_eq!(site.ask(&certificate("right", &ours, "certified")), "tls");
    let said = site.ask(&certificate("stolen", &ours, "somebody"));
    assert!(said.starts_with("75 ") && said.contains("authentication failed"), "{said}");
    let said = site.ask(&certificate("wrong", &theirs, "certified"));
    assert!(said.starts_with("2 ") && said.contains("agree on no encryption"), "{said}");
    let said = site.ask(&format!("user=certified sslrootcert={root}"));
    assert!(said.starts_with("75 ") && said.contains("requires a valid client cert"), "{said}");
    // Who may not be encrypted need not, if that is only preferred.
    assert_eq!(site.ask("user=bare sslmode=prefer"), "plain");
    assert!(site.ask("user=bare sslmode=require").starts_with("75 "));

    let known = format!("user=known password=right sslrootcert={root}");
    assert_eq!(site.ask(&format!("{known} channel_binding=require")), "tls");
    assert_eq!(site.ask(&format!("{known} channel_binding=disable")), "tls");
    let said = site.ask(&format!("{known} channel_binding=require sslmode=disable"));
    assert!(said.starts_with("2 ") && said.contains("bind a login"), "{said}");
    let said = site.ask(&format!("user=known sslrootcert={root}"));
    assert!(said.starts_with("2 ") && said.contains("wants a password"), "{said}");
}

#[test]
fn all_sessions_of_a_worker_and_its_warden_are_encrypted() {
    for worker_type in WORKER_TYPES {
        let site = Site::start();
        let ours = Authority::new("ours");
        site.file("root.crt", &ours.pem());
        site.guarded.show(Some(&ours.certify("db", &["db.test"])));
        let database = &site.guarded.database;
        database.connect().batch_execute("DROP TRIGGER note ON millhand.task").unwrap();
        let workshop = Workshop::new(database, GATE_HANDLERS);
        let url = format!(
            "postgresql://postgres@db.test:{}/millhand?hostaddr=127.0.0.1&sslrootcert=root.crt",
            site.guarded.port
        );
        // The warden works in another folder.
        let mut command = workshop.millhand(["worker", "--threads", "2", "--type", worker_type]);
        command.current_dir(site.path()).env("MILLHAND_DATABASE_URL", url);
        let worker = WorkerProcess::start(command);
        let id = database.dispatch(&gate_task(&workshop, "gate", "a"));
        workshop.wait_at_gate(database, "a");
        let mut connection = database.connect();
        let plain: Vec<String> = connection
            .query(
                "SELECT a.application_name FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
                  WHERE a.application_name LIKE 'millhand%' AND NOT s.ssl",
                &[],
            )
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert_eq!(plain, Vec::<String>::new(), "{worker_type}");
        // Long before its ttl has passed.
        worker.kill();
        let task = database.wait_for_state(id, TaskState::Failed);
        assert!(task.error.unwrap().contains("gone missing"));
        wait_until(database, "its row is gone", SOON, || {
            let n = database.worker_ids().len();
            if n == 0 { Ok(()) } else { Err(n) }
        });
        assert_clean(database, &workshop);
    }
}

#[test]
fn a_worker_says_that_its_server_may_be_anybody() {
    let site = Site::start();
    let ours = Authority::new("ours");
    site.guarded.show(Some(&ours.certify("db", &["db.test"])));
    let id = site.guarded.database.dispatch(&NewTask::new("millhand.noop"));
    let said = run(&mut site.command(&["worker", "--burst"], "sslmode=require"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("db.test:") && said.stderr.contains("could be anybody"));
    assert_eq!(site.guarded.database.task(id).state, TaskState::Completed);
    let said = run(&mut site.command(&["status"], "sslmode=require"));
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_server_that_is_cut_off_in_a_handshake_is_waited_for() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = silent.accept().unwrap();
        std::io::copy(&mut std::io::Read::take(&mut stream, 8), &mut std::io::sink()).unwrap();
        std::io::Write::write_all(&mut stream, b"S").unwrap();
    });
    let url = format!("host=127.0.0.1 port={port} user=u sslmode=require hostaddr=''");
    let error = db::connect(&url, "test").map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{}", millhand::error::chain(&error));
    server.join().unwrap();
}
