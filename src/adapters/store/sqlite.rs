//! The embedded store: SQLite in WAL mode with `synchronous=FULL`, so that a commit survives power loss. One writer
//! at a time commits in groups whatever is waiting; readers have connections of their own and never wait for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use time::OffsetDateTime;
use tokio::sync::oneshot;
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

const MIGRATIONS: &[&str] = &[include_str!("migrations/sqlite-1.sql")];
/// How long a statement waits for another process (`lockstep hold` beside the service) to finish its commit.
const BUSY: Duration = Duration::from_secs(2);
/// How many idle connections are kept for reading.
const MOST_READERS: usize = 4;
/// The version of the SQLite that is built in. Before 3.51.3 a crash could damage a WAL database.
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// A store in one file.
pub struct SqliteStore {
    path: PathBuf,
    writer: Arc<Writer>,
    readers: Arc<Mutex<Vec<Connection>>>,
    turns: Arc<Mutex<BothTurns>>,
    /// Whether the last lease found anything.
    leased: AtomicBool,
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
        let connection = blocking(move || {
            let mut connection = connect(&at, OpenFlags::default())?;
            migrate(&mut connection, &at)?;
            Ok(connection)
        })
        .await?;
        let writer = Arc::new(Writer { connection: Mutex::new(connection), line: Mutex::default() });
        Ok(Self {
            path,
            writer,
            readers: Arc::default(),
            turns: Arc::default(),
            leased: AtomicBool::new(false),
        })
    }

    /// Runs `work` in the next commit. It may run twice, when a neighbour in its group fails.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer.submit(Box::new(Waiting { work, outcome: None, reply }))?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StoreError::Unavailable("its writer broke off".to_owned())),
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
            let idle = lock(&readers).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?,
            };
            let outcome = work(&connection);
            let mut readers = lock(&readers);
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

/// What a panic left behind is whole: a transaction rolls back when it is dropped.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    // Else a statement near a partial index is prepared anew for every value that is bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
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

/// `Unavailable` is the whole store's trouble; `Corrupt` is that of the command that met it.
fn failed(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode as Code;
    let code = error.sqlite_error_code();
    match code {
        None
        | Some(Code::ConstraintViolation | Code::TooBig | Code::TypeMismatch | Code::ParameterOutOfRange) => {
            StoreError::Corrupt(error.to_string())
        }
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => StoreError::Corrupt(error.to_string()),
        Some(_) => StoreError::Unavailable(error.to_string()),
    }
}

// ---- group commit ------------------------------------------------------------------------------------------------

/// The one connection that writes, and those who wait for it. Whoever finds nobody at work starts a task that commits
/// until the line is empty: an idle store has no thread of its own, and a task that broke off is followed by another.
struct Writer {
    connection: Mutex<Connection>,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Box<dyn Command>>,
    at_work: bool,
}

impl Writer {
    fn submit(self: &Arc<Self>, command: Box<dyn Command>) -> Result<(), StoreError> {
        let mut line = lock(&self.line);
        if line.waiting.len() >= MOST_WAITING {
            return Err(StoreError::Unavailable("too many commands are waiting for it".to_owned()));
        }
        line.waiting.push_back(command);
        if !line.at_work {
            line.at_work = true;
            let shift = Shift { writer: Arc::clone(self), ended: false };
            tokio::task::spawn_blocking(move || shift.work());
        }
        Ok(())
    }
}

/// How often the writer lets others run before it takes a group that is smaller than half the last, or goes home.
const MOST_YIELDS: usize = 16;

/// Somebody at work for the line, or about to be.
struct Shift {
    writer: Arc<Writer>,
    ended: bool,
}

impl Shift {
    fn work(mut self) {
        let writer = Arc::clone(&self.writer);
        let mut connection = lock(&writer.connection);
        let mut last = 0;
        loop {
            // Those who were just answered are about to come again. Letting them run first makes one commit of what
            // would be two; nobody waits for it by the clock.
            for _ in 0..MOST_YIELDS {
                if lock(&writer.line).waiting.len() > last / 2 {
                    break;
                }
                std::thread::yield_now();
            }
            let group: Vec<_> = {
                let mut line = lock(&writer.line);
                if line.waiting.is_empty() {
                    line.at_work = false;
                    self.ended = true;
                    return;
                }
                let count = line.waiting.len().min(MOST_IN_A_COMMIT);
                last = count;
                // Nobody knows of what a caller asked for who has gone: a lease would lie about until it ran out.
                line.waiting.drain(..count).filter(|command| !command.is_abandoned()).collect()
            };
            commit(&mut connection, group);
        }
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        // After a panic, or when the runtime ends before the shift began, nobody shall wait for what is not coming.
        if !self.ended {
            let mut line = lock(&self.writer.line);
            line.at_work = false;
            line.waiting.clear();
        }
    }
}

