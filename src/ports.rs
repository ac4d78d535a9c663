//! The whole contract with the outside, in one file: what `app` needs of the two systems, of the store, of time
//! and of chance. Adapters implement it; tests implement it again with a memory and a will to fail.
//!
//! Instants are UTC. Keys are compared as they stand: adapters and doors lower-case what is compared without case
//! (tenant ids, workspace resource ids) before they build one.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::digest::Bookmark;
use crate::domain::failure::Failure;
use crate::domain::model::{
    AlertPatch, DefenderComment, DefenderIncident, DefenderPatch, LinkKey, SentinelComment, SentinelIncident,
    SentinelWrite, Side,
};
use crate::domain::owners::Person;

/// What a hint is about: one incident of one side. The queue's key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// Which system the incident lives in.
    pub side: Side,
    /// Defender: the tenant id. Sentinel: the workspace's resource id. Both in lower case.
    pub scope: String,
    /// The incident's id in that system: Graph's `id`, or ARM's `name`.
    pub native_id: String,
}

/// What the id of a subject begins with that is an alert. Graph's ids of incidents are numbers.
const ALERT: &str = "alert:";

impl Subject {
    /// A tenant's alert, where nobody has said yet which incident it belongs to. A worker asks, and passes the hint on.
    pub fn of_alert(tenant_id: &str, alert_id: &str) -> Self {
        let native_id = format!("{ALERT}{alert_id}");
        Self { side: Side::Defender, scope: tenant_id.to_owned(), native_id }
    }

    /// The alert, if it is one.
    pub fn alert(&self) -> Option<&str> {
        self.native_id.strip_prefix(ALERT).filter(|_| self.side == Side::Defender)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.side, self.scope, self.native_id)
    }
}

/// One system of one customer: the side, and [`Subject::scope`].
pub type Scope = (Side, String);

/// "Something about this incident may have changed": all that a notification or a poll is ever taken for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Which incident.
    pub subject: Subject,
    /// The version the sender spoke of (Defender: `lastUpdateDateTime`; Sentinel: the etag), where it named one.
    pub version: Option<String>,
    /// Which door it came through: a short constant such as `graph-notification`, `playbook`, `poll`, `sweep`.
    pub source: String,
}

/// One lease in so many is for a background row, whatever live work is due: a load that never pauses must not starve
/// the sweep, which finds what hints have missed.
pub const BACKGROUND_SHARE: usize = 10;

/// The sources of hints that nobody waits for: they are served when nothing else is due, and now and then besides.
const BACKGROUND: [&str; 2] = ["backfill", "sweep"];

impl Hint {
    /// Whether the hint may wait while there is live work.
    pub fn background(&self) -> bool {
        BACKGROUND.contains(&self.source.as_str())
    }
}

/// The identity of one delivery, for senders that repeat a delivery whose answer they did not hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The namespace of the id, for example `playbook:soc`.
    pub door: String,
    /// The sender's id of the delivery (Standard Webhooks: `webhook-id`).
    pub id: String,
    /// From when on the store may forget the id.
    pub keep_until: OffsetDateTime,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// Committed to disk.
    New,
    /// This delivery id was stored before; nothing was stored now.
    Repeated,
}

/// A queue row in somebody's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLease {
    /// Which incident.
    pub subject: Subject,
    /// The `wanted` counter at the lease; settling sets `done` to it.
    pub wanted: i64,
    /// The one version that all hints since the last settle named, or `None` when they named several or none.
    pub version: Option<String>,
    /// The sources of the hints since the last settle, distinct, comma separated, at most 200 characters.
    pub sources: String,
    /// How many hints came in since the last settle.
    pub hints: i64,
    /// When this row was last served, if it still rests from it: many hints soon after are one burst, to be waited out.
    pub served_at: Option<OffsetDateTime>,
    /// How many times this row has failed in a row.
    pub attempts: u32,
    /// When the first of the hints not yet served came in.
    pub first_hint_at: OffsetDateTime,
    /// Proof of possession: settling needs it.
    pub token: Uuid,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Served up to the lease's `wanted`. The row stays, not due before `rest_until`, so that the hints of a burst
    /// gather on it instead of starting a job each; a row that wants nothing is forgotten some time after its rest.
    Done {
        /// The earliest next lease, should more hints have come or come meanwhile.
        rest_until: OffsetDateTime,
    },
    /// To be tried again, not before this instant.
    Again {
        /// The earliest next lease.
        not_before: OffsetDateTime,
        /// Whether the attempt counts as a failure of the job itself.
        counts: bool,
    },
    /// Served, and to be looked at once more at this instant, or as soon as another hint comes: nothing is wrong, and
    /// what is news now must not wait for what is expected later.
    Look {
        /// When, if no hint comes before.
        at: OffsetDateTime,
    },
    /// Put aside with a reason, where a person sees it. A hint with a version the row had not seen unparks it.
    Park {
        /// For a person to read.
        reason: String,
    },
}

