//! A program stops its worker when it likes: `Drain` takes nothing new and
//! waits for what runs, `Now` ends it. What has not started waits in the table
//! for the next worker.
//!
//! It prints:
//!
//! ```text
//! after Drain: the first is completed
//! without a worker: the second is waiting
//! after Now: the second is failed (aborted during worker shutdown)
//! ```

use std::sync::mpsc;
use std::time::Duration;

use millhand::worker::Shutdown;
use millhand::{Config, Context, NewTask, Registry, Worker, client, db};

type Error = Box<dyn std::error::Error>;

/// Runs a worker, and tells it to stop as soon as a task has begun.
fn work_until(shutdown: Shutdown, config: &Config) -> Result<(), Error> {
    let (begun, has_begun) = mpsc::channel();
    let mut registry = Registry::new();
    registry.register("grind", move |context: &Context<'_>, milliseconds: u64| {
        let _ = begun.send(());
        // False if it has to end early.
        let ended = context.wait(Duration::from_millis(milliseconds));
        if ended { Ok("flour") } else { Err("interrupted") }
    });
    let worker = Worker::new(config.clone(), registry);
    let control = worker.control();
    let thread = std::thread::spawn(move || worker.run());
    has_begun.recv()?;
    control.stop(shutdown);
    thread.join().map_err(|_| "the worker panicked")??;
    Ok(())
}

fn main() -> Result<(), Error> {
    let config = Config::load(None)?;
    let mut client = db::connect(config.database_url()?, "example")?;
    let grind = |milliseconds: u64| NewTask::new("grind").args(milliseconds.into());

    let first = millhand::dispatch(&mut client, &grind(50))?;
    work_until(Shutdown::Drain, &config)?;
    println!("after Drain: the first is {}", client::get_task(&mut client, first)?.state);

    let second = millhand::dispatch(&mut client, &grind(3_600_000))?;
    println!("without a worker: the second is {}", client::get_task(&mut client, second)?.state);
    work_until(Shutdown::Now, &config)?;
    let task = client::get_task(&mut client, second)?;
    println!("after Now: the second is {} ({})", task.state, task.error.unwrap_or_default());
    Ok(())
}
