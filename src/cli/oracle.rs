//! The verdict on a history: what in the table breaks the rules of order.

use millhand::Error;
use postgres::GenericClient;

/// One line for each violation; none if all was right.
pub(crate) fn verdict(client: &mut impl GenericClient) -> Result<Vec<String>, Error> {
    let rows = client
        .query(include_str!("../../sql/queries/oracle.sql"), &[])
        .map_err(|error| Error::postgres("could not ask the oracle", error))?;
    Ok(rows
        .iter()
        .map(|row| {
            let rule: &str = row.get("rule");
            let task: i64 = row.get("task");
            let detail: &str = row.get("detail");
            match row.get::<_, Option<i64>>("other") {
                Some(other) => format!("{rule}: task {task}, and task {other}: {detail}"),
                None => format!("{rule}: task {task}: {detail}"),
            }
        })
        .collect())
}
