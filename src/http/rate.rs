//! How much one source may ask: a token bucket per address in a bounded table, and a count of its open connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many sources are told apart. Those beyond share one bucket, so a flood of addresses cannot fill the memory.
const MOST_SOURCES: usize = 65_536;
/// How often a full table is searched for buckets that have filled up again.
const SWEEP_EVERY: u64 = 1_000_000_000;

/// An IPv6 sender owns 64 bits of addresses, so they are one source.
pub(super) fn bucket_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Token buckets, each kept as one number: the instant at which it is full again, in nanoseconds since `began`.
pub(super) struct Rates {
    began: Instant,
    /// What one request costs.
    cost: u64,
    /// How far ahead of now a bucket may be.
    depth: u64,
    most: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    full_at: HashMap<IpAddr, u64>,
    others: u64,
    swept_at: u64,
}

impl Rates {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self::with_room(per_second, burst, MOST_SOURCES)
    }

    fn with_room(per_second: u32, burst: u32, most: usize) -> Self {
        let cost = 1_000_000_000 / u64::from(per_second.max(1));
        let depth = cost * u64::from(burst.max(1));
        Self { began: Instant::now(), cost, depth, most, table: Mutex::default() }
    }

    /// Takes a token of the source, or says how long until there is one.
    pub(super) fn take(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX / 2);
        let mut table = lock(&self.table);
        let Table { full_at, others, swept_at } = &mut *table;
        let source = bucket_of(source);
        if full_at.len() >= self.most && !full_at.contains_key(&source) && now >= *swept_at + SWEEP_EVERY {
            *swept_at = now;
            full_at.retain(|_, full_at| *full_at > now);
        }
        let has_room = full_at.len() < self.most;
        let full = match full_at.entry(source) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) if has_room => place.insert(0),
            Entry::Vacant(_) => others,
        };
        let after = (*full).max(now) + self.cost;
        match after.saturating_sub(now + self.depth) {
            0 => {
                *full = after;
                Ok(())
            }
            wait => Err(Duration::from_nanos(wait)),
        }
    }
}

/// Open connections by source.
pub(super) struct Connections {
    most: u32,
    open: Mutex<HashMap<IpAddr, u32>>,
}

/// One open connection; dropping it gives the place back.
pub(super) struct Open {
    connections: Arc<Connections>,
    source: IpAddr,
}

impl Connections {
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// `None` when the source has as many as it may have.
    pub(super) fn open(self: &Arc<Self>, peer: IpAddr) -> Option<Open> {
        let source = bucket_of(peer);
        let mut open = lock(&self.open);
        let count = open.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Open { connections: self.clone(), source })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = lock(&self.connections.open);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

/// Nothing in here can panic halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills_again() {
        let rates = Rates::new(10, 3);
        let take = |last| rates.take(address(last), Instant::now());
        assert_eq!([take(1), take(1), take(1)], [Ok(()); 3]);
        assert_eq!(take(1), Err(Duration::from_millis(100)), "says when the next comes");
        assert_eq!(take(2), Ok(()), "another source has its own");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(take(1), Ok(()));
        assert!(take(1).is_err(), "one came, one went");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!([take(1), take(1), take(1)], [Ok(()); 3]);
        assert!(take(1).is_err(), "a bucket holds no more than its burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_fills_no_memory_and_shuts_out_nobody_who_was_known() {
        let rates = Rates::with_room(1, 2, 4);
        for last in 0..4 {
            assert_eq!(rates.take(address(last), Instant::now()), Ok(()));
        }
        let strangers: Vec<_> =
            (10..20).map(|last| rates.take(address(last), Instant::now()).is_ok()).collect();
        assert_eq!(strangers.iter().filter(|taken| **taken).count(), 2, "they share one bucket");
        assert_eq!(rates.take(address(0), Instant::now()), Ok(()), "who was known has his own still");
        assert_eq!(lock(&rates.table).full_at.len(), 4);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(rates.take(address(30), Instant::now()), Ok(()));
        assert_eq!(lock(&rates.table).full_at.len(), 1, "full buckets are forgotten");
    }

    #[test]
    fn one_source_has_so_many_connections_and_the_count_goes_down_again() {
        let connections = Connections::new(2);
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = connections.open(v6("2001:db8::1")).unwrap();
        let _two = connections.open(v6("2001:db8::2")).unwrap();
        assert!(connections.open(v6("2001:db8::3")).is_none(), "64 bits are one source");
        assert!(connections.open(address(1)).is_some());
        drop(one);
        assert!(connections.open(v6("2001:db8::3")).is_some());
        drop(_two);
        assert!(lock(&connections.open).is_empty(), "nothing stays behind");
    }
}
