//! Incidents that Defender merges into others. The loser's job closes its own twin and tells the winner; the winner's
//! job carries over what would be left behind: the comments of people, tags, and the owner if it has none. Only the
//! winner's job writes to the winner.
//!
//! Each loser tells the incident that it was merged into, once, and hands on what it was told itself. So chains are
//! followed link by link, and a circle ends where somebody has told already.

use crate::app::hung::History;
use crate::app::reconcile::{Reconciler, Run, retry, store_failure, twin_id};
use crate::domain::failure::Failure;
use crate::domain::mapping as map;
use crate::domain::merge::Names;
use crate::domain::model::{DefenderStatus, LinkKey, SentinelComment, Side};
use crate::domain::plan::{LinkState, Snapshot};
use crate::domain::policy::Policy;
use crate::ports::{Hint, Subject};

/// How many losers one winner hears of, and how many it serves in one run.
const MOST_LOSERS: usize = 256;
const AT_ONCE: usize = 5;
/// How long the list of a winner's losers may be in one hand.
const LIST_FOR: std::time::Duration = std::time::Duration::from_secs(20);

/// The name of the stored list of incidents that were merged into one.
fn losers_name(winner: &LinkKey) -> String {
    format!("merged:{}/{}{}", winner.tenant_id, winner.incident_id, winner.workspace)
}

impl Reconciler {
    async fn losers(&self, winner: &LinkKey) -> Result<Vec<String>, Failure> {
        let value = self.store.value(&losers_name(winner)).await.map_err(store_failure)?;
        Ok(value.and_then(|value| serde_json::from_str(&value).ok()).unwrap_or_default())
    }

    /// The loser's part: tells the winner, once, and passes later hints on.
    pub(crate) async fn forward(&self, run: &mut Run<'_>, seen: &mut Snapshot) -> Result<(), Failure> {
        let Some(incident) = &seen.defender else { return Ok(()) };
        let merged = incident.says.status == DefenderStatus::Redirected;
        let winner = incident.redirect.clone().filter(|winner| merged && *winner != incident.id);
        let told = run.state.merged_into.clone();
        let Some(winner) = winner else {
            if let Some(former) = told {
                // Un-merged: both are read again.
                self.hint_merged(run, former).await?;
                run.state.merged_into = None;
                seen.state.merged_into = None;
                run.dirty = true;
            }
            return Ok(());
        };
        if told.as_ref() == Some(&winner) {
            // What comes for the loser is for the winner now, but not what another loser only passed on.
            let passed_on = run.cause.sources.split(',').any(|source| source.trim() == "merged");
            if run.cause.side == Side::Defender && !passed_on && !run.cause.thorough() {
                self.hint_merged(run, winner).await?;
            }
            return Ok(());
        }
        let key = LinkKey { incident_id: winner.clone(), ..run.key.clone() };
        let handed_on = self.losers(run.key).await?;
        let mut telling = vec![run.key.incident_id.clone()];
        telling.extend(handed_on.into_iter().filter(|loser| !run.state.inherited.contains(loser)));
        telling.retain(|loser| *loser != winner);
        // Two losers of one winner may tell it at the same time.
        let now = self.clock.now();
        let fence =
            self.store.take_fence(&losers_name(&key), now, now + LIST_FOR).await.map_err(store_failure)?;
        let Some(fence) = fence else {
            return Err(retry(
                Side::Defender,
                "busy",
                "another incident is just being merged into the same one",
            ));
        };
        let mut list = self.losers(&key).await?;
        for loser in telling {
            if !list.contains(&loser) && list.len() < MOST_LOSERS {
                list.push(loser);
            }
        }
        let value = serde_json::to_string(&list).unwrap_or_default();
        self.store.set_value(&losers_name(&key), &value).await.map_err(store_failure)?;
        self.store.release_fence(&fence).await.map_err(store_failure)?;
        self.hint_merged(run, winner.clone()).await?;
        run.state.merged_into = Some(winner.clone());
        seen.state.merged_into = Some(winner);
        run.dirty = true;
        Ok(())
    }

