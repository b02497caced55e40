//! Dispatch from a program that is asynchronous, in its own transaction: the functions of
//! this library would block its runtime, so it calls the SQL function. With sqlx it is the
//! same statement.
//!
//! It prints:
//!
//! ```text
//! completed "hello Ada"
//! ```

use std::error::Error;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("MILLHAND_DATABASE_URL")?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);

    let transaction = client.transaction().await?;
    // Your own statements here.
    let row = transaction
        .query_one(
            "SELECT millhand.dispatch($1, $2, exclusive => $3, shared => $4)",
            &[&"greet", &json!({"who": "Ada"}), &["door"].as_slice(), &["house"].as_slice()],
        )
        .await?;
    transaction.commit().await?;

    // In your service the worker is a process of its own; here it is a thread.
    let worker = tokio::task::spawn_blocking(|| run_a_worker().map_err(|error| error.to_string()));
    let (state, result) = wait(&client, row.get(0)).await?;
    println!("{state} {result}");
    worker.await??;
    Ok(())
}

/// Waits until the task has ended.
async fn wait(client: &Client, task: i64) -> Result<(String, Value), tokio_postgres::Error> {
    loop {
        let row = client
            .query_one("SELECT state, result FROM millhand.task WHERE id = $1", &[&task])
            .await?;
        let state: String = row.get(0);
        if matches!(state.as_str(), "completed" | "failed" | "canceled") {
            return Ok((state, row.get::<_, Option<Value>>(1).unwrap_or_default()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn run_a_worker() -> Result<(), millhand::Error> {
    let mut registry = millhand::Registry::new();
    registry.register("greet", |_: &millhand::Context<'_>, args: Value| {
        Ok::<_, String>(format!("hello {}", args["who"].as_str().unwrap_or("nobody")))
    });
    let config = millhand::Config::load(None)?;
    millhand::Worker::new(config, registry).burst(true).run()?;
    Ok(())
}
