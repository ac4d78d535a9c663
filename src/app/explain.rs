//! What happened to one incident and why, or why nothing did: from the store, so that it can be asked at any time and
//! costs neither side a call, and from what the running service knows beside it, where that is who answers. Used by the
//! command line and by the API.

use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::app::health::{Health, SideReport};
use crate::app::lately::{LastRun, Lately, LeftAlone};
use crate::app::native;
use crate::app::ownership;
use crate::app::reconcile::{REFUSAL_HOLDS, in_progress_refused};
use crate::app::routes::Routes;
use crate::domain::filter::Unmatched;
use crate::domain::model::{LinkKey, Side};
use crate::domain::plan::{LinkState, format_instant, parse_instant};
use crate::domain::policy::{Direction, Field, Native, Policy};
use crate::ports::{JournalEntry, LinkRecord, Queued, Spent, Store, StoreError, Subject};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// The route's name.
    pub route: &'q str,
    /// Its rules.
    pub policy: &'q Policy,
    /// Which link.
    pub key: &'q LinkKey,
    /// The routes of its tenant and workspace, this one among them.
    pub pair: &'q [&'q str],
    /// How many entries of the journal to look back.
    pub most: usize,
}

/// What only the running service knows. Whoever reads the store alone has none of it.
#[derive(Clone, Copy)]
pub struct Live<'s> {
    /// Closed sides, tokens, polls.
    pub health: &'s Health,
    /// The way to the budgets.
    pub routes: &'s Routes,
    /// How the last runs ended.
    pub lately: &'s Lately,
}

/// A reason for which nothing is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WhyNot {
    /// A short constant.
    pub reason: &'static str,
    /// One sentence.
    pub why: String,
}

/// One side as the running service knows it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideNow {
    /// Gate, token and polls.
    #[serde(flatten)]
    pub state: SideReport,
    /// For how many milliseconds our own budget holds back a call that reads.
    pub budget_read_wait_ms: Option<u64>,
    /// The same of a call that writes.
    pub budget_write_wait_ms: Option<u64>,
    /// Until when the workers leave its rows alone, and why.
    pub left_alone: Option<LeftAlone>,
}

/// What the running service adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceNow {
    /// Both sides.
    pub defender: Option<SideNow>,
    /// Both sides.
    pub sentinel: Option<SideNow>,
    /// How the link's last run ended, in this process.
    pub last_run: Option<LastRun>,
}

/// All that is known of one incident on one route.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The route's name.
    pub route: String,
    /// Which link.
    pub key: LinkKey,
    /// The link as stored.
    pub link: Option<LinkRecord>,
    /// What the link's state says, if it reads.
    pub state: Option<LinkState>,
    /// The journal, in the order of time.
    pub entries: Vec<JournalEntry>,
    /// The incident's rows in the queue that want service or are put aside.
    pub queue: Vec<Queued>,
    /// Why nothing is written, or not yet; empty where nothing stands in the way.
    pub why_not: Vec<WhyNot>,
    /// The fields that do not flow both ways, by the route's rules.
    pub rules: Vec<(Field, Direction)>,
    /// `None` where the store alone was asked.
    pub service: Option<ServiceNow>,
}