    async fn hint_merged(&self, run: &Run<'_>, incident_id: String) -> Result<(), Failure> {
        let subject =
            Subject { side: Side::Defender, scope: run.key.tenant_id.clone(), native_id: incident_id };
        let hint = Hint { subject, version: None, source: "merged".into() };
        self.store.remember(vec![hint], None, self.clock.now()).await.map_err(store_failure)?;
        Ok(())
    }

    /// A winner that has its twin only now was told of its losers before there was anything to carry to.
    pub(crate) async fn inherit_later(&self, run: &Run<'_>) -> Result<(), Failure> {
        let losers = self.losers(run.key).await?;
        if losers.iter().any(|loser| !run.state.inherited.contains(loser)) {
            self.hint_merged(run, run.key.incident_id.clone()).await?;
        }
        Ok(())
    }

    /// The winner's part: what incidents that were merged into this one leave it. Reads them; what they had of tags and
    /// owner goes into the round's policy.
    pub(crate) async fn inheritance(
        &self,
        run: &Run<'_>,
        seen: &Snapshot,
        policy: &mut Policy,
    ) -> Result<(Vec<String>, Vec<History>), Failure> {
        let (mut heirs, mut histories) = (Vec::new(), Vec::new());
        let merged = seen.defender.as_ref().is_none_or(|d| d.says.status == DefenderStatus::Redirected);
        if merged || seen.sentinel.is_none() {
            return Ok((heirs, histories));
        }
        let losers = self.losers(run.key).await?;
        let mut there = None;
        for loser in losers.into_iter().filter(|loser| !run.state.inherited.contains(loser)).take(AT_ONCE) {
            let key = LinkKey { incident_id: loser.clone(), ..run.key.clone() };
            let link = self.store.link(&key).await.map_err(store_failure)?;
            let twin = link.as_ref().map_or_else(|| twin_id(&key), |link| link.sentinel_id.clone());
            let defender = run.route.defender.incident(&loser).await?;
            let sentinel = run.route.sentinel.incident(&twin).await?;
            let comments = match &sentinel {
                Some(sentinel) if sentinel.comments_count != Some(0) => {
                    run.route.sentinel.comments(&twin).await?
                }
                _ => Vec::new(),
            };
            let said = defender.as_ref().map(|d| d.comments.as_slice()).unwrap_or_default();
            if !(comments.is_empty() && said.is_empty()) {
                let there = match &mut there {
                    Some(there) => there,
                    none => none.insert(self.comments_there(run, seen).await?),
                };
                histories.extend(History::of(&loser, (said, &comments), &run.link.sentinel_id, there));
            }
            heirs.push(loser);
            if heirs.last().is_some_and(|loser| run.state.carried.contains(loser)) {
                // Written, and from then on the winner's own: whoever takes them away again means it.
                continue;
            }
            // Defender moves its tags itself (`graph.md` §9), and who removes one there afterwards means it. What the
            // twin alone has is ours to carry; a tag that Defender had once was removed there, and not by the merge.
            let known = link.and_then(|link| serde_json::from_str::<LinkState>(&link.state).ok()?.known);
            let moved: Names = [defender.as_ref().map(|d| &d.says), known.as_ref().map(|k| &k.defender)]
                .into_iter()
                .flatten()
                .flat_map(|says| map::defender_tags(says, &policy.labels))
                .collect();
            let tags = sentinel.iter().flat_map(|s| s.says.labels.iter().filter(|label| !label.auto));
            let tags = tags.map(|label| label.name.trim().to_owned());
            policy.also.tags.extend(tags.filter(|tag| {
                !tag.is_empty() && !policy.labels.own(tag) && !moved.contains(&tag.to_lowercase())
            }));
            let owner = defender.as_ref().and_then(|d| map::plain_option(d.says.owner.as_deref()));
            let owner = owner.or_else(|| map::owner_to_defender(&sentinel.as_ref()?.says.owner).flatten());
            policy.also.owner = policy.also.owner.take().or(owner);
        }
        Ok((heirs, histories))
    }

    /// The comments of the winner's twin.
    async fn comments_there(&self, run: &Run<'_>, seen: &Snapshot) -> Result<Vec<SentinelComment>, Failure> {
        match seen.sentinel.as_ref().and_then(|sentinel| sentinel.comments_count) {
            Some(0) => Ok(Vec::new()),
            _ => run.route.sentinel.comments(&run.link.sentinel_id).await,
        }
    }
}
