//! What an operator orders at night: stop and resume writes, look at what was put aside, try it again. These commands
//! talk to the store, not to the running service, so they work while it is down and hold after it restarts.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;

use crate::adapters::clock::SystemClock;
use crate::adapters::store;
use crate::config::Config;
use crate::domain::model::Side;
use crate::ports::{Clock, Hold, Store, Subject};

/// How many parked rows are listed.
const MOST_LISTED: usize = 1_000;

/// A route, or all of them.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// The route's name.
    route: Option<String>,
    /// Every route.
    #[arg(long)]
    all: bool,
}

impl Which {
    /// The name under which the store keeps it: the route, checked against the configuration, or `*`.
    fn named(&self, config: &Config) -> anyhow::Result<String> {
        match &self.route {
            None => Ok("*".to_owned()),
            Some(name) if config.routes.iter().any(|route| route.name == *name) => Ok(name.clone()),
            Some(name) => Err(no_route(config, name)),
        }
    }
}

/// The error for a route that the configuration does not have.
pub(super) fn no_route(config: &Config, name: &str) -> anyhow::Error {
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    anyhow::anyhow!("no route is called {name:?}; the configuration has {}", names.join(", "))
}

/// Opens the configured store.
pub(super) async fn open(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    store::open(config.store_url.expose_secret()).await.context("store.url")
}

pub(super) async fn hold(config: &Config, which: &Which, reason: &str) -> anyhow::Result<ExitCode> {
    let route = which.named(config)?;
    let reason = match by_whom(|name| std::env::var(name).ok()) {
        Some(who) => format!("{reason} (by {who})"),
        None => reason.to_owned(),
    };
    let hold = Hold { route: route.clone(), since: SystemClock.now(), reason };
    open(config).await?.hold(&hold).await?;
    println!("{} held: nothing is written until `lockstep release`", all_or(&route));
    Ok(ExitCode::SUCCESS)
}

/// Who types, as far as the machine knows: behind `sudo`, whoever called it.
fn by_whom(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let plain = |name: &String| {
        (1..=64).contains(&name.len()) && name.chars().all(|one| one.is_ascii_graphic() || one == ' ')
    };
    ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| variable(name).filter(plain))
}

pub(super) async fn release(config: &Config, which: &Which) -> anyhow::Result<ExitCode> {
    let route = which.named(config)?;
    let store = open(config).await?;
    let lifted = store.release(&route).await?;
    match lifted {
        0 => println!("{} was not held", all_or(&route)),
        _ => println!("{} released", all_or(&route)),
    }
    // A hold on everything also holds a route that has none of its own.
    for hold in store.holds().await? {
        println!("still held: {} since {} ({})", all_or(&hold.route), hold.since, hold.reason);
    }
    Ok(ExitCode::SUCCESS)
}

fn all_or(route: &str) -> String {
    if route == "*" { "every route".to_owned() } else { format!("route {route}") }
}

pub(super) async fn parked(config: &Config) -> anyhow::Result<ExitCode> {
    let parked = open(config).await?.parked(MOST_LISTED).await?;
    for row in &parked {
        println!("{}\n    since {}: {}", row.subject, row.since, row.reason);
    }
    println!("{} parked", parked.len());
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn unpark(config: &Config, subject: &str) -> anyhow::Result<ExitCode> {
    let subject = parse_subject(subject)?;
    if !open(config).await?.unpark(&subject, SystemClock.now()).await? {
        bail!("{subject} is not parked; `lockstep parked` lists what is");
    }
    println!("{subject} will be tried again");
    Ok(ExitCode::SUCCESS)
}

/// `side:scope:id`, as [`Subject`] prints itself. Neither tenant ids nor resource ids hold a colon; ids might.
fn parse_subject(text: &str) -> anyhow::Result<Subject> {
    let mut parts = text.splitn(3, ':');
    let side = match parts.next() {
        Some("defender") => Side::Defender,
        Some("sentinel") => Side::Sentinel,
        _ => bail!("{text:?} does not begin with defender: or sentinel:; copy it from `lockstep parked`"),
    };
    let (Some(scope), Some(native_id)) = (parts.next(), parts.next()) else {
        bail!("{text:?} is not side:scope:id; copy it from `lockstep parked`");
    };
    Ok(Subject { side, scope: scope.to_lowercase(), native_id: native_id.to_owned() })
}

/// A route by its name, and the link of one of its incidents.
pub(super) fn link_of<'c>(
    config: &'c Config,
    route: &str,
    incident: &str,
) -> Option<(&'c crate::config::Route, crate::domain::model::LinkKey)> {
    let found = config.routes.iter().find(|known| known.name == route)?;
    let (tenant, workspace) = (config.tenant(&found.tenant)?, config.workspace(&found.workspace)?);
    let key = crate::domain::model::LinkKey {
        tenant_id: tenant.tenant_id.clone(),
        incident_id: incident.to_owned(),
        workspace: workspace.resource_id(),
    };
    Some((found, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_called_sudo_holds() {
        let of = |known: &'static [(&str, &str)]| {
            by_whom(|name| known.iter().find(|(of, _)| *of == name).map(|(_, who)| (*who).to_owned()))
        };
        assert_eq!(of(&[("USER", "root"), ("SUDO_USER", "ada")]).as_deref(), Some("ada"));
        assert_eq!(of(&[("USER", ""), ("LOGNAME", "bo")]).as_deref(), Some("bo"));
        assert_eq!(of(&[("USER", "two\nlines")]), None);
    }

    #[test]
    fn a_printed_subject_is_read_back() {
        let subject = Subject {
            side: Side::Sentinel,
            scope: "/subscriptions/s/resourcegroups/g".to_owned(),
            native_id: "odd:id".to_owned(),
        };
        assert_eq!(parse_subject(&subject.to_string()).expect("ours"), subject);
        assert!(parse_subject("defender:t").is_err());
        assert!(parse_subject("elsewhere:t:1").is_err());
    }
}
