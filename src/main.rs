//! The binary: parse, run, print an error once, choose the exit code.

use std::io;
use std::process::ExitCode;

use log::LevelFilter;
use millhand::error;

mod cli;

fn main() -> ExitCode {
    let cli = cli::parse();
    start_logging(cli.log_levels());
    std::panic::set_hook(Box::new(|panic| {
        if !error::is_shortage(panic.payload()) {
            log::error!("{}", panic.to_string().replace('\n', " "));
        }
    }));
    // A panic has a code of its own, too.
    let run = || Ok(cli::run(cli));
    match error::guard("could not go on", run).unwrap_or_else(|panic| Err(panic.into())) {
        Ok(code) => code,
        // Whoever reads our output has seen enough, as in `millhand task list | head -1`.
        Err(cli::Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(cli::Failure::Output(error)) => {
            cli::output::complain(&format!("could not write to stdout: {error}"));
            ExitCode::FAILURE
        }
        Err(cli::Failure::Millhand(error)) => {
            cli::output::complain(&error::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Logs what the flags, else RUST_LOG, say of this program and of all others in it; else
/// what this program does and what others warn of.
fn start_logging(levels: Option<(LevelFilter, LevelFilter)>) {
    let mut logger = env_logger::Builder::new();
    match levels {
        Some((ours, others)) => {
            logger.filter_level(others).filter_module("millhand", ours);
        }
        None => {
            // What the driver says, with all arguments and results, is for those who name it.
            logger
                .filter_module("tokio_postgres", LevelFilter::Warn)
                .filter_module("postgres", LevelFilter::Warn)
                .parse_env(env_logger::Env::default().default_filter_or("warn,millhand=info"));
        }
    }
    logger.init();
}
