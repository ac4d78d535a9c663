//! Looks at every link again, slowly: a lost hint costs time, never data. It only stores hints; the workers do the
//! looking, on the same budgets as everything else. Incidents that never got a link are found by the pollers, which
//! the sweep asks to look further back.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::app::metrics::Metrics;
use crate::app::poll::look_back_name;
use crate::app::routes::Routes;
use crate::domain::model::{LinkKey, Side};
use crate::domain::plan::{format_instant, parse_instant};
use crate::ports::{Clock, Hint, Store, StoreError, Subject};

const FENCE: &str = "sweep";
const LAST: &str = "sweep:last";
const POSITION: &str = "sweep:position";
const FENCE_FOR: Duration = Duration::from_secs(60);
/// How many links a step takes.
const PAGE: usize = 50;

/// How the sweep goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepOptions {
    /// From the start of one sweep to the start of the next.
    pub every: Duration,
    /// The pause between two links: what keeps the sweep from eating the budgets.
    pub pace: Duration,
    /// How far back the pollers are asked to look.
    pub look_back: Duration,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(6 * 60 * 60),
            pace: Duration::from_millis(500),
            look_back: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// A page of links was hinted; there may be more.
    Page(usize),
    /// The last link was hinted.
    Finished,
    /// The next sweep is not due for this long.
    Resting(Duration),
    /// Another replica sweeps.
    NotOurs,
}

/// The sweep.
pub struct Sweeper {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// The routes.
    pub routes: Arc<Routes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// How it goes about it.
    pub options: SweepOptions,
}

impl Sweeper {
    /// Hints one page of links, if a sweep is due or under way.
    pub async fn step(&self) -> Result<Swept, StoreError> {
        let now = self.clock.now();
        let Some(fence) = self.store.take_fence(FENCE, now, now + FENCE_FOR).await? else {
            return Ok(Swept::NotOurs);
        };
        let swept = self.page(now).await;
        self.store.release_fence(&fence).await?;
        swept
    }

    async fn page(&self, now: OffsetDateTime) -> Result<Swept, StoreError> {
        let stored = self.store.value(POSITION).await?.unwrap_or_default();
        let position: Option<LinkKey> = serde_json::from_str(&stored).ok();
        if position.is_none() {
            let last = self.store.value(LAST).await?.as_deref().and_then(parse_instant);
            let due = last.map(|last| last + self.options.every).filter(|due| *due > now);
            if let Some(due) = due {
                return Ok(Swept::Resting((due - now).try_into().unwrap_or_default()));
            }
            self.ask_pollers(now).await?;
            // From the start of this sweep: one that takes long does not push the next one away.
            self.store.set_value(LAST, &format_instant(now)).await?;
        }
        let links = self.store.links(None, position.as_ref(), PAGE).await?;
        let Some(last) = links.last().map(|link| link.key.clone()) else {
            self.store.set_value(POSITION, "").await?;
            return Ok(Swept::Finished);
        };
        let hints: Vec<Hint> = links
            .iter()
            .filter(|link| self.routes.of_link(&link.key).is_some())
            .map(|link| Hint {
                subject: Subject {
                    side: Side::Defender,
                    scope: link.key.tenant_id.clone(),
                    native_id: link.key.incident_id.clone(),
                },
                version: None,
                source: "sweep".into(),
            })
            .collect();
        self.metrics.swept(hints.len() as u64);
        if !hints.is_empty() {
            self.store.remember(hints, None, now).await?;
        }
        // After the hints: a crash between the two hints a page twice.
        let position =
            serde_json::to_string(&last).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.store.set_value(POSITION, &position).await?;
        Ok(Swept::Page(links.len()))
    }

    async fn ask_pollers(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let since = format_instant(now - self.options.look_back);
        for (tenant_id, _) in self.routes.tenants() {
            self.store.set_value(&look_back_name(Side::Defender, tenant_id), &since).await?;
        }
        Ok(())
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.step().await {
                Ok(Swept::Page(links)) => self.options.pace.saturating_mul(u32::try_from(links).unwrap_or(1)),
                Ok(Swept::Finished) => Duration::from_secs(1),
                Ok(Swept::Resting(pause)) => pause.min(Duration::from_secs(60)),
                Ok(Swept::NotOurs) => Duration::from_secs(60),
                Err(error) => {
                    tracing::warn!(%error, "the sweep cannot go on; trying again");
                    Duration::from_secs(10)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
