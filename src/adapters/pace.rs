//! The request budgets without HTTP: a simulation must not make calls that the service would hold back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::budget::{Limits, Quota, Quotas, Urgency};

/// One service's budget as one process keeps it.
pub struct Pace(Arc<Quota>);

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pace")
    }
}

impl Pace {
    /// Graph incidents of one tenant.
    pub fn graph(limits: Limits) -> Self {
        Self(Quotas::new(limits).graph("tenant", "client"))
    }

    /// ARM of one subscription.
    pub fn arm(limits: Limits) -> Self {
        Self(Quotas::new(limits).arm("subscription", "tenant", "client"))
    }

    /// Pays for one call, after a short wait if need be; the error is a wait too long to be waited out in place.
    pub async fn take(&self, write: bool, poll: bool) -> Result<(), Duration> {
        let budget = if write { &self.0.writes } else { &self.0.reads };
        budget.take(if poll { Urgency::Poll } else { Urgency::Job }).await
    }
}
