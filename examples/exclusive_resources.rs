//! Tasks that need one resource exclusively run one after another, in the
//! order in which they were dispatched, however many threads are idle. Tasks
//! on different resources do not wait for each other.
//!
//! It prints:
//!
//! ```text
//! stable: one two three, at most 1 at once
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millhand::{Config, Context, NewTask, Registry, Worker, db};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::load(None)?;
    config.threads = 4;
    let mut client = db::connect(config.database_url()?, "example")?;
    for step in ["one", "two", "three"] {
        let task = NewTask::new("publish").args(step.into()).exclusive("repository:stable");
        millhand::dispatch(&mut client, &task)?;
    }

    let steps = Arc::new(Mutex::new(Vec::new()));
    let running = AtomicUsize::new(0);
    let most = Arc::new(AtomicUsize::new(0));
    let mut registry = Registry::new();
    let (seen, seen_most) = (steps.clone(), most.clone());
    registry.register("publish", move |_: &Context<'_>, step: String| {
        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
        seen_most.fetch_max(now, Ordering::SeqCst);
        seen.lock().map_err(|error| error.to_string())?.push(step);
        std::thread::sleep(Duration::from_millis(20));
        running.fetch_sub(1, Ordering::SeqCst);
        Ok::<_, String>(())
    });
    Worker::new(config, registry).burst(true).run()?;

    let steps = steps.lock().map_err(|error| error.to_string())?.join(" ");
    println!("stable: {steps}, at most {} at once", most.load(Ordering::SeqCst));
    Ok(())
}