/// Reads it all.
pub async fn explain(
    store: &dyn Store,
    question: Question<'_>,
    live: Option<Live<'_>>,
    now: OffsetDateTime,
) -> Result<Explanation, StoreError> {
    let Question { route, policy, key, pair, most } = question;
    let link = store.link(key).await?;
    let state: Option<LinkState> = link.as_ref().and_then(|link| serde_json::from_str(&link.state).ok());
    let mut entries = store.journal(key, most).await?;
    // A hint is stored with the decision that it led to, and came in before: perhaps while the last run was at work.
    entries.sort_by_key(|entry| entry.at);
    let mut queue = Vec::new();
    for subject in subjects(key, link.as_ref()) {
        let row = store.queued(&subject).await?;
        queue.extend(row.filter(|row| row.hints > 0 || row.parked.is_some()));
    }
    let service = live.map(|live| service_now(live, route, key, now));
    let mut why_not = WhyNots(Vec::new());
    for hold in store.holds().await? {
        if hold.route == "*" || hold.route == route {
            let which = if hold.route == "*" { "every route" } else { "the route" };
            let since = format_instant(hold.since);
            why_not.add("held", format!("{which} is held since {since}: {}", hold.reason));
        }
    }
    for row in &queue {
        why_not.of_row(row, last_failure(&entries, service.as_ref()), now);
    }
    if let Some(service) = &service {
        why_not.of_service(service, now);
    }
    if let Some(reason) = link.as_ref().and_then(|link| link.parked.clone()) {
        why_not.add("link-parked", format!("the link is put aside: {reason}"));
    }
    if let Some(why) = ownership::left_to_another(route, pair.iter().copied(), link.as_ref()) {
        why_not.add("another-route", why);
    }
    match &state {
        None => {
            let served = store.value(&native::served_name(&key.tenant_id, &key.workspace)).await?;
            if served.is_some() {
                why_not.add("native", native_says(policy.native).to_owned());
            }
            why_not.of_no_link(service.as_ref());
        }
        Some(state) => why_not.of_state(state, policy, now),
    }
    let refused = store.value(&in_progress_refused(&key.tenant_id)).await?;
    if let Some(since) =
        refused.as_deref().and_then(parse_instant).filter(|since| now - *since < REFUSAL_HOLDS)
    {
        let since = format_instant(since);
        why_not.add(
            "in-progress",
            format!("Graph refuses inProgress in this tenant since {since}: active stands for it"),
        );
    }
    if policy.shadow {
        why_not.add("shadow", "the route is in shadow: nothing is written".to_owned());
    }
    let rules = Field::ALL.into_iter().map(|field| (field, policy.of(field).direction));
    let rules = rules.filter(|(_, direction)| *direction != Direction::Both).collect();
    let (route, key) = (route.to_owned(), key.clone());
    Ok(Explanation { route, key, link, state, entries, queue, why_not: why_not.0, rules, service })
}

/// The rows of the queue that are about a link: of its incident, and of its twin.
fn subjects(key: &LinkKey, link: Option<&LinkRecord>) -> Vec<Subject> {
    let subject = |side, scope: &String, native_id: &String| Subject {
        side,
        scope: scope.clone(),
        native_id: native_id.clone(),
    };
    let mut subjects = vec![subject(Side::Defender, &key.tenant_id, &key.incident_id)];
    subjects.extend(link.map(|link| subject(Side::Sentinel, &key.workspace, &link.sentinel_id)));
    subjects
}

fn service_now(live: Live<'_>, route: &str, key: &LinkKey, now: OffsetDateTime) -> ServiceNow {
    let Live { health, routes, lately } = live;
    let report = health.report(now).routes.into_iter().find(|known| known.route == route);
    let of_link = routes.of_pair(key).iter().find(|of| of.name == route);
    let millis = |wait: Option<std::time::Duration>| {
        wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
    };
    let side = |side, scope: &str, state, spent: Option<Spent>| {
        let Spent { reads, writes } = spent.unwrap_or_default();
        let (budget_read_wait_ms, budget_write_wait_ms) = (millis(reads), millis(writes));
        SideNow {
            state,
            budget_read_wait_ms,
            budget_write_wait_ms,
            left_alone: lately.left_alone(side, scope, now),
        }
    };
    let (defender, sentinel) = report.map(|report| (report.defender, report.sentinel)).unzip();
    ServiceNow {
        defender: defender.map(|state| {
            side(Side::Defender, &key.tenant_id, state, of_link.map(|route| route.defender.spent()))
        }),
        sentinel: sentinel.map(|state| {
            side(Side::Sentinel, &key.workspace, state, of_link.map(|route| route.sentinel.spent()))
        }),
        last_run: lately.last(key),
    }
}

/// What went wrong last, with its class where that is known: the process remembers, the journal has the first of a kind.
fn last_failure(entries: &[JournalEntry], service: Option<&ServiceNow>) -> Option<String> {
    if let Some(last) = service.and_then(|service| service.last_run.as_ref()) {
        let error = last.error.as_ref()?;
        let why = last.why.as_deref().unwrap_or_default();
        return Some(format!("{why} ({}, {})", error.code, error.class));
    }
    let last = entries.iter().rev().find(|entry| matches!(entry.kind.as_str(), "failed" | "landed"))?;
    let text = |name: &str| last.detail[name].as_str().unwrap_or_default().to_owned();
    (last.kind == "failed").then(|| format!("{} ({})", text("why"), text("code")))
}

