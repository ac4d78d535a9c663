//! The store for several replicas: PostgreSQL. Leases are rows taken with `SKIP LOCKED` and guarded by tokens; hints of
//! many requests share a commit, as arrays in one statement, on a connection of their own.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Row};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    Folded, MOST_IN_A_COMMIT, MOST_WAITING, PARKED_FOR, PATIENCE, fold, instant, join_sources, nanos,
    side_number, side_of,
};
use crate::domain::model::{LinkKey, Side};
use crate::ports::{
    Delivery, Fence, Held, Hint, Hold, JobLease, JournalEntry, LinkRecord, Parked, QueueStats, Remembered,
    Settlement, Store, StoreError, Subject,
};

const MIGRATIONS: &[&str] = &[include_str!("migrations/postgres-1.sql")];
/// One key for everybody who migrates: the letters of "lockstep".
const MIGRATION_LOCK: i64 = 0x6c6f_636b_7374_6570;
const MOST_CONNECTIONS: u32 = 12;
/// How long a served row that wants nothing is kept after its rest.
const RESTING_FOR: i64 = 60 * 1_000_000_000;
/// How often a commit is tried that the server broke off to resolve a deadlock.
const TRIES: usize = 3;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    pool: PgPool,
    hints: mpsc::Sender<Waiting>,
}

/// One request's hints on their way to a commit.
struct Waiting {
    hints: Vec<Folded>,
    delivery: Option<Delivery>,
    now: i64,
    reply: oneshot::Sender<Result<Remembered, StoreError>>,
}

impl PostgresStore {
    /// Connects, and brings the tables up to date. Replicas that start together wait for each other here.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                let form = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";
                StoreError::Unavailable(format!("its URL does not parse; the form is {form}"))
            })?
            .application_name("lockstep")
            .options([("statement_timeout", "5s"), ("lock_timeout", "4s")]);
        let pool = PgPoolOptions::new()
            .max_connections(MOST_CONNECTIONS)
            .acquire_timeout(Duration::from_secs(3))
            .connect_with(options)
            .await
            .map_err(failed)?;
        migrate(&pool).await?;
        let (hints, waiting) = mpsc::channel(MOST_WAITING);
        tokio::spawn(commit_hints(pool.clone(), waiting));
        Ok(Self { pool, hints })
    }
}

async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    sqlx::query("CREATE TABLE IF NOT EXISTS lockstep_tables (version BIGINT NOT NULL)")
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    let applied: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM lockstep_tables")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let applied = usize::try_from(applied.unwrap_or(0)).unwrap_or(usize::MAX);
    if applied > MIGRATIONS.len() {
        let most = MIGRATIONS.len();
        return Err(StoreError::Corrupt(format!(
            "the database was written by a newer Lockstep (tables {applied}, this one knows {most}); use that one"
        )));
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(applied) {
        sqlx::raw_sql(*migration).execute(&mut *transaction).await.map_err(failed)?;
        sqlx::query("INSERT INTO lockstep_tables (version) VALUES ($1)")
            .bind(i64::try_from(index + 1).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// The driver's words, without the connection string.
fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            StoreError::Corrupt(error.to_string())
        }
        sqlx::Error::PoolTimedOut => {
            StoreError::Unavailable("no connection to PostgreSQL became free".to_owned())
        }
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn is_deadlock(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

async fn patient<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => Err(StoreError::Unavailable(format!("no answer in {} s", PATIENCE.as_secs()))),
    }
}

// ---- hints -------------------------------------------------------------------------------------------------------

/// Commits what is waiting, never waits for more. Ends when the store is dropped.
async fn commit_hints(pool: PgPool, mut waiting: mpsc::Receiver<Waiting>) {
    let mut group = Vec::with_capacity(MOST_IN_A_COMMIT);
    while waiting.recv_many(&mut group, MOST_IN_A_COMMIT).await > 0 {
        let mut outcome = patient(commit_group(&pool, &group)).await;
        for waiting in group.drain(..) {
            let repeated = match &mut outcome {
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
                // The first of two equal deliveries in one group is the new one.
                Ok(stored) => Ok(match waiting.delivery {
                    Some(Delivery { door, id, .. }) if !stored.remove(&(door.clone(), id.clone())) => {
                        Remembered::Repeated
                    }
                    _ => Remembered::New,
                }),
            };
            waiting.reply.send(repeated).ok();
        }
    }
}

/// Returns the deliveries that were new.
async fn commit_group(pool: &PgPool, group: &[Waiting]) -> Result<HashSet<(String, String)>, sqlx::Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_group(pool, group).await {
            Err(error) if is_deadlock(&error) && tries < TRIES => {}
            outcome => return outcome,
        }
    }
}

