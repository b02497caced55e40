//! A task can be canceled at any moment: one that waits is canceled at once,
//! one that runs when its handler has seen it and ended.
//!
//! It prints:
//!
//! ```text
//! the waiting one: canceled
//! the running one: canceling
//! the running one, in the end: canceled
//! ```

use std::sync::mpsc;
use std::time::Duration;

use millhand::worker::Shutdown;
use millhand::{Config, Context, NewTask, Registry, Worker, client, db};
use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(None)?;
    let mut client = db::connect(config.database_url()?, "example")?;
    let task = NewTask::new("endless").exclusive("the mill");
    let running = millhand::dispatch(&mut client, &task)?;
    let waiting = millhand::dispatch(&mut client, &task)?;

    let (begun, has_begun) = mpsc::channel();
    let mut registry = Registry::new();
    registry.register("endless", move |context: &Context<'_>, _: Value| {
        let _ = begun.send(());
        // Ends early when somebody cancels; `is_canceled` asks without waiting.
        while context.wait(Duration::from_secs(3600)) {}
        // What a canceled handler returns is not stored.
        Err::<(), _>("stopped half-way")
    });
    let worker = Worker::new(config, registry);
    let control = worker.control();
    let thread = std::thread::spawn(move || worker.run());

    has_begun.recv()?;
    println!("the waiting one: {}", millhand::cancel(&mut client, waiting)?);
    println!("the running one: {}", millhand::cancel(&mut client, running)?);

    // Ends when nothing runs any more.
    control.stop(Shutdown::Drain);
    thread.join().map_err(|_| "the worker panicked")??;
    let task = client::get_task(&mut client, running)?;
    println!("the running one, in the end: {}", task.state);
    Ok(())
}
