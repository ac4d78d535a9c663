//! The store for several replicas: PostgreSQL. Leases are rows taken with `SKIP LOCKED` and guarded by tokens; hints of
//! many requests share a commit, as arrays in one statement, on a connection of their own.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    ASIDE_OF_ONE, Aside, BothTurns, Folded, Gathered, MOST_IN_A_COMMIT, MOST_WAITING, Names, PARKED_FOR,
    PATIENCE, PURGE_STEP, RESTING_FOR, Ready, SCOPES_AT_ONCE, ScopeKey, delivery_key, fold, instant, nanos,
    one_for_each, side_number, side_of,
};
use crate::domain::model::{LinkKey, Side};
use crate::ports::{
    Delivery, Fence, Held, Hint, Hold, JobLease, JournalEntry, LinkRecord, Parked, QueueStats, Queued,
    Remembered, Scope, Settlement, Store, StoreError, Subject,
};

const MIGRATIONS: &[&str] = &[include_str!("migrations/postgres-1.sql")];
/// One key for everybody who migrates: the letters of "lockstep".
const MIGRATION_LOCK: i64 = 0x6c6f_636b_7374_6570;
const MOST_CONNECTIONS: u32 = 12;
/// How often a commit is tried that the server broke off to resolve a deadlock.
const TRIES: usize = 3;

/// How many rows beyond those wanted a lease asks for: another replica may take some of them first.
const SPARE_CANDIDATES: usize = 16;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    pool: PgPool,
    hints: mpsc::Sender<Waiting>,
    /// Held through a lease, so that the workers of one replica do not go for the same rows.
    turns: tokio::sync::Mutex<BothTurns>,
}

/// One request's hints on their way to a commit.
struct Waiting {
    hints: Vec<Folded>,
    /// The key of its delivery, and how long that is to be kept.
    delivery: Option<(Uuid, i64)>,
    now: i64,
    reply: oneshot::Sender<Result<Remembered, StoreError>>,
}

impl PostgresStore {
    /// Connects, and brings the tables up to date. Replicas that start together wait for each other here.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                let form = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";
                StoreError::Unavailable(format!("its URL does not parse; the form is {form}"))
            })?
            .options([("statement_timeout", "4s"), ("lock_timeout", "3s")])
            .disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("lockstep");
        }
        // Not through the pool, which tries for as long as it may and then only says that the time is over.
        let mut connection = patient(PgConnection::connect_with(&options)).await?;
        migrate(&mut connection).await?;
        let pool = PgPoolOptions::new()
            .max_connections(MOST_CONNECTIONS)
            .acquire_timeout(Duration::from_secs(3))
            .after_release(|connection, _| {
                // The pool waits without end for a server that has stopped answering, and such a connection keeps
                // its place in it.
                Box::pin(async move {
                    let answered = tokio::time::timeout(Duration::from_secs(2), connection.ping()).await;
                    answered.map(|outcome| outcome.is_ok()).map_err(|_| sqlx::Error::WorkerCrashed)
                })
            })
            .connect_lazy_with(options.clone());
        let (hints, waiting) = mpsc::channel(MOST_WAITING);
        tokio::spawn(commit_hints(options, connection, waiting));
        Ok(Self { pool, hints, turns: tokio::sync::Mutex::default() })
    }
}

async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await.map_err(failed)?;
    // Another replica may take its time over the same.
    for patience in ["SET LOCAL statement_timeout = 0", "SET LOCAL lock_timeout = 0"] {
        sqlx::query(patience).execute(&mut *transaction).await.map_err(failed)?;
    }
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

/// The driver's words, without the connection string. `Unavailable` is the whole store's trouble; `Corrupt` is that of
/// the command that met it.
fn failed(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            StoreError::Corrupt(error.to_string())
        }
        sqlx::Error::PoolTimedOut => {
            StoreError::Unavailable("no connection to PostgreSQL became free".to_owned())
        }
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default();
            // Data, constraint, syntax or schema, limit: it is refused every time. All else may pass.
            let own_fault = ["22", "23", "42", "54"].iter().any(|class| code.starts_with(class));
            if own_fault {
                StoreError::Corrupt(refused.to_string())
            } else {
                StoreError::Unavailable(refused.to_string())
            }
        }
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// Text as PostgreSQL can keep it: it has no NUL. Two characters stand for it, and for the one that says so; what
/// was in order stays in order.
fn text(plain: &str) -> String {
    if plain.contains(['\0', '\u{1}']) {
        plain.replace('\u{1}', "\u{1}\u{2}").replace('\0', "\u{1}\u{1}")
    } else {
        plain.to_owned()
    }
}

