//! Makes connections: everything that is needed for it, and one server after another.

use std::fs::File;
use std::time::Duration;

use postgres::config::{
    ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs,
};
use postgres::error::SqlState;
use postgres::{Client, Config};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::hosts::hosts_of;
use super::parameters::Parameters;
use super::refusal;
use super::tls::{Mode, Tls};
use crate::error::{self, Error};

/// How long a connection attempt may take, unless it is told otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A host that vanished without a word: noticed by both kernels before the ttl of a worker
/// ends.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(5);
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection needs: a socket, and three for the runtime of the client.
const N_DESCRIPTORS: usize = 4;

/// Connects to the first server that answers, of those that a connection string names.
///
/// Made anew for each connection it follows what changes: a password file, a certificate
/// that was renewed.
pub struct Connector {
    doing: String,
    targets: Vec<Target>,
    at_random: bool,
    /// What the session's server has to be, the best first.
    wanted: Vec<TargetSessionAttrs>,
}

/// One server.
struct Target {
    place: String,
    mode: Mode,
    config: Config,
    tls: MakeRustlsConnect,
}

impl Connector {
    /// For the server, or the servers, of a connection string: a URL, or words such as
    /// `host=db user=ada`, with the rest from the `PG*` variables, a service or a password
    /// file, as in psql. `purpose` names the sessions.
    pub fn new(url: &str, purpose: &str) -> Result<Connector, Error> {
        let parameters = Parameters::read(url)?;
        let user = parameters.user()?;
        let database = parameters.get("dbname").unwrap_or(&user);
        let tls = Tls::read(&parameters)?;
        let mut common = Config::new();
        set_common(&mut common, &parameters)?;
        common.user(&user).dbname(database).application_name(purpose);
        if tls.is_direct {
            common.ssl_negotiation(SslNegotiation::Direct);
        }
        let mut targets = Vec::new();
        for host in hosts_of(&parameters)? {
            let mode = tls.mode_for(&host)?;
            let mut config = common.clone();
            config.host(&host.name).port(host.port).ssl_mode(mode.as_ssl_mode());
            if let Some(address) = host.address {
                config.hostaddr(address);
            }
            let name = host.in_password_file();
            if let Some(password) = parameters.password(name, host.port, database, &user) {
                config.password(password);
            }
            targets.push(Target { place: host.place(), mode, config, tls: tls.connector(mode)? });
        }
        use TargetSessionAttrs::{Any, ReadOnly, ReadWrite};
        let wanted = parameters.word(
            "target_session_attrs",
            &[
                ("any", &[Any][..]),
                ("read-write", &[ReadWrite]),
                ("read-only", &[ReadOnly]),
                ("primary", &[ReadWrite]),
                ("standby", &[ReadOnly]),
                ("prefer-standby", &[ReadOnly, Any]),
            ],
        )?;
        let at_random =
            parameters.word("load_balance_hosts", &[("disable", false), ("random", true)])?;
        Ok(Connector {
            doing: super::could_not_connect(url),
            targets,
            at_random: at_random.unwrap_or(false),
            wanted: wanted.unwrap_or(&[Any]).to_vec(),
        })
    }

    /// Connects.
    pub fn connect(&self) -> Result<Client, Error> {
        let mut order: Vec<&Target> = self.targets.iter().collect();
        if self.at_random {
            fastrand::shuffle(&mut order);
        }
        let mut failures = Vec::new();
        for wanted in &self.wanted {
            failures.clear();
            for target in &order {
                match open(&self.doing, target, *wanted) {
                    Ok(client) => return Ok(client),
                    Err(error) => failures.push((target, error)),
                }
            }
        }
        Err(self.refused(failures))
    }

    /// Servers that do not verify who they are, though their connection is encrypted.
    pub(crate) fn unverified(&self) -> Vec<&str> {
        let unverified = self.targets.iter().filter(|target| target.mode == Mode::Require);
        unverified.map(|target| target.place.as_str()).collect()
    }

