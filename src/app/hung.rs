//! What hangs on an incident: comments both ways, the digest of its alerts, the history of those that were merged into
//! it, and alerts that follow it. Planned with the fields, announced with them, and sent after them.

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::reconcile::{FENCE_FOR, Reconciler, Run, alerts_hash, fence_lost, merged, store_failure};
use crate::app::shadow::Shadow;
use crate::domain::alert::Alert;
use crate::domain::comments::{self, CommentPlan, CommentsSeen, DefenderPost, SentinelPut};
use crate::domain::digest::{self, Bookmark};
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::{
    AlertPatch, DefenderClassification, DefenderComment, DefenderIncident, DefenderPatch, DefenderStatus,
    SentinelComment, Side,
};
use crate::domain::plan::{Hung, Outcome, Plan, Snapshot, alert_mark, format_instant, hash};
use crate::domain::policy::{AlertMode, Follow, Policy};
use crate::domain::text::{collapse, escape_html, html_to_plain, units};
use crate::ports::{Held, JournalEntry};

/// Room for text in one comment of Sentinel (`sentinel.md` §12: 30,000), less some for the frame.
const DIGEST_UNITS: usize = 29_000;
/// How many comments the digest of the alerts may fill. Sentinel holds 100.
const DIGEST_PARTS: usize = 8;
/// How many bookmarks an incident takes (`sentinel.md` §12).
const MOST_BOOKMARKS: usize = 20;
/// How many alerts are made to follow in one run; the rest follows in the next.
const FOLLOWERS: usize = 20;
/// When alerts that could not be told anything, for want of a role, are tried again.
const FOLLOW_AGAIN: time::Duration = time::Duration::minutes(10);
/// `alertStatus`.
const RESOLVED: &str = "resolved";
/// How many comments a link may take in an hour: far more than people write, far less than a loop does.
const MOST_COMMENTS_AN_HOUR: u64 = 300;
/// The namespace of the comments that are ours alone.
const OURS: Uuid = Uuid::from_u128(0x1f0a_5b0e_8d3c_4c58_b9a4_6e02_77d1_93c6);

/// What is to be sent beside the fields.
pub(crate) struct HungPlan {
    /// Comments for Sentinel that are copies of Defender's.
    puts: Vec<SentinelPut>,
    /// Comments for Defender.
    posts: Vec<DefenderPost>,
    /// Comments of our own for Sentinel: id, text, and where it belongs in the digest, if it does.
    own: Vec<(String, String, Option<Part>)>,
    /// Bookmarks of alerts: id, the alert with its title, and the hash of what it says.
    bookmarks: Vec<(String, (String, String), Bookmark, u64)>,
    /// What the alerts are to be told, all in all.
    telling: Option<AlertPatch>,
    /// Alerts that are to follow in this run.
    follow: Vec<(String, AlertPatch)>,
    /// Whether more alerts are to follow in another run.
    follow_on: bool,
    /// The link is to be looked at again at this time, at the latest.
    pub(crate) look_again: Option<OffsetDateTime>,
    notes: Vec<String>,
    pub(crate) ledger: comments::Ledger,
}

/// A part of the digest of alerts: its number, and the hash of its text.
type Part = (usize, u64);

impl HungPlan {
    /// Whether nothing is to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty()
            && self.posts.is_empty()
            && self.own.is_empty()
            && self.follow.is_empty()
            && self.bookmarks.is_empty()
    }

    /// The posts, in order, by their markers.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &str> {
        self.posts.iter().map(|post| post.marker.as_str())
    }

    /// How many comments Sentinel has more when all of it is sent, where the digest had so many parts before.
    pub(crate) fn adds(&self, digest: usize) -> u32 {
        let new = |part: &&Option<Part>| part.is_none_or(|(part, _)| part >= digest);
        let own = self.own.iter().map(|(_, _, part)| part).filter(new).count();
        u32::try_from(self.puts.len() + own).unwrap_or(u32::MAX)
    }

    /// Whether a history is told, which Defender is to have as well.
    pub(crate) fn tells_history(&self) -> bool {
        self.own.iter().any(|(_, _, digest)| digest.is_none())
    }

    /// Whether the next run has something to do that no version of either side tells of.
    pub(crate) fn goes_on(&self) -> bool {
        self.tells_history() || self.follow_on
    }

    /// Sends it to where nothing is taken.
    pub(crate) async fn send_to(&self, shadow: &Shadow, twin: &str, incident: &str) -> Result<(), Failure> {
        for SentinelPut { id, message, .. } in &self.puts {
            shadow.takes(shadow.sentinel.put_comment(twin, id, message).await)?;
        }
        for (id, message, _) in &self.own {
            shadow.takes(shadow.sentinel.put_comment(twin, id, message).await)?;
        }
        for (id, _, bookmark, _) in &self.bookmarks {
            shadow.takes(shadow.sentinel.put_bookmark(twin, id, bookmark).await)?;
        }
        for DefenderPost { text, .. } in &self.posts {
            shadow.takes(shadow.defender.comment(incident, text).await)?;
        }
        for (id, patch) in &self.follow {
            shadow.takes(shadow.defender.update_alert(id, patch).await)?;
        }
        Ok(())
    }

    fn touches_sentinel(&self) -> bool {
        !self.puts.is_empty() || !self.own.is_empty() || !self.bookmarks.is_empty()
    }
}

