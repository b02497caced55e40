//! Tasks that share a resource run together; one that needs it exclusively
//! waits for those before it and holds up those after it.
//!
//! It prints:
//!
//! ```text
//! two readers at once
//! the writer, and 0 readers
//! the reader after it
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millhand::{Config, Context, NewTask, Registry, Worker, db};
use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::load(None)?;
    config.threads = 4;
    let mut client = db::connect(config.database_url()?, "example")?;
    let tasks = [
        NewTask::new("meet").shared("catalog"),
        NewTask::new("meet").shared("catalog"),
        NewTask::new("write").exclusive("catalog"),
        NewTask::new("read").shared("catalog"),
    ];
    millhand::dispatch_many(&mut client, &tasks)?;

    let n_begun = AtomicUsize::new(0);
    let n_reading = Arc::new(AtomicUsize::new(0));
    let mut registry = Registry::new();
    let reading = n_reading.clone();
    registry.register("meet", move |context: &Context<'_>, _: Value| {
        reading.fetch_add(1, SeqCst);
        if n_begun.fetch_add(1, SeqCst) == 1 {
            println!("two readers at once");
        }
        // The first one goes on only when the second one is there too.
        while n_begun.load(SeqCst) < 2 && context.wait(Duration::from_millis(5)) {}
        reading.fetch_sub(1, SeqCst);
        Ok::<_, String>(())
    });
    registry.register("write", move |_: &Context<'_>, _: Value| {
        std::thread::sleep(Duration::from_millis(20));
        println!("the writer, and {} readers", n_reading.load(SeqCst));
        Ok::<_, String>(())
    });
    registry.register("read", |_: &Context<'_>, _: Value| {
        println!("the reader after it");
        Ok::<_, String>(())
    });
    Worker::new(config, registry).burst(true).run()?;
    Ok(())
}
