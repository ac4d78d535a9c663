//! Owners who have no counterpart on the other side, over all incidents: kept in the store, one value for each incident,
//! from the run that met the owner until one that maps the incident's owner.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::domain::model::{LinkKey, Side};
use crate::domain::owners::{Unmapped, Why};
use crate::domain::policy::Policy;
use crate::ports::{Store, StoreError};

/// What the names of the values begin with.
const PREFIX: &str = "unmapped-owner:";
/// How many values are read at once.
const AT_ONCE: usize = 1_000;
/// How many incidents are named for one owner.
const EXAMPLES: usize = 5;

/// One incident's owner, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    route: String,
    incident: String,
    owner: Unmapped,
    #[serde(with = "time::serde::rfc3339")]
    first: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    last: OffsetDateTime,
}

/// One owner of one route without a counterpart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The route.
    pub route: String,
    /// The side that has the owner; the other one lacks them.
    pub side: Side,
    /// As that side calls them: a principal name, an address, an object id, a display name.
    pub owner: String,
    /// How many incidents are theirs.
    pub incidents: usize,
    /// Some of them, by Defender's id.
    pub examples: Vec<String>,
    /// When the first was met.
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen: OffsetDateTime,
    /// When the last was met.
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen: OffsetDateTime,
    /// In short.
    pub reason: &'static str,
    /// In words.
    pub why: String,
    /// The line of the route's `[routes.owners]` that would map them.
    pub cure: Option<String>,
    /// Whether the configuration maps them by now: each incident follows when it is looked at again.
    pub mapped_now: bool,
}

fn name_of(route: &str, key: &LinkKey) -> String {
    format!("{PREFIX}{route}/{}/{}", key.tenant_id, key.incident_id)
}

/// Keeps what a run found out about an incident's owner. `None`: they have a counterpart.
pub(crate) async fn keep(
    store: &dyn Store,
    route: &str,
    key: &LinkKey,
    owner: Option<&Unmapped>,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let name = name_of(route, key);
    let Some(owner) = owner else { return store.remove_value(&name).await };
    let known: Option<Noted> = store.value(&name).await?.and_then(|value| serde_json::from_str(&value).ok());
    let first = known
        .filter(|known| known.owner.side == owner.side && known.owner.name == owner.name)
        .map_or(now, |known| known.first);
    let noted = Noted {
        route: route.to_owned(),
        incident: key.incident_id.clone(),
        owner: owner.clone(),
        first,
        last: now,
    };
    let value = serde_json::to_string(&noted).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    store.set_value(&name, &value).await
}

/// Everybody without a counterpart, of one route or of all, those with the most incidents first. `policy` says the rules
/// of a route, where it is still configured.
pub async fn report<'p>(
    store: &dyn Store,
    route: Option<&str>,
    policy: impl Fn(&str) -> Option<&'p Policy>,
) -> Result<Vec<Line>, StoreError> {
    let prefix = route.map_or_else(|| PREFIX.to_owned(), |route| format!("{PREFIX}{route}/"));
    let mut lines: BTreeMap<(String, Side, String), Line> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let values = store.values(&prefix, after.as_deref(), AT_ONCE).await?;
        let more = values.len() == AT_ONCE;
        after = values.last().map(|(name, _)| name.clone());
        // What another version wrote and this one cannot read is no reason to tell of nobody.
        let noted = values.iter().filter_map(|(_, value)| serde_json::from_str::<Noted>(value).ok());
        for Noted { route: of, incident, owner, first, last } in
            noted.filter(|noted| route.is_none_or(|route| noted.route == route))
        {
            let rules = policy(&of);
            let line =
                lines.entry((of.clone(), owner.side, owner.name.to_lowercase())).or_insert_with(|| Line {
                    route: of,
                    side: owner.side,
                    owner: owner.name.clone(),
                    incidents: 0,
                    examples: Vec::new(),
                    first_seen: first,
                    last_seen: last,
                    reason: owner.why.as_str(),
                    why: owner.why.to_string(),
                    cure: rules.map(|rules| owner.cure(&rules.owners)),
                    mapped_now: rules.is_some_and(|rules| owner.is_ruled(&rules.owners)),
                });
            line.incidents += 1;
            if line.examples.len() < EXAMPLES {
                line.examples.push(incident);
            }
            line.first_seen = line.first_seen.min(first);
            if last > line.last_seen {
                (line.last_seen, line.reason, line.why) = (last, owner.why.as_str(), owner.why.to_string());
            }
        }
        if !more {
            break;
        }
    }
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.incidents));
    Ok(lines)
}

/// What a person may do beside the line of the configuration.
pub fn advice(line: &Line) -> Option<&'static str> {
    if line.mapped_now {
        return Some(
            "mapped by now: each incident follows when it is looked at again, as `lockstep drift --repair` asks",
        );
    }
    [Why::Deleted, Why::Ambiguous].iter().find(|why| why.as_str() == line.reason).map(|why| match why {
        Why::Deleted => "the account is gone: give the incidents to somebody else",
        _ => "owners that are written as principal names can be looked up",
    })
}