/// The id of a comment of ours: the same for the same thing, so that a repeated PUT is the same comment.
fn own_id(twin: &str, what: &str) -> String {
    Uuid::new_v5(&OURS, format!("{twin}\n{what}").as_bytes()).to_string()
}

/// How the sending ended.
pub(crate) enum Sent {
    /// All of it. Whether Sentinel's incident was touched.
    All(bool),
    /// An operator has stopped writes: why.
    Held(String),
}

impl Reconciler {
    /// What is to be sent beside the fields. May list the twin's comments.
    pub(crate) async fn hung(
        &self,
        run: &Run<'_>,
        seen: &Snapshot,
        planned: &Plan,
        policy: &Policy,
        histories: &[History],
    ) -> Result<HungPlan, Failure> {
        let state = &run.state.hung;
        let mut hung = HungPlan {
            puts: Vec::new(),
            posts: Vec::new(),
            own: Vec::new(),
            bookmarks: Vec::new(),
            telling: None,
            follow: Vec::new(),
            follow_on: false,
            look_again: None,
            notes: Vec::new(),
            ledger: state.comments.clone(),
        };
        let Some(incident) = &seen.defender else { return Ok(hung) };
        let merged = incident.says.status == DefenderStatus::Redirected;
        let creating = planned.outcome == Outcome::Create;
        let twin = &run.link.sentinel_id;

        let now = self.clock.now();
        let count = seen.sentinel.as_ref().and_then(|sentinel| sentinel.comments_count);
        let look = |listed| CommentsSeen {
            link: run.key,
            twin,
            defender: &incident.comments,
            sentinel: listed,
            sentinel_count: count,
            now,
            first_meeting: seen.state.known.is_none() && !creating,
        };
        let rules = comment_policy(policy, merged);
        let mut wanted: CommentPlan = match creating {
            true => comments::plan(&look(Some(&[])), &state.comments, &rules),
            false => comments::plan(&look(None), &state.comments, &rules),
        };
        if !creating && (wanted.list_sentinel || (!merged && self.may_hide_an_edit(run, seen, planned))) {
            let listed = run.route.sentinel.comments(twin).await?;
            wanted = comments::plan(&look(Some(&listed)), &state.comments, &rules);
        }
        hung.puts = wanted.puts;
        hung.posts = wanted.posts;
        hung.look_again = wanted.look_again;
        hung.notes = wanted.notes;
        hung.ledger = wanted.ledger;
        if merged {
            // What is said on it now has no place in Defender. Should it come out of the merge, it has.
            hung.ledger.list_anew();
        }

        if policy.alerts != AlertMode::Off
            && !merged
            && let Some(alerts) = &incident.alerts
            && !(alerts.is_empty() && state.digest.is_empty())
        {
            let mut parts =
                digest::alert_digest(alerts, incident.web_url.as_deref(), DIGEST_UNITS, DIGEST_PARTS);
            // What is left of a longer digest says so, because deleting takes a right that we do not ask for.
            while parts.len() < state.digest.len() {
                parts.push(
                    "<p>The alerts of the Defender incident fit into the comments above.</p>".to_owned(),
                );
            }
            for (part, text) in parts.into_iter().enumerate() {
                let marker = comments::note_marker(twin, &format!("alerts/{part}"));
                let text = format!("{text}<p><i>{marker}</i></p>");
                let now = hash(&text);
                if state.digest.get(part) != Some(&now) {
                    hung.own.push((own_id(twin, &format!("alerts/{part}")), text, Some((part, now))));
                }
            }
        }
        if policy.alerts == AlertMode::Bookmarks
            && !merged
            && let Some(alerts) = &incident.alerts
        {
            let mut free = MOST_BOOKMARKS.saturating_sub(state.bookmarks.len());
            for alert in digest::bookmarked(alerts, alerts.len()) {
                let bookmark = digest::bookmark(alert);
                let id = own_id(twin, &format!("bookmark/{}", alert.id));
                let now = hash(&format!("{bookmark:?}"));
                match state.bookmarks.get(&id) {
                    Some(then) if *then == now => continue,
                    Some(_) => {}
                    // One that is there stays, even if a more severe alert joins: removing takes a right of its own.
                    None if free == 0 => continue,
                    None => free -= 1,
                }
                let title = alert.title.clone().unwrap_or_default();
                hung.bookmarks.push((id, (alert.id.clone(), title), bookmark, now));
            }
            for (id, (alert, title)) in &state.bookmarked {
                let bookmark = digest::departed(alert, title);
                let now = hash(&format!("{bookmark:?}"));
                if !alerts.iter().any(|here| here.id == *alert) && state.bookmarks.get(id) != Some(&now) {
                    hung.bookmarks.push((id.clone(), (alert.clone(), title.clone()), bookmark, now));
                }
            }
        }
        for history in histories {
            for (part, text) in history.parts.iter().enumerate() {
                let id = history_id(twin, &history.incident_id, history.first + part);
                hung.own.push((id, text.clone(), None));
            }
        }
        hung.telling = telling(run.state.hung.follow.as_ref(), planned.defender.as_ref(), incident, policy);
        if let (Some(patch), Some(alerts)) = (&hung.telling, &incident.alerts) {
            let nothing = AlertPatch::default();
            let mut lagging = alerts.iter().filter_map(|alert| {
                let shown = AlertPatch {
                    status: Some(alert.status.as_str().to_owned()),
                    owner: Some(alert.assigned_to.clone()),
                    verdict: Some((alert.classification.clone(), alert.determination.clone())),
                };
                let refused = state.alerts_refused.get(&alert.id).map_or(&nothing, |refused| &refused.patch);
                let told = state.told.get(&alert.id).unwrap_or(&nothing);
                let patch = patch.without(&shown).without(told).without(refused);
                (!patch.is_empty()).then(|| (alert.id.clone(), patch))
            });
            hung.follow = lagging.by_ref().take(FOLLOWERS).collect();
            hung.follow_on = lagging.next().is_some();
        }
        Ok(hung)
    }

