//! `lockstep subscriptions`: the subscriptions to Graph's change notifications and how they are. From the store; asks
//! nobody.

use std::process::ExitCode;

use super::operate;
use super::service::wishes;
use crate::adapters::clock::SystemClock;
use crate::app::subscriptions::{Shown, records, shown};
use crate::config::Config;
use crate::ports::Clock;

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let store = operate::open(config).await?;
    let now = SystemClock.now();
    let mut all: Vec<Shown> = Vec::new();
    for tenant in &config.tenants {
        let elsewhere = |other: &crate::config::Tenant| {
            other.tenant_id == tenant.tenant_id
                && other.name != tenant.name
                && !other.subscriptions.is_empty()
        };
        if tenant.subscriptions.is_empty() && config.tenants.iter().any(elsewhere) {
            continue;
        }
        let stored = records(&*store, &tenant.tenant_id).await?;
        let named = shown(&tenant.tenant_id, &wishes(tenant), &stored, now);
        all.extend(named.into_iter().map(|one| Shown { tenant: tenant.name.clone(), ..one }));
    }
    let alive = all.iter().all(|one| matches!(one.state, "active" | "failing"));
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        all.iter().for_each(|one| print!("{}", told(one)));
        println!("{} subscription(s)", all.len());
    }
    Ok(if alive { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A subscription in lines for a person.
fn told(one: &Shown) -> String {
    let Shown { tenant, resource, state, expires, certificate, error } = one;
    let mut line = format!("{state:<8} {tenant}: {resource}");
    if let Some(expires) = expires {
        line.push_str(&format!(", until {}", expires.replace_nanosecond(0).unwrap_or(*expires)));
    }
    if let Some(certificate) = certificate {
        line.push_str(&format!(", encrypted for {certificate}"));
    }
    line.push('\n');
    if let Some(error) = error {
        line.push_str(&format!("         {error}\n"));
    }
    line
}
