//! `ports::Defender` over Graph: its operations and a look for `lockstep check`.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use time::OffsetDateTime;
use url::Url;

use super::wire;
use crate::adapters::call::{Call, Caller, Missing, Service, Shared};
use crate::adapters::entra::TokenSource;
use crate::adapters::lenient;
use crate::domain::failure::Failure;
use crate::domain::model::{AlertPatch, DefenderComment, DefenderIncident, DefenderPatch, Side};
use crate::ports::{AlertNews, Defender, Page, Spent, alerts_scope};

/// Larger pages are refused.
const PAGE: u32 = 50;

const GRAPH_SERVICE: Service = Service {
    side: Side::Defender,
    name: "Graph",
    // Without it 33 enum members, `awaitingAction` among them, arrive as `unknownFutureValue`.
    headers: &[("Prefer", "include-unknown-enum-members")],
    id_header: "client-request-id",
    missing: |code| if code.is_some() { Missing::Incident } else { Missing::Unclear },
    // The one place where a message is looked at: Graph's code is `Forbidden` for everything. A wrong guess costs a
    // longer or a shorter hold, never a write.
    speaks_of_role: |error| error.message.as_deref().is_some_and(|text| text.contains("application roles")),
    cure: "give the application SecurityIncident.ReadWrite.All (application permission, with an administrator's \
           consent); it can take minutes to arrive",
    not_there: "check graph_url and cloud",
};

static GRAPH: Service = GRAPH_SERVICE;

/// Alerts have a role and a list of their own: who lacks it may read and write incidents all the same.
static ALERTS: Service = Service {
    name: "Graph's alerts",
    cure: "give the application SecurityAlert.Read.All, or SecurityAlert.ReadWrite.All where `alert_updates` is on \
           (application permission, with an administrator's consent); it can take minutes to arrive",
    ..GRAPH_SERVICE
};

/// How many alerts a page of their list holds: what the reference page shows (`graph.md` §7.1).
const ALERTS_PAGE: u32 = 100;

/// Where a tenant's incidents are.
#[derive(Clone, Debug)]
pub struct GraphSettings {
    /// The cloud's Graph host, or what stands in for it.
    pub graph_url: Url,
    /// The cloud's token scope for Graph, whatever the host.
    pub scope: String,
    /// The tenant, in lower case.
    pub tenant_id: String,
    /// Whether an incident is read with its alerts.
    pub alerts: bool,
}

/// One tenant's incidents.
pub struct GraphClient {
    /// Whether an incident is read with its alerts.
    expand: bool,
    incidents: String,
    base: Url,
    tenant_id: String,
    caller: Caller,
    /// Calls about alerts, against the same budget.
    alerts: Caller,
}

impl GraphClient {
    /// Calls nothing yet.
    pub fn new(settings: GraphSettings, tokens: Arc<TokenSource>, shared: Shared) -> Self {
        let GraphSettings { graph_url, scope, tenant_id, alerts } = settings;
        let incidents = format!("{}/v1.0/security/incidents", graph_url.as_str().trim_end_matches('/'));
        let mut probe = graph_url.clone();
        probe.set_path(&format!("{}/v1.0/security/incidents", graph_url.path().trim_end_matches('/')));
        probe.set_query(Some("$top=1"));
        let quota = shared.quotas.graph(&tenant_id, tokens.client_id());
        let mut alerts_probe = probe.clone();
        alerts_probe.set_path(&format!("{}/v1.0/security/alerts_v2", graph_url.path().trim_end_matches('/')));
        // Whether the published limit for alerts (150 a minute) is apart from that for incidents is not said, so calls
        // about either are paid for from the smaller one.
        let apart = Caller::new(
            &ALERTS,
            alerts_scope(&tenant_id),
            scope.clone(),
            alerts_probe,
            tokens.clone(),
            quota.clone(),
            shared.clone(),
        );
        let caller = Caller::new(&GRAPH, tenant_id.clone(), scope, probe, tokens, quota, shared);
        Self { expand: alerts, incidents, base: graph_url, tenant_id, caller, alerts: apart }
    }

    /// Reads one short page: a line for `lockstep check --connect`.
    pub async fn check(&self) -> Result<String, Failure> {
        let url = self.url(&format!("{}?$top=1", self.incidents))?;
        let answer = self.caller.send(Call { list: true, ..Call::read("check", url) }).await?;
        let page = wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))?;
        let seen = if page.records.is_empty() && page.unreadable.is_empty() {
            "has no incidents yet"
        } else {
            "is readable"
        };
        let mut said = format!(
            "Graph answered at {}: tenant {} {seen}",
            self.base.origin().ascii_serialization(),
            self.tenant_id
        );
        if self.expand {
            let url = self.url(&format!("{}?$top=1", self.alerts_url()))?;
            if let Err(failure) = self.alerts.send(Call { list: true, ..Call::read("check", url) }).await {
                said = format!(
                    "{said}; its list of alerts is not, so alerts that change by themselves are seen with their \
                     incident's next change: {}",
                    failure.message
                );
            }
        }
        Ok(said)
    }

    fn one(&self, id: &str) -> Result<Url, Failure> {
        let segment = lenient::segment(id).ok_or_else(|| {
            self.caller.never("odd-id", format!("no incident can be called {:?}", lenient::sentence(id, 80)))
        })?;
        self.url(&format!("{}/{segment}", self.incidents))
    }

    fn alerts_url(&self) -> String {
        format!("{}alerts_v2", self.incidents.trim_end_matches("incidents"))
    }

    fn url(&self, text: &str) -> Result<Url, Failure> {
        Url::parse(text)
            .map_err(|error| self.caller.never("bad-url", format!("graph_url makes no URL: {error}")))
    }
}