    /// An edited comment leaves their count as it is. It shows only in that the twin's etag moved and no field did; the
    /// sweep looks for the rest.
    fn may_hide_an_edit(&self, run: &Run<'_>, seen: &Snapshot, planned: &Plan) -> bool {
        let (Some(sentinel), Some(known)) = (&seen.sentinel, &seen.state.known) else { return false };
        sentinel.comments_count != Some(0)
            && (run.cause.thorough() || (sentinel.etag != known.sentinel_etag && planned.defender.is_none()))
    }

    /// What is remembered of it before anything is sent, and the journal lines.
    pub(crate) fn announce_hung(&self, run: &mut Run<'_>, hung: &HungPlan) -> Vec<JournalEntry> {
        run.state.hung.comments = hung.ledger.clone();
        run.state.hung.follow.clone_from(&hung.telling);
        let cause = run.cause.to_json();
        let comment = |side: Side, source: &str, why: &str| {
            self.line(run, "comment", json!({"side": side, "source": source, "why": why, "cause": cause}))
        };
        let puts = hung.puts.iter().map(|put| comment(Side::Sentinel, &put.source, put.reason));
        let posts = hung.posts.iter().map(|post| comment(Side::Defender, &post.source, post.reason));
        let own = hung.own.iter().map(|(_, _, digest)| match digest {
            Some((part, _)) => self.line(run, "alerts", json!({"part": part, "cause": cause})),
            None => comment(Side::Sentinel, "history", "an incident was merged into this one"),
        });
        let notes = hung.notes.iter().map(|note| self.line(run, "comment", json!({"note": note})));
        puts.chain(posts).chain(own).chain(notes).collect()
    }

