//! Both systems as a route in shadow has them: what is read is read, and no write gets through. There is no other way for
//! such a route to either system, so that no code path can write, whatever it forgets to ask.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use time::OffsetDateTime;

use crate::app::routes::Route;
use crate::domain::digest::Bookmark;
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::{
    AlertPatch, DefenderComment, DefenderIncident, DefenderPatch, SentinelComment, SentinelIncident,
    SentinelWrite, Side,
};
use crate::ports::{Defender, Page, Sentinel};

/// How the refusal is known.
const CODE: &str = "shadow";
/// How many writes are remembered at most: a run has fewer, and what nobody asks for must not grow.
const MOST_KEPT: usize = 1_000;

/// What would have been written, in order. No texts.
type Would = Arc<Mutex<Vec<String>>>;

/// One system that is only read.
struct ReadOnly<P: ?Sized> {
    inner: Arc<P>,
    would: Would,
}

impl<P: ?Sized> ReadOnly<P> {
    fn refuse<T>(&self, side: Side, what: String) -> Result<T, Failure> {
        let message = format!("the route is in shadow, nothing is written: {what}");
        let mut would = self.would.lock().unwrap_or_else(PoisonError::into_inner);
        if would.len() < MOST_KEPT {
            would.push(what);
        }
        Err(Failure {
            class: Class::Permanent,
            side: Some(side),
            code: CODE.to_owned(),
            message,
            effect: Effect::None,
        })
    }
}

/// The route with both systems wrapped.
pub(crate) fn read_only(route: Route) -> Route {
    let Shadow { defender, sentinel, .. } = Shadow::of(&route);
    Route { defender, sentinel, ..route }
}

/// Where the writes of one run go to be told.
pub(crate) struct Shadow {
    pub(crate) defender: Arc<dyn Defender>,
    pub(crate) sentinel: Arc<dyn Sentinel>,
    would: Would,
}

impl Shadow {
    /// In front of a route's own systems. They may be wrapped already: one wrapper takes as little as two.
    pub(crate) fn of(route: &Route) -> Self {
        let would = Would::default();
        Self {
            defender: Arc::new(ReadOnly { inner: route.defender.clone(), would: would.clone() }),
            sentinel: Arc::new(ReadOnly { inner: route.sentinel.clone(), would: would.clone() }),
            would,
        }
    }

    /// The refusal that is expected of every write; anything else is passed on.
    pub(crate) fn takes<T>(&self, sent: Result<T, Failure>) -> Result<(), Failure> {
        match sent {
            Err(failure) if failure.code != CODE => Err(failure),
            Err(_) | Ok(_) => Ok(()),
        }
    }

