//! A proxy between a worker and a server that cuts the worker's connection at a message
//! of the test's choice, and does what else the test wants just then.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use postgres::config::Host;
use rustix::net::Shutdown;

/// When it strikes, as far as one message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The server never gets it.
    BeforeMessage,
    /// The server has answered, and the worker never learns of it.
    BeforeAnswer,
}

struct Plan {
    /// How many messages are still let through.
    n_left: usize,
    moment: Moment,
    /// What is done before the connection is cut.
    harm: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    has_struck: bool,
}

enum Server {
    Tcp(String),
    Unix(PathBuf),
}

/// What the threads of a proxy share.
struct Shared {
    server: Server,
    state: Mutex<State>,
    is_parted: AtomicBool,
    ended: AtomicBool,
}

/// Passes everything on in both directions for as long as this value lives.
pub(crate) struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of the Redis with this URL, and the URL through the proxy.
    pub(crate) fn of_redis(url: &str) -> (Proxy, String) {
        let proxy = Proxy::start(Server::Tcp(address_of_redis(url)));
        let url = proxy.redis_url(url);
        (proxy, url)
    }

    /// The URL of a Redis, through this proxy.
    pub(crate) fn redis_url(&self, url: &str) -> String {
        url.replace(&address_of_redis(url), &self.address)
    }

    /// In front of the Postgres with this URL, which has a Unix socket, and the URL
    /// through the proxy.
    pub(crate) fn of_postgres(url: &str) -> (Proxy, String) {
        let parameters: postgres::Config = url.parse().unwrap();
        let [Host::Unix(folder)] = parameters.get_hosts() else { panic!("no Unix socket") };
        let socket = folder.join(format!(".s.PGSQL.{}", parameters.get_ports()[0]));
        let proxy = Proxy::start(Server::Unix(socket));
        let url = proxy.postgres_url(url);
        (proxy, url)
    }

    /// The URL of a Postgres, through this proxy.
    pub(crate) fn postgres_url(&self, url: &str) -> String {
        let parameters: postgres::Config = url.parse().unwrap();
        let (user, name) = (parameters.get_user().unwrap(), parameters.get_dbname().unwrap());
        format!("postgresql://{user}@{}/{name}", self.address)
    }

    fn start(server: Server) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            server,
            state: Mutex::default(),
            is_parted: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.ended.load(Ordering::Acquire) {
                    return;
                }
                pass_on(&of_thread, client.unwrap());
            }
        });
        Proxy { address, shared }
    }

    /// Lets nothing through, and nobody in, until [`Proxy::join`].
    pub(crate) fn part(&self) {
        self.shared.is_parted.store(true, Ordering::Release);
    }

    pub(crate) fn join(&self) {
        self.shared.is_parted.store(false, Ordering::Release);
    }

    /// Does this harm, and cuts the connection, at message number `n`, counted from 1
    /// and from now.
    pub(crate) fn arm(&self, n: usize, moment: Moment, harm: impl FnOnce() + Send + 'static) {
        let plan = Some(Plan { n_left: n - 1, moment, harm: Box::new(harm) });
        *self.shared.state() = State { plan, has_struck: false };
    }

    /// Does no harm any more; whether it has.
    pub(crate) fn disarm(&self) -> bool {
        let mut state = self.shared.state();
        state.plan = None;
        state.has_struck
    }

    pub(crate) fn has_struck(&self) -> bool {
        self.shared.state().has_struck
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Proxy({})", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // It waits for a connection.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn is_parted(&self) -> bool {
        self.is_parted.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message, and says what to do if it is the one.
    fn count(&self) -> Option<Moment> {
        let mut state = self.state();
        let plan = state.plan.as_mut()?;
        if plan.n_left > 0 {
            plan.n_left -= 1;
            return None;
        }
        let moment = plan.moment;
        if moment == Moment::BeforeMessage {
            state.strike();
        } else {
            // Others that come meanwhile are not the one.
            plan.n_left = usize::MAX;
        }
        Some(moment)
    }
}

impl State {
    fn strike(&mut self) {
        if let Some(plan) = self.plan.take() {
            (plan.harm)();
            self.has_struck = true;
        }
    }
}

fn address_of_redis(url: &str) -> String {
    let client = redis::Client::open(url).unwrap();
    client.get_connection_info().addr().to_string()
}

/// Serves one connection, on threads of its own. What one side ends is ended on the
/// other, too.
fn pass_on(shared: &Arc<Shared>, client: TcpStream) {
    if shared.is_parted() {
        return;
    }
    let server = match &shared.server {
        Server::Tcp(address) => TcpStream::connect(address).map(OwnedFd::from),
        Server::Unix(path) => UnixStream::connect(path).map(OwnedFd::from),
    };
    // Without a server the client finds its connection closed.
    let Ok(server) = server else { return };
    client.set_nodelay(true).unwrap();
    // Sockets of either kind are read and written like files.
    let (client, server) = (File::from(OwnedFd::from(client)), File::from(server));
    let (to_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    // Whether the next answer is the one.
    let strikes = Arc::new(AtomicBool::new(false));
    let (of_questions, of_answers) = (shared.clone(), shared.clone());
    let (question_strikes, answer_strikes) = (strikes.clone(), strikes);
    thread::spawn(move || {
        copy(client, server, || match of_questions.count() {
            _ if of_questions.is_parted() => false,
            Some(Moment::BeforeMessage) => false,
            Some(Moment::BeforeAnswer) => {
                question_strikes.store(true, Ordering::Release);
                true
            }
            None => true,
        });
    });
    thread::spawn(move || {
        copy(from_server, to_client, || {
            if answer_strikes.load(Ordering::Acquire) {
                of_answers.state().strike();
                return false;
            }
            !of_answers.is_parted()
        });
        // Some messages have no answer but the end of the connection.
        if answer_strikes.load(Ordering::Acquire) {
            of_answers.state().strike();
        }
    });
}

/// Copies until either side ends, or until `passes` says of what was just read that
/// it does not pass; then ends both sides.
fn copy(mut from: File, mut to: File, mut passes: impl FnMut() -> bool) {
    let mut buffer = [0; 1 << 16];
    while let Ok(n) = from.read(&mut buffer)
        && n > 0
        && passes()
        && to.write_all(&buffer[..n]).is_ok()
    {}
    for socket in [&from, &to] {
        // The other direction may have ended it already.
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
    }
}