    /// What is remembered after all of it was sent, or nothing had to be.
    pub(crate) fn settle_hung(&self, run: &Run<'_>, seen: &Snapshot, plan: &HungPlan) -> Hung {
        let mut hung = run.state.hung.clone();
        let alerts = seen.defender.as_ref().and_then(|defender| defender.alerts.as_ref());
        hung.defender_comments = seen.defender.as_ref().map_or(0, |defender| defender.comments.len());
        hung.alerts_seen = seen.defender.as_ref().and_then(alerts_hash);
        hung.alert_marks = alerts.map_or_else(Vec::new, |alerts| {
            let version = |alert: &Alert| alert.updated.map(format_instant).unwrap_or_default();
            alerts.iter().map(|alert| alert_mark(&alert.id, &version(alert))).collect()
        });
        if let Some(alerts) = alerts {
            hung.alerts_refused.retain(|id, _| alerts.iter().any(|alert| alert.id == *id));
        }
        if plan.follow.is_empty() {
            hung.follow_waits = None;
        }
        if !plan.follow_on && hung.follow_waits.is_none() {
            hung.follow = None;
            hung.told.clear();
        }
        let again = hung.follow_waits.is_some();
        hung.unfinished = plan.look_again.is_some() || plan.goes_on() || again;
        hung
    }

    /// When the link is to be looked at again, at the latest.
    pub(crate) fn look_again(&self, hung: &Hung, plan: &HungPlan) -> Option<OffsetDateTime> {
        let later = hung.follow_waits.as_ref().map(|_| self.clock.now() + FOLLOW_AGAIN);
        [plan.look_again, later].into_iter().flatten().min()
    }

    /// Sends it, in an order in which a break loses nothing: what landed is remembered with the failure.
    pub(crate) async fn send_hung(&self, run: &mut Run<'_>, hung: &HungPlan) -> Result<Sent, Failure> {
        let twin = run.link.sentinel_id.clone();
        let since = self.clock.now() - time::Duration::hours(1);
        if !hung.is_empty()
            && self.store.journal_count(run.key, "comment", since).await.map_err(store_failure)?
                > MOST_COMMENTS_AN_HOUR
        {
            return Err(Failure {
                class: Class::Permanent,
                side: None,
                code: "comment-loop".into(),
                message: format!(
                    "more than {MOST_COMMENTS_AN_HOUR} comments within an hour: something answers us"
                ),
                effect: Effect::None,
            });
        }
        let touched = hung.touches_sentinel();
        for SentinelPut { id, message, .. } in &hung.puts {
            if let Some(reason) = self.still_ours(run).await? {
                self.unsend(run, hung.markers()).await?;
                return Ok(Sent::Held(reason));
            }
            match run.route.sentinel.put_comment(&twin, id, message).await {
                Ok(_) => {
                    run.state.hung.comments.landed_put(id);
                    self.metrics.comment(Side::Sentinel);
                }
                Err(failure) => {
                    if failure.class != Class::Permanent {
                        self.unsend(run, hung.markers()).await?;
                    }
                    self.comment_refused(run, Side::Sentinel, id, failure).await?;
                }
            }
        }
        for (id, message, digest) in &hung.own {
            if let Some(reason) = self.still_ours(run).await? {
                self.unsend(run, hung.markers()).await?;
                return Ok(Sent::Held(reason));
            }
            match run.route.sentinel.put_comment(&twin, id, message).await {
                Ok(_) => self.metrics.comment(Side::Sentinel),
                Err(failure) => {
                    if failure.class != Class::Permanent {
                        self.unsend(run, hung.markers()).await?;
                    }
                    self.comment_refused(run, Side::Sentinel, id, failure).await?;
                }
            }
            if let Some((part, hash)) = digest {
                let parts = &mut run.state.hung.digest;
                parts.resize(parts.len().max(part + 1), 0);
                parts[*part] = *hash;
            }
        }
        for (id, alert, bookmark, hash) in &hung.bookmarks {
            if let Some(reason) = self.still_ours(run).await? {
                self.unsend(run, hung.markers()).await?;
                return Ok(Sent::Held(reason));
            }
            match run.route.sentinel.put_bookmark(&twin, id, bookmark).await {
                Ok(()) => {}
                Err(failure) if failure.effect == Effect::None && failure.class == Class::Permanent => {
                    // Refused for good (an onboarded workspace, the twentieth): the digest shows the alert.
                    self.metrics.value_refused("bookmark");
                    let detail = json!({
                        "side": Side::Sentinel, "field": format!("the bookmark of alert {}", alert.0),
                        "reason": format!("{} refused it: {}", Side::Sentinel, failure.message),
                    });
                    let line = self.line(run, "field-parked", detail);
                    self.save(run, None, &[line]).await?;
                }
                Err(failure) => {
                    self.unsend(run, hung.markers()).await?;
                    return self.broke_off(run, failure).await;
                }
            }
            run.state.hung.bookmarks.insert(id.clone(), *hash);
            run.state.hung.bookmarked.insert(id.clone(), alert.clone());
        }
        for DefenderPost { marker, text, .. } in &hung.posts {
            if let Some(reason) = self.still_ours(run).await? {
                self.unsend(run, hung.markers().skip_while(|known| *known != marker)).await?;
                return Ok(Sent::Held(reason));
            }
            match run.route.defender.comment(&run.key.incident_id, text).await {
                Ok(all) => {
                    // Proof is the marker among all comments; an answer without it is an answer that lags.
                    if all.iter().any(|comment| comment.text.contains(marker)) {
                        run.state.hung.comments.landed_post(marker);
                    }
                    self.metrics.comment(Side::Defender);
                }
                Err(mut failure) => {
                    if self.merged_meanwhile(run, &failure).await? {
                        failure = merged();
                    }
                    // A later comment must not come before it: the others are not tried, and are not in doubt.
                    let later = hung.markers().skip_while(|known| *known != marker).skip(1);
                    if failure.class != Class::Permanent {
                        self.unsend(run, later).await?;
                    }
                    self.comment_refused(run, Side::Defender, marker, failure).await?;
                }
            }
        }
        run.state.hung.follow_waits = run.state.hung.follow_waits.take().filter(|_| hung.follow.is_empty());
        for (id, patch) in &hung.follow {
            if let Some(reason) = self.still_ours(run).await? {
                return Ok(Sent::Held(reason));
            }
            if let Some(waits) = self.tell_alert(run, id, patch).await? {
                run.state.hung.follow_waits = Some(waits);
                break;
            }
        }
        Ok(Sent::All(touched))
    }

