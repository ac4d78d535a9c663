//! Microsoft's own connector beside us. It serves a pair of tenant and workspace when the workspace holds incidents that
//! it made of the tenant's (`providerName` is `Microsoft XDR`, `sentinel.md` §18). Then a twin of ours would be a double:
//! what to do instead is the route's policy.
//!
//! A pair is looked over once before its first twin is made; afterwards the poller tells of every such incident.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::app::reconcile::{store_failure, twin_id};
use crate::app::routes::{Route, Routes};
use crate::domain::failure::Failure;
use crate::domain::model::{LinkKey, SentinelIncident, Side};
use crate::domain::plan::{format_instant, parse_instant};
use crate::domain::policy::Native;
use crate::ports::{Hint, Store, StoreError, Subject};

/// How far a workspace is looked back over before the first twin is made in it.
const LOOK_OVER: time::Duration = time::Duration::days(30);
/// How many pages of it.
const MOST_PAGES: u32 = 50;
/// A connector of which nothing new was seen for so long is taken to be switched off.
const SILENT: time::Duration = time::Duration::days(30);

/// What a route's policy makes of the connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// It does not serve the pair: the twin is ours to make.
    Ours,
    /// No twin is to be made: why.
    Leave(String),
    /// The connector's twin of this name is to be linked.
    Adopt(String),
}

/// One incident that the connector made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeTwin {
    /// Its name.
    pub name: String,
    /// The Defender incident that it is a copy of.
    pub incident_id: String,
    /// The tenant of that incident, where the record names it.
    pub tenant_id: Option<String>,
    /// When it last changed.
    pub modified: OffsetDateTime,
}

impl NativeTwin {
    /// What a record says of itself; `None` for all that the connector did not make.
    pub fn of(record: &SentinelIncident) -> Option<Self> {
        let made = record.provider.as_deref().is_some_and(|by| by.eq_ignore_ascii_case("Microsoft XDR"));
        let incident_id = record.provider_incident_id.clone().filter(|_| made)?;
        let tenant_id = record.provider_url.as_deref().and_then(|text| {
            let url = url::Url::parse(text).ok()?;
            let (_, tenant) = url.query_pairs().find(|(name, _)| name.eq_ignore_ascii_case("tid"))?;
            Some(tenant.to_lowercase())
        });
        Some(Self { name: record.name.clone(), incident_id, tenant_id, modified: record.modified })
    }

    /// Whether it is a copy of one of this route's incidents. The connector works inside one tenant: a record that does
    /// not name it is of the workspace's own.
    fn is_of(&self, route: &Route) -> bool {
        *self.tenant_id.as_deref().unwrap_or(&route.home) == *route.tenant_id
    }
}

/// That the connector serves a pair, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// One of its twins, for people.
    pub example: String,
    /// When the newest of them last changed, as RFC 3339.
    pub newest: String,
}

/// The name of the value that says that the connector serves a pair.
pub fn served_name(tenant_id: &str, workspace: &str) -> String {
    format!("native:{tenant_id}{workspace}")
}

fn twin_name(key: &LinkKey) -> String {
    format!("native-twin:{}/{}{}", key.tenant_id, key.incident_id, key.workspace)
}

fn looked_name(tenant_id: &str, workspace: &str) -> String {
    format!("native-looked:{tenant_id}{workspace}")
}

/// Whether the connector serves a route's pair, as far as is known.
pub async fn served(
    store: &dyn Store,
    route: &Route,
    now: OffsetDateTime,
) -> Result<Option<Served>, StoreError> {
    let value = store.value(&served_name(&route.tenant_id, &route.workspace)).await?;
    let served: Option<Served> = value.and_then(|value| serde_json::from_str(&value).ok());
    Ok(served.filter(|served| parse_instant(&served.newest).is_some_and(|newest| now - newest < SILENT)))
}

/// Whether a twin is ours to make, for an incident that has none yet.
pub(crate) async fn consult(
    store: &dyn Store,
    pair: &[Arc<Route>],
    route: &Route,
    key: &LinkKey,
    now: OffsetDateTime,
) -> Result<Advice, Failure> {
    look_over(store, pair, now).await?;
    advice(store, route, key, now).await
}

/// The same from what is known already: asks and stores nothing.
pub(crate) async fn advice(
    store: &dyn Store,
    route: &Route,
    key: &LinkKey,
    now: OffsetDateTime,
) -> Result<Advice, Failure> {
    let Some(Served { example, .. }) = served(store, route, now).await.map_err(store_failure)? else {
        return Ok(Advice::Ours);
    };
    match route.policy.native {
        Native::Refuse => Ok(Advice::Leave(format!(
            "Microsoft's own connector serves this tenant and workspace (it made {example}), and native_connector is \
             `refuse`: nothing is created"
        ))),
        Native::Skip => Ok(Advice::Leave(
            "Microsoft's own connector serves this tenant and workspace, and native_connector is `skip`"
                .to_owned(),
        )),
        Native::Adopt => match store.value(&twin_name(key)).await.map_err(store_failure)? {
            Some(name) if !name.is_empty() => Ok(Advice::Adopt(name)),
            _ => Ok(Advice::Leave(
                "Microsoft's own connector serves this tenant and workspace, and has not made its twin yet"
                    .to_owned(),
            )),
        },
    }
}

