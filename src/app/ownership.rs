//! Whose an incident is, where several routes join the same tenant and workspace: the first route in the order of the
//! configuration whose filter is content with it. All of them share the link's key, its fence and the twin's name, so
//! there is one link and one twin whoever makes it; and who made it keeps it, however the incident changes: two routes
//! that took turns at one twin would undo each other's titles and labels. What another route would have taken too is
//! said once per link in the journal.

use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;

use crate::app::reconcile::{End, Reconciler, Run, store_failure};
use crate::app::routes::Route;
use crate::domain::failure::Failure;
use crate::domain::model::{DefenderIncident, DefenderStatus, LinkKey};
use crate::domain::plan::{LinkState, Snapshot};
use crate::ports::{Fence, LinkRecord};

/// For how long the choice of a route that is held is kept without another look at the incident: a stop may last for
/// hours, and its jobs come back every few seconds.
const CHOICE_HOLDS: time::Duration = time::Duration::minutes(5);

/// Whose a link is.
pub(crate) enum Owner<'a> {
    /// This route's. The incident, where it had to be read to find out.
    Route(&'a Route, Option<Box<DefenderIncident>>),
    /// Nobody's, or of a route that may not write now.
    Nobody(End),
}

/// The link as the choice needs it.
pub(crate) struct Candidate<'a> {
    pub(crate) key: &'a LinkKey,
    pub(crate) stored: Option<&'a LinkRecord>,
    pub(crate) state: &'a LinkState,
    pub(crate) fence: &'a Fence,
    pub(crate) now: OffsetDateTime,
}

/// The first of a pair's routes that is for an incident. One that was merged away is for the first of all: what is left
/// to do about it is the same for each.
fn first_for<'a>(pair: &'a [Arc<Route>], incident: &DefenderIncident) -> Option<&'a Arc<Route>> {
    match incident.says.status {
        DefenderStatus::Redirected => pair.first(),
        _ => pair.iter().find(|route| route.policy.filter.refuses(&incident.says).is_none()),
    }
}

/// The route of a pair that a link says it is of, once there is a twin.
fn keeper<'a>(pair: &'a [Arc<Route>], link: &LinkRecord, state: &LinkState) -> Option<&'a Arc<Route>> {
    pair.iter().find(|route| state.had_twin() && route.name == link.route)
}