async fn try_group(pool: &PgPool, group: &[Waiting]) -> Result<HashSet<(String, String)>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let mut deliveries: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    for Waiting { delivery, now, .. } in group {
        if let Some(Delivery { door, id, keep_until }) = delivery {
            deliveries.entry((door, id)).or_insert((nanos(*keep_until), *now));
        }
    }
    let mut stored = HashSet::new();
    if !deliveries.is_empty() {
        let doors: Vec<&str> = deliveries.keys().map(|key| key.0).collect();
        let ids: Vec<&str> = deliveries.keys().map(|key| key.1).collect();
        let (until, now): (Vec<i64>, Vec<i64>) = deliveries.values().copied().unzip();
        let rows = sqlx::query(
            "INSERT INTO deliveries AS kept (door, id, keep_until)
             SELECT door, id, keep_until FROM unnest($1::text[], $2::text[], $3::bigint[]) AS new(door, id, keep_until)
             ON CONFLICT (door, id) DO UPDATE SET keep_until = excluded.keep_until
             WHERE kept.keep_until <= $4 RETURNING door, id",
        )
        .bind(doors)
        .bind(ids)
        .bind(until)
        .bind(now.into_iter().max().unwrap_or(0))
        .fetch_all(&mut *transaction)
        .await?;
        for row in rows {
            stored.insert((row.try_get(0)?, row.try_get(1)?));
        }
    }
    let mut counted = stored.clone();
    let mut folded: BTreeMap<(i16, &str, &str), (i64, Option<String>, String, i64)> = BTreeMap::new();
    for Waiting { hints, delivery, now, .. } in group {
        let repeated = delivery
            .as_ref()
            .is_some_and(|delivery| !counted.remove(&(delivery.door.clone(), delivery.id.clone())));
        if repeated {
            continue;
        }
        for Folded { side, scope, native_id, count, version, sources } in hints {
            folded
                .entry((*side, scope, native_id))
                .and_modify(|(counted, named, from, _)| {
                    *counted += count;
                    if named != version {
                        *named = None;
                    }
                    *from = join_sources(from, sources);
                })
                .or_insert_with(|| (*count, version.clone(), sources.clone(), *now));
        }
    }
    if !folded.is_empty() {
        let mut sides = Vec::with_capacity(folded.len());
        let mut scopes = Vec::with_capacity(folded.len());
        let mut ids = Vec::with_capacity(folded.len());
        let mut counts = Vec::with_capacity(folded.len());
        let mut versions = Vec::with_capacity(folded.len());
        let mut sources = Vec::with_capacity(folded.len());
        let mut nows = Vec::with_capacity(folded.len());
        for ((side, scope, id), (count, version, from, now)) in folded {
            sides.push(side);
            scopes.push(scope);
            ids.push(id);
            counts.push(count);
            versions.push(version);
            sources.push(from);
            nows.push(now);
        }
        sqlx::query(REMEMBER)
            .bind(sides)
            .bind(scopes)
            .bind(ids)
            .bind(counts)
            .bind(versions)
            .bind(sources)
            .bind(nows)
            .bind(PARKED_FOR)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(stored)
}