#[async_trait]
impl Defender for GraphClient {
    fn spent(&self) -> Spent {
        self.caller.spent()
    }

    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure> {
        let mut url = self.one(id)?;
        if self.expand {
            // The only way to the alerts with their evidence in one call (`graph.md` §7.4).
            url.set_query(Some("$expand=alerts"));
        }
        let answer = self.caller.send(Call::read("incident-get", url)).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        wire::incident(&answer.body).map(Some).map_err(|why| self.caller.unreadable(false, &why))
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let url = match next {
            Some(next) => self.caller.next_page(&self.base, next)?,
            None => self.url(&format!(
                "{}?$filter=lastUpdateDateTime%20ge%20{}&$top={PAGE}",
                self.incidents,
                lenient::filter_instant(since)
            ))?,
        };
        let answer = self.caller.send(Call::poll("incident-list", url)).await?;
        wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))
    }

    async fn created_between(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let url = match next {
            Some(next) => self.caller.next_page(&self.base, next)?,
            None => self.url(&format!(
                "{}?$filter=createdDateTime%20ge%20{}%20and%20createdDateTime%20lt%20{}&$top={PAGE}",
                self.incidents,
                lenient::filter_instant(from),
                lenient::filter_instant(to)
            ))?,
        };
        // As urgent as a job: jobs that spend the whole budget wait for what is on this page.
        let answer = self.caller.send(Call { list: true, ..Call::read("incident-list", url) }).await?;
        wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))
    }

    async fn update(&self, id: &str, patch: &DefenderPatch) -> Result<DefenderIncident, Failure> {
        let call = Call::write("incident-update", Method::PATCH, self.one(id)?, wire::patch(patch));
        let answer = self.caller.send(call).await?;
        if answer.status == 404 {
            return Err(self.caller.status_failure(&answer, "Graph has no such incident to update"));
        }
        wire::incident(&answer.body).map_err(|why| self.caller.unreadable(true, &why))
    }

    async fn comment(&self, id: &str, text: &str) -> Result<Vec<DefenderComment>, Failure> {
        let mut url = self.one(id)?;
        url.set_path(&format!("{}/comments", url.path()));
        let call = Call::write("comment-create", Method::POST, url, wire::new_comment(text));
        let answer = self.caller.send(call).await?;
        if answer.status == 404 {
            return Err(self.caller.status_failure(&answer, "Graph has no such incident to comment on"));
        }
        wire::commented(&answer.body).map_err(|why| self.caller.unreadable(true, &why))
    }

    async fn alerts_changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<AlertNews>, Failure> {
        let url = match next {
            Some(next) => self.alerts.next_page(&self.base, next)?,
            None => self.url(&format!(
                "{}?$filter=lastUpdateDateTime%20ge%20{}&$top={ALERTS_PAGE}",
                self.alerts_url(),
                lenient::filter_instant(since)
            ))?,
        };
        let answer = self.alerts.send(Call::poll("alert-list", url)).await?;
        wire::alerts_page(&answer.body).map_err(|why| self.alerts.unreadable(false, &why))
    }

    async fn incident_of_alert(&self, id: &str) -> Result<Option<String>, Failure> {
        let Some(segment) = lenient::segment(id) else { return Ok(None) };
        let url = self.url(&format!("{}/{segment}", self.alerts_url()))?;
        let answer = self.alerts.send(Call::read("alert-get", url)).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let alert = lenient::object(&lenient::text_of(&answer.body))
            .map_err(|why| self.alerts.unreadable(false, &lenient::Unreadable::Garbled(why)))?;
        Ok(lenient::text(&alert, "incidentId"))
    }

    async fn update_alert(&self, id: &str, patch: &AlertPatch) -> Result<(), Failure> {
        let segment = lenient::segment(id).ok_or_else(|| {
            self.caller.never("odd-id", format!("no alert can be called {:?}", lenient::sentence(id, 80)))
        })?;
        let url = self.url(&format!("{}/{segment}", self.alerts_url()))?;
        let call = Call::write("alert-update", Method::PATCH, url, wire::alert_patch(patch));
        let answer = self.alerts.send(call).await?;
        if answer.status == 404 {
            return Err(self.alerts.status_failure(&answer, "Graph has no such alert to update"));
        }
        Ok(())
    }
}
