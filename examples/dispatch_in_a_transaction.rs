//! A dispatch is part of the caller's transaction: the order and the task that
//! ships it are both there or both not. No outbox, and nothing to reconcile.
//!
//! It prints:
//!
//! ```text
//! rolled back: 0 orders, 0 tasks
//! committed: 1 orders, 1 tasks
//! ```

use millhand::{Config, Error, NewTask, db};
use postgres::{Client, Transaction};
use serde_json::json;

fn place_order(transaction: &mut Transaction<'_>, item: &str) -> Result<(), Error> {
    let order: i32 = transaction
        .query_one("INSERT INTO customer_order (item) VALUES ($1) RETURNING id", &[&item])
        .map_err(|error| Error::postgres("could not place an order", error))?
        .get(0);
    let task = NewTask::new("ship")
        .args(json!({ "order": order }))
        .exclusive(format!("order:{order}"))
        .shared("warehouse");
    millhand::dispatch(transaction, &task)?;
    Ok(())
}

fn report(client: &mut Client, what: &str) -> Result<(), postgres::Error> {
    let row = client.query_one(
        "SELECT (SELECT count(*) FROM customer_order),
                (SELECT count(*) FROM millhand.task WHERE name = 'ship')",
        &[],
    )?;
    println!("{what}: {} orders, {} tasks", row.get::<_, i64>(0), row.get::<_, i64>(1));
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(None)?;
    let mut client = db::connect(config.database_url()?, "example")?;
    client.batch_execute("CREATE TEMPORARY TABLE customer_order (id serial, item text)")?;

    let mut transaction = client.transaction()?;
    place_order(&mut transaction, "a bell")?;
    transaction.rollback()?;
    report(&mut client, "rolled back")?;

    let mut transaction = client.transaction()?;
    place_order(&mut transaction, "a bell")?;
    transaction.commit()?;
    report(&mut client, "committed")?;
    Ok(())
}
