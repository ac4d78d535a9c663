//! Durable state, twice: SQLite for one replica, PostgreSQL for several. `tests/store` holds one contract suite that
//! both pass. The statements differ where the engines do (one writer here, row locks there), so they share no layer.

mod postgres;
mod sqlite;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::model::Side;
use crate::ports::{BACKGROUND_SHARE, Delivery, Hint, JobLease, Parked, Queued, Store, StoreError, Subject};

pub use postgres::PostgresStore;
pub use sqlite::{SqliteStore, sqlite_version};

/// How many commands share one commit: what is waiting, never waited for. Beyond this only the wait grows
/// (`crates.md` §6).
const MOST_IN_A_COMMIT: usize = 256;
/// How many commands may wait for the writer. Beyond this the store says at once that it is unavailable.
const MOST_WAITING: usize = 4_096;
/// How long a command waits for its commit before the store counts as unavailable.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest list of sources kept on a row.
const SOURCES_LIMIT: usize = 200;
/// The longest id that a row's key may hold: an index entry of PostgreSQL ends at 2,704 bytes.
const LONGEST_ID: usize = 1_024;
/// How long a served row that wants nothing is kept after its rest.
const RESTING_FOR: i64 = 60 * 1_000_000_000;
/// How many rows one purging step looks at, so that it never holds up the doors for long.
const PURGE_STEP: i64 = 2_000;
/// How many scopes with ready rows one lease looks at: with ten thousand of them, a lease must not hold up the doors.
const SCOPES_AT_ONCE: usize = 256;
/// For how many scopes the last turn is remembered.
const MOST_TURNS: usize = 40_000;
/// The namespace of delivery keys.
const DELIVERIES: Uuid = Uuid::from_u128(0x1d0c_57e9_0a5f_4c39_9d54_5f0c_7a52_9e01);
/// Between two reasons for which one incident is parked.
const REASONS: &str = "; and: ";
/// A row of either side and a link: as many entries of the tables may be one of the list.
const ASIDE_OF_ONE: usize = 3;
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

/// Equal hints of one call as one, in key order: rows are always locked in the same order, and a notice that names one
/// incident twenty times costs one statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Folded {
    side: i16,
    scope: String,
    native_id: String,
    version: Option<String>,
    source: String,
    live: bool,
    count: i64,
}

fn fold(hints: Vec<Hint>) -> Result<Vec<Folded>, StoreError> {
    let mut folded: Vec<Folded> = Vec::with_capacity(hints.len());
    for hint in hints {
        let live = !hint.background();
        let Hint { subject, version, source } = hint;
        if subject.scope.len() > LONGEST_ID || subject.native_id.len() > LONGEST_ID {
            return Err(StoreError::Corrupt(format!("a hint whose id is longer than {LONGEST_ID} bytes")));
        }
        folded.push(Folded {
            side: side_number(subject.side),
            scope: subject.scope,
            native_id: subject.native_id,
            version,
            source: one_source(source),
            live,
            count: 1,
        });
    }
    folded.sort();
    folded.dedup_by(|next, kept| {
        let same = (next.side, &next.scope, &next.native_id, &next.version, &next.source)
            == (kept.side, &kept.scope, &kept.native_id, &kept.version, &kept.source);
        kept.count += i64::from(same);
        same
    });
    Ok(folded)
}

/// A source as a member of a list: no commas, nothing invisible, not longer than a list may be.
fn one_source(source: String) -> String {
    let plain = |character: char| character != ',' && !character.is_control();
    if source.len() <= SOURCES_LIMIT && source.chars().all(plain) {
        return source;
    }
    source.chars().take(SOURCES_LIMIT).map(|one| if plain(one) { one } else { '_' }).collect()
}

/// Two lists of distinct sources as one, not longer than the limit.
fn join_sources(kept: &str, new: &str) -> String {
    let mut list: Vec<&str> = kept.split(',').filter(|source| !source.is_empty()).collect();
    let mut length = kept.chars().count();
    for source in new.split(',').filter(|source| !source.is_empty()) {
        let more = source.chars().count() + usize::from(!list.is_empty());
        if !list.contains(&source) && length + more <= SOURCES_LIMIT {
            list.push(source);
            length += more;
        }
    }
    list.join(",")
}

