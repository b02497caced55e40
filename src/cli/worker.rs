//! `millhand worker`: run tasks until told to stop.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use millhand::Config;
use millhand::config::WorkerType;

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Run at most N tasks at once (default: 1, MILLHAND_THREADS)
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Use the locks of TYPE (default: postgres, MILLHAND_WORKER_TYPE)
    #[arg(long = "type", value_name = "TYPE")]
    worker_type: Option<WorkerType>,
    /// Exit when no task is left that could run
    #[arg(long)]
    pub(crate) burst: bool,
    /// Leave housekeeping to other workers
    #[arg(long)]
    pub(crate) auxiliary: bool,
    /// Write the process id to FILE while running
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Name workers after TEMPLATE (default: {pid}@{hostname}/{thread},
    /// MILLHAND_NAME_TEMPLATE)
    ///
    /// Knows {pid}, {hostname}, {fqdn} and {thread}, the number of the thread.
    #[arg(long, value_name = "TEMPLATE")]
    name_template: Option<String>,
    /// After SIGTERM let tasks run TIME at most (default: no limit,
    /// MILLHAND_STOP_AFTER)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_after: Option<Duration>,
    /// After SIGINT let tasks run TIME at most (default: 10m,
    /// MILLHAND_TASK_GRACE_INTERVAL)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    task_grace_interval: Option<Duration>,
}

impl WorkerArgs {
    /// Lets the flags override the settings.
    pub(crate) fn apply(&self, config: &mut Config) {
        if let Some(threads) = self.threads {
            config.threads = threads;
        }
        if let Some(worker_type) = self.worker_type {
            config.worker_type = worker_type;
        }
        if let Some(name_template) = &self.name_template {
            config.name_template.clone_from(name_template);
        }
        if self.stop_after.is_some() {
            config.stop_after = self.stop_after;
        }
        if let Some(interval) = self.task_grace_interval {
            config.task_grace_interval = interval;
        }
    }
}