/// One waiting command: what to do, and whom to tell after the commit.
trait Command: Send {
    fn is_abandoned(&self) -> bool;
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Waiting<T, F> {
    work: F,
    outcome: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnMut(&Connection) -> Result<T, StoreError> + Send> Command for Waiting<T, F> {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

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

/// Commits the group as one transaction. Where one command fails by its own fault, each runs again in a transaction of
/// its own, so that only that one is told so. Where the store is at fault, all are told at once: a try for each would
/// keep the doors waiting.
fn commit(connection: &mut Connection, mut group: Vec<Box<dyn Command>>) {
    let mut outcome = transact(connection, group.iter_mut());
    if group.len() > 1 && matches!(outcome, Err(StoreError::Corrupt(_))) {
        outcome = Ok(());
        for mut command in group {
            if outcome.is_ok() {
                match transact(connection, std::iter::once(&mut command)) {
                    Err(StoreError::Unavailable(reason)) => outcome = Err(StoreError::Unavailable(reason)),
                    alone => {
                        command.answer(alone);
                        continue;
                    }
                }
            }
            command.answer(same(&outcome));
        }
        return;
    }
    for command in group {
        command.answer(same(&outcome));
    }
}

fn same(outcome: &Result<(), StoreError>) -> Result<(), StoreError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(StoreError::Unavailable(reason)) => Err(StoreError::Unavailable(reason.clone())),
        Err(StoreError::Corrupt(what)) => Err(StoreError::Corrupt(what.clone())),
    }
}

fn transact<'a>(
    connection: &mut Connection,
    mut group: impl ExactSizeIterator<Item = &'a mut Box<dyn Command>>,
) -> Result<(), StoreError> {
    if group.len() == 0 {
        return Ok(());
    }
    // Immediate: a deferred transaction that starts by reading cannot always become a writing one.
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    group.try_for_each(|command| command.run(&transaction))?;
    transaction.commit().map_err(failed)
}

// ---- statements --------------------------------------------------------------------------------------------------

const REMEMBER: &str = "
    INSERT INTO jobs (side, scope, native_id, wanted, named, version, sources, first_hint_at, ready_at,
        live, fresh_live)
    VALUES (?1, ?2, ?3, ?4, CASE WHEN ?5 IS NULL THEN 2 ELSE 1 END, ?5, ?6, ?7, ?7, ?9, ?9)
    ON CONFLICT (side, scope, native_id) DO UPDATE SET
        wanted = wanted + ?4,
        named = CASE WHEN ?5 IS NOT NULL AND (named = 0 OR (named = 1 AND version = ?5)) THEN 1 ELSE 2 END,
        version = CASE WHEN named = 0 OR (named = 1 AND version = ?5) THEN ?5 ELSE NULL END,
        sources = CASE WHEN sources = '' THEN ?6
            WHEN instr(',' || sources || ',', ',' || ?6 || ',') > 0 OR length(sources) + length(?6) >= 200 THEN sources
            ELSE sources || ',' || ?6 END,
        first_hint_at = COALESCE(first_hint_at, ?7),
        live = max(live, ?9), fresh_live = max(fresh_live, ?9),
        news = CASE WHEN lease_token IS NOT NULL AND ?5 IS NOT NULL AND ?5 IS NOT leased_version THEN 1 ELSE news END,
        ready_at = CASE WHEN wanted = done THEN max(ready_at, ?7)
            WHEN parked_reason IS NOT NULL THEN ?7 WHEN wakes = 1 THEN min(ready_at, ?7) ELSE ready_at END,
        attempts = CASE WHEN parked_reason IS NOT NULL THEN 0 ELSE attempts END,
        parked_reason = CASE WHEN ?5 IS NOT NULL AND ?5 IS NOT parked_version
            OR ?5 IS NULL AND parked_at < ?7 - ?8 THEN NULL ELSE parked_reason END";