    /// Makes one alert follow. What it will not take is put aside by itself, member by member. The answer is why no alert
    /// can be told anything now, if so: they have a role of their own, and the incident goes on without it.
    async fn tell_alert(
        &self,
        run: &mut Run<'_>,
        id: &str,
        patch: &AlertPatch,
    ) -> Result<Option<String>, Failure> {
        let whole = patch.apart().len();
        let sent = run.route.defender.update_alert(id, patch).await;
        let pieces = match sent {
            Ok(()) => {
                self.alert_told(run, id, patch).await?;
                return Ok(None);
            }
            Err(failure) if failure.class == Class::Auth => return Ok(Some(failure.message)),
            Err(failure) if !(failure.effect == Effect::None && failure.class == Class::Permanent) => {
                return self.broke_off(run, failure).await;
            }
            // It speaks of a value, perhaps of one of several: each is tried alone.
            Err(failure) if whole > 1 && failure.code == "status-400" => patch.apart(),
            Err(failure) => {
                for (name, piece) in patch.apart() {
                    self.alert_refused(run, id, name, &piece, &failure).await?;
                }
                return Ok(None);
            }
        };
        for (name, piece) in pieces {
            if self.still_ours(run).await?.is_some() {
                // The rest of this alert has its turn in the next run, which finds it lagging.
                return Ok(None);
            }
            match run.route.defender.update_alert(id, &piece).await {
                Ok(()) => self.alert_told(run, id, &piece).await?,
                Err(failure) if failure.class == Class::Auth => return Ok(Some(failure.message)),
                Err(failure) if failure.effect == Effect::None && failure.class == Class::Permanent => {
                    self.alert_refused(run, id, name, &piece, &failure).await?;
                }
                Err(failure) => return self.broke_off(run, failure).await,
            }
        }
        Ok(None)
    }

