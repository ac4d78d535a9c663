//! A store in memory that keeps the contract of `ports::Store`. It survives the crash of an application because the
//! world owns it; every call passes the application's fuse first and last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use lockstep::domain::model::LinkKey;
use lockstep::ports::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::life::Fuse;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) wanted: i64,
    pub(crate) done: i64,
    version: Option<String>,
    mixed: bool,
    sources: Vec<String>,
    hints: i64,
    live: bool,
    wakes: bool,
    served_at: Option<OffsetDateTime>,
    not_before: OffsetDateTime,
    attempts: u32,
    first_hint_at: OffsetDateTime,
    lease: Option<(Uuid, OffsetDateTime)>,
    pub(crate) parked: Option<(String, OffsetDateTime, Option<String>)>,
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) rows: BTreeMap<Subject, Row>,
    pub(crate) links: BTreeMap<LinkKey, LinkRecord>,
    pub(crate) journal: Vec<JournalEntry>,
    fences: HashMap<String, (Uuid, OffsetDateTime)>,
    pub(crate) values: HashMap<String, String>,
    holds: Vec<Hold>,
    deliveries: HashSet<(String, String)>,
    tokens: u128,
}

impl Disk {
    fn token(&mut self) -> Uuid {
        self.tokens += 1;
        Uuid::from_u128(self.tokens)
    }

    fn holds_fence(&self, fence: &Fence, now: OffsetDateTime) -> bool {
        self.fences.get(&fence.name).is_some_and(|(token, until)| *token == fence.token && *until > now)
    }

    /// A process that starts again on its own disk knows that nobody else holds anything.
    pub(crate) fn restart(&mut self) {
        self.fences.clear();
        for row in self.rows.values_mut() {
            row.lease = None;
        }
    }
}

/// One application's handle.
pub(crate) struct Memory {
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) fuse: Arc<Fuse>,
}

impl Memory {
    async fn enter(&self) -> MutexGuard<'_, Disk> {
        self.fuse.pass().await;
        self.disk.lock().unwrap()
    }

    async fn leave<T>(&self, answer: T) -> Result<T, StoreError> {
        self.fuse.pass().await;
        Ok(answer)
    }
}

fn held(yes: bool) -> Held {
    if yes { Held::Yes } else { Held::No }
}

