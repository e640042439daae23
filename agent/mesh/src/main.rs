use std::io::IsTerminal;
use std::process::ExitCode;

use isthmus_mesh::app::{self, MeshArgs};
use isthmus_mesh::config::{self, ConfigError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let loaded = match config::load::<MeshArgs>() {
        Ok(loaded) => loaded,
        Err(error) => error.exit(),
    };
    if let Some(text) = loaded.print {
        #[expect(
            clippy::print_stdout,
            reason = "--print-config is for people and pipes"
        )]
        {
            print!("{text}");
        }
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(app::run(loaded.args));
    // Blocking calls to a dead file system must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<ConfigError>() {
            Ok(usage) => usage.exit(),
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
