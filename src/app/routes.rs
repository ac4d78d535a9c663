//! The routes of a deployment, with the two systems each of them joins. Built once from the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::app::shadow;
use crate::domain::model::{LinkKey, Side};
use crate::domain::policy::Policy;
use crate::ports::{Defender, Directory, LinkRecord, Sentinel};

/// One Defender tenant to one workspace.
#[derive(Clone)]
pub struct Route {
    /// The name from the configuration, for people.
    pub name: String,
    /// The Defender tenant, in lower case.
    pub tenant_id: String,
    /// The workspace's resource id, in lower case, without a slash at the end.
    pub workspace: String,
    /// The workspace's own tenant, in lower case.
    pub home: String,
    /// The route's rules.
    pub policy: Policy,
    /// The tenant's Defender.
    pub defender: Arc<dyn Defender>,
    /// The workspace's Sentinel.
    pub sentinel: Arc<dyn Sentinel>,
    /// The directories of both tenants, where the route may ask them.
    pub directories: Directories,
}

/// Who knows the people of either side. None where the route does not ask.
#[derive(Clone, Default)]
pub struct Directories {
    /// Of the Defender tenant.
    pub defender: Option<Arc<dyn Directory>>,
    /// Of the workspace's own tenant.
    pub sentinel: Option<Arc<dyn Directory>>,
}

impl Directories {
    /// The directory of a side.
    pub fn of(&self, side: Side) -> Option<&Arc<dyn Directory>> {
        match side {
            Side::Defender => self.defender.as_ref(),
            Side::Sentinel => self.sentinel.as_ref(),
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route({}: {} -> {})", self.name, self.tenant_id, self.workspace)
    }
}

impl Route {
    /// The link of one of the tenant's incidents on this route.
    pub fn key(&self, incident_id: &str) -> LinkKey {
        LinkKey {
            tenant_id: self.tenant_id.clone(),
            incident_id: incident_id.to_owned(),
            workspace: self.workspace.clone(),
        }
    }
}

/// All routes, found by tenant, by workspace or by link.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    all: Vec<Arc<Route>>,
    by_tenant: BTreeMap<String, Vec<Arc<Route>>>,
    by_workspace: BTreeMap<String, Vec<Arc<Route>>>,
    /// By tenant: the routes to each workspace.
    pairs: BTreeMap<String, Vec<Vec<Arc<Route>>>>,
}

