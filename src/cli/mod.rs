//! The command line: what a person types, and what it is joined from. Only here (and in `main`) do adapters meet `app`.

mod backfill;
mod check;
#[cfg(feature = "emulator")]
mod demo;
mod drift;
mod explain;
mod operate;
mod owners;
mod plan;
mod serve;
mod service;
mod subscriptions;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, VARIABLES};

/// Lockstep keeps the incidents of Microsoft Defender XDR and Microsoft Sentinel in step.
#[derive(Parser)]
#[command(name = "lockstep", version, about, long_about = None, after_help = environment())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What `--help` says about the environment.
fn environment() -> String {
    let lines = VARIABLES.iter().map(|(name, what)| format!("  {name:<20} {what}"));
    let lines: Vec<String> = lines.collect();
    format!("Environment variables that override the configuration file:\n{}", lines.join("\n"))
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "lockstep.toml", env = "LOCKSTEP_CONFIG")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.config, &readable(std::env::vars_os()))?)
    }
}

/// The variables, as far as they have names. `std::env::vars` would panic over anybody's that is no Unicode.
fn readable(variables: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect()
}

#[derive(Subcommand)]
enum Command {
    /// Run the service.
    Serve {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Watch incidents cross between an emulated Defender and an emulated Sentinel, on this machine alone.
    #[cfg(feature = "emulator")]
    Demo {
        /// End after the story, with exit code 0 only if every link is in step.
        #[arg(long)]
        once: bool,
    },
    /// Run the emulator of Entra ID, Graph, ARM and ingestion alone. The first line on standard output says where.
    #[cfg(feature = "emulator")]
    Emulator(crate::emulator::Args),
    /// Check the configuration; with --connect, also the way to every tenant and workspace.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Get a token and read one page on each side.
        #[arg(long)]
        connect: bool,
    },
    /// Print the service's own contract: OpenAPI 3.1, as it is served at /openapi.json.
    Openapi,
    /// List the subscriptions to Graph's change notifications that are kept, and how they are. Exit code 2 when one is
    /// not alive.
    Subscriptions {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Print what would be written for one incident, and why. Writes nothing.
    Plan {
        /// The route's name.
        route: String,
        /// The Defender incident's id.
        incident: String,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Tell what was written for one incident, when, and why.
    Explain {
        /// The route's name.
        route: String,
        /// The Defender incident's id.
        incident: String,
        /// How many entries of the journal to look back.
        #[arg(long, default_value_t = 100)]
        last: usize,
        /// As JSON, with every detail and the request ids of both services.
        #[arg(long)]
        json: bool,
        /// Ask the running service at this address, with the first of `api_tokens`: it also knows closed sides, spent
        /// budgets and the last run.
        #[arg(long)]
        url: Option<url::Url>,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Compare both sides of every link, and say where they differ and why. Exit code 2 when they do.
    ///
    /// Differences that the rules of a route leave, and those that a side has no word for, are listed and are no drift.
    Drift {
        /// The route's name; every route when it is left out.
        route: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Ask the running service to look at the links that differ. This command itself writes nothing.
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Copy the incidents of the past. The running service does it, in the background, and goes on after a restart.
    Backfill {
        /// The route's name.
        route: String,
        #[command(flatten)]
        what: backfill::What,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Stop all writes of a route at once. Survives a restart.
    Hold {
        #[command(flatten)]
        which: operate::Which,
        /// Why, for whoever finds it.
        #[arg(long, default_value = "ordered at the command line")]
        reason: String,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Let writes flow again.
    Release {
        #[command(flatten)]
        which: operate::Which,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// List owners who have no counterpart on the other side, over all incidents, and the line that would cure it.
    Owners {
        /// The route's name; every route when it is left out.
        route: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// List what was put aside, and why.
    Parked {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Try a parked incident again.
    Unpark {
        /// As `lockstep parked` prints it: side, tenant or workspace, and id, joined by colons.
        subject: String,
        #[command(flatten)]
        file: ConfigFile,
    },
}

/// Parses the command line, does it, and says by the exit code whether it worked.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One process-wide crypto provider, before anything opens a TLS connection. A second call changes nothing.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lockstep: cannot start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(cli.command));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lockstep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve { file } => serve::run(&file.load()?).await,
        #[cfg(feature = "emulator")]
        Command::Demo { once } => demo::run(once).await,
        #[cfg(feature = "emulator")]
        Command::Emulator(args) => crate::emulator::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Check { file, connect } => check::run(&file.config, file.load(), connect).await,
        Command::Openapi => {
            print!("{}", crate::http::openapi::document_text());
            Ok(ExitCode::SUCCESS)
        }
        Command::Plan { route, incident, file } => plan::run(&file.load()?, &route, &incident).await,
        Command::Explain { route, incident, last, json, url, file } => {
            let asked = explain::Asked { route: &route, incident: &incident, last, json, url };
            explain::run(&file.load()?, asked).await
        }
        Command::Drift { route, json, repair, file } => {
            drift::run(&file.load()?, route.as_deref(), json, repair).await
        }
        Command::Backfill { route, what, file } => backfill::run(&file.load()?, &route, &what).await,
        Command::Hold { which, reason, file } => operate::hold(&file.load()?, &which, &reason).await,
        Command::Release { which, file } => operate::release(&file.load()?, &which).await,
        Command::Subscriptions { json, file } => subscriptions::run(&file.load()?, json).await,
        Command::Owners { route, json, file } => owners::run(&file.load()?, route.as_deref(), json).await,
        Command::Parked { file } => operate::parked(&file.load()?).await,
        Command::Unpark { subject, file } => operate::unpark(&file.load()?, &subject).await,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn somebody_elses_odd_variable_is_no_matter() {
        let odd = || OsString::from_vec(vec![0xff]);
        let variables = [(odd(), "a".into()), ("B".into(), odd()), ("C".into(), "c".into())];
        let read = readable(variables.into_iter());
        assert_eq!(read["C"], "c");
        assert_eq!(read.len(), 2);
    }
}