/// The names that begin with a prefix and come after another, as bounds in the order of bytes: where they begin, whether
/// that name itself is left out, and before which name they end.
struct Names {
    from: String,
    beyond: bool,
    end: Option<String>,
}

impl Names {
    fn of(prefix: &str, after: Option<&str>) -> Self {
        let after = after.filter(|after| *after >= prefix);
        Self { from: after.unwrap_or(prefix).to_owned(), beyond: after.is_some(), end: end_of_prefix(prefix) }
    }
}

/// The least text that is greater than all that begin with the prefix; `None` where nothing is.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // A range of characters steps over the surrogates, as UTF-8 does.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

/// The identity of a delivery as a key of bounded length: the sender chooses the id, and may choose a novel.
fn delivery_key(delivery: &Delivery) -> Uuid {
    let name = format!("{}:{}:{}", delivery.door.len(), delivery.door, delivery.id);
    Uuid::new_v5(&DELIVERIES, name.as_bytes())
}

/// What a row has gathered from hints: since the last lease, or for the lease that is out or broke off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Gathered {
    /// 0: no hint; 1: all named `version`; 2: they named several or none.
    named: i16,
    version: Option<String>,
    sources: String,
    first_at: Option<i64>,
}

impl Gathered {
    /// What this and the `later` hints come to. A version stands only if every hint named it: a job may be settled
    /// without a look when its version is known, so a version that speaks for half of its hints would lose the rest.
    fn with(self, later: Self) -> Self {
        let (named, version) = match (self.named, later.named) {
            (_, 0) => (self.named, self.version),
            (0, _) => (later.named, later.version),
            (1, 1) if self.version == later.version => (1, self.version),
            _ => (2, None),
        };
        Self {
            named,
            version,
            sources: join_sources(&self.sources, &later.sources),
            first_at: self.first_at.or(later.first_at),
        }
    }
}

/// A row that is ready to be leased.
#[derive(Clone, Debug)]
struct Ready {
    native_id: String,
    wanted: i64,
    done: i64,
    attempts: u32,
    served_at: Option<i64>,
    ready_at: i64,
    /// Somebody leased it and never settled.
    broken_off: bool,
    /// Not all that it has to serve came from the background.
    live: bool,
    leased: Gathered,
    fresh: Gathered,
}

impl Ready {
    /// When the oldest hint that it is to serve came in.
    fn first_at(&self) -> i64 {
        self.leased.first_at.or(self.fresh.first_at).unwrap_or(self.ready_at)
    }

    /// The lease, and what the row is to keep of its hints while the lease is out.
    fn lease(self, side: Side, scope: &str) -> (JobLease, Gathered) {
        let first_hint_at = instant(self.first_at());
        let gathered = self.leased.with(self.fresh);
        let lease = JobLease {
            subject: Subject { side, scope: scope.to_owned(), native_id: self.native_id },
            wanted: self.wanted,
            version: gathered.version.clone(),
            sources: gathered.sources.clone(),
            hints: self.wanted - self.done,
            served_at: self.served_at.map(instant),
            // A lease that nobody settled was a step that died: it counts, or a deadly job would be tried for ever.
            attempts: self.attempts.saturating_add(u32::from(self.broken_off)),
            first_hint_at,
            token: Uuid::new_v4(),
        };
        (lease, gathered)
    }
}

impl Ready {
    /// For a person to read.
    fn queued(self, subject: Subject, parked: Option<(String, OffsetDateTime)>) -> Queued {
        let waits = self.wanted > self.done;
        let since = self.leased.first_at.or(self.fresh.first_at).filter(|_| waits).map(instant);
        let gathered = self.leased.with(self.fresh);
        Queued {
            subject,
            hints: self.wanted - self.done,
            since,
            sources: gathered.sources,
            version: gathered.version,
            attempts: self.attempts,
            next: instant(self.ready_at),
            leased: self.broken_off,
            background: !self.live,
            parked,
        }
    }
}

