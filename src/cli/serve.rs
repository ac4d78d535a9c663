//! `lockstep serve`: runs until it is told to stop, and says in between where it listens.

use std::process::ExitCode;

use tracing::info;

use super::service::{self, Service};
use crate::config::Config;
use crate::telemetry::{self, VERSION};

pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    telemetry::start(&config.log);
    let mut service = Service::start(config, None).await?;
    info!(
        version = VERSION,
        routes = config.routes.len(),
        "Lockstep listens on {}://{}; {} route(s)",
        if config.server.tls.is_some() { "https" } else { "http" },
        service.address,
        config.routes.len()
    );
    if config.routes.is_empty() {
        tracing::warn!(
            "there is no route: nothing is kept in step until a [[routes]] joins a tenant and a workspace"
        );
    }
    for workspace in config.workspaces.iter().filter(|workspace| workspace.webhook_secrets.is_empty()) {
        info!(
            "workspace {} has no webhook_secrets: its playbook door is shut, polling finds its changes",
            workspace.name
        );
    }
    for overlap in config.overlaps() {
        match overlap.never {
            true => tracing::warn!("{overlap}"),
            false => info!("{overlap}"),
        }
    }
    for hold in service.store.holds().await? {
        let which =
            if hold.route == "*" { "every route".to_owned() } else { format!("route {}", hold.route) };
        tracing::warn!(
            "{which} is held since {}: {}. Nothing is written there until `lockstep release`",
            hold.since,
            hold.reason
        );
    }
    let code = tokio::select! {
        interrupted = service::interrupted() => {
            interrupted?;
            ExitCode::SUCCESS
        }
        () = service.broken() => ExitCode::FAILURE,
    };
    service.stop().await;
    info!("stopped");
    Ok(code)
}
