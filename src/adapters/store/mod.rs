//! Durable state, twice: SQLite for one replica, PostgreSQL for several. `tests/store` holds one contract suite that
//! both pass. The statements differ where the engines do (one writer here, row locks there), so they share no layer.

mod postgres;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::model::Side;
use crate::ports::{Hint, Store, StoreError};

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// How many commands share one commit: what is waiting, never waited for. Beyond this only the wait grows
/// (`crates.md` §6).
const MOST_IN_A_COMMIT: usize = 256;
/// How many commands may wait for the writer. Beyond this the store says at once that it is unavailable.
const MOST_WAITING: usize = 4_096;
/// How long a command waits for its commit before the store counts as unavailable.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest list of sources kept on a row.
const SOURCES_LIMIT: usize = 200;
/// A parked row takes a hint without a version for news only after this long.
const PARKED_FOR: i64 = 3_600 * 1_000_000_000;

/// Opens the store that a URL names, and brings its tables up to date.
///
/// `sqlite://FILE` (relative to the working folder, or absolute with a third slash) or `postgres://…`.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        return Ok(Arc::new(SqliteStore::open(path).await?));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Arc::new(PostgresStore::open(url).await?));
    }
    let scheme = url.split_once("://").map_or("no scheme", |(scheme, _)| scheme);
    Err(StoreError::Unavailable(format!(
        "its URL begins with {scheme}; it can be sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE"
    )))
}

/// An instant as both engines keep it.
fn nanos(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos()).unwrap_or(if at.unix_timestamp() < 0 {
        i64::MIN
    } else {
        i64::MAX
    })
}

/// What [`nanos`] wrote.
fn instant(nanos: i64) -> OffsetDateTime {
    // Every i64 of nanoseconds lies between the years 1677 and 2262, which the type can hold.
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn side_number(side: Side) -> i16 {
    match side {
        Side::Defender => 0,
        Side::Sentinel => 1,
    }
}

fn side_of(number: i16) -> Result<Side, StoreError> {
    match number {
        0 => Ok(Side::Defender),
        1 => Ok(Side::Sentinel),
        other => Err(StoreError::Corrupt(format!("a row of side {other}"))),
    }
}

/// Hints folded by subject, in key order: rows are always locked in the same order, and a notice that names one
/// incident twenty times costs one statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Folded {
    side: i16,
    scope: String,
    native_id: String,
    count: i64,
    version: Option<String>,
    sources: String,
}

fn fold(hints: Vec<Hint>) -> Result<Vec<Folded>, StoreError> {
    let mut folded: Vec<Folded> = Vec::with_capacity(hints.len());
    for Hint { subject, version, source } in hints {
        // PostgreSQL cannot hold NUL in text; neither service has such ids. Doors drop them before they come here.
        if subject.scope.contains('\0') || subject.native_id.contains('\0') {
            return Err(StoreError::Corrupt("a hint whose id holds a NUL character".to_owned()));
        }
        let side = side_number(subject.side);
        let version = version.filter(|version| !version.contains('\0'));
        folded.push(Folded {
            side,
            scope: subject.scope,
            native_id: subject.native_id,
            count: 1,
            version,
            sources: source,
        });
    }
    folded.sort();
    folded.dedup_by(|next, kept| {
        let same = (next.side, &next.scope, &next.native_id) == (kept.side, &kept.scope, &kept.native_id);
        if same {
            kept.count += 1;
            if kept.version != next.version {
                kept.version = None;
            }
            kept.sources = join_sources(&kept.sources, &next.sources);
        }
        same
    });
    Ok(folded)
}

/// Two lists of distinct sources as one, not longer than the limit.
fn join_sources(kept: &str, new: &str) -> String {
    let mut list: Vec<&str> = kept.split(',').filter(|source| !source.is_empty()).collect();
    for source in new.split(',').filter(|source| !source.is_empty()) {
        let length: usize = list.iter().map(|source| source.len() + 1).sum();
        if !list.contains(&source) && length + source.len() <= SOURCES_LIMIT {
            list.push(source);
        }
    }
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Subject;

    #[test]
    fn an_instant_survives() {
        for nanos_then in [0, 1, -1, i64::MAX, i64::MIN, 1_763_000_000_123_456_789] {
            assert_eq!(nanos(instant(nanos_then)), nanos_then);
        }
    }

    #[test]
    fn hints_of_one_subject_become_one_row() {
        let hint = |id: &str, version: Option<&str>, source: &str| Hint {
            subject: Subject { side: Side::Defender, scope: "t".into(), native_id: id.into() },
            version: version.map(str::to_owned),
            source: source.into(),
        };
        let folded = fold(vec![
            hint("2", Some("a"), "poll"),
            hint("1", None, "poll"),
            hint("2", Some("a"), "sweep"),
            hint("2", Some("a"), "poll"),
        ])
        .expect("plain");
        assert_eq!(folded.len(), 2);
        assert_eq!((folded[1].count, folded[1].version.as_deref()), (3, Some("a")));
        assert_eq!(folded[1].sources, "poll,sweep");
        assert!(fold(vec![hint("a\0b", None, "poll")]).is_err());
    }

    #[test]
    fn the_list_of_sources_has_an_end() {
        let mut list = String::new();
        for number in 0..1_000 {
            list = join_sources(&list, &format!("door-{number}"));
        }
        assert!(list.len() <= SOURCES_LIMIT && list.starts_with("door-0,door-1"));
    }

    #[tokio::test]
    async fn another_scheme_is_refused_without_its_secrets() {
        let Err(error) = open("mysql://root:hunter2@db/x").await else { panic!("opened") };
        let text = error.to_string();
        assert!(text.contains("sqlite://FILE") && !text.contains("hunter2"), "{text}");
    }
}