const REMEMBER: &str = "
    INSERT INTO jobs AS kept (side, scope, native_id, wanted, named, version, sources, first_hint_at, ready_at)
    SELECT side, scope, native_id, count, CASE WHEN version IS NULL THEN 2 ELSE 1 END, version, sources, at, at
    FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bigint[])
        AS new(side, scope, native_id, count, version, sources, at)
    ORDER BY side, scope, native_id
    ON CONFLICT (side, scope, native_id) DO UPDATE SET
        wanted = kept.wanted + excluded.wanted,
        named = CASE WHEN excluded.version IS NULL THEN 2 WHEN kept.named = 0 THEN 1
            WHEN kept.named = 1 AND kept.version = excluded.version THEN 1 ELSE 2 END,
        version = CASE WHEN kept.named = 0 OR (kept.named = 1 AND kept.version = excluded.version)
            THEN excluded.version ELSE NULL END,
        sources = CASE WHEN kept.sources = '' THEN excluded.sources
            WHEN strpos(',' || kept.sources || ',', ',' || excluded.sources || ',') > 0
                OR length(kept.sources) + length(excluded.sources) >= 200 THEN kept.sources
            ELSE kept.sources || ',' || excluded.sources END,
        first_hint_at = COALESCE(kept.first_hint_at, excluded.first_hint_at),
        ready_at = CASE WHEN kept.wanted = kept.done THEN greatest(kept.ready_at, excluded.ready_at)
            WHEN kept.parked_reason IS NOT NULL AND kept.lease_token IS NULL THEN excluded.ready_at
            ELSE kept.ready_at END,
        attempts = CASE WHEN kept.parked_reason IS NOT NULL THEN 0 ELSE kept.attempts END,
        parked_reason = CASE WHEN excluded.version IS NOT NULL AND excluded.version IS DISTINCT FROM kept.parked_version
            OR excluded.version IS NULL AND kept.parked_at < excluded.ready_at - $8
            THEN NULL ELSE kept.parked_reason END";

// ---- leases ------------------------------------------------------------------------------------------------------

/// A few ready rows of each scope that has any; scopes are found by skipping along the index.
const CANDIDATES: &str = "
    WITH RECURSIVE scopes AS (
        (SELECT side, scope FROM jobs WHERE wanted > done AND parked_reason IS NULL ORDER BY side, scope LIMIT 1)
        UNION ALL
        SELECT next.side, next.scope FROM scopes, LATERAL (
            SELECT side, scope FROM jobs WHERE wanted > done AND parked_reason IS NULL
                AND (side, scope) > (scopes.side, scopes.scope) ORDER BY side, scope LIMIT 1) AS next
    )
    SELECT ready.side, ready.scope, ready.native_id, ready.first FROM scopes, LATERAL (
        SELECT side, scope, native_id, COALESCE(leased_first, first_hint_at, ready_at) AS first FROM jobs
        WHERE wanted > done AND parked_reason IS NULL
            AND side = scopes.side AND scope = scopes.scope AND ready_at <= $1
        ORDER BY ready_at LIMIT $2) AS ready";

/// Takes those of the chosen rows that nobody else has taken meanwhile.
const LEASE: &str = "
    WITH chosen AS (
        SELECT jobs.side, jobs.scope, jobs.native_id, jobs.wanted, jobs.done, jobs.version, jobs.sources, jobs.served_at,
            jobs.attempts + CASE WHEN jobs.lease_token IS NULL THEN 0 ELSE 1 END AS attempts,
            COALESCE(jobs.leased_first, jobs.first_hint_at, jobs.ready_at) AS first, pick.token, pick.place
        FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bytea[]) WITH ORDINALITY
            AS pick(side, scope, native_id, token, place)
        JOIN jobs ON jobs.side = pick.side AND jobs.scope = pick.scope AND jobs.native_id = pick.native_id
        WHERE jobs.wanted > jobs.done AND jobs.parked_reason IS NULL AND jobs.ready_at <= $5
        ORDER BY pick.place LIMIT $7 FOR UPDATE OF jobs SKIP LOCKED
    )
    UPDATE jobs SET lease_token = chosen.token, ready_at = $6, attempts = chosen.attempts,
        leased_first = COALESCE(jobs.leased_first, jobs.first_hint_at), first_hint_at = NULL,
        named = 0, version = NULL, sources = ''
    FROM chosen
    WHERE jobs.side = chosen.side AND jobs.scope = chosen.scope AND jobs.native_id = chosen.native_id
    RETURNING chosen.side, chosen.scope, chosen.native_id, chosen.wanted, chosen.done, chosen.version, chosen.sources,
        chosen.attempts, chosen.first, chosen.served_at, chosen.token";

const DONE: &str = "
    UPDATE jobs SET done = $5, lease_token = NULL, leased_first = NULL, attempts = 0, served_at = $6, ready_at = $7
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