/// In two halves: for `(side, scope) > (?1, ?2)` SQLite would walk through all the rows of the scope that it is at.
const NEXT_SCOPE: &str = "
    SELECT * FROM (SELECT side, scope FROM jobs INDEXED BY jobs_ready
        WHERE wanted > done AND parked_reason IS NULL AND live = ?3 AND side = ?1 AND scope > ?2
        ORDER BY scope LIMIT 1)
    UNION ALL SELECT * FROM (SELECT side, scope FROM jobs INDEXED BY jobs_ready
        WHERE wanted > done AND parked_reason IS NULL AND live = ?3 AND side > ?1
        ORDER BY side, scope LIMIT 1)
    ORDER BY side, scope LIMIT 1";

const READY: &str = "
    SELECT native_id, wanted, done, attempts, served_at, ready_at, lease_token IS NOT NULL,
        leased_named, leased_version, leased_sources, leased_first, named, version, sources, first_hint_at, live
    FROM jobs INDEXED BY jobs_ready
    WHERE wanted > done AND parked_reason IS NULL AND live = ?5 AND side = ?1 AND scope = ?2 AND ready_at <= ?3
    ORDER BY ready_at, native_id LIMIT ?4";

/// The columns of [`READY`], and what only people ask for.
const QUEUED: &str = "
    SELECT native_id, wanted, done, attempts, served_at, ready_at, lease_token IS NOT NULL,
        leased_named, leased_version, leased_sources, leased_first, named, version, sources, first_hint_at, live,
        parked_reason, parked_at
    FROM jobs WHERE side = ?1 AND scope = ?2 AND native_id = ?3";

const LEASE: &str = "
    UPDATE jobs SET lease_token = ?4, ready_at = ?5, attempts = ?6,
        leased_named = ?7, leased_version = ?8, leased_sources = ?9, leased_first = ?10,
        named = 0, version = NULL, sources = '', first_hint_at = NULL, news = 0, fresh_live = 0, wakes = 0
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3";

const DONE: &str = "
    UPDATE jobs SET done = ?5, lease_token = NULL, attempts = 0, served_at = ?6, ready_at = ?7, live = fresh_live,
        leased_named = 0, leased_version = NULL, leased_sources = '', leased_first = NULL
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

const AGAIN: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = ?5, attempts = attempts + ?6
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

/// What came while it was leased is not waited with.
const LOOK: &str = "
    UPDATE jobs SET lease_token = NULL, attempts = 0, served_at = ?5, wakes = 1,
        ready_at = CASE WHEN named > 0 THEN min(?5, ?6) ELSE ?6 END
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

/// As if the row had been parked when it was leased and its later hints had come after that: one with another version
/// may be the cure, and the row is tried once more instead of being put aside.
const PARK: &str = "
    UPDATE jobs SET lease_token = NULL, ready_at = ?5, parked_at = ?5, parked_version = leased_version,
        parked_reason = CASE WHEN news = 1 THEN NULL ELSE ?6 END,
        attempts = CASE WHEN news = 1 THEN 0 ELSE attempts END
    WHERE side = ?1 AND scope = ?2 AND native_id = ?3 AND lease_token = ?4";

fn ready_of(row: &Row<'_>) -> rusqlite::Result<Ready> {
    let gathered = |at: usize| {
        let (named, version, sources) = (row.get(at)?, row.get(at + 1)?, row.get(at + 2)?);
        Ok::<_, rusqlite::Error>(Gathered { named, version, sources, first_at: row.get(at + 3)? })
    };
    Ok(Ready {
        native_id: row.get(0)?,
        wanted: row.get(1)?,
        done: row.get(2)?,
        attempts: row.get(3)?,
        served_at: row.get(4)?,
        ready_at: row.get(5)?,
        broken_off: row.get(6)?,
        leased: gathered(7)?,
        fresh: gathered(11)?,
        live: row.get(15)?,
    })
}