/// Something parked as the tables have it: a row of either side, or a link (then the subject is its Defender incident).
struct Aside {
    side: i16,
    scope: String,
    native_id: String,
    reason: String,
    since: i64,
    /// The Defender incident of a Sentinel row, as far as it is linked.
    incident: Option<(String, String)>,
    link: bool,
}

/// What is parked, one entry for each incident, newest first. It is called by the Defender incident, which stands for
/// all of it; only where nothing but a Sentinel row is parked, by that.
fn one_for_each(mut aside: Vec<Aside>, most: usize) -> Result<Vec<Parked>, StoreError> {
    aside.sort_by_key(|one| (one.link, one.side));
    let mut entries: Vec<Parked> = Vec::new();
    let mut places: HashMap<Subject, usize> = HashMap::new();
    for Aside { side, scope, native_id, reason, since, incident, link: _ } in aside {
        let subject = Subject { side: side_of(side)?, scope, native_id };
        let known_by = match incident {
            Some((scope, native_id)) => Subject { side: Side::Defender, scope, native_id },
            None => subject.clone(),
        };
        match places.entry(known_by.clone()) {
            Entry::Vacant(place) => {
                place.insert(entries.len());
                entries.push(Parked { subject, reason, since: instant(since) });
            }
            Entry::Occupied(place) => {
                let entry = &mut entries[*place.get()];
                entry.subject = known_by;
                entry.since = entry.since.max(instant(since));
                if !entry.reason.split(REASONS).any(|known| known == reason) {
                    entry.reason = format!("{}{REASONS}{reason}", entry.reason);
                }
            }
        }
    }
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.since));
    entries.truncate(most);
    Ok(entries)
}

/// A scope as a key: the side's number and the scope's name.
type ScopeKey = (i16, String);

/// Whose turn it is. Workers lease few rows at a time, so that fairness must outlast a call: the scope that was served
/// longest ago comes first, however old the backlog of another is. Each replica keeps its own count; a restart
/// forgets it, which costs nobody more than one turn.
#[derive(Debug, Default)]
struct Turns {
    count: u64,
    last: HashMap<ScopeKey, u64>,
    /// With more scopes than one call looks at: whether that is so, and after which scope the next look begins. Then
    /// the order of the scopes' keys is the order of turns.
    too_many: bool,
    after: Option<ScopeKey>,
}

impl Turns {
    /// Deals the ready rows out, at most `most`, scope by scope.
    fn deal(&mut self, mut scopes: Vec<(ScopeKey, Vec<Ready>)>, most: usize) -> Vec<(ScopeKey, Ready)> {
        self.too_many = scopes.len() >= SCOPES_AT_ONCE;
        if !self.too_many {
            scopes.sort_by_cached_key(|(key, rows)| {
                (self.last.get(key).copied().unwrap_or(0), rows.first().map(Ready::first_at), key.clone())
            });
        }
        let mut scopes: Vec<_> = scopes.into_iter().map(|(key, rows)| (key, rows.into_iter())).collect();
        let mut dealt = Vec::new();
        while dealt.len() < most {
            let before = dealt.len();
            for (key, rows) in &mut scopes {
                if dealt.len() < most
                    && let Some(row) = rows.next()
                {
                    dealt.push((key.clone(), row));
                }
            }
            if dealt.len() == before {
                break;
            }
        }
        dealt
    }

    /// Notes who got one. Scopes whose last turn is long past are forgotten: they come first either way.
    fn took<'a>(&mut self, leases: impl IntoIterator<Item = &'a JobLease>) {
        let mut last = None;
        for lease in leases {
            self.count += 1;
            let key = (side_number(lease.subject.side), lease.subject.scope.clone());
            self.last.insert(key.clone(), self.count);
            last = Some(key);
        }
        self.after = last.filter(|_| self.too_many);
        if self.last.len() > MOST_TURNS {
            let (count, half) = (self.count, MOST_TURNS as u64 / 2);
            self.last.retain(|_, turn| *turn + half > count);
        }
    }
}

