//! Arguments in, exit code out. Everything else is the library's.
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use tidegate::app::{App, Service, key_line, new_key};
use tidegate::config::{ServeArgs, check, load, reference, schema};
use tidegate::demo::{Demo, DemoArgs};
use tidegate::sim::http::SimArgs;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Reverse proxy and load balancer for LLM inference: one endpoint in front of many vLLM pods.
#[derive(Parser)]
#[command(name = "tidegate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients in front of pods.
    Serve(ServeArgs),
    /// Check a configuration file; exit code 2 if anything is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the reference of all settings, or their JSON schema.
    Config {
        /// Every setting with its default, as YAML.
        #[arg(long, conflicts_with = "schema", required_unless_present = "schema")]
        reference: bool,
        /// The JSON schema.
        #[arg(long)]
        schema: bool,
    },
    /// Run simulated vLLM pods.
    Sim(SimArgs),
    /// Make an API key for clients: the key on standard error, its line for `flow.keys_file` on standard output.
    Key {
        /// Tenant it is for.
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: String,
        /// What the line says of it, for people.
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        /// Make no key; make the line of the one on standard input.
        #[arg(long)]
        stdin: bool,
    },
    /// Gate and simulated pods in one process, to look at.
    Demo(DemoArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("tidegate: {error:#}\n"), true);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            // A flag wins over the file; a file that can't be read is told of when the gate starts.
            let level = load(&args).map_or_else(|_| args.log.unwrap_or_default(), |config| config.observe.log);
            log_to_stderr(level.as_str())?;
            let service = Service::listen(args.pid_file.clone())?;
            let app = App::start(args, None)?;
            tracing::info!(addr = %app.addr(), admin = %app.admin_addr(), "serving");
            return Ok(ExitCode::from(service.run(app)?));
        }
        Command::Check { file } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let problems = check(&text);
            if !problems.is_empty() {
                for problem in &problems {
                    say(&format!("{}: {problem}\n", file.display()), true);
                }
                return Ok(ExitCode::from(2));
            }
        }
        Command::Config { schema: true, .. } => say(&format!("{}\n", schema()), false),
        Command::Config { .. } => say(&reference(), false),
        Command::Sim(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let fleet = runtime.block_on(tidegate::sim::http::run(args)).context("cannot start the pods")?;
            for addr in fleet.addrs() {
                say(&format!("http://{addr}\n"), false);
            }
            wait_for_end()?;
        }
        Command::Key { tenant, note, stdin } => key(&tenant, &note, stdin)?,
        Command::Demo(args) => {
            log_to_stderr("warn")?;
            let demo = Demo::start(&args)?;
            say(&demo.greeting(), false);
            wait_for_end()?;
            demo.stop();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The key apart from its line: the output may be appended to the file, which holds hashes only.
fn key(tenant: &str, note: &str, is_given: bool) -> anyhow::Result<()> {
    let key = if is_given { std::io::read_to_string(std::io::stdin())?.trim().to_owned() } else { new_key()? };
    let line = key_line(&key, tenant, note)?;
    if !is_given {
        say(&format!("{key}\n"), true);
    }
    say(&format!("{line}\n"), false);
    Ok(())
}

/// Logs of our own at `level`; Pingora's only when something is to be found out, since they may quote requests.
fn log_to_stderr(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("off,tidegate={level}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    Ok(())
}

/// Blocks until SIGTERM or SIGINT.
fn wait_for_end() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let came = tokio::select! {
            came = terminate.recv() => came,
            came = interrupt.recv() => came,
        };
        if came.is_none() {
            bail!("signals can no longer be received");
        }
        Ok(())
    })
}

fn say(text: &str, is_error: bool) {
    let written = if is_error { write!(std::io::stderr(), "{text}") } else { write!(std::io::stdout(), "{text}") };
    // Nobody listens any more (a closed pipe): there is nobody to tell either.
    drop(written);
}
