//! The embedded store: SQLite in WAL mode with `synchronous=FULL`, so that a commit survives power loss. One thread
//! writes and commits in groups whatever is waiting; readers have connections of their own and never wait for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    MOST_IN_A_COMMIT, MOST_WAITING, PARKED_FOR, PATIENCE, fold, instant, nanos, side_number, side_of,
};
use crate::domain::model::{LinkKey, Side};
use crate::ports::{
    Delivery, Fence, Held, Hint, Hold, JobLease, JournalEntry, LinkRecord, Parked, QueueStats, Remembered,
    Settlement, Store, StoreError, Subject,
};

const MIGRATIONS: &[&str] = &[include_str!("migrations/sqlite-1.sql")];
/// How long a statement waits for another process (`lockstep hold` beside the service) to finish its commit.
const BUSY: Duration = Duration::from_secs(3);
/// How many idle connections are kept for reading.
const MOST_READERS: usize = 4;
/// How many rows one purging step looks at, so that it never holds up the doors for long.
const PURGE_STEP: i64 = 2_000;
/// How long a served row that wants nothing is kept after its rest.
const RESTING_FOR: i64 = 60 * 1_000_000_000;

/// A store in one file.
pub struct SqliteStore {
    path: PathBuf,
    writer: mpsc::Sender<Box<dyn Command>>,
    readers: Arc<Mutex<Vec<Connection>>>,
}

impl SqliteStore {
    /// Opens the file, creating it where its folder exists, and brings its tables up to date.
    pub async fn open(path: &str) -> Result<Self, StoreError> {
        let path = PathBuf::from(path);
        if path.as_os_str().is_empty() {
            return Err(StoreError::Unavailable("sqlite:// names no file".to_owned()));
        }
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            let folder = folder.display();
            return Err(StoreError::Unavailable(format!(
                "the folder {folder} does not exist; create it first"
            )));
        }
        let at = path.clone();
        let mut connection = blocking(move || {
            let mut connection = connect(&at, OpenFlags::default())?;
            migrate(&mut connection, &at)?;
            Ok(connection)
        })
        .await?;
        let (writer, mut commands) = mpsc::channel::<Box<dyn Command>>(MOST_WAITING);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                let mut group = Vec::with_capacity(MOST_IN_A_COMMIT);
                while commands.blocking_recv_many(&mut group, MOST_IN_A_COMMIT) > 0 {
                    commit(&mut connection, &mut group);
                }
            })
            .map_err(|error| StoreError::Unavailable(format!("its thread does not start: {error}")))?;
        Ok(Self { path, writer, readers: Arc::default() })
    }

    /// Runs `work` in the next commit. It may run twice, when a neighbour in its group fails.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let command = Box::new(Waiting { work, outcome: None, reply });
        self.writer.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                StoreError::Unavailable("too many commands are waiting for it".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => {
                StoreError::Unavailable("its writer has ended".to_owned())
            }
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StoreError::Unavailable("its writer has ended".to_owned())),
            Err(_) => Err(StoreError::Unavailable(format!("no commit within {} s", PATIENCE.as_secs()))),
        }
    }

    /// Runs `work` on a connection for reading.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = Arc::clone(&self.readers);
        let path = self.path.clone();
        let task = blocking(move || {
            let idle = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?,
            };
            let outcome = work(&connection);
            let mut readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
            if readers.len() < MOST_READERS {
                readers.push(connection);
            }
            outcome
        });
        tokio::time::timeout(PATIENCE, task).await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("no answer in {} s", PATIENCE.as_secs())))
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(StoreError::Unavailable(format!("its task ended early: {error}"))))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    if !flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        let mode: String =
            connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).map_err(failed)?;
        if mode != "wal" {
            let path = path.display();
            return Err(StoreError::Unavailable(format!("{path} is on a disk that cannot do WAL ({mode})")));
        }
        connection.execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;").map_err(failed)?;
    }
    connection.execute_batch("PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY;").map_err(failed)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    let applied: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let applied = applied as usize;
    if applied > MIGRATIONS.len() {
        let (path, most) = (path.display(), MIGRATIONS.len());
        return Err(StoreError::Corrupt(format!(
            "{path} was written by a newer Lockstep (tables {applied}, this one knows {most}); use that one"
        )));
    }
    for migration in &MIGRATIONS[applied..] {
        transaction.execute_batch(migration).map_err(failed)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(failed)?;
    transaction.commit().map_err(failed)
}