/// The turns of live rows and those of background rows. They are counted apart: being served in the background costs no
/// scope its turn when something happens there.
#[derive(Debug, Default)]
struct BothTurns {
    live: Turns,
    background: Turns,
    /// How many live rows were leased since the background had its share.
    since: usize,
}

impl BothTurns {
    fn of(&mut self, live: bool) -> &mut Turns {
        if live { &mut self.live } else { &mut self.background }
    }

    /// How many of the next `most` leases are the background's, if it has any rows.
    fn owed(&self, most: usize) -> usize {
        (self.since.saturating_add(most) / BACKGROUND_SHARE).min(most)
    }

    /// Notes how many rows of either kind were leased. A share that nobody wanted is gone: else every lease would look for
    /// somebody to take it.
    fn took(&mut self, owed: usize, live: usize, background: usize) {
        if live + background > 0 {
            self.since = if owed > 0 || background > 0 { 0 } else { self.since + live };
        }
    }
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

    fn hint(id: &str, version: Option<&str>, source: &str) -> Hint {
        Hint {
            subject: Subject { side: Side::Defender, scope: "t".into(), native_id: id.into() },
            version: version.map(str::to_owned),
            source: source.into(),
        }
    }

    #[test]
    fn equal_hints_are_one_statement_and_others_are_not() {
        let hints = vec![
            hint("2", Some("a"), "poll"),
            hint("1", None, "poll"),
            hint("2", Some("a"), "sweep"),
            hint("2", Some("a"), "poll"),
            hint("2", Some("b"), "poll"),
        ];
        let folded = fold(hints).expect("plain");
        let counts: Vec<_> = folded.iter().map(|one| (one.native_id.as_str(), one.count)).collect();
        assert_eq!(counts, [("1", 1), ("2", 2), ("2", 1), ("2", 1)]);
        assert!(fold(vec![hint(&"x".repeat(LONGEST_ID + 1), None, "poll")]).is_err());
    }

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        for (prefix, end) in [
            ("", None),
            ("a", Some("b")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}\u{10ffff}", None),
            ("\u{d7ff}", Some("\u{e000}")),
            ("50%", Some("50&")),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn a_source_cannot_pass_for_two() {
        let folded = fold(vec![hint("1", None, "poll,sweep\0")]).expect("plain");
        assert_eq!(folded[0].source, "poll_sweep_");
    }

    #[test]
    fn the_list_of_sources_has_an_end() {
        let mut list = String::new();
        for number in 0..1_000 {
            list = join_sources(&list, &format!("door-{number}"));
        }
        assert!(list.len() <= SOURCES_LIMIT && list.starts_with("door-0,door-1"));
        assert_eq!(join_sources("poll,sweep", "sweep,poll"), "poll,sweep");
    }

    #[test]
    fn a_version_stands_only_if_every_hint_named_it() {
        let of = |named, version: Option<&str>| Gathered {
            named,
            version: version.map(str::to_owned),
            ..Gathered::default()
        };
        let (nothing, one, other, mixed) = (of(0, None), of(1, Some("v1")), of(1, Some("v2")), of(2, None));
        for (earlier, later, together) in [
            (&nothing, &one, &one),
            (&one, &nothing, &one),
            (&one, &one, &one),
            (&one, &other, &mixed),
            (&mixed, &one, &mixed),
            (&one, &mixed, &mixed),
        ] {
            assert_eq!(&earlier.clone().with(later.clone()), together);
        }
    }

    #[tokio::test]
    async fn another_scheme_is_refused_without_its_secrets() {
        let Err(error) = open("mysql://root:hunter2@db/x").await else { panic!("opened") };
        let text = error.to_string();
        assert!(text.contains("sqlite://FILE") && !text.contains("hunter2"), "{text}");
    }
}