/// What [`text`] was given.
fn plain(text: String) -> String {
    if text.contains('\u{1}') {
        text.replace("\u{1}\u{1}", "\0").replace("\u{1}\u{2}", "\u{1}")
    } else {
        text
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
async fn commit_hints(
    options: PgConnectOptions,
    connection: PgConnection,
    mut waiting: mpsc::Receiver<Waiting>,
) {
    let mut line = HintLine { options, connection: Some(connection) };
    let mut group = Vec::with_capacity(MOST_IN_A_COMMIT);
    while waiting.recv_many(&mut group, MOST_IN_A_COMMIT).await > 0 {
        group.retain(|waiting: &Waiting| !waiting.reply.is_closed());
        let mut outcome = line.commit(&group).await;
        if group.len() > 1 && matches!(outcome, Err(StoreError::Corrupt(_))) {
            // One of them is refused by its own fault: its neighbours shall not be.
            for waiting in group.drain(..) {
                outcome = line.commit(std::slice::from_ref(&waiting)).await;
                answer(waiting, &mut outcome);
            }
        }
        for waiting in group.drain(..) {
            answer(waiting, &mut outcome);
        }
    }
}

/// `outcome`: the deliveries that were new.
fn answer(waiting: Waiting, outcome: &mut Result<HashSet<Uuid>, StoreError>) {
    let answer = match outcome {
        Err(StoreError::Unavailable(reason)) => Err(StoreError::Unavailable(reason.clone())),
        Err(StoreError::Corrupt(what)) => Err(StoreError::Corrupt(what.clone())),
        // The first of two equal deliveries in one group is the new one.
        Ok(stored) => Ok(match waiting.delivery {
            Some((key, _)) if !stored.remove(&key) => Remembered::Repeated,
            _ => Remembered::New,
        }),
    };
    // Whoever asked may have given up waiting; the commit stands all the same.
    waiting.reply.send(answer).ok();
}

/// A connection of the hints' own: a commit does not wait for one to become free, nor ask whether it still lives.
struct HintLine {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl HintLine {
    /// Returns the deliveries that were new.
    async fn commit(&mut self, group: &[Waiting]) -> Result<HashSet<Uuid>, StoreError> {
        if group.is_empty() {
            return Ok(HashSet::new());
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let tries = async {
            let mut tries = 0;
            loop {
                tries += 1;
                let was_open = self.connection.is_some();
                let mut connection = match self.connection.take() {
                    Some(connection) => connection,
                    None => PgConnection::connect_with(&self.options).await?,
                };
                match try_group(&mut connection, group).await {
                    Ok(stored) => {
                        self.connection = Some(connection);
                        return Ok(stored);
                    }
                    // Taken out above, so that a connection on which something went wrong, or for which the time ran
                    // out, is never used again. The server may have been restarted since the last commit.
                    Err(error) if tries < TRIES && (was_open && is_cut(&error) || is_deadlock(&error)) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        match tokio::time::timeout_at(deadline, tries).await {
            Ok(outcome) => outcome.map_err(failed),
            Err(_) => Err(StoreError::Unavailable(format!("no commit within {} s", PATIENCE.as_secs()))),
        }
    }
}

/// Whether the connection was lost: by the network, or closed from the other end.
fn is_cut(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// The equal hints of a group as one, by subject: a statement may touch a row only once, so that the second kind of
/// hint for a subject goes into a second statement.
type Kinds = Vec<(Option<String>, String, bool, i64, i64)>;

async fn try_group(connection: &mut PgConnection, group: &[Waiting]) -> Result<HashSet<Uuid>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let mut deliveries: BTreeMap<Uuid, (i64, i64)> = BTreeMap::new();
    for Waiting { delivery, now, .. } in group {
        if let Some((key, keep_until)) = delivery {
            deliveries.entry(*key).or_insert((*keep_until, *now));
        }
    }
    let mut stored = HashSet::new();
    if !deliveries.is_empty() {
        let keys: Vec<Vec<u8>> = deliveries.keys().map(|key| key.as_bytes().to_vec()).collect();
        let (until, now): (Vec<i64>, Vec<i64>) = deliveries.values().copied().unzip();
        let rows = sqlx::query(
            "INSERT INTO deliveries AS kept (key, keep_until)
             SELECT key, keep_until FROM unnest($1::bytea[], $2::bigint[]) AS new(key, keep_until)
             ON CONFLICT (key) DO UPDATE SET keep_until = excluded.keep_until
             WHERE kept.keep_until <= $3 RETURNING key",
        )
        .bind(keys)
        .bind(until)
        .bind(now.into_iter().max().unwrap_or(0))
        .fetch_all(&mut *transaction)
        .await?;
        for row in rows {
            let key: Vec<u8> = row.try_get(0)?;
            stored.extend(Uuid::from_slice(&key));
        }
    }
    let mut counted = stored.clone();
    let mut subjects: BTreeMap<(i16, String, String), Kinds> = BTreeMap::new();
    for Waiting { hints, delivery, now, .. } in group {
        if delivery.is_some_and(|(key, _)| !counted.remove(&key)) {
            continue;
        }
        for Folded { side, scope, native_id, version, source, live, count } in hints {
            let version = version.as_deref().map(text);
            let kinds = subjects.entry((*side, text(scope), text(native_id))).or_default();
            match kinds.iter_mut().find(|kind| kind.0 == version && kind.1 == *source) {
                Some(kind) => kind.3 += count,
                None => kinds.push((version, source.clone(), *live, *count, *now)),
            }
        }
    }
    let rounds = subjects.values().map(Vec::len).max().unwrap_or(0);
    for round in 0..rounds {
        let (mut sides, mut scopes, mut ids, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut versions, mut sources, mut nows) = (Vec::new(), Vec::new(), Vec::new());
        let mut lives = Vec::new();
        for ((side, scope, id), kinds) in &subjects {
            if let Some((version, source, live, count, now)) = kinds.get(round) {
                sides.push(*side);
                scopes.push(scope.as_str());
                ids.push(id.as_str());
                counts.push(*count);
                versions.push(version.as_deref());
                sources.push(source.as_str());
                nows.push(*now);
                lives.push(i16::from(*live));
            }
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
            .bind(lives)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(stored)
}

const REMEMBER: &str = "
    INSERT INTO jobs AS kept (side, scope, native_id, wanted, named, version, sources, first_hint_at, ready_at,
        live, fresh_live)
    SELECT side, scope, native_id, count, CASE WHEN version IS NULL THEN 2 ELSE 1 END, version, sources, at, at,
        live, live
    FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bigint[],
        $9::smallint[]) AS new(side, scope, native_id, count, version, sources, at, live)
    ORDER BY side, scope, native_id
    ON CONFLICT (side, scope, native_id) DO UPDATE SET
        wanted = kept.wanted + excluded.wanted,
        named = CASE WHEN excluded.version IS NOT NULL
            AND (kept.named = 0 OR (kept.named = 1 AND kept.version = excluded.version)) THEN 1 ELSE 2 END,
        version = CASE WHEN kept.named = 0 OR (kept.named = 1 AND kept.version = excluded.version)
            THEN excluded.version ELSE NULL END,
        sources = CASE WHEN kept.sources = '' THEN excluded.sources
            WHEN strpos(',' || kept.sources || ',', ',' || excluded.sources || ',') > 0
                OR length(kept.sources) + length(excluded.sources) >= 200 THEN kept.sources
            ELSE kept.sources || ',' || excluded.sources END,
        first_hint_at = COALESCE(kept.first_hint_at, excluded.first_hint_at),
        live = greatest(kept.live, excluded.live), fresh_live = greatest(kept.fresh_live, excluded.fresh_live),
        news = CASE WHEN kept.lease_token IS NOT NULL AND excluded.version IS NOT NULL
            AND excluded.version IS DISTINCT FROM kept.leased_version THEN 1 ELSE kept.news END,
        ready_at = CASE WHEN kept.wanted = kept.done THEN greatest(kept.ready_at, excluded.ready_at)
            WHEN kept.parked_reason IS NOT NULL THEN excluded.ready_at
            WHEN kept.wakes = 1 THEN least(kept.ready_at, excluded.ready_at) ELSE kept.ready_at END,
        attempts = CASE WHEN kept.parked_reason IS NOT NULL THEN 0 ELSE kept.attempts END,
        parked_reason = CASE WHEN excluded.version IS NOT NULL AND excluded.version IS DISTINCT FROM kept.parked_version
            OR excluded.version IS NULL AND kept.parked_at < excluded.ready_at - $8
            THEN NULL ELSE kept.parked_reason END";

// ---- leases ------------------------------------------------------------------------------------------------------

/// A few ready rows of each scope that has any, live ones (`$8` = 1) or background ones, in the order of the scopes, from `($3, $4)` on; they are found by
/// skipping along the index, and no further than to the `$5`th that has some. (A lateral look instead of `EXISTS`: fresh
/// tables have no statistics, and the planner would read every row.)
const CANDIDATES: &str = "
    WITH RECURSIVE scopes AS (
        (SELECT side, scope FROM jobs WHERE wanted > done AND parked_reason IS NULL AND live = $8
            AND (side, scope) > ($3, $4) ORDER BY side, scope LIMIT 1)
        UNION ALL
        SELECT next.side, next.scope FROM scopes, LATERAL (
            SELECT side, scope FROM jobs WHERE wanted > done AND parked_reason IS NULL AND live = $8
                AND (side, scope) > (scopes.side, scopes.scope) ORDER BY side, scope LIMIT 1) AS next
    ), picked AS MATERIALIZED (
        SELECT scopes.side, scopes.scope FROM scopes, LATERAL (SELECT 1 FROM jobs
            WHERE wanted > done AND parked_reason IS NULL AND live = $8
                AND jobs.side = scopes.side AND jobs.scope = scopes.scope AND ready_at <= $1 LIMIT 1) AS ready
        WHERE NOT EXISTS (SELECT 1 FROM unnest($6::smallint[], $7::text[]) AS skip(side, scope)
            WHERE skip.side = scopes.side AND skip.scope = scopes.scope)
        LIMIT $5
    )
    SELECT ready.* FROM picked, LATERAL (
        SELECT native_id, wanted, done, attempts, served_at, ready_at, lease_token IS NOT NULL,
            leased_named, leased_version, leased_sources, leased_first, named, version, sources, first_hint_at,
            side, scope, live
        FROM jobs
        WHERE wanted > done AND parked_reason IS NULL AND live = $8
            AND side = picked.side AND scope = picked.scope AND ready_at <= $1
        ORDER BY ready_at, native_id LIMIT $2) AS ready
    ORDER BY side, scope, ready_at, native_id";

/// Locks those of the chosen rows that nobody else has taken meanwhile. (`+ 0`: found by their key, not by the index of
/// what is ready.)
const TAKE: &str = "
    SELECT jobs.native_id, wanted, done, attempts, served_at, ready_at, lease_token IS NOT NULL,
        leased_named, leased_version, leased_sources, leased_first, named, version, sources, first_hint_at,
        jobs.side, jobs.scope, live
    FROM unnest($1::smallint[], $2::text[], $3::text[]) WITH ORDINALITY AS pick(side, scope, native_id, place)
    JOIN jobs ON jobs.side = pick.side AND jobs.scope = pick.scope AND jobs.native_id = pick.native_id
    WHERE wanted > done AND parked_reason IS NULL AND ready_at + 0 <= $4
    ORDER BY pick.place LIMIT $5 FOR UPDATE OF jobs SKIP LOCKED";

const LEASE: &str = "
    UPDATE jobs SET lease_token = $4, ready_at = $5, attempts = $6,
        leased_named = $7, leased_version = $8, leased_sources = $9, leased_first = $10,
        named = 0, version = NULL, sources = '', first_hint_at = NULL, news = 0, fresh_live = 0, wakes = 0
    WHERE side = $1 AND scope = $2 AND native_id = $3";

const DONE: &str = "
    UPDATE jobs SET done = $5, lease_token = NULL, attempts = 0, served_at = $6, ready_at = $7, live = fresh_live,
        leased_named = 0, leased_version = NULL, leased_sources = '', leased_first = NULL
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

const AGAIN: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = $5, attempts = attempts + $6
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

/// What came while it was leased is not waited with.
const LOOK: &str = "
    UPDATE jobs SET lease_token = NULL, attempts = 0, served_at = $5, wakes = 1,
        ready_at = CASE WHEN named > 0 THEN least($5, $6) ELSE $6 END
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

/// As if the row had been parked when it was leased and its later hints had come after that: one with another version
/// may be the cure, and the row is tried once more instead of being put aside.
const PARK: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = $5, parked_at = $5, parked_version = leased_version,
        parked_reason = CASE WHEN news = 1 THEN NULL ELSE $6 END,
        attempts = CASE WHEN news = 1 THEN 0 ELSE attempts END
    WHERE side = $1 AND scope = $2 AND native_id = $3 AND lease_token = $4";

/// The columns of the candidates for a lease, and what only people ask for.
const QUEUED: &str = "
    SELECT native_id, wanted, done, attempts, served_at, ready_at, lease_token IS NOT NULL,
        leased_named, leased_version, leased_sources, leased_first, named, version, sources, first_hint_at,
        side, scope, live, parked_reason, parked_at
    FROM jobs WHERE side = $1 AND scope = $2 AND native_id = $3";

fn ready_of(row: &PgRow) -> Result<(ScopeKey, Ready), sqlx::Error> {
    let gathered = |at: usize| {
        let (named, sources) = (row.try_get(at)?, row.try_get(at + 2)?);
        let version: Option<String> = row.try_get(at + 1)?;
        let version = version.map(plain);
        Ok::<_, sqlx::Error>(Gathered { named, version, sources, first_at: row.try_get(at + 3)? })
    };
    let attempts: i64 = row.try_get(3)?;
    let ready = Ready {
        native_id: plain(row.try_get(0)?),
        wanted: row.try_get(1)?,
        done: row.try_get(2)?,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        served_at: row.try_get(4)?,
        ready_at: row.try_get(5)?,
        broken_off: row.try_get(6)?,
        leased: gathered(7)?,
        fresh: gathered(11)?,
        live: row.try_get::<i16, _>(17)? == 1,
    };
    Ok(((row.try_get(15)?, plain(row.try_get(16)?)), ready))
}

impl PostgresStore {
    /// Some ready rows of each scope that has any, live ones or background ones, from where the last look ended, once around.
    async fn candidates(
        &self,
        start: Option<&ScopeKey>,
        skip: &[Scope],
        now: i64,
        most_jobs: usize,
        live: bool,
    ) -> Result<Vec<(ScopeKey, Vec<Ready>)>, sqlx::Error> {
        let mut found: Vec<(ScopeKey, Vec<Ready>)> = Vec::new();
        let (sides, scopes): (Vec<i16>, Vec<_>) =
            skip.iter().map(|(side, scope)| (side_number(*side), text(scope))).unzip();
        let before_all = (-1, String::new());
        for after in start.into_iter().chain([&before_all]) {
            let rows = sqlx::query(CANDIDATES)
                .bind(now)
                .bind(most(most_jobs))
                .bind(after.0)
                .bind(text(&after.1))
                .bind(most(SCOPES_AT_ONCE))
                .bind(&sides)
                .bind(&scopes)
                .bind(i16::from(live))
                .fetch_all(&self.pool)
                .await?;
            let first_round = found.len();
            for row in &rows {
                let (key, ready) = ready_of(row)?;
                if after == &before_all && start.is_some_and(|start| key > *start) {
                    break;
                }
                match found[first_round..].last_mut() {
                    Some((last, of_scope)) if *last == key => of_scope.push(ready),
                    _ => found.push((key, vec![ready])),
                }
            }
            if found.len() >= SCOPES_AT_ONCE {
                break;
            }
        }
        Ok(found)
    }

    async fn take(
        &self,
        dealt: Vec<(ScopeKey, Ready)>,
        most_jobs: usize,
        now: i64,
        until: i64,
    ) -> Result<Vec<(bool, JobLease)>, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let (keys, dealt): (Vec<_>, Vec<_>) = dealt.into_iter().unzip();
        let rows = sqlx::query(TAKE)
            .bind(keys.iter().map(|key| key.0).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| text(&key.1)).collect::<Vec<_>>())
            .bind(dealt.iter().map(|ready| text(&ready.native_id)).collect::<Vec<_>>())
            .bind(now)
            .bind(most(most_jobs))
            .fetch_all(&mut *transaction)
            .await?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in &rows {
            let ((number, scope), ready) = ready_of(row)?;
            let live = ready.live;
            let side = side_of(number).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let (lease, gathered) = ready.lease(side, &scope);
            sqlx::query(LEASE)
                .bind(number)
                .bind(text(&scope))
                .bind(text(&lease.subject.native_id))
                .bind(lease.token.as_bytes().as_slice())
                .bind(until)
                .bind(i64::from(lease.attempts))
                .bind(gathered.named)
                .bind(gathered.version.as_deref().map(text))
                .bind(gathered.sources)
                .bind(gathered.first_at)
                .execute(&mut *transaction)
                .await?;
            leases.push((live, lease));
        }
        transaction.commit().await?;
        Ok(leases)
    }
}

const LINK: &str =
    "SELECT tenant_id, incident_id, workspace, route, sentinel_id, state, parked, updated_at FROM links";

fn link_of(row: PgRow) -> Result<LinkRecord, sqlx::Error> {
    Ok(LinkRecord {
        key: LinkKey {
            tenant_id: plain(row.try_get(0)?),
            incident_id: plain(row.try_get(1)?),
            workspace: plain(row.try_get(2)?),
        },
        route: plain(row.try_get(3)?),
        sentinel_id: plain(row.try_get(4)?),
        state: plain(row.try_get(5)?),
        parked: row.try_get::<Option<String>, _>(6)?.map(plain),
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
        let delivery = delivery.map(|delivery| (delivery_key(&delivery), nanos(delivery.keep_until)));
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { hints: fold(hints)?, delivery, now: nanos(now), reply };
        self.hints.try_send(waiting).map_err(|_| {
            StoreError::Unavailable("too many commands are waiting for it, or it has ended".to_owned())
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StoreError::Unavailable("its writer broke off".to_owned())),
            Err(_) => Err(StoreError::Unavailable(format!("no commit within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn lease_jobs(
        &self,
        most_jobs: usize,
        skip: &[Scope],
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        let (now, until) = (nanos(now), nanos(until));
        if most_jobs == 0 {
            return Ok(Vec::new());
        }
        let leased = async {
            let mut turns = self.turns.lock().await;
            let wanted = most_jobs.saturating_add(SPARE_CANDIDATES);
            let mut dealt = Vec::new();
            let mut looked_at = Vec::new();
            let owed = turns.owed(most_jobs);
            for (live, most_of_kind) in [(false, owed), (true, wanted), (false, wanted)] {
                // With live rows enough, nobody looks at the others. Another replica may take the one that is owed.
                let room = most_of_kind.min(wanted - dealt.len());
                if room == 0 || (dealt.len() >= most_jobs && !(live && owed > 0)) {
                    continue;
                }
                let turns = turns.of(live);
                // Those that are dealt already are found again.
                let look_for = room + owed;
                let mut found = self.candidates(turns.after.as_ref(), skip, now, look_for, live).await?;
                for (key, rows) in &mut found {
                    rows.retain(|row| {
                        !dealt
                            .iter()
                            .any(|(of, r): &(ScopeKey, Ready)| of == key && r.native_id == row.native_id)
                    });
                }
                found.retain(|(_, rows)| !rows.is_empty());
                dealt.extend(turns.deal(found, room));
                looked_at.push(live);
            }
            if dealt.is_empty() {
                return Ok(Vec::new());
            }
            let leases = self.take(dealt, most_jobs, now, until).await?;
            for kind in [true, false].into_iter().filter(|kind| looked_at.contains(kind)) {
                let of_kind = leases.iter().filter(|(live, _)| *live == kind);
                turns.of(kind).took(of_kind.map(|(_, lease)| lease));
            }
            let live = leases.iter().filter(|(live, _)| *live).count();
            turns.took(owed, live, leases.len() - live);
            Ok(leases.into_iter().map(|(_, lease)| lease).collect())
        };
        patient(leased).await
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let JobLease { subject: Subject { side, scope, native_id }, wanted, token, .. } = lease;
        let now = nanos(now);
        let query = sqlx::query(match settlement {
            Settlement::Done { .. } => DONE,
            Settlement::Again { .. } => AGAIN,
            Settlement::Look { .. } => LOOK,
            Settlement::Park { .. } => PARK,
        })
        .bind(side_number(*side))
        .bind(text(scope))
        .bind(text(native_id))
        .bind(token.as_bytes().as_slice());
        let query = match settlement {
            Settlement::Done { rest_until } => query.bind(*wanted).bind(now).bind(nanos(rest_until)),
            Settlement::Again { not_before, counts } => query.bind(nanos(not_before)).bind(i64::from(counts)),
            Settlement::Look { at } => query.bind(now).bind(nanos(at)),
            Settlement::Park { reason } => query.bind(now).bind(text(&reason)),
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
            .bind(text(&fence.name))
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
            .bind(text(&fence.name))
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
                .bind(text(&fence.name))
                .bind(fence.token.as_bytes().as_slice())
                .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        let sql = format!("{LINK} WHERE tenant_id = $1 AND incident_id = $2 AND workspace = $3");
        let LinkKey { tenant_id, incident_id, workspace } = key;
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(text(tenant_id))
            .bind(text(incident_id))
            .bind(text(workspace));
        let row = patient(query.fetch_optional(&self.pool)).await?;
        row.map(link_of).transpose().map_err(failed)
    }

    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError> {
        let sql = format!("{LINK} WHERE workspace = $1 AND sentinel_id = $2 ORDER BY tenant_id, incident_id");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(text(workspace)).bind(text(sentinel_id));
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
            .bind(text(&fence.name))
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
            .bind(text(tenant_id))
            .bind(text(incident_id))
            .bind(text(workspace))
            .bind(text(&link.route))
            .bind(text(&link.sentinel_id))
            .bind(text(&link.state))
            .bind(link.parked.as_deref().map(text))
            .bind(nanos(link.updated_at))
            .execute(&mut *transaction)
            .await?;
            for JournalEntry { at, link, kind, detail } in journal {
                sqlx::query(
                    "INSERT INTO journal (at, tenant_id, incident_id, workspace, kind, detail)
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(nanos(*at))
                .bind(text(&link.tenant_id))
                .bind(text(&link.incident_id))
                .bind(text(&link.workspace))
                .bind(text(kind))
                .bind(text(&detail.to_string()))
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
        // Two statements: each has an index that is in this order.
        let of_route = if route.is_some() { "route = $5" } else { "$5::text IS NULL" };
        let sql = format!(
            "{LINK} WHERE {of_route} AND (tenant_id, incident_id, workspace) > ($1, $2, $3)
             ORDER BY tenant_id, incident_id, workspace LIMIT $4"
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(after.map_or_else(String::new, |key| text(&key.tenant_id)))
            .bind(after.map_or_else(String::new, |key| text(&key.incident_id)))
            .bind(after.map_or_else(String::new, |key| text(&key.workspace)))
            .bind(most(most_links))
            .bind(route.map(text));
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
        .bind(text(&link.tenant_id))
        .bind(text(&link.incident_id))
        .bind(text(&link.workspace))
        .bind(text(kind))
        .bind(nanos(since));
        Ok(patient(query.fetch_one(&self.pool)).await?.unsigned_abs())
    }

    async fn journal(&self, link: &LinkKey, most_lines: usize) -> Result<Vec<JournalEntry>, StoreError> {
        let query = sqlx::query(
            "SELECT at, kind, detail FROM journal
             WHERE tenant_id = $1 AND incident_id = $2 AND workspace = $3 ORDER BY seq DESC LIMIT $4",
        )
        .bind(text(&link.tenant_id))
        .bind(text(&link.incident_id))
        .bind(text(&link.workspace))
        .bind(most(most_lines));
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let entry = |row: PgRow| {
            let detail = plain(row.try_get(2).map_err(failed)?);
            let detail = serde_json::from_str(&detail)
                .map_err(|error| StoreError::Corrupt(format!("a journal line: {error}")))?;
            let at = instant(row.try_get(0).map_err(failed)?);
            Ok(JournalEntry { at, link: link.clone(), kind: plain(row.try_get(1).map_err(failed)?), detail })
        };
        rows.into_iter().rev().map(entry).collect()
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar::<_, String>("SELECT value FROM named_values WHERE name = $1")
            .bind(text(name));
        Ok(patient(query.fetch_optional(&self.pool)).await?.map(plain))
    }

    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        patient(
            sqlx::query(
                "INSERT INTO named_values (name, value) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET value = $2",
            )
            .bind(text(name))
            .bind(text(value))
            .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most_values: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        // The bounds are of the text as it is kept, in which each character stands for itself or has two of its own.
        let Names { from, beyond, end } = Names::of(&text(prefix), after.map(text).as_deref());
        let above = if beyond { "name > $1" } else { "name >= $1" };
        let below = if end.is_some() { "name < $2" } else { "$2::text IS NULL" };
        let sql =
            format!("SELECT name, value FROM named_values WHERE {above} AND {below} ORDER BY name LIMIT $3");
        let query = sqlx::query_as::<_, (String, String)>(AssertSqlSafe(sql))
            .bind(from)
            .bind(end)
            .bind(most(most_values));
        let found = patient(query.fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(|(name, value)| (plain(name), plain(value))).collect())
    }

    async fn remove_value(&self, name: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM named_values WHERE name = $1").bind(text(name));
        patient(query.execute(&self.pool)).await.map(|_| ())
    }

    async fn hold(&self, hold: &Hold) -> Result<(), StoreError> {
        patient(
            sqlx::query(
                "INSERT INTO holds (route, since, reason) VALUES ($1, $2, $3)
                 ON CONFLICT (route) DO UPDATE SET reason = $3",
            )
            .bind(text(&hold.route))
            .bind(nanos(hold.since))
            .bind(text(&hold.reason))
            .execute(&self.pool),
        )
        .await
        .map(|_| ())
    }

    async fn release(&self, route: &str) -> Result<u64, StoreError> {
        let query = sqlx::query("DELETE FROM holds WHERE route = $1 OR $1 = '*'").bind(text(route));
        Ok(patient(query.execute(&self.pool)).await?.rows_affected())
    }

    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        let query = sqlx::query("SELECT route, since, reason FROM holds ORDER BY route");
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let hold = |row: PgRow| {
            Ok(Hold {
                route: plain(row.try_get(0)?),
                since: instant(row.try_get(1)?),
                reason: plain(row.try_get(2)?),
            })
        };
        rows.into_iter().map(hold).collect::<Result<_, _>>().map_err(failed)
    }

    async fn queued(&self, subject: &Subject) -> Result<Option<Queued>, StoreError> {
        let query = sqlx::query(QUEUED)
            .bind(side_number(subject.side))
            .bind(text(&subject.scope))
            .bind(text(&subject.native_id));
        let Some(row) = patient(query.fetch_optional(&self.pool)).await? else { return Ok(None) };
        let (_, ready) = ready_of(&row).map_err(failed)?;
        let reason: Option<String> = row.try_get(18).map_err(failed)?;
        let at: Option<i64> = row.try_get(19).map_err(failed)?;
        Ok(Some(ready.queued(subject.clone(), reason.map(plain).zip(at.map(instant)))))
    }

    async fn parked(&self, most_rows: usize) -> Result<Vec<Parked>, StoreError> {
        let query = sqlx::query(
            "SELECT side, scope, native_id, parked_reason, parked_at AS since,
                 (SELECT tenant_id FROM links WHERE side = 1 AND workspace = scope AND sentinel_id = native_id
                     ORDER BY tenant_id, incident_id LIMIT 1),
                 (SELECT incident_id FROM links WHERE side = 1 AND workspace = scope AND sentinel_id = native_id
                     ORDER BY tenant_id, incident_id LIMIT 1), false
             FROM jobs WHERE parked_reason IS NOT NULL
             UNION ALL SELECT 0::smallint, tenant_id, incident_id, parked, updated_at, NULL, NULL, true FROM links
             WHERE parked IS NOT NULL
             ORDER BY since DESC LIMIT $1",
        )
        .bind(most(most_rows.saturating_mul(ASIDE_OF_ONE)));
        let rows = patient(query.fetch_all(&self.pool)).await?;
        let aside = |row: PgRow| {
            let incident: Option<(String, String)> =
                row.try_get::<Option<String>, _>(5)?.zip(row.try_get::<Option<String>, _>(6)?);
            Ok(Aside {
                side: row.try_get(0)?,
                scope: plain(row.try_get(1)?),
                native_id: plain(row.try_get(2)?),
                reason: plain(row.try_get(3)?),
                since: row.try_get(4)?,
                incident: incident.map(|(tenant, incident)| (plain(tenant), plain(incident))),
                link: row.try_get(7)?,
            })
        };
        let aside = rows.into_iter().map(aside).collect::<Result<_, _>>().map_err(failed)?;
        one_for_each(aside, most_rows)
    }

    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError> {
        let Subject { side, scope, native_id } = subject;
        let (others, links) = match side {
            Side::Defender => (
                "side = 1 AND (scope, native_id) IN (SELECT workspace, sentinel_id FROM links
                    WHERE tenant_id = $2 AND incident_id = $3)",
                "tenant_id = $1 AND incident_id = $2",
            ),
            Side::Sentinel => (
                "side = 0 AND (scope, native_id) IN (SELECT tenant_id, incident_id FROM links
                    WHERE workspace = $2 AND sentinel_id = $3)",
                "workspace = $1 AND sentinel_id = $2",
            ),
        };
        let rows = format!(
            "UPDATE jobs SET parked_reason = NULL, attempts = 0, ready_at = $4, live = 1
             WHERE parked_reason IS NOT NULL AND ((side = $1 AND scope = $2 AND native_id = $3) OR ({others}))"
        );
        let links = format!("UPDATE links SET parked = NULL WHERE {links} AND parked IS NOT NULL");
        let hint = Hint { subject: subject.clone(), version: None, source: "unpark".to_owned() };
        let hint = Waiting {
            hints: fold(vec![hint])?,
            delivery: None,
            now: nanos(now),
            reply: oneshot::channel().0,
        };
        let unparked = async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let rows = sqlx::query(AssertSqlSafe(rows))
                .bind(side_number(*side))
                .bind(text(scope))
                .bind(text(native_id))
                .bind(nanos(now))
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            let links = sqlx::query(AssertSqlSafe(links)).bind(text(scope)).bind(text(native_id));
            let links = links.execute(&mut *transaction).await?.rows_affected();
            if links > 0 {
                try_group(&mut transaction, std::slice::from_ref(&hint)).await?;
            }
            transaction.commit().await?;
            Ok(rows + links > 0)
        };
        patient(unparked).await
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        let query = sqlx::query(
            "SELECT (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL),
                 -- As `parked` lists them: each incident once.
                 (SELECT count(*) FROM jobs AS one WHERE parked_reason IS NOT NULL AND NOT (side = 1
                     AND EXISTS (SELECT 1 FROM links JOIN jobs AS other ON other.side = 0
                         AND other.scope = tenant_id AND other.native_id = incident_id
                         AND other.parked_reason IS NOT NULL
                     WHERE workspace = one.scope AND sentinel_id = one.native_id)))
                 + (SELECT count(*) FROM (SELECT DISTINCT tenant_id, incident_id FROM links
                     WHERE parked IS NOT NULL
                     AND NOT EXISTS (SELECT 1 FROM jobs WHERE side = 0 AND scope = tenant_id
                         AND native_id = incident_id AND parked_reason IS NOT NULL)
                     AND NOT EXISTS (SELECT 1 FROM jobs WHERE side = 1 AND scope = workspace
                         AND native_id = sentinel_id AND parked_reason IS NOT NULL)) AS linked),
                 (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                  WHERE wanted > done AND parked_reason IS NULL AND live = 1),
                 (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL AND live = 0),
                 (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                  WHERE wanted > done AND parked_reason IS NULL AND live = 0)",
        );
        let row = patient(query.fetch_one(&self.pool)).await?;
        let oldest: Option<i64> = row.try_get(2).map_err(failed)?;
        let oldest_background: Option<i64> = row.try_get(4).map_err(failed)?;
        Ok(QueueStats {
            waiting: row.try_get(0).map_err(failed)?,
            parked: row.try_get(1).map_err(failed)?,
            background: row.try_get(3).map_err(failed)?,
            oldest: oldest.map(instant),
            oldest_background: oldest_background.map(instant),
        })
    }

    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError> {
        let (now, resting) = (nanos(now), nanos(now) - RESTING_FOR);
        patient(sqlx::query("DELETE FROM fences WHERE held_until < $1").bind(resting).execute(&self.pool))
            .await?;
        // In steps, so that none runs into the time limit of a statement; past rows that somebody holds, so that none
        // waits. The journal goes from its old end, which is in order of time.
        for (sql, before) in [
            (
                "DELETE FROM jobs WHERE ctid = ANY(ARRAY(SELECT ctid FROM jobs
                 WHERE wanted = done AND ready_at < $1 AND lease_token IS NULL LIMIT $2 FOR UPDATE SKIP LOCKED))",
                resting,
            ),
            (
                "DELETE FROM deliveries WHERE ctid = ANY(ARRAY(SELECT ctid FROM deliveries
                 WHERE keep_until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
                now,
            ),
            (
                "DELETE FROM journal WHERE seq IN
                 (SELECT seq FROM (SELECT seq, at FROM journal ORDER BY seq LIMIT $2) AS oldest WHERE at < $1)",
                nanos(journal_before),
            ),
        ] {
            loop {
                let step = sqlx::query(sql).bind(before).bind(PURGE_STEP);
                let deleted = patient(step.execute(&self.pool)).await?.rows_affected();
                if deleted < PURGE_STEP.unsigned_abs() {
                    break;
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_nul_comes_back_and_keeps_its_order() {
        let words = [
            "",
            "\0",
            "\0\0",
            "\0\u{1}",
            "\u{1}",
            "\u{1}\0",
            "\u{1}\u{1}",
            "\u{1}\u{2}",
            "\u{2}",
            "a\0b",
            "a",
        ];
        for one in words {
            assert!(!text(one).contains('\0'));
            assert_eq!(plain(text(one)), one);
            for other in words {
                assert_eq!(text(one).cmp(&text(other)), one.cmp(other), "{one:?} {other:?}");
            }
        }
    }
}
