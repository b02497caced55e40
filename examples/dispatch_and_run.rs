//! A handler is a function: its arguments and its result are types with serde,
//! and a task that does not fit them fails with the reason.
//!
//! It prints:
//!
//! ```text
//! completed {"area":12.0}
//! failed: a side is negative
//! failed: the arguments do not fit: missing field `height`
//! ```

use millhand::{Config, Context, NewTask, Registry, Worker, client, db};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Deserialize)]
struct Rectangle {
    width: f64,
    height: f64,
}

#[derive(Serialize)]
struct Measured {
    area: f64,
}

fn measure(_: &Context<'_>, rectangle: Rectangle) -> Result<Measured, String> {
    if rectangle.width < 0.0 || rectangle.height < 0.0 {
        return Err("a side is negative".to_owned());
    }
    Ok(Measured { area: rectangle.width * rectangle.height })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(None)?;
    let mut client = db::connect(config.database_url()?, "example")?;
    let mut ids = Vec::new();
    for args in
        [json!({"width": 3, "height": 4}), json!({"width": -3, "height": 4}), json!({"width": 3})]
    {
        ids.push(millhand::dispatch(&mut client, &NewTask::new("measure").args(args))?);
    }

    let mut registry = Registry::new();
    registry.register("measure", measure);
    Worker::new(config, registry).burst(true).run()?;

    for id in ids {
        let task = client::get_task(&mut client, id)?;
        match (task.result, task.error) {
            (_, Some(error)) => println!("{}: {error}", task.state),
            (result, None) => println!("{} {}", task.state, result.unwrap_or_default()),
        }
    }
    Ok(())
}
