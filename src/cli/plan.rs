//! `lockstep plan`: what would be written for one incident, and why. Reads both sides; writes nothing, there or here.

use std::process::ExitCode;
use std::sync::Arc;

use super::operate::{self, no_route};
use super::service::{Sides, watched};
use crate::adapters::clock::SystemClock;
use crate::app::metrics::Metrics;
use crate::app::reconcile::Reconciler;
use crate::config::Config;

pub(super) async fn run(config: &Config, route: &str, incident: &str) -> anyhow::Result<ExitCode> {
    let sides = Sides::new(config, &watched(config))?;
    let Some(route) = sides.routes.all().iter().find(|known| known.name == route) else {
        return Err(no_route(config, route));
    };
    let store = operate::open(config).await?;
    let reconciler = Reconciler {
        store: store.clone(),
        clock: Arc::new(SystemClock),
        metrics: Metrics::default(),
        watch: None,
    };
    let key = route.key(incident);
    let plan = reconciler.look(route, &key).await?;
    println!("{key}");
    for line in plan.to_string().lines() {
        println!("  {line}");
    }
    if let Some(reason) = reconciler.left_alone(sides.routes.of_pair(&key), route, &key).await? {
        println!("  but nothing is written: {reason}");
    }
    if route.policy.shadow {
        println!("  but nothing is written: the route is in shadow");
    }
    if let Some(reason) = store.link(&key).await?.and_then(|link| link.parked) {
        println!("  but the link is put aside: {reason}");
    }
    for hold in store.holds().await?.iter().filter(|hold| hold.route == "*" || hold.route == route.name) {
        println!("  but writes are held since {}: {}", hold.since, hold.reason);
    }
    Ok(ExitCode::SUCCESS)
}
