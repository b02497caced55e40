//! Any program that speaks SQL can dispatch and cancel, in its own transaction
//! and without any library of millhand's. Here the statements go through a
//! plain Postgres client; a worker runs what they left.
//!
//! It prints:
//!
//! ```text
//! canceled
//! hello Ada
//! hello Bob
//! hello Cy
//! ```

use millhand::{Config, Context, Registry, Worker, db};
use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(None)?;
    let mut client = db::connect(config.database_url()?, "example")?;

    // Names and defaults as in `dispatch(name, args, exclusive, shared)`.
    client.batch_execute(
        r#"SELECT millhand.dispatch('greet', '{"name": "Ada"}', exclusive => '{door}')"#,
    )?;
    // Many at once, in the order of the array.
    client.batch_execute(
        r#"SELECT millhand.dispatch_many('[
               {"name": "greet", "args": {"name": "Bob"}, "exclusive": ["door"]},
               {"name": "greet", "args": {"name": "Cy"}, "exclusive": ["door"], "shared": ["hall"]}
           ]')"#,
    )?;
    let id: i64 =
        client.query_one(r#"SELECT millhand.dispatch('greet', '{"name": "Nobody"}')"#, &[])?.get(0);
    let state: String = client.query_one("SELECT millhand.cancel($1)", &[&id])?.get(0);
    println!("{state}");

    let mut registry = Registry::new();
    registry.register("greet", |_: &Context<'_>, args: Value| {
        println!("hello {}", args["name"].as_str().unwrap_or("stranger"));
        Ok::<_, String>(())
    });
    Worker::new(config, registry).burst(true).run()?;
    Ok(())
}
