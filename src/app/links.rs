//! The links of a tenant, of a workspace or of a route, some at a time: there may be a million of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::app::routes::{Route, Routes};
use crate::domain::model::{LinkKey, Side};
use crate::ports::{LinkRecord, Scope, Store, StoreError};

/// How many links are read from the store at once.
const AT_ONCE: usize = 200;

/// Walks over stored links in key order. What belongs to no route any more is left out.
pub(crate) struct LinkPages {
    store: Arc<dyn Store>,
    routes: Arc<Routes>,
    tenants: VecDeque<String>,
    /// Only the links into this workspace.
    workspace: Option<String>,
    /// Only the links that this route owns.
    route: Option<String>,
    after: Option<LinkKey>,
}

impl LinkPages {
    /// Those of a Defender tenant or of a workspace.
    pub(crate) fn of_scope(store: &Arc<dyn Store>, routes: &Arc<Routes>, scope: &Scope) -> Self {
        let (side, name) = scope;
        let (tenants, workspace) = match side {
            Side::Defender => (VecDeque::from([name.clone()]), None),
            Side::Sentinel => {
                let tenants: BTreeSet<&str> =
                    routes.of_workspace(name).iter().map(|route| route.tenant_id.as_str()).collect();
                (tenants.into_iter().map(str::to_owned).collect(), Some(name.clone()))
            }
        };
        Self { store: store.clone(), routes: routes.clone(), tenants, workspace, route: None, after: None }
    }

    /// Those of a route.
    pub(crate) fn of_route(store: &Arc<dyn Store>, routes: &Arc<Routes>, route: &Route) -> Self {
        let tenants = VecDeque::from([route.tenant_id.clone()]);
        let (workspace, route) = (Some(route.workspace.clone()), Some(route.name.clone()));
        Self { store: store.clone(), routes: routes.clone(), tenants, workspace, route, after: None }
    }

    /// Goes on after this link, which an earlier walk over the same links came to.
    pub(crate) fn go_on(&mut self, after: LinkKey) {
        self.tenants.retain(|tenant| *tenant >= after.tenant_id);
        self.after = Some(after).filter(|after| self.tenants.front() == Some(&after.tenant_id));
    }

    /// The next of them, perhaps none; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<LinkRecord>>, StoreError> {
        let Some(tenant) = self.tenants.front() else { return Ok(None) };
        let before_all =
            || LinkKey { tenant_id: tenant.clone(), incident_id: String::new(), workspace: String::new() };
        let after = self.after.take().unwrap_or_else(before_all);
        let mut links = self.store.links(None, Some(&after), AT_ONCE).await?;
        let more = links.len() == AT_ONCE && links.last().is_some_and(|link| link.key.tenant_id == *tenant);
        self.after = links.last().filter(|_| more).map(|link| link.key.clone());
        links.retain(|link| {
            link.key.tenant_id == *tenant
                && self.workspace.as_ref().is_none_or(|workspace| link.key.workspace == *workspace)
                && self
                    .routes
                    .of_link(link)
                    .is_some_and(|owner| self.route.as_ref().is_none_or(|name| owner.name == *name))
        });
        if !more {
            self.tenants.pop_front();
        }
        Ok(Some(links))
    }
}