fn native_says(policy: Native) -> &'static str {
    match policy {
        Native::Refuse => {
            "Microsoft's own connector serves this tenant and workspace, and native_connector is `refuse`"
        }
        Native::Skip => {
            "Microsoft's own connector serves this tenant and workspace, and native_connector is `skip`"
        }
        Native::Adopt => "Microsoft's own connector has not made its twin yet",
    }
}

struct WhyNots(Vec<WhyNot>);

impl WhyNots {
    fn add(&mut self, reason: &'static str, why: String) {
        self.0.push(WhyNot { reason, why });
    }

    /// A row that waits, or is put aside.
    fn of_row(&mut self, row: &Queued, failure: Option<String>, now: OffsetDateTime) {
        let side = row.subject.side;
        if let Some((reason, since)) = &row.parked {
            let since = format_instant(*since);
            self.add(
                "row-parked",
                format!("its {side} row in the queue is put aside since {since}: {reason}"),
            );
            return;
        }
        let since = row.since.map(format_instant).unwrap_or_default();
        let mut why = format!("{} hint(s) of {side} wait since {since} ({})", row.hints, row.sources);
        if row.leased && row.next > now {
            why.push_str(", and a worker has them in hand");
        } else if row.next > now {
            why.push_str(&format!("; they are looked at again at {}", format_instant(row.next)));
        } else {
            why.push_str(if row.background {
                "; they are due, and come after all live work"
            } else {
                "; they are due"
            });
        }
        if row.attempts > 0 {
            why.push_str(&format!(", after {} failed attempt(s) in a row", row.attempts));
        }
        if let Some(failure) = failure {
            why.push_str(&format!("; the last error: {failure}"));
        }
        self.add("waiting", why);
    }

    /// What the running service knows of its sides.
    fn of_service(&mut self, service: &ServiceNow, now: OffsetDateTime) {
        let sides = [(Side::Defender, &service.defender), (Side::Sentinel, &service.sentinel)];
        for (side, known) in sides.into_iter().filter_map(|(side, known)| Some((side, known.as_ref()?))) {
            if let Some(until) = known.state.closed_until {
                let (until, why) = (format_instant(until), known.state.closed_because.as_deref());
                let why = why.unwrap_or("the service turned us away");
                self.add("closed", format!("{side} is closed until {until}, then one call tries it: {why}"));
            }
            if known.state.token == "refused" {
                let why = known.state.error.clone().unwrap_or_default();
                self.add("token", format!("there is no token for {side}: {why}"));
            }
            for (what, wait) in [("read", known.budget_read_wait_ms), ("write", known.budget_write_wait_ms)] {
                if let Some(wait) = wait {
                    let wait = time::Duration::milliseconds(i64::try_from(wait).unwrap_or(i64::MAX));
                    let at = format_instant(now.saturating_add(wait));
                    self.add(
                        "budget",
                        format!(
                            "our budget of calls to {side} is spent: the next {what} can be made at {at}"
                        ),
                    );
                }
            }
            if let Some(LeftAlone { until, why }) = &known.left_alone {
                let until = format_instant(*until);
                self.add(
                    "left-alone",
                    format!("the workers leave the rows of {side} alone until {until}: {why}"),
                );
            }
        }
        if let Some(LastRun { at, end: "failed", why, error, times, since }) = &service.last_run {
            let (at, since) = (format_instant(*at), format_instant(*since));
            let class =
                error.as_ref().map_or(String::new(), |error| format!(" ({}, {})", error.code, error.class));
            let why = why.as_deref().unwrap_or_default();
            self.add(
                "failed",
                format!("the last run, at {at}, failed{class}: {why}; {times} in a row since {since}"),
            );
        }
    }

    fn of_no_link(&mut self, service: Option<&ServiceNow>) {
        let last = service.and_then(|service| service.last_run.as_ref());
        match last {
            Some(LastRun { at, end: "nothing", why: Some(why), times, .. }) => {
                let at = format_instant(*at);
                self.add("not-linked", format!("there is no link: the incident was looked at {times} time(s), last at {at}; {why}"));
            }
            Some(_) => self.add("not-linked", "there is no link yet".to_owned()),
            None => self.add(
                "not-linked",
                "there is no link: the incident was never seen, or the route's filter is not content with it; \
                 `lockstep plan` reads it and says which"
                    .to_owned(),
            ),
        }
    }