const AGAIN: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = $5, attempts = attempts + $6,
        named = CASE WHEN $7::text IS NOT NULL AND (named = 0 OR (named = 1 AND version = $7)) THEN 1 ELSE 2 END,
        version = CASE WHEN named = 0 OR (named = 1 AND version = $7) THEN $7 ELSE NULL END,
        sources = CASE WHEN sources = '' OR strpos(',' || $8 || ',', ',' || sources || ',') > 0
            OR length(sources) + length($8) >= 200 THEN $8 ELSE $8 || ',' || sources END
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

/// A hint that came while the job ran may be the cure: then the row is tried once more instead of being put aside.
const PARK: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = $5, parked_version = $7,
        parked_reason = CASE WHEN named = 0 THEN $6 ELSE NULL END, parked_at = $5
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

fn lease_of(row: &PgRow) -> Result<JobLease, StoreError> {
    let corrupt = |error: sqlx::Error| StoreError::Corrupt(error.to_string());
    let (wanted, done): (i64, i64) = (row.try_get(3).map_err(corrupt)?, row.try_get(4).map_err(corrupt)?);
    let attempts: i64 = row.try_get(7).map_err(corrupt)?;
    let served_at: Option<i64> = row.try_get(9).map_err(corrupt)?;
    let token: Vec<u8> = row.try_get(10).map_err(corrupt)?;
    Ok(JobLease {
        subject: Subject {
            side: side_of(row.try_get(0).map_err(corrupt)?)?,
            scope: row.try_get(1).map_err(corrupt)?,
            native_id: row.try_get(2).map_err(corrupt)?,
        },
        wanted,
        version: row.try_get(5).map_err(corrupt)?,
        sources: row.try_get(6).map_err(corrupt)?,
        hints: wanted - done,
        served_at: served_at.map(instant),
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        first_hint_at: instant(row.try_get(8).map_err(corrupt)?),
        token: Uuid::from_slice(&token).map_err(|error| StoreError::Corrupt(error.to_string()))?,
    })
}

const LINK: &str =
    "SELECT tenant_id, incident_id, workspace, route, sentinel_id, state, parked, updated_at FROM links";

fn link_of(row: PgRow) -> Result<LinkRecord, sqlx::Error> {
    Ok(LinkRecord {
        key: LinkKey { tenant_id: row.try_get(0)?, incident_id: row.try_get(1)?, workspace: row.try_get(2)? },
        route: row.try_get(3)?,
        sentinel_id: row.try_get(4)?,
        state: row.try_get(5)?,
        parked: row.try_get(6)?,
        updated_at: instant(row.try_get(7)?),
    })
}

fn held(changed: u64) -> Held {
    if changed > 0 { Held::Yes } else { Held::No }
}