/// Some ready rows of each scope that has any, live ones or background ones, from where the last look ended, once around.
fn ready_rows(
    connection: &Connection,
    start: Option<ScopeKey>,
    skip: &[ScopeKey],
    now: i64,
    most_jobs: usize,
    live: bool,
) -> Result<Vec<(ScopeKey, Vec<Ready>)>, StoreError> {
    let next = |row: &Row<'_>| Ok((row.get::<_, i16>(0)?, row.get::<_, String>(1)?));
    let before_all = || (-1, String::new());
    let mut found = Vec::new();
    let mut round_the_end = start.is_none();
    let mut after = start.clone().unwrap_or_else(before_all);
    while found.len() < SCOPES_AT_ONCE {
        let Some(key) = row(connection, NEXT_SCOPE, params![after.0, after.1, live], next)? else {
            if round_the_end {
                break;
            }
            (round_the_end, after) = (true, before_all());
            continue;
        };
        if round_the_end && start.as_ref().is_some_and(|start| key > *start) {
            break;
        }
        if !skip.contains(&key) {
            let ready = rows(connection, READY, params![key.0, key.1, now, most(most_jobs), live], ready_of)?;
            if !ready.is_empty() {
                found.push((key.clone(), ready));
            }
        }
        after = key;
    }
    Ok(found)
}