/// Whether the store still honoured the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The lease was ours and the change is committed.
    Yes,
    /// Somebody else holds it, or it is gone; nothing was changed.
    No,
}

/// A named mutual exclusion across workers and replicas (a link, a poller, a sweep).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// For example `link:<key>` or `poll:defender:<tenant>`.
    pub name: String,
    /// Proof of possession.
    pub token: Uuid,
}

/// One Defender incident and its Sentinel twin, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// Identity: tenant id, incident id, workspace resource id.
    pub key: LinkKey,
    /// The route that made or adopted it (a name from the configuration, for people).
    pub route: String,
    /// The twin's ARM name, stored before the twin is created.
    pub sentinel_id: String,
    /// What is known and intended: `domain::model::LinkState` as JSON. The store does not look inside.
    pub state: String,
    /// Why the link is put aside, if it is.
    pub parked: Option<String>,
    /// When the record was last stored.
    pub updated_at: OffsetDateTime,
}

/// A line of the journal: what happened to a link, and why. Never a payload body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// When.
    pub at: OffsetDateTime,
    /// Which link.
    pub link: LinkKey,
    /// `write`, `clash`, `park`, `note` and so on.
    pub kind: String,
    /// Field names, before, after, rule, cause, request ids: a JSON object.
    pub detail: serde_json::Value,
}

/// A stop on writes that an operator ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The route, or `*` for all.
    pub route: String,
    /// Since when.
    pub since: OffsetDateTime,
    /// For a person to read.
    pub reason: String,
}

/// A parked queue row, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Which incident.
    pub subject: Subject,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: OffsetDateTime,
}

/// A row of the queue, for people: what waits for one incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Which incident.
    pub subject: Subject,
    /// How many hints are yet to be served.
    pub hints: i64,
    /// When the first of them came in.
    pub since: Option<OffsetDateTime>,
    /// The doors that they came through, comma separated.
    pub sources: String,
    /// The one version that all of them named, if they did.
    pub version: Option<String>,
    /// How many times the row has failed in a row.
    pub attempts: u32,
    /// When it is looked at next, at the earliest; while it is leased, when the lease runs out.
    pub next: OffsetDateTime,
    /// Whether a worker has it.
    pub leased: bool,
    /// Whether live work goes before it.
    pub background: bool,
    /// Why it is put aside, and since when, if it is.
    pub parked: Option<(String, OffsetDateTime)>,
}

/// How long our own budget of calls to a side makes a call wait; `None` where it need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// A call that reads.
    pub reads: Option<std::time::Duration>,
    /// A call that writes.
    pub writes: Option<std::time::Duration>,
}

/// The state of the queue, for metrics and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueueStats {
    /// Rows that want service and are not parked.
    pub waiting: i64,
    /// How many of them nobody waits for: background rows.
    pub background: i64,
    /// Rows put aside.
    pub parked: i64,
    /// When the oldest unserved hint of a live row (that is not parked) came in: how far behind the service is.
    pub oldest: Option<OffsetDateTime>,
    /// The same for background rows, which may wait for long and are no sign of trouble.
    pub oldest_background: Option<OffsetDateTime>,
}

/// Why the store could not do it. Above the adapter nobody looks at a driver's error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Out of reach, full or busy for longer than its patience: what was asked may be asked again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Something in it does not read as we wrote it.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