    /// What came in.
    pub(crate) fn would(&self) -> Vec<String> {
        std::mem::take(&mut self.would.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Defender for ReadOnly<dyn Defender> {
    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure> {
        self.inner.incident(id).await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        self.inner.changed_since(since, next).await
    }

    async fn created_between(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        self.inner.created_between(from, to, next).await
    }

    async fn update(&self, id: &str, _: &DefenderPatch) -> Result<DefenderIncident, Failure> {
        self.refuse(Side::Defender, format!("incident {id} in defender"))
    }

    async fn comment(&self, id: &str, _: &str) -> Result<Vec<DefenderComment>, Failure> {
        self.refuse(Side::Defender, format!("a comment on incident {id} in defender"))
    }

    async fn update_alert(&self, id: &str, _: &AlertPatch) -> Result<(), Failure> {
        self.refuse(Side::Defender, format!("alert {id} in defender"))
    }
}

#[async_trait]
impl Sentinel for ReadOnly<dyn Sentinel> {
    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure> {
        self.inner.incident(name).await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure> {
        self.inner.changed_since(since, next).await
    }

    async fn everything(&self, next: Option<&str>) -> Result<Page<SentinelIncident>, Failure> {
        self.inner.everything(next).await
    }

    async fn put(&self, name: &str, write: &SentinelWrite) -> Result<SentinelIncident, Failure> {
        let new = if write.etag.is_none() { "a new incident" } else { "incident" };
        self.refuse(Side::Sentinel, format!("{new} {name} in sentinel"))
    }

    async fn comments(&self, name: &str) -> Result<Vec<SentinelComment>, Failure> {
        self.inner.comments(name).await
    }

    async fn put_comment(&self, name: &str, id: &str, _: &str) -> Result<SentinelComment, Failure> {
        self.refuse(Side::Sentinel, format!("comment {id} on incident {name} in sentinel"))
    }

    async fn put_bookmark(&self, name: &str, id: &str, _: &Bookmark) -> Result<(), Failure> {
        self.refuse(Side::Sentinel, format!("bookmark {id} on incident {name} in sentinel"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::app::routes::{Directories, Routes};
    use crate::domain::model::{SentinelSays, SentinelSeverity, SentinelStatus};
    use crate::domain::policy::Policy;

    /// A system that is empty and must not be written to.
    pub(crate) struct Glass;

    fn page<T>() -> Page<T> {
        Page { records: Vec::new(), next: None, unreadable: Vec::new() }
    }

    #[async_trait]
    impl Defender for Glass {
        async fn incident(&self, _: &str) -> Result<Option<DefenderIncident>, Failure> {
            Ok(None)
        }
        async fn changed_since(
            &self,
            _: OffsetDateTime,
            _: Option<&str>,
        ) -> Result<Page<DefenderIncident>, Failure> {
            Ok(page())
        }
        async fn update(&self, _: &str, _: &DefenderPatch) -> Result<DefenderIncident, Failure> {
            panic!("a write got through")
        }
        async fn comment(&self, _: &str, _: &str) -> Result<Vec<DefenderComment>, Failure> {
            panic!("a write got through")
        }
        async fn update_alert(&self, _: &str, _: &AlertPatch) -> Result<(), Failure> {
            panic!("a write got through")
        }
    }

    #[async_trait]
    impl Sentinel for Glass {
        async fn incident(&self, _: &str) -> Result<Option<SentinelIncident>, Failure> {
            Ok(None)
        }
        async fn changed_since(
            &self,
            _: OffsetDateTime,
            _: Option<&str>,
        ) -> Result<Page<SentinelIncident>, Failure> {
            Ok(page())
        }
        async fn put(&self, _: &str, _: &SentinelWrite) -> Result<SentinelIncident, Failure> {
            panic!("a write got through")
        }
        async fn comments(&self, _: &str) -> Result<Vec<SentinelComment>, Failure> {
            Ok(Vec::new())
        }
        async fn put_comment(&self, _: &str, _: &str, _: &str) -> Result<SentinelComment, Failure> {
            panic!("a write got through")
        }
        async fn put_bookmark(&self, _: &str, _: &str, _: &Bookmark) -> Result<(), Failure> {
            panic!("a write got through")
        }
    }

    #[tokio::test]
    async fn no_write_of_any_kind_gets_through_a_route_in_shadow() {
        let mut policy = Policy::default();
        policy.shadow = true;
        let route = Route {
            name: "quiet".into(),
            tenant_id: "t".into(),
            workspace: "w".into(),
            home: "h".into(),
            policy,
            defender: Arc::new(Glass),
            sentinel: Arc::new(Glass),
            directories: Directories::default(),
        };
        let routes = Routes::new(vec![route]).unwrap();
        let route = &routes.all()[0];
        assert_eq!(route.defender.incident("1").await, Ok(None), "what is read is read");
        let says = SentinelSays {
            title: "t".into(),
            description: None,
            severity: SentinelSeverity::Low,
            status: SentinelStatus::New,
            owner: Default::default(),
            classification: None,
            reason: None,
            comment: None,
            labels: Vec::new(),
            first_activity: None,
            last_activity: None,
        };
        let write = SentinelWrite { etag: None, says, clears: false };
        let bookmark = Bookmark {
            display_name: String::new(),
            query: String::new(),
            query_result: String::new(),
            notes: String::new(),
            labels: Vec::new(),
            event_time: None,
            mappings: Vec::new(),
        };
        let refusals = [
            route.defender.update("1", &DefenderPatch::default()).await.err(),
            route.defender.comment("1", "text").await.err(),
            route.defender.update_alert("a", &AlertPatch::default()).await.err(),
            route.sentinel.put("n", &write).await.err(),
            route.sentinel.put_comment("n", "c", "text").await.err(),
            route.sentinel.put_bookmark("n", "b", &bookmark).await.err(),
        ];
        for refusal in refusals {
            let refusal = refusal.unwrap();
            assert_eq!((refusal.code.as_str(), refusal.effect), (CODE, Effect::None), "{refusal}");
        }
        for (_, defender) in routes.tenants() {
            assert!(defender.comment("1", "text").await.is_err(), "nor through a tenant");
        }
        for (_, sentinel) in routes.workspaces() {
            assert!(sentinel.put_comment("n", "c", "text").await.is_err(), "nor through a workspace");
        }
    }
}