fn most(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for PostgresStore {
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        now: OffsetDateTime,
    ) -> Result<Remembered, StoreError> {
        if delivery.as_ref().is_some_and(|delivery| delivery.id.contains('\0')) {
            return Err(StoreError::Corrupt("a delivery whose id holds a NUL character".to_owned()));
        }
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { hints: fold(hints)?, delivery, now: nanos(now), reply };
        self.hints.try_send(waiting).map_err(|_| {
            StoreError::Unavailable("too many commands are waiting for it, or it has ended".to_owned())
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StoreError::Unavailable("its writer has ended".to_owned())),
            Err(_) => Err(StoreError::Unavailable(format!("no commit within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn lease_jobs(
        &self,
        most_jobs: usize,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        let (now, until) = (nanos(now), nanos(until));
        if most_jobs == 0 {
            return Ok(Vec::new());
        }
        // Twice as many as wanted: another replica may take some of them first.
        let wanted = most_jobs.saturating_mul(2);
        let found =
            patient(sqlx::query(CANDIDATES).bind(now).bind(most(wanted)).fetch_all(&self.pool)).await?;
        let mut scopes: BTreeMap<(i16, String), Vec<(i64, String)>> = BTreeMap::new();
        for row in found {
            let scope = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let candidate = (row.try_get(3).map_err(failed)?, row.try_get(2).map_err(failed)?);
            scopes.entry(scope).or_default().push(candidate);
        }
        let mut scopes: Vec<_> = scopes.into_iter().collect();
        scopes.sort_by_key(|(_, rows)| rows.first().map(|(first, _)| *first));
        let (mut sides, mut names, mut ids, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let deepest = scopes.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0);
        for turn in 0..deepest {
            for ((side, scope), rows) in &scopes {
                if let Some((_, id)) = rows.get(turn).filter(|_| ids.len() < wanted) {
                    sides.push(*side);
                    names.push(scope.clone());
                    ids.push(id.clone());
                    tokens.push(Uuid::new_v4().as_bytes().to_vec());
                }
            }
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = patient(
            sqlx::query(LEASE)
                .bind(sides)
                .bind(names)
                .bind(ids)
                .bind(tokens)
                .bind(now)
                .bind(until)
                .bind(most(most_jobs))
                .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(lease_of).collect()
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let JobLease { subject: Subject { side, scope, native_id }, wanted, version, sources, token, .. } =
            lease;
        let now = nanos(now);
        let query = sqlx::query(match settlement {
            Settlement::Done { .. } => DONE,
            Settlement::Again { .. } => AGAIN,
            Settlement::Park { .. } => PARK,
        })
        .bind(side_number(*side))
        .bind(scope)
        .bind(native_id)
        .bind(token.as_bytes().as_slice());
        let query = match settlement {
            Settlement::Done { rest_until } => query.bind(*wanted).bind(now).bind(nanos(rest_until)),
            Settlement::Again { not_before, counts } => {
                query.bind(nanos(not_before)).bind(i64::from(counts)).bind(version).bind(sources)
            }
            Settlement::Park { reason } => query.bind(now).bind(reason.replace('\0', "")).bind(version),
        };
        Ok(held(patient(query.execute(&self.pool)).await?.rows_affected()))
    }

    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError> {
        let fence = Fence { name: name.to_owned(), token: Uuid::new_v4() };
        let taken = patient(
            sqlx::query(
                "INSERT INTO fences AS kept (name, token, held_until) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE SET token = $2, held_until = $3 WHERE kept.held_until <= $4",
            )
            .bind(&fence.name)
            .bind(fence.token.as_bytes().as_slice())
            .bind(nanos(until))
            .bind(nanos(now))
            .execute(&self.pool),
        )
        .await?;
        Ok((taken.rows_affected() > 0).then_some(fence))
    }

    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let extended = patient(
            sqlx::query(
                "UPDATE fences SET held_until = $3 WHERE name = $1 AND token = $2 AND held_until > $4",
            )
            .bind(&fence.name)
            .bind(fence.token.as_bytes().as_slice())
            .bind(nanos(until))
            .bind(nanos(now))
            .execute(&self.pool),
        )
        .await?;
        Ok(held(extended.rows_affected()))
    }

    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError> {
        patient(
            sqlx::query("DELETE FROM fences WHERE name = $1 AND token = $2")
                .bind(&fence.name)
                .bind(fence.token.as_bytes().as_slice())
                .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        let sql = format!("{LINK} WHERE tenant_id = $1 AND incident_id = $2 AND workspace = $3");
        let LinkKey { tenant_id, incident_id, workspace } = key;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(tenant_id).bind(incident_id).bind(workspace);
        let row = patient(query.fetch_optional(&self.pool)).await?;
        row.map(link_of).transpose().map_err(failed)
    }

    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError> {
        let sql = format!("{LINK} WHERE workspace = $1 AND sentinel_id = $2 ORDER BY tenant_id, incident_id");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(workspace).bind(sentinel_id);
        let rows = patient(query.fetch_all(&self.pool)).await?;
        rows.into_iter().map(link_of).collect::<Result<_, _>>().map_err(failed)
    }

    async fn save_link(
        &self,
        link: &LinkRecord,
        journal: &[JournalEntry],
        fence: &Fence,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let LinkRecord { key: LinkKey { tenant_id, incident_id, workspace }, .. } = link;
        let saved = async {
            let mut transaction = self.pool.begin().await?;
            // Locked, so that nobody takes it over between this look and the commit.
            let ours = sqlx::query(
                "SELECT 1 FROM fences WHERE name = $1 AND token = $2 AND held_until > $3 FOR UPDATE",
            )
            .bind(&fence.name)
            .bind(fence.token.as_bytes().as_slice())
            .bind(nanos(now))
            .fetch_optional(&mut *transaction)
            .await?;
            if ours.is_none() {
                return Ok(Held::No);
            }
            sqlx::query(
                "INSERT INTO links (tenant_id, incident_id, workspace, route, sentinel_id, state, parked, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT (tenant_id, incident_id, workspace) DO UPDATE SET
                     route = $4, sentinel_id = $5, state = $6, parked = $7, updated_at = $8",
            )
            .bind(tenant_id)
            .bind(incident_id)
            .bind(workspace)
            .bind(&link.route)
            .bind(&link.sentinel_id)
            .bind(&link.state)
            .bind(link.parked.as_ref().map(|reason| reason.replace('\0', "")))
            .bind(nanos(link.updated_at))
            .execute(&mut *transaction)
            .await?;
            for JournalEntry { at, link, kind, detail } in journal {
                sqlx::query(
                    "INSERT INTO journal (at, tenant_id, incident_id, workspace, kind, detail)
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(nanos(*at))
                .bind(&link.tenant_id)
                .bind(&link.incident_id)
                .bind(&link.workspace)
                .bind(kind)
                .bind(detail.to_string())
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
            Ok(Held::Yes)
        };
        patient(saved).await
    }

    async fn links(
        &self,
        route: Option<&str>,
        after: Option<&LinkKey>,
        most_links: usize,
    ) -> Result<Vec<LinkRecord>, StoreError> {
        let sql = format!(
            "{LINK} WHERE (tenant_id, incident_id, workspace) > ($1, $2, $3) AND ($4::text IS NULL OR route = $4)
             ORDER BY tenant_id, incident_id, workspace LIMIT $5"
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(after.map_or("", |key| &key.tenant_id))
            .bind(after.map_or("", |key| &key.incident_id))
            .bind(after.map_or("", |key| &key.workspace))
            .bind(route)
            .bind(most(most_links));
        let rows = patient(query.fetch_all(&self.pool)).await?;
        rows.into_iter().map(link_of).collect::<Result<_, _>>().map_err(failed)
    }

    async fn journal_count(
        &self,
        link: &LinkKey,
        kind: &str,
        since: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM journal
             WHERE tenant_id = $1 AND incident_id = $2 AND workspace = $3 AND kind = $4 AND at >= $5",
        )
        .bind(&link.tenant_id)
        .bind(&link.incident_id)
        .bind(&link.workspace)
        .bind(kind)
        .bind(nanos(since));
        Ok(patient(query.fetch_one(&self.pool)).await?.unsigned_abs())
    }

    async fn journal(&self, link: &LinkKey, most_lines: usize) -> Result<Vec<JournalEntry>, StoreError> {
        let query = sqlx::query(
            "SELECT at, kind, detail FROM journal
             WHERE tenant_id = $1 AND incident_id = $2 AND workspace = $3 ORDER BY seq DESC LIMIT $4",
        )
        .bind(&link.tenant_id)
        .bind(&link.incident_id)
        .bind(&link.workspace)
        .bind(most(most_lines));
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let entry = |row: PgRow| {
            let detail: String = row.try_get(2).map_err(failed)?;
            let detail = serde_json::from_str(&detail)
                .map_err(|error| StoreError::Corrupt(format!("a journal line: {error}")))?;
            let at = instant(row.try_get(0).map_err(failed)?);
            Ok(JournalEntry { at, link: link.clone(), kind: row.try_get(1).map_err(failed)?, detail })
        };
        rows.into_iter().rev().map(entry).collect()
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar("SELECT value FROM named_values WHERE name = $1").bind(name);
        patient(query.fetch_optional(&self.pool)).await
    }

    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        patient(
            sqlx::query(
                "INSERT INTO named_values (name, value) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET value = $2",
            )
            .bind(name)
            .bind(value)
            .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn hold(&self, hold: &Hold) -> Result<(), StoreError> {
        patient(
            sqlx::query(
                "INSERT INTO holds (route, since, reason) VALUES ($1, $2, $3)
                 ON CONFLICT (route) DO UPDATE SET reason = $3",
            )
            .bind(&hold.route)
            .bind(nanos(hold.since))
            .bind(&hold.reason)
            .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn release(&self, route: &str) -> Result<u64, StoreError> {
        let query = sqlx::query("DELETE FROM holds WHERE route = $1 OR $1 = '*'").bind(route);
        Ok(patient(query.execute(&self.pool)).await?.rows_affected())
    }

    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        let query = sqlx::query("SELECT route, since, reason FROM holds ORDER BY route");
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let hold = |row: PgRow| {
            Ok(Hold { route: row.try_get(0)?, since: instant(row.try_get(1)?), reason: row.try_get(2)? })
        };
        rows.into_iter().map(hold).collect::<Result<_, _>>().map_err(failed)
    }

    async fn parked(&self, most_rows: usize) -> Result<Vec<Parked>, StoreError> {
        let query = sqlx::query(
            "SELECT side, scope, native_id, parked_reason, parked_at AS since FROM jobs
             WHERE parked_reason IS NOT NULL
             UNION ALL SELECT 0::smallint, tenant_id, incident_id, parked, updated_at FROM links
             WHERE parked IS NOT NULL AND NOT EXISTS (SELECT 1 FROM jobs WHERE side = 0
                 AND scope = tenant_id AND native_id = incident_id AND parked_reason IS NOT NULL)
             ORDER BY since DESC LIMIT $1",
        )
        .bind(most(most_rows));
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let parked = |row: PgRow| {
            let side: i16 = row.try_get(0).map_err(failed)?;
            let subject = Subject {
                side: side_of(side)?,
                scope: row.try_get(1).map_err(failed)?,
                native_id: row.try_get(2).map_err(failed)?,
            };
            let since = instant(row.try_get(4).map_err(failed)?);
            Ok(Parked { subject, reason: row.try_get(3).map_err(failed)?, since })
        };
        rows.into_iter().map(parked).collect()
    }

    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError> {
        let Subject { side, scope, native_id } = subject;
        let row = patient(
            sqlx::query(
                "UPDATE jobs SET parked_reason = NULL, attempts = 0, ready_at = $4
                 WHERE side = $1 AND scope = $2 AND native_id = $3 AND parked_reason IS NOT NULL",
            )
            .bind(side_number(*side))
            .bind(scope)
            .bind(native_id)
            .bind(nanos(now))
            .execute(&self.pool),
        )
        .await?;
        let links = sqlx::query(match side {
            Side::Defender => {
                "UPDATE links SET parked = NULL WHERE tenant_id = $1 AND incident_id = $2 AND parked IS NOT NULL"
            }
            Side::Sentinel => {
                "UPDATE links SET parked = NULL WHERE workspace = $1 AND sentinel_id = $2 AND parked IS NOT NULL"
            }
        });
        let links = patient(links.bind(scope).bind(native_id).execute(&self.pool)).await?.rows_affected();
        if links > 0 {
            let hint = Hint { subject: subject.clone(), version: None, source: "unpark".to_owned() };
            self.remember(vec![hint], None, now).await?;
        }
        Ok(row.rows_affected() + links > 0)
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        let query = sqlx::query(
            "SELECT (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL),
                 (SELECT count(*) FROM jobs WHERE parked_reason IS NOT NULL)
                 + (SELECT count(*) FROM links WHERE parked IS NOT NULL),
                 (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                  WHERE wanted > done AND parked_reason IS NULL)",
        );
        let row = patient(query.fetch_one(&self.pool)).await?;
        let oldest: Option<i64> = row.try_get(2).map_err(failed)?;
        Ok(QueueStats {
            waiting: row.try_get(0).map_err(failed)?,
            parked: row.try_get(1).map_err(failed)?,
            oldest: oldest.map(instant),
        })
    }

    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError> {
        let resting = nanos(now) - RESTING_FOR;
        for (sql, before) in [
            ("DELETE FROM jobs WHERE wanted = done AND ready_at < $1 AND lease_token IS NULL", resting),
            ("DELETE FROM fences WHERE held_until < $1", resting),
            ("DELETE FROM deliveries WHERE keep_until <= $1", nanos(now)),
            ("DELETE FROM journal WHERE at < $1", nanos(journal_before)),
        ] {
            patient(sqlx::query(sql).bind(before).execute(&self.pool)).await?;
        }
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.set_value("ping", &Uuid::new_v4().to_string()).await?;
        match self.value("ping").await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Corrupt("a value that was just written is not there".to_owned())),
        }
    }
}