#[async_trait]
impl Store for Memory {
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        now: OffsetDateTime,
    ) -> Result<Remembered, StoreError> {
        {
            let mut disk = self.enter().await;
            if let Some(delivery) = delivery
                && !disk.deliveries.insert((delivery.door, delivery.id))
            {
                return Ok(Remembered::Repeated);
            }
            for hint in hints {
                let live = !hint.background();
                let row = disk.rows.entry(hint.subject).or_insert_with(|| Row {
                    wanted: 0,
                    done: 0,
                    version: None,
                    mixed: false,
                    sources: Vec::new(),
                    hints: 0,
                    live: false,
                    served_at: None,
                    not_before: now,
                    wakes: false,
                    attempts: 0,
                    first_hint_at: now,
                    lease: None,
                    parked: None,
                });
                if row.wanted == row.done {
                    row.first_hint_at = now;
                }
                row.wanted += 1;
                if row.hints == 0 {
                    row.version = hint.version.clone();
                } else if row.version != hint.version {
                    row.mixed = true;
                }
                row.hints += 1;
                if row.wakes {
                    row.not_before = row.not_before.min(now);
                }
                row.live |= live;
                if !row.sources.contains(&hint.source) {
                    row.sources.push(hint.source);
                }
                if let Some((_, since, version)) = &row.parked {
                    let other = hint.version.is_some() && hint.version != *version;
                    if other || (hint.version.is_none() && now - *since > Duration::hours(1)) {
                        row.parked = None;
                        row.attempts = 0;
                    }
                }
            }
        }
        self.leave(Remembered::New).await
    }

    async fn lease_jobs(
        &self,
        most: usize,
        skip: &[Scope],
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        let leases = {
            let mut disk = self.enter().await;
            let mut due: Vec<(bool, usize, OffsetDateTime, Subject)> = Vec::new();
            let mut ranks: HashMap<(bool, String), usize> = HashMap::new();
            let mut rows: Vec<(&Subject, &Row)> = disk.rows.iter().collect();
            rows.sort_by_key(|(_, row)| row.first_hint_at);
            for (subject, row) in rows {
                let leased = row.lease.is_some_and(|(_, until)| until > now)
                    || skip.contains(&(subject.side, subject.scope.clone()));
                if row.wanted > row.done && row.parked.is_none() && !leased && row.not_before <= now {
                    let rank = ranks.entry((row.live, subject.scope.clone())).or_default();
                    due.push((!row.live, *rank, row.first_hint_at, subject.clone()));
                    *rank += 1;
                }
            }
            due.sort();
            let mut leases = Vec::new();
            for (_, _, _, subject) in due.into_iter().take(most) {
                let token = disk.token();
                let row = disk.rows.get_mut(&subject).unwrap();
                row.lease = Some((token, until));
                row.wakes = false;
                leases.push(JobLease {
                    wanted: row.wanted,
                    version: row.version.clone().filter(|_| !row.mixed),
                    sources: row.sources.join(","),
                    hints: row.hints,
                    served_at: row.served_at,
                    attempts: row.attempts,
                    first_hint_at: row.first_hint_at,
                    token,
                    subject,
                });
            }
            leases
        };
        self.leave(leases).await
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let answer = {
            let mut disk = self.enter().await;
            match disk.rows.get_mut(&lease.subject) {
                Some(row) if row.lease.is_some_and(|(token, _)| token == lease.token) => {
                    row.lease = None;
                    match settlement {
                        Settlement::Done { rest_until } => {
                            row.done = lease.wanted;
                            row.hints -= lease.hints;
                            row.served_at = Some(now);
                            row.not_before = rest_until;
                            row.attempts = 0;
                            row.first_hint_at = now;
                            if row.hints == 0 {
                                (row.version, row.mixed, row.live) = (None, false, false);
                                row.sources.clear();
                            } else {
                                // Which of the hints came meanwhile is not known: look at all of it.
                                row.mixed = true;
                            }
                        }
                        Settlement::Again { not_before, counts } => {
                            row.not_before = not_before;
                            row.attempts += u32::from(counts);
                        }
                        Settlement::Look { at } => {
                            row.attempts = 0;
                            row.served_at = Some(now);
                            row.wakes = true;
                            row.not_before = if row.wanted > lease.wanted { at.min(now) } else { at };
                        }
                        Settlement::Park { reason } => {
                            row.done = lease.wanted;
                            row.parked = Some((reason, now, row.version.clone()));
                        }
                    }
                    Held::Yes
                }
                _ => Held::No,
            }
        };
        self.leave(answer).await
    }

    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError> {
        let answer = {
            let mut disk = self.enter().await;
            let free = disk.fences.get(name).is_none_or(|(_, until)| *until <= now);
            free.then(|| {
                let token = disk.token();
                disk.fences.insert(name.to_owned(), (token, until));
                Fence { name: name.to_owned(), token }
            })
        };
        self.leave(answer).await
    }

    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let answer = {
            let mut disk = self.enter().await;
            let ours = disk.holds_fence(fence, now);
            if ours {
                disk.fences.insert(fence.name.clone(), (fence.token, until));
            }
            held(ours)
        };
        self.leave(answer).await
    }

    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError> {
        {
            let mut disk = self.enter().await;
            if disk.fences.get(&fence.name).is_some_and(|(token, _)| *token == fence.token) {
                disk.fences.remove(&fence.name);
            }
        }
        self.leave(()).await
    }

    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        let answer = self.enter().await.links.get(key).cloned();
        self.leave(answer).await
    }

    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError> {
        let disk = self.enter().await;
        let ours = |link: &&LinkRecord| link.key.workspace == workspace && link.sentinel_id == sentinel_id;
        Ok(disk.links.values().filter(ours).cloned().collect())
    }

    async fn save_link(
        &self,
        link: &LinkRecord,
        journal: &[JournalEntry],
        fence: &Fence,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let answer = {
            let mut disk = self.enter().await;
            let ours = disk.holds_fence(fence, now);
            if ours {
                disk.links.insert(link.key.clone(), link.clone());
                disk.journal.extend_from_slice(journal);
            }
            held(ours)
        };
        self.leave(answer).await
    }

    async fn links(
        &self,
        route: Option<&str>,
        after: Option<&LinkKey>,
        most: usize,
    ) -> Result<Vec<LinkRecord>, StoreError> {
        let disk = self.enter().await;
        let wanted = |link: &&LinkRecord| {
            route.is_none_or(|route| link.route == route) && after.is_none_or(|after| link.key > *after)
        };
        Ok(disk.links.values().filter(wanted).take(most).cloned().collect())
    }

    async fn journal_count(
        &self,
        link: &LinkKey,
        kind: &str,
        since: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let disk = self.enter().await;
        Ok(disk.journal.iter().filter(|l| l.link == *link && l.kind == kind && l.at >= since).count() as u64)
    }

    async fn journal(&self, link: &LinkKey, most: usize) -> Result<Vec<JournalEntry>, StoreError> {
        let disk = self.enter().await;
        let mut lines: Vec<_> =
            disk.journal.iter().rev().filter(|l| l.link == *link).take(most).cloned().collect();
        lines.reverse();
        Ok(lines)
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.enter().await.values.get(name).cloned())
    }

    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.enter().await.values.insert(name.to_owned(), value.to_owned());
        self.leave(()).await
    }

    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let disk = self.enter().await;
        let wanted = |name: &str| name.starts_with(prefix) && after.is_none_or(|after| name > after);
        let found = disk.values.iter().filter(|(name, _)| wanted(name));
        let found: BTreeMap<_, _> = found.map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(found.into_iter().take(most).collect())
    }

    async fn remove_value(&self, name: &str) -> Result<(), StoreError> {
        self.enter().await.values.remove(name);
        self.leave(()).await
    }

    async fn hold(&self, hold: &Hold) -> Result<(), StoreError> {
        self.enter().await.holds.push(hold.clone());
        Ok(())
    }

    async fn release(&self, route: &str) -> Result<u64, StoreError> {
        let mut disk = self.enter().await;
        let before = disk.holds.len();
        disk.holds.retain(|hold| route != "*" && hold.route != route);
        Ok((before - disk.holds.len()) as u64)
    }

    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        Ok(self.enter().await.holds.clone())
    }

    async fn queued(&self, subject: &Subject) -> Result<Option<Queued>, StoreError> {
        let disk = self.enter().await;
        Ok(disk.rows.get(subject).map(|row| Queued {
            subject: subject.clone(),
            hints: row.wanted - row.done,
            since: (row.wanted > row.done).then_some(row.first_hint_at),
            sources: row.sources.join(","),
            version: row.version.clone().filter(|_| !row.mixed),
            attempts: row.attempts,
            next: row.lease.map_or(row.not_before, |(_, until)| until),
            leased: row.lease.is_some(),
            background: !row.live,
            parked: row.parked.clone().map(|(why, since, _)| (why, since)),
        }))
    }

    async fn parked(&self, most: usize) -> Result<Vec<Parked>, StoreError> {
        let disk = self.enter().await;
        let parked = disk.rows.iter().filter_map(|(subject, row)| {
            let (reason, since, _) = row.parked.clone()?;
            Some(Parked { subject: subject.clone(), reason, since })
        });
        Ok(parked.take(most).collect())
    }

    async fn unpark(&self, subject: &Subject, _now: OffsetDateTime) -> Result<bool, StoreError> {
        let mut disk = self.enter().await;
        let Some(row) = disk.rows.get_mut(subject) else { return Ok(false) };
        let was = row.parked.take().is_some();
        row.wanted += 1;
        row.live = true;
        Ok(was)
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        let disk = self.enter().await;
        let waiting = disk.rows.values().filter(|row| row.wanted > row.done && row.parked.is_none()).count();
        let parked = disk.rows.values().filter(|row| row.parked.is_some()).count();
        Ok(QueueStats { waiting: waiting as i64, parked: parked as i64, ..QueueStats::default() })
    }

    async fn purge(&self, _now: OffsetDateTime, _journal_before: OffsetDateTime) -> Result<(), StoreError> {
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