    async fn alert_told(&self, run: &mut Run<'_>, id: &str, patch: &AlertPatch) -> Result<(), Failure> {
        let hung = &mut run.state.hung;
        let told = hung.told.entry(id.to_owned()).or_default();
        *told = told.with(patch);
        hung.follow_waits = None;
        if let Some(refused) = hung.alerts_refused.get_mut(id) {
            // Another value of the same member was taken: the refusal of the former is history.
            let taken = |of: &AlertPatch| [of.status.is_some(), of.verdict.is_some(), of.owner.is_some()];
            let [status, verdict, owner] = taken(patch);
            refused.patch.status = refused.patch.status.take().filter(|_| !status);
            refused.patch.verdict = refused.patch.verdict.take().filter(|_| !verdict);
            refused.patch.owner = refused.patch.owner.take().filter(|_| !owner);
            if refused.patch.is_empty() {
                hung.alerts_refused.remove(id);
            }
        }
        let line = self.line(run, "alert", json!({"alert": id, "patch": patch}));
        self.save(run, None, &[line]).await
    }

    async fn alert_refused(
        &self,
        run: &mut Run<'_>,
        id: &str,
        member: &'static str,
        piece: &AlertPatch,
        failure: &Failure,
    ) -> Result<(), Failure> {
        let why = failure.message.clone();
        let refused = run.state.hung.alerts_refused.entry(id.to_owned()).or_default();
        refused.patch = refused.patch.with(piece);
        refused.why.clone_from(&why);
        self.metrics.value_refused("alert");
        tracing::warn!(link = %run.key, alert = id, member, why, "an alert does not follow: it is put aside");
        let detail = json!({
            "side": Side::Defender, "field": format!("{member} of alert {id}"),
            "reason": format!("{} refused it: {why}", Side::Defender),
        });
        let line = self.line(run, "field-parked", detail);
        self.save(run, None, &[line]).await
    }

    /// A comment that a side will never take is put aside by itself; everything else ends the run.
    async fn comment_refused(
        &self,
        run: &mut Run<'_>,
        side: Side,
        id: &str,
        failure: Failure,
    ) -> Result<(), Failure> {
        let certain = failure.effect == Effect::None;
        if !(certain && failure.class == Class::Permanent && failure.code.starts_with("status-4")) {
            if certain && side == Side::Defender {
                run.state.hung.comments.refused_post(id);
            }
            return self.broke_off(run, failure).await.map(|_: Sent| ());
        }
        match side {
            Side::Sentinel => run.state.hung.comments.parked_put(id, &failure.message),
            Side::Defender => run.state.hung.comments.parked_post(id, &failure.message),
        }
        self.metrics.value_refused("comment");
        tracing::warn!(link = %run.key, %side, why = failure.message, "a comment was refused and is put aside");
        let detail = json!({
            "side": side, "field": "comment", "reason": format!("{side} refused it: {}", failure.message),
        });
        let line = self.line(run, "field-parked", detail);
        self.save(run, None, &[line]).await
    }

    /// Posts that were announced and not tried are not in doubt.
    pub(crate) async fn unsend(
        &self,
        run: &mut Run<'_>,
        markers: impl Iterator<Item = &str>,
    ) -> Result<(), Failure> {
        for marker in markers {
            run.state.hung.comments.refused_post(marker);
            run.dirty = true;
        }
        if run.dirty {
            run.dirty = false;
            self.save(run, None, &[]).await?;
        }
        Ok(())
    }

    /// Remembers what landed before the break.
    async fn broke_off<T>(&self, run: &mut Run<'_>, failure: Failure) -> Result<T, Failure> {
        self.save(run, None, &[]).await?;
        Err(failure)
    }

    /// Immediately before each send: the operators' stops, and the fence.
    pub(crate) async fn still_ours(&self, run: &Run<'_>) -> Result<Option<String>, Failure> {
        if let Some(reason) = self.held(run.route).await? {
            return Ok(Some(reason));
        }
        let now = self.clock.now();
        match self.store.extend_fence(run.fence, now, now + FENCE_FOR).await.map_err(store_failure)? {
            Held::Yes => Ok(None),
            Held::No => Err(fence_lost()),
        }
    }
}