fn failed(error: rusqlite::Error) -> StoreError {
    match &error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

// ---- group commit ------------------------------------------------------------------------------------------------

/// One waiting command: what to do, and whom to tell after the commit.
trait Command: Send {
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Waiting<T, F> {
    work: F,
    outcome: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnMut(&Connection) -> Result<T, StoreError> + Send> Command for Waiting<T, F> {
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        self.outcome = Some((self.work)(connection)?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { outcome, reply, .. } = *self;
        let lost = || StoreError::Unavailable("the command did not run".to_owned());
        // Whoever asked may have given up waiting; the commit stands all the same.
        reply.send(committed.and_then(|()| outcome.ok_or_else(lost))).ok();
    }
}

/// Commits the group as one transaction. Where one command fails, each runs again in a transaction of its own, so
/// that only the one that fails is told so.
fn commit(connection: &mut Connection, group: &mut Vec<Box<dyn Command>>) {
    let together = transact(connection, group.iter_mut());
    if together.is_ok() || group.len() == 1 {
        let mut outcome = Some(together);
        for command in group.drain(..) {
            command.answer(outcome.take().unwrap_or(Ok(())));
        }
        return;
    }
    for mut command in group.drain(..) {
        let alone = transact(connection, std::iter::once(&mut command));
        command.answer(alone);
    }
}

fn transact<'a>(
    connection: &mut Connection,
    group: impl Iterator<Item = &'a mut Box<dyn Command>>,
) -> Result<(), StoreError> {
    // Immediate: a deferred transaction that starts by reading cannot always become a writing one.
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    for command in group {
        command.run(&transaction)?;
    }
    transaction.commit().map_err(failed)
}

// ---- statements --------------------------------------------------------------------------------------------------

const REMEMBER: &str = "
    INSERT INTO jobs (side, scope, native_id, wanted, named, version, sources, first_hint_at, ready_at)
    VALUES (?1, ?2, ?3, ?4, CASE WHEN ?5 IS NULL THEN 2 ELSE 1 END, ?5, ?6, ?7, ?7)
    ON CONFLICT (side, scope, native_id) DO UPDATE SET
        wanted = wanted + ?4,
        named = CASE WHEN ?5 IS NULL THEN 2 WHEN named = 0 THEN 1 WHEN named = 1 AND version = ?5 THEN 1 ELSE 2 END,
        version = CASE WHEN named = 0 OR (named = 1 AND version = ?5) THEN ?5 ELSE NULL END,
        sources = CASE WHEN sources = '' THEN ?6
            WHEN instr(',' || sources || ',', ',' || ?6 || ',') > 0 OR length(sources) + length(?6) >= 200 THEN sources
            ELSE sources || ',' || ?6 END,
        first_hint_at = COALESCE(first_hint_at, ?7),
        ready_at = CASE WHEN wanted = done THEN max(ready_at, ?7)
            WHEN parked_reason IS NOT NULL AND lease_token IS NULL THEN ?7 ELSE ready_at END,
        attempts = CASE WHEN parked_reason IS NOT NULL THEN 0 ELSE attempts END,
        parked_reason = CASE WHEN ?5 IS NOT NULL AND ?5 IS NOT parked_version
            OR ?5 IS NULL AND parked_at < ?7 - ?8 THEN NULL ELSE parked_reason END";

const NEXT_SCOPE: &str = "
    SELECT side, scope FROM jobs INDEXED BY jobs_ready
    WHERE wanted > done AND parked_reason IS NULL AND (side, scope) > (?1, ?2) ORDER BY side, scope LIMIT 1";

const READY: &str = "
    SELECT native_id, wanted, done, version, sources, attempts, COALESCE(leased_first, first_hint_at, ready_at),
        served_at, lease_token IS NOT NULL
    FROM jobs INDEXED BY jobs_ready
    WHERE wanted > done AND parked_reason IS NULL AND side = ?1 AND scope = ?2 AND ready_at <= ?3
    ORDER BY ready_at LIMIT ?4";

const LEASE: &str = "
    UPDATE jobs SET lease_token = ?4, ready_at = ?5, attempts = ?6,
        leased_first = COALESCE(leased_first, first_hint_at), first_hint_at = NULL,
        named = 0, version = NULL, sources = ''
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3";

const DONE: &str = "
    UPDATE jobs SET done = ?5, lease_token = NULL, leased_first = NULL, attempts = 0, served_at = ?6, ready_at = ?7
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

const AGAIN: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = ?5, attempts = attempts + ?6,
        named = CASE WHEN ?7 IS NOT NULL AND (named = 0 OR (named = 1 AND version = ?7)) THEN 1 ELSE 2 END,
        version = CASE WHEN named = 0 OR (named = 1 AND version = ?7) THEN ?7 ELSE NULL END,
        sources = CASE WHEN sources = '' THEN ?8
            WHEN instr(',' || ?8 || ',', ',' || sources || ',') > 0 OR length(sources) + length(?8) >= 200 THEN ?8
            ELSE ?8 || ',' || sources END
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

/// A hint that came while the job ran may be the cure: then the row is tried once more instead of being put aside.
const PARK: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = ?5, parked_version = ?7,
        parked_reason = CASE WHEN named = 0 THEN ?6 ELSE NULL END, parked_at = ?5
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

const LINK: &str =
    "SELECT tenant_id, incident_id, workspace, route, sentinel_id, state, parked, updated_at FROM links";

fn link_of(row: &Row<'_>) -> rusqlite::Result<LinkRecord> {
    Ok(LinkRecord {
        key: LinkKey { tenant_id: row.get(0)?, incident_id: row.get(1)?, workspace: row.get(2)? },
        route: row.get(3)?,
        sentinel_id: row.get(4)?,
        state: row.get(5)?,
        parked: row.get(6)?,
        updated_at: instant(row.get(7)?),
    })
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let found = statement.query_map(params, map).map_err(failed)?;
    found.collect::<rusqlite::Result<Vec<T>>>().map_err(failed)
}

fn row<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    statement.query_row(params, map).optional().map_err(failed)
}

fn execute(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<usize, StoreError> {
    connection.prepare_cached(sql).map_err(failed)?.execute(params).map_err(failed)
}

fn held(changed: usize) -> Held {
    if changed > 0 { Held::Yes } else { Held::No }
}

fn most(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for SqliteStore {
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        now: OffsetDateTime,
    ) -> Result<Remembered, StoreError> {
        let hints = fold(hints)?;
        let now = nanos(now);
        self.write(move |connection| {
            if let Some(Delivery { door, id, keep_until }) = &delivery {
                // An id past its time that nobody purged yet is as good as forgotten.
                let stored = execute(
                    connection,
                    "INSERT INTO deliveries (door, id, keep_until) VALUES (?1, ?2, ?3)
                     ON CONFLICT (door, id) DO UPDATE SET keep_until = ?3 WHERE keep_until <= ?4",
                    params![door, id, nanos(*keep_until), now],
                )?;
                if stored == 0 {
                    return Ok(Remembered::Repeated);
                }
            }
            let mut statement = connection.prepare_cached(REMEMBER).map_err(failed)?;
            for hint in &hints {
                statement
                    .execute(params![
                        hint.side,
                        hint.scope,
                        hint.native_id,
                        hint.count,
                        hint.version,
                        hint.sources,
                        now,
                        PARKED_FOR
                    ])
                    .map_err(failed)?;
            }
            Ok(Remembered::New)
        })
        .await
    }

    async fn lease_jobs(
        &self,
        most_jobs: usize,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        let (now, until) = (nanos(now), nanos(until));
        // An idle worker asks often; it shall not cost a commit each time.
        let idle = self
            .read(move |connection| {
                let ready = "SELECT 1 FROM jobs INDEXED BY jobs_ready
                     WHERE wanted > done AND parked_reason IS NULL AND ready_at <= ?1 LIMIT 1";
                Ok(row(connection, ready, params![now], |_| Ok(()))?.is_none())
            })
            .await?;
        if idle || most_jobs == 0 {
            return Ok(Vec::new());
        }
        self.write(move |connection| {
            // A few of each scope, oldest first; then dealt out in turns.
            let mut scopes: Vec<std::vec::IntoIter<JobLease>> = Vec::new();
            let mut after = (-1_i16, String::new());
            let next = |row: &Row<'_>| Ok((row.get::<_, i16>(0)?, row.get::<_, String>(1)?));
            while let Some((side, scope)) = row(connection, NEXT_SCOPE, params![after.0, after.1], next)? {
                let ready = ready_rows(connection, side, &scope, now, most_jobs)?;
                if !ready.is_empty() {
                    scopes.push(ready.into_iter());
                }
                after = (side, scope);
            }
            scopes.sort_by_key(|scope| scope.as_slice().first().map(|lease| lease.first_hint_at));
            let mut leases = Vec::new();
            while leases.len() < most_jobs {
                let before = leases.len();
                for scope in &mut scopes {
                    leases.extend(scope.next().filter(|_| leases.len() < most_jobs));
                }
                if leases.len() == before {
                    break;
                }
            }
            let mut statement = connection.prepare_cached(LEASE).map_err(failed)?;
            for lease in &leases {
                let JobLease { subject: Subject { side, scope, native_id }, token, attempts, .. } = lease;
                statement
                    .execute(params![side_number(*side), scope, native_id, token.as_bytes(), until, attempts])
                    .map_err(failed)?;
            }
            Ok(leases)
        })
        .await
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let (lease, now) = (lease.clone(), nanos(now));
        self.write(move |connection| {
            let JobLease {
                subject: Subject { side, scope, native_id }, wanted, version, sources, token, ..
            } = &lease;
            let (side, token) = (side_number(*side), token.as_bytes());
            let changed = match &settlement {
                Settlement::Done { rest_until } => execute(
                    connection,
                    DONE,
                    params![side, scope, native_id, token, wanted, now, nanos(*rest_until)],
                )?,
                Settlement::Again { not_before, counts } => execute(
                    connection,
                    AGAIN,
                    params![side, scope, native_id, token, nanos(*not_before), *counts, version, sources],
                )?,
                Settlement::Park { reason } => {
                    execute(connection, PARK, params![side, scope, native_id, token, now, reason, version])?
                }
            };
            Ok(held(changed))
        })
        .await
    }

    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError> {
        let fence = Fence { name: name.to_owned(), token: Uuid::new_v4() };
        let (now, until) = (nanos(now), nanos(until));
        self.write(move |connection| {
            let taken = execute(
                connection,
                "INSERT INTO fences (name, token, held_until) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET token = ?2, held_until = ?3 WHERE held_until <= ?4",
                params![fence.name, fence.token.as_bytes(), until, now],
            )?;
            Ok((taken > 0).then(|| fence.clone()))
        })
        .await
    }

    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let (fence, now, until) = (fence.clone(), nanos(now), nanos(until));
        self.write(move |connection| {
            let sql = "UPDATE fences SET held_until = ?3 WHERE name = ?1 AND token = ?2 AND held_until > ?4";
            Ok(held(execute(connection, sql, params![fence.name, fence.token.as_bytes(), until, now])?))
        })
        .await
    }

    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError> {
        let fence = fence.clone();
        self.write(move |connection| {
            let sql = "DELETE FROM fences WHERE name = ?1 AND token = ?2";
            execute(connection, sql, params![fence.name, fence.token.as_bytes()]).map(|_| ())
        })
        .await
    }

    async fn link(&self, key: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        let key = key.clone();
        self.read(move |connection| {
            let sql = format!("{LINK} WHERE tenant_id = ?1 AND incident_id = ?2 AND workspace = ?3");
            row(connection, &sql, params![key.tenant_id, key.incident_id, key.workspace], link_of)
        })
        .await
    }

    async fn links_of_twin(&self, workspace: &str, sentinel_id: &str) -> Result<Vec<LinkRecord>, StoreError> {
        let (workspace, sentinel_id) = (workspace.to_owned(), sentinel_id.to_owned());
        self.read(move |connection| {
            let sql =
                format!("{LINK} WHERE workspace = ?1 AND sentinel_id = ?2 ORDER BY tenant_id, incident_id");
            rows(connection, &sql, params![workspace, sentinel_id], link_of)
        })
        .await
    }

    async fn save_link(
        &self,
        link: &LinkRecord,
        journal: &[JournalEntry],
        fence: &Fence,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let (link, journal, fence, now) = (link.clone(), journal.to_vec(), fence.clone(), nanos(now));
        self.write(move |connection| {
            let ours = "SELECT 1 FROM fences WHERE name = ?1 AND token = ?2 AND held_until > ?3";
            if row(connection, ours, params![fence.name, fence.token.as_bytes(), now], |_| Ok(()))?.is_none() {
                return Ok(Held::No);
            }
            let LinkRecord { key, route, sentinel_id, state, parked, updated_at } = &link;
            execute(
                connection,
                "INSERT INTO links (tenant_id, incident_id, workspace, route, sentinel_id, state, parked, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (tenant_id, incident_id, workspace) DO UPDATE SET
                     route = ?4, sentinel_id = ?5, state = ?6, parked = ?7, updated_at = ?8",
                params![
                    key.tenant_id,
                    key.incident_id,
                    key.workspace,
                    route,
                    sentinel_id,
                    state,
                    parked,
                    nanos(*updated_at)
                ],
            )?;
            for JournalEntry { at, link, kind, detail } in &journal {
                execute(
                    connection,
                    "INSERT INTO journal (at, tenant_id, incident_id, workspace, kind, detail)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        nanos(*at),
                        link.tenant_id,
                        link.incident_id,
                        link.workspace,
                        kind,
                        detail.to_string()
                    ],
                )?;
            }
            Ok(Held::Yes)
        })
        .await
    }

    async fn links(
        &self,
        route: Option<&str>,
        after: Option<&LinkKey>,
        most_links: usize,
    ) -> Result<Vec<LinkRecord>, StoreError> {
        let route = route.map(str::to_owned);
        let after = after.cloned().unwrap_or_else(|| LinkKey {
            tenant_id: String::new(),
            incident_id: String::new(),
            workspace: String::new(),
        });
        self.read(move |connection| {
            let sql = format!(
                "{LINK} WHERE (tenant_id, incident_id, workspace) > (?1, ?2, ?3) AND (?4 IS NULL OR route = ?4)
                 ORDER BY tenant_id, incident_id, workspace LIMIT ?5"
            );
            let LinkKey { tenant_id, incident_id, workspace } = after;
            rows(
                connection,
                &sql,
                params![tenant_id, incident_id, workspace, route, most(most_links)],
                link_of,
            )
        })
        .await
    }

    async fn journal_count(
        &self,
        link: &LinkKey,
        kind: &str,
        since: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let (link, kind, since) = (link.clone(), kind.to_owned(), nanos(since));
        self.read(move |connection| {
            let sql = "SELECT count(*) FROM journal
                 WHERE tenant_id = ?1 AND incident_id = ?2 AND workspace = ?3 AND kind = ?4 AND at >= ?5";
            let LinkKey { tenant_id, incident_id, workspace } = link;
            let count =
                row(connection, sql, params![tenant_id, incident_id, workspace, kind, since], |row| {
                    row.get::<_, i64>(0)
                })?;
            Ok(count.unwrap_or(0).unsigned_abs())
        })
        .await
    }

    async fn journal(&self, link: &LinkKey, most_lines: usize) -> Result<Vec<JournalEntry>, StoreError> {
        let link = link.clone();
        self.read(move |connection| {
            let sql = "SELECT at, kind, detail FROM journal
                 WHERE tenant_id = ?1 AND incident_id = ?2 AND workspace = ?3 ORDER BY seq DESC LIMIT ?4";
            let LinkKey { tenant_id, incident_id, workspace } = &link;
            let found =
                rows(connection, sql, params![tenant_id, incident_id, workspace, most(most_lines)], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
                })?;
            let entry = |(at, kind, detail): (i64, String, String)| {
                let detail = serde_json::from_str(&detail)
                    .map_err(|error| StoreError::Corrupt(format!("a journal line: {error}")))?;
                Ok(JournalEntry { at: instant(at), link: link.clone(), kind, detail })
            };
            found.into_iter().rev().map(entry).collect()
        })
        .await
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| {
            row(connection, "SELECT value FROM named_values WHERE name = ?1", params![name], |row| row.get(0))
        })
        .await
    }

    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.write(move |connection| {
            let sql = "INSERT INTO named_values (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = ?2";
            execute(connection, sql, params![name, value]).map(|_| ())
        })
        .await
    }

    async fn hold(&self, hold: &Hold) -> Result<(), StoreError> {
        let hold = hold.clone();
        self.write(move |connection| {
            let sql = "INSERT INTO holds (route, since, reason) VALUES (?1, ?2, ?3)
                 ON CONFLICT (route) DO UPDATE SET reason = ?3";
            execute(connection, sql, params![hold.route, nanos(hold.since), hold.reason]).map(|_| ())
        })
        .await
    }

    async fn release(&self, route: &str) -> Result<u64, StoreError> {
        let route = route.to_owned();
        self.write(move |connection| {
            let lifted =
                execute(connection, "DELETE FROM holds WHERE route = ?1 OR ?1 = '*'", params![route])?;
            Ok(lifted as u64)
        })
        .await
    }

    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.read(|connection| {
            rows(connection, "SELECT route, since, reason FROM holds ORDER BY route", [], |row| {
                Ok(Hold { route: row.get(0)?, since: instant(row.get(1)?), reason: row.get(2)? })
            })
        })
        .await
    }

    async fn parked(&self, most_rows: usize) -> Result<Vec<Parked>, StoreError> {
        self.read(move |connection| {
            let sql = "
                SELECT side, scope, native_id, parked_reason, parked_at AS since FROM jobs
                WHERE parked_reason IS NOT NULL
                UNION ALL SELECT 0, tenant_id, incident_id, parked, updated_at FROM links
                WHERE parked IS NOT NULL AND NOT EXISTS (SELECT 1 FROM jobs WHERE side = 0
                    AND scope = tenant_id AND native_id = incident_id AND parked_reason IS NOT NULL)
                ORDER BY since DESC LIMIT ?1";
            let found = rows(connection, sql, params![most(most_rows)], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })?;
            let parked = |(side, scope, native_id, reason, since)| {
                let subject = Subject { side: side_of(side)?, scope, native_id };
                Ok(Parked { subject, reason, since: instant(since) })
            };
            found.into_iter().map(parked).collect()
        })
        .await
    }

    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError> {
        let (subject, now) = (subject.clone(), nanos(now));
        self.write(move |connection| {
            let Subject { side, scope, native_id } = &subject;
            let row = execute(
                connection,
                "UPDATE jobs SET parked_reason = NULL, attempts = 0, ready_at = ?4
                 WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND parked_reason IS NOT NULL",
                params![side_number(*side), scope, native_id, now],
            )?;
            let sql = match side {
                Side::Defender => {
                    "UPDATE links SET parked = NULL
                     WHERE tenant_id = ?1 AND incident_id = ?2 AND parked IS NOT NULL"
                }
                Side::Sentinel => {
                    "UPDATE links SET parked = NULL
                     WHERE workspace = ?1 AND sentinel_id = ?2 AND parked IS NOT NULL"
                }
            };
            let links = execute(connection, sql, params![scope, native_id])?;
            if links > 0 {
                let version: Option<String> = None;
                execute(
                    connection,
                    REMEMBER,
                    params![side_number(*side), scope, native_id, 1, version, "unpark", now, PARKED_FOR],
                )?;
            }
            Ok(row + links > 0)
        })
        .await
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        self.read(|connection| {
            let sql = "
                SELECT (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL),
                    (SELECT count(*) FROM jobs WHERE parked_reason IS NOT NULL)
                    + (SELECT count(*) FROM links WHERE parked IS NOT NULL),
                    (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                     WHERE wanted > done AND parked_reason IS NULL)";
            let stats = row(connection, sql, [], |row| {
                Ok(QueueStats {
                    waiting: row.get(0)?,
                    parked: row.get(1)?,
                    oldest: row.get::<_, Option<i64>>(2)?.map(instant),
                })
            })?;
            Ok(stats.unwrap_or_default())
        })
        .await
    }

    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError> {
        let (now, journal_before) = (nanos(now), nanos(journal_before));
        self.write(move |connection| {
            let sql = "DELETE FROM jobs WHERE wanted = done AND ready_at < ?1 AND lease_token IS NULL";
            execute(connection, sql, params![now - RESTING_FOR])?;
            execute(connection, "DELETE FROM fences WHERE held_until < ?1", params![now - RESTING_FOR])
        })
        .await?;
        // In short steps: deliveries by key, the journal from its old end, which is in order of time.
        let mut after = Some((String::new(), String::new()));
        while let Some((door, id)) = after {
            after = self
                .write(move |connection| {
                    let sql = "SELECT door, id FROM deliveries WHERE (door, id) > (?1, ?2)
                         ORDER BY door, id LIMIT 1 OFFSET ?3";
                    let end: Option<(String, String)> =
                        row(connection, sql, params![door, id, PURGE_STEP - 1], |row| {
                            Ok((row.get(0)?, row.get(1)?))
                        })?;
                    let (last_door, last_id) = end.clone().unwrap_or(("\u{10ffff}".into(), String::new()));
                    let sql = "DELETE FROM deliveries WHERE (door, id) > (?1, ?2) AND (door, id) <= (?3, ?4)
                         AND keep_until <= ?5";
                    execute(connection, sql, params![door, id, last_door, last_id, now])?;
                    Ok(end)
                })
                .await?;
        }
        loop {
            let deleted = self
                .write(move |connection| {
                    let sql = "DELETE FROM journal WHERE seq IN
                         (SELECT seq FROM (SELECT seq, at FROM journal ORDER BY seq LIMIT ?2) WHERE at < ?1)";
                    execute(connection, sql, params![journal_before, PURGE_STEP])
                })
                .await?;
            if most(deleted) < PURGE_STEP {
                return Ok(());
            }
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let stamp = Uuid::new_v4().to_string();
        self.set_value("ping", &stamp).await?;
        match self.value("ping").await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Corrupt("a value that was just written is not there".to_owned())),
        }
    }
}

fn ready_rows(
    connection: &Connection,
    side: i16,
    scope: &str,
    now: i64,
    most_jobs: usize,
) -> Result<Vec<JobLease>, StoreError> {
    let subject_side = side_of(side)?;
    rows(connection, READY, params![side, scope, now, most(most_jobs)], |row| {
        let (wanted, done): (i64, i64) = (row.get(1)?, row.get(2)?);
        let broken_off: bool = row.get(8)?;
        let attempts: u32 = row.get(5)?;
        Ok(JobLease {
            subject: Subject { side: subject_side, scope: scope.to_owned(), native_id: row.get(0)? },
            wanted,
            version: row.get(3)?,
            sources: row.get(4)?,
            hints: wanted - done,
            served_at: row.get::<_, Option<i64>>(7)?.map(instant),
            // A lease that nobody settled was a step that died: it counts, or a deadly job would be tried for ever.
            attempts: attempts + u32::from(broken_off),
            first_hint_at: instant(row.get(6)?),
            token: Uuid::new_v4(),
        })
    })
}
