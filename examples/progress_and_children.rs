//! A handler reports how far it is, and dispatches tasks of its own. Here a
//! parent that owns the site creates one task for each page; they need the
//! site too, so they start when the parent has ended.
//!
//! It prints:
//!
//! ```text
//! site: completed, progress {"pages":3}
//! page about: completed
//! page index: completed
//! page news: completed
//! ```

use millhand::{Config, Context, Error, NewTask, Registry, TaskId, Worker, client, db};
use serde_json::{Value, json};

fn build_site(context: &Context<'_>, pages: Vec<String>) -> Result<Vec<TaskId>, Error> {
    // Whoever looks on sees it: `millhand task show`, `dispatch --wait`.
    context.progress(&json!({ "pages": pages.len() }));
    let mut children = Vec::new();
    for page in pages {
        let child = NewTask::new("page").args(page.clone().into()).shared("site");
        children.push(context.dispatch(&child.exclusive(format!("page:{page}")))?);
    }
    Ok(children)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::load(None)?;
    config.threads = 2;
    let mut client = db::connect(config.database_url()?, "example")?;
    let task = NewTask::new("site").args(json!(["about", "index", "news"])).exclusive("site");
    let parent = millhand::dispatch(&mut client, &task)?;

    let mut registry = Registry::new();
    registry.register("site", build_site);
    registry.register("page", |_: &Context<'_>, page: String| Ok::<_, String>(page));
    Worker::new(config, registry).burst(true).run()?;

    let parent = client::get_task(&mut client, parent)?;
    println!("site: {}, progress {}", parent.state, parent.progress.unwrap_or_default());
    let children: Vec<TaskId> = serde_json::from_value(parent.result.unwrap_or_default())?;
    for child in children {
        let child = client::get_task(&mut client, child)?;
        let page = child.result.as_ref().and_then(Value::as_str).unwrap_or_default();
        println!("page {page}: {}", child.state);
    }
    Ok(())
}