    pub(crate) fn doing(&self) -> &str {
        &self.doing
    }

    /// The error of the only server, or what all of them said. Waiting helps if it does
    /// for one.
    fn refused(&self, mut failures: Vec<(&&Target, Error)>) -> Error {
        if failures.len() == 1
            && let Some((_, error)) = failures.pop()
        {
            return error;
        }
        let passes = failures.iter().any(|(_, error)| error.is_unavailable());
        let said: Vec<String> = failures
            .iter()
            .map(|(target, error)| {
                let said = error::chain(error);
                let said = said.strip_prefix(&self.doing).unwrap_or(&said);
                format!("{}: {}", target.place, said.trim_start_matches(": "))
            })
            .collect();
        let said = said.join("; ");
        if passes {
            Error::Unavailable { doing: self.doing.clone(), source: said.into() }
        } else {
            Error::Config(format!("{}: {said}", self.doing))
        }
    }
}

/// What goes for all hosts.
fn set_common(config: &mut Config, parameters: &Parameters) -> Result<(), Error> {
    if let Some(options) = parameters.get("options") {
        config.options(options);
    }
    match parameters.number::<i32>("connect_timeout")? {
        None => config.connect_timeout(CONNECT_TIMEOUT),
        // Without a limit, as in libpq.
        Some(..=0) => config,
        Some(seconds @ 1..) => {
            config.connect_timeout(Duration::from_secs(seconds.unsigned_abs().into()))
        }
    };
    let milliseconds = parameters.number("tcp_user_timeout")?.map(Duration::from_millis);
    config.tcp_user_timeout(milliseconds.unwrap_or(TCP_USER_TIMEOUT));
    config.keepalives(parameters.number::<i32>("keepalives")? != Some(0));
    let seconds = |key| Ok::<_, Error>(parameters.number(key)?.map(Duration::from_secs));
    config.keepalives_idle(seconds("keepalives_idle")?.unwrap_or(KEEPALIVES_IDLE));
    if let Some(interval) = seconds("keepalives_interval")? {
        config.keepalives_interval(interval);
    }
    if let Some(count) = parameters.number("keepalives_count")? {
        config.keepalives_retries(count);
    }
    let binding = parameters.word(
        "channel_binding",
        &[
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ],
    )?;
    config.channel_binding(binding.unwrap_or(ChannelBinding::Prefer));
    if parameters.get("load_balance_hosts") == Some("random") {
        config.load_balance_hosts(LoadBalanceHosts::Random);
    }
    Ok(())
}

/// Connects to one server. Where encryption is only preferred, one that cannot do with it
/// gets another try without.
fn open(doing: &str, target: &Target, wanted: TargetSessionAttrs) -> Result<Client, Error> {
    let mut config = target.config.clone();
    config.target_session_attrs(wanted);
    let connect = |config: Config| {
        let manager = PostgresConnectionManager::new(config, target.tls.clone());
        open_with_room(doing, || manager.connect())
    };
    let opened = connect(config.clone())?;
    let opened = match opened {
        Err(error) if target.mode == Mode::Prefer && may_do_without(&error) => {
            config.ssl_mode(SslMode::Disable);
            connect(config)?
        }
        other => other,
    };
    opened.map_err(|error| refusal::explain(doing, &target.place, error))
}

/// The client takes it for granted that there is room for its runtime, and panics where
/// there is none.
fn open_with_room(
    doing: &str,
    connect: impl FnOnce() -> Result<Client, postgres::Error>,
) -> Result<Result<Client, postgres::Error>, Error> {
    let room = (0..N_DESCRIPTORS).map(|_| File::open("/dev/null")).collect::<Result<Vec<_>, _>>();
    drop(room.map_err(|error| Error::system(doing, error))?);
    error::guard(doing, || Ok(connect()))
}

fn may_do_without(error: &postgres::Error) -> bool {
    refusal::is_of_tls(error)
        // A rule lets in only who is not encrypted.
        || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}
