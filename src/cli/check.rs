//! `lockstep check`: everything that can be known before the service runs. Each line says what was tried and, where it
//! failed, what to do.

use std::path::Path;
use std::process::ExitCode;

use super::operate;
use super::service::{Sides, watched};
use crate::adapters::clock::SystemClock;
use crate::app::native;
use crate::config::Config;
use crate::domain::plan::format_instant;
use crate::domain::policy::Native;
use crate::http::tls::Certificates;
use crate::ports::{Clock, Subscriptions as _};

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
    for overlap in config.overlaps() {
        println!("{}  {overlap}", if overlap.never { "warn" } else { "    " });
    }
    if let Some(tls) = &config.server.tls {
        // What is read here is thrown away: the service reads the files itself.
        if let Err(why) = Certificates::load(tls) {
            println!("FAIL  server.tls: {why}");
            return Ok(ExitCode::FAILURE);
        }
        println!("ok    server.tls: certificate and key go together");
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
    let opened = operate::open(&config).await;
    let store = match &opened {
        Ok(store) => {
            store.ping().await.map(|()| "takes commits".to_owned()).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("{error:#}")),
    };
    line("store", store);
    let opened = opened.ok();
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
    if let Some(store) = &opened {
        match sides.keyring.reload(&**store).await {
            Ok(wrong) => wrong.into_iter().for_each(|why| line("certificate", Err(why))),
            Err(error) => line("certificate", Err(error.to_string())),
        }
    }
    for (name, subscriptions) in &sides.subscriptions {
        let wished = config.tenant(name).is_some_and(|tenant| !tenant.subscriptions.is_empty());
        if wished {
            let listed = subscriptions.list().await.map_err(|failure| failure.to_string());
            line(
                &format!("tenant {name}, subscriptions"),
                listed.map(|all| format!("{} in Graph, of this application", all.len())),
            );
        }
    }
    for route in sides.routes.all() {
        // What cannot be read is a FAIL above; then what the service has found out holds.
        let now = SystemClock.now();
        let read = native::example(route, now)
            .await
            .unwrap_or_default()
            .map(|twin| native::Served { example: twin.name, newest: format_instant(twin.modified) });
        let known = match &opened {
            Some(store) => native::served(&**store, route, now).await.unwrap_or_default(),
            None => None,
        };
        if let Some(served) = read.or(known) {
            let refused = route.policy.native == Native::Refuse;
            println!("{}  {}", if refused { "warn" } else { "    " }, native::told(route, &served));
        }
    }
    for workspace in &config.workspaces {
        if !sides.sentinels.iter().any(|(name, _)| *name == workspace.name) {
            println!("      workspace {} is on no route and was not asked", workspace.name);
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
