//! What happened to one incident and why, or why nothing did: from the store alone, so that it can be asked at any time
//! and costs neither side a call. Used by the command line and by the API.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::app::native;
use crate::domain::model::{LinkKey, Side};
use crate::domain::plan::{LinkState, format_instant};
use crate::domain::policy::{Native, Policy};
use crate::ports::{JournalEntry, LinkRecord, Store, StoreError};

/// How many parked rows are looked through for the incident's.
const PARKED: usize = 10_000;

/// All that is known of one incident on one route.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Which link.
    pub key: LinkKey,
    /// The link as stored.
    pub link: Option<LinkRecord>,
    /// What the link's state says, if it reads.
    pub state: Option<LinkState>,
    /// The journal, oldest first.
    pub entries: Vec<JournalEntry>,
    /// Why nothing is written, each reason a sentence; empty where nothing stands in the way.
    pub why_not: Vec<String>,
}

/// Reads it all.
pub async fn explain(
    store: &dyn Store,
    route: &str,
    policy: &Policy,
    key: LinkKey,
    most: usize,
    now: OffsetDateTime,
) -> Result<Explanation, StoreError> {
    let link = store.link(&key).await?;
    let state: Option<LinkState> = link.as_ref().and_then(|link| serde_json::from_str(&link.state).ok());
    let entries = store.journal(&key, most).await?;
    let mut why_not = Vec::new();
    for hold in store.holds().await? {
        if hold.route == "*" || hold.route == route {
            why_not.push(format!("writes are held since {}: {}", format_instant(hold.since), hold.reason));
        }
    }
    for parked in store.parked(PARKED).await? {
        let subject = &parked.subject;
        let defender = subject.side == Side::Defender
            && subject.scope == key.tenant_id
            && subject.native_id == key.incident_id;
        let sentinel = link.as_ref().is_some_and(|link| {
            subject.side == Side::Sentinel
                && subject.scope == key.workspace
                && subject.native_id == link.sentinel_id
        });
        if defender || sentinel {
            let since = format_instant(parked.since);
            why_not.push(format!("its row in the queue is put aside since {since}: {}", parked.reason));
        }
    }
    if let Some(reason) = link.as_ref().and_then(|link| link.parked.clone()) {
        why_not.push(format!("the link is put aside: {reason}"));
    }
    match &state {
        None => {
            let served = store.value(&native::served_name(&key.tenant_id, &key.workspace)).await?;
            if served.is_some() && policy.native != Native::Adopt {
                why_not.push(format!(
                    "Microsoft's own connector serves this tenant and workspace, and native_connector is `{}`",
                    if policy.native == Native::Refuse { "refuse" } else { "skip" }
                ));
            } else if served.is_some() {
                why_not.push("Microsoft's own connector has not made its twin yet".to_owned());
            }
            why_not.push(
                "there is no link: the incident was never seen, or the route's filter is not content with it; \
                 `lockstep plan` reads it and says which"
                    .to_owned(),
            );
        }
        Some(state) => {
            why_not.extend(state.unlinked.clone());
            if let (Some(after), Some(since)) = (policy.freeze_after, state.closed_since)
                && now - since > after
            {
                why_not.push(format!("it is frozen: both sides are closed since {}", format_instant(since)));
            }
            if state.left_out {
                why_not.push("it was closed because it no longer matches the route's filter".to_owned());
            }
            if let Some(winner) = &state.merged_into {
                why_not.push(format!("it was merged into incident {winner}"));
            }
            for refused in &state.refused {
                why_not.push(format!(
                    "{} was refused by {}: {}",
                    refused.field.as_str(),
                    refused.side,
                    refused.why
                ));
            }
            for reason in state.hung.comments.parked() {
                why_not.push(format!("a comment was refused: {reason}"));
            }
            for (alert, refused) in &state.hung.alerts_refused {
                let names: Vec<&str> = refused.patch.apart().into_iter().map(|(name, _)| name).collect();
                let what = names.join(" and ");
                why_not.push(format!("alert {alert} does not follow in {what}: {}", refused.why));
            }
            if let Some(why) = &state.hung.follow_waits {
                why_not.push(format!("alerts do not follow for now: {why}"));
            }
            if policy.shadow {
                why_not.push("the route is in shadow: nothing is written".to_owned());
            }
        }
    }
    Ok(Explanation { key, link, state, entries, why_not })
}

impl Explanation {
    /// As the API and `--json` give it.
    pub fn to_json(&self) -> Value {
        let unproved = self.state.as_ref().map_or(0, |state| state.intents.len());
        json!({
            "tenant_id": self.key.tenant_id,
            "incident_id": self.key.incident_id,
            "workspace": self.key.workspace,
            "route": self.link.as_ref().map(|link| &link.route),
            "twin": self.link.as_ref().map(|link| &link.sentinel_id),
            "agreed": self.state.as_ref().and_then(|state| state.known.as_ref()).map(|known| json!({
                "defender": format_instant(known.defender_updated), "sentinel": known.sentinel_etag,
            })),
            "unproved_writes": unproved,
            "why_not": self.why_not,
            "entries": self.entries.iter().map(|entry| json!({
                "at": format_instant(entry.at), "kind": entry.kind, "detail": entry.detail,
            })).collect::<Vec<_>>(),
        })
    }
}