    /// What the link itself remembers.
    fn of_state(&mut self, state: &LinkState, policy: &Policy, now: OffsetDateTime) {
        if let Some(why) = &state.unlinked {
            self.add("unlinked", why.clone());
        }
        if let (Some(after), Some(since)) = (policy.freeze_after, state.closed_since)
            && now - since > after
        {
            let since = format_instant(since);
            self.add("frozen", format!("it is frozen: both sides are closed since {since}"));
        }
        if state.left_out {
            self.add("filter", "it was closed because it no longer matches the route's filter".to_owned());
        } else if let Some(known) = &state.known
            && policy.filter.otherwise != Unmatched::Keep
            && let Some(why) = policy.filter.refuses(&known.defender)
        {
            self.add("filter", format!("it is not for this route any more: {why}"));
        }
        if let Some(winner) = &state.merged_into {
            self.add("merged", format!("it was merged into incident {winner}"));
        }
        if state.adopted {
            self.add(
                "native",
                "its twin is Microsoft's connector's: only what that drops is written".to_owned(),
            );
        }
        if let Some(owner) = &state.unmapped {
            let (side, other) = (owner.side, owner.side.other());
            self.add("owner", format!("{side}'s owner {} {}: {other} keeps its own", owner.name, owner.why));
        }
        for refused in &state.refused {
            let field = refused.field.as_str();
            self.add("refused", format!("{field} was refused by {}: {}", refused.side, refused.why));
        }
        for reason in state.hung.comments.parked() {
            self.add("comment-refused", format!("a comment was refused: {reason}"));
        }
        for (alert, refused) in &state.hung.alerts_refused {
            let names: Vec<&str> = refused.patch.apart().into_iter().map(|(name, _)| name).collect();
            let what = names.join(" and ");
            self.add("alert-refused", format!("alert {alert} does not follow in {what}: {}", refused.why));
        }
        if let Some(why) = &state.hung.follow_waits {
            self.add("alerts-wait", format!("alerts do not follow for now: {why}"));
        }
        if !state.intents.is_empty() {
            let sides: Vec<&str> = state.intents.iter().map(|intent| intent.side.as_str()).collect();
            self.add(
                "unproved",
                format!(
                    "a write is announced and not proved ({}): it is read before it is repeated",
                    sides.join(", ")
                ),
            );
        }
    }
}

/// A row of the queue, as JSON.
fn row_json(row: &Queued) -> Value {
    json!({
        "side": row.subject.side,
        "subject": row.subject.to_string(),
        "hints": row.hints,
        "since": row.since.map(format_instant),
        "sources": row.sources,
        "version": row.version,
        "attempts": row.attempts,
        "next_attempt": format_instant(row.next),
        "in_hand": row.leased,
        "background": row.background,
        "parked": row.parked.as_ref().map(|(reason, since)| json!({
            "reason": reason, "since": format_instant(*since),
        })),
    })
}

impl Explanation {
    /// Where the running service answers the same question, with what only it knows.
    pub fn path(&self) -> String {
        format!("/api/v1/routes/{}/incidents/{}/explain", self.route, self.key.incident_id)
    }

    /// As the API and `--json` give it.
    pub fn to_json(&self) -> Value {
        let unproved = self.state.as_ref().map_or(0, |state| state.intents.len());
        let rules: Map<String, Value> = self
            .rules
            .iter()
            .map(|(field, direction)| (field.as_str().to_owned(), json!(direction)))
            .collect();
        let service = match &self.service {
            Some(service) => json!({"known": true, "now": service}),
            None => json!({"known": false, "ask": format!("GET {}", self.path())}),
        };
        json!({
            "tenant_id": self.key.tenant_id,
            "incident_id": self.key.incident_id,
            "workspace": self.key.workspace,
            "route": self.link.as_ref().map_or(&self.route, |link| &link.route),
            "twin": self.link.as_ref().map(|link| &link.sentinel_id),
            "agreed": self.state.as_ref().and_then(|state| state.known.as_ref()).map(|known| json!({
                "defender": format_instant(known.defender_updated), "sentinel": known.sentinel_etag,
            })),
            "unproved_writes": unproved,
            "rules": rules,
            "queue": self.queue.iter().map(row_json).collect::<Vec<_>>(),
            "service": service,
            "why_not": self.why_not,
            "entries": self.entries.iter().map(|entry| json!({
                "at": format_instant(entry.at), "kind": entry.kind, "detail": entry.detail,
            })).collect::<Vec<_>>(),
        })
    }
}
