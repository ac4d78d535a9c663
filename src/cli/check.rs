//! `lockstep check`: everything that can be known before the service runs. Each line says what was tried and, where it
//! failed, what to do.

use std::path::Path;
use std::process::ExitCode;

use super::operate;
use super::service::{Sides, watched};
use crate::adapters::clock::SystemClock;
use crate::app::native;
use crate::config::Config;
use crate::domain::policy::Native;
use crate::ports::Clock;

pub(super) async fn run(
    file: &Path,
    config: anyhow::Result<Config>,
    connect: bool,
) -> anyhow::Result<ExitCode> {
    let config = config?;
    println!(
        "ok    {}: {} tenant(s), {} workspace(s), {} route(s)",
        file.display(),
        config.tenants.len(),
        config.workspaces.len(),
        config.routes.len()
    );
    if config.routes.is_empty() {
        println!(
            "      there is no route: nothing is kept in step until a [[routes]] joins a tenant and a workspace"
        );
    }
    if !connect {
        println!("      the tenants and workspaces were not asked; --connect does that");
        return Ok(ExitCode::SUCCESS);
    }
    let mut failed = 0_u32;
    let mut line = |what: &str, outcome: Result<String, String>| match outcome {
        Ok(said) => println!("ok    {what}: {said}"),
        Err(why) => {
            failed += 1;
            println!("FAIL  {what}: {why}");
        }
    };
    let store = match operate::open(&config).await {
        Ok(store) => {
            store.ping().await.map(|()| "takes commits".to_owned()).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("{error:#}")),
    };
    line("store", store);
    let sides = Sides::new(&config, &watched(&config))?;
    for (name, defender) in &sides.defenders {
        line(
            &format!("tenant {name}, Defender"),
            defender.check().await.map_err(|failure| failure.to_string()),
        );
    }
    for (name, sentinel) in &sides.sentinels {
        line(
            &format!("workspace {name}, Sentinel"),
            sentinel.check().await.map_err(|failure| failure.to_string()),
        );
    }
    for route in sides.routes.all() {
        // What cannot be read is a FAIL above.
        if let Ok(Some(twin)) = native::example(route, SystemClock.now()).await {
            let what = match route.policy.native {
                Native::Refuse => "native_connector is `refuse`: nothing is created",
                Native::Skip => "native_connector is `skip`: nothing is created",
                Native::Adopt => "native_connector is `adopt`: its twins are linked",
            };
            println!(
                "      route {}: Microsoft's own connector serves this tenant and workspace (it made {}); {what}",
                route.name, twin.name
            );
        }
    }
    for workspace in &config.workspaces {
        if !sides.sentinels.iter().any(|(name, _)| *name == workspace.name) {
            println!("      workspace {} is on no route and was not asked", workspace.name);
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