/// What the alerts are to be told: what they are still being told, with what the plan adds to it.
fn telling(
    before: Option<&AlertPatch>,
    patch: Option<&DefenderPatch>,
    incident: &DefenderIncident,
    policy: &Policy,
) -> Option<AlertPatch> {
    if policy.follow == Follow::Off {
        return None;
    }
    let status = patch.and_then(|patch| patch.status.as_ref()).unwrap_or(&incident.says.status);
    // Whoever opens the incident again ends what its closing had begun.
    let ended =
        |told: &AlertPatch| told.status.as_deref() == Some(RESOLVED) && *status != DefenderStatus::Resolved;
    let before = before.filter(|told| !ended(told)).cloned();
    let now = patch.and_then(|patch| followed(patch, incident, policy));
    match (before, now) {
        (Some(before), Some(now)) => Some(before.with(&now)),
        (before, now) => before.or(now),
    }
}

/// What a PATCH of the incident means for its alerts.
fn followed(patch: &DefenderPatch, incident: &DefenderIncident, policy: &Policy) -> Option<AlertPatch> {
    let resolving = patch.status == Some(DefenderStatus::Resolved);
    if !resolving && policy.follow != Follow::Always {
        return None;
    }
    let status = patch.status.as_ref().and_then(|status| match status {
        DefenderStatus::Active => Some("new"),
        DefenderStatus::InProgress => Some("inProgress"),
        DefenderStatus::Resolved => Some(RESOLVED),
        _ => None,
    });
    let mut follow = AlertPatch {
        status: status.map(str::to_owned),
        verdict: patch.verdict.clone(),
        owner: patch.owner.clone(),
    };
    if resolving {
        // Closing speaks for the whole: who it was assigned to, and what was found before.
        let says = &incident.says;
        let found = (says.classification.clone(), says.determination.clone());
        let said = found.0 != DefenderClassification::Unknown;
        follow.verdict = follow.verdict.or_else(|| said.then_some(found));
        follow.owner = follow.owner.or_else(|| says.owner.clone().map(Some));
    }
    (!follow.is_empty()).then_some(follow)
}

/// The rules for comments in this run: the loser of a merge gets none of its own any more.
fn comment_policy(policy: &Policy, merged: bool) -> comments::CommentPolicy {
    let mut rules = policy.comments.clone();
    if policy.native_twin {
        // The connector brings new comments itself; what it leaves behind is history.
        rules.pair_equal = true;
        rules.older_than = Some(time::Duration::minutes(15));
    }
    if merged {
        (rules.to_sentinel, rules.to_defender) = (false, false);
    }
    rules
}

/// What an incident that was merged into another leaves it to read.
pub(crate) struct History {
    /// The incident.
    incident_id: String,
    /// How many comments of it the winner's twin has already.
    first: usize,
    /// Further comments for the winner's twin, in order.
    parts: Vec<String>,
}

impl History {
    /// The comments of people on both sides of the loser, each once, as HTML. `there` are the comments of the winner's
    /// twin: what a run that broke off has carried over stays as it is, or Defender would be told of it as an edit.
    pub(crate) fn of(
        incident_id: &str,
        (defender, sentinel): (&[DefenderComment], &[SentinelComment]),
        twin: &str,
        there: &[SentinelComment],
    ) -> Option<Self> {
        let lines = |html: &str| -> Vec<String> {
            let plain = html_to_plain(html);
            plain.lines().map(collapse).filter(|line| !line.is_empty()).collect()
        };
        let carried = |part| there.iter().find(|comment| comment.name == history_id(twin, incident_id, part));
        let (first, mut known) =
            (0..).map_while(carried).fold((0, Vec::new()), |(count, mut known), comment| {
                known.extend(lines(&comment.message));
                (count + 1, known)
            });
        let mut said = comments::analysts(defender, sentinel);
        said.retain(|html| {
            let wanted = lines(html);
            let at = known.windows(wanted.len().max(1)).position(|some| some == wanted);
            at.map(|at| known.drain(at..at + wanted.len())).is_none()
        });
        if said.is_empty() {
            return None;
        }
        let head = format!(
            "<p><b>Carried over from Defender incident {}, which was merged into this one</b></p>",
            escape_html(incident_id)
        );
        let mut parts: Vec<String> = Vec::new();
        for html in said {
            match parts.last_mut() {
                Some(last) if units(last) + units(&html) <= DIGEST_UNITS => last.push_str(&html),
                _ => parts.push(format!("{head}{html}")),
            }
        }
        Some(Self { incident_id: incident_id.to_owned(), first, parts })
    }
}

fn history_id(twin: &str, loser: &str, part: usize) -> String {
    own_id(twin, &format!("history/{loser}/{part}"))
}