/// Durable state. Two implementations, one contract suite (`adapters::store::contract`).
///
/// Every method that returns `Ok` has committed durably (SQLite: WAL with `synchronous=FULL`).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Stores hints: `wanted += 1` on each subject's row, creating it where it is missing. With a `delivery`, in the
    /// same transaction, its id; a repeated id stores nothing. Concurrent calls are committed together.
    ///
    /// A parked row is unparked when the hint names a version other than the one it was parked with, or none at all
    /// and the row was parked more than an hour ago.
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        now: OffsetDateTime,
    ) -> Result<Remembered, StoreError>;

    /// Leases up to `most` rows that want service, are not parked, not leased (or their lease ran out) and due.
    /// Live rows come first, whatever their scope, but for one lease in [`BACKGROUND_SHARE`], which is then the first
    /// of the answer, because whoever leases several may give the others back; a row is background only while every
    /// hint it has yet to serve is ([`Hint::background`]) and no person unparked it. Among the rows of either kind:
    /// oldest hint first, but fair between scopes (no scope gets a second row while another waits for its first).
    /// Scopes in `skip` get none: they cannot be served now, and looking at their rows would be work for nothing.
    async fn lease_jobs(
        &self,
        most: usize,
        skip: &[Scope],
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError>;

    /// Ends a lease. `Held::No` when the token no longer holds the row.
    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError>;

    /// Takes the fence for `name` until `until`, if nobody else holds it at `now`.
    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError>;

    /// Prolongs a fence that is still ours.
    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError>;

    /// Gives a fence back. Giving back what is no longer ours does nothing.
    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError>;

    /// The link of a Defender incident into a workspace.
    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError>;

    /// The links whose twin this is (several only when routes overlap).
    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError>;

    /// Stores a link and journal lines in one transaction, if `fence` is still ours at `now`.
    async fn save_link(
        &self,
        link: &LinkRecord,
        journal: &[JournalEntry],
        fence: &Fence,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError>;

    /// Links of a route (all routes when `None`) in key order, after `after`, at most `most`.
    async fn links(
        &self,
        route: Option<&str>,
        after: Option<&LinkKey>,
        most: usize,
    ) -> Result<Vec<LinkRecord>, StoreError>;

    /// How many journal lines of this kind a link has since an instant (the loop breaker counts `write`).
    async fn journal_count(
        &self,
        link: &LinkKey,
        kind: &str,
        since: OffsetDateTime,
    ) -> Result<u64, StoreError>;

    /// The newest journal lines of a link, oldest first, at most `most`.
    async fn journal(&self, link: &LinkKey, most: usize) -> Result<Vec<JournalEntry>, StoreError>;

    /// A named value: watermarks, the time of the last sweep.
    async fn value(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Sets a named value.
    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError>;

    /// The named values whose name begins with `prefix`, as they stand in the order of the names' bytes, from beyond the
    /// name `after`, at most `most`.
    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<(String, String)>, StoreError>;

    /// Forgets a named value. What is not there is as good as forgotten.
    async fn remove_value(&self, name: &str) -> Result<(), StoreError>;

    /// Orders a stop on writes for a route, or `*` for all. Repeating it keeps the first `since`.
    async fn hold(&self, hold: &Hold) -> Result<(), StoreError>;

    /// Lifts a stop. `*` lifts every stop. Returns how many were lifted.
    async fn release(&self, route: &str) -> Result<u64, StoreError>;

    /// The stops in force.
    async fn holds(&self) -> Result<Vec<Hold>, StoreError>;

    /// The row of an incident in the queue. A row that was served is forgotten some time after its rest.
    async fn queued(&self, subject: &Subject) -> Result<Option<Queued>, StoreError>;

    /// What is parked, newest first, at most `most`. An incident is listed once, with every reason: its rows on both
    /// sides and its links may each be parked. The subject is the Defender incident, which stands for all of it, or the
    /// twin where nothing but its row is parked.
    async fn parked(&self, most: usize) -> Result<Vec<Parked>, StoreError>;

    /// Makes what is parked of an incident runnable again: of a Defender incident, its row, its links and their twins'
    /// rows; of a twin, its row, its links and their incidents' rows. False when nothing was parked.
    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError>;

    /// The state of the queue.
    async fn queue_stats(&self) -> Result<QueueStats, StoreError>;

    /// Forgets delivery ids past their time and journal lines older than `journal_before`.
    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError>;

    /// One small write and read, to prove that the store can take a commit.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// One page of a change list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The records that could be read. Those that could not are counted in `unreadable`.
    pub records: Vec<T>,
    /// Where the next page is (an absolute URL of the same host), if there is one.
    pub next: Option<String>,
    /// Ids (or positions, where even the id is unreadable) of records that could not be read, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// A record of the list of alerts that changed: what a poll wants to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertNews {
    /// The alert.
    pub id: String,
    /// The incident that it belongs to now.
    pub incident_id: Option<String>,
    /// When it was last updated.
    pub updated: OffsetDateTime,
}

/// The scope under which calls about a tenant's alerts are watched: they have a role of their own, and its lack is no
/// trouble of the incidents.
pub fn alerts_scope(tenant_id: &str) -> String {
    format!("{tenant_id}/alerts")
}

/// Microsoft Defender XDR, through the Graph security API of one tenant.
#[async_trait]
pub trait Defender: Send + Sync + 'static {
    /// How long our own budget makes a call wait that is asked for now. Fakes that have none need not say so.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// One incident; `None` when Graph says 404.
    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure>;

    /// Incidents with `lastUpdateDateTime ge since`; `next` continues an earlier page.
    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure>;

    /// Incidents that came to be from `from` (included) to `to` (excluded); `next` continues an earlier page.
    ///
    /// What comes to be is updated no earlier, so the change list since `from` holds them all: fakes need no more.
    async fn created_between(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let mut page = self.changed_since(from, next).await?;
        page.records.retain(|incident| {
            let created = incident.created.unwrap_or(incident.updated);
            created >= from && created < to
        });
        Ok(page)
    }

    /// Sends only the members that the patch names. Returns the incident as Graph answered.
    async fn update(&self, id: &str, patch: &DefenderPatch) -> Result<DefenderIncident, Failure>;

    /// Appends a comment, which can neither be changed nor removed. Not idempotent: after an unknown outcome look before
    /// repeating it. Returns all comments as Graph answered.
    async fn comment(&self, id: &str, text: &str) -> Result<Vec<DefenderComment>, Failure>;

    /// Alerts with `lastUpdateDateTime ge since`; `next` continues an earlier page. None where there is no such list.
    async fn alerts_changed_since(
        &self,
        _since: OffsetDateTime,
        _next: Option<&str>,
    ) -> Result<Page<AlertNews>, Failure> {
        Ok(Page { records: Vec::new(), next: None, unreadable: Vec::new() })
    }

    /// The incident that an alert belongs to. `None` when there is no such alert, or it belongs to none.
    async fn incident_of_alert(&self, _id: &str) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    /// Changes one alert.
    async fn update_alert(&self, id: &str, patch: &AlertPatch) -> Result<(), Failure>;
}

/// Microsoft Sentinel, through ARM, one workspace.
#[async_trait]
pub trait Sentinel: Send + Sync + 'static {
    /// How long our own budget makes a call wait that is asked for now. Fakes that have none need not say so.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// One incident; `None` when it is not there (and the workspace is).
    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure>;

    /// Incidents with `lastModifiedTimeUtc ge since`, ascending; `next` continues an earlier page.
    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure>;

    /// Every incident of the workspace, in pages as long as the service allows; `next` continues an earlier page. One
    /// that changes meanwhile may come twice.
    async fn everything(&self, next: Option<&str>) -> Result<Page<SentinelIncident>, Failure> {
        self.changed_since(OffsetDateTime::UNIX_EPOCH, next).await
    }

    /// Creates (no etag) or replaces (under the etag it was computed from). Returns the incident as answered.
    async fn put(&self, name: &str, write: &SentinelWrite) -> Result<SentinelIncident, Failure>;

    /// All comments of an incident; none when it is not there.
    async fn comments(&self, name: &str) -> Result<Vec<SentinelComment>, Failure>;

    /// Creates or replaces the comment of this id: repeating it is the same comment.
    async fn put_comment(&self, name: &str, id: &str, message: &str) -> Result<SentinelComment, Failure>;

    /// Creates or replaces the bookmark of this id, and relates it to an incident. Repeating it changes nothing.
    async fn put_bookmark(&self, name: &str, id: &str, bookmark: &Bookmark) -> Result<(), Failure>;
}

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// Now, in UTC.
    fn now(&self) -> OffsetDateTime;
}