/// What is to be told of a pair that the connector serves, to a person who starts the service or checks it.
pub fn told(route: &Route, served: &Served) -> String {
    let Served { example, newest } = served;
    let what = match route.policy.native {
        Native::Refuse => {
            "native_connector is `refuse`: nothing is created. Switch the connector off, or set native_connector to `adopt` \
             or `skip`"
        }
        Native::Skip => "native_connector is `skip`: nothing is created",
        Native::Adopt => "native_connector is `adopt`: its twins are linked",
    };
    format!(
        "route {}: Microsoft's own connector serves this tenant and workspace (it made {example}, which last changed at \
         {newest}); {what}",
        route.name
    )
}

/// Tells of every pair that the connector is known to serve. What is not known yet is told when it is found.
pub async fn report(store: &dyn Store, routes: &Routes, now: OffsetDateTime) -> Result<(), StoreError> {
    for route in routes.all() {
        let Some(served) = served(store, route, now).await? else { continue };
        match route.policy.native {
            Native::Refuse => tracing::warn!("{}", told(route, &served)),
            Native::Skip | Native::Adopt => tracing::info!("{}", told(route, &served)),
        }
    }
    Ok(())
}

/// One of the connector's twins of a route's incidents, read from the workspace: for those who ask before the service
/// runs. Stores nothing.
pub async fn example(route: &Route, now: OffsetDateTime) -> Result<Option<NativeTwin>, Failure> {
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let page = route.sentinel.changed_since(now - LOOK_OVER, next.as_deref()).await?;
        let mut twins = page.records.iter().filter_map(NativeTwin::of);
        let found =
            twins.find(|twin| twin.is_of(route) && twin.name != twin_id(&route.key(&twin.incident_id)));
        next = page.next;
        if found.is_some() || next.is_none() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Reads the workspace's incidents of the last weeks, once per pair: the first twin must not be a double.
async fn look_over(store: &dyn Store, pair: &[Arc<Route>], now: OffsetDateTime) -> Result<(), Failure> {
    let Some(route) = pair.first() else { return Ok(()) };
    let name = looked_name(&route.tenant_id, &route.workspace);
    if store.value(&name).await.map_err(store_failure)?.is_some() {
        return Ok(());
    }
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let page = route.sentinel.changed_since(now - LOOK_OVER, next.as_deref()).await?;
        for twin in page.records.iter().filter_map(NativeTwin::of) {
            note(store, pair, &twin, now).await.map_err(store_failure)?;
        }
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    store.set_value(&name, &format_instant(now)).await.map_err(store_failure)
}

/// Remembers a connector's twin for every route that it concerns, and hints its incident. Returns how many twins are
/// doubles: their incident has a twin of ours.
pub(crate) async fn found(
    store: &dyn Store,
    routes: &Routes,
    workspace: &str,
    twin: &NativeTwin,
    now: OffsetDateTime,
) -> Result<usize, StoreError> {
    let (mut doubles, mut tenants) = (0, BTreeSet::new());
    for route in routes.of_workspace(workspace) {
        if tenants.insert(&route.tenant_id) {
            let pair = routes.of_pair(&route.key(&twin.incident_id));
            doubles += usize::from(note(store, pair, twin, now).await?);
        }
    }
    Ok(doubles)
}

async fn note(
    store: &dyn Store,
    pair: &[Arc<Route>],
    twin: &NativeTwin,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let Some(route) = pair.first().filter(|route| twin.is_of(route)) else { return Ok(false) };
    // In an onboarded workspace a twin of ours may carry the connector's name.
    let key = route.key(&twin.incident_id);
    let ours = store.links_of_twin(&route.workspace, &twin.name).await?;
    if twin.name == twin_id(&key) || ours.iter().any(|link| link.key != key || !is_adopted(&link.state)) {
        return Ok(false);
    }
    let name = served_name(&route.tenant_id, &route.workspace);
    let known: Option<Served> = store.value(&name).await?.and_then(|value| serde_json::from_str(&value).ok());
    let newest = format_instant(twin.modified);
    let newer = known.as_ref().is_none_or(|known| {
        parse_instant(&known.newest).is_none_or(|at| twin.modified - at > time::Duration::hours(1))
    });
    if newer {
        if known.is_none() {
            tracing::warn!(
                route = route.name, twin = twin.name, policy = ?route.policy.native,
                "Microsoft's own connector serves this tenant and workspace"
            );
        }
        let served = Served { example: twin.name.clone(), newest };
        let value = serde_json::to_string(&served).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        store.set_value(&name, &value).await?;
    }
    let name = twin_name(&key);
    if store.value(&name).await?.as_deref() == Some(&twin.name) {
        return Ok(false);
    }
    store.set_value(&name, &twin.name).await?;
    let link = store.link(&key).await?;
    let double = link.as_ref().is_some_and(|link| link.sentinel_id != twin.name);
    if double {
        tracing::warn!(
            link = %key, native = twin.name,
            "Microsoft's own connector has made a twin beside ours: one of the two should be switched off"
        );
    } else if pair.iter().any(|route| route.policy.native == Native::Adopt) {
        let subject = Subject {
            side: Side::Defender,
            scope: route.tenant_id.clone(),
            native_id: twin.incident_id.clone(),
        };
        let hint = Hint { subject, version: None, source: "native".into() };
        store.remember(vec![hint], None, now).await?;
    }
    Ok(double)
}

fn is_adopted(state: &str) -> bool {
    serde_json::from_str::<crate::domain::plan::LinkState>(state).is_ok_and(|state| state.adopted)
}
