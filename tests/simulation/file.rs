//! The real store on a file, for a few of the worlds. Its threads know nothing of the paused clock, so each call runs
//! where tokio knows that it must not let time leap meanwhile. Links and journal are mirrored for the fakes to look at.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lockstep::adapters::store::SqliteStore;
use lockstep::domain::model::LinkKey;
use lockstep::ports::*;
use time::OffsetDateTime;

use crate::life::Fuse;
use crate::store::Disk;

pub(crate) struct File {
    pub(crate) inner: Arc<SqliteStore>,
    pub(crate) mirror: Arc<Mutex<Disk>>,
    pub(crate) fuse: Arc<Fuse>,
}

macro_rules! ask {
    ($self:ident, $method:ident $(, $name:ident = $value:expr => $pass:expr)*) => {{
        $self.fuse.pass().await;
        let (inner, runtime) = ($self.inner.clone(), tokio::runtime::Handle::current());
        $(#[allow(clippy::redundant_locals, reason = "some are copies")] let $name = $value;)*
        let work = move || runtime.block_on(async move { inner.$method($($pass),*).await });
        let answer = tokio::task::spawn_blocking(work).await.expect("the store does not panic");
        $self.fuse.pass().await;
        answer
    }};
}

#[async_trait]
impl Store for File {
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        now: OffsetDateTime,
    ) -> Result<Remembered, StoreError> {
        ask!(self, remember, hints = hints => hints, delivery = delivery => delivery, now = now => now)
    }

    async fn lease_jobs(
        &self,
        most: usize,
        skip: &[Scope],
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        ask!(self, lease_jobs, most = most => most, skip = skip.to_vec() => &skip, now = now => now, until = until => until)
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        ask!(self, settle, lease = lease.clone() => &lease, to = settlement => to, now = now => now)
    }

    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError> {
        ask!(self, take_fence, name = name.to_owned() => &name, now = now => now, until = until => until)
    }

    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        ask!(self, extend_fence, fence = fence.clone() => &fence, now = now => now, until = until => until)
    }

    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError> {
        ask!(self, release_fence, fence = fence.clone() => &fence)
    }

    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        ask!(self, link, key = key.clone() => &key)
    }

    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError> {
        ask!(self, links_of_twin, workspace = workspace.to_owned() => &workspace,
            id = sentinel_id.to_owned() => &id)
    }

    async fn save_link(
        &self,
        link: &LinkRecord,
        journal: &[JournalEntry],
        fence: &Fence,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let answer = ask!(self, save_link, record = link.clone() => &record, lines = journal.to_vec() => &lines,
            fence = fence.clone() => &fence, now = now => now)?;
        if answer == Held::Yes {
            let mut mirror = self.mirror.lock().unwrap();
            mirror.links.insert(link.key.clone(), link.clone());
            mirror.journal.extend_from_slice(journal);
        }
        Ok(answer)
    }

    async fn links(
        &self,
        route: Option<&str>,
        after: Option<&LinkKey>,
        most: usize,
    ) -> Result<Vec<LinkRecord>, StoreError> {
        ask!(self, links, route = route.map(str::to_owned) => route.as_deref(),
            after = after.cloned() => after.as_ref(), most = most => most)
    }

    async fn journal_count(
        &self,
        link: &LinkKey,
        kind: &str,
        since: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        ask!(self, journal_count, link = link.clone() => &link, kind = kind.to_owned() => &kind,
            since = since => since)
    }

    async fn journal(&self, link: &LinkKey, most: usize) -> Result<Vec<JournalEntry>, StoreError> {
        ask!(self, journal, link = link.clone() => &link, most = most => most)
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        ask!(self, value, name = name.to_owned() => &name)
    }

    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        ask!(self, set_value, name = name.to_owned() => &name, value = value.to_owned() => &value)
    }

    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        ask!(self, values, prefix = prefix.to_owned() => &prefix,
            after = after.map(str::to_owned) => after.as_deref(), most = most => most)
    }

    async fn remove_value(&self, name: &str) -> Result<(), StoreError> {
        ask!(self, remove_value, name = name.to_owned() => &name)
    }

    async fn hold(&self, hold: &Hold) -> Result<(), StoreError> {
        ask!(self, hold, hold = hold.clone() => &hold)
    }

    async fn release(&self, route: &str) -> Result<u64, StoreError> {
        ask!(self, release, route = route.to_owned() => &route)
    }

    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        ask!(self, holds)
    }

    async fn queued(&self, subject: &Subject) -> Result<Option<Queued>, StoreError> {
        ask!(self, queued, subject = subject.clone() => &subject)
    }

    async fn parked(&self, most: usize) -> Result<Vec<Parked>, StoreError> {
        ask!(self, parked, most = most => most)
    }

    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError> {
        ask!(self, unpark, subject = subject.clone() => &subject, now = now => now)
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        ask!(self, queue_stats)
    }

    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError> {
        ask!(self, purge, now = now => now, before = journal_before => before)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        ask!(self, ping)
    }
}