/// Chance: jitter and fresh ids.
pub trait Dice: Send + Sync + 'static {
    /// Evenly from 0 (included) to 1 (excluded).
    fn roll(&self) -> f64;
}

/// Who watches the calls that adapters make: metrics and the readiness page. Must be quick and must not fail.
pub trait ApiObserver: Send + Sync + 'static {
    /// A call was answered (`status`) or broke off (`None`).
    fn called(
        &self,
        side: Side,
        scope: &str,
        operation: &'static str,
        status: Option<u16>,
        took: std::time::Duration,
    );

    /// The side changed between open and closed: why it is closed and until when, or `None` when it is open again.
    fn gate(&self, side: Side, scope: &str, closed: Option<(&str, OffsetDateTime)>);

    /// A token was fetched, or could not be: the sentence says why, without secrets.
    fn token(&self, side: Side, scope: &str, outcome: Result<OffsetDateTime, &str>);
}

/// The people of one tenant.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The user of this principal name or object id, or the group of this object id. `None` when there is neither.
    /// A failure means that the directory would not say, and proves nothing about the person.
    async fn person(&self, name_or_id: &str) -> Result<Option<Person>, Failure>;
}

/// The key service would not, or could not, hand out a document. One sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyTrouble(pub String);

/// Where Entra ID publishes the keys that prove its tokens.
#[async_trait]
pub trait KeySource: Send + Sync + 'static {
    /// A discovery or key document, whole and of bounded size. The address comes from the configuration, or from a
    /// discovery document on the same host; never from a token.
    async fn document(&self, address: &str) -> Result<Vec<u8>, KeyTrouble>;
}