impl Routes {
    /// Takes the routes; those in shadow get both systems through a wrapper that takes no write. The error is a sentence:
    /// two routes may not have one name. Several may join the same tenant and workspace: they share its links, each of
    /// which one of them owns.
    pub fn new(routes: Vec<Route>) -> Result<Self, String> {
        let mut registry = Self::default();
        let mut names = BTreeSet::new();
        for route in routes {
            if !names.insert(route.name.clone()) {
                return Err(format!("two routes are called {:?}", route.name));
            }
            let route = Arc::new(if route.policy.shadow { shadow::read_only(route) } else { route });
            let pairs = registry.pairs.entry(route.tenant_id.clone()).or_default();
            match pairs.iter_mut().find(|pair| pair.iter().any(|other| other.workspace == route.workspace)) {
                Some(pair) => pair.push(route.clone()),
                None => pairs.push(vec![route.clone()]),
            }
            registry.by_tenant.entry(route.tenant_id.clone()).or_default().push(route.clone());
            registry.by_workspace.entry(route.workspace.clone()).or_default().push(route.clone());
            registry.all.push(route);
        }
        Ok(registry)
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[Arc<Route>] {
        &self.all
    }

    /// The routes that start at a tenant.
    pub fn of_tenant(&self, tenant_id: &str) -> &[Arc<Route>] {
        self.by_tenant.get(tenant_id).map_or(&[], Vec::as_slice)
    }

    /// The routes that end in a workspace.
    pub fn of_workspace(&self, workspace: &str) -> &[Arc<Route>] {
        self.by_workspace.get(workspace).map_or(&[], Vec::as_slice)
    }

    /// The routes of a tenant, those to the same workspace together, in the order of the configuration. None is empty.
    pub fn pairs_of(&self, tenant_id: &str) -> impl Iterator<Item = &[Arc<Route>]> {
        self.pairs.get(tenant_id).into_iter().flatten().map(Vec::as_slice)
    }

    /// The routes that join a link's tenant and workspace, in the order of the configuration.
    pub fn of_pair(&self, key: &LinkKey) -> &[Arc<Route>] {
        self.pairs_of(&key.tenant_id).find(|pair| pair[0].workspace == key.workspace).unwrap_or(&[])
    }

    /// The links that an incident of a tenant may have: one for each workspace.
    pub fn keys_of(&self, tenant_id: &str, incident_id: &str) -> impl Iterator<Item = LinkKey> {
        self.pairs_of(tenant_id).map(|pair| pair[0].key(incident_id))
    }

    /// The route that owns a link, if its tenant and workspace are still joined: the one that made it, or the first of
    /// those that join the two, if that one is configured no more.
    pub fn of_link(&self, link: &LinkRecord) -> Option<&Arc<Route>> {
        let pair = self.of_pair(&link.key);
        pair.iter().find(|route| route.name == link.route).or(pair.first())
    }

    /// Every tenant, with its Defender.
    pub fn tenants(&self) -> impl Iterator<Item = (&str, &Arc<dyn Defender>)> {
        self.by_tenant.iter().filter_map(|(id, routes)| Some((id.as_str(), &routes.first()?.defender)))
    }

    /// Every workspace, with its Sentinel.
    pub fn workspaces(&self) -> impl Iterator<Item = (&str, &Arc<dyn Sentinel>)> {
        self.by_workspace.iter().filter_map(|(id, routes)| Some((id.as_str(), &routes.first()?.sentinel)))
    }

    /// Whether all routes of a side lead to one and the same on the other: then there is nothing of it to do without that.
    pub(crate) fn joins_only(&self, (side, scope): &(Side, String), other: &str) -> bool {
        match side {
            Side::Defender => self.of_tenant(scope).iter().all(|route| route.workspace == other),
            Side::Sentinel => self.of_workspace(scope).iter().all(|route| route.tenant_id == other),
        }
    }

    /// Whether every route uses this tenant or workspace: then its trouble is everybody's, and there is nobody to
    /// protect from it.
    pub fn all_use(&self, scope: &str) -> bool {
        self.all.iter().all(|route| route.tenant_id == scope || route.workspace == scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::shadow::tests::Glass;

    fn joined(ways: &[(&str, &str)]) -> Routes {
        let route = |(number, (tenant, workspace)): (usize, &(&str, &str))| Route {
            name: number.to_string(),
            tenant_id: (*tenant).into(),
            workspace: (*workspace).into(),
            home: "h".into(),
            policy: Policy::default(),
            defender: Arc::new(Glass),
            sentinel: Arc::new(Glass),
            directories: Directories::default(),
        };
        Routes::new(ways.iter().enumerate().map(route).collect()).expect("names of their own")
    }

    /// However many routes share a pair, what counts is where else its ends lead.
    #[test]
    fn a_side_hangs_on_the_other_where_all_its_routes_lead_there() {
        let (tenant, workspace) = ((Side::Defender, "t".to_owned()), (Side::Sentinel, "w".to_owned()));
        for (ways, tenant_hangs, workspace_hangs) in [
            (vec![("t", "w")], true, true),
            (vec![("t", "w"), ("t", "w")], true, true),
            (vec![("t", "w"), ("t", "w"), ("t", "v")], false, true),
            (vec![("t", "w"), ("u", "w")], true, false),
        ] {
            let routes = joined(&ways);
            assert_eq!(routes.joins_only(&tenant, "w"), tenant_hangs, "{ways:?}");
            assert_eq!(routes.joins_only(&workspace, "t"), workspace_hangs, "{ways:?}");
        }
    }
}