fn remember(connection: &Connection, hint: &Folded, now: i64) -> Result<(), StoreError> {
    let Folded { side, scope, native_id, version, source, live, count } = hint;
    let set = params![side, scope, native_id, count, version, source, now, PARKED_FOR, live];
    execute(connection, REMEMBER, set)?;
    Ok(())
}

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
        let delivery = delivery.map(|delivery| (delivery_key(&delivery), nanos(delivery.keep_until)));
        self.write(move |connection| {
            if let Some((key, keep_until)) = &delivery {
                // An id past its time that nobody purged yet is as good as forgotten.
                let stored = execute(
                    connection,
                    "INSERT INTO deliveries (key, keep_until) VALUES (?1, ?2)
                     ON CONFLICT (key) DO UPDATE SET keep_until = ?2 WHERE keep_until <= ?3",
                    params![key.as_bytes(), keep_until, now],
                )?;
                if stored == 0 {
                    return Ok(Remembered::Repeated);
                }
            }
            hints.iter().try_for_each(|hint| remember(connection, hint, now))?;
            Ok(Remembered::New)
        })
        .await
    }

    async fn lease_jobs(
        &self,
        most_jobs: usize,
        skip: &[Scope],
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        let (now, until) = (nanos(now), nanos(until));
        // An idle worker asks often; it shall not cost a commit each time. A busy one need not ask before.
        let busy = self.leased.load(Ordering::Relaxed);
        let idle = !busy
            && self
                .read(move |connection| {
                    let ready = "SELECT 1 FROM jobs INDEXED BY jobs_ready
                     WHERE wanted > done AND parked_reason IS NULL AND ready_at <= ?1 LIMIT 1";
                    Ok(row(connection, ready, params![now], |_| Ok(()))?.is_none())
                })
                .await?;
        if idle || most_jobs == 0 {
            return Ok(Vec::new());
        }
        let turns = Arc::clone(&self.turns);
        let skip: Vec<ScopeKey> =
            skip.iter().map(|(side, scope)| (side_number(*side), scope.clone())).collect();
        let leases = self
            .write(move |connection| {
                let mut turns = lock(&turns);
                let mut all = Vec::new();
                let mut count = [0; 2];
                let owed = turns.owed(most_jobs);
                for (live, most_of_kind) in [(false, owed), (true, most_jobs), (false, most_jobs)] {
                    let room = most_of_kind.min(most_jobs - all.len());
                    if room == 0 {
                        continue;
                    }
                    let turns = turns.of(live);
                    let ready = ready_rows(connection, turns.after.clone(), &skip, now, room, live)?;
                    let mut leases = Vec::new();
                    for ((side, scope), ready) in turns.deal(ready, room) {
                        let (lease, gathered) = ready.lease(side_of(side)?, &scope);
                        let Gathered { named, version, sources, first_at } = gathered;
                        let (id, token) = (&lease.subject.native_id, lease.token.as_bytes());
                        let set = params![
                            side,
                            scope,
                            id,
                            token,
                            until,
                            lease.attempts,
                            named,
                            version,
                            sources,
                            first_at
                        ];
                        execute(connection, LEASE, set)?;
                        leases.push(lease);
                    }
                    turns.took(&leases);
                    count[usize::from(live)] += leases.len();
                    all.append(&mut leases);
                }
                turns.took(owed, count[1], count[0]);
                Ok(all)
            })
            .await?;
        self.leased.store(!leases.is_empty(), Ordering::Relaxed);
        Ok(leases)
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        now: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        let (lease, now) = (lease.clone(), nanos(now));
        self.write(move |connection| {
            let JobLease { subject: Subject { side, scope, native_id }, wanted, token, .. } = &lease;
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
                    params![side, scope, native_id, token, nanos(*not_before), *counts],
                )?,
                Settlement::Look { at } => {
                    execute(connection, LOOK, params![side, scope, native_id, token, now, nanos(*at)])?
                }
                Settlement::Park { reason } => {
                    execute(connection, PARK, params![side, scope, native_id, token, now, reason])?
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
        let LinkKey { tenant_id, incident_id, workspace } = after.cloned().unwrap_or_else(|| LinkKey {
            tenant_id: String::new(),
            incident_id: String::new(),
            workspace: String::new(),
        });
        self.read(move |connection| {
            // Two statements: each has an index that is in this order.
            let of_route = if route.is_some() { "route = ?5" } else { "?5 IS NULL" };
            let sql = format!(
                "{LINK} WHERE {of_route} AND (tenant_id, incident_id, workspace) > (?1, ?2, ?3)
                 ORDER BY tenant_id, incident_id, workspace LIMIT ?4"
            );
            let from = params![tenant_id, incident_id, workspace, most(most_links), route];
            rows(connection, &sql, from, link_of)
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

    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most_values: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let Names { from, beyond, end } = Names::of(prefix, after);
        self.read(move |connection| {
            // Spelt out, so that both bounds are bounds of the index.
            let above = if beyond { "name > ?1" } else { "name >= ?1" };
            let below = if end.is_some() { "name < ?2" } else { "?2 IS NULL" };
            let sql = format!(
                "SELECT name, value FROM named_values WHERE {above} AND {below} ORDER BY name LIMIT ?3"
            );
            rows(connection, &sql, params![from, end, most(most_values)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
        })
        .await
    }

    async fn remove_value(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |connection| {
            execute(connection, "DELETE FROM named_values WHERE name = ?1", params![name]).map(|_| ())
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

    async fn queued(&self, subject: &Subject) -> Result<Option<Queued>, StoreError> {
        let subject = subject.clone();
        self.read(move |connection| {
            let Subject { side, scope, native_id } = &subject;
            let found = row(connection, QUEUED, params![side_number(*side), scope, native_id], |row| {
                Ok((ready_of(row)?, row.get::<_, Option<String>>(16)?, row.get::<_, Option<i64>>(17)?))
            })?;
            Ok(found.map(|(ready, reason, at)| ready.queued(subject, reason.zip(at.map(instant)))))
        })
        .await
    }

    async fn parked(&self, most_rows: usize) -> Result<Vec<Parked>, StoreError> {
        self.read(move |connection| {
            let sql = "
                SELECT side, scope, native_id, parked_reason, parked_at AS since,
                    (SELECT tenant_id FROM links WHERE side = 1 AND workspace = scope AND sentinel_id = native_id
                        ORDER BY tenant_id, incident_id LIMIT 1),
                    (SELECT incident_id FROM links WHERE side = 1 AND workspace = scope AND sentinel_id = native_id
                        ORDER BY tenant_id, incident_id LIMIT 1), 0
                FROM jobs WHERE parked_reason IS NOT NULL
                UNION ALL SELECT 0, tenant_id, incident_id, parked, updated_at, NULL, NULL, 1 FROM links
                WHERE parked IS NOT NULL
                ORDER BY since DESC LIMIT ?1";
            let found = rows(connection, sql, params![most(most_rows.saturating_mul(ASIDE_OF_ONE))], |row| {
                let incident = row.get::<_, Option<String>>(5)?.zip(row.get(6)?);
                let (side, scope, native_id) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let (reason, since, link) = (row.get(3)?, row.get(4)?, row.get(7)?);
                Ok(Aside { side, scope, native_id, reason, since, incident, link })
            })?;
            one_for_each(found, most_rows)
        })
        .await
    }

    async fn unpark(&self, subject: &Subject, now: OffsetDateTime) -> Result<bool, StoreError> {
        let (subject, now) = (subject.clone(), nanos(now));
        self.write(move |connection| {
            let Subject { side, scope, native_id } = &subject;
            let (others, links) = match side {
                Side::Defender => (
                    "side = 1 AND (scope, native_id) IN (SELECT workspace, sentinel_id FROM links
                        WHERE tenant_id = ?2 AND incident_id = ?3)",
                    "tenant_id = ?1 AND incident_id = ?2",
                ),
                Side::Sentinel => (
                    "side = 0 AND (scope, native_id) IN (SELECT tenant_id, incident_id FROM links
                        WHERE workspace = ?2 AND sentinel_id = ?3)",
                    "workspace = ?1 AND sentinel_id = ?2",
                ),
            };
            let sql = format!(
                "UPDATE jobs SET parked_reason = NULL, attempts = 0, ready_at = ?4, live = 1
                 WHERE parked_reason IS NOT NULL
                     AND ((side = ?1 AND scope = ?2 AND native_id = ?3) OR ({others}))"
            );
            let rows = execute(connection, &sql, params![side_number(*side), scope, native_id, now])?;
            let sql = format!("UPDATE links SET parked = NULL WHERE {links} AND parked IS NOT NULL");
            let links = execute(connection, &sql, params![scope, native_id])?;
            if links > 0 {
                let hint = Hint { subject: subject.clone(), version: None, source: "unpark".to_owned() };
                fold(vec![hint])?.iter().try_for_each(|hint| remember(connection, hint, now))?;
            }
            Ok(rows + links > 0)
        })
        .await
    }

    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        self.read(|connection| {
            let sql = "
                SELECT (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL),
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
                            AND native_id = sentinel_id AND parked_reason IS NOT NULL))),
                    (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                     WHERE wanted > done AND parked_reason IS NULL AND live = 1),
                    (SELECT count(*) FROM jobs WHERE wanted > done AND parked_reason IS NULL AND live = 0),
                    (SELECT min(COALESCE(leased_first, first_hint_at)) FROM jobs
                     WHERE wanted > done AND parked_reason IS NULL AND live = 0)";
            let stats = row(connection, sql, [], |row| {
                Ok(QueueStats {
                    waiting: row.get(0)?,
                    parked: row.get(1)?,
                    oldest: row.get::<_, Option<i64>>(2)?.map(instant),
                    background: row.get(3)?,
                    oldest_background: row.get::<_, Option<i64>>(4)?.map(instant),
                })
            })?;
            Ok(stats.unwrap_or_default())
        })
        .await
    }

    async fn purge(&self, now: OffsetDateTime, journal_before: OffsetDateTime) -> Result<(), StoreError> {
        let (now, journal_before) = (nanos(now), nanos(journal_before));
        self.write(move |connection| {
            execute(connection, "DELETE FROM fences WHERE held_until < ?1", params![now - RESTING_FOR])
        })
        .await?;
        loop {
            let deleted = self
                .write(move |connection| {
                    let sql =
                        "DELETE FROM jobs WHERE (side, scope, native_id) IN (SELECT side, scope, native_id
                         FROM jobs INDEXED BY jobs_resting
                         WHERE wanted = done AND ready_at < ?1 AND lease_token IS NULL LIMIT ?2)";
                    execute(connection, sql, params![now - RESTING_FOR, PURGE_STEP])
                })
                .await?;
            if most(deleted) < PURGE_STEP {
                break;
            }
        }
        // Deliveries by key, the journal from its old end, which is in order of time.
        let mut after = Some(Vec::new());
        while let Some(key) = after {
            after = self
                .write(move |connection| {
                    let sql = "SELECT key FROM deliveries WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2";
                    let end: Option<Vec<u8>> =
                        row(connection, sql, params![key, PURGE_STEP - 1], |row| row.get(0))?;
                    let sql = "DELETE FROM deliveries
                         WHERE key > ?1 AND (?2 IS NULL OR key <= ?2) AND keep_until <= ?3";
                    execute(connection, sql, params![key, end, now])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// While a backfill fills the queue, a lease of live work must walk along live rows alone.
    #[test]
    fn a_lease_steps_over_no_backlog() {
        let connection = Connection::open_in_memory().expect("SQLite");
        connection.execute_batch(MIGRATIONS[0]).expect("tables");
        for (sql, bounds) in [
            (READY, ["jobs_ready (live=? AND side=? AND scope=? AND ready_at<?)"].as_slice()),
            (NEXT_SCOPE, &["jobs_ready (live=? AND side=? AND scope>?)", "jobs_ready (live=? AND side>?)"]),
        ] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
            let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
            let nulls = rusqlite::params_from_iter(nulls);
            let steps = statement.query_map(nulls, |row| row.get::<_, String>(3)).expect("a plan");
            let plan: Vec<String> = steps.collect::<rusqlite::Result<_>>().expect("a plan");
            for bound in bounds {
                assert!(plan.iter().any(|step| step.contains(bound)), "{bound}: {plan:?}");
            }
        }
    }
}