/// What a subscription to change notifications is to be.
#[derive(Clone, Debug)]
pub struct SubscriptionOrder {
    /// The path that is watched, such as `security/incidents`.
    pub resource: String,
    /// `created,updated`
    pub change_types: String,
    /// Where notifications go.
    pub notification_url: String,
    /// Where the news of the subscription itself goes.
    pub lifecycle_url: String,
    /// When it ends.
    pub expires: OffsetDateTime,
    /// What every item has to repeat.
    pub client_state: secrecy::SecretString,
    /// The certificate that the resource is to be encrypted for; without one, the resource stays behind.
    pub certificate: Option<EncryptionCertificate>,
}

/// A certificate as Graph takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionCertificate {
    /// Under which id notifications name it.
    pub id: String,
    /// Its DER in base64. No secret.
    pub certificate: String,
}

/// A subscription as Graph shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Graph's id of it.
    pub id: String,
    /// The path that is watched.
    pub resource: String,
    /// Where its notifications go.
    pub notification_url: String,
    /// When it ends.
    pub expires: OffsetDateTime,
}

/// What a subscription is changed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionChange {
    /// When it ends. Renewing authorises anew, too.
    pub expires: Option<OffsetDateTime>,
    /// The certificate that takes over.
    pub certificate: Option<EncryptionCertificate>,
}

/// The subscriptions of one application in one tenant.
#[async_trait]
pub trait Subscriptions: Send + Sync + 'static {
    /// All of them.
    async fn list(&self) -> Result<Vec<Subscription>, Failure>;

    /// Makes one. The service calls both URLs before it answers. After an unknown outcome there may be one.
    async fn create(&self, order: &SubscriptionOrder) -> Result<Subscription, Failure>;

    /// Changes one; `None` when it is gone.
    async fn change(&self, id: &str, change: &SubscriptionChange) -> Result<Option<Subscription>, Failure>;

    /// Authorises one anew, which does not prolong it. False when it is gone.
    async fn reauthorize(&self, id: &str) -> Result<bool, Failure>;

    /// Ends one. What is gone is as good as ended.
    async fn end(&self, id: &str) -> Result<(), Failure>;
}

/// A secret out of a vault, with the version of it.
#[derive(Clone, Debug)]
pub struct VaultSecret {
    /// The version: a new one is a new secret.
    pub version: String,
    /// The value.
    pub value: secrecy::SecretString,
}

/// A store of secrets outside.
#[async_trait]
pub trait Vault: Send + Sync + 'static {
    /// A secret: its newest version, or the one that is named. `None` when there is none.
    async fn secret(&self, name: &str, version: Option<&str>) -> Result<Option<VaultSecret>, Failure>;
}