impl Reconciler {
    /// Finds the owner. Reads the incident only where several routes may be it and none is yet.
    pub(crate) async fn owner<'a>(
        &self,
        pair: &'a [Arc<Route>],
        of: &Candidate<'_>,
    ) -> Result<Owner<'a>, Failure> {
        let nobody = |end| Ok(Owner::Nobody(end));
        let [first, others @ ..] = pair else {
            return nobody(End::Nothing("no route joins its tenant and workspace any more".to_owned()));
        };
        if others.is_empty() {
            return Ok(Owner::Route(first, None));
        }
        if let Some(route) = of.stored.and_then(|link| keeper(pair, link, of.state)) {
            return Ok(Owner::Route(route, None));
        }
        let holds = self.store.holds().await.map_err(store_failure)?;
        let held = |name: &str| {
            let hold = holds.iter().find(|hold| hold.route == "*" || hold.route == name);
            hold.map(|hold| hold.reason.clone())
        };
        let reasons: Option<Vec<String>> = pair.iter().map(|route| held(&route.name)).collect();
        if let Some(reason) = reasons.and_then(|all| all.into_iter().next()) {
            return nobody(End::Held(reason));
        }
        if let Some(link) = of.stored
            && of.now - link.updated_at < CHOICE_HOLDS
            && let Some(reason) = held(&link.route)
        {
            return nobody(End::Held(reason));
        }
        let Some(incident) = first.defender.incident(&of.key.incident_id).await? else {
            // Gone, or not there yet: any of them finds out what that means.
            return Ok(Owner::Route(first, None));
        };
        // A twin that was announced may be there, although nobody knows yet: then it is its maker's.
        let announced = of.stored.filter(|_| !of.state.intents.is_empty());
        let maker =
            announced.and_then(|link| Some((pair.iter().find(|route| route.name == link.route)?, link)));
        let first_match = first_for(pair, &incident);
        let route = match maker {
            Some((maker, _)) if maker.policy.filter.refuses(&incident.says).is_none() => Some(maker),
            Some((maker, link)) => match maker.sentinel.incident(&link.sentinel_id).await? {
                Some(_) => Some(maker),
                None => first_match,
            },
            None => first_match,
        };
        let Some(route) = route else {
            if of.state.had_twin() {
                // The route that made the twin is configured no more, and none of the others asks for the incident.
                return Ok(Owner::Route(first, Some(Box::new(incident))));
            }
            let why = pair.iter().filter_map(|route| {
                let why = route.policy.filter.refuses(&incident.says)?;
                Some(format!("{}: {why}", route.name))
            });
            let why = why.collect::<Vec<_>>().join("; ");
            return nobody(End::Nothing(format!("not for any route of this tenant and workspace ({why})")));
        };
        if let Some(reason) = held(&route.name) {
            if !of.state.had_twin() && of.state.intents.is_empty() {
                let link = LinkRecord {
                    key: of.key.clone(),
                    route: route.name.clone(),
                    sentinel_id: of
                        .stored
                        .map_or_else(|| super::reconcile::twin_id(of.key), |link| link.sentinel_id.clone()),
                    state: serde_json::to_string(of.state).unwrap_or_default(),
                    parked: None,
                    updated_at: of.now,
                };
                self.store.save_link(&link, &[], of.fence, of.now).await.map_err(store_failure)?;
            }
            return nobody(End::Held(reason));
        }
        Ok(Owner::Route(route, Some(Box::new(incident))))
    }

    /// Says, once, which other routes would take the incident too. The line is stored with whatever is stored next.
    pub(crate) fn note_overlaps(&self, run: &mut Run<'_>, seen: &mut Snapshot) {
        let Some(incident) = seen.defender.as_ref().filter(|_| run.pair.len() > 1) else { return };
        if incident.says.status == DefenderStatus::Redirected {
            return;
        }
        let others = run.pair.iter().filter(|other| other.name != run.route.name);
        let content = others.filter(|other| other.policy.filter.refuses(&incident.says).is_none());
        let names: Vec<String> = content.map(|other| other.name.clone()).collect();
        let news: Vec<String> =
            names.iter().filter(|name| !run.state.overlaps.contains(name)).cloned().collect();
        if names == run.state.overlaps {
            return;
        }
        run.state.overlaps.clone_from(&names);
        seen.state.overlaps = names;
        run.dirty = true;
        if !news.is_empty() {
            let detail = json!({
                "owner": run.route.name, "also": news,
                "why": "the first route that matched an incident keeps it", "cause": run.cause.to_json(),
            });
            run.aside.push(self.line(run, "overlap", detail));
        }
    }
}

/// Why a route leaves an incident to another between the same tenant and workspace, as far as the store tells.
pub fn left_to_another<'a>(
    route: &str,
    mut pair: impl Iterator<Item = &'a str>,
    link: Option<&LinkRecord>,
) -> Option<String> {
    let link = link.filter(|link| link.route != route)?;
    let state: LinkState = serde_json::from_str(&link.state).ok()?;
    let owner = pair.find(|name| *name == link.route).filter(|_| state.had_twin())?;
    Some(kept_by(owner))
}

fn kept_by(owner: &str) -> String {
    format!(
        "route {owner} between the same tenant and workspace made its twin and keeps it: the first route whose filter \
         matches an incident has it"
    )
}

impl Reconciler {
    /// Why an incident is another route's, if it is. Reads it where that is not settled yet.
    pub(crate) async fn of_another(
        &self,
        pair: &[Arc<Route>],
        route: &Route,
        stored: Option<&LinkRecord>,
        state: &LinkState,
        key: &LinkKey,
    ) -> Result<Option<String>, Failure> {
        if pair.len() < 2 {
            return Ok(None);
        }
        if let Some(owner) = stored.and_then(|link| keeper(pair, link, state)) {
            return Ok(Some(kept_by(&owner.name)).filter(|_| owner.name != route.name));
        }
        let Some(incident) = route.defender.incident(&key.incident_id).await? else { return Ok(None) };
        let first = first_for(pair, &incident).filter(|first| first.name != route.name);
        Ok(first.filter(|_| route.policy.filter.refuses(&incident.says).is_none()).map(|first| {
            format!(
                "route {} between the same tenant and workspace comes first, and matches it too",
                first.name
            )
        }))
    }
}
