//! The published request budgets, as token buckets that refill evenly: per application and tenant on Graph
//! (`graph.md` §11), per application and subscription on ARM (`sentinel.md` §13).

use std::collections::BTreeMap;

use time::OffsetDateTime;

/// What a call is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purse {
    /// Graph incidents: 50 a minute and 1,500 an hour.
    GraphIncidents,
    /// Graph alerts: 150 a minute.
    GraphAlerts,
    /// ARM reads: a bucket of 250, 25 a second.
    ArmReads,
    /// ARM writes: a bucket of 200, 10 a second.
    ArmWrites,
    /// ARM deletes: a bucket of 200, 10 a second.
    ArmDeletes,
}

impl Purse {
    /// Capacity and refill per second of each bucket; a call takes one from all of them.
    const fn buckets(self) -> &'static [(f64, f64)] {
        match self {
            Purse::GraphIncidents => &[(50.0, 50.0 / 60.0), (1_500.0, 1_500.0 / 3_600.0)],
            Purse::GraphAlerts => &[(150.0, 150.0 / 60.0)],
            Purse::ArmReads => &[(250.0, 25.0)],
            Purse::ArmWrites | Purse::ArmDeletes => &[(200.0, 10.0)],
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: OffsetDateTime,
}

/// All buckets.
#[derive(Debug, Default)]
pub struct Budgets {
    buckets: BTreeMap<(String, Purse), Vec<Bucket>>,
}

impl Budgets {
    /// Takes one request. `Ok`: what is left; `Err`: seconds until one would be left. A refused call takes nothing.
    pub fn take(&mut self, who: &str, purse: Purse, now: OffsetDateTime) -> Result<u32, f64> {
        let limits = purse.buckets();
        let buckets = self.buckets.entry((who.to_owned(), purse)).or_insert_with(|| {
            limits.iter().map(|(capacity, _)| Bucket { left: *capacity, at: now }).collect()
        });
        for (bucket, (capacity, refill)) in buckets.iter_mut().zip(limits) {
            let passed = (now - bucket.at).as_seconds_f64().max(0.0);
            bucket.left = (bucket.left + passed * refill).min(*capacity);
            bucket.at = now;
        }
        let wait = buckets
            .iter()
            .zip(limits)
            .map(|(bucket, (_, refill))| (1.0 - bucket.left).max(0.0) / refill)
            .fold(0.0, f64::max);
        if wait > 0.0 {
            return Err(wait);
        }
        for bucket in buckets.iter_mut() {
            bucket.left -= 1.0;
        }
        Ok(buckets.iter().map(|bucket| bucket.left).fold(f64::INFINITY, f64::min) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn fifty_at_once_then_one_every_1_2_seconds() {
        let mut budgets = Budgets::default();
        let mut now = OffsetDateTime::UNIX_EPOCH;
        for _ in 0..50 {
            assert!(budgets.take("app", Purse::GraphIncidents, now).is_ok());
        }
        let wait = budgets.take("app", Purse::GraphIncidents, now).expect_err("empty");
        assert!((1.1..1.3).contains(&wait), "{wait}");
        assert!(budgets.take("other", Purse::GraphIncidents, now).is_ok(), "another app has its own");
        assert!(budgets.take("app", Purse::GraphAlerts, now).is_ok());
        now += Duration::from_millis(1_250);
        assert!(budgets.take("app", Purse::GraphIncidents, now).is_ok());
        assert!(budgets.take("app", Purse::GraphIncidents, now).is_err());
    }

    #[test]
    fn the_hour_ends_before_sixty_full_minutes() {
        let mut budgets = Budgets::default();
        let mut now = OffsetDateTime::UNIX_EPOCH;
        let mut taken = 0;
        for _ in 0..3_600 {
            taken += u32::from(budgets.take("app", Purse::GraphIncidents, now).is_ok());
            now += Duration::from_secs(1);
        }
        assert!((2_900..3_000).contains(&taken), "{taken}: what was saved up, and what an hour refills");
    }
}
